//! Attribution of writes to handles: a close stores what was written through its own handle, not
//! what another program is still writing (a file that is cut and rewritten under a lock, while
//! others open and close it).
//!
//! 1. A close of a handle that wrote since the last commit stores, and with it all that the buffer
//!    holds.
//! 2. A close of one that did not leaves the bytes to the handles that did: each of them is closed
//!    some time, and the last close of all stores whatever is left.
//! 3. Where no writer has the file open any more (a save that failed), any close stores.
//! 4. The kernel sends the pages of a mapping with the handle of any mapping of the file: they
//!    count for all handles.
//! 5. Truncation to zero drops what other handles wrote: they have nothing left to store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What changed the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOrigin {
    /// The user of this handle.
    Handle(u64),
    /// A program that has the file mapped.
    Mapping,
    /// No program that has the file open.
    Unattributed,
    /// The open itself, which created or truncated the file: that alone is stored at the last
    /// close.
    Opening,
}

/// The writers of bytes that the vault lacks, as numbers of handles and of the buffer's
/// generations. Only open handles are in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writers {
    /// The last write through each handle.
    by_handle: BTreeMap<u64, u64>,
    /// The last write that cannot be attributed to a handle.
    by_mapping: Option<u64>,
}

impl Writers {
    /// A change that made this generation.
    pub fn note(&mut self, origin: WriteOrigin, generation: u64) {
        match origin {
            WriteOrigin::Handle(fh) => drop(self.by_handle.insert(fh, generation)),
            WriteOrigin::Mapping => self.by_mapping = Some(generation),
            WriteOrigin::Unattributed | WriteOrigin::Opening => {}
        }
    }

    /// The vault has this generation.
    pub fn stored(&mut self, generation: u64) {
        self.by_handle.retain(|_, last| *last > generation);
        self.by_mapping = self.by_mapping.filter(|last| *last > generation);
    }

    /// Forgets handles that are not open any more.
    pub fn retain(&mut self, is_open: impl Fn(u64) -> bool) {
        self.by_handle.retain(|fh, _| is_open(*fh));
    }

    /// Whether no program that has the file open has written.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the user of this handle may have written.
    pub fn may_have_written(&self, fh: u64) -> bool {
        self.by_mapping.is_some() || self.by_handle.contains_key(&fh)
    }

    /// Whether a close of this handle has bytes to store: its user may have written some, or none
    /// are attributed to an open handle.
    pub fn has_uncommitted(&self, fh: u64) -> bool {
        self.may_have_written(fh) || self.by_handle.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_stores_and_others_only_where_nobody_else_will() {
        let mut writers = Writers::default();
        assert!(writers.has_uncommitted(1) && !writers.may_have_written(1));
        writers.note(WriteOrigin::Handle(1), 1);
        writers.note(WriteOrigin::Handle(2), 2);
        assert!(writers.has_uncommitted(1) && writers.has_uncommitted(2) && !writers.has_uncommitted(3));
        writers.stored(1);
        assert!(!writers.has_uncommitted(1) && writers.has_uncommitted(2));
        writers.note(WriteOrigin::Mapping, 3);
        assert!(writers.has_uncommitted(1) && writers.has_uncommitted(3), "any handle may have it mapped");
        writers.stored(3);
        assert_eq!(writers, Writers::default());
        writers.note(WriteOrigin::Handle(1), 4);
        writers.retain(|fh| fh != 1);
        assert!(writers.has_uncommitted(3), "no other handle will");
    }
}
