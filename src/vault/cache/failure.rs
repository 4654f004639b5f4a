//! Failures of requests, as far as the cache treats them in different ways.

use crate::vault::{Error, ErrorKind};

/// Prefix of an outage that is none: the vault answers, but the budget is used up.
pub const RATE_LIMITED: &str = "rate limit used up";

pub(super) fn why(e: &Error) -> String {
    match e.kind {
        ErrorKind::RateLimited => format!("{RATE_LIMITED}: {e}"),
        _ => e.to_string(),
    }
}

/// Whether an immediate retry of that refusal is useless.
pub(super) fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Invalid
            | ErrorKind::Forbidden
            | ErrorKind::TooLarge
            | ErrorKind::OtherObject
            | ErrorKind::BadAnswer
    )
}

/// Whether a stale answer may replace this failure.
pub fn is_outage(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::RateLimited
        | ErrorKind::ShareSpent
        | ErrorKind::Deadline
        | ErrorKind::Unreachable
        | ErrorKind::Server
        | ErrorKind::BadAnswer => true,
        ErrorKind::Unauthorized
        | ErrorKind::Forbidden
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::NameNotFree
        | ErrorKind::VersionMismatch
        | ErrorKind::MadeAndDeleted
        | ErrorKind::Invalid
        | ErrorKind::TooLarge
        | ErrorKind::NameTooLong
        | ErrorKind::Full
        | ErrorKind::OtherObject
        | ErrorKind::Unsupported => false,
    }
}
