//! From the status of an answer to an error that a caller can act on and a person can read.
//!
//! Of what the vault says itself only the code is repeated, a word of the API: services like to quote keys and
//! what they were sent or hold, and a sentence of theirs would carry that into logs. The request id in each
//! error leads to the sentence.

use std::path::Path;

use reqwest::StatusCode;
use serde::Deserialize;

use super::transport::{Answer, Request};
use crate::vault::{Error, ErrorKind, Result};

/// No word of the API is longer.
const MAX_CODE: usize = 64;

/// The answer if it is a success, else its error. `key_file` is where the key came from, `endpoint` where the vault is.
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

/// The error of an answer whose status says success and whose body says nothing that can be used.
pub fn bad_answer(why: &str, answer: &Answer, request: &Request) -> Error {
    error(ErrorKind::BadAnswer, &format!("the vault's answer cannot be used: {why}"), answer, request)
}

/// For an answer that need not say anything: whether it is one of a vault at all, and not some page's.
pub fn confirmed(answer: &Answer, request: &Request) -> Result<()> {
    match answer.body.trim_ascii().is_empty() || is_json_object(&answer.body) {
        true => Ok(()),
        false => Err(bad_answer("it is not JSON", answer, request)),
    }
}

fn error(kind: ErrorKind, sentence: &str, answer: &Answer, request: &Request) -> Error {
    // A server that failed, or that answered nonsense, may have done its work before.
    let doubt = matches!(kind, ErrorKind::Server | ErrorKind::BadAnswer) || answer.doubt;
    Error {
        kind,
        message: format!("{}: {sentence}", request.doing),
        request_id: answer.request_id.clone(),
        attempts: answer.attempts,
        maybe_applied: doubt && request.effect.changes(),
        retry_after: answer.retry_after,
    }
}

/// Whether a body is a JSON object, as all answers of a vault are.
pub fn is_json_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

/// A vault of one's own says that its disk is full. Of a service 507 is a failure like any other 5xx.
pub fn is_full(answer: &Answer) -> bool {
    answer.status == StatusCode::INSUFFICIENT_STORAGE
        && said(answer).is_some_and(|code| code == "insufficient_storage")
}

fn refusal(answer: &Answer, request: &Request, key_file: Option<&Path>) -> (ErrorKind, String) {
    let status = answer.status.as_u16();
    let is_vault = answer.body.trim_ascii().is_empty() || is_json_object(&answer.body);
    let no_vault = || {
        let sentence = format!("the answer (status {status}) is not one of a vault: check the address");
        (ErrorKind::BadAnswer, sentence)
    };
    match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::CONFLICT
            if !is_vault =>
        {
            no_vault()
        }
        StatusCode::NOT_FOUND if !request.of_object => no_vault(),
        StatusCode::UNAUTHORIZED => {
            let next = match key_file {
                Some(path) => format!("check the key in {}", path.display()),
                None => "check WORKOS_API_KEY or --api-key-file".to_owned(),
            };
            (ErrorKind::Unauthorized, format!("the vault refused the API key: {next}"))
        }
        StatusCode::FORBIDDEN => {
            let sentence = "the API key may not do this: enable Vault for it in the dashboard, or use a key \
                            with the permission";
            (ErrorKind::Forbidden, sentence.to_owned())
        }
        StatusCode::NOT_FOUND => (ErrorKind::NotFound, "the vault has no such object or version".to_owned()),
        StatusCode::CONFLICT if request.conflict == ErrorKind::AlreadyExists => {
            (ErrorKind::AlreadyExists, "an object of this name exists already: update it".to_owned())
        }
        StatusCode::CONFLICT => {
            let sentence = "the object was changed meanwhile: read it again".to_owned();
            (request.conflict, sentence)
        }
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
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
    struct Said {
        code: Option<String>,
    }
    serde_json::from_slice::<Said>(&answer.body).ok()?.code
}
