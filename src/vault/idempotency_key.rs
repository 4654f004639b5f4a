//! The key by which a vault knows a creation that comes again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys::random;

/// An `Idempotency-Key`: random, and the same for each attempt of one creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdempotencyKey([u8; 16]);

impl IdempotencyKey {
    /// A new one; `None` should the system have no randomness to give.
    pub fn random() -> Option<Self> {
        random::bytes().ok().map(Self)
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vaultfs-{:032x}", u128::from_be_bytes(self.0))
    }
}
