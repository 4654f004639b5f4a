//! Deletions that the vault has not made: what the table keeps of each, by the object's name, and
//! what the name shows meanwhile.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::fs::inode::Table;
use crate::fs::inode::file::File;
use crate::fs::journal::Transaction;
use crate::fs::types::errno::Errno;
use crate::vault::save::Stored;
use crate::vault::{ObjectId, ObjectName};

/// An object that is hidden, or replaced by another file under its name, while its file has a
/// provisional name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::fs) struct DeferredDelete {
    /// The object.
    pub stored: Stored,
    /// The file that has its bytes under another name; `None` if it was unlinked, and is deleted
    /// unless the name is reused.
    pub backup: Option<u64>,
    /// The name was reused, and the new file is not stored yet.
    pub reused: bool,
    /// When it was hidden.
    #[serde(skip, default = "Instant::now")]
    pub since: Instant,
}

impl DeferredDelete {
    /// Whether the object is hidden by an unlink, and its name was not reused.
    pub fn is_unlinked(&self) -> bool {
        self.backup.is_none() && !self.reused
    }
}

/// A deletion that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::fs) struct FailedDeleteRecord {
    /// The version that was to go.
    pub stored: Stored,
    /// How it failed.
    pub errno: Errno,
    /// Why it is still there, for people.
    pub message: String,
}

impl Table {
    /// The object that is hidden under `name`, or that its new file is to be a version of.
    pub fn deferred(&self, name: &ObjectName) -> Option<&DeferredDelete> {
        self.deferred_deletes.get(name)
    }

    /// All of them with names that begin so.
    pub fn deferred_below(&self, prefix: &str) -> impl Iterator<Item = (&ObjectName, &DeferredDelete)> {
        self.deferred_deletes.iter().filter(move |(name, _)| name.as_str().starts_with(prefix))
    }

    /// The object of that name is hidden from now on, and deleted unless the name is reused.
    pub fn defer_delete(&mut self, name: &ObjectName, stored: Stored, since: Instant) {
        let hidden = DeferredDelete { stored, backup: None, reused: false, since };
        self.deferred_deletes.insert(name.clone(), hidden);
    }

    /// What is hidden under `name` shows again.
    pub fn unhide(&mut self, name: &ObjectName) {
        self.deferred_deletes.remove(name);
    }

    /// Whether the object of that name is hidden, and the name was not reused.
    pub fn is_hidden(&self, name: &ObjectName) -> bool {
        self.deferred_deletes.get(name).is_some_and(|hidden| !hidden.reused)
    }

    /// Reuses the name: returns what the new file is a change of.
    pub fn reuse(&mut self, name: &ObjectName) -> Option<Stored> {
        let hidden = self.deferred_deletes.get_mut(name)?;
        hidden.reused = true;
        Some(hidden.stored.clone())
    }

    /// The new file was not stored.
    pub fn cancel_reuse(&mut self, name: &ObjectName) {
        if let Some(hidden) = self.deferred_deletes.get_mut(name) {
            hidden.reused = false;
            self.names_changed();
        }
    }

    /// The new file of the name is stored: the backup is an ordinary file from now on.
    pub fn cancel_delete(&mut self, name: &ObjectName) {
        self.deferred_deletes.remove(name);
        self.failed_deletes.remove(name);
        self.names_changed();
    }

    /// `file` lost the name `name`. Without a reusing file the object is hidden only; with its
    /// backup the hidden object is deleted, too.
    pub fn detach(&mut self, tx: &Transaction, name: &ObjectName, file: &File) {
        self.cancel_reuse(name);
        self.forget_backup(tx, file);
    }

    /// `file` is no backup any more: its bytes are stored or gone.
    pub fn forget_backup(&mut self, tx: &Transaction, file: &File) {
        if let Some((origin, _)) = self.deferred_by(file) {
            self.deferred_deletes.remove(&origin);
            self.names_changed();
        }
        file.change(tx).origin = None;
    }

    /// The bytes of `file` are stored under its own name. If it is a backup, the object that is
    /// hidden behind it is deleted like one that was unlinked: returns its name, and since when it
    /// is hidden.
    pub fn release_backup(&mut self, tx: &Transaction, file: &File) -> Option<(ObjectName, Instant)> {
        let Some((origin, hidden)) = self.deferred_by(file).filter(|(_, hidden)| !hidden.reused) else {
            self.forget_backup(tx, file);
            return None;
        };
        file.change(tx).origin = None;
        let since = hidden.since;
        self.deferred_deletes.insert(origin.clone(), DeferredDelete { backup: None, ..hidden });
        Some((origin, since))
    }

    /// The object that is hidden because this file, its backup, was moved away.
    fn deferred_by(&self, file: &File) -> Option<(ObjectName, DeferredDelete)> {
        let origin = file.state().origin.clone()?;
        // Another backup may have hidden the name since.
        let hidden =
            self.deferred_deletes.get(&origin).filter(|hidden| hidden.backup == Some(file.ino))?.clone();
        Some((origin, hidden))
    }

    /// The object that is deleted with this backup, as its name is still absent.
    pub fn deletes_with(&self, file: &File) -> Option<(ObjectName, ObjectId)> {
        let (origin, hidden) = self.deferred_by(file)?;
        (!hidden.reused).then_some((origin, hidden.stored.id))
    }

    /// `file` is moved from `name` to a provisional name, over `target`. The object of `name` is
    /// hidden from now on; one that was reused by `file` is hidden again, behind its backup.
    pub fn hide(
        &mut self,
        tx: &Transaction,
        (name, object): (&ObjectName, Option<Stored>),
        file: &File,
        target: Option<&File>,
        since: Instant,
    ) {
        let over = target.map(|target| target.ino);
        self.names_changed();
        if let Some(hidden) = self.deferred_deletes.get_mut(name) {
            hidden.reused = false;
            if over.is_some() && hidden.backup == over {
                hidden.backup = Some(file.ino);
                file.change(tx).origin = Some(name.clone());
            }
        } else if let Some(stored) = object {
            let hidden = DeferredDelete { stored, backup: Some(file.ino), reused: false, since };
            self.deferred_deletes.insert(name.clone(), hidden);
            file.change(tx).origin = Some(name.clone());
        }
    }

    /// The deletion of that name that failed, if one did.
    pub fn failed_delete(&self, name: &ObjectName) -> Option<&FailedDeleteRecord> {
        self.failed_deletes.get(name)
    }

    /// All deletions that failed.
    pub fn all_failed_deletes(&self) -> impl Iterator<Item = (&ObjectName, &FailedDeleteRecord)> {
        self.failed_deletes.iter()
    }

    /// What is hidden under `name` was not deleted. False if that is known already, or nothing is
    /// hidden.
    pub fn note_failed_delete(&mut self, name: &ObjectName, errno: Errno, message: String) -> bool {
        let Some(DeferredDelete { stored, .. }) = self.deferred_deletes.get(name) else { return false };
        let record = FailedDeleteRecord { stored: stored.clone(), errno, message };
        let is_news = self.failed_deletes.get(name).is_none_or(|known| known.errno != errno);
        self.failed_deletes.insert(name.clone(), record);
        is_news
    }

    /// Forgets a deletion that failed. False if there is none.
    pub fn forget_failed_delete(&mut self, name: &ObjectName) -> bool {
        self.failed_deletes.remove(name).is_some()
    }
}
