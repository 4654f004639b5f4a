//! Random bytes from the operating system: the one source for keys, nonces, identifiers and jitter.

use std::io;

/// `N` random bytes.
///
/// # Errors
/// When the system has none to give (no getrandom(2), no /dev/urandom).
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
