//! Provisional files: names that are often an editor's temporary, and sometimes not.
//!
//! 1. Created with O_EXCL or by rename under such a name, a file is held back. Renamed to another name it is
//!    stored under that; left alone it becomes an object of its own after [`PROMOTE_AFTER`], and at unmount.
//! 2. An object that is renamed to such a name (vim's backup, `s` to `s~`) is only *hidden*: nothing is sent. When
//!    `s` is made anew, that is the next version of the same object, history and all. When the backup is
//!    unlinked while `s` is still absent, the object is deleted; when it comes back, nothing has happened; when it
//!    is left alone, the rename is carried out.
//! 3. A name whose object is hidden can be given to another file, backup or not. Storing that is a change of the
//!    hidden object, which is *claimed* by it, never a second object of the name; and what is claimed is not deleted.
//!    A hidden object is deleted while no store is on its way, by its id and nothing else, so that the two cannot
//!    cross at the vault.
//! 4. What is hidden is deleted later than a program asked for it: if the object was changed elsewhere meanwhile, it
//!    stays, and shows again.
//! 5. An object that exists in the vault is never provisional. Cut off at any step, the vault still has it.

use std::ffi::OsStr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use crate::fs::FileSystem;
use crate::fs::inode::file::{File, Persistence, Stored};
use crate::fs::inode::writers::WriteOrigin;
use crate::fs::inode::{DeferredDelete, Node, Table};
use crate::fs::name::DirPrefix;
use crate::fs::namespace::attr::FileKind;
use crate::fs::types::errno::Result;
use crate::fs::writeback::commit::{Cause, Drain};
use crate::vault::{Call, Error, ErrorKind, ObjectId, ObjectName};

/// Stores that may be on their way at once.
pub(in crate::fs) const CHANGES: u32 = 1024;

/// A provisional file that nobody has open becomes an object after this.
pub(in crate::fs) const PROMOTE_AFTER: Duration = Duration::from_secs(5);

/// Deletions of hidden objects share a permit if they begin within this.
const TOGETHER: Duration = Duration::from_millis(250);

/// Hidden objects that are being deleted together.
#[derive(Debug, Default)]
pub(in crate::fs) struct Deletions {
    /// The permit, while one of them lasts.
    permit: Weak<OwnedSemaphorePermit>,
    /// When the first one began.
    begun: Option<Instant>,
}

pub(in crate::fs) fn stores_on_their_way() -> Error {
    Error::new(ErrorKind::Deadline, "saves were on their way all the time")
}

impl Table {
    /// Whether the object of that name is hidden, and nothing new took its place.
    pub(in crate::fs) fn is_hidden(&self, name: &ObjectName) -> bool {
        self.deferred_deletes.get(name).is_some_and(|hidden| !hidden.reused)
    }

    /// Whether the object of that name is hidden because it was unlinked, and nothing new took its place.
    pub(in crate::fs) fn is_unlinked(&self, name: &ObjectName) -> bool {
        self.deferred_deletes.get(name).is_some_and(|hidden| hidden.backup.is_none() && !hidden.reused)
    }

    /// The name is made anew: what the new file is a change of.
    pub(in crate::fs) fn reuse(&mut self, name: &ObjectName) -> Option<Stored> {
        let hidden = self.deferred_deletes.get_mut(name)?;
        hidden.reused = true;
        Some(hidden.stored.clone())
    }

    /// The name was not stored after all.
    pub(in crate::fs) fn cancel_reuse(&mut self, name: &ObjectName) {
        if let Some(hidden) = self.deferred_deletes.get_mut(name) {
            hidden.reused = false;
            self.names_changed();
        }
    }

    /// Whether this is still the object that is hidden under `name`, with nothing new in its place.
    fn is_hidden_object(&self, name: &ObjectName, id: &ObjectId) -> bool {
        self.deferred_deletes.get(name).is_some_and(|hidden| !hidden.reused && hidden.stored.id == *id)
    }

    /// The name has been stored anew: its backup is a file like any other.
    pub(in crate::fs) fn cancel_delete(&mut self, name: &ObjectName) {
        self.deferred_deletes.remove(name);
        self.failed_deletes.remove(name);
        self.names_changed();
    }

    /// `file` lost the name `name`. A new file over a hidden object uncovers that the object is hidden; a backup
    /// takes the hidden object along, which has been deleted.
    pub(in crate::fs) fn detach(&mut self, name: &ObjectName, file: &File) {
        self.cancel_reuse(name);
        self.forget_backup(file);
    }

    /// `file` is a backup no more: its bytes are stored or gone.
    pub(in crate::fs) fn forget_backup(&mut self, file: &File) {
        if let Some((origin, _)) = self.deferred_by(file) {
            self.deferred_deletes.remove(&origin);
            self.names_changed();
        }
        file.state().origin = None;
    }

    /// The object that is hidden because this file, its backup, was moved away from it.
    fn deferred_by(&self, file: &File) -> Option<(ObjectName, DeferredDelete)> {
        let origin = file.state().origin.clone()?;
        // Another backup may have hidden the name since.
        let hidden =
            self.deferred_deletes.get(&origin).filter(|hidden| hidden.backup == Some(file.ino))?.clone();
        Some((origin, hidden))
    }

    /// The object that goes with this backup, as its name is still absent.
    pub(in crate::fs) fn deletes_with(&self, file: &File) -> Option<(ObjectName, ObjectId)> {
        let (origin, hidden) = self.deferred_by(file)?;
        (!hidden.reused).then_some((origin, hidden.stored.id))
    }

    /// `file` is moved from `name` to a provisional name, over `target`. If it was the object of that name, that is
    /// hidden from now on; if it was made over a hidden one, that is hidden again, behind the backup it has.
    pub(in crate::fs) fn hide(
        &mut self,
        name: &ObjectName,
        object: Option<Stored>,
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
                file.state().origin = Some(name.clone());
            }
        } else if let Some(stored) = object {
            let hidden = DeferredDelete { stored, backup: Some(file.ino), reused: false, since };
            self.deferred_deletes.insert(name.clone(), hidden);
            file.state().origin = Some(name.clone());
        }
    }
}

impl FileSystem {
    /// Whether a new file of this name is stored. It is if there is an object of the name, hidden.
    pub(in crate::fs) fn persistence_of_new(
        &self,
        (component, name): (&OsStr, &ObjectName),
        flags: i32,
    ) -> Persistence {
        let Some(component) = component.to_str() else { return Persistence::Vault };
        if self.table().deferred_deletes.contains_key(name) {
            Persistence::Vault
        } else if self.scratch.matches(component) {
            Persistence::Scratch
        } else if flags & libc::O_EXCL != 0 && self.scratch.is_provisional(component) {
            Persistence::Provisional
        } else {
            Persistence::Vault
        }
    }

    /// Whether a file that gets this name by a rename is stored. What has been in the vault is never turned into a
    /// scratch file: it would be gone at unmount.
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
                // It is the object of that name again; or it was moved over an object, which has to go now.
                return Persistence::Vault;
            }
            (state.stored.is_some() && !state.is_only_here(), state.origin.is_some())
        };
        let free = target.is_none_or(|target| target.state().is_only_here());
        let is_new = target.is_none() && !self.table().deferred_deletes.contains_key(name);
        if self.scratch.matches(component) && is_new && !is_object && !is_backup {
            Persistence::Scratch
        } else if self.scratch.is_provisional(component) && (free || is_object) {
            Persistence::Provisional
        } else {
            Persistence::Vault
        }
    }

    /// The objects that go when this file loses its name, with the names they have in the vault; and the file's
    /// own name.
    pub(in crate::fs) fn backing_objects(&self, file: &File) -> (ObjectName, Vec<(ObjectName, ObjectId)>) {
        let table = self.table();
        let mut doomed: Vec<_> = table.deletes_with(file).into_iter().collect();
        let state = file.state();
        let name = state.name.clone();
        if let Some(stored) = &state.stored
            && !table.deferred_deletes.contains_key(&name)
        {
            doomed.push((name.clone(), stored.id.clone()));
        }
        (name, doomed)
    }

    /// Makes an object of the file when it has been left alone for long enough.
    pub(in crate::fs) fn promote_later(self: &Arc<Self>, file: &Arc<File>) {
        let waits = |file: &File| {
            let state = file.state();
            state.is_held_back().then_some((state.opens, state.idle))
        };
        let Some((0, _)) = waits(file) else { return };
        let (fs, file) = (self.clone(), file.clone());
        let seen = file.state().idle_since(self.clock.now());
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(PROMOTE_AFTER).await;
                match waits(&file) {
                    Some((0, idle)) if idle == Some(seen) => break,
                    // Something works with it, a rename that may fail: nobody else will come back to it then. Who closes
                    // it begins to wait anew.
                    Some((_, idle)) if idle == Some(seen) => {}
                    _ => return,
                }
            }
            let call = Call::background(fs.clock.now() + fs.options.timeout);
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
        let files: Vec<Arc<File>> = self.table().all_files().filter(is_provisional).collect();
        futures_util::future::join_all(files.iter().map(|file| self.promote_provisional(file, call))).await;
    }

    /// Ends what is hidden in `dir`, which is to be removed: moves are carried out, unlinked objects deleted. Returns the
    /// error of a deletion.
    pub(in crate::fs) async fn flush_deferred_in(
        self: &Arc<Self>,
        dir: &DirPrefix,
        call: &Call,
    ) -> Result<()> {
        let backups: Vec<Node> = {
            let table = self.table();
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
            let mut table = self.table();
            let mut state = file.state();
            state.persistence = Persistence::Vault;
            if state.stored.is_none() {
                state.stored = table.reuse(&state.name);
            }
            if let Some(buffer) = &mut state.buffer {
                buffer.changed(WriteOrigin::Nobody, buffer.changed_at);
            }
            self.account_room(&mut state);
        }
        // A failure is kept on the file, logged, listed and tried again like that of any other write.
        let _ = self.commit(file, call, Cause::Promote).await;
        self.table().drop_unheld(file.ino);
    }

    /// The bytes of a hidden object are stored under another name: the object goes, as after any rename.
    pub(in crate::fs) async fn finish_move(self: &Arc<Self>, file: &File, call: &Call) {
        let doomed = self.table().deletes_with(file);
        if let Some((name, id)) = doomed {
            if self.options.no_delete {
                tracing::warn!(name = name.as_str(), "moved, but the old name stays: --no-delete");
            } else if let Err(e) = self.delete_hidden(call, &name, &id).await
                && self.record_failed_delete(&name, &e)
            {
                self.delete_without(file, name);
            }
        }
        self.table().forget_backup(file);
    }

    /// What is hidden under `name` is deleted later; its backup is a file like any other from now on.
    fn delete_without(self: &Arc<Self>, backup: &File, name: ObjectName) {
        let since = {
            let mut table = self.table();
            let hidden =
                table.deferred_deletes.get_mut(&name).filter(|hidden| hidden.backup == Some(backup.ino));
            hidden.map(|hidden| {
                hidden.backup = None;
                hidden.since
            })
        };
        since.into_iter().for_each(|since| self.delete_later(name.clone(), since, PROMOTE_AFTER));
    }

    /// Deletes an object that is hidden, unless its name has been claimed meanwhile. One that was changed elsewhere
    /// since shows again.
    pub(in crate::fs) async fn delete_hidden(
        &self,
        call: &Call,
        name: &ObjectName,
        id: &ObjectId,
    ) -> Result<(), Error> {
        match self.without_stores(call).await {
            Some(_alone) => self.delete_hidden_alone(call, name, id).await,
            None => Err(stores_on_their_way()),
        }
    }

    /// The same for a caller that keeps stores away.
    pub(in crate::fs) async fn delete_hidden_alone(
        &self,
        call: &Call,
        name: &ObjectName,
        id: &ObjectId,
    ) -> Result<(), Error> {
        for _ in 0..2 {
            let hidden = {
                let table = self.table();
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
                    self.table().cancel_delete(name);
                    self.inval_name(name);
                    return Ok(());
                }
                Err(e) if e.kind != ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {
                    self.cache.deleted_object(name, id);
                    let mut table = self.table();
                    if table.is_hidden_object(name, id) {
                        table.deferred_deletes.remove(name);
                        table.failed_deletes.remove(name);
                    }
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorKind::Server, "no answer told whether it was deleted"))
    }

    /// Deletes the object if this is its current version; where the dialect cannot check, that is looked at just
    /// before, which leaves a moment for somebody else.
    async fn delete_version(&self, call: &Call, stored: &Stored) -> Result<(), Error> {
        let vault = self.cache.vault();
        if !vault.capabilities().version_check
            && vault.metadata(call, &stored.id).await?.version != stored.version
        {
            return Err(Error::new(ErrorKind::VersionMismatch, "it was changed elsewhere"));
        }
        self.delete_object(call, &stored.id, Some(&stored.version)).await
    }

    /// A permit to delete hidden objects: nothing is stored meanwhile. Deletions that begin at about the same time share it;
    /// who comes later waits for its turn behind the stores that wait.
    pub(in crate::fs) async fn without_stores(&self, call: &Call) -> Option<Arc<OwnedSemaphorePermit>> {
        let permit = async {
            let mut shared = self.deletions.lock().await;
            let begun = shared.begun.map(|at| self.clock.now().saturating_duration_since(at));
            if let Some(permit) = shared.permit.upgrade()
                && begun.is_some_and(|ago| ago < TOGETHER)
            {
                return Some(permit);
            }
            let permit = Arc::new(self.changes.clone().acquire_many_owned(CHANGES).await.ok()?);
            *shared = Deletions { permit: Arc::downgrade(&permit), begun: Some(self.clock.now()) };
            Some(permit)
        };
        tokio::time::timeout(self.left(call), permit).await.ok()?
    }

    /// Waits until what is being stored is written down as stored; nothing more is begun until the result is dropped.
    pub async fn hold_stores(&self, within: Duration) -> Option<OwnedSemaphorePermit> {
        let all = self.changes.clone().acquire_many_owned(CHANGES);
        tokio::time::timeout(within, all).await.ok()?.ok()
    }

    /// A store's permit: no hidden object is deleted meanwhile.
    pub(in crate::fs) async fn among_stores(&self, call: &Call) -> Option<OwnedSemaphorePermit> {
        let permit = self.changes.clone().acquire_owned();
        tokio::time::timeout(self.left(call), permit).await.ok()?.ok()
    }
}
