//! Directories: what is in them, making, removing. How they are read is in `readdir`.
//!
//! A listing needs all names and no values. Directories exist because names imply them; one that
//! was made or emptied here stays until rmdir.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::fs::inode::file::File;
use crate::fs::inode::{ControlFile, Dir, DirKind, Table};
use crate::fs::name;
use crate::fs::name::{CONTROL, Decoded, DirPrefix, Refused, Rest, SELF, VERSIONS};
use crate::fs::namespace::listing::DirEntry;
use crate::fs::namespace::resolve::Place;
use crate::fs::ops::readdir::with_dots;
use crate::fs::types::attr::FileKind;
use crate::fs::types::ctx::{Intent, RequestCtx};
use crate::fs::types::errno::{Errno, Result};
use crate::fs::{Entry, FileSystem};
use crate::vault::ObjectName;
use crate::vault::cache::PrefixState;

/// Whether file managers make a directory of this name at the top of a file system, to keep there
/// what is deleted.
fn is_trash(component: &OsStr) -> bool {
    component == ".Trash" || component.as_bytes().starts_with(b".Trash-")
}

impl FileSystem {
    /// The entries as far as they are known.
    pub(in crate::fs) fn entries_now(&self, dir: &Dir) -> Vec<DirEntry> {
        match &dir.kind {
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
                with_dots(
                    dir.ino,
                    entries.into_iter().map(|(name, (kind, ino))| DirEntry::new(name, kind, ino)),
                )
            }
            DirKind::Histories(under) => {
                let names = self.names_where(under, |file| file.state().stored.is_some()).into_keys();
                with_dots(dir.ino, names.map(|name| DirEntry::new(name, FileKind::Directory, None)))
            }
            DirKind::Control => with_dots(
                dir.ino,
                ControlFile::ALL
                    .into_iter()
                    .map(|which| DirEntry::new(which.name(), FileKind::Regular, None)),
            ),
            DirKind::History(..) => Vec::new(),
        }
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
            crate::vault::cache::Peek::Value(_) | crate::vault::cache::Peek::Exists => {
                Some(file.map(|f| f.ino))
            }
            _ => None,
        }
    }

    /// MKDIR: in memory, until an object is in it.
    pub async fn mkdir(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        parent: u64,
        component: &OsStr,
        mode: u32,
    ) -> Result<Entry> {
        let under = self.changeable(parent)?;
        let dir = self.dir_to_make("mkdir", &under, component)?;
        match self.within(parent, self.find(ctx, &under, component)).await? {
            Place::Absent => {}
            Place::Dir(_) if matches!(ctx.resumed, Some(Intent::Make)) => {}
            Place::Dir(_) | Place::Local(_) | Place::Object(_) => return Err(Errno::EEXIST),
        }
        self.record_intent(ctx, Intent::Make);
        let mut table = self.inodes.lock();
        table.make_dir(dir.clone());
        let ceiling = self.env.options().dir_mode;
        let mut local = table.dir_local(&DirKind::Tree(dir.clone())).clone();
        local.mode = Some(mode & 0o777 & ceiling);
        table.give(&mut local, &under);
        *table.dir_local(&DirKind::Tree(dir.clone())) = local;
        table.touch(&DirKind::Tree(dir.clone()), self.env.wall());
        table.touch(&DirKind::Tree(under), self.env.wall());
        drop(table);
        Ok(self.namespace.dir_entry(&DirKind::Tree(dir)))
    }

    /// The directory that `component` in `under` stands for, for something new.
    pub(in crate::fs) fn dir_to_make(
        &self,
        operation: &'static str,
        under: &DirPrefix,
        component: &OsStr,
    ) -> Result<DirPrefix> {
        if under.is_root() && is_trash(component) {
            let why = "what is moved to a trash stays in the vault: delete it for good";
            return Err(self.env.refused(operation, &component.to_string_lossy(), Errno::EPERM, why));
        }
        match name::decode(component.as_bytes(), under) {
            Ok(Decoded::Entry { as_dir: Some(dir), .. }) if !dir.is_continuation() => Ok(dir),
            Ok(Decoded::Entry { as_dir: None, .. }) | Err(Refused::TooLong) => Err(Errno::ENAMETOOLONG),
            Ok(Decoded::Entry { .. } | Decoded::SelfFile(_) | Decoded::Beside { .. })
            | Err(Refused::Spelling) => Err(self.no_such_name(operation, component)),
        }
    }

    /// RMDIR: only of what surely is empty.
    pub async fn rmdir(self: &Arc<Self>, ctx: &RequestCtx, parent: u64, component: &OsStr) -> Result<()> {
        let under = self.changeable(parent)?;
        self.within(parent, Box::pin(self.rmdir_in(ctx, under, component))).await
    }

    async fn rmdir_in(self: &Arc<Self>, ctx: &RequestCtx, under: DirPrefix, component: &OsStr) -> Result<()> {
        let call = ctx.call().await;
        let dir = match self.find(ctx, &under, component).await? {
            Place::Dir(dir) => dir,
            Place::Absent if matches!(ctx.resumed, Some(Intent::Rmdir)) => return Ok(()),
            Place::Absent => return Err(Errno::ENOENT),
            Place::Local(_) | Place::Object(_) => return Err(Errno::ENOTDIR),
        };
        self.env.cache().list_all(call).await.map_err(|e| self.env.failed("rmdir", dir.as_str(), &e))?;
        if self.names_in(&dir).is_empty() {
            self.flush_deferred_in(&dir, call).await?;
        }
        let is_full = || {
            dir.is_continuation()
                || self.env.cache().prefix_state(dir.as_str()) == PrefixState::Yes
                || !self.names_in(&dir).is_empty()
        };
        // What was made here and is not listed any more is asked for once more before its
        // absence is accepted.
        if is_full() {
            self.env.cache().ask_again().await;
        }
        if is_full() {
            return Err(Errno::ENOTEMPTY);
        }
        self.record_intent(ctx, Intent::Rmdir);
        let mut table = self.inodes.lock();
        let gone = table.dir_ino(&DirKind::Tree(dir.clone()));
        table.remove_dir(&DirKind::Tree(dir));
        if !under.is_root() {
            table.made().insert(under.clone());
        }
        table.touch(&DirKind::Tree(under), self.env.wall());
        drop(table);
        gone.into_iter().for_each(|ino| self.listings().removed(ino));
        Ok(())
    }

    /// EINVAL for a file name that is not how any object's name is spelt.
    pub(in crate::fs) fn no_such_name(&self, operation: &'static str, component: &OsStr) -> Errno {
        self.env.refused(
            operation,
            &component.to_string_lossy(),
            Errno::EINVAL,
            "no object can have this file name: it is reserved, not UTF-8, or holds a % that reads as an escape \
             (write %25 for it)",
        )
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
