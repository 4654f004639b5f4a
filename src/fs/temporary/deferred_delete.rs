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
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::fs::FileSystem;
use crate::fs::inode::file::File;
use crate::fs::inode::{DeferredDelete, DirKind, Node};
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::retry::LAST_RETRY;
use crate::sys::program::name_of;
use crate::vault::{Call, Error, ObjectName};

/// How long a name may be absent between unlink and creation.
const GRACE: Duration = Duration::from_secs(1);

/// Hidden objects at a time.
const MOST_HIDDEN: usize = 64;

/// Whether a file renamed like this will likely be made anew: the new name is its backup.
pub(in crate::fs) fn is_backup_of(name: &OsStr, new: &OsStr) -> bool {
    let (name, new) = (name.as_bytes(), new.as_bytes());
    new.starts_with(name) || new.ends_with(name)
}

/// Whether this thread moves files to other directories as backups (`rsync --backup-dir`, `perl
/// -i'old/*'`): any program but mv.
pub(in crate::fs) fn is_by_an_editor(pid: u32) -> bool {
    pid != 0 && name_of(pid).is_some_and(|name| name != "mv")
}

impl FileSystem {
    /// Hides the object that `file` shows, if allowed, and schedules its deletion.
    pub(in crate::fs) fn hide_unlinked(self: &Arc<Self>, file: &File) -> bool {
        let since = self.env.now();
        if self.writeback.refuses_deletions() {
            return false;
        }
        let name = {
            let mut table = self.inodes.lock();
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

    /// FSYNCDIR: executes deferred deletes in and below the directory, and returns the error.
    pub async fn fsync_dir(&self, ctx: &RequestCtx, ino: u64) -> Result<()> {
        let Ok(Node::Dir(dir)) = self.inodes.node(ino) else { return Ok(()) };
        let DirKind::Tree(under) = &dir.kind else { return Ok(()) };
        let names = self.unreplaced(under.as_str());
        self.delete_hidden_now(&names, ctx.call().await).await
    }

    /// Deletes what has been hidden under `name` since that moment, unless the name is reused
    /// within `grace`.
    pub(in crate::fs) fn delete_later(self: &Arc<Self>, name: ObjectName, since: Instant, grace: Duration) {
        let fs = self.clone();
        self.env.spawn(async move {
            let mut pause = grace;
            loop {
                tokio::time::sleep(pause).await;
                // Stored and hidden again meanwhile: another grace period.
                if fs.inodes.lock().deferred_deletes.get(&name).is_none_or(|hidden| hidden.since != since) {
                    return;
                }
                let call = Call::background(fs.env.deadline());
                let deleted = match fs.writeback.without_stores(&call).await {
                    Ok(_alone) => fs.delete_unless_replaced(&name, &call).await,
                    Err(e) => Err(e),
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

    /// Schedules the deletions of all hidden objects, after a worker's death.
    pub(in crate::fs) fn watch_unreplaced(self: &Arc<Self>) {
        for name in self.unreplaced("") {
            let since = self.inodes.lock().deferred_deletes.get(&name).map(|hidden| hidden.since);
            since.into_iter().for_each(|since| self.delete_later(name.clone(), since, GRACE));
        }
    }

    /// The names under `prefix` of objects that are hidden without a backup.
    pub(in crate::fs) fn unreplaced(&self, prefix: &str) -> Vec<ObjectName> {
        let table = self.inodes.lock();
        let unlinked = table.deferred_deletes.iter().filter(|(_, hidden)| hidden.backup.is_none());
        unlinked.map(|(name, _)| name.clone()).filter(|name| name.as_str().starts_with(prefix)).collect()
    }

    /// Executes the deferred deletes of these names now. Returns the first error; failures are
    /// reported and retried as usual.
    pub(in crate::fs) async fn delete_hidden_now(&self, names: &[ObjectName], call: &Call) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let alone = self.writeback.without_stores(call).await;
        let _alone = alone.map_err(|e| self.env.failed("unlink", names[0].as_str(), &e))?;
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

    /// Executes the deferred delete of `name` now; an object that cannot be deleted shows again.
    pub(in crate::fs) async fn end_unreplaced(&self, name: &ObjectName, call: &Call) {
        let deleted = match self.writeback.without_stores(call).await {
            Ok(_alone) => self.delete_unless_replaced(name, call).await,
            Err(e) => Err(e),
        };
        if let Err(e) = deleted {
            self.record_failed_delete(name, &e);
            self.show_again(name);
        }
    }

    /// For a caller that holds the permit. False while the name was reused and the new file is not
    /// stored yet.
    async fn delete_unless_replaced(&self, name: &ObjectName, call: &Call) -> Result<bool, Error> {
        let hidden = self.inodes.lock().deferred_deletes.get(name).filter(|h| h.backup.is_none()).cloned();
        match hidden {
            None => return Ok(true),
            Some(hidden) if hidden.reused => return Ok(false),
            Some(_) if self.env.options().no_delete => {
                tracing::warn!(
                    name = name.as_str(),
                    "unlinked and not replaced: it stays, because of --no-delete"
                );
            }
            Some(hidden) => {
                self.delete_hidden_alone(call, name, &hidden.stored.id).await?;
                if self.inodes.lock().deferred_deletes.get(name).is_some_and(|hidden| hidden.reused) {
                    return Ok(false);
                }
            }
        }
        self.show_again(name);
        Ok(true)
    }
}
