//! What a name shows once the vault has answered: the inode of that version, or nothing.

use std::sync::Arc;
use std::time::SystemTime;

use crate::fs::inode::file::File;
use crate::fs::journal::Transaction;
use crate::fs::namespace::Namespace;
use crate::fs::types::errno::{Errno, Result};
use crate::vault::cache::{Found, Peek};
use crate::vault::save::Stored;
use crate::vault::{Meta, Object, ObjectId, ObjectName, VersionTag};

impl Namespace {
    /// The object was deleted elsewhere: open handles keep it, but its name shows nothing, so that
    /// it can be reused.
    pub(super) fn vanished(&self, name: &ObjectName) {
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        let Some(file) = table.file(name) else { return };
        let mut state = file.change(&tx);
        let ours = state.is_only_here() || state.is_dirty() || state.stored.is_none();
        if ours || matches!(self.env.cache().peek(name), Peek::Value(_) | Peek::Exists) {
            return;
        }
        self.inodes.mark_replaced(&mut state);
        drop(state);
        table.unpoint(name, file.ino);
    }

    /// The inode of this object: the existing one if it is this version, otherwise a new one.
    pub(in crate::fs) fn file_node(&self, found: &Found) -> Arc<File> {
        let object = &found.object;
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        let before = table.file(&object.meta.name);
        if let Some(file) = &before {
            // It may have been saved, or asked for again, since this was asked.
            let Meta { id, version, updated_at, .. } = &object.meta;
            let is_newer = self.is_behind((id, version, *updated_at), file);
            let mut state = file.change(&tx);
            let is_version = state.stored.as_ref().is_some_and(|stored| stored.is(&object.meta));
            if is_newer || is_version || state.is_dirty() || state.is_only_here() {
                drop(state);
                return file.clone();
            }
            if self.env.options().in_place {
                drop(state);
                if self.become_version(&tx, file, object) {
                    file.change(&tx).pending_notify = Some(object.meta.version.clone());
                }
                return file.clone();
            }
            self.inodes.mark_replaced(&mut state);
        }
        let file = table.put_file(&object.meta.name, |ino, local| File::of(ino, object, local));
        file.change(&tx).pending_notify = Some(object.meta.version.clone());
        if let Some(before) = before {
            table.drop_unheld(before.ino);
        }
        file
    }

    /// Detaches a file from its name.
    pub(in crate::fs) fn replace(&self, tx: &Transaction, old: &File) -> Result<()> {
        let mut state = old.change(tx);
        if state.is_dirty() || state.is_only_here() || old.commit_lock.available_permits() == 0 {
            return Err(Errno::EBUSY);
        }
        self.inodes.mark_replaced(&mut state);
        Ok(())
    }

    /// The inode shows another version from now on (`--in-place`, and files without open handles).
    /// False if it has bytes that the vault does not have.
    pub(in crate::fs) fn become_version(&self, tx: &Transaction, file: &File, object: &Arc<Object>) -> bool {
        {
            if self.is_newest(file) {
                return false;
            }
            let mut state = file.change(tx);
            if state.is_dirty() || state.is_only_here() || file.commit_lock.available_permits() == 0 {
                return false;
            }
            state.stored = Some(Stored::of(object));
            state.pinned = (state.opens > 0).then(|| object.clone());
            state.buffer = None;
            state.kernel_behind = true;
        }
        self.env.inval_inode(file.ino);
        true
    }

    /// Whether the file is the newest version that is known: what says otherwise was asked for
    /// earlier.
    pub(in crate::fs) fn is_newest(&self, file: &File) -> bool {
        let state = file.state();
        let stored = state.stored.as_ref();
        stored.is_some_and(|s| self.env.cache().is_newest(&state.name, &s.id, &s.version, s.updated_at))
    }

    /// Whether a version was asked for before the one that the name shows: a save, or a later
    /// answer, has brought that one. A vault that was restored from a backup goes back in time, and
    /// what is known with it.
    pub(in crate::fs) fn is_behind(
        &self,
        (id, version, at): (&ObjectId, &VersionTag, SystemTime),
        shown: &File,
    ) -> bool {
        let (name, is_later) = {
            let state = shown.state();
            let is_later = state.stored.as_ref().is_some_and(|s| s.id == *id && s.updated_at > at);
            (state.name.clone(), is_later)
        };
        (is_later || self.is_newest(shown)) && !self.env.cache().is_newest(&name, id, version, at)
    }
}
