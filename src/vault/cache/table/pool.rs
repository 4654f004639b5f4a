//! Texts of names and ids, packed one after another: four bytes of length, the bytes, up to three of padding.
//!
//! A reference is 32 bits and stays true until [`Pool::rebuild`], which the owner of all references calls when what
//! was dropped outweighs what is kept. One text costs no allocation of its own.

/// Bytes of a piece; a longer text has a piece to itself.
const PIECE: usize = 64 * 1024;
/// References count in units of so many bytes.
const UNIT: usize = 4;
const UNITS: u32 = (PIECE / UNIT) as u32;
/// Bytes of the length before a text.
const HEAD: usize = 4;

/// Where a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text(pub u32);

/// The texts.
#[derive(Debug, Default)]
pub struct Pool {
    pieces: Vec<Vec<u8>>,
    live: usize,
    dropped: usize,
}

impl Pool {
    /// Keeps a text; `None` once there is no reference left to give (16 GiB of texts).
    pub fn put(&mut self, text: &str) -> Option<Text> {
        let len = u32::try_from(text.len()).ok()?;
        let need = space(text.len());
        if self.pieces.last().is_none_or(|piece| piece.len() + need > PIECE) {
            if self.pieces.len() as u32 == u32::MAX / UNITS {
                return None;
            }
            self.pieces.push(Vec::with_capacity(need.max(PIECE)));
        }
        let number = self.pieces.len() as u32 - 1;
        let piece = self.pieces.last_mut()?;
        let at = Text(number * UNITS + (piece.len() / UNIT) as u32);
        piece.extend_from_slice(&len.to_ne_bytes());
        piece.extend_from_slice(text.as_bytes());
        piece.resize(piece.len().next_multiple_of(UNIT), 0);
        self.live += need;
        Some(at)
    }

    /// Keeps what is at `at` in another pool, of which this is to be a part.
    pub fn copy(&mut self, other: &Self, at: Text) -> Text {
        self.put(other.text(at)).expect("less than there was")
    }

    /// The text at `at`, as bytes: they order and compare as the text does.
    pub fn bytes(&self, at: Text) -> &[u8] {
        let piece = &self.pieces[(at.0 / UNITS) as usize];
        let begin = (at.0 % UNITS) as usize * UNIT;
        let mut len = [0; HEAD];
        len.copy_from_slice(&piece[begin..begin + HEAD]);
        &piece[begin + HEAD..][..u32::from_ne_bytes(len) as usize]
    }

    /// The text at `at`.
    pub fn text(&self, at: Text) -> &str {
        std::str::from_utf8(self.bytes(at)).expect("only text is put in, and references are never bent")
    }

    /// The text at `at` is not needed any more.
    pub fn drop_text(&mut self, at: Text) {
        let need = space(self.bytes(at).len());
        self.live -= need;
        self.dropped += need;
    }

    /// Whether more was dropped than is kept, so that it is time to begin anew.
    pub fn is_wasteful(&self) -> bool {
        self.dropped > self.live.max(PIECE)
    }

    /// Bytes taken from the allocator.
    #[cfg(test)]
    pub fn bytes_used(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }
}

fn space(len: usize) -> usize {
    (HEAD + len).next_multiple_of(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_all_lengths_come_back() {
        let mut pool = Pool::default();
        let texts: Vec<String> =
            (0..2000).map(|n| "é".repeat(n % 700)).chain(["x".repeat(200_000)]).collect();
        let kept: Vec<Text> = texts.iter().map(|text| pool.put(text).unwrap()).collect();
        let after = pool.put("after a long one").unwrap();
        for (text, at) in texts.iter().zip(kept) {
            assert_eq!(pool.text(at), text);
        }
        assert_eq!(pool.text(after), "after a long one");
    }

    #[test]
    fn what_is_dropped_is_counted() {
        let mut pool = Pool::default();
        let kept: Vec<Text> = (0..30_000).map(|n| pool.put(&format!("{n}")).unwrap()).collect();
        assert!(!pool.is_wasteful());
        kept.iter().for_each(|at| pool.drop_text(*at));
        assert!(pool.is_wasteful());
    }
}
