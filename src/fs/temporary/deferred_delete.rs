//! Deferred deletes: files that are unlinked, or renamed to a backup, and made anew a moment later
//! (`git checkout`, `gunzip -f`, `install`, scripts).
//!
//! Taken literally, unlink(2) would end the object and its history. So it only hides the object,
//! unless the program is known to remove files (`remover`); a new file of the name is the next
//! version of the same object. After [`GRACE`] the object is deleted; a failure is reported by
//! other means (`failed_deletes`). fsync(2) of the directory, rmdir(2) and unmount delete at once,
//! and return the error. At most [`MOST_HIDDEN`] objects are hidden at a time, and none for
//! a while after the vault refused a deletion: then every unlink(2) deletes before it answers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use crate::fs::inode::DeferredDelete;
use crate::fs::inode::file::File;
use crate::fs::temporary::Temporaries;
use crate::sys::program::name_of;
use crate::vault::ObjectName;

/// How long a name may be absent between unlink and creation.
const GRACE: Duration = Duration::from_secs(1);

/// Hidden objects at a time.
const MOST_HIDDEN: usize = 64;

/// Whether a file renamed like this will likely be made anew: the new name is its backup.
pub fn is_backup_of(name: &OsStr, new: &OsStr) -> bool {
    let (name, new) = (name.as_bytes(), new.as_bytes());
    new.starts_with(name) || new.ends_with(name)
}

/// Whether this thread moves files to other directories as backups (`rsync --backup-dir`, `perl
/// -i'old/*'`): any program but mv.
pub fn is_by_an_editor(pid: u32) -> bool {
    pid != 0 && name_of(pid).is_some_and(|name| name != "mv")
}

impl Temporaries {
    /// Hides the object that `file` shows, if allowed, and schedules its deletion.
    pub fn hide_unlinked(self: &Arc<Self>, file: &File) -> bool {
        let since = self.env.now();
        if self.writeback.refuses_deletions() {
            return false;
        }
        let name = {
            let mut table = self.inodes.lock();
            let state = file.state();
            let Some(stored) = state.stored.clone() else { return false };
            let hidden = table.deferred_below("").filter(|(_, hidden)| hidden.is_unlinked()).count();
            let is_special = state.is_only_here() || state.origin.is_some();
            if is_special || table.deferred(&state.name).is_some() || hidden >= MOST_HIDDEN {
                return false;
            }
            table.defer_delete(&state.name, stored, since);
            state.name.clone()
        };
        self.writeback.delete_later(name, since, GRACE);
        true
    }

    /// Schedules the deletions of all hidden objects, after a worker's death.
    pub fn watch_unreplaced(&self) {
        let unlinked = |(name, hidden): (&ObjectName, &DeferredDelete)| {
            hidden.backup.is_none().then(|| (name.clone(), hidden.since))
        };
        let all: Vec<_> = self.inodes.lock().deferred_below("").filter_map(unlinked).collect();
        all.into_iter().for_each(|(name, since)| self.writeback.delete_later(name, since, GRACE));
    }
}
