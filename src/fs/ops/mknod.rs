//! mknod(2) and link(2).
//!
//! FIFOs and sockets are names in memory, like scratch files, for what keeps them beside its
//! secrets (gpg's home, ssh's ControlPath). The kernel itself carries what goes through them; this
//! never sees a byte of it, and no vault ever has the name. They may have several names. Device
//! nodes are refused.
//!
//! A regular file that mknod(2) makes is stored by its first writer, or empty when it has been left
//! alone as long as a provisional file. A link of a regular file is a copy: another object, stored
//! before the answer.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::failpoint;
use crate::fs::inode::Node;
use crate::fs::inode::file::{File, LocalAttr, Persistence};
use crate::fs::inode::writers::WriteOrigin;
use crate::fs::name::DirPrefix;
use crate::fs::namespace::resolve::Place;
use crate::fs::types::attr::FileKind;
use crate::fs::types::ctx::{Intent, RequestCtx};
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::commit::Cause;
use crate::fs::{Create, Entry, FileSystem};
use crate::secret::SecretBytes;
use crate::vault::ObjectName;

impl FileSystem {
    /// mknod of a device, symlink, link: a vault holds nothing of the kind.
    pub fn refuse_special(&self, operation: &'static str, name: &std::ffi::OsStr) -> Errno {
        let why = "a vault holds files only: no links and no devices";
        self.env.refused(operation, &name.to_string_lossy(), Errno::EPERM, why)
    }

    /// MKNOD: of a regular file, a FIFO or a socket (which is what bind(2) asks for).
    pub async fn mknod(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        parent: u64,
        component: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFREG => FileKind::Regular,
            _ => return Err(self.refuse_special("mknod", component)),
        };
        let (under, name) = self.place_to_create("mknod", parent, component)?;
        match self.namespace.find(ctx, &under, component).await? {
            Place::Local(file) if matches!(ctx.resumed, Some(Intent::Make)) => {
                Ok(self.namespace.entry(&Node::File(file), self.env.options().refresh))
            }
            Place::Absent if kind == FileKind::Regular => {
                let create = Create { mode, umask, flags: libc::O_EXCL };
                let persistence = match self.temporaries.persistence_of_new((component, &name), libc::O_EXCL)
                {
                    Persistence::Vault => Persistence::Made,
                    other => other,
                };
                if persistence == Persistence::Made {
                    self.may_create(&name)?;
                }
                let file = self.new_file(ctx, (&under, &name), create, persistence, |_, _, _| ());
                self.temporaries.promote_later(&file);
                Ok(self.namespace.own_entry(&file))
            }
            Place::Absent => {
                let mode = self.namespace.new_mode(mode, umask);
                Ok(self.put_special(ctx, (&under, &name), kind, mode))
            }
            Place::Dir(_) | Place::Local(_) | Place::Object(_) => Err(Errno::EEXIST),
        }
    }

    fn put_special(
        &self,
        ctx: &RequestCtx,
        (under, name): (&DirPrefix, &ObjectName),
        kind: FileKind,
        mode: u32,
    ) -> Entry {
        let now = self.env.wall();
        let tx = self.env.journal().begin();
        self.replay.record_intent_in(&tx, ctx, Intent::Make);
        let mut table = self.inodes.lock_in(&tx);
        table.unpin(name);
        let file = table.put_file(name, |ino, local| File::special(ino, name.clone(), local, kind));
        {
            let mut state = file.change(&tx);
            state.persistence = Persistence::Scratch;
            state.local.mode = Some(mode);
            table.give(&mut state.local, under);
            // It has a time, and no bytes ever.
            state.buffer(&[], now);
            *table.local(name) = state.local.clone();
        }
        table.file_made(under, name);
        table.names_changed_in(under, self.env.wall());
        drop(table);
        self.namespace.entry(&Node::File(file), self.env.options().refresh)
    }

    /// LINK: a FIFO or socket may have several names, which is how ssh puts its ControlPath in
    /// place. An object has one: its link is another object with the same bytes.
    pub async fn link(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        ino: u64,
        parent: u64,
        component: &OsStr,
    ) -> Result<Entry> {
        let Node::File(file) = self.inodes.node(ino)? else {
            return Err(self.refuse_special("link", component));
        };
        let (under, name) = self.place_to_create("link", parent, component)?;
        let place = self.namespace.find(ctx, &under, component).await?;
        if file.kind == FileKind::Regular {
            return Box::pin(self.copy(ctx, &file, (&under, &name), place)).await;
        }
        match place {
            Place::Absent => {}
            Place::Local(at) if at.ino == file.ino && ctx.resumed.is_some() => {}
            Place::Dir(_) | Place::Local(_) | Place::Object(_) => return Err(Errno::EEXIST),
        }
        let tx = self.env.journal().begin();
        self.replay.record_intent_in(&tx, ctx, Intent::Make);
        let mut table = self.inodes.lock_in(&tx);
        table.unpin(&name);
        table.point(&name, file.ino);
        table.file_made(&under, &name);
        table.names_changed_in(&under, self.env.wall());
        drop(table);
        failpoint::point("linked");
        Ok(self.namespace.entry(&Node::File(file), self.env.options().refresh))
    }

    /// Makes an object of that name with the bytes of `source`.
    async fn copy(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        source: &Arc<File>,
        (under, name): (&DirPrefix, &ObjectName),
        place: Place,
    ) -> Result<Entry> {
        let goes_on = matches!(ctx.resumed, Some(Intent::Make));
        let copy = match place {
            Place::Absent => {
                let _in_use = source.in_use();
                self.copy_held(ctx, source, (under, name)).await?
            }
            // Made, or stored, before a crash.
            Place::Local(file) if goes_on => file,
            Place::Object(found) if goes_on => self.namespace.file_node(&found),
            Place::Dir(_) | Place::Local(_) | Place::Object(_) => return Err(Errno::EEXIST),
        };
        if let Err(e) = self.writeback.commit(&copy, ctx.call().await, Cause::Link).await {
            self.writeback.give_up(&copy);
            return Err(e);
        }
        Ok(self.namespace.own_entry(&copy))
    }

    /// A new file with the bytes of `source`, which is stored, or closed and not stored yet.
    async fn copy_held(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        source: &Arc<File>,
        (under, name): (&DirPrefix, &ObjectName),
    ) -> Result<Arc<File>> {
        let call = ctx.call().await;
        let closes = {
            let mut state = source.change_alone();
            state.mark_storable();
            let written = state.buffer.as_ref().is_some_and(|buffer| buffer.written);
            // No handle writes to it: its last close may be in flight.
            state.is_dirty() && !state.has_failed() && (state.writers.is_empty() || !written)
        };
        if closes {
            self.writeback.commit(source, call, Cause::Release).await?;
        }
        self.load(call, source).await?;
        let (bytes, local) = {
            let state = source.state();
            let is_closed = state.persistence == Persistence::Provisional && !state.is_being_written();
            if state.is_only_here() && !is_closed || state.is_dirty() {
                let why =
                    "a file that is being written, or that no vault gets, cannot be linked: close it first";
                return Err(self.env.refused("link", state.name.as_str(), Errno::EPERM, why));
            }
            let stored = state.pinned.as_ref().map(|object| SecretBytes::from(object.content.bytes.expose()));
            let bytes = state.buffer.as_ref().map(|buffer| buffer.bytes.clone()).or(stored);
            (bytes.ok_or(Errno::EIO)?, state.local.clone())
        };
        self.may_create(name)?;
        let mode = local.mode.unwrap_or(self.env.options().file_mode);
        let create = Create { mode, umask: 0, flags: libc::O_EXCL };
        Ok(self.new_file(ctx, (under, name), create, Persistence::Vault, |_, _, state| {
            state.local = LocalAttr { mtime: None, ..local };
            let buffer = state.buffer(&[], self.env.wall());
            buffer.write_at(0, bytes.expose());
            buffer.changed(WriteOrigin::Unattributed, self.env.wall());
        }))
    }

    /// Takes one of several names from a FIFO or socket; false if `component` is its only one.
    pub(in crate::fs) fn unlink_one_name(
        &self,
        ctx: &RequestCtx,
        under: &DirPrefix,
        component: &OsStr,
        file: &File,
    ) -> Result<bool> {
        if file.kind == FileKind::Regular {
            return Ok(false);
        }
        let name = self.name_to_create("unlink", under, component)?;
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        let others = table.files_under("").filter(|(other, at)| at.ino == file.ino && **other != name);
        let Some(other) = others.map(|(other, _)| other.clone()).next() else { return Ok(false) };
        self.replay.record_intent_in(&tx, ctx, Intent::Unlink { ino: file.ino });
        if table.file(&name).is_none_or(|at| at.ino != file.ino) {
            // Done before a crash.
            return Ok(true);
        }
        file.change(&tx).name = other;
        table.unpoint(&name, file.ino);
        table.names_changed_in(under, self.env.wall());
        Ok(true)
    }

    fn place_to_create(
        &self,
        operation: &'static str,
        parent: u64,
        component: &OsStr,
    ) -> Result<(DirPrefix, ObjectName)> {
        let under = self.namespace.changeable(parent)?;
        let name = self.name_to_create(operation, &under, component)?;
        Ok((under, name))
    }

    /// A FIFO or socket may take any name but an object's: the object would be gone, and history
    /// with it.
    pub(in crate::fs) fn may_replace(&self, source: &File, target: Option<&File>) -> Result<()> {
        match target {
            Some(target) if source.kind != FileKind::Regular && !target.state().is_only_here() => {
                let name = target.state().name.clone();
                let why = "a pipe or socket does not take the place of an object";
                Err(self.env.refused("rename", name.as_str(), Errno::EPERM, why))
            }
            _ => Ok(()),
        }
    }
}
