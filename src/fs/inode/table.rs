//! The inode table behind its lock, which publishes what was changed under it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::{Mutex, MutexGuard};

use crate::fs::inode::{Node, Table};
use crate::fs::journal::{Part, Transaction};
use crate::fs::types::env::Env;
use crate::fs::types::errno::{Errno, Result};

/// The inode table behind its lock, which is taken before the lock of a file's state.
pub struct InodeTable {
    pub(super) env: Arc<Env>,
    table: Mutex<Table>,
    /// Bytes that inodes keep beside the cache (`retained`).
    pub(super) retained: Arc<AtomicU64>,
}

impl InodeTable {
    /// With the root alone.
    pub fn new(env: Arc<Env>) -> Arc<Self> {
        let table = Mutex::new(Table::new(&env.options().vault));
        Arc::new(Self { table, retained: Arc::default(), env })
    }

    /// The table, locked, with a transaction of its own.
    pub fn lock(&self) -> TableGuard<'_> {
        let table = self.table.lock();
        TableGuard { changed: false, tx: Part::Own(table.journal.begin()), table }
    }

    /// The table, locked, to change it together with files: `tx` is published with it.
    pub fn lock_in<'a>(&'a self, tx: &'a Transaction) -> TableGuard<'a> {
        TableGuard { changed: false, tx: Part::Of(tx), table: self.table.lock() }
    }

    /// The inode that the kernel names by this number.
    pub fn node(&self, ino: u64) -> Result<Node> {
        self.lock().node(ino).ok_or(Errno::ESTALE)
    }
}

/// The table, locked. What was changed in it, and in files as a part of its transaction, is
/// published together before the lock is released: changes of the table build on each other.
#[derive(Debug)]
pub struct TableGuard<'a> {
    changed: bool,
    tx: Part<'a>,
    table: MutexGuard<'a, Table>,
}

impl Deref for TableGuard<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for TableGuard<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        self.changed = true;
        &mut self.table
    }
}

impl Drop for TableGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if self.changed {
            self.table.write_down(&self.tx);
        }
        self.tx.publish();
    }
}
