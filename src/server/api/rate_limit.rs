//! The rate limit: so many requests a key in a fixed window of one minute, and the headers that
//! report it.
//!
//! A key's window begins with its first request and ends a minute later, whatever happened in
//! between. Requests beyond the limit are not counted: waiting for the end of the window is always
//! enough.
//!
//! A server without a limit says `X-RateLimit-Limit: 0` and nothing else. The API has no word for
//! that, and vaultfs, like any careful client, would assume a limit where none is reported.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::server::api::error::{ApiError, ErrorType};

const WINDOW: Duration = Duration::from_secs(60);
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Counts the requests of each key.
#[derive(Debug)]
pub struct RateLimit {
    limit: u32,
    clock: Arc<dyn Clock>,
    // Held for a few instructions; nothing else is locked meanwhile.
    windows: Mutex<HashMap<String, Window>>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    ends: Instant,
    used: u32,
}

/// What a key has left after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Whether this request is within the limit.
    pub granted: bool,
    limit: u32,
    remaining: u32,
    /// Whole seconds until the window ends, at least one.
    reset_s: u64,
}

impl RateLimit {
    /// `limit` requests a minute for each key.
    pub fn new(limit: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        Self { limit: limit.get(), clock, windows: Mutex::default() }
    }

    /// Counts a request of this key.
    pub fn take(&self, key_id: &str) -> Allowance {
        let now = self.clock.now();
        let mut windows = self.windows.lock();
        let fresh = Window { ends: now + WINDOW, used: 0 };
        let window = windows.entry(key_id.to_owned()).or_insert(fresh);
        if window.ends <= now {
            *window = fresh;
        }
        let granted = window.used < self.limit;
        window.used += u32::from(granted);
        let left = window.ends - now;
        let reset_s = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Allowance { granted, limit: self.limit, remaining: self.limit - window.used, reset_s }
    }
}

/// Says in the headers that there is no limit.
pub fn announce_none(response: &mut Response) {
    response.headers_mut().insert(LIMIT, HeaderValue::from(0));
}

impl Allowance {
    /// 429, for a request that was not granted.
    pub fn exceeded(&self) -> ApiError {
        let message = format!(
            "more than {} requests in a minute with this key: wait {} s, or slow down",
            self.limit, self.reset_s
        );
        ApiError::new(ErrorType::RateLimitExceeded, message)
    }

    /// Says it in the headers.
    pub fn announce(&self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(LIMIT, HeaderValue::from(self.limit));
        headers.insert(REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RESET, HeaderValue::from(self.reset_s));
        if !self.granted {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.reset_s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_window_is_a_minute_from_the_first_request() {
        let clock = ManualClock::new();
        let limit = RateLimit::new(NonZeroU32::new(2).unwrap(), Arc::new(clock.clone()));
        let seen = |key: &str| {
            let a = limit.take(key);
            (a.granted, a.remaining, a.reset_s)
        };
        assert_eq!(seen("a"), (true, 1, 60));
        clock.advance(Duration::from_millis(30_500));
        assert_eq!(seen("a"), (true, 0, 30));
        assert_eq!(seen("a"), (false, 0, 30));
        assert_eq!(seen("b"), (true, 1, 60), "each key has its own");
        clock.advance(Duration::from_millis(29_499));
        assert_eq!(seen("a"), (false, 0, 1));
        clock.advance(Duration::from_millis(1));
        assert_eq!(seen("a"), (true, 1, 60));
    }
}
