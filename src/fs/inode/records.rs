//! The table as it is written down, for the next worker: what was changed goes to the journal, all
//! of it together, before the lock on the table is released (`table`).

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::fs::inode::file_snapshot::record_chunks;
use crate::fs::inode::{DirKind, Node, Slot, Table};
use crate::fs::journal::{CHUNK, JournalWriter, Key, Transaction};
use crate::vault::{Form, ObjectId, ObjectName, VersionInfo};

/// An inode as it is written down; a file's state has a record of its own.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) enum NodeRecord {
    /// A directory.
    Dir(DirKind),
    /// A file.
    File,
    /// An old version; its form, and how many bytes it has, where there are bytes.
    Version { name: ObjectName, id: ObjectId, info: VersionInfo, bytes: Option<(Form, usize)>, refused: bool },
    /// A control file's text, and when it was taken.
    Control(SystemTime, Vec<u8>),
}

impl NodeRecord {
    fn of(node: &Node) -> Self {
        match node {
            Node::Dir(dir) => Self::Dir(dir.kind.clone()),
            Node::File(_) => Self::File,
            Node::Version(version) => Self::Version {
                name: version.name.clone(),
                id: version.id.clone(),
                info: version.info.clone(),
                bytes: version.object.as_ref().map(|o| (o.content.form, o.content.bytes.len())),
                refused: version.refused.load(Ordering::Acquire),
            },
            Node::Control(control) => Self::Control(control.taken, control.text.clone()),
        }
    }
}

impl Table {
    /// From now on what changes is written down.
    pub(in crate::fs) fn write_with(&mut self, journal: JournalWriter) {
        self.journal = journal;
    }

    /// Writes down what was changed since the last time.
    pub(super) fn write_down(&mut self, tx: &Transaction) {
        for node in std::mem::take(&mut self.removed) {
            // It may have entered again.
            if !self.slots.contains_key(&node.ino()) {
                forget_bytes(&node, tx);
            }
        }
        for ino in std::mem::take(&mut self.changed_nodes) {
            match self.slots.get(&ino) {
                Some(slot) => {
                    tx.record(&Key::Node(ino), &NodeRecord::of(&slot.node));
                    match &slot.node {
                        Node::File(file) => file.register(tx),
                        Node::Version(version) => {
                            let bytes = version.object.as_ref().map(|object| object.content.bytes.expose());
                            record_chunks(tx, ino, bytes.unwrap_or_default());
                        }
                        Node::Dir(_) | Node::Control(_) => {}
                    }
                }
                None => {
                    tx.delete(&Key::Node(ino));
                    tx.delete(&Key::Lookups(ino));
                }
            }
        }
        for ino in std::mem::take(&mut self.changed_lookups) {
            if let Some(slot) = self.slots.get(&ino) {
                tx.record(&Key::Lookups(ino), &slot.lookups);
            }
        }
        self.dirs.write_down(tx, Key::Dir);
        self.files.write_down(tx, Key::Name);
        self.made.write_down(tx, Key::Made);
        self.deferred_deletes.write_down(tx, Key::DeferredDelete);
        self.failed_deletes.write_down(tx, Key::FailedDelete);
        self.kind_pins.write_down(tx, Key::KindPin);
        self.vacated.write_down(tx, Key::Vacated);
        self.local.write_down(tx, Key::Local);
        self.dir_local.write_down(tx, Key::DirLocal);
        self.dir_mtimes.write_down(tx, Key::DirMtime);
    }

    /// It is no longer known what else the kernel holds: from now on other numbers are given out
    /// than before.
    pub(in crate::fs) fn give_other_numbers(&mut self) {
        self.numbers.salt = self.numbers.salt.wrapping_add(u64::from(std::process::id())) % (1 << 40) + 1;
        self.journal.record(&Key::Salt, &self.numbers.salt);
    }

    /// Puts back an inode that is written down. Nothing refers to it yet.
    pub(in crate::fs) fn restore_node(&mut self, node: Node, lookups: u64) {
        let ino = node.ino();
        match &node {
            Node::Version(version) => {
                // Of two the one with bytes is the later one.
                let key = (version.id.clone(), version.info.number);
                if version.object.is_some() || !self.versions.contains_key(&key) {
                    self.versions.insert(key, ino);
                }
            }
            Node::Dir(_) | Node::File(_) | Node::Control(_) => {}
        }
        self.slots.insert(ino, Slot { node, lookups });
    }

    /// Puts back what else is written down, if it is the table's. `None` for what makes no sense.
    pub(in crate::fs) fn restore(&mut self, key: Key, value: &[u8]) -> Option<()> {
        use postcard::from_bytes as read;
        match key {
            Key::Salt => self.numbers.salt = read(value).ok()?,
            Key::Lookups(ino) if !self.slots.contains_key(&ino) => self.numbers.is_held_by_the_kernel(ino),
            Key::Dir(kind) => self.dirs.restore(kind, read(value).ok()?),
            Key::Name(name) => self.files.restore(name, read(value).ok()?),
            Key::Made(dir) => self.made.restore(dir, ()),
            Key::DeferredDelete(name) => self.deferred_deletes.restore(name, read(value).ok()?),
            Key::FailedDelete(name) => self.failed_deletes.restore(name, read(value).ok()?),
            Key::KindPin(name) => self.kind_pins.restore(name, ()),
            Key::Vacated(dir) => self.vacated.restore(dir, ()),
            Key::Local(name) => self.local.restore(name, read(value).ok()?),
            Key::DirLocal(kind) => self.dir_local.restore(kind, read(value).ok()?),
            Key::DirMtime(kind) => self.dir_mtimes.restore(kind, read(value).ok()?),
            _ => {}
        }
        Some(())
    }
}

/// Of an inode that has left the table nothing is left.
fn forget_bytes(node: &Node, tx: &Transaction) {
    match node {
        Node::File(file) => file.unregister(tx),
        Node::Version(version) => {
            let len = version.object.as_ref().map_or(0, |object| object.content.bytes.len());
            let chunks = 0..len.div_ceil(CHUNK);
            chunks.for_each(|chunk| tx.delete(&Key::Pinned(version.ino, chunk as u32)));
        }
        Node::Dir(_) | Node::Control(_) => {}
    }
}
