//! What the helper's requests change in the inode table: which inode a name shows.
//!
//! An inode with bytes that the vault does not have is never replaced (EBUSY): its commit decides
//! what the name shows.

use std::sync::Arc;

use crate::fs::inode::DirKind;
use crate::fs::inode::file::{File, Link};
use crate::fs::propagation::Propagator;
use crate::fs::types::errno::{Errno, Result};
use crate::vault::ObjectName;

impl Propagator {
    /// The helper's rename: the name shows `fresh` from now on. EBUSY if the name shows another
    /// inode than `over` by now, or one with bytes that the vault does not have.
    pub(in crate::fs) fn show(&self, fresh: &Arc<File>, over: Option<u64>) -> Result<()> {
        let name = fresh.state().name.clone();
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        if fresh.state().stored.is_none() {
            // Not looked up yet: the first lookup decides whether the name is a file or a
            // directory.
            self.names_changed(&mut table, &name);
            return Ok(());
        }
        let shown = table.file(&name);
        if shown.as_ref().map(|file| file.ino) != over || table.is_hidden(&name) {
            return Err(Errno::EBUSY);
        }
        let old = shown.filter(|file| file.ino != fresh.ino);
        if let Some(old) = &old {
            let ordered = fresh.state().stored.clone();
            if ordered.is_some_and(|s| self.namespace.is_behind((&s.id, &s.version, s.updated_at), old)) {
                // Saved, or found in a newer version, since the rename was ordered.
                return Err(Errno::EBUSY);
            }
            self.namespace.replace(&tx, old)?;
        }
        fresh.change(&tx).link = Link::Current;
        table.point(&name, fresh.ino);
        match old {
            Some(old) => table.drop_unheld(old.ino),
            None => self.names_changed(&mut table, &name),
        }
        Ok(())
    }

    /// The helper's unlink: the name of `file` shows nothing from now on.
    pub(in crate::fs) fn show_nothing(&self, file: &Arc<File>) -> Result<()> {
        let name = file.state().name.clone();
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        match table.file(&name) {
            Some(shown) if shown.ino != file.ino || self.namespace.is_newest(&shown) => {
                return Err(Errno::EBUSY);
            }
            Some(shown) => self.namespace.replace(&tx, &shown)?,
            None => {}
        }
        table.unpoint(&name, file.ino);
        table.drop_unheld(file.ino);
        self.names_changed(&mut table, &name);
        Ok(())
    }

    fn names_changed(&self, table: &mut crate::fs::inode::Table, name: &ObjectName) {
        let Some((under, _)) = table.steps_to(name).and_then(|mut way| way.pop()) else { return };
        table.touch(&DirKind::Tree(under), self.env.wall());
    }
}
