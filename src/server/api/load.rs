//! How much of the server one API key may take: requests at a time, and memory for bodies that come in.
//!
//! 1. A key has at most [`IN_FLIGHT`] requests at a time; more wait for [`WAIT`], then 503.
//! 2. The first [`SMALL`] bytes of a body are free. What is beyond comes out of a budget, a share of it for each key, so that
//!    bodies that stall hold a bounded amount of memory and leave room for other keys.
//! 3. A body has [`BODY_TIME`] to come in whole, then 408.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_LENGTH;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::App;
use super::error::{ApiError, ErrorType};
use crate::secret::SecretBytes;
use crate::server::api::auth::Caller;

/// Requests of one key at a time.
const IN_FLIGHT: usize = 256;
/// How long a request waits for its turn.
const WAIT: Duration = Duration::from_secs(10);
/// Bytes of a body that cost nothing.
const SMALL: usize = 64 * 1024;
/// Memory for bodies, in KiB, unless one body may be larger than a quarter of that.
const BUDGET: usize = 32 * 1024;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What is in use.
#[derive(Debug)]
pub struct Load {
    largest_body: usize,
    bodies: Arc<Semaphore>,
    share: usize,
    keys: Mutex<HashMap<String, Arc<KeyLoad>>>,
}

#[derive(Debug)]
struct KeyLoad {
    requests: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

impl Load {
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

    fn of(&self, key: &str) -> Arc<KeyLoad> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = keys.get(key) {
            return Arc::clone(known);
        }
        // Keys that have nothing under way are forgotten: there may be many over the years.
        keys.retain(|_, load| Arc::strong_count(load) > 1);
        let load = Arc::new(KeyLoad {
            requests: Arc::new(Semaphore::new(IN_FLIGHT)),
            bodies: Arc::new(Semaphore::new(self.share)),
        });
        keys.insert(key.to_owned(), Arc::clone(&load));
        load
    }

    /// Waits for the turn of a request of this key.
    pub async fn turn(&self, key: &str) -> Result<Turn, ApiError> {
        let load = self.of(key);
        let permit = tokio::time::timeout(WAIT, Arc::clone(&load.requests).acquire_owned()).await;
        match permit {
            Ok(Ok(permit)) => Ok(Turn { _load: load, _permit: permit }),
            _ => Err(too_busy("this API key has too many requests under way")),
        }
    }
}

/// The right of one request to be worked on.
pub struct Turn {
    // Kept so that the key's counters are found again by its next request.
    _load: Arc<KeyLoad>,
    _permit: OwnedSemaphorePermit,
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
        let load = &app.load;
        let told = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if told.is_some_and(|told| told > load.largest_body) {
            return Err(too_large(load.largest_body));
        }
        // Each route that takes a body is behind the gate.
        let key = request.extensions().get::<Caller>().map_or("", |caller| caller.0.id.as_str());
        let key = load.of(key);
        let received = tokio::time::timeout(BODY_TIME, receive(request, load, &key)).await;
        received.unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {} s: send it again", BODY_TIME.as_secs());
            Err(ApiError::new(ErrorType::RequestTimeout, message))
        })
    }
}

/// Reads a body. The envelope reads on after a refusal, so that a client that is still sending gets to see the answer.
async fn receive(request: Request, load: &Load, key: &KeyLoad) -> Result<Received, ApiError> {
    let mut received = Received { bytes: SecretBytes::default(), held: Vec::new() };
    let mut paid = SMALL;
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::invalid("the body ended before it was complete"))?;
        let len = received.bytes.len() + chunk.len();
        if len > load.largest_body {
            return Err(too_large(load.largest_body));
        }
        if len > paid {
            // In steps, so that a long body takes few permits.
            let more = (len - paid).max(paid).min(load.largest_body.saturating_sub(paid));
            let kib = u32::try_from(more.div_ceil(1024)).unwrap_or(u32::MAX);
            for budget in [&key.bodies, &load.bodies] {
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
        let load = Load::new(1024);
        let mut turns = Vec::new();
        for _ in 0..IN_FLIGHT {
            turns.push(load.turn("a").await.unwrap());
        }
        assert_eq!(load.turn("a").await.err().unwrap().kind, ErrorType::Unavailable);
        assert!(load.turn("b").await.is_ok());
        turns.pop();
        assert!(load.turn("a").await.is_ok());
        drop(turns);
        assert!(load.turn("c").await.is_ok());
        assert_eq!(load.keys.lock().unwrap().len(), 1, "what has nothing under way is forgotten");
    }

    #[test]
    fn a_share_holds_the_largest_body() {
        for largest in [1, SMALL, 8 << 20, 512 << 20] {
            let load = Load::new(largest);
            assert!(load.share * 1024 >= largest && load.bodies.available_permits() >= 2 * load.share);
        }
    }
}
