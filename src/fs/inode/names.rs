//! What the table knows of names beyond the vault: which stay files, which directories exist
//! without an object, what was set here for them, and when their names changed.

use std::collections::BTreeSet;
use std::time::SystemTime;

use crate::fs::inode::file::LocalAttr;
use crate::fs::inode::{DirKind, FEW_DIRS, Table};
use crate::fs::journal::tracked::Tracked;
use crate::fs::name::DirPrefix;
use crate::vault::ObjectName;

impl Table {
    /// A file may show where `dir` was.
    pub fn vacate(&mut self, dir: &DirPrefix) {
        if self.dirs.contains_key(&DirKind::Tree(dir.clone())) {
            self.vacated.insert(dir.clone());
        }
    }

    /// A file was made in `under` or moved there.
    pub fn file_made(&mut self, under: &DirPrefix, name: &ObjectName) {
        // As `.self` it is in the directory of its name, and displaces no other entry.
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
        // Listings ask for each name; mostly there are few directories, and a glance at each is
        // less than a hash.
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

    /// Whether `dir` was made here, and nothing was made here in it: neither the object of its
    /// name, as `.self`.
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

    /// What is made in a directory gets the owner that was set on the directory, if any.
    pub fn give(&self, made: &mut LocalAttr, under: &DirPrefix) {
        if let Some(dir) = self.dir_local_of(&DirKind::Tree(under.clone())) {
            made.uid = made.uid.or(dir.uid);
            made.gid = made.gid.or(dir.gid);
        }
    }

    /// When the set of names in a directory last changed.
    pub fn dir_mtime(&self, kind: &DirKind) -> Option<SystemTime> {
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

    /// A directory was listed and its names have this fingerprint: a change means that they changed
    /// elsewhere. The first time shows no change, and the time stays what it was shown as, `since`:
    /// a newer one would make the kernel drop the names.
    pub fn seen_names(&mut self, kind: &DirKind, fingerprint: u64, now: SystemTime, since: SystemTime) {
        let at = match self.dir_mtimes.get(kind) {
            Some((_, old)) if *old == fingerprint => return,
            Some((at, 0)) => *at,
            Some(_) => now,
            None => since,
        };
        self.dir_mtimes.insert(kind.clone(), (at, fingerprint));
    }
}
