//! Inodes: what the kernel holds by number.
//!
//! 1. The inode of a file is *one version of one object*; only a local writer changes its bytes.
//!    When the object changes elsewhere the name gets a new inode and the old one is `Replaced`:
//!    open handles keep the old bytes whole.
//! 2. A directory keeps its inode until rmdir(2), because binds and volumes hold it. The kernel
//!    treats a removed directory as dead while it holds it, so a new one of that name is another
//!    inode.
//! 3. A lookup count is raised before the reply with the inode is sent, and lowered by FORGET. An
//!    inode without holders leaves the table, unless it has bytes that the vault lacks.
//!
//! Lock order: the table before a file's `state`. While either is held nothing is awaited, and only
//! leaves (such as the cache and the quota) and the journal are locked. The guard of each writes
//! the changes to the journal when it is dropped.

pub(in crate::fs) mod buffer;
mod deletes;
pub(in crate::fs) mod file;
pub(in crate::fs) mod file_snapshot;
pub(in crate::fs) mod guard;
mod names;
mod node;
mod number;
mod records;
pub(in crate::fs) mod retained;
mod table;
pub(in crate::fs) mod writers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

pub(super) use crate::fs::inode::deletes::{DeferredDelete, FailedDeleteRecord};
pub(super) use crate::fs::inode::records::NodeRecord;
pub use crate::fs::inode::table::InodeTable;
pub use crate::fs::name::DirKind;
pub use node::{ControlFile, ControlText, Dir, Node, VersionFile};
use number::{Numbers, What};

use crate::fs::inode::file::{File, Link, LocalAttr};
use crate::fs::journal::JournalWriter;
use crate::fs::journal::tracked::Tracked;
use crate::fs::name::DirPrefix;
use crate::vault::{ObjectId, ObjectName, VersionInfo};

/// The root's inode number, fixed by the FUSE protocol.
pub const ROOT: u64 = 1;

/// Capacity below this is not returned.
const ROOMY: usize = 4096;
/// Up to so many directories are searched linearly.
const FEW_DIRS: usize = 16;

#[derive(Debug)]
struct Slot {
    node: Node,
    lookups: u64,
}

/// All inodes, and what is known of names beyond the vault.
#[derive(Debug)]
pub struct Table {
    journal: JournalWriter,
    slots: HashMap<u64, Slot>,
    /// Inodes that were added, removed or changed.
    changed_nodes: Vec<u64>,
    /// What was removed, until that is written down.
    removed: Vec<Node>,
    /// Inodes with another lookup count.
    changed_lookups: Vec<u64>,
    numbers: Numbers,
    dirs: Tracked<HashMap<DirKind, u64>>,
    versions: HashMap<(ObjectId, u64), u64>,
    /// The file that each name shows now.
    files: Tracked<BTreeMap<ObjectName, u64>>,
    /// Directories without an object: made here, or emptied here.
    made: Tracked<BTreeSet<DirPrefix>>,
    /// Objects moved away from their names, which may come back (`provisional`).
    deferred_deletes: Tracked<HashMap<ObjectName, DeferredDelete>>,
    /// Objects with a failed deletion (`failed_deletes`).
    failed_deletes: Tracked<HashMap<ObjectName, FailedDeleteRecord>>,
    /// Names shown as files although other names begin with them: first seen as files.
    kind_pins: Tracked<HashSet<ObjectName>>,
    /// Former directories: their place is free, or taken by a file.
    vacated: Tracked<HashSet<DirPrefix>>,
    /// Modes, owners and times set here, kept for the life of the mount.
    local: Tracked<HashMap<ObjectName, LocalAttr>>,
    /// The same for directories.
    dir_local: Tracked<HashMap<DirKind, LocalAttr>>,
    /// When the set of names in a directory last changed, and a fingerprint of that set.
    dir_mtimes: Tracked<HashMap<DirKind, (SystemTime, u64)>>,
    /// Counts local changes of names.
    changes: u64,
}

impl Table {
    /// A table with the root, for the vault of that name.
    pub fn new(vault: &str) -> Self {
        let mut table = Self {
            journal: JournalWriter::default(),
            slots: HashMap::new(),
            changed_nodes: Vec::new(),
            removed: Vec::new(),
            changed_lookups: Vec::new(),
            numbers: Numbers::of(vault),
            dirs: Tracked::default(),
            versions: HashMap::new(),
            files: Tracked::default(),
            made: Tracked::default(),
            deferred_deletes: Tracked::default(),
            failed_deletes: Tracked::default(),
            kind_pins: Tracked::default(),
            vacated: Tracked::default(),
            local: Tracked::default(),
            dir_local: Tracked::default(),
            dir_mtimes: Tracked::default(),
            changes: 0,
        };
        let kind = DirKind::Tree(DirPrefix::root());
        table.dirs.restore(kind.clone(), ROOT);
        table.slots.insert(ROOT, Slot { node: Node::Dir(Arc::new(Dir { ino: ROOT, kind })), lookups: 1 });
        table
    }

    fn insert_slot(&mut self, ino: u64, slot: Slot) {
        self.slots.insert(ino, slot);
        self.changed_nodes.push(ino);
        self.changed_lookups.push(ino);
    }

    fn remove_slot(&mut self, ino: u64) {
        let Some(Slot { node, .. }) = self.slots.remove(&ino) else { return };
        self.removed.push(node.clone());
        self.numbers.let_go(node);
        self.changed_nodes.push(ino);
    }

    /// The inode with this number.
    pub fn node(&self, ino: u64) -> Option<Node> {
        self.slots.get(&ino).map(|slot| slot.node.clone())
    }

    /// Counts one more lookup of an inode that is about to be passed to the kernel. A FORGET of the
    /// earlier lookups may have removed it: then it is inserted again.
    pub fn hold(&mut self, node: &Node) {
        let ino = node.ino();
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.lookups = slot.lookups.saturating_add(1);
            self.changed_lookups.push(ino);
            return;
        }
        match node {
            Node::Dir(_) | Node::Control(_) => {}
            Node::File(file) => {
                let (name, shows) = {
                    let state = file.state();
                    (state.name.clone(), state.link == Link::Current)
                };
                if shows && !self.files.contains_key(&name) {
                    self.files.insert(name, ino);
                }
            }
            Node::Version(version) => {
                self.versions.insert((version.id.clone(), version.info.number), ino);
            }
        }
        self.insert_slot(ino, Slot { node: node.clone(), lookups: 1 });
    }

    /// FORGET: the kernel released `count` lookups.
    pub fn forget(&mut self, ino: u64, count: u64) {
        match self.slots.get_mut(&ino) {
            Some(slot) => {
                slot.lookups = slot.lookups.saturating_sub(count);
                self.changed_lookups.push(ino);
            }
            None => self.numbers.forget(ino),
        }
        self.drop_unheld(ino);
        // After a `find` over everything the kernel forgets it all: the capacity is returned.
        if self.slots.len() < self.slots.capacity() / 8 && self.slots.capacity() > ROOMY {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// Removes an inode that neither the kernel nor unsaved bytes hold.
    pub fn drop_unheld(&mut self, ino: u64) {
        let Some(slot) = self.slots.get(&ino) else { return };
        if slot.lookups > 0 {
            return;
        }
        match &slot.node {
            Node::Dir(dir) => {
                if self.is_removed(dir) {
                    self.remove_slot(ino);
                }
            }
            Node::File(file) => {
                let (name, needed) = {
                    let state = file.state();
                    (state.name.clone(), state.is_needed())
                };
                if !needed {
                    if self.files.get(&name) == Some(&ino) {
                        self.files.remove(&name);
                    }
                    self.remove_slot(ino);
                }
            }
            Node::Version(_) => {
                self.versions.retain(|_, at| *at != ino);
                self.remove_slot(ino);
            }
            Node::Control(_) => {
                self.remove_slot(ino);
            }
        }
    }

    /// Removes all inodes without holders.
    pub(super) fn drop_all_unheld(&mut self) {
        let all: Vec<u64> = self.slots.keys().copied().collect();
        all.into_iter().for_each(|ino| self.drop_unheld(ino));
    }

    /// The directory of that kind; inserted at its first use.
    pub fn dir(&mut self, kind: &DirKind) -> Arc<Dir> {
        if let DirKind::Tree(prefix) = kind {
            self.vacated.remove(prefix);
        }
        if let Some(ino) = self.dirs.get(kind)
            && let Some(Slot { node: Node::Dir(dir), .. }) = self.slots.get(ino)
        {
            return dir.clone();
        }
        let dir = Arc::new(Dir { ino: self.fresh(What::Dir(kind)), kind: kind.clone() });
        self.dirs.insert(kind.clone(), dir.ino);
        self.insert_slot(dir.ino, Slot { node: Node::Dir(dir.clone()), lookups: 0 });
        dir
    }

    /// rmdir(2): the name gets another inode from now on. The number of the one that it had.
    pub(super) fn remove_dir(&mut self, kind: &DirKind) -> Option<u64> {
        if let DirKind::Tree(prefix) = kind {
            self.made.remove(prefix);
            self.vacated.remove(prefix);
        }
        self.dir_local.remove(kind);
        self.dir_mtimes.remove(kind);
        let gone = self.dirs.remove(kind);
        gone.into_iter().for_each(|ino| self.drop_unheld(ino));
        gone
    }

    /// Whether the directory was removed, and exists only for its holders.
    pub(super) fn is_removed(&self, dir: &Dir) -> bool {
        self.dirs.get(&dir.kind) != Some(&dir.ino)
    }

    /// The numbers of all directories.
    pub fn all_dirs(&self) -> Vec<u64> {
        self.dirs.values().copied().collect()
    }

    /// All directories of the tree that have inodes.
    pub(super) fn dirs_of_the_tree(&self) -> Vec<(DirKind, Arc<Dir>)> {
        let dirs = self.slots.values().filter_map(|slot| match &slot.node {
            Node::Dir(dir) if matches!(dir.kind, DirKind::Tree(_)) => Some((dir.kind.clone(), dir.clone())),
            _ => None,
        });
        dirs.collect()
    }

    /// The inode of the directory `old` shows the directory of `node` from now on.
    pub(super) fn rename_dir(&mut self, old: &DirKind, node: Node) {
        let Node::Dir(dir) = &node else { return };
        let new = dir.kind.clone();
        if self.dirs.get(old) != Some(&dir.ino) {
            return;
        }
        self.dirs.remove(old);
        self.remove_dir(&new);
        self.dirs.insert(new.clone(), dir.ino);
        if let Some(local) = self.dir_local.remove(old) {
            self.dir_local.insert(new.clone(), local);
        }
        if let Some(mtime) = self.dir_mtimes.remove(old) {
            self.dir_mtimes.insert(new, mtime);
        }
        let ino = dir.ino;
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.node = node;
            self.changed_nodes.push(ino);
        }
    }

    /// The number of the directory of that kind, if the kernel was ever given it.
    pub fn dir_ino(&self, kind: &DirKind) -> Option<u64> {
        self.dirs.get(kind).copied()
    }

    /// The inode of an old version; made by `make` from its number. One made without its bytes is
    /// replaced by one that has them.
    pub fn version(
        &mut self,
        (id, info): (&ObjectId, &VersionInfo),
        has_bytes: bool,
        make: impl FnOnce(u64) -> VersionFile,
    ) -> Arc<VersionFile> {
        let key = (id.clone(), info.number);
        if let Some(ino) = self.versions.get(&key)
            && let Some(Slot { node: Node::Version(version), .. }) = self.slots.get(ino)
            && (version.object.is_some() || !has_bytes)
            && version.info.created_at == info.created_at
        {
            return version.clone();
        }
        let version = Arc::new(make(self.fresh(What::Version(id, info.number))));
        self.versions.insert(key, version.ino);
        self.insert_slot(version.ino, Slot { node: Node::Version(version.clone()), lookups: 0 });
        version
    }

    /// An inode for the present text of a control file.
    pub fn control(&mut self, text: Vec<u8>, taken: SystemTime) -> Node {
        let control = Arc::new(ControlText { ino: self.fresh(What::Control), taken, text });
        let node = Node::Control(control.clone());
        self.insert_slot(control.ino, Slot { node: node.clone(), lookups: 0 });
        node
    }

    /// The file that `name` shows, if it has an inode.
    pub fn file(&self, name: &ObjectName) -> Option<Arc<File>> {
        match self.slots.get(self.files.get(name)?).map(|slot| &slot.node) {
            Some(Node::File(file)) => Some(file.clone()),
            _ => None,
        }
    }

    /// `name` shows a new inode from now on, made by `make` from its number.
    pub fn put_file(&mut self, name: &ObjectName, make: impl FnOnce(u64, LocalAttr) -> File) -> Arc<File> {
        let file = self.add_file(name, make);
        self.files.insert(name.clone(), file.ino);
        file
    }

    fn add_file(&mut self, name: &ObjectName, make: impl FnOnce(u64, LocalAttr) -> File) -> Arc<File> {
        let local = self.local.get(name).cloned().unwrap_or_default();
        let mut file = make(self.fresh(What::File(name)), local);
        file.journal = self.journal.clone();
        let file = Arc::new(file);
        self.insert_slot(file.ino, Slot { node: Node::File(file.clone()), lookups: 0 });
        file
    }

    /// The number of a file in listings: the one that a lookup gives it, or would.
    pub fn listed_file(&mut self, name: &ObjectName) -> u64 {
        self.files.get(name).copied().unwrap_or_else(|| self.fresh(What::File(name)))
    }

    /// The same of a directory.
    pub fn listed_dir(&mut self, dir: &DirPrefix) -> u64 {
        let dir = DirKind::Tree(dir.clone());
        self.dir_ino(&dir).unwrap_or_else(|| self.fresh(What::Dir(&dir)))
    }

    /// A file without a name, made by `make` from its number.
    pub fn add_nameless(
        &mut self,
        name: &ObjectName,
        make: impl FnOnce(u64, LocalAttr) -> File,
    ) -> Arc<File> {
        let file = self.add_file(name, make);
        file.change_alone().link = Link::Replaced;
        file
    }

    /// Whether the kernel holds the inode.
    pub fn is_held(&self, ino: u64) -> bool {
        self.slots.get(&ino).is_some_and(|slot| slot.lookups > 0)
    }

    /// `name` shows this inode, which is in the table.
    pub fn point(&mut self, name: &ObjectName, ino: u64) {
        self.files.insert(name.clone(), ino);
    }

    /// `name` shows nothing any more, if it still showed `ino`.
    pub fn unpoint(&mut self, name: &ObjectName, ino: u64) {
        if self.files.get(name) == Some(&ino) {
            self.files.remove(name);
        }
    }

    /// All files that the table holds.
    pub fn all_files(&self) -> impl Iterator<Item = Arc<File>> {
        self.slots.values().filter_map(|slot| match &slot.node {
            Node::File(file) => Some(file.clone()),
            Node::Dir(_) | Node::Version(_) | Node::Control(..) => None,
        })
    }

    /// Marks the inode for the journal.
    pub(super) fn note_node(&mut self, ino: u64) {
        self.changed_nodes.push(ino);
    }

    /// All old versions that the table holds.
    pub fn all_versions(&self) -> Vec<Arc<VersionFile>> {
        let versions = self.slots.values().filter_map(|slot| match &slot.node {
            Node::Version(version) => Some(version.clone()),
            Node::File(_) | Node::Dir(_) | Node::Control(..) => None,
        });
        versions.collect()
    }

    /// The names that begin with `prefix` and show a file inode: for files that the vault lacks.
    pub fn files_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a ObjectName, Arc<File>)> {
        let from = self.files.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let within = from.take_while(move |(name, _)| name.as_str().starts_with(prefix));
        within.filter_map(|(name, ino)| match self.slots.get(ino).map(|slot| &slot.node) {
            Some(Node::File(file)) => Some((name, file.clone())),
            _ => None,
        })
    }

    /// Number of inodes.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    fn fresh(&mut self, what: What<'_>) -> u64 {
        let Self { slots, deferred_deletes, numbers, .. } = self;
        // The number of a file with a deferred delete stays reserved after it has left the table.
        let hides = |ino| deferred_deletes.values().any(|hidden| hidden.backup == Some(ino));
        numbers.first_free(what, |ino| slots.contains_key(&ino) || hides(ino))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_that_is_forgotten_while_it_is_looked_up_enters_again() {
        let mut table = Table::new("v");
        let name = ObjectName::new("f").unwrap();
        let file = table.put_file(&name, |ino, local| File::new(ino, name.clone(), local));
        let node = Node::File(file.clone());
        table.hold(&node);
        // A lookup found it and has not counted it yet when this FORGET arrives.
        table.forget(file.ino, 1);
        assert!(table.node(file.ino).is_none());
        table.hold(&node);
        assert!(table.node(file.ino).is_some());
        assert_eq!(table.file(&name).map(|f| f.ino), Some(file.ino));
        table.forget(file.ino, 1);
        assert_eq!(table.len(), 1, "the root");
    }

    #[test]
    fn room_for_inodes_that_were_forgotten_is_given_back() {
        let mut table = Table::new("v");
        let names: Vec<_> = (0..100_000).map(|n| ObjectName::new(&n.to_string()).unwrap()).collect();
        let mut held = Vec::new();
        for name in &names {
            let file = table.put_file(name, |ino, local| File::new(ino, name.clone(), local));
            table.hold(&Node::File(file.clone()));
            held.push(file.ino);
        }
        assert!(table.slots.capacity() >= 100_000);
        held.iter().for_each(|ino| table.forget(*ino, 1));
        assert!(table.len() == 1 && table.slots.capacity() <= 2 * ROOMY, "{}", table.slots.capacity());
    }
}
