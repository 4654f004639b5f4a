//! Provisional files: names that are often an editor's temporary, and sometimes not.
//!
//! 1. A file created with O_EXCL, or by rename, under such a name is held back. Renamed to another
//!    name it is stored under that; left alone it becomes an object after [`PROMOTE_AFTER`], and at
//!    unmount.
//! 2. An object renamed to such a name (vim's backup, `s` to `s~`) is only *hidden*: no request is
//!    sent. A new `s` is the next version of the same object. If the backup is unlinked while `s`
//!    is absent, the object is deleted; if it is renamed back, nothing has happened; if it is left
//!    alone, the rename is executed.
//! 3. The name of a hidden object can be reused by another file. Its commit is a change of the
//!    hidden object, never a second object of the name; and a reused object is not deleted. Hidden
//!    objects are deleted by id, while no commit is in flight, so that the two cannot cross at the
//!    vault.
//! 4. A deferred delete happens later than the program's request: if the object was changed
//!    elsewhere meanwhile, it stays, and shows again.
//! 5. An object in the vault is never provisional. After a death at any step the vault still has
//!    it.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::FileSystem;
use crate::fs::inode::file::{File, Persistence};
use crate::fs::inode::writers::WriteOrigin;
use crate::fs::inode::{DeferredDelete, Node, Table};
use crate::fs::journal::Transaction;
use crate::fs::name::DirPrefix;
use crate::fs::types::attr::FileKind;
use crate::fs::types::errno::Result;
use crate::fs::writeback::commit::Cause;
use crate::fs::writeback::drain::Drain;
use crate::vault::save::Stored;
use crate::vault::{Call, Error, ErrorKind, ObjectId, ObjectName};

/// A provisional file without open handles becomes an object after this.
pub(in crate::fs) const PROMOTE_AFTER: Duration = Duration::from_secs(5);

impl Table {
    /// Whether the object of that name is hidden, and the name was not reused.
    pub(in crate::fs) fn is_hidden(&self, name: &ObjectName) -> bool {
        self.deferred_deletes.get(name).is_some_and(|hidden| !hidden.reused)
    }

    /// Whether the object of that name is hidden by an unlink, and the name was not reused.
    pub(in crate::fs) fn is_unlinked(&self, name: &ObjectName) -> bool {
        self.deferred_deletes.get(name).is_some_and(|hidden| hidden.backup.is_none() && !hidden.reused)
    }

    /// Reuses the name: returns what the new file is a change of.
    pub(in crate::fs) fn reuse(&mut self, name: &ObjectName) -> Option<Stored> {
        let hidden = self.deferred_deletes.get_mut(name)?;
        hidden.reused = true;
        Some(hidden.stored.clone())
    }

    /// The new file was not stored.
    pub(in crate::fs) fn cancel_reuse(&mut self, name: &ObjectName) {
        if let Some(hidden) = self.deferred_deletes.get_mut(name) {
            hidden.reused = false;
            self.names_changed();
        }
    }

    /// Whether this object is hidden under `name`, and the name was not reused.
    fn is_hidden_object(&self, name: &ObjectName, id: &ObjectId) -> bool {
        self.deferred_deletes.get(name).is_some_and(|hidden| !hidden.reused && hidden.stored.id == *id)
    }

    /// The new file of the name is stored: the backup is an ordinary file from now on.
    pub(in crate::fs) fn cancel_delete(&mut self, name: &ObjectName) {
        self.deferred_deletes.remove(name);
        self.failed_deletes.remove(name);
        self.names_changed();
    }

    /// `file` lost the name `name`. Without a reusing file the object is hidden only; with its
    /// backup the hidden object is deleted, too.
    pub(in crate::fs) fn detach(&mut self, tx: &Transaction, name: &ObjectName, file: &File) {
        self.cancel_reuse(name);
        self.forget_backup(tx, file);
    }

    /// `file` is no backup any more: its bytes are stored or gone.
    pub(in crate::fs) fn forget_backup(&mut self, tx: &Transaction, file: &File) {
        if let Some((origin, _)) = self.deferred_by(file) {
            self.deferred_deletes.remove(&origin);
            self.names_changed();
        }
        file.change(tx).origin = None;
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
    pub(in crate::fs) fn deletes_with(&self, file: &File) -> Option<(ObjectName, ObjectId)> {
        let (origin, hidden) = self.deferred_by(file)?;
        (!hidden.reused).then_some((origin, hidden.stored.id))
    }

    /// `file` is moved from `name` to a provisional name, over `target`. The object of `name` is
    /// hidden from now on; one that was reused by `file` is hidden again, behind its backup.
    pub(in crate::fs) fn hide(
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
}

impl FileSystem {
    /// Whether a new file of this name is stored: it is if the object of the name is hidden.
    pub(in crate::fs) fn persistence_of_new(
        &self,
        (component, name): (&OsStr, &ObjectName),
        flags: i32,
    ) -> Persistence {
        let Some(component) = component.to_str() else { return Persistence::Vault };
        if self.inodes.lock().deferred_deletes.contains_key(name) {
            Persistence::Vault
        } else if self.temporaries.patterns().matches(component) {
            Persistence::Scratch
        } else if flags & libc::O_EXCL != 0 && self.temporaries.patterns().is_provisional(component) {
            Persistence::Provisional
        } else {
            Persistence::Vault
        }
    }

    /// Whether a file renamed to this name is stored. A file that was in the vault never becomes
    /// scratch: it would be lost at unmount.
    pub(in crate::fs) fn persistence_of_moved(
        &self,
        (component, name): (&OsStr, &ObjectName),
        source: &File,
        target: Option<&File>,
    ) -> Persistence {
        if source.kind != FileKind::Regular {
            return Persistence::Scratch;
        }
        let Some(component) = component.to_str() else { return Persistence::Vault };
        let (is_object, is_backup) = {
            let state = source.state();
            let comes_back = state.origin.as_ref() == Some(name);
            if comes_back || (state.is_only_here() && state.stored.is_some()) {
                // It is the object of that name again; or it was moved over an object, which is
                // deleted now.
                return Persistence::Vault;
            }
            (state.stored.is_some() && !state.is_only_here(), state.origin.is_some())
        };
        let free = target.is_none_or(|target| target.state().is_only_here());
        let is_new = target.is_none() && !self.inodes.lock().deferred_deletes.contains_key(name);
        if self.temporaries.patterns().matches(component) && is_new && !is_object && !is_backup {
            Persistence::Scratch
        } else if self.temporaries.patterns().is_provisional(component) && (free || is_object) {
            Persistence::Provisional
        } else {
            Persistence::Vault
        }
    }

    /// The objects that are deleted when this file loses its name, with their names in the vault,
    /// and the file's own name.
    pub(in crate::fs) fn backing_objects(&self, file: &File) -> (ObjectName, Vec<(ObjectName, ObjectId)>) {
        let table = self.inodes.lock();
        let mut deletes: Vec<_> = table.deletes_with(file).into_iter().collect();
        let state = file.state();
        let name = state.name.clone();
        if let Some(stored) = &state.stored
            && !table.deferred_deletes.contains_key(&name)
        {
            deletes.push((name.clone(), stored.id.clone()));
        }
        (name, deletes)
    }

    /// Makes an object of the file once it has been left alone for long enough.
    pub(in crate::fs) fn promote_later(self: &Arc<Self>, file: &Arc<File>) {
        let waits = |file: &File| {
            let state = file.state();
            state.is_held_back().then_some((state.opens, state.idle))
        };
        let Some((0, _)) = waits(file) else { return };
        let (fs, file) = (self.clone(), file.clone());
        let seen = file.change_alone().idle_since(self.env.now());
        self.env.spawn(async move {
            loop {
                tokio::time::sleep(PROMOTE_AFTER).await;
                match waits(&file) {
                    Some((0, idle)) if idle == Some(seen) => break,
                    // In use by an operation that may fail, such as a rename; the next close
                    // restarts the timer.
                    Some((_, idle)) if idle == Some(seen) => {}
                    _ => return,
                }
            }
            let call = Call::background(fs.env.deadline());
            fs.promote_provisional(&file, &call).await;
        });
    }

    /// Makes objects of provisional files: the mount ends.
    pub(in crate::fs) async fn promote_all(self: &Arc<Self>, what: Drain, call: &Call) {
        let is_provisional = |file: &Arc<File>| {
            let state = file.state();
            let closed = what == Drain::All || state.opens == 0;
            state.is_held_back() && closed
        };
        let files: Vec<Arc<File>> = self.inodes.lock().all_files().filter(is_provisional).collect();
        futures_util::future::join_all(files.iter().map(|file| self.promote_provisional(file, call))).await;
    }

    /// Completes deferred deletes in `dir`, which is to be removed: moves are executed, unlinked
    /// objects deleted. Returns the error of a deletion.
    pub(in crate::fs) async fn flush_deferred_in(
        self: &Arc<Self>,
        dir: &DirPrefix,
        call: &Call,
    ) -> Result<()> {
        let backups: Vec<Node> = {
            let table = self.inodes.lock();
            let within =
                table.deferred_deletes.iter().filter(|(name, _)| name.as_str().starts_with(dir.as_str()));
            let unclaimed = within.filter(|(_, hidden)| !hidden.reused);
            unclaimed.filter_map(|(_, hidden)| table.node(hidden.backup?)).collect()
        };
        for backup in backups {
            if let Node::File(backup) = backup {
                self.promote_provisional(&backup, call).await;
            }
        }
        self.delete_hidden_now(&self.unreplaced(dir.as_str()), call).await
    }

    async fn promote_provisional(self: &Arc<Self>, file: &Arc<File>, call: &Call) {
        {
            let tx = self.env.journal().begin();
            let mut table = self.inodes.lock_in(&tx);
            let mut state = file.change(&tx);
            state.persistence = Persistence::Vault;
            if state.stored.is_none() {
                state.stored = table.reuse(&state.name);
            }
            if let Some(buffer) = &mut state.buffer {
                buffer.changed(WriteOrigin::Unattributed, buffer.changed_at);
            }
            self.temporaries.account_room(&mut state);
        }
        // A failure is recorded, logged, listed and retried like that of any other write.
        let _ = self.commit(file, call, Cause::Promote).await;
        self.inodes.lock().drop_unheld(file.ino);
    }

    /// The bytes of a hidden object are stored under another name: the object is deleted, as after
    /// any rename.
    pub(in crate::fs) async fn finish_move(self: &Arc<Self>, file: &File, call: &Call) {
        let deletes = self.inodes.lock().deletes_with(file);
        if let Some((name, id)) = deletes {
            if self.env.options().no_delete {
                tracing::warn!(name = name.as_str(), "moved, but the old name stays: --no-delete");
            } else if let Err(e) = self.delete_hidden(call, &name, &id).await
                && self.record_failed_delete(&name, &e)
            {
                self.delete_without(file, name);
            }
        }
        let tx = self.env.journal().begin();
        self.inodes.lock_in(&tx).forget_backup(&tx, file);
    }

    /// The object hidden under `name` is deleted later; its backup is an ordinary file from now on.
    fn delete_without(self: &Arc<Self>, backup: &File, name: ObjectName) {
        let since = {
            let mut table = self.inodes.lock();
            let hidden =
                table.deferred_deletes.get_mut(&name).filter(|hidden| hidden.backup == Some(backup.ino));
            hidden.map(|hidden| {
                hidden.backup = None;
                hidden.since
            })
        };
        since.into_iter().for_each(|since| self.delete_later(name.clone(), since, PROMOTE_AFTER));
    }

    /// Deletes a hidden object, unless its name was reused meanwhile. If it was changed elsewhere
    /// it shows again.
    pub(in crate::fs) async fn delete_hidden(
        &self,
        call: &Call,
        name: &ObjectName,
        id: &ObjectId,
    ) -> Result<(), Error> {
        let _alone = self.writeback.without_stores(call).await?;
        self.delete_hidden_alone(call, name, id).await
    }

    /// The same for a caller that holds the permit.
    pub(in crate::fs) async fn delete_hidden_alone(
        &self,
        call: &Call,
        name: &ObjectName,
        id: &ObjectId,
    ) -> Result<(), Error> {
        for _ in 0..2 {
            let hidden = {
                let table = self.inodes.lock();
                table.deferred_deletes.get(name).filter(|_| table.is_hidden_object(name, id)).cloned()
            };
            let Some(hidden) = hidden else { return Ok(()) };
            match self.delete_version(call, &hidden.stored).await {
                Err(e) if e.maybe_applied => {}
                Err(e) if e.kind == ErrorKind::VersionMismatch => {
                    tracing::warn!(
                        name = name.as_str(),
                        "was to be deleted and is not: it was changed elsewhere meanwhile"
                    );
                    self.inodes.lock().cancel_delete(name);
                    self.inval_name(name);
                    return Ok(());
                }
                Err(e) if e.kind != ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {
                    self.env.note_deleted(name, Some(id));
                    let mut table = self.inodes.lock();
                    if table.is_hidden_object(name, id) {
                        table.deferred_deletes.remove(name);
                        table.failed_deletes.remove(name);
                    }
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorKind::Server, "no answer shows whether it was deleted"))
    }

    /// Deletes the object if this is its current version. Where the dialect cannot check that, it
    /// is read just before, which leaves a moment for another change.
    async fn delete_version(&self, call: &Call, stored: &Stored) -> Result<(), Error> {
        let vault = self.env.cache().vault();
        if !vault.capabilities().version_check
            && vault.metadata(call, &stored.id).await?.version != stored.version
        {
            return Err(Error::new(ErrorKind::VersionMismatch, "it was changed elsewhere"));
        }
        self.writeback.delete_object(call, &stored.id, Some(&stored.version)).await
    }
}
