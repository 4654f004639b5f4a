//! Whose writes they are: a close stores what was written through its own handle, and not what another program is in
//! the middle of writing (a file that is cut and rewritten under a lock, while others open and close it).
//!
//! 1. A close of a handle that wrote since the last commit stores, and with it all that the buffer holds.
//! 2. A close of one that did not leaves the bytes to the handles that did: each of them is closed some time, and the
//!    last close of all stores whatever is left.
//! 3. Where nobody who wrote has the file open any more (a save that failed), any close stores.
//! 4. The kernel sends the pages of a mapping with the handle of any mapping of the file: they count for all handles.
//! 5. Who cuts the file to nothing takes what others wrote with it: they have nothing to store any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Who changed the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The user of this handle.
    Handle(u64),
    /// Somebody who has the file mapped.
    Mapping,
    /// Nobody who has the file open.
    Nobody,
    /// Who opens the file, creating or cutting it: that alone is stored at the last close.
    Opening,
}

/// Who has written what the vault has not, as numbers of handles and of the buffer's generations. Only open handles are
/// in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrote {
    /// The last write through each handle.
    by: BTreeMap<u64, u64>,
    /// The last write of which nobody can say whose it is.
    anybodys: Option<u64>,
}

impl Wrote {
    /// A change that made this generation.
    pub fn note(&mut self, whose: Whose, generation: u64) {
        match whose {
            Whose::Handle(fh) => drop(self.by.insert(fh, generation)),
            Whose::Mapping => self.anybodys = Some(generation),
            Whose::Nobody | Whose::Opening => {}
        }
    }

    /// The vault has this generation.
    pub fn stored(&mut self, generation: u64) {
        self.by.retain(|_, last| *last > generation);
        self.anybodys = self.anybodys.filter(|last| *last > generation);
    }

    /// Forgets handles that are not open any more.
    pub fn keep(&mut self, is_open: impl Fn(u64) -> bool) {
        self.by.retain(|fh, _| is_open(*fh));
    }

    /// Whether nobody who has the file open has written.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the user of this handle may have written.
    pub fn is_by(&self, fh: u64) -> bool {
        self.anybodys.is_some() || self.by.contains_key(&fh)
    }

    /// Whether a close of this handle stores.
    pub fn lets_store(&self, fh: u64) -> bool {
        self.is_by(fh) || self.by.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_stores_and_others_only_where_nobody_else_will() {
        let mut wrote = Wrote::default();
        assert!(wrote.lets_store(1) && !wrote.is_by(1));
        wrote.note(Whose::Handle(1), 1);
        wrote.note(Whose::Handle(2), 2);
        assert!(wrote.lets_store(1) && wrote.lets_store(2) && !wrote.lets_store(3));
        wrote.stored(1);
        assert!(!wrote.lets_store(1) && wrote.lets_store(2));
        wrote.note(Whose::Mapping, 3);
        assert!(wrote.lets_store(1) && wrote.lets_store(3), "whoever has the file mapped");
        wrote.stored(3);
        assert_eq!(wrote, Wrote::default());
        wrote.note(Whose::Handle(1), 4);
        wrote.keep(|fh| fh != 1);
        assert!(wrote.lets_store(3), "nobody else will");
    }
}
