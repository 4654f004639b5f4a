//! One request to the vault and its answer: key, budget, deadline, retries, limits. Dialects only
//! say what to ask and what the answer means.
//!
//! A request ends at its deadline. An answer of any size takes a bounded amount of memory. No text
//! made here contains a byte of a body, of the key, or of what was sent (except through
//! [`status::reason`]). Request and response bodies are wiped when they are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::vault::attribution::RequestCounter;
use crate::vault::client::advice::next_step;
use crate::vault::client::announced::Announced;
use crate::vault::client::api_key::ApiKey;
use crate::vault::client::attempt_error::{AttemptError, root_cause};
use crate::vault::client::budget::Budget;
use crate::vault::client::rate_limit_headers::Headers;
pub use crate::vault::client::request::{Answer, Body, Request};
use crate::vault::client::restart::{Permit, Restart};
use crate::vault::client::retry::{CONNECT_TIME, FailureClass, Policy};
use crate::vault::client::status;
use crate::vault::client::tls::{Connections, is_about_certificates};
use crate::vault::{Call, Error, ErrorKind, Result, VaultStatus};

/// Requests in flight at a time. Thousands of waiting callers must not open thousands of
/// connections: a process may have about a thousand, and the vault would not answer sooner.
const MAX_IN_FLIGHT: usize = 128;

/// The parts that [`Transport::new`] puts together.
pub struct Parts {
    /// The proxy for connections, as it may be shown.
    pub proxy: Option<String>,
    /// Makes the connections.
    pub connections: Connections,
    /// The service's address without a trailing slash.
    pub base: String,
    /// The vault's name for people: the address, or the socket's path.
    pub endpoint: String,
    /// The key.
    pub key: Arc<ApiKey>,
    /// The budget.
    pub budget: Budget,
    /// When to try again.
    pub policy: Policy,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Longest answer that is read, in bytes.
    pub max_body: usize,
}

/// Programs that status lists.
const TOP_PROGRAMS: usize = 10;

/// Sends requests to one vault.
pub struct Transport {
    parts: Parts,
    requests: AtomicU64,
    spent: RequestCounter,
    /// An answer has come, whatever its status.
    answered: AtomicBool,
    restart: Restart,
    /// Permits for requests in flight.
    in_flight: tokio::sync::Semaphore,
    announced: Announced,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("endpoint", &self.parts.endpoint).finish_non_exhaustive()
    }
}

impl Transport {
    /// Nothing is sent yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            requests: AtomicU64::new(0),
            spent: RequestCounter::default(),
            answered: AtomicBool::new(false),
            restart: Restart::new(),
            in_flight: tokio::sync::Semaphore::new(MAX_IN_FLIGHT),
            announced: Announced::new(),
        }
    }

    /// The endpoint and what was sent to it. A key that lacks a right is read again from its file.
    pub fn status(&self) -> VaultStatus {
        if self.announced.lacks(self.parts.key.changes()) {
            self.parts.key.reload_if_changed();
        }
        let key_changes = self.parts.key.changes();
        VaultStatus {
            endpoint: self.parts.endpoint.clone(),
            requests: self.requests.load(Ordering::Relaxed),
            spent_by: self.spent.top(TOP_PROGRAMS),
            budget: self.parts.budget.status(),
            ahead_ms: self.announced.ahead_ms(),
            may_write: self.announced.may_write(key_changes, self.parts.clock.now()),
            remembers: self.announced.remembers(),
            key_changes,
        }
    }

    /// URL or socket path.
    pub fn endpoint(&self) -> &str {
        &self.parts.endpoint
    }

    /// The clock of deadlines.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.parts.clock
    }

    /// The answer to `request` if it is a success; else the error that its status stands for.
    pub async fn send(&self, call: &Call, request: &Request) -> Result<Answer> {
        let answer = self.send_with_retries(call, request).await?;
        self.check_status(answer, request)
    }

    /// The answer if it is a success; else the error that its status stands for.
    pub fn check_status(&self, answer: Answer, request: &Request) -> Result<Answer> {
        status::check(answer, request, self.parts.key.file(), &self.parts.endpoint)
    }

    /// The vault's own reason for a refusal, where it can be shown.
    pub fn reason(&self, answer: &Answer, request: &Request) -> Option<String> {
        let key = self.parts.key.current();
        status::reason(answer, request).filter(|sentence| !sentence.contains(key.expose()))
    }

    /// The last answer to `request`, whatever its status, when no more attempts are to be made.
    pub async fn send_with_retries(&self, call: &Call, request: &Request) -> Result<Answer> {
        let mut tries = 0;
        let mut key_was_read = false;
        let mut maybe_applied = false;
        let mut last = Err(AttemptError::Late { sent: false });
        loop {
            // An attempt cut off by the deadline says less than the failure before it.
            let left = self.left(call).saturating_sub(if tries > 0 { CONNECT_TIME } else { Duration::ZERO });
            let Some(permit) = self.restart.permit(left).await else {
                return self.ended(last, request, tries, maybe_applied);
            };
            let had_permit = !permit.is_free();
            let ticket = self.parts.budget.acquire(call).await.map_err(|e| {
                let e = self.describe(e, request, tries);
                if maybe_applied { e.maybe_applied() } else { e }
            })?;
            let attempt = self.attempt(call, request, ticket, permit).await;
            if matches!(attempt, Err(AttemptError::Deferred)) {
                continue;
            }
            tries += 1;
            if let Ok(answer) = &attempt
                && answer.status == StatusCode::UNAUTHORIZED
                && !std::mem::replace(&mut key_was_read, true)
                && self.another_key()
            {
                continue;
            }
            if matches!(&attempt, Err(AttemptError::NotSent(why)) if is_about_certificates(why))
                && self.parts.connections.renewed()
            {
                last = attempt;
                continue;
            }
            let class = self.class_of(&attempt);
            let left = self.left(call);
            let wait = class
                .and_then(|t| self.parts.policy.wait(t, request.idempotency, call.priority, tries, left));
            if class.is_some_and(FailureClass::is_restart) {
                self.restart.failed(had_permit, |failures| self.parts.policy.restart_pause(failures));
            } else if attempt.is_ok() {
                self.restart.answered();
            }
            let Some(wait) = wait else {
                let is_cut_off =
                    matches!(attempt, Err(AttemptError::Late { .. })) && !request.idempotency.changes();
                let outcome = if is_cut_off && tries > 1 { last } else { attempt };
                return self.ended(outcome, request, tries, maybe_applied);
            };
            maybe_applied |= request.idempotency.changes() && class.is_some_and(FailureClass::maybe_applied);
            tracing::debug!(operation = request.operation, tries, ?class, ?wait, "retry");
            if !matches!(class, Some(FailureClass::Gone | FailureClass::Away)) {
                // Otherwise the permit includes the pause.
                tokio::time::sleep(wait).await;
            }
            last = attempt;
        }
    }

    /// The result of a request that is not retried.
    fn ended(
        &self,
        last: Result<Answer, AttemptError>,
        request: &Request,
        tries: u32,
        maybe_applied: bool,
    ) -> Result<Answer> {
        match last {
            Ok(answer) => Ok(Answer { attempts: tries, maybe_applied, ..answer }),
            Err(failed) => {
                let mut error = self.give_up(failed, request, tries);
                error.maybe_applied |= maybe_applied;
                Err(error)
            }
        }
    }

    /// The class of a failure that another attempt may avoid.
    fn class_of(&self, attempt: &Result<Answer, AttemptError>) -> Option<FailureClass> {
        let answered = self.answered.load(Ordering::Relaxed);
        let answer = match attempt {
            Ok(answer) => answer,
            Err(AttemptError::NotSent(_)) if answered => return Some(FailureClass::Gone),
            Err(AttemptError::NotSent(_)) => return Some(FailureClass::NotSent),
            Err(AttemptError::Lost(_)) if answered => return Some(FailureClass::Away),
            Err(AttemptError::Lost(_) | AttemptError::Cut(_) | AttemptError::NoHttp(_)) => {
                return Some(FailureClass::Lost);
            }
            Err(AttemptError::Late { .. } | AttemptError::TooLong | AttemptError::Deferred) => return None,
        };
        match answer.status {
            StatusCode::TOO_MANY_REQUESTS => Some(FailureClass::RateLimited(answer.retry_after)),
            StatusCode::REQUEST_TIMEOUT => Some(FailureClass::Server),
            // Callers must see this: a disk seldom empties within a deadline.
            StatusCode::INSUFFICIENT_STORAGE if status::is_full(answer) => None,
            StatusCode::SERVICE_UNAVAILABLE => {
                Some(answer.retry_after.map_or(FailureClass::Away, FailureClass::Unavailable))
            }
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Some(FailureClass::Away),
            status if status.is_server_error() => Some(FailureClass::Server),
            _ => None,
        }
    }

    fn left(&self, call: &Call) -> Duration {
        call.deadline.saturating_duration_since(self.parts.clock.now())
    }

    /// Reads the key's file again; true if it holds another key than the refused one.
    fn another_key(&self) -> bool {
        match self.parts.key.reload() {
            Ok(changed) => changed,
            Err(e) => {
                // A key that cannot be read now is no better than the refused one.
                tracing::warn!(error = %e, "the API key was refused and cannot be read again");
                false
            }
        }
    }

    async fn attempt(
        &self,
        call: &Call,
        request: &Request,
        ticket: crate::vault::client::budget::Ticket<'_>,
        permit: Permit<'_>,
    ) -> Result<Answer, AttemptError> {
        let left = self.left(call);
        if left.is_zero() {
            return Err(AttemptError::Late { sent: false });
        }
        let key = self.parts.key.changes();
        let built = self.build(request)?;
        let is_free = permit.is_free();
        let answer = async {
            // Never closed: an error only means that there is no count.
            let _permit = self.in_flight.acquire().await;
            if is_free && self.restart.is_under_way() {
                self.parts.budget.unused(ticket);
                return Err(AttemptError::Deferred);
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.spent.add();
            let response = match self
                .parts
                .connections
                .client(self.parts.clock.now())
                .execute(built)
                .await
                .map_err(|e| AttemptError::from(&e))
            {
                Ok(response) => response,
                Err(failed) => {
                    if matches!(failed, AttemptError::NotSent(_)) {
                        self.parts.budget.unused(ticket);
                    }
                    return Err(failed);
                }
            };
            self.answered.store(true, Ordering::Relaxed);
            let now = (self.parts.clock.now(), self.parts.clock.wall());
            self.announced.learn(response.status(), response.headers(), key, now);
            let headers = Headers::read(response.headers(), self.parts.clock.wall());
            let status = response.status();
            self.parts.budget.learn(ticket, &headers, status == StatusCode::TOO_MANY_REQUESTS);
            let request_id = request_id(response.headers()).filter(|id| self.may_show(id, request));
            let media_type = media_type(response.headers()).filter(|name| self.may_show(name, request));
            let body = match self.read_body(response).await {
                Ok(body) => body,
                // The status says enough.
                Err(_) if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                    Zeroizing::default()
                }
                Err(failed) => return Err(failed),
            };
            let retry_after = headers
                .retry_after
                .or_else(|| headers.reset.filter(|_| status == StatusCode::TOO_MANY_REQUESTS));
            let (attempts, maybe_applied) = (1, false);
            Ok(Answer { status, body, request_id, media_type, retry_after, attempts, maybe_applied })
        };
        let answer = tokio::time::timeout(left, answer);
        permit.keep_for(answer).await.unwrap_or(Err(AttemptError::Late { sent: true }))
    }

    /// Whether a word that the vault chose does not repeat what it was sent: services and proxies
    /// echo.
    fn may_show(&self, word: &str, request: &Request) -> bool {
        let key = self.parts.key.current();
        !word.contains(key.expose()) && !request.body.as_ref().is_some_and(|body| body.holds(word))
    }

    fn build(&self, request: &Request) -> Result<reqwest::Request, AttemptError> {
        let bad = |what: &str| AttemptError::NotSent(what.to_owned());
        let mut url = Url::parse(&format!("{}{}", self.parts.base, request.path))
            .map_err(|_| bad("the vault's address is not a URL"))?;
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let key = self.parts.key.current();
        let bearer = Body::new(Zeroizing::new(["Bearer ", key.expose()].concat().into_bytes()));
        let bearer = HeaderValue::from_maybe_shared(bearer.0);
        let mut bearer = bearer.map_err(|_| bad("the API key fits no header"))?;
        bearer.set_sensitive(true);
        let mut built = reqwest::Request::new(request.method.clone(), url);
        built.headers_mut().insert(AUTHORIZATION, bearer);
        if let Some(key) = request.idempotency_key {
            let key = HeaderValue::from_str(&key.to_string())
                .map_err(|_| bad("the idempotency key fits no header"))?;
            built.headers_mut().insert("idempotency-key", key);
        }
        if let Some(Body(bytes)) = &request.body {
            built.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *built.body_mut() = Some(bytes.clone().into());
        }
        Ok(built)
    }

    async fn read_body(&self, mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, AttemptError> {
        let max = self.parts.max_body;
        let announced = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let announced: Option<usize> = announced;
        if announced.is_some_and(|len| len > max) {
            return Err(AttemptError::TooLong);
        }
        let mut body = Zeroizing::new(Vec::with_capacity(announced.unwrap_or(1024)));
        while let Some(chunk) = response.chunk().await.map_err(|e| AttemptError::Cut(root_cause(&e)))? {
            if body.len() + chunk.len() > max {
                return Err(AttemptError::TooLong);
            }
            append(&mut body, &chunk);
        }
        match announced {
            Some(len) if len != body.len() => {
                Err(AttemptError::Cut("its length is not the announced one".to_owned()))
            }
            _ => Ok(body),
        }
    }

    fn give_up(&self, failed: AttemptError, request: &Request, tries: u32) -> Error {
        let endpoint = &self.parts.endpoint;
        let (kind, sent, sentence) = match failed {
            AttemptError::NotSent(why) => {
                let sentence = match &self.parts.proxy {
                    Some(proxy) => format!(
                        "no connection to the vault at {endpoint} through the proxy {proxy} ({why}): check HTTPS_PROXY, \
                         HTTP_PROXY, ALL_PROXY and NO_PROXY, and that the proxy is running"
                    ),
                    None => {
                        format!("no connection to the vault at {endpoint} ({why}): {}", next_step(&why))
                    }
                };
                (ErrorKind::Unreachable, false, sentence)
            }
            AttemptError::Lost(why) => {
                let sentence =
                    format!("the vault at {endpoint} ended the connection without an answer ({why})");
                (ErrorKind::Unreachable, true, sentence)
            }
            AttemptError::Cut(why) => (
                ErrorKind::BadAnswer,
                true,
                format!("the answer of the vault at {endpoint} was cut short ({why})"),
            ),
            AttemptError::NoHttp(why) => (
                ErrorKind::BadAnswer,
                true,
                format!("what answers at {endpoint} does not speak HTTP ({why}): check the address"),
            ),
            AttemptError::Deferred => {
                let sentence = format!("the vault at {endpoint} is away");
                (ErrorKind::Unreachable, false, sentence)
            }
            AttemptError::Late { sent } => {
                (ErrorKind::Deadline, sent, format!("the vault at {endpoint} did not answer in time"))
            }
            AttemptError::TooLong => {
                let max = self.parts.max_body;
                let sentence = format!("{endpoint} sent more than {max} bytes, which no vault does here");
                (ErrorKind::BadAnswer, true, sentence)
            }
        };
        let mut error = self.describe(Error::new(kind, sentence), request, tries);
        error.maybe_applied = sent && request.idempotency.changes();
        error
    }

    fn describe(&self, error: Error, request: &Request, tries: u32) -> Error {
        Error { message: format!("{}: {}", request.operation, error.message), attempts: tries, ..error }
    }
}

/// Grows by hand: a `Vec` that grows by itself leaves an unwiped copy behind.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let need = body.len() + chunk.len();
    if need > body.capacity() {
        let mut grown = Zeroizing::new(Vec::with_capacity(need.next_power_of_two()));
        grown.extend_from_slice(body);
        *body = grown;
    }
    body.extend_from_slice(chunk);
}

/// The vault's id for a request, if it is one that can be shown.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    (!id.is_empty() && id.len() <= 128).then(|| id.to_owned())
}

/// The Content-Type without its parameters, if it is spelt like one.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let said = headers.get(CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim();
    let is_word = |word: &str| {
        (1..=32).contains(&word.len())
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b))
    };
    let (kind, format) = said.split_once('/')?;
    (is_word(kind) && is_word(format)).then(|| said.to_owned())
}
