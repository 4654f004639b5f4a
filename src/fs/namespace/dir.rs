//! What a directory shows. A listing needs all names and no values. Directories exist because names
//! imply them; one that was made or emptied here stays until rmdir.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::fs::inode::file::File;
use crate::fs::inode::{ControlFile, Dir, DirKind, Node, Table};
use crate::fs::name;
use crate::fs::name::{CONTROL, DirPrefix, Rest, SELF, VERSIONS};
use crate::fs::namespace::Namespace;
use crate::fs::namespace::listing::DirEntry;
use crate::fs::types::attr::FileKind;
use crate::fs::types::errno::{Errno, Result};
use crate::vault::ObjectName;
use crate::vault::cache::Peek;

impl Namespace {
    /// The directory with this number.
    pub(in crate::fs) fn directory(&self, ino: u64) -> Result<Arc<Dir>> {
        let table = self.inodes.lock();
        match table.node(ino).ok_or(Errno::ESTALE)? {
            Node::Dir(dir) if table.is_removed(&dir) => Err(Errno::ENOENT),
            Node::Dir(dir) => Ok(dir),
            Node::File(_) | Node::Version(_) | Node::Control(..) => Err(Errno::ENOTDIR),
        }
    }

    /// The prefix of a directory in which objects can be changed.
    pub(in crate::fs) fn changeable(&self, parent: u64) -> Result<DirPrefix> {
        let dir = self.directory(parent)?;
        if self.env.options().read_only {
            return Err(Errno::EROFS);
        }
        match &dir.kind {
            DirKind::Tree(under) => Ok(under.clone()),
            DirKind::Histories(_) | DirKind::History(..) | DirKind::Control => Err(Errno::EPERM),
        }
    }

    /// The entries as far as they are known.
    pub(in crate::fs) fn entries_now(&self, dir: &Dir) -> Vec<DirEntry> {
        let directory = |name: String| DirEntry::new(name, FileKind::Directory, None);
        let entries: Vec<DirEntry> = match &dir.kind {
            DirKind::Tree(under) => {
                let mut entries = self.names_in(under);
                if under.is_root() && self.env.options().show_versions {
                    entries.insert(VERSIONS.to_owned(), (FileKind::Directory, None));
                }
                if under.is_root() && self.env.options().never_empty && entries.is_empty() {
                    entries.insert(CONTROL.to_owned(), (FileKind::Directory, None));
                }
                let mut hasher = DefaultHasher::new();
                entries.keys().for_each(|name| name.hash(&mut hasher));
                let (now, since) = (self.env.wall(), self.env.started());
                self.inodes.lock().seen_names(&dir.kind, hasher.finish() | 1, now, since);
                entries.into_iter().map(|(name, (kind, ino))| DirEntry::new(name, kind, ino)).collect()
            }
            DirKind::Histories(under) => {
                let names = self.names_where(under, |file| file.state().stored.is_some());
                names.into_keys().map(directory).collect()
            }
            DirKind::Control => {
                ControlFile::ALL.map(|which| DirEntry::new(which.name(), FileKind::Regular, None)).into()
            }
            DirKind::History(..) => Vec::new(),
        };
        with_dots(dir.ino, entries.into_iter())
    }

    /// What shows in the directory `under`: names of the vault, files that it has not yet,
    /// directories made here.
    pub(in crate::fs) fn names_in(&self, under: &DirPrefix) -> BTreeMap<String, (FileKind, Option<u64>)> {
        self.names_where(under, |_| true)
    }

    /// The same, with those files alone that are `wanted` of all that the vault does not have as
    /// they are here.
    fn names_where(
        &self,
        under: &DirPrefix,
        wanted: impl Fn(&File) -> bool,
    ) -> BTreeMap<String, (FileKind, Option<u64>)> {
        let mut entries = BTreeMap::new();
        let mut table = self.inodes.lock();
        if let Some(own) = under.self_name()
            && let Some(ino) = self.exists_now(&table, &own)
            && table.file(&own).is_none_or(|file| wanted(&file))
        {
            entries.insert(SELF.to_owned(), (FileKind::Regular, ino));
        }
        self.env.cache().visit_names(under.as_str(), |name| {
            let (text, rest) = table.shown(name, under)?;
            let is_own = matches!(&rest, Rest::Dir(dir) if !name.as_str().starts_with(dir.as_str()));
            if (is_own || rest == Rest::File) && table.is_hidden(name) {
                return None;
            }
            add(&mut entries, &mut table, name, text, &rest);
            match rest {
                Rest::Dir(dir) if name.as_str().starts_with(dir.as_str()) => after(&dir),
                Rest::Dir(_) | Rest::File => None,
            }
        });
        let local: Vec<ObjectName> = table
            .files_under(under.as_str())
            .filter(|(_, file)| file.state().is_beyond_vault() && wanted(file))
            .map(|(name, _)| name.clone())
            .collect();
        for name in local {
            if let Some((text, rest)) = table.shown(&name, under) {
                add(&mut entries, &mut table, &name, text, &rest);
            }
        }
        let made: Vec<DirPrefix> = table
            .made()
            .iter()
            .filter(|m| m.as_str().starts_with(under.as_str()) && *m != under)
            .cloned()
            .collect();
        for dir in made {
            if let Some((text, Rest::Dir(dir))) = name::split(dir.as_str(), under) {
                entries.insert(text, (FileKind::Directory, Some(table.listed_dir(&dir))));
            }
        }
        entries
    }

    /// Whether `name` is known to exist, and its inode number.
    fn exists_now(&self, table: &Table, name: &ObjectName) -> Option<Option<u64>> {
        let file = table.file(name);
        if let Some(file) = &file
            && file.state().is_beyond_vault()
        {
            return Some(Some(file.ino));
        }
        if table.is_hidden(name) {
            return None;
        }
        match self.env.cache().peek(name) {
            Peek::Value(_) | Peek::Exists => Some(file.map(|f| f.ino)),
            _ => None,
        }
    }
}

fn add(
    entries: &mut BTreeMap<String, (FileKind, Option<u64>)>,
    table: &mut Table,
    name: &ObjectName,
    text: String,
    rest: &Rest,
) {
    match rest {
        Rest::Dir(dir) => {
            entries.insert(text, (FileKind::Directory, Some(table.listed_dir(dir))));
        }
        Rest::File => {
            let kind = table.file(name).map_or(FileKind::Regular, |file| file.kind);
            entries.entry(text).or_insert_with(|| (kind, Some(table.listed_file(name))));
        }
    }
}

/// The first text after everything that begins with the prefix of `dir`; `None` for a continuation:
/// other entries may share its prefix.
fn after(dir: &DirPrefix) -> Option<String> {
    if dir.is_continuation() {
        return None;
    }
    let parent = dir.as_str().strip_suffix('/')?;
    // '0' is the character after '/'.
    Some(format!("{parent}0"))
}

/// The entries, with `.` and `..` first.
pub(in crate::fs) fn with_dots(ino: u64, entries: impl Iterator<Item = DirEntry>) -> Vec<DirEntry> {
    let dot = |name: &str| DirEntry::new(name, FileKind::Directory, Some(ino));
    [dot("."), dot("..")].into_iter().chain(entries).collect()
}
