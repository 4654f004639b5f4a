//! The key that seals what is secret in the state.

use std::io;

use crate::sys::random;

/// The key that seals what is secret. Made by the keeper, in its locked memory; handed over a pipe.
#[derive(Clone, zeroize::ZeroizeOnDrop)]
pub struct SealKey([u8; 32]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl SealKey {
    /// A fresh key.
    pub fn random() -> io::Result<Self> {
        random::bytes().map(Self)
    }

    /// The key's bytes: to hand it on is what they are for.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// What [`SealKey::expose`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}
