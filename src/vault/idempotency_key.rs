//! The key by which a vault knows a save that comes again.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::sys::random;

/// An `Idempotency-Key`: the time and random bits, the same for each attempt of one save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdempotencyKey([u8; 16]);

impl IdempotencyKey {
    /// A new one; `None` should the system have no randomness to give.
    pub fn new(now: SystemTime) -> Option<Self> {
        let mut bytes: [u8; 16] = random::bytes().ok()?;
        let made = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        bytes[..6].copy_from_slice(&made.to_be_bytes()[2..]);
        Some(Self(bytes))
    }

    /// How old it is; `None` if it comes from the future.
    pub fn age(self, now: SystemTime) -> Option<Duration> {
        let [a, b, c, d, e, f, ..] = self.0;
        let made = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        now.duration_since(UNIX_EPOCH + Duration::from_millis(made)).ok()
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vaultfs-{:032x}", u128::from_be_bytes(self.0))
    }
}
