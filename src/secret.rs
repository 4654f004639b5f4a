//! Secret bytes and strings: wiped when dropped, never shown by `Debug`.
//!
//! Every value of the vault and every key travels in one of these types. They have no `Display` and
//! no `Serialize`, so that a secret cannot slip into a log line or an error by accident: reading
//! one is an explicit call to [`SecretBytes::expose`] or [`SecretString::expose`].

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes that are wiped on drop and redacted in `Debug` output.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes over `bytes`; the buffer is wiped when the secret is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The secret itself. Name the reason where you call it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes `data` at `offset`; a gap is filled with zeros, as POSIX write(2) past the end does.
    pub fn write_at(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if end > self.0.len() {
            self.resize(end);
        }
        self.0[offset..end].copy_from_slice(data);
    }

    /// Cuts or extends with zeros. Growth never leaves an unwiped copy behind.
    pub fn resize(&mut self, len: usize) {
        if len <= self.0.len() {
            self.0[len..].zeroize();
            self.0.truncate(len);
            return;
        }
        if len > self.0.capacity() {
            let mut grown = Vec::with_capacity(len.next_power_of_two());
            grown.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = grown;
        }
        self.0.resize(len, 0);
    }
}

impl From<&[u8]> for SecretBytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Text that is wiped on drop and redacted in `Debug` output: API keys, encoded values.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SecretString(String);

impl SecretString {
    /// Takes over `text`; the buffer is wiped when the secret is dropped.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself. Name the reason where you call it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<SecretString> for SecretBytes {
    fn from(mut text: SecretString) -> Self {
        Self(std::mem::take(&mut text.0).into_bytes())
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", SecretBytes::from(&b"hunter2"[..])), "[redacted]");
        assert_eq!(format!("{:?}", SecretString::new("hunter2".into())), "[redacted]");
    }

    #[test]
    fn writes_past_the_end_fill_with_zeros_and_cuts_forget() {
        let mut s = SecretBytes::from(&b"ab"[..]);
        s.write_at(4, b"x");
        assert_eq!(s.expose(), b"ab\0\0x");
        s.resize(1);
        s.resize(3);
        assert_eq!(s.expose(), b"a\0\0");
    }
}
