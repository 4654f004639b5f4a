//! Deletions at the vault of objects that are hidden here, some time after the program's request.
//!
//! When that is, and what the name shows until then, is `temporary`'s. A deletion that fails is
//! listed (`failed_deletes`). While the vault is away the object stays hidden, and the deletion is
//! tried again; what the vault refuses shows again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::fs::inode::DeferredDelete;
use crate::fs::inode::file::File;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::Writeback;
use crate::fs::writeback::retry::LAST_RETRY;
use crate::vault::cache::is_outage;
use crate::vault::save::Stored;
use crate::vault::{Call, Error, ErrorKind, ObjectId, ObjectName, VersionTag};

/// When the deletion of a moved object that failed is tried again.
const RETRY_MOVED: Duration = Duration::from_secs(5);

/// How long after a refused deletion others are taken to be refused, too.
const REFUSAL: Duration = Duration::from_secs(60);

/// Whether a deletion that failed so is tried again by itself, the object hidden until then.
pub(super) fn is_retried(e: &Error) -> bool {
    is_outage(e.kind) || e.kind == ErrorKind::Full
}

impl Writeback {
    /// Deletes what has been hidden under `name` since that moment, unless the name is reused
    /// within `grace`.
    pub fn delete_later(self: &Arc<Self>, name: ObjectName, since: Instant, grace: Duration) {
        let writeback = self.clone();
        self.env.spawn(async move {
            let mut pause = grace;
            loop {
                tokio::time::sleep(pause).await;
                // Stored and hidden again meanwhile: another grace period.
                if writeback.inodes.lock().deferred(&name).is_none_or(|hidden| hidden.since != since) {
                    return;
                }
                match writeback.delete_deferred(&name, &Call::background(writeback.env.deadline())).await {
                    Ok(true) => return,
                    Ok(false) => pause = grace,
                    Err(e) if is_retried(&e) => pause = (pause * 2).min(LAST_RETRY),
                    Err(_) => return,
                }
            }
        });
    }

    /// Executes the deferred deletes of objects with names that begin so now, but for those with a
    /// backup. Returns the first error; failures are listed and retried as usual.
    pub async fn delete_deferred_below(&self, prefix: &str, call: &Call) -> Result<()> {
        let names: Vec<ObjectName> = {
            let table = self.inodes.lock();
            let unlinked = table.deferred_below(prefix).filter(|(_, hidden)| hidden.backup.is_none());
            unlinked.map(|(name, _)| name.clone()).collect()
        };
        let deletions = names.iter().map(|name| self.delete_deferred(name, call));
        join_all(deletions)
            .await
            .into_iter()
            .try_for_each(|deleted| deleted.map(drop).map_err(|e| Errno::from(&e)))
    }

    /// The bytes of a hidden object are stored under another name: the object is deleted, as after
    /// any rename.
    pub async fn finish_move(self: &Arc<Self>, file: &File, call: &Call) {
        let moved = {
            let tx = self.env.journal().begin();
            self.inodes.lock_in(&tx).release_backup(&tx, file)
        };
        let Some((name, since)) = moved else { return };
        match self.delete_deferred(&name, call).await {
            Ok(true) => {}
            Err(e) if !is_retried(&e) => {}
            Ok(false) | Err(_) => self.delete_later(name, since, RETRY_MOVED),
        }
    }

    /// Executes the deferred delete of `name` now. False while the name was reused and the new file
    /// is not stored yet. A failure is listed; unless it is retried, the object shows again.
    pub async fn delete_deferred(&self, name: &ObjectName, call: &Call) -> Result<bool, Error> {
        let deleted = self.delete_hidden(name, |hidden| hidden.backup.is_none(), call).await;
        match &deleted {
            Ok(true) => self.namespace.inval_name(name),
            Ok(false) => {}
            Err(e) => {
                let message = format!("it should be gone, but was not deleted: {e}");
                if self.inodes.lock().note_failed_delete(name, Errno::from(e), message) {
                    self.env.failed("deletion of a moved or unlinked file", name.as_str(), e);
                }
                if !is_retried(e) {
                    self.show_again(name);
                }
            }
        }
        deleted
    }

    /// Deletes the object that is hidden under `name`, if it is the one that is meant. False while
    /// the name was reused and the new file is not stored yet.
    pub async fn delete_hidden(
        &self,
        name: &ObjectName,
        is_meant: impl Fn(&DeferredDelete) -> bool,
        call: &Call,
    ) -> Result<bool, Error> {
        let no_delete = self.env.options().no_delete;
        let _alone = if no_delete { None } else { Some(self.without_stores(call).await?) };
        for _ in 0..2 {
            let hidden = self.inodes.lock().deferred(name).filter(|hidden| is_meant(hidden)).cloned();
            let Some(DeferredDelete { stored, reused, .. }) = hidden else { return Ok(true) };
            if reused {
                return Ok(false);
            }
            if no_delete {
                let why = "moved or unlinked, and not replaced: it stays, because of --no-delete";
                tracing::warn!(name = name.as_str(), "{why}");
                self.show_again(name);
                return Ok(true);
            }
            match self.delete_version(&stored, call).await {
                Err(e) if e.maybe_applied => {}
                Err(e) if e.kind == ErrorKind::VersionMismatch => {
                    tracing::warn!(
                        name = name.as_str(),
                        "was to be deleted and is not: it was changed elsewhere meanwhile"
                    );
                    self.inodes.lock().cancel_delete(name);
                    self.namespace.inval_name(name);
                    return Ok(true);
                }
                Err(e) if e.kind != ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {
                    self.env.note_deleted(name, Some(&stored.id));
                    let mut table = self.inodes.lock();
                    let is_reused = table.deferred(name).is_some_and(|hidden| hidden.reused);
                    if !is_reused {
                        table.cancel_delete(name);
                    }
                    return Ok(!is_reused);
                }
            }
        }
        Err(Error::new(ErrorKind::Server, "no answer shows whether it was deleted"))
    }

    /// What is hidden under `name` shows again.
    pub fn show_again(&self, name: &ObjectName) {
        self.inodes.lock().unhide(name);
        self.namespace.inval_name(name);
    }

    /// Deletes an object at the vault, and remembers a refusal.
    pub async fn delete_object(
        &self,
        call: &Call,
        id: &ObjectId,
        version: Option<&VersionTag>,
    ) -> Result<(), Error> {
        let deleted = self.env.cache().vault().delete(call, id, version).await;
        if let Err(Error { kind: ErrorKind::Unauthorized | ErrorKind::Forbidden, .. }) = &deleted {
            *self.deletion_refused.lock() = Some(self.env.now());
        }
        deleted
    }

    /// Deletes the object if this is its current version. Where the dialect cannot check that, it
    /// is read just before, which leaves a moment for another change.
    async fn delete_version(&self, stored: &Stored, call: &Call) -> Result<(), Error> {
        let vault = self.env.cache().vault();
        if !vault.capabilities().version_check
            && vault.metadata(call, &stored.id).await?.version != stored.version
        {
            return Err(Error::new(ErrorKind::VersionMismatch, "it was changed elsewhere"));
        }
        self.delete_object(call, &stored.id, Some(&stored.version)).await
    }

    /// Whether the vault refused a deletion a short while ago.
    pub fn refuses_deletions(&self) -> bool {
        let now = self.env.now();
        self.deletion_refused.lock().is_some_and(|at| now.saturating_duration_since(at) < REFUSAL)
    }
}
