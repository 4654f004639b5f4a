//! Files that are unlinked, or renamed to a backup, to be made anew a moment later: `git checkout`, `gunzip -f`, `install`,
//! any script that unlinks a file and creates it.
//!
//! Taken literally that ends the object and its history. So unlink(2) only hides the object, unless the program is known to
//! remove files (`remover`); made anew, the name is the next version of the same object. If nothing comes within [`GRACE`],
//! the object is deleted; a deletion that fails is reported by other means (`failed_deletes`). fsync(2) of the directory, rmdir(2)
//! and unmount delete what is hidden at once, and return the error. At most [`MOST_HIDDEN`] objects are hidden at a time,
//! and none for [`REFUSAL`] after the vault refused a deletion to the key: then every unlink(2) deletes before it answers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::fs::inode::file::File;
use crate::fs::inode::{DeferredDelete, DirKind, Node};
use crate::fs::temporary::provisional::stores_on_their_way;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::commit::LAST_RETRY;
use crate::fs::{FileSystem, Step};
use crate::sys::program::name_of;
use crate::vault::{Call, Error, ErrorKind, ObjectId, ObjectName, VersionTag};

/// How long a name may stay empty between the unlink and the creation.
const GRACE: Duration = Duration::from_secs(1);

/// So many objects are hidden at a time.
const MOST_HIDDEN: usize = 64;

/// So long after a refused deletion no object is hidden.
const REFUSAL: Duration = Duration::from_secs(60);

/// Whether a file that is renamed so is likely to be made anew: it becomes a backup of itself.
pub(in crate::fs) fn is_backup_of(name: &OsStr, new: &OsStr) -> bool {
    let (name, new) = (name.as_bytes(), new.as_bytes());
    new.starts_with(name) || new.ends_with(name)
}

/// Whether this thread moves files to other directories to keep a backup there (`rsync --backup-dir`, `perl -i'old/*'`):
/// any program but the one that people move files with.
pub(in crate::fs) fn is_by_an_editor(pid: u32) -> bool {
    pid != 0 && name_of(pid).is_some_and(|name| name != "mv")
}

impl FileSystem {
    /// Hides the object that `file` shows, if it is one and may be hidden, and sees to its end.
    pub(in crate::fs) fn hide_unlinked(self: &Arc<Self>, file: &File) -> bool {
        let since = self.clock.now();
        if self.deletion_refused().is_some_and(|at| since.saturating_duration_since(at) < REFUSAL) {
            return false;
        }
        let name = {
            let mut table = self.table();
            let state = file.state();
            let Some(stored) = state.stored.clone() else { return false };
            if state.is_only_here()
                || state.origin.is_some()
                || table.deferred_deletes.contains_key(&state.name)
            {
                return false;
            }
            if table.deferred_deletes.values().filter(|h| h.backup.is_none() && !h.reused).count()
                >= MOST_HIDDEN
            {
                return false;
            }
            let hidden = DeferredDelete { stored, backup: None, reused: false, since };
            table.deferred_deletes.insert(state.name.clone(), hidden);
            state.name.clone()
        };
        self.delete_later(name, since, GRACE);
        true
    }

    /// Deletes an object at the vault, and remembers a refusal.
    pub(in crate::fs) async fn delete_object(
        &self,
        call: &Call,
        id: &ObjectId,
        version: Option<&VersionTag>,
    ) -> Result<(), Error> {
        let deleted = self.cache.vault().delete(call, id, version).await;
        if let Err(Error { kind: ErrorKind::Unauthorized | ErrorKind::Forbidden, .. }) = &deleted {
            *self.deletion_refused() = Some(self.clock.now());
        }
        deleted
    }

    fn deletion_refused(&self) -> MutexGuard<'_, Option<Instant>> {
        self.deletion_refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// FSYNCDIR: deletes what is hidden in the directory and below it, and returns the error.
    pub fn fsync_dir(self: &Arc<Self>, ino: u64) -> Step<()> {
        let Ok(Node::Dir(dir)) = self.node(ino) else { return Ok(()).into() };
        let DirKind::Tree(under) = &dir.kind else { return Ok(()).into() };
        let (fs, names) = (self.clone(), self.unreplaced(under.as_str()));
        Step::later(async move { fs.delete_hidden_now(&names, &fs.call()).await })
    }

    /// Deletes what has been hidden under `name` since that moment, unless it is made anew within `grace`.
    pub(in crate::fs) fn delete_later(self: &Arc<Self>, name: ObjectName, since: Instant, grace: Duration) {
        let fs = self.clone();
        self.runtime.spawn(async move {
            let mut pause = grace;
            loop {
                tokio::time::sleep(pause).await;
                // Stored and hidden again meanwhile, it has another grace.
                if fs.table().deferred_deletes.get(&name).is_none_or(|hidden| hidden.since != since) {
                    return;
                }
                let call = Call::background(fs.clock.now() + fs.options.timeout);
                let deleted = match fs.without_stores(&call).await {
                    Some(_alone) => fs.delete_unless_replaced(&name, &call).await,
                    None => Err(stores_on_their_way()),
                };
                match deleted {
                    Ok(true) => return,
                    Ok(false) => pause = grace,
                    Err(e) if fs.record_failed_delete(&name, &e) => pause = (pause * 2).min(LAST_RETRY),
                    Err(_) => return fs.show_again(&name),
                }
            }
        });
    }

    /// Sees to the end of all that were hidden so, after a worker's death.
    pub(in crate::fs) fn watch_unreplaced(self: &Arc<Self>) {
        for name in self.unreplaced("") {
            let since = self.table().deferred_deletes.get(&name).map(|hidden| hidden.since);
            since.into_iter().for_each(|since| self.delete_later(name.clone(), since, GRACE));
        }
    }

    /// The names beginning with `prefix` whose objects are hidden without a backup.
    pub(in crate::fs) fn unreplaced(&self, prefix: &str) -> Vec<ObjectName> {
        let table = self.table();
        let unlinked = table.deferred_deletes.iter().filter(|(_, hidden)| hidden.backup.is_none());
        unlinked.map(|(name, _)| name.clone()).filter(|name| name.as_str().starts_with(prefix)).collect()
    }

    /// Deletes what is hidden under these names now. Returns the first error; what failed is reported, and tried again,
    /// as if nobody had waited.
    pub(in crate::fs) async fn delete_hidden_now(&self, names: &[ObjectName], call: &Call) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let Some(_alone) = self.without_stores(call).await else { return Err(Errno::ETIMEDOUT) };
        let deletions = names.iter().map(|name| async move {
            let deleted = self.delete_unless_replaced(name, call).await;
            if let Err(e) = &deleted
                && !self.record_failed_delete(name, e)
            {
                self.show_again(name);
            }
            deleted.map(drop).map_err(|e| Errno::from(&e))
        });
        join_all(deletions).await.into_iter().collect()
    }

    /// Deletes what is hidden under `name` now; what cannot be deleted shows again.
    pub(in crate::fs) async fn end_unreplaced(&self, name: &ObjectName, call: &Call) {
        let deleted = match self.without_stores(call).await {
            Some(_alone) => self.delete_unless_replaced(name, call).await,
            None => Err(stores_on_their_way()),
        };
        if let Err(e) = deleted {
            self.record_failed_delete(name, &e);
            self.show_again(name);
        }
    }

    /// For a caller that keeps stores away. False while the name has been made anew and is not stored yet.
    async fn delete_unless_replaced(&self, name: &ObjectName, call: &Call) -> Result<bool, Error> {
        let hidden = self.table().deferred_deletes.get(name).filter(|h| h.backup.is_none()).cloned();
        match hidden {
            None => return Ok(true),
            Some(hidden) if hidden.reused => return Ok(false),
            Some(_) if self.options.no_delete => {
                tracing::warn!(
                    name = name.as_str(),
                    "unlinked and not replaced: it stays, because of --no-delete"
                );
            }
            Some(hidden) => {
                self.delete_hidden_alone(call, name, &hidden.stored.id).await?;
                if self.table().deferred_deletes.get(name).is_some_and(|hidden| hidden.reused) {
                    return Ok(false);
                }
            }
        }
        self.show_again(name);
        Ok(true)
    }
}
