//! A file's state while it is locked, or kept in memory for an operation.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::fs::inode::file::{File, FileState};
use crate::fs::journal::Part;

/// A file's state, locked, to look at.
#[derive(Debug)]
pub struct StateRef<'a>(pub(super) MutexGuard<'a, FileState>);

impl Deref for StateRef<'_> {
    type Target = FileState;

    fn deref(&self) -> &FileState {
        &self.0
    }
}

/// A file's state, locked. Changes are recorded before the lock is released.
#[derive(Debug)]
pub struct StateGuard<'a> {
    pub(super) file: &'a File,
    pub(super) state: MutexGuard<'a, FileState>,
    pub(super) changed: bool,
    pub(super) tx: Part<'a>,
}

impl Deref for StateGuard<'_> {
    type Target = FileState;

    fn deref(&self) -> &FileState {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut FileState {
        self.changed = true;
        &mut self.state
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        if !self.changed || !self.file.journal.is_enabled() || std::thread::panicking() {
            return;
        }
        self.file.write_down(&mut self.state, &self.tx);
        if let Part::Own(tx) = &self.tx {
            tx.publish();
        }
    }
}

/// An operation uses the file's bytes: they stay in memory, as for an open handle.
#[derive(Debug)]
pub struct InUse(pub(super) Arc<File>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.0.change_alone();
        state.opens -= 1;
        state.release();
    }
}
