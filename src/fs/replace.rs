//! Programs that replace a file by unlinking it first, or by renaming it to a backup.
//!
//! `install`, and `mv` and `cp` in some cases, unlink the old file and create the new one a moment later. Taken
//! literally that ends the object and its history. So when one of these programs unlinks a file, its object is
//! only hidden; made anew, the name is the next version of the same object. If nothing comes within [`GRACE`],
//! or at unmount, the object is deleted; a deletion that fails is told otherwise (`undeleted`). From every other program, `rm` first of all, unlink(2) answers when the
//! object is deleted, and with the vault's error if it is not.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FileSystem;
use super::commit::LAST_RETRY;
use super::errno::Errno;
use super::file::File;
use super::inode::Hidden;
use super::program::name_of;
use super::request;
use crate::vault::{Call, Error, ObjectName};

/// How long a name may stay empty between the unlink and the creation.
const GRACE: Duration = Duration::from_secs(1);

/// The programs that do so, as the kernel names them.
const PROGRAMS: [&str; 8] = ["install", "mv", "cp", "rsync", "tar", "bsdtar", "unzip", "cpio"];

/// Whether a file that is renamed so is likely to be made anew: it becomes a backup of itself.
pub(super) fn is_backup_of(name: &OsStr, new: &OsStr) -> bool {
    let (name, new) = (name.as_bytes(), new.as_bytes());
    new.starts_with(name) || new.ends_with(name)
}

/// Whether this thread moves files to other directories to keep a backup there (`rsync --backup-dir`, `perl -i'old/*'`):
/// any program but the one that people move files with.
pub(super) fn is_by_an_editor(pid: u32) -> bool {
    pid != 0 && name_of(pid).is_some_and(|name| name != "mv")
}

/// Whether a file that this thread unlinks is likely to be made anew by it.
pub(super) fn is_about_to_replace(pid: u32) -> bool {
    pid != 0 && name_of(pid).is_some_and(|name| PROGRAMS.contains(&name.as_str()))
}

impl FileSystem {
    /// Hides the object that `file` shows, if it is one, and sees to its end.
    pub(super) fn hide_for_replacement(self: &Arc<Self>, file: &File) -> bool {
        let since = self.clock.now();
        let name = {
            let mut table = self.table();
            let state = file.state();
            let Some(stored) = state.stored.clone() else { return false };
            if state.is_only_here() || state.origin.is_some() || table.hidden.contains_key(&state.name) {
                return false;
            }
            let hidden = Hidden { stored, backup: None, claimed: false, since };
            table.hidden.insert(state.name.clone(), hidden);
            state.name.clone()
        };
        self.delete_later(name, since, GRACE);
        true
    }

    /// Whether the object of that name was hidden so before a crash, by the request that is being done again.
    pub(super) fn is_being_replaced(&self, name: &ObjectName) -> bool {
        request::before().is_some()
            && self.table().hidden.get(name).is_some_and(|h| h.backup.is_none() && !h.claimed)
    }

    /// Deletes what has been hidden under `name` since that moment, unless it is made anew within `grace`.
    pub(super) fn delete_later(self: &Arc<Self>, name: ObjectName, since: Instant, grace: Duration) {
        let fs = self.clone();
        self.runtime.spawn(async move {
            let mut pause = grace;
            loop {
                tokio::time::sleep(pause).await;
                // Stored and hidden again meanwhile, it has another grace.
                if fs.table().hidden.get(&name).is_none_or(|hidden| hidden.since != since) {
                    return;
                }
                let call = Call::background(fs.clock.now() + fs.options.timeout);
                match fs.delete_unless_replaced(&name, &call).await {
                    Ok(true) => return,
                    Ok(false) => pause = grace,
                    Err(e) if fs.not_deleted(&name, &e) => pause = (pause * 2).min(LAST_RETRY),
                    Err(_) => return fs.show_again(&name),
                }
            }
        });
    }

    /// Sees to the end of all that were hidden so, after a worker's death.
    pub(super) fn watch_unreplaced(self: &Arc<Self>) {
        for name in self.unreplaced() {
            let since = self.table().hidden.get(&name).map(|hidden| hidden.since);
            since.into_iter().for_each(|since| self.delete_later(name.clone(), since, GRACE));
        }
    }

    fn unreplaced(&self) -> Vec<ObjectName> {
        let table = self.table();
        let unlinked = table.hidden.iter().filter(|(_, hidden)| hidden.backup.is_none());
        unlinked.map(|(name, _)| name.clone()).collect()
    }

    /// Deletes what was unlinked and not replaced: the mount ends. If it does not after all, what may yet be deleted is
    /// tried again as before.
    pub(super) async fn delete_unreplaced(&self, call: &Call) {
        for name in self.unreplaced() {
            if let Err(e) = self.delete_unless_replaced(&name, call).await
                && !self.not_deleted(&name, &e)
            {
                self.show_again(&name);
            }
        }
    }

    /// Deletes what is hidden under `name` now; what cannot be deleted shows again.
    pub(super) async fn end_unreplaced(&self, name: &ObjectName, call: &Call) -> Result<(), Errno> {
        let Err(e) = self.delete_unless_replaced(name, call).await else { return Ok(()) };
        self.not_deleted(name, &e);
        self.show_again(name);
        Err(Errno::from(&e))
    }

    /// False while the name has been made anew and is not stored yet.
    async fn delete_unless_replaced(&self, name: &ObjectName, call: &Call) -> Result<bool, Error> {
        let hidden = self.table().hidden.get(name).filter(|h| h.backup.is_none()).cloned();
        match hidden {
            None => return Ok(true),
            Some(hidden) if hidden.claimed => return Ok(false),
            Some(_) if self.options.no_delete => {
                tracing::warn!(
                    name = name.as_str(),
                    "unlinked and not replaced: it stays, because of --no-delete"
                );
            }
            Some(hidden) => {
                self.delete_hidden(call, name, &hidden.stored.id).await?;
                if self.table().hidden.get(name).is_some_and(|hidden| hidden.claimed) {
                    return Ok(false);
                }
            }
        }
        self.show_again(name);
        Ok(true)
    }
}
