//! What keeps an attempt to send a request from an answer.

use std::error::Error as _;

/// Why an attempt brought no answer.
pub(super) enum AttemptError {
    /// No connection could be made; why.
    NotSent(String),
    /// No answer came; why.
    Lost(String),
    /// The answer was cut short; why.
    Cut(String),
    /// What answers does not speak HTTP; why.
    NoHttp(String),
    /// The deadline passed, after the request was sent or before.
    Late { sent: bool },
    /// A restart of the vault began before it was sent.
    Deferred,
    /// The answer is longer than any vault's.
    TooLong,
}

impl From<&reqwest::Error> for AttemptError {
    fn from(error: &reqwest::Error) -> Self {
        let why = root_cause(error);
        match error {
            _ if error.is_connect() || error.is_builder() => Self::NotSent(why),
            _ if is_unreadable(error) => Self::NoHttp(why),
            _ => Self::Lost(why),
        }
    }
}

/// Whether an answer came that is none in HTTP.
fn is_unreadable(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = error.source();
    while let Some(inner) = cause {
        if inner.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// The innermost reason: the outer ones repeat the URL.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = error.source();
    let mut text = "the connection failed".to_owned();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}
