//! The key by which a vault knows a creation that comes again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An `Idempotency-Key`: random, and the same for each attempt of one creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdempotencyKey([u8; 16]);

impl IdempotencyKey {
    /// A new one; `None` should the system have no randomness to give.
    pub fn random() -> Option<Self> {
        let mut bytes = [0; 16];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vaultfs-{:032x}", u128::from_be_bytes(self.0))
    }
}
