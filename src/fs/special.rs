//! FIFOs and sockets: names in memory, like scratch files, for what keeps them beside its secrets (gpg's home,
//! ssh's ControlPath). The kernel itself carries what goes through them; this never sees a byte of it, and no
//! vault ever hears of the name. Device nodes and links are refused.

use std::ffi::OsStr;
use std::sync::Arc;

use super::attr::FileKind;
use super::errno::{Errno, Result};
use super::file::{File, Keep};
use super::inode::{DirKind, Node};
use super::name::DirPrefix;
use super::resolve::Place;
use super::{Entry, FileSystem, Step};
use crate::vault::ObjectName;

impl FileSystem {
    /// MKNOD: of a FIFO or a socket (which is what bind(2) asks for).
    pub fn mknod(self: &Arc<Self>, parent: u64, component: &OsStr, mode: u32, umask: u32) -> Step<Entry> {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            _ => return Err(self.refuse_special("mknod", component)).into(),
        };
        let place = self.changeable(parent).and_then(|under| {
            let name = self.name_to_create("mknod", &under, component)?;
            Ok((under, name))
        });
        let (under, name) = match place {
            Ok(place) => place,
            Err(e) => return Err(e).into(),
        };
        let (fs, component) = (self.clone(), component.to_owned());
        Step::later(async move {
            match fs.find(&fs.call(), &under, &component).await? {
                Place::Absent => Ok(fs.put_special(&under, &name, kind, fs.new_mode(mode, umask))),
                Place::Dir(_) | Place::Local(_) | Place::Object(_) => Err(Errno::EEXIST),
            }
        })
    }

    fn put_special(&self, under: &DirPrefix, name: &ObjectName, kind: FileKind, mode: u32) -> Entry {
        let now = self.clock.wall();
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
        if !under.is_root() && !under.is_continuation() {
            table.made().insert(under.clone());
        }
        table.touch(&DirKind::Tree(under.clone()), now);
        drop(table);
        self.entry(&Node::File(file), self.options.refresh)
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
