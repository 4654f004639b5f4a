//! What headers of the vault's answers say: its time, what the key may do, and for how long it
//! knows idempotency keys.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap};

/// The header in which `vaultfs serve` says what a key may do.
const PERMISSIONS: &str = "x-vaultfs-permissions";
/// And for how many seconds it knows what an idempotency key made.
const REMEMBERS: &str = "x-vaultfs-idempotency";

/// How long the permissions are trusted.
const TRUSTED_FOR: Duration = Duration::from_secs(60);

/// What the last answers said.
pub struct Announced {
    /// How far the vault's clock is ahead of ours, once it has reported its time.
    ahead_ms: Mutex<Option<i64>>,
    /// Whether the key may write, by the last answer that said so, and the number of that key.
    may_write: Mutex<Option<(bool, u64, Instant)>>,
    /// For how many seconds the vault knows idempotency keys; 0 while it has not said so.
    remembers: AtomicU64,
    /// The last key that lacked a right, as `ApiKey::changes` counts.
    lacks: AtomicU64,
}

impl Announced {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            ahead_ms: Mutex::new(None),
            may_write: Mutex::new(None),
            remembers: AtomicU64::new(0),
            lacks: AtomicU64::new(u64::MAX),
        }
    }

    /// Records what an answer to a request with the `key`th key says.
    pub fn learn(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        key: u64,
        (now, wall): (Instant, SystemTime),
    ) {
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if let Some(theirs) = date {
            let ahead = match theirs.duration_since(wall) {
                Ok(ahead) => i64::try_from(ahead.as_millis()),
                Err(behind) => i64::try_from(behind.duration().as_millis()).map(|ms| -ms),
            };
            *self.ahead_ms.lock() = ahead.ok();
        }
        let remembers = headers.get(REMEMBERS).and_then(|said| said.to_str().ok()?.parse().ok());
        self.remembers.store(remembers.unwrap_or(0), Ordering::Relaxed);
        let said = headers.get(PERMISSIONS).and_then(|said| said.to_str().ok());
        let may = said.map(|said| said.split(',').any(|word| word.trim() == "write"));
        if status == StatusCode::FORBIDDEN || may == Some(false) {
            self.lacks.store(key, Ordering::Relaxed);
        }
        if let Some(may) = may {
            *self.may_write.lock() = Some((may, key, now));
        }
    }

    /// By how many milliseconds the vault's clock is ahead of ours.
    pub fn ahead_ms(&self) -> Option<i64> {
        *self.ahead_ms.lock()
    }

    /// Whether the `key`th key may write.
    pub fn may_write(&self, key: u64, now: Instant) -> Option<bool> {
        let known = *self.may_write.lock();
        known.filter(|(_, of, at)| *of == key && now < *at + TRUSTED_FOR).map(|(may, ..)| may)
    }

    /// For how long the vault knows what an idempotency key made.
    pub fn remembers(&self) -> Option<Duration> {
        let seconds = self.remembers.load(Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// Whether the `key`th key lacked a right.
    pub fn lacks(&self, key: u64) -> bool {
        self.lacks.load(Ordering::Relaxed) == key
    }
}
