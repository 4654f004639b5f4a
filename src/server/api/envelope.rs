//! Around every answer: a request id, no caching, a log line, and 500 in place of a panic.
//!
//! Also what the routes do not have to know: that no path takes HEAD, and that errors of the kv dialect have
//! a body of their own.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;
use ulid::Ulid;

use super::error::{ApiError, ErrorType};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where the kv dialect lives.
const KV: &str = "/vault/v1/";

/// The outermost layer.
pub async fn wrap(mut request: Request, next: Next) -> Response {
    let id = format!("req_{}", Ulid::new());
    let path = without_names(request.uri().path());
    let span = tracing::debug_span!("request", %id, method = %request.method(), path);
    let begun = Instant::now();
    let kv = request.uri().path().starts_with(KV);
    if request.method() == Method::HEAD {
        // axum answers HEAD wherever there is a GET; OPTIONS is a method that no path takes.
        *request.method_mut() = Method::OPTIONS;
    }
    let answer = AssertUnwindSafe(next.run(request).instrument(span.clone())).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        ApiError::new(ErrorType::Internal, "the vault failed: this is a bug, please report it")
            .into_response()
    });
    if kv {
        speak_kv(&mut response);
    }
    let headers = response.headers_mut();
    if let Some(allow) = headers.get(header::ALLOW).and_then(|allow| without_head(allow.to_str().ok()?)) {
        headers.insert(header::ALLOW, allow);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let _in = span.enter();
    let error = response.extensions().get::<ApiError>().map(|e| e.message.as_str());
    tracing::debug!(status = response.status().as_u16(), elapsed = ?begun.elapsed(), error, "answered");
    response
}

/// The path for the log: what the kv dialect has of names and ids in it is left out, as the query is.
fn without_names(path: &str) -> &str {
    match path.strip_prefix(KV).map(|rest| rest.split('/').collect::<Vec<_>>()).as_deref() {
        Some(["kv", "name", _, ..]) => "/vault/v1/kv/name/…",
        Some(["kv", _]) => "/vault/v1/kv/…",
        Some(["kv", _, "metadata"]) => "/vault/v1/kv/…/metadata",
        Some(["kv", _, "versions"]) => "/vault/v1/kv/…/versions",
        _ => path,
    }
}

/// Says an error in the kv dialect's words.
fn speak_kv(response: &mut Response) {
    let Some(body) = response.extensions().get::<ApiError>().map(ApiError::kv_body) else { return };
    // Set again by axum, for the body that goes out.
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
}

fn without_head(allow: &str) -> Option<HeaderValue> {
    let methods: Vec<_> = allow.split(',').map(str::trim).filter(|method| *method != "HEAD").collect();
    HeaderValue::from_str(&methods.join(", ")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_names_no_object() {
        for (path, shown) in [
            ("/vault/v1/kv", "/vault/v1/kv"),
            ("/vault/v1/kv/name/db%2Fpassword", "/vault/v1/kv/name/…"),
            ("/vault/v1/kv/name/db/password/versions", "/vault/v1/kv/name/…"),
            ("/vault/v1/kv/vault_obj_1", "/vault/v1/kv/…"),
            ("/vault/v1/kv/vault_obj_1/versions", "/vault/v1/kv/…/versions"),
            ("/vault/v1/keys/rekey", "/vault/v1/keys/rekey"),
            ("/vault/object/get", "/vault/object/get"),
        ] {
            assert_eq!(without_names(path), shown);
        }
    }

    #[test]
    fn allow_names_no_head() {
        assert_eq!(without_head("GET,HEAD,POST").unwrap(), "GET, POST");
        assert_eq!(without_head("PUT").unwrap(), "PUT");
    }
}
