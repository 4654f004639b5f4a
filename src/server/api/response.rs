//! Around every answer: a request id, no caching, a log line, and 500 in place of a panic.
//!
//! Also what the routes do not have to know: that no path takes HEAD, that errors of the kv dialect
//! have a body of their own, and that a request is read to its end before it is answered, even if
//! it is refused. Without that the connection would be closed with an answer that does not say so,
//! and the client's next request be lost.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use parking_lot::Mutex;
use tracing::Instrument;
use ulid::Ulid;

use crate::server::api::error::{ApiError, ErrorType};
use crate::server::instance::admission::ConnectionPermit;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where the kv dialect lives.
const KV: &str = "/vault/v1/";

/// How much of an unwanted body is read, in bytes, and for how long; then the connection is closed.
const DISCARD: usize = 64 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// The outermost layer.
pub async fn wrap(mut request: Request, next: Next) -> Response {
    let id = format!("req_{}", Ulid::new());
    let path = without_names(request.uri().path());
    let peer = peer(&request);
    let span = tracing::debug_span!("request", %id, method = %request.method(), path, peer);
    let begun = Instant::now();
    let kv = request.uri().path().starts_with(KV);
    if request.method() == Method::HEAD {
        // axum answers HEAD wherever there is a GET; OPTIONS is a method that no path takes.
        *request.method_mut() = Method::OPTIONS;
    }
    let rest = (!request.body().is_end_stream()).then(|| lend_body(&mut request));
    let answer = AssertUnwindSafe(next.run(request).instrument(span.clone())).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        ApiError::new(ErrorType::Internal, "the vault failed: this is a bug, please report it")
            .into_response()
    });
    if let Some(rest) = rest {
        // Out of time, too, there is an answer.
        let _ = tokio::time::timeout(DISCARD_TIME, discard(rest)).await;
    }
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

/// Where the request comes from, for the log.
fn peer(request: &Request) -> Option<String> {
    let permit = request.extensions().get::<Arc<ConnectionPermit>>()?;
    // A proxy may add a line of its own to the one that the client sent.
    let lines = request.headers().get_all("x-forwarded-for").into_iter();
    let lines: Vec<_> = lines.map(|line| line.to_str().unwrap_or_default()).collect();
    Some(permit.peer(&lines.join(","))?.to_string())
}

/// Puts a body in place of the request's that leaves what is not read of it in what this returns.
fn lend_body(request: &mut Request) -> impl Stream<Item = Result<Bytes, axum::Error>> + Unpin + use<> {
    let body = std::mem::take(request.body_mut()).into_data_stream().fuse();
    // Held for one poll; there is never more than one reader.
    let body = Arc::new(Mutex::new(body));
    let read = || {
        let body = Arc::clone(&body);
        stream::poll_fn(move |cx| body.lock().poll_next_unpin(cx))
    };
    *request.body_mut() = Body::from_stream(read());
    read()
}

/// Reads and throws away.
async fn discard(mut rest: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin) {
    let mut left = DISCARD;
    while let Some(Ok(chunk)) = rest.next().await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}

/// The path for the log: what the kv dialect has of names and ids in it is left out, as the query
/// is.
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
