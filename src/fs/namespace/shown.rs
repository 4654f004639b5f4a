//! What a name shows once the vault has answered: the inode of that version, or nothing.

use std::sync::Arc;

use crate::fs::FileSystem;
use crate::fs::inode::file::{File, Link};
use crate::vault::cache::{Found, Peek};
use crate::vault::{Meta, ObjectName};

impl FileSystem {
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
        self.keep_bytes(&mut state);
        state.link = Link::Replaced;
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
            self.keep_bytes(&mut state);
            state.link = Link::Replaced;
        }
        let file = table.put_file(&object.meta.name, |ino, local| File::of(ino, object, local));
        file.change(&tx).pending_notify = Some(object.meta.version.clone());
        if let Some(before) = before {
            table.drop_unheld(before.ino);
        }
        file
    }
}
