//! CREATE: new files, and what a new name has to be.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::fs::handle::{Held, Opened};
use crate::fs::inode::file::{File, FileState, Link, Persistence};
use crate::fs::inode::writers::WriteOrigin;
use crate::fs::journal::Transaction;
use crate::fs::name;
use crate::fs::name::{Decoded, DirPrefix, Refused};
use crate::fs::ops::open::Access;
use crate::fs::types::ctx::{Intent, RequestCtx};
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::may_write::Change;
use crate::fs::{Entry, FileSystem};
use crate::vault::ObjectName;

/// What CREATE asks for.
#[derive(Debug, Clone, Copy)]
pub struct Create {
    /// Permission bits asked for.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// open(2)'s flags.
    pub flags: i32,
}

impl FileSystem {
    /// CREATE: a new file, open for writing. It reaches the vault when it is closed.
    pub async fn create(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        parent: u64,
        component: &OsStr,
        create: Create,
    ) -> Result<(Entry, Opened)> {
        let under = self.namespace.changeable(parent)?;
        let name = self.name_to_create("create", &under, component)?;
        if let Some(handle) = self.handles.opened_before(ctx)
            && let Held::File { file, .. } = &handle.held
        {
            return Ok((self.namespace.own_entry(file), handle.opened()));
        }
        let shown = self.inodes.lock().file(&name);
        if let Some(file) = shown
            && file.state().link == Link::Current
        {
            return self.open_existing(ctx, &file, create).await;
        }
        let persistence = self.temporaries.persistence_of_new((component, &name), create.flags);
        if persistence == Persistence::Vault {
            self.may_create(&name)?;
        }
        let mut opened = None;
        let file = self.new_file(ctx, (&under, &name), create, persistence, |tx, file, state| {
            opened = Some(self.open_in(tx, ctx, file, state, true));
        });
        let opened = opened.ok_or(Errno::EIO)?;
        let entry = self.namespace.own_entry(&file);
        self.report.record_open(file.ino, "create", ctx.caller);
        Ok((entry, opened))
    }

    /// EACCES for a name that the key may not make anew.
    pub(in crate::fs) fn may_create(&self, name: &ObjectName) -> Result<()> {
        let is_version = self.inodes.lock().deferred(name).is_some();
        self.writeback.may_write(name, if is_version { Change::Version } else { Change::Object })
    }

    /// The kernel asked to create what has appeared since it looked.
    async fn open_existing(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        file: &Arc<File>,
        create: Create,
    ) -> Result<(Entry, Opened)> {
        if create.flags & libc::O_EXCL != 0 {
            return Err(Errno::EEXIST);
        }
        // The kernel takes what CREATE opened for empty.
        let cuts = create.flags & libc::O_TRUNC != 0;
        let opened =
            self.open_loaded(ctx, file, if cuts { Access::Overwrite } else { Access::Write }).await?;
        self.report.record_open(file.ino, "write", ctx.caller);
        Ok((self.namespace.own_entry(file), opened))
    }

    /// The object name that `component` in `under` stands for, for something new.
    pub(in crate::fs) fn name_to_create(
        &self,
        operation: &'static str,
        under: &DirPrefix,
        component: &OsStr,
    ) -> Result<ObjectName> {
        let name = match name::decode(component.as_bytes(), under) {
            Ok(Decoded::SelfFile(name)) => return Ok(name),
            Ok(Decoded::Entry { as_file, .. } | Decoded::Beside { as_file, .. }) => as_file,
            Err(Refused::TooLong) => return Err(Errno::ENAMETOOLONG),
            Err(Refused::Spelling) => None,
        };
        let name = name.ok_or_else(|| self.no_such_name(operation, component))?;
        if !self.namespace.is_allowed(&name) {
            return Err(self.env.refused(
                operation,
                name.as_str(),
                Errno::ENAMETOOLONG,
                "the vault takes shorter names only",
            ));
        }
        let shown = self.inodes.lock().shown(&name, under);
        if shown.is_none_or(|(text, _)| component != text.as_str()) {
            return Err(self.no_such_name(operation, component));
        }
        Ok(name)
    }

    /// A new file under a name that shows nothing. `fill` completes its state, as a part of the
    /// same change.
    pub(in crate::fs) fn new_file(
        &self,
        ctx: &RequestCtx,
        (under, name): (&DirPrefix, &ObjectName),
        create: Create,
        persistence: Persistence,
        fill: impl FnOnce(&Transaction, &Arc<File>, &mut FileState),
    ) -> Arc<File> {
        let now = self.env.wall();
        let tx = self.env.journal().begin();
        self.replay.record_intent_in(&tx, ctx, Intent::Make);
        let mut table = self.inodes.lock_in(&tx);
        table.unpin(name);
        table.file_made(under, name);
        // Where an object is hidden, the new file is a change of it.
        let base = table.reuse(name);
        let file = table.put_file(name, |ino, local| File::new(ino, name.clone(), local));
        {
            let mut state = file.change(&tx);
            state.local.mode = Some(self.namespace.new_mode(create.mode, create.umask));
            table.give(&mut state.local, under);
            state.persistence = persistence;
            state.stored = base;
            state.exclusive = create.flags & libc::O_EXCL != 0;
            state.buffer(&[], now).changed(WriteOrigin::Opening, now);
            fill(&tx, &file, &mut state);
            *table.local(name) = state.local.clone();
        }
        table.names_changed_in(under, now);
        file
    }
}
