//! Directories: making, removing. What is in them is in `namespace::dir`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::fs::inode::DirKind;
use crate::fs::name;
use crate::fs::name::{Decoded, DirPrefix, Refused};
use crate::fs::namespace::resolve::Place;
use crate::fs::types::ctx::{Intent, RequestCtx};
use crate::fs::types::errno::{Errno, Result};
use crate::fs::{Entry, FileSystem};
use crate::vault::cache::PrefixState;

/// Whether file managers make a directory of this name at the top of a file system, to keep there
/// what is deleted.
fn is_trash(component: &OsStr) -> bool {
    component == ".Trash" || component.as_bytes().starts_with(b".Trash-")
}

impl FileSystem {
    /// MKDIR: in memory, until an object is in it.
    pub async fn mkdir(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        parent: u64,
        component: &OsStr,
        mode: u32,
    ) -> Result<Entry> {
        let under = self.namespace.changeable(parent)?;
        let dir = self.dir_to_make("mkdir", &under, component)?;
        match self.propagator.within(parent, self.namespace.find(ctx, &under, component)).await? {
            Place::Absent => {}
            Place::Dir(_) if matches!(ctx.resumed, Some(Intent::Make)) => {}
            Place::Dir(_) | Place::Local(_) | Place::Object(_) => return Err(Errno::EEXIST),
        }
        let tx = self.env.journal().begin();
        self.replay.record_intent_in(&tx, ctx, Intent::Make);
        let mut table = self.inodes.lock_in(&tx);
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
            let why = "a trash would keep deleted files in the vault: delete them for good";
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
        let under = self.namespace.changeable(parent)?;
        self.propagator.within(parent, Box::pin(self.rmdir_in(ctx, under, component))).await
    }

    async fn rmdir_in(self: &Arc<Self>, ctx: &RequestCtx, under: DirPrefix, component: &OsStr) -> Result<()> {
        let call = ctx.call().await;
        let dir = match self.namespace.find(ctx, &under, component).await? {
            Place::Dir(dir) => dir,
            Place::Absent if matches!(ctx.resumed, Some(Intent::Rmdir)) => return Ok(()),
            Place::Absent => return Err(Errno::ENOENT),
            Place::Local(_) | Place::Object(_) => return Err(Errno::ENOTDIR),
        };
        self.env.cache().list_all(call).await.map_err(|e| self.env.failed("rmdir", dir.as_str(), &e))?;
        if self.namespace.names_in(&dir).is_empty() {
            self.temporaries.flush_deferred_in(&dir, call).await?;
        }
        let is_full = || {
            dir.is_continuation()
                || self.env.cache().prefix_state(dir.as_str()) == PrefixState::Yes
                || !self.namespace.names_in(&dir).is_empty()
        };
        // What was made here and is not listed any more is asked for once more before its
        // absence is accepted.
        if is_full() {
            self.env.cache().ask_again().await;
        }
        if is_full() {
            return Err(Errno::ENOTEMPTY);
        }
        let tx = self.env.journal().begin();
        self.replay.record_intent_in(&tx, ctx, Intent::Rmdir);
        let mut table = self.inodes.lock_in(&tx);
        let gone = table.remove_dir(&DirKind::Tree(dir));
        if !under.is_root() {
            table.made().insert(under.clone());
        }
        table.touch(&DirKind::Tree(under), self.env.wall());
        drop(table);
        gone.into_iter().for_each(|ino| self.namespace.dir_removed(ino));
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
