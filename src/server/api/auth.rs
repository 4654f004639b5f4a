//! Authorization: the API key of a request and the permission that a route needs.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;

use crate::secret::SecretString;
use crate::server::api::error::{ApiError, ErrorType};
use crate::server::api::key_limits::too_busy;
use crate::server::api::{App, rate_limit};
use crate::server::instance::admission::ConnectionPermit;
use crate::server::store::{IdempotencyRecord, KEYS_KEPT, KeyHash, KeyRow, Permission};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// For how many seconds a request is known by its `Idempotency-Key`: a client that never had the
/// answer sends it once more, and need not look for what it made.
const REMEMBERS: HeaderName = HeaderName::from_static("x-vaultfs-idempotency");
const PERMISSIONS: HeaderName = HeaderName::from_static("x-vaultfs-permissions");

/// The API key a request came with; in the request's extensions after authentication.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key, as it was when the request began.
    pub key: KeyRow,
    hash: KeyHash,
}

impl Caller {
    /// Looks the key up.
    async fn find(app: &App, hash: KeyHash) -> Result<Self, ApiError> {
        let key = app.service.authenticate(hash).await?;
        let key = key.ok_or_else(|| unauthorized("the API key is not known"))?;
        Ok(Self { key, hash })
    }

    /// Looks the key up again, after a wait in which it may have been revoked.
    pub async fn check_again(&self, app: &App) -> Result<(), ApiError> {
        Self::find(app, self.hash).await.map(drop)
    }
}

/// What makes this request one that is done once: its `Idempotency-Key`, if it has one. `body` is
/// what it asks for: of an update the value alone, so that one that is sent again after another
/// version is the same.
pub fn idempotency(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    route: &str,
    body: &[u8],
) -> Option<IdempotencyRecord> {
    let key = headers.get(IDEMPOTENCY_KEY).filter(|key| !key.is_empty())?;
    Some(app.service.idempotency(&caller.key.id, route, key.as_bytes(), body))
}

/// Puts authentication before a route's methods. Methods the route does not take stay outside: 405
/// needs no key.
pub fn guard(app: &App, permission: Permission, route: MethodRouter<App>) -> MethodRouter<App> {
    route.route_layer(from_fn_with_state((app.clone(), permission), check))
}

async fn check(
    State((app, permission)): State<(App, Permission)>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match admit(&app, &request).await {
        Ok(caller) => caller,
        Err(e) => return e.into_response(),
    };
    let row = &caller.key;
    let rights = permissions(row);
    let allowance = app.limit.as_ref().map(|limit| limit.take(&row.id));
    let mut response = match allowance {
        Some(allowance) if !allowance.granted => allowance.exceeded().into_response(),
        _ => match permit(row, permission) {
            Ok(()) => {
                // Nothing after authentication needs the key.
                request.headers_mut().remove(AUTHORIZATION);
                let answer = with_permit(&app, caller, permission, request, next).await;
                answer.unwrap_or_else(IntoResponse::into_response)
            }
            Err(e) => e.into_response(),
        },
    };
    match allowance {
        Some(allowance) => allowance.announce(&mut response),
        None => rate_limit::announce_none(&mut response),
    }
    response.headers_mut().insert(PERMISSIONS, rights);
    response.headers_mut().insert(REMEMBERS, HeaderValue::from(KEYS_KEPT.as_secs()));
    response
}

/// Looks up the key of a request, and gives its connection to that key. What is needed of the
/// request is taken before the look-up begins: a request is not `Sync`.
fn admit<'a>(
    app: &'a App,
    request: &Request,
) -> impl Future<Output = Result<Caller, ApiError>> + Send + use<'a> {
    let hash = bearer(request.headers()).map(|key| app.service.hash_api_key(&key));
    let permit = request.extensions().get::<Arc<ConnectionPermit>>().cloned();
    async move {
        let Some(permit) = permit else { return Caller::find(app, hash?).await };
        let _looking = permit.look_up().await;
        let caller = Caller::find(app, hash?).await?;
        if !permit.prove(&caller.key.id) {
            return Err(too_busy("this API key has too many connections"));
        }
        Ok(caller)
    }
}

/// Runs a request when the key has room for it.
async fn with_permit(
    app: &App,
    caller: Caller,
    permission: Permission,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let answers_may_be_long = matches!(permission, Permission::Read | Permission::Keys);
    let permit = app.key_limits.admit(&caller.key.id, answers_may_be_long).await?;
    if permit.waited {
        caller.check_again(app).await?;
    }
    request.extensions_mut().insert(caller);
    Ok(permit.answer(next.run(request).await).await)
}

/// What the key may do, in the words of `key add`: a client need not find out by what is refused.
fn permissions(row: &KeyRow) -> HeaderValue {
    let has = Permission::ALL.into_iter().filter(|permission| row.permissions.allow(*permission));
    let words: Vec<_> = has.map(Permission::name).collect();
    HeaderValue::from_str(&words.join(",")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn unauthorized(what: &str) -> ApiError {
    let message = format!("{what}: check that WORKOS_API_KEY is set and starts with sk_");
    ApiError::new(ErrorType::Unauthorized, message)
}

fn bearer(headers: &HeaderMap) -> Result<SecretString, ApiError> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    header
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| SecretString::new(key.trim().to_owned()))
        .ok_or_else(|| unauthorized("no API key was sent as a bearer token"))
}

fn permit(row: &KeyRow, permission: Permission) -> Result<(), ApiError> {
    if row.permissions.allow(permission) {
        return Ok(());
    }
    let message = format!(
        "this API key lacks the permission {}: use a key that has it (`vaultfs serve --data DIR key add`)",
        permission.name()
    );
    Err(ApiError::new(ErrorType::Forbidden, message))
}
