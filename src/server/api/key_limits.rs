//! How much of the server one API key may take: requests at a time, and memory for bodies and
//! answers.
//!
//! 1. A key has at most [`IN_FLIGHT`] requests at a time, of which [`READS`] give values or list
//!    names; more wait for [`WAIT`], then 503.
//! 2. The first [`SMALL`] bytes of a body are free. What is beyond comes out of a budget, a share
//!    of it for each key, so that bodies that stall hold a bounded amount of memory and leave room
//!    for other keys.
//! 3. A body has [`BODY_TIME`] to come in whole, then 408.
//! 4. An answer of more than [`SMALL`] bytes counts as one of [`READS`] until the connection has
//!    sent it.
//! 5. After each wait the key is looked up again: one that was revoked meanwhile changes nothing
//!    and reads nothing.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::App;
use super::error::{ApiError, ErrorType};
use crate::secret::SecretBytes;
use crate::server::api::auth::Caller;

/// Requests of one key at a time.
const IN_FLIGHT: usize = 256;
/// Of these, requests that give values or list names.
const READS: usize = 16;
/// How long a request waits for a permit.
const WAIT: Duration = Duration::from_secs(10);
/// Bytes of a body or an answer that cost nothing.
const SMALL: usize = 64 * 1024;
/// Memory for bodies, in KiB, unless one body may be larger than a quarter of that.
const BUDGET: usize = 32 * 1024;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What is in use.
#[derive(Debug)]
pub struct KeyLimits {
    largest_body: usize,
    bodies: Arc<Semaphore>,
    share: usize,
    keys: Mutex<HashMap<String, Arc<KeyUse>>>,
}

#[derive(Debug)]
struct KeyUse {
    requests: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

impl KeyLimits {
    /// For bodies of at most `largest_body` bytes.
    pub fn new(largest_body: usize) -> Self {
        let largest = largest_body.div_ceil(1024);
        let budget = BUDGET.max(4 * largest).min(Semaphore::MAX_PERMITS / 2);
        Self {
            largest_body,
            bodies: Arc::new(Semaphore::new(budget)),
            share: budget / 2,
            keys: Mutex::default(),
        }
    }

    fn of(&self, key: &str) -> Arc<KeyUse> {
        let mut keys = self.keys.lock();
        if let Some(known) = keys.get(key) {
            return Arc::clone(known);
        }
        // Keys that have nothing under way are forgotten: there may be many over the years.
        keys.retain(|_, key_use| Arc::strong_count(key_use) > 1);
        let key_use = Arc::new(KeyUse {
            requests: Arc::new(Semaphore::new(IN_FLIGHT)),
            reads: Arc::new(Semaphore::new(READS)),
            bodies: Arc::new(Semaphore::new(self.share)),
        });
        keys.insert(key.to_owned(), Arc::clone(&key_use));
        key_use
    }

    /// Waits for the permit of a request of this key; `reads`: one that gives values or lists
    /// names.
    pub async fn admit(&self, key: &str, reads: bool) -> Result<RequestPermit, ApiError> {
        let key_use = self.of(key);
        let mut permits = std::pin::pin!(key_use.permits(reads));
        let (permits, waited) = match (&mut permits).now_or_never() {
            Some(permits) => (permits, false),
            None => (tokio::time::timeout(WAIT, permits).await.unwrap_or(None), true),
        };
        let busy =
            || too_busy("this API key has too many requests under way, or answers that were not taken");
        let (request, read) = permits.ok_or_else(busy)?;
        Ok(RequestPermit { waited, _request: request, read, key_use: Arc::clone(&key_use) })
    }
}

impl KeyUse {
    /// A permit for a request, and one for a read; `None` when the server is ending.
    async fn permits(&self, reads: bool) -> Option<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)> {
        // First: waiting reads hold no permit that a change needs.
        let read = if reads { Some(Arc::clone(&self.reads).acquire_owned().await.ok()?) } else { None };
        Some((Arc::clone(&self.requests).acquire_owned().await.ok()?, read))
    }
}

/// The right of one request to be worked on.
#[derive(Debug)]
pub struct RequestPermit {
    /// Whether time went by until it was given.
    pub waited: bool,
    _request: OwnedSemaphorePermit,
    read: Option<OwnedSemaphorePermit>,
    // Kept so that the key's counters are found again by its next request.
    key_use: Arc<KeyUse>,
}

impl RequestPermit {
    /// Releases the permit with this answer; a long answer keeps the read permit until it is sent.
    pub async fn answer(self, answer: Response) -> Response {
        let Some(read) = self.read.filter(|_| answer.body().size_hint().lower() > SMALL as u64) else {
            return answer;
        };
        let (head, body) = answer.into_parts();
        // It is one piece of memory already.
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
        let counted = Counted { bytes, _read: read, _key: self.key_use };
        Response::from_parts(head, Body::from(Bytes::from_owner(counted)))
    }
}

/// An answer that counts as a read; dropped when the last of it is sent.
struct Counted {
    bytes: Bytes,
    _read: OwnedSemaphorePermit,
    _key: Arc<KeyUse>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// 503 with a sentence.
pub fn too_busy(what: &str) -> ApiError {
    ApiError::new(ErrorType::Unavailable, format!("{what}: try again in a second, or use fewer connections"))
}

/// A request's body, which counts against the budget until it is dropped.
pub struct Received {
    bytes: SecretBytes,
    held: Vec<OwnedSemaphorePermit>,
}

impl Deref for Received {
    type Target = SecretBytes;
    fn deref(&self) -> &SecretBytes {
        &self.bytes
    }
}

impl FromRequest<App> for Received {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let limits = &app.key_limits;
        let declared =
            request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|declared| declared > limits.largest_body) {
            return Err(too_large(limits.largest_body));
        }
        // Each route that takes a body requires an API key.
        let outside = || ApiError::new(ErrorType::Internal, "the request has no API key");
        let caller = request.extensions().get::<Caller>().cloned().ok_or_else(outside)?;
        let key = limits.of(&caller.key.id);
        let received = tokio::time::timeout(BODY_TIME, receive(request, limits, &key)).await;
        let received = received.unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {} s: send it again", BODY_TIME.as_secs());
            Err(ApiError::new(ErrorType::RequestTimeout, message))
        })?;
        caller.check_again(app).await?;
        Ok(received)
    }
}

/// Reads a body. `response` reads on after a refusal, so that a client that is still sending gets
/// to see the answer.
async fn receive(request: Request, limits: &KeyLimits, key: &KeyUse) -> Result<Received, ApiError> {
    let mut received = Received { bytes: SecretBytes::default(), held: Vec::new() };
    let mut paid = SMALL;
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::invalid("the body ended before it was complete"))?;
        let len = received.bytes.len() + chunk.len();
        if len > limits.largest_body {
            return Err(too_large(limits.largest_body));
        }
        if len > paid {
            // In steps, so that a long body takes few permits.
            let more = (len - paid).max(paid).min(limits.largest_body.saturating_sub(paid));
            let kib = u32::try_from(more.div_ceil(1024)).unwrap_or(u32::MAX);
            for budget in [&key.bodies, &limits.bodies] {
                let permit = Arc::clone(budget).acquire_many_owned(kib).await;
                received.held.push(permit.map_err(|_| too_busy("the server is ending"))?);
            }
            paid += more;
        }
        received.bytes.write_at(received.bytes.len(), &chunk);
    }
    Ok(received)
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is too large: at most {limit} bytes are read");
    ApiError::new(ErrorType::PayloadTooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_has_so_many_requests_at_a_time() {
        let limits = KeyLimits::new(1024);
        let mut permits = Vec::new();
        for _ in 0..IN_FLIGHT {
            permits.push(limits.admit("a", false).await.unwrap());
        }
        assert_eq!(limits.admit("a", false).await.err().unwrap().kind, ErrorType::Unavailable);
        assert!(limits.admit("b", false).await.is_ok());
        permits.pop();
        assert!(limits.admit("a", false).await.is_ok());
        drop(permits);
        assert!(limits.admit("c", false).await.is_ok());
        assert_eq!(limits.keys.lock().len(), 1, "what has nothing under way is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_answer_counts_until_it_is_sent() {
        let limits = KeyLimits::new(1024);
        assert!(!limits.admit("a", true).await.unwrap().waited);
        let mut answers = Vec::new();
        for size in [SMALL; 100].into_iter().chain([SMALL + 1; READS]) {
            let permit = limits.admit("a", true).await.unwrap();
            answers.push(permit.answer(Response::new(Body::from(vec![b'x'; size]))).await);
        }
        assert!(limits.admit("b", true).await.is_ok(), "forgets keys that have nothing under way");
        assert_eq!(limits.admit("a", true).await.unwrap_err().kind, ErrorType::Unavailable);
        assert!(limits.admit("a", false).await.is_ok(), "changes have short answers");
        // Sent, but for a last piece that the connection still has.
        let sent = axum::body::to_bytes(answers.pop().unwrap().into_body(), usize::MAX).await.unwrap();
        assert_eq!(sent.len(), SMALL + 1);
        let last = sent.slice(SMALL..);
        drop(sent);
        let next = tokio::spawn(async move { limits.admit("a", true).await.unwrap().waited });
        tokio::task::yield_now().await;
        drop(last);
        assert!(next.await.unwrap());
    }

    #[test]
    fn a_share_holds_the_largest_body() {
        for largest in [1, SMALL, 8 << 20, 512 << 20] {
            let limits = KeyLimits::new(largest);
            assert!(limits.share * 1024 >= largest && limits.bodies.available_permits() >= 2 * limits.share);
        }
    }
}
