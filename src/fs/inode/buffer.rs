//! The bytes being written to a file. The generation counts changes: a commit stores one
//! generation, and a write that comes while it is out makes the next one.

use std::ops::Range;
use std::time::SystemTime;

use crate::fs::inode::writers::{WriteOrigin, Writers};
use crate::secret::SecretBytes;

/// Bytes being written.
#[derive(Debug)]
pub struct Buffer {
    /// The bytes, shared by all handles of the file.
    pub bytes: SecretBytes,
    /// Counts changes.
    pub generation: u64,
    /// The generation the vault has.
    pub committed: u64,
    /// Something was written (or cut through a handle) since the last commit: a FLUSH has to store
    /// it. A file that was only created or truncated by open is stored at the last close.
    pub written: bool,
    /// The handles that wrote it.
    pub writers: Writers,
    /// When it last changed.
    pub changed_at: SystemTime,
    /// The part of the bytes that is not written down yet.
    pub unjournaled: Range<usize>,
}

impl Buffer {
    /// Writes `data` at `offset`; a gap is filled with zeros.
    pub fn write_at(&mut self, offset: usize, data: &[u8]) {
        let from = offset.min(self.bytes.len());
        self.bytes.write_at(offset, data);
        self.freshen(from..offset + data.len());
    }

    /// Cuts or extends with zeros.
    pub fn resize(&mut self, len: usize) {
        let from = len.min(self.bytes.len());
        self.bytes.resize(len);
        self.freshen(from..len);
    }

    /// This part has to be written down.
    fn freshen(&mut self, part: Range<usize>) {
        let old = std::mem::take(&mut self.unjournaled);
        self.unjournaled =
            if old.is_empty() { part } else { old.start.min(part.start)..old.end.max(part.end) };
    }

    /// The bytes changed; a time set by utimens no longer holds for them.
    pub fn changed(&mut self, origin: WriteOrigin, now: SystemTime) {
        self.generation += 1;
        self.written |= origin != WriteOrigin::Opening;
        self.writers.note(origin, self.generation);
        self.changed_at = now;
    }

    /// Nothing is left of what was written: the flush of a copied descriptor after O_TRUNC must not
    /// store an empty version.
    pub fn cut_off(&mut self) {
        self.written = false;
        self.writers = Writers::default();
    }

    /// The vault has this generation.
    pub fn stored(&mut self, generation: u64) {
        self.committed = generation;
        self.written &= self.generation != generation;
        self.writers.stored(generation);
    }
}
