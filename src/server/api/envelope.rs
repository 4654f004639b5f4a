//! Around every answer: a request id, no caching, a log line, and 500 in place of a panic.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;
use ulid::Ulid;

use super::error::{ApiError, ErrorType};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer.
pub async fn wrap(request: Request, next: Next) -> Response {
    let id = format!("req_{}", Ulid::new());
    // The path only: names and ids are in the query.
    let span = tracing::debug_span!("request", %id, method = %request.method(), path = request.uri().path());
    let begun = Instant::now();
    let answer = AssertUnwindSafe(next.run(request).instrument(span.clone())).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        ApiError::new(ErrorType::Internal, "the vault failed: this is a bug, please report it")
            .into_response()
    });
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let _in = span.enter();
    let error = response.extensions().get::<ApiError>().map(|e| e.message.as_str());
    tracing::debug!(status = response.status().as_u16(), elapsed = ?begun.elapsed(), error, "answered");
    response
}
