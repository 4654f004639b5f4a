//! From the status of an answer to an error that a caller can act on and a person can read.
//!
//! Of what the vault says itself only the code is repeated, a word of the API: services like to
//! quote keys and what they were sent or hold, and a sentence of theirs would carry that into logs.
//! The request id in each error leads to the sentence. Requests for keys concern nothing that the
//! vault holds: there [`reason`] shows the sentence, if it is plain words and none of them was
//! sent.

use std::path::Path;

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use crate::display::Shown;
use crate::vault::client::checked::other_object;
use crate::vault::client::transport::{Answer, Body, Request};
use crate::vault::client::wire::parse;
use crate::vault::{Error, ErrorKind, ObjectId, Result};

/// No word of the API is longer.
const MAX_CODE: usize = 64;

/// No sentence that is shown is longer.
const MAX_SENTENCE: usize = 200;

/// Words of a language are no longer; keys are.
const MAX_WORD: usize = 20;

/// `base64`, `1048576`.
const MAX_NUMBER: usize = 8;

/// A shorter word may be part of anything by chance.
const TELLING: usize = 4;

/// The answer if it is a success, else its error. `key_file` is where the key came from, `endpoint`
/// where the vault is.
pub fn check(answer: Answer, request: &Request, key_file: Option<&Path>, endpoint: &str) -> Result<Answer> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let (kind, sentence) = match is_full(&answer) {
        true => (ErrorKind::Full, format!("the disk of the vault at {endpoint} is full: make room on it")),
        false => refusal(&answer, request, key_file),
    };
    Err(error(kind, &sentence, &answer, request))
}

/// The error of an answer with a status of success and an unusable body.
pub fn bad_answer(why: &str, answer: &Answer, request: &Request) -> Error {
    let sentence = format!("the vault's answer cannot be used: {why} (status {})", described(answer));
    error(ErrorKind::BadAnswer, &sentence, answer, request)
}

/// For an answer to a deletion, which need not say anything: whether it is one of a vault at all,
/// and not some page's, and about this object.
pub fn confirmed(answer: &Answer, request: &Request, id: &ObjectId) -> Result<()> {
    #[derive(Deserialize)]
    struct DeletionAnswer {
        id: Option<String>,
        deleted: Option<bool>,
        success: Option<bool>,
    }
    if answer.body.trim_ascii().is_empty() {
        return Ok(());
    }
    let said: DeletionAnswer = parse(answer, request)?;
    match said.id {
        Some(other) if other != id.as_str() => Err(other_object(&request.operation, &other)),
        _ if said.deleted == Some(false) || said.success == Some(false) => {
            Err(bad_answer("it says that nothing was deleted", answer, request))
        }
        _ => Ok(()),
    }
}

fn error(kind: ErrorKind, sentence: &str, answer: &Answer, request: &Request) -> Error {
    // A server that failed, or that answered nonsense, may have done its work before.
    let maybe_applied = matches!(kind, ErrorKind::Server | ErrorKind::BadAnswer) || answer.maybe_applied;
    Error {
        kind,
        message: format!("{}: {sentence}", request.operation),
        request_id: answer.request_id.clone(),
        attempts: answer.attempts,
        maybe_applied: maybe_applied && request.idempotency.changes(),
        retry_after: answer.retry_after,
    }
}

/// Whether a body is a JSON object, as all answers of a vault are.
pub fn is_json_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

/// A vault of one's own says that its disk is full. Of a service 507 is a failure like any other
/// 5xx.
pub fn is_full(answer: &Answer) -> bool {
    answer.status == StatusCode::INSUFFICIENT_STORAGE
        && said(answer).is_some_and(|code| code == "insufficient_storage")
}

/// Status and media type, which show whether a vault or a proxy answered.
fn described(answer: &Answer) -> String {
    let status = answer.status.as_u16();
    answer.media_type.as_ref().map_or_else(|| status.to_string(), |name| format!("{status}, {name}"))
}

fn refusal(answer: &Answer, request: &Request, key_file: Option<&Path>) -> (ErrorKind, String) {
    let status = answer.status.as_u16();
    let is_vault = answer.body.trim_ascii().is_empty() || is_json_object(&answer.body);
    let no_vault = || {
        let sentence = format!(
            "the answer (status {}) is not one of a vault: check the address, and any proxy before the vault",
            described(answer)
        );
        (ErrorKind::BadAnswer, sentence)
    };
    match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::CONFLICT
            if !is_vault =>
        {
            no_vault()
        }
        StatusCode::NOT_FOUND if !request.of_object => no_vault(),
        StatusCode::UNAUTHORIZED => (ErrorKind::Unauthorized, unauthorized(key_file)),
        StatusCode::FORBIDDEN => {
            let permission = permission(request);
            let sentence = format!(
                "permission denied: this takes the permission {permission}, which the API key lacks: use another key \
                 (`vaultfs serve --data DIR key add --permissions {permission}`), or enable it in the WorkOS dashboard"
            );
            (ErrorKind::Forbidden, sentence)
        }
        StatusCode::NOT_FOUND => (ErrorKind::NotFound, "the vault has no such object or version".to_owned()),
        StatusCode::CONFLICT => conflict(answer, request),
        StatusCode::BAD_REQUEST
        | StatusCode::UNPROCESSABLE_ENTITY
        | StatusCode::URI_TOO_LONG
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let why = code(answer, request).unwrap_or_else(|| format!("status {status}"));
            (ErrorKind::Invalid, format!("the vault refused the request: {why}"))
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            (ErrorKind::TooLarge, "the value is larger than the vault takes".to_owned())
        }
        StatusCode::TOO_MANY_REQUESTS => (ErrorKind::RateLimited, rate_limited(answer)),
        status if status.is_redirection() => {
            let sentence = format!(
                "the answer is a redirect (status {status}), which is never followed: check the address",
                status = status.as_u16()
            );
            (ErrorKind::BadAnswer, sentence)
        }
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            let sentence = format!("the vault failed (status {}): try again later", status.as_u16());
            (ErrorKind::Server, sentence)
        }
        _ => no_vault(),
    }
}

fn unauthorized(key_file: Option<&Path>) -> String {
    let next = match key_file {
        Some(path) => format!("check the key in {}", path.shown()),
        None => "check WORKOS_API_KEY or --api-key-file".to_owned(),
    };
    format!("the vault refused the API key: {next}")
}

fn conflict(answer: &Answer, request: &Request) -> (ErrorKind, String) {
    let was_made =
        request.idempotency_key.is_some() && said(answer).is_some_and(|code| code == "made_and_deleted");
    match request.conflict {
        _ if was_made => {
            let sentence = "the object was made by an earlier attempt, and deleted since".to_owned();
            (ErrorKind::MadeAndDeleted, sentence)
        }
        ErrorKind::AlreadyExists => {
            (ErrorKind::AlreadyExists, "an object of this name exists already: update it".to_owned())
        }
        other => (other, "the object was changed meanwhile: read it again".to_owned()),
    }
}

/// The permission that a request takes, in the words of `vaultfs serve … key add`.
fn permission(request: &Request) -> &'static str {
    let of_keys = ["/vault/key/", "/vault/v1/keys/"].iter().any(|path| request.path.starts_with(path));
    match request.method {
        _ if of_keys => "keys",
        Method::GET => "read",
        Method::DELETE => "delete",
        _ => "write",
    }
}

fn rate_limited(answer: &Answer) -> String {
    match answer.retry_after {
        Some(wait) => {
            format!("the rate limit of the API key is used up: try again in {} s", wait.as_secs().max(1))
        }
        None => "the rate limit of the API key is used up: try again in a minute".to_owned(),
    }
}

/// The vault's own word for a refusal.
fn code(answer: &Answer, request: &Request) -> Option<String> {
    let code = said(answer)?;
    let is_word = (1..=MAX_CODE).contains(&code.len())
        && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        && !request.body.as_ref().is_some_and(|body| body.holds(&code));
    is_word.then_some(code)
}

fn said(answer: &Answer) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorCode {
        code: Option<String>,
    }
    serde_json::from_slice::<ErrorCode>(&answer.body).ok()?.code
}

/// The vault's own sentence on a request for keys, unless it could hold anything of what was sent,
/// or look like a key.
pub fn reason(answer: &Answer, request: &Request) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorMessage {
        message: Option<String>,
    }
    let sentence = serde_json::from_slice::<ErrorMessage>(&answer.body).ok()?.message?;
    let words =
        || sentence.split_whitespace().map(|word| word.trim_matches(|c: char| c.is_ascii_punctuation()));
    let is_plain = |word: &str| {
        let longest = if word.bytes().any(|b| b.is_ascii_digit()) { MAX_NUMBER } else { MAX_WORD };
        word.len() <= longest && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-'".contains(&b))
    };
    let quotes = |body: &Body| body.quoted_in(&sentence, words().filter(|word| word.len() >= TELLING));
    let harmless = !sentence.is_empty()
        && sentence.len() <= MAX_SENTENCE
        && words().all(is_plain)
        && !request.body.as_ref().is_some_and(quotes);
    harmless.then_some(sentence)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    /// What is shown of `message`, in answer to a request with these fields.
    fn shown(sent: serde_json::Value, message: &str) -> Option<String> {
        let body = serde_json::json!({ "error": "x", "code": "x", "message": message }).to_string();
        let answer = Answer {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            body: Zeroizing::new(body.into_bytes()),
            request_id: None,
            media_type: None,
            retry_after: None,
            attempts: 1,
            maybe_applied: false,
        };
        let sent = Body::new(Zeroizing::new(sent.to_string().into_bytes()));
        let request =
            Request::write(Method::POST, "/vault/key/x", Some(sent), ErrorKind::Invalid, "x".to_owned());
        reason(&answer, &request)
    }

    #[test]
    fn a_sentence_of_plain_words_is_shown() {
        let sent = || serde_json::json!({ "encrypted_key": "QUJDREVGR0hJSktMTU5PUA==", "context": {} });
        for message in [
            "the encrypted key is corrupt or not one of this vault's: make a new data key",
            "data_key is not 32 bytes in base64: make a new data key",
        ] {
            assert_eq!(shown(sent(), message).as_deref(), Some(message));
        }
        let long = "too long ".repeat(40);
        for message in ["", &long, "what\u{1b}[2J", "see https://x.example/?q"] {
            assert_eq!(shown(sent(), message), None, "{message:?}");
        }
    }

    #[test]
    fn nothing_of_what_was_sent_and_nothing_like_a_key_is_shown() {
        let sent =
            || serde_json::json!({ "plaintext": "hunter two \"abc\"", "data_key": "QUJDREVGR0hJSktM" });
        for message in [
            "cannot encrypt hunter",
            "cannot encrypt \"hunter two\"",
            "not a key: QUJDREVGR0hJSktM",
            "part of it: DREVGR0hJ",
            "the key sk_0123456789abcdef0123456789abcdef is wrong",
            "the key is ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef",
        ] {
            assert_eq!(shown(sent(), message), None, "{message}");
        }
        assert_eq!(shown(serde_json::json!({ "plaintext": "abc" }), "what is abc"), None, "short ones, too");
    }
}
