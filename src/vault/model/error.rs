//! What can go wrong between us and a vault. A kind for the caller to act on, a sentence for a
//! person.

use std::time::Duration;

/// What happened, in the terms a caller can act on. The errno table (`fs::errno`) matches it
/// exhaustively.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// 401: key missing or unknown.
    Unauthorized,
    /// 403: the key lacks the permission.
    Forbidden,
    /// 404: no such name, id or version.
    NotFound,
    /// 409 on create: the name is taken.
    AlreadyExists,
    /// The name is taken, of no object: one that was deleted keeps it for a while. Or its objects
    /// come and go all the time.
    NameNotFree,
    /// 409 on update or delete: the version check failed.
    VersionMismatch,
    /// 409 on a create that was made before (with the same `Idempotency-Key`): its object was
    /// deleted since.
    MadeAndDeleted,
    /// 400, 422: the vault refused the request.
    Invalid,
    /// 413, or a value over the limit.
    TooLarge,
    /// The name is longer than the dialect allows; nothing was sent.
    NameTooLong,
    /// 429 until the deadline, or until the tries were used up.
    RateLimited,
    /// The share of the budget that one user may spend is spent: nothing was sent, and others may
    /// go on.
    ShareSpent,
    /// The deadline passed.
    Deadline,
    /// No connection could be made.
    Unreachable,
    /// 5xx.
    Server,
    /// 507, said by a vault: its disk is full, and nothing was changed.
    Full,
    /// An answer that is not one of a vault: not JSON, fields missing, cut short, too long, a
    /// redirect.
    BadAnswer,
    /// An answer about another object than was asked for.
    OtherObject,
    /// The dialect cannot do this (values of old versions in kv).
    Unsupported,
}

/// An error of a vault operation. Its text never holds a value or a key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}{}{}", tries(*attempts), request(request_id))]
pub struct Error {
    /// What happened.
    pub kind: ErrorKind,
    /// A sentence for a person: what happened, to what, what to do.
    pub message: String,
    /// The vault's id for the request, if it sent one.
    pub request_id: Option<String>,
    /// Requests sent for this operation.
    pub attempts: u32,
    /// The change may have been made although no answer said so.
    pub maybe_applied: bool,
    /// How long the vault asked to wait.
    pub retry_after: Option<Duration>,
}

fn tries(n: u32) -> String {
    if n > 1 { format!(" (after {n} tries)") } else { String::new() }
}

fn request(id: &Option<String>) -> String {
    id.as_ref().map(|id| format!(" [request {id}]")).unwrap_or_default()
}

impl Error {
    /// An error that surely changed nothing.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            request_id: None,
            attempts: 1,
            maybe_applied: false,
            retry_after: None,
        }
    }

    /// The same error, with the effect in doubt.
    pub fn maybe_applied(mut self) -> Self {
        self.maybe_applied = true;
        self
    }
}

/// The result of a vault operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
