//! The one error a request ends in, and what it looks like on the wire.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::body::json;
use crate::server::crypto::data_keys::KeyError;
use crate::server::service::ServiceError;
use crate::server::store::StoreError;

/// The kinds of errors a client sees, one of repeated requests, and four of HTTP's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// 400: the request is not of the documented form.
    InvalidRequest,
    /// 401: key missing or unknown.
    Unauthorized,
    /// 403: the key lacks the permission.
    Forbidden,
    /// 404: no such id, name, version or route.
    NotFound,
    /// 405: the route does not take this method.
    MethodNotAllowed,
    /// 408: the body did not come in time.
    RequestTimeout,
    /// 409: the name exists, or a version check failed.
    Conflict,
    /// 409: what this request made before was deleted since.
    MadeAndDeleted,
    /// 413: value or body over the limit.
    PayloadTooLarge,
    /// 422: well-formed, but not storable.
    UnprocessableEntity,
    /// 429: over the rate limit.
    RateLimitExceeded,
    /// 500: our fault.
    Internal,
    /// 503: too much at a time.
    Unavailable,
    /// 507: no room on the disk.
    InsufficientStorage,
}

impl ErrorType {
    /// Status, and the word in `error` and `code`.
    pub fn wire(self) -> (StatusCode, &'static str) {
        match self {
            ErrorType::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request"),
            ErrorType::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            ErrorType::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            ErrorType::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            ErrorType::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            ErrorType::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            ErrorType::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable"),
            ErrorType::Conflict => (StatusCode::CONFLICT, "conflict"),
            ErrorType::MadeAndDeleted => (StatusCode::CONFLICT, "made_and_deleted"),
            ErrorType::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            ErrorType::UnprocessableEntity => (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable_entity"),
            ErrorType::RateLimitExceeded => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            ErrorType::InsufficientStorage => (StatusCode::INSUFFICIENT_STORAGE, "insufficient_storage"),
            ErrorType::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_server_error"),
        }
    }
}

/// What a route answers.
pub type ApiResult = Result<Response, ApiError>;

/// An error answer. The message is ours: it names fields, never repeats what the client sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Its kind.
    pub kind: ErrorType,
    /// What is wrong and what to do, for the person who reads it.
    pub message: String,
}

impl ApiError {
    /// An error with its sentence.
    pub fn new(kind: ErrorType, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// 400: the request does not have the documented form.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorType::InvalidRequest, message)
    }

    /// 404: what `field` names is not there.
    pub fn not_found(field: &str) -> Self {
        Self::new(
            ErrorType::NotFound,
            format!("there is no such object ({field}): list the objects and check the spelling"),
        )
    }
}

/// The object dialect's body.
#[derive(Serialize)]
struct Wire<'a> {
    error: &'a str,
    code: &'a str,
    message: &'a str,
}

/// The kv dialect's body.
#[derive(Serialize)]
struct KvWire<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    message: &'a str,
    code: &'a str,
}

impl ApiError {
    /// What the kv dialect answers. The Node SDK takes any body with `error` for an OAuth error,
    /// but for the statuses it knows: 403 and 5xx do without it.
    pub fn kv_body(&self) -> Vec<u8> {
        let (status, code) = self.kind.wire();
        let plain = status == StatusCode::FORBIDDEN || status.is_server_error();
        let message = self.message.as_str();
        let wire = KvWire { error: (!plain).then_some(message), message, code };
        // A plain struct of strings, which serde_json writes without fail.
        serde_json::to_vec(&wire).expect("plain structs serialise")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, word) = self.kind.wire();
        let mut response = json(status, &Wire { error: word, code: word, message: &self.message });
        if self.kind == ErrorType::Unavailable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
        }
        // For the log, and for a dialect that says the same in other words.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ServiceError> for ApiError {
    fn from(e: ServiceError) -> Self {
        let internal = |detail: String| {
            tracing::error!(error = %detail, "the vault failed");
            Self::new(
                ErrorType::Internal,
                "the vault failed: try again, and if that does not help look into its log for the request id",
            )
        };
        match e {
            ServiceError::BadValue(e) => {
                Self::new(ErrorType::UnprocessableEntity, format!("data cannot be stored: {e}"))
            }
            ServiceError::TooLarge { limit } => Self::new(
                ErrorType::PayloadTooLarge,
                format!("the data is too large: a value holds at most {limit} bytes"),
            ),
            ServiceError::BadKey(KeyError::Seal(e)) => internal(e.to_string()),
            ServiceError::BadKey(e) => Self::new(ErrorType::UnprocessableEntity, e.to_string()),
            ServiceError::Store(e) => match e {
                StoreError::NotFound => Self::not_found("id, name or version"),
                StoreError::NameTaken => Self::new(
                    ErrorType::Conflict,
                    "an object with this name exists already: update it instead, or choose another name",
                ),
                StoreError::VersionMismatch => Self::new(
                    ErrorType::Conflict,
                    "the object has changed since: read it again, then repeat with its current version",
                ),
                StoreError::IdempotencyMismatch => Self::new(
                    ErrorType::UnprocessableEntity,
                    "another request came with this Idempotency-Key: send a new key with a new request",
                ),
                StoreError::IdempotencyGone => Self::new(
                    ErrorType::MadeAndDeleted,
                    "the object that this Idempotency-Key made has been deleted: send a new key to make another",
                ),
                StoreError::UnknownCursor => Self::invalid(
                    "after or before is not a cursor that this vault gave out: take it from list_metadata",
                ),
                StoreError::Full => {
                    tracing::error!("the disk is full: nothing more is stored until there is room");
                    Self::new(
                        ErrorType::InsufficientStorage,
                        "the disk of the vault is full: make room on it, then try again",
                    )
                }
                StoreError::Seal(e) => internal(e.to_string()),
                StoreError::Backend(detail) => internal(detail),
            },
        }
    }
}
