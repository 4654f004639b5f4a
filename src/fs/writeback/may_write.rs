//! What is known to fail fails at open(2): shells ignore a close(2) that fails.
//!
//! 1. A vault that says what its keys may do (`vaultfs serve`) is trusted: with a key that may not
//!    write, nothing is opened for writing.
//! 2. With any other vault a refused save shows that saves of its kind (new objects, new versions)
//!    are refused, for that name and, unless one was accepted there, for its directory; for
//!    [`ASSUMED_FOR`] at most, then the next save tries.
//! 3. Another key, once it is in the key's file, is refused nothing yet.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::Writeback;
use crate::fs::writeback::commit::Job;
use crate::vault::save::After;
use crate::vault::{Error, ErrorKind, ObjectName};

/// For how long a refusal is assumed to hold.
const ASSUMED_FOR: Duration = Duration::from_secs(60);

/// Names and directories of which something is remembered.
pub(super) const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What a save makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::fs) enum Change {
    Object,
    Version,
}

impl Change {
    pub fn of(after: &After) -> Self {
        match after {
            After::Nothing => Self::Object,
            After::Any(..) | After::Just(..) => Self::Version,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum LastSave {
    Accepted,
    Refused(Instant),
}

/// What became of the last saves, by the key that was in use; a directory ends with a slash, or is
/// empty. A leaf: nothing else is locked while this is.
pub(super) type Saves = Mutex<LruCache<(Change, String, u64), LastSave>>;

/// The directory of a name, with its slash; empty for the root.
fn directory(name: &str) -> &str {
    name.rfind('/').map_or("", |slash| &name[..=slash])
}

impl Writeback {
    /// A save was accepted, or refused for want of a permission; nothing else shows permissions. A
    /// guarded save may have been refused the look before it.
    pub(super) fn note_save(&self, job: &Job, change: Change, failed: Option<&Error>) {
        let is_accepted = match failed {
            None => true,
            Some(e) if e.kind == ErrorKind::Forbidden && !job.conditions.guarded => false,
            Some(_) => return,
        };
        let name = &job.name;
        let key = self.env.cache().vault().status().key_changes;
        let dir = directory(name.as_str()).to_owned();
        let mut saves = self.saves.lock();
        let outcome = match is_accepted {
            true => LastSave::Accepted,
            false => LastSave::Refused(self.env.now()),
        };
        saves.put((change, name.as_str().to_owned(), key), outcome);
        let of_dir = (change, dir, key);
        if is_accepted || !matches!(saves.get(&of_dir), Some(LastSave::Accepted)) {
            saves.put(of_dir, outcome);
        }
    }

    /// Refuses an open for writing if its save is known to be refused.
    pub fn may_write(&self, name: &ObjectName, change: Change) -> Result<()> {
        let vault = self.env.cache().vault().status();
        let now = self.env.now();
        let is_refused = |what: &str| {
            let refused = self.saves.lock().get(&(change, what.to_owned(), vault.key_changes)).copied();
            matches!(refused, Some(LastSave::Refused(at)) if now.saturating_duration_since(at) < ASSUMED_FOR)
        };
        let may_not = vault.may_write == Some(false);
        match may_not || is_refused(name.as_str()) || is_refused(directory(name.as_str())) {
            true => Err(self.env.refused(
                "open for writing",
                name.as_str(),
                Errno::EACCES,
                "the API key may not write: use a key that has the permission, or mount with --read-only",
            )),
            false => Ok(()),
        }
    }
}
