//! FIFOs and sockets: names in memory, like scratch files, for what keeps them beside its secrets (gpg's home,
//! ssh's ControlPath). The kernel itself carries what goes through them; this never sees a byte of it, and no
//! vault ever hears of the name. Device nodes, and links of anything else, are refused.

use std::ffi::OsStr;
use std::sync::Arc;

use super::attr::FileKind;
use super::errno::{Errno, Result};
use super::file::{File, Keep};
use super::inode::{DirKind, Node, Table};
use super::name::DirPrefix;
use super::request::{self, Doing};
use super::resolve::Place;
use super::{Entry, FileSystem, Step};
use crate::crash;
use crate::vault::ObjectName;

impl FileSystem {
    /// MKNOD: of a FIFO or a socket (which is what bind(2) asks for).
    pub fn mknod(self: &Arc<Self>, parent: u64, component: &OsStr, mode: u32, umask: u32) -> Step<Entry> {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            _ => return Err(self.refuse_special("mknod", component)).into(),
        };
        let (under, name) = match self.place_to_create("mknod", parent, component) {
            Ok(place) => place,
            Err(e) => return Err(e).into(),
        };
        let (fs, component) = (self.clone(), component.to_owned());
        Step::later(async move {
            match fs.find(&fs.call(), &under, &component).await? {
                Place::Local(file) if matches!(request::before(), Some(Doing::Make)) => {
                    Ok(fs.entry(&Node::File(file), fs.options.refresh))
                }
                Place::Absent => Ok(fs.put_special(&under, &name, kind, fs.new_mode(mode, umask))),
                Place::Dir(_) | Place::Local(_) | Place::Object(_) => Err(Errno::EEXIST),
            }
        })
    }

    fn put_special(&self, under: &DirPrefix, name: &ObjectName, kind: FileKind, mode: u32) -> Entry {
        let now = self.clock.wall();
        self.doing(Doing::Make);
        let mut table = self.table();
        table.release_kind(name);
        let file = table.put_file(name, |ino, local| File::special(ino, name.clone(), local, kind));
        {
            let mut state = file.state();
            state.keep = Keep::Scratch;
            state.local.mode = Some(mode);
            // It has a time, and no bytes ever.
            state.buffer(&[], now);
            *table.local(name) = state.local.clone();
        }
        table.file_made(under, name);
        self.note_change(&mut table, under);
        drop(table);
        self.entry(&Node::File(file), self.options.refresh)
    }

    /// LINK: a FIFO or socket may have several names, which is how ssh puts its ControlPath in place. An object has
    /// one.
    pub fn link(self: &Arc<Self>, ino: u64, parent: u64, component: &OsStr) -> Step<Entry> {
        let file = match self.node(ino) {
            Ok(Node::File(file)) if file.kind != FileKind::Regular => file,
            Ok(_) => return Err(self.refuse_special("link", component)).into(),
            Err(e) => return Err(e).into(),
        };
        let (under, name) = match self.place_to_create("link", parent, component) {
            Ok(place) => place,
            Err(e) => return Err(e).into(),
        };
        let (fs, component) = (self.clone(), component.to_owned());
        Step::later(async move {
            match fs.find(&fs.call(), &under, &component).await? {
                Place::Absent => {}
                Place::Local(at) if at.ino == file.ino && request::before().is_some() => {}
                Place::Dir(_) | Place::Local(_) | Place::Object(_) => return Err(Errno::EEXIST),
            }
            fs.doing(Doing::Make);
            let mut table = fs.table();
            table.release_kind(&name);
            table.point(&name, file.ino);
            table.file_made(&under, &name);
            fs.note_change(&mut table, &under);
            drop(table);
            crash::point("linked");
            Ok(fs.entry(&Node::File(file), fs.options.refresh))
        })
    }

    /// Takes one of several names from a FIFO or socket; false if `component` is its only one.
    pub(super) fn unlink_one_name(&self, under: &DirPrefix, component: &OsStr, file: &File) -> Result<bool> {
        if file.kind == FileKind::Regular {
            return Ok(false);
        }
        let name = self.name_to_create("unlink", under, component)?;
        let mut table = self.table();
        let others = table.files_under("").filter(|(other, at)| at.ino == file.ino && **other != name);
        let Some(other) = others.map(|(other, _)| other.clone()).next() else { return Ok(false) };
        self.doing(Doing::Unlink { ino: file.ino });
        if table.file(&name).is_none_or(|at| at.ino != file.ino) {
            // Done before a crash.
            return Ok(true);
        }
        file.state().name = other;
        table.unpoint(&name, file.ino);
        self.note_change(&mut table, under);
        Ok(true)
    }

    fn place_to_create(
        &self,
        operation: &'static str,
        parent: u64,
        component: &OsStr,
    ) -> Result<(DirPrefix, ObjectName)> {
        let under = self.changeable(parent)?;
        let name = self.name_to_create(operation, &under, component)?;
        Ok((under, name))
    }

    /// The names in `under` changed; it stays, as in any file system, until rmdir.
    fn note_change(&self, table: &mut Table, under: &DirPrefix) {
        if !under.is_root() && !under.is_continuation() {
            table.made().insert(under.clone());
        }
        table.touch(&DirKind::Tree(under.clone()), self.clock.wall());
    }

    /// A FIFO or socket may take any name but an object's: the object would be gone, and history with it.
    pub(super) fn may_replace(&self, source: &File, target: Option<&File>) -> Result<()> {
        match target {
            Some(target) if source.kind != FileKind::Regular && !target.state().is_only_here() => {
                let name = target.state().name.clone();
                let why = "a pipe or socket does not take the place of an object";
                Err(self.refused("rename", name.as_str(), Errno::EPERM, why))
            }
            _ => Ok(()),
        }
    }
}
