//! Who may do what: the API key of a request and the permission a route needs.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;

use super::App;
use super::error::{ApiError, ErrorType};
use crate::secret::SecretString;
use crate::server::store::{KeyRow, Permission};

/// The API key a request came with; in the request's extensions behind the gate.
#[derive(Debug, Clone)]
pub struct Caller(pub KeyRow);

/// Puts the gate before a route's methods. Methods the route does not take stay outside: 405 needs no key.
pub fn guard(app: &App, permission: Permission, route: MethodRouter<App>) -> MethodRouter<App> {
    route.route_layer(from_fn_with_state((app.clone(), permission), check))
}

async fn check(
    State((app, permission)): State<(App, Permission)>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = match bearer(request.headers()) {
        Ok(key) => admit(&app, permission, &key).await,
        Err(e) => Err(e),
    };
    match admitted {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(e) => e.into_response(),
    }
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

async fn admit(app: &App, permission: Permission, key: &SecretString) -> Result<Caller, ApiError> {
    let known = app.service.authenticate(key).await?;
    let row = known.ok_or_else(|| unauthorized("the API key is not known"))?;
    if !row.permissions.allow(permission) {
        let message = format!(
            "this API key lacks the permission {}: enable Vault for this key in the dashboard, \
             or use a key that has it (vaultfs serve … key add --permissions {})",
            permission.name(),
            permission.name()
        );
        return Err(ApiError::new(ErrorType::Forbidden, message));
    }
    Ok(Caller(row))
}
