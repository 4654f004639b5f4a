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
use std::time::Duration;

use crate::fs::inode::Node;
use crate::fs::inode::file::{File, Persistence};
use crate::fs::inode::writers::WriteOrigin;
use crate::fs::name::DirPrefix;
use crate::fs::temporary::Temporaries;
use crate::fs::types::attr::FileKind;
use crate::fs::types::errno::Result;
use crate::fs::types::unsaved::Unsaved;
use crate::fs::writeback::commit::Cause;
use crate::fs::writeback::drain::Drain;
use crate::vault::{Call, ObjectId, ObjectName};

/// A provisional file without open handles becomes an object after this.
pub(in crate::fs) const PROMOTE_AFTER: Duration = Duration::from_secs(5);

impl Temporaries {
    /// Whether a new file of this name is stored: it is if the object of the name is hidden.
    pub fn persistence_of_new(&self, (component, name): (&OsStr, &ObjectName), flags: i32) -> Persistence {
        let Some(component) = component.to_str() else { return Persistence::Vault };
        if self.inodes.lock().deferred(name).is_some() {
            Persistence::Vault
        } else if self.namespace.patterns().matches(component) {
            Persistence::Scratch
        } else if flags & libc::O_EXCL != 0 && self.namespace.patterns().is_provisional(component) {
            Persistence::Provisional
        } else {
            Persistence::Vault
        }
    }

    /// Whether a file renamed to this name is stored. A file that was in the vault never becomes
    /// scratch: it would be lost at unmount.
    pub fn persistence_of_moved(
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
        let is_new = target.is_none() && self.inodes.lock().deferred(name).is_none();
        if self.namespace.patterns().matches(component) && is_new && !is_object && !is_backup {
            Persistence::Scratch
        } else if self.namespace.patterns().is_provisional(component) && (free || is_object) {
            Persistence::Provisional
        } else {
            Persistence::Vault
        }
    }

    /// The objects that are deleted when this file loses its name, with their names in the vault,
    /// and the file's own name.
    pub fn backing_objects(&self, file: &File) -> (ObjectName, Vec<(ObjectName, ObjectId)>) {
        let table = self.inodes.lock();
        let mut deletes: Vec<_> = table.deletes_with(file).into_iter().collect();
        let state = file.state();
        let name = state.name.clone();
        if let Some(stored) = &state.stored
            && table.deferred(&name).is_none()
        {
            deletes.push((name.clone(), stored.id.clone()));
        }
        (name, deletes)
    }

    /// Makes an object of the file once it has been left alone for long enough.
    pub fn promote_later(self: &Arc<Self>, file: &Arc<File>) {
        let waits = |file: &File| {
            let state = file.state();
            state.is_held_back().then_some((state.opens, state.idle))
        };
        let Some((0, _)) = waits(file) else { return };
        let (temporaries, file) = (self.clone(), file.clone());
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
            let call = Call::background(temporaries.env.deadline());
            temporaries.promote_provisional(&file, &call).await;
        });
    }

    /// Makes objects of provisional files, and brings all else to the vault that it does not have
    /// ([`Writeback::drain`](crate::fs::writeback::Writeback::drain)).
    pub async fn drain(self: &Arc<Self>, what: Drain, patience: Duration) -> Vec<Unsaved> {
        let call = Call::foreground(self.env.now() + patience);
        let is_provisional = |file: &Arc<File>| {
            let state = file.state();
            let closed = what == Drain::All || state.opens == 0;
            state.is_held_back() && closed
        };
        let files: Vec<Arc<File>> = self.inodes.lock().all_files().filter(is_provisional).collect();
        futures_util::future::join_all(files.iter().map(|file| self.promote_provisional(file, &call))).await;
        self.writeback.drain(what, &call).await
    }

    /// Completes deferred deletes in `dir`, which is to be removed: moves are executed, unlinked
    /// objects deleted. Returns the error of a deletion.
    pub async fn flush_deferred_in(self: &Arc<Self>, dir: &DirPrefix, call: &Call) -> Result<()> {
        let backups: Vec<Node> = {
            let table = self.inodes.lock();
            let within = table.deferred_below(dir.as_str());
            let unclaimed = within.filter(|(_, hidden)| !hidden.reused);
            unclaimed.filter_map(|(_, hidden)| table.node(hidden.backup?)).collect()
        };
        for backup in backups {
            if let Node::File(backup) = backup {
                self.promote_provisional(&backup, call).await;
            }
        }
        self.writeback.delete_deferred_below(dir.as_str(), call).await
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
            self.account_room(&mut state);
        }
        // A failure is recorded, logged, listed and retried like that of any other write.
        let _ = self.writeback.commit(file, call, Cause::Promote).await;
        self.inodes.lock().drop_unheld(file.ino);
    }
}
