//! A request to a vault and its answer, as the dialects see them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::vault::client::retry::Idempotency;
use crate::vault::{ErrorKind, IdempotencyKey};

/// A request body (or a header) that is wiped when the last attempt has dropped it.
#[derive(Clone)]
pub struct Body(pub(super) Bytes);

impl Body {
    /// Takes over the text.
    pub fn new(text: Zeroizing<Vec<u8>>) -> Self {
        struct WipedText(Zeroizing<Vec<u8>>);
        impl AsRef<[u8]> for WipedText {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Self(Bytes::from_owner(WipedText(text)))
    }

    /// Whether `word` is somewhere in it.
    pub fn holds(&self, word: &str) -> bool {
        // Bodies are made as text; what were not, would hold no word.
        std::str::from_utf8(&self.0).is_ok_and(|text| text.contains(word))
    }

    /// Whether a sentence repeats one of the values in the JSON object that this is, or one of
    /// `words` stands in one. What is no such object counts as repeated.
    pub fn quoted_in<'a>(&self, sentence: &str, mut words: impl Iterator<Item = &'a str>) -> bool {
        let Ok(members) = serde_json::from_slice::<BTreeMap<&str, &RawValue>>(&self.0) else { return true };
        let values = || members.values().map(|value| value.get().trim_matches('"')).filter(|v| !v.is_empty());
        values().any(|value| sentence.contains(value)) || words.any(|word| values().any(|v| v.contains(word)))
    }
}

/// What to ask, and how to speak of it.
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query are appended to the service's address; the path is encoded already.
    pub path: Cow<'static, str>,
    /// Query parameters, not encoded yet.
    pub query: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Option<Body>,
    /// Whether it may be repeated when it may have been applied.
    pub idempotency: Idempotency,
    /// Idempotency-Key: by it the vault knows a request that comes again.
    pub idempotency_key: Option<IdempotencyKey>,
    /// What 409 means for it.
    pub conflict: ErrorKind,
    /// It is about an object, which may not be there: to any other request 404 is no answer of a
    /// vault.
    pub of_object: bool,
    /// For sentences: `reading "db/password"`.
    pub operation: String,
}

impl Request {
    /// A request that changes nothing.
    pub fn get(
        path: impl Into<Cow<'static, str>>,
        query: Vec<(&'static str, String)>,
        operation: String,
    ) -> Self {
        let path = path.into();
        let (method, idempotency, conflict) = (Method::GET, Idempotency::Read, ErrorKind::Invalid);
        Self {
            method,
            path,
            query,
            body: None,
            idempotency,
            idempotency_key: None,
            conflict,
            of_object: true,
            operation,
        }
    }

    /// A request that changes something; `conflict` is what 409 means.
    pub fn write(
        method: Method,
        path: impl Into<Cow<'static, str>>,
        body: Option<Body>,
        conflict: ErrorKind,
        operation: String,
    ) -> Self {
        let (path, idempotency, query) = (path.into(), Idempotency::Write, Vec::new());
        Self {
            method,
            path,
            query,
            body,
            idempotency,
            idempotency_key: None,
            conflict,
            of_object: true,
            operation,
        }
    }

    /// See [`Request::of_object`].
    pub fn of_no_object(self) -> Self {
        Self { of_object: false, ..self }
    }
}

/// An answer of the vault, whatever its status.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Zeroizing<Vec<u8>>,
    /// X-Request-ID.
    pub request_id: Option<String>,
    /// Its media type, if it is one that can be shown.
    pub media_type: Option<String>,
    /// How long a 429 or 503 asks to wait.
    pub retry_after: Option<Duration>,
    /// Attempts made for it.
    pub attempts: u32,
    /// An earlier attempt may have made the change.
    pub maybe_applied: bool,
}
