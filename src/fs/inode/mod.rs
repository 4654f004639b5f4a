//! Inodes: what the kernel holds by number.
//!
//! 1. An inode of a file is *one version of one object*; only a local writer changes its bytes. When the
//!    object changes elsewhere the name gets a new inode and the old one is `Replaced`: whoever has it open
//!    keeps the old bytes whole.
//! 2. A directory keeps its inode until rmdir(2), because binds and volumes hold it. The kernel takes a removed directory
//!    for dead as long as it holds it, so one that is made later is another inode.
//! 3. A lookup count is raised before the reply that hands the inode out is sent, and lowered by FORGET; an
//!    inode that nobody holds leaves the table, unless it has bytes that the vault has not.
//!
//! Lock order: `Table` before a file's `state`. Neither is held while something else is awaited or locked, but the
//! journal, to which a [`TableGuard`] writes what was changed when it is let go of.

pub(in crate::fs) mod file;
pub(in crate::fs) mod file_snapshot;
mod node;
mod number;
mod records;
pub(in crate::fs) mod writers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

pub(super) use crate::fs::inode::records::NodeRecord;
pub use crate::fs::inode::records::TableGuard;
pub use node::{ControlFile, ControlText, Dir, DirKind, Node, VersionFile};
use number::{Numbers, What};

use super::journal::{JournalWriter, Key};
use super::name::DirPrefix;
use crate::fs::inode::file::{File, Link, LocalAttr, Stored};
use crate::fs::journal::tracked::Tracked;
use crate::fs::temporary::failed_deletes::FailedDeleteRecord;
use crate::vault::{ObjectId, ObjectName, VersionInfo};

/// The root's inode number, fixed by the FUSE protocol.
pub const ROOT: u64 = 1;

/// Room for inodes that is not worth giving back.
const ROOMY: usize = 4096;
/// So many directories are looked through one by one.
const FEW_DIRS: usize = 16;

#[derive(Debug)]
struct Slot {
    node: Node,
    lookups: u64,
}

/// An object whose name shows nothing, or something new, while its file has a provisional name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DeferredDelete {
    /// The object.
    pub stored: Stored,
    /// The file that has its bytes under another name; `None` if it was unlinked, and goes unless the name is made anew
    /// (`replace`).
    pub backup: Option<u64>,
    /// The name was made anew, and that is not stored yet.
    pub reused: bool,
    /// When it was hidden.
    #[serde(skip, default = "Instant::now")]
    pub since: Instant,
}

/// All inodes, and what is known of names beyond the vault.
#[derive(Debug)]
pub struct Table {
    journal: JournalWriter,
    slots: HashMap<u64, Slot>,
    /// Inodes that are new, gone, or something else than before.
    changed_nodes: Vec<u64>,
    /// Inodes with another number of lookups.
    changed_lookups: Vec<u64>,
    numbers: Numbers,
    dirs: Tracked<HashMap<DirKind, u64>>,
    versions: HashMap<(ObjectId, u64), u64>,
    /// The file that each name shows now.
    files: Tracked<BTreeMap<ObjectName, u64>>,
    /// Directories that exist although no object is in them: made here, or emptied here.
    made: Tracked<BTreeSet<DirPrefix>>,
    /// Objects that were moved away from their names and may come back (`provisional`).
    pub(super) deferred_deletes: Tracked<HashMap<ObjectName, DeferredDelete>>,
    /// Objects that should be gone (`failed_deletes`).
    pub(super) failed_deletes: Tracked<HashMap<ObjectName, FailedDeleteRecord>>,
    /// Names shown as files although other names begin with them: their kind was seen first.
    kind_pins: Tracked<HashSet<ObjectName>>,
    /// Directories that were there once, and whose place is free again, or a file has it.
    vacated: Tracked<HashSet<DirPrefix>>,
    /// Modes, owners and times set here, kept for the life of the mount.
    local: Tracked<HashMap<ObjectName, LocalAttr>>,
    /// The same for directories.
    dir_local: Tracked<HashMap<DirKind, LocalAttr>>,
    /// When the set of names in a directory last changed, and a fingerprint of that set.
    dir_mtimes: Tracked<HashMap<DirKind, (SystemTime, u64)>>,
    /// Moves on whenever names change here.
    changes: u64,
}

impl Table {
    /// A table with the root in it, of the vault that is called `vault`.
    pub fn new(vault: &str) -> Self {
        let mut table = Self {
            journal: JournalWriter::default(),
            slots: HashMap::new(),
            changed_nodes: Vec::new(),
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
        if let Node::File(file) = &slot.node {
            file.register();
        }
        self.slots.insert(ino, slot);
        self.changed_nodes.push(ino);
        self.changed_lookups.push(ino);
    }

    fn remove_slot(&mut self, ino: u64) {
        let Some(Slot { node, .. }) = self.slots.remove(&ino) else { return };
        match &node {
            Node::File(file) => file.unregister(),
            Node::Version(version) => {
                let len = version.object.as_ref().map_or(0, |object| object.content.bytes.len());
                (0..len.div_ceil(super::journal::CHUNK))
                    .for_each(|chunk| self.journal.delete(&Key::Pinned(ino, chunk as u32)));
            }
            Node::Dir(_) | Node::Control(_) => {}
        }
        self.numbers.let_go(node);
        self.changed_nodes.push(ino);
    }

    /// The inode with this number.
    pub fn node(&self, ino: u64) -> Option<Node> {
        self.slots.get(&ino).map(|slot| slot.node.clone())
    }

    /// Counts one more lookup of an inode that is about to be handed to the kernel. A FORGET of the lookups before
    /// may have come since it was found: then it enters again.
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

    /// The kernel gave back `count` lookups.
    pub fn forget(&mut self, ino: u64, count: u64) {
        match self.slots.get_mut(&ino) {
            Some(slot) => {
                slot.lookups = slot.lookups.saturating_sub(count);
                self.changed_lookups.push(ino);
            }
            None => self.numbers.forget(ino),
        }
        self.drop_unheld(ino);
        // After a `find` over everything the kernel forgets it all: no reason to keep room for it.
        if self.slots.len() < self.slots.capacity() / 8 && self.slots.capacity() > ROOMY {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// Lets an inode go if neither the kernel nor unsaved bytes hold it.
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

    /// Lets all go that nobody holds.
    pub(super) fn drop_all_unheld(&mut self) {
        let all: Vec<u64> = self.slots.keys().copied().collect();
        all.into_iter().for_each(|ino| self.drop_unheld(ino));
    }

    /// The directory of that kind; made at its first mention.
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

    /// The directory was removed, as rmdir(2) does it: what has its name from now on is another one.
    pub(super) fn remove_dir(&mut self, kind: &DirKind) {
        if let DirKind::Tree(prefix) = kind {
            self.made.remove(prefix);
            self.vacated.remove(prefix);
        }
        self.dir_local.remove(kind);
        self.dir_mtimes.remove(kind);
        if let Some(ino) = self.dirs.remove(kind) {
            self.drop_unheld(ino);
        }
    }

    /// Whether the directory was removed, and is there for those who hold it.
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

    /// The inode of the directory `old` shows another one from now on, which is told by `node`.
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
        if let Some(touched) = self.dir_mtimes.remove(old) {
            self.dir_mtimes.insert(new, touched);
        }
        let ino = dir.ino;
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.node = node;
            self.changed_nodes.push(ino);
        }
    }

    /// The number of the directory of that kind, if the kernel has ever been told of it.
    pub fn dir_ino(&self, kind: &DirKind) -> Option<u64> {
        self.dirs.get(kind).copied()
    }

    /// The inode of an old version; made by `make` from its number. One that was made while the bytes were not
    /// to be had gives way to one that has them.
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

    /// An inode for a control file's text as it is now.
    pub fn control(&mut self, text: Vec<u8>, taken: SystemTime) -> Node {
        let control = Arc::new(ControlText { ino: self.fresh(What::Control), taken, text });
        let node = Node::Control(control.clone());
        self.insert_slot(control.ino, Slot { node: node.clone(), lookups: 0 });
        node
    }

    /// The file that `name` shows now, if there is an inode for it.
    pub fn file(&self, name: &ObjectName) -> Option<Arc<File>> {
        match self.slots.get(self.files.get(name)?).map(|slot| &slot.node) {
            Some(Node::File(file)) => Some(file.clone()),
            _ => None,
        }
    }

    /// From now on `name` shows a new inode, made by `make` from its number.
    pub fn put_file(&mut self, name: &ObjectName, make: impl FnOnce(u64, LocalAttr) -> File) -> Arc<File> {
        let local = self.local.get(name).cloned().unwrap_or_default();
        let mut file = make(self.fresh(What::File(name)), local);
        file.journal = self.journal.clone();
        let file = Arc::new(file);
        self.insert_slot(file.ino, Slot { node: Node::File(file.clone()), lookups: 0 });
        self.files.insert(name.clone(), file.ino);
        file
    }

    /// A file that no name shows yet, made by `make` from its number.
    pub fn add_nameless(
        &mut self,
        name: &ObjectName,
        make: impl FnOnce(u64, LocalAttr) -> File,
    ) -> Arc<File> {
        let local = self.local.get(name).cloned().unwrap_or_default();
        let mut file = make(self.fresh(What::File(name)), local);
        file.journal = self.journal.clone();
        let file = Arc::new(file);
        file.state().link = Link::Replaced;
        self.insert_slot(file.ino, Slot { node: Node::File(file.clone()), lookups: 0 });
        file
    }

    /// Whether the kernel holds the inode.
    pub fn is_held(&self, ino: u64) -> bool {
        self.slots.get(&ino).is_some_and(|slot| slot.lookups > 0)
    }

    /// `name` shows this inode, which is in the table already.
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

    /// The inode is to be written down again.
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

    /// The names that begin with `prefix` and show a file inode: for files the vault does not have yet.
    pub fn files_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a ObjectName, Arc<File>)> {
        let from = self.files.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let within = from.take_while(move |(name, _)| name.as_str().starts_with(prefix));
        within.filter_map(|(name, ino)| match self.slots.get(ino).map(|slot| &slot.node) {
            Some(Node::File(file)) => Some((name, file.clone())),
            _ => None,
        })
    }

    /// A file may show where `dir` was.
    pub fn vacate(&mut self, dir: &DirPrefix) {
        if self.dirs.contains_key(&DirKind::Tree(dir.clone())) {
            self.vacated.insert(dir.clone());
        }
    }

    /// A file was made in `under` or moved there.
    pub fn file_made(&mut self, under: &DirPrefix, name: &ObjectName) {
        // As `.self` it is in the directory of its name, and takes nobody's place.
        if under.self_name().as_ref() != Some(name)
            && let Some(dir) = DirPrefix::new(&format!("{}/", name.as_str()))
        {
            self.vacate(&dir);
        }
    }

    /// Whether `dir` is a directory that has been seen, and no file has its place.
    pub fn is_seen_dir(&self, dir: &DirPrefix) -> bool {
        self.dirs.contains_key(&DirKind::Tree(dir.clone())) && !self.vacated.contains(dir)
    }

    /// The directory that has the name of the object `name`, if it is a seen one.
    pub fn seen_dir_of(&self, name: &ObjectName) -> Option<DirPrefix> {
        // Listings ask for each name; mostly there are few directories, and a glance at each is less than a hash.
        let is_it = |kind: &DirKind| matches!(kind, DirKind::Tree(dir) if dir.as_str().strip_suffix('/') == Some(name.as_str()));
        if self.dirs.len() <= FEW_DIRS && !self.dirs.keys().any(is_it) {
            return None;
        }
        Some(DirPrefix::of_name(name)).filter(|dir| self.is_seen_dir(dir))
    }

    /// Whether `name` was first seen as a file, so that it stays one while others begin with it.
    pub fn is_kept_a_file(&self, name: &ObjectName) -> bool {
        self.kind_pins.contains(name) || self.files.contains_key(name)
    }

    /// `name` stays a file for the life of the mount. True the first time.
    pub fn pin_as_file(&mut self, name: &ObjectName) -> bool {
        self.kind_pins.insert(name.clone())
    }

    /// Nothing is decided about the kind of `name` any more: it was unlinked here.
    pub fn unpin(&mut self, name: &ObjectName) {
        self.kind_pins.remove(name);
        self.local.remove(name);
        self.failed_deletes.remove(name);
    }

    /// Directories that were made here.
    pub fn made(&mut self) -> &mut Tracked<BTreeSet<DirPrefix>> {
        &mut self.made
    }

    /// Whether `prefix` or something below it was made here.
    pub fn is_made(&self, prefix: &DirPrefix) -> bool {
        self.made.contains(prefix) || self.made.iter().any(|made| made.as_str().starts_with(prefix.as_str()))
    }

    /// mkdir(2).
    pub fn make_dir(&mut self, dir: DirPrefix) {
        if let Some(own) = dir.self_name() {
            self.local.remove(&own);
        }
        self.made.insert(dir);
    }

    /// Whether `dir` was made here, and nothing was made here in it: neither the object of its name, as `.self`.
    pub fn is_made_and_bare(&self, dir: &DirPrefix) -> bool {
        let within = |other: &str| other.len() > dir.as_str().len() && other.starts_with(dir.as_str());
        self.made.contains(dir)
            && dir.self_name().is_some_and(|own| !self.local.contains_key(&own))
            && !self.made.iter().any(|made| within(made.as_str()))
            && !self.deferred_deletes.keys().any(|name| within(name.as_str()))
            && !self.files_under(dir.as_str()).any(|(_, file)| file.state().is_beyond_vault())
    }

    /// What was set here for `name`.
    pub fn local(&mut self, name: &ObjectName) -> &mut LocalAttr {
        self.local.or_default(name)
    }

    /// What was set here for `name`.
    pub fn local_of(&self, name: &ObjectName) -> Option<&LocalAttr> {
        self.local.get(name)
    }

    /// What was set here for files and directories.
    pub fn all_local(&self) -> impl Iterator<Item = &LocalAttr> {
        self.local.values().chain(self.dir_local.values())
    }

    /// What was set here for a directory.
    pub fn dir_local(&mut self, kind: &DirKind) -> &mut LocalAttr {
        self.dir_local.or_default(kind)
    }

    /// The same, to look at.
    pub fn dir_local_of(&self, kind: &DirKind) -> Option<&LocalAttr> {
        self.dir_local.get(kind)
    }

    /// What is made in a directory belongs to whom the directory was given, if it was.
    pub fn give(&self, made: &mut LocalAttr, under: &DirPrefix) {
        if let Some(dir) = self.dir_local_of(&DirKind::Tree(under.clone())) {
            made.uid = made.uid.or(dir.uid);
            made.gid = made.gid.or(dir.gid);
        }
    }

    /// When the set of names in a directory last changed.
    pub fn touched(&self, kind: &DirKind) -> Option<SystemTime> {
        self.dir_mtimes.get(kind).map(|(at, _)| *at)
    }

    /// The set of names in a directory changed here.
    pub fn touch(&mut self, kind: &DirKind, now: SystemTime) {
        self.changes += 1;
        self.dir_mtimes.insert(kind.clone(), (now, 0));
    }

    /// The set of names in a directory changed here: it stays, as in any file system, until rmdir.
    pub fn names_changed_in(&mut self, dir: &DirPrefix, now: SystemTime) {
        if !dir.is_root() && !dir.is_continuation() {
            self.made.insert(dir.clone());
        }
        self.touch(&DirKind::Tree(dir.clone()), now);
    }

    /// Moves on whenever names change here.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Names that are shown may have changed in some directory.
    pub fn names_changed(&mut self) {
        self.changes += 1;
    }

    /// A directory was listed and its names have this fingerprint: a change means that they changed elsewhere. The
    /// first time shows no change, and the time stays what it was shown as, `since`: a newer one would make the
    /// kernel drop the names.
    pub fn seen_names(&mut self, kind: &DirKind, fingerprint: u64, now: SystemTime, since: SystemTime) {
        let at = match self.dir_mtimes.get(kind) {
            Some((_, old)) if *old == fingerprint => return,
            Some((at, 0)) => *at,
            Some(_) => now,
            None => since,
        };
        self.dir_mtimes.insert(kind.clone(), (at, fingerprint));
    }

    /// Number of inodes.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    fn fresh(&mut self, what: What<'_>) -> u64 {
        let Self { slots, deferred_deletes, numbers, .. } = self;
        // What hides an object is known by its number, also when it has left the table.
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
        // The next lookup has found it and not counted yet when this comes.
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
