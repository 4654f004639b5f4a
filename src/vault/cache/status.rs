//! What `status` says of the cache.

use std::sync::atomic::Ordering;

use crate::vault::cache::failure::why;
use crate::vault::cache::{Cache, Usage};

/// What `status` says of the cache.
#[derive(Debug, Clone)]
pub struct CacheStatus {
    /// Names known to exist.
    pub names: usize,
    /// Seconds since the start of the last complete listing.
    pub listed_s: Option<u64>,
    /// Values in memory.
    pub values: usize,
    /// Their bytes, overhead included.
    pub bytes: u64,
    /// The limit of these bytes.
    pub capacity: u64,
    /// Memory mapped for values of up to 4 KiB, and how much of it is locked.
    pub arena: Usage,
    /// Why the vault is not asked or does not answer, and for how many seconds. Starts with
    /// [`RATE_LIMITED`](crate::vault::cache::RATE_LIMITED) if that is all.
    pub outage: Option<(String, u64)>,
    /// Stale values are served because of it.
    pub serving_stale: bool,
    /// Its reads lag, as an answer showed so many seconds ago.
    pub lagged_s: Option<u64>,
    /// The key may not list names.
    pub unlisted: bool,
}

impl Cache {
    /// What `status` says.
    pub fn status(&self) -> CacheStatus {
        let now = self.clock.now();
        let state = self.state();
        let (values, bytes) = state.index.usage();
        CacheStatus {
            names: state.index.len(),
            listed_s: state.index.complete().map(|(at, _)| now.saturating_duration_since(at).as_secs()),
            values,
            bytes,
            capacity: self.config.capacity,
            arena: state.index.arena(),
            outage: state
                .outage
                .as_ref()
                .map(|o| (why(&o.error), now.saturating_duration_since(o.since).as_secs())),
            serving_stale: self.served_stale.load(Ordering::Relaxed),
            lagged_s: state.lag.last_seen(now).map(|seen| now.saturating_duration_since(seen).as_secs()),
            unlisted: state.listing_right.is_refused(),
        }
    }
}
