//! OPEN: refuses at once what close(2) would fail with, and pins the version that is read.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::FileSystem;
use crate::fs::handle::{Held, Opened, Writer};
use crate::fs::inode::Node;
use crate::fs::inode::file::{File, FileState};
use crate::fs::inode::writers::WriteOrigin;
use crate::fs::journal::Transaction;
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::may_write::Change;
use crate::vault::cache::Found;

/// How old an answer may be that O_DIRECT of a guest is content with.
const GUEST_FRESH: Duration = Duration::from_secs(1);

/// How often an open loads a file that another open changes meanwhile.
const LOADS: usize = 4;

/// What a handle is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    /// The file is cut to nothing first.
    Overwrite,
}

impl FileSystem {
    /// OPEN, written down where that is asked for.
    pub async fn open(self: &Arc<Self>, ctx: &RequestCtx, ino: u64, flags: i32) -> Result<Opened> {
        if let Some(handle) = self.handles.opened_before(ctx) {
            return Ok(handle.opened());
        }
        let opened = self.open_node(ctx, ino, flags).await?;
        if self.env.options().audit.is_some() {
            let op = if flags & libc::O_ACCMODE == libc::O_RDONLY { "read" } else { "write" };
            self.report.record_open(ino, op, ctx.caller);
        }
        Ok(opened)
    }

    async fn open_node(self: &Arc<Self>, ctx: &RequestCtx, ino: u64, flags: i32) -> Result<Opened> {
        let node = self.inodes.node(ino)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        self.env.cache().note_use(self.env.longest_ttl());
        if writes
            && !self.env.options().read_only
            && let Node::File(file) = &node
        {
            self.may_save(file)?;
        }
        if let Node::File(file) = &node {
            self.propagator.is_at_its_name(file, ctx.caller)?;
        }
        match node {
            Node::Dir(_) => Err(Errno::EISDIR),
            Node::Version(_) | Node::Control(..) if writes => Err(Errno::EPERM),
            Node::Version(version) if version.object.is_none() => Err(self.env.refused(
                "open of a version",
                version.name.as_str(),
                Errno::EOPNOTSUPP,
                "the kv API gives no bytes of old versions, and this mount has not read this one itself",
            )),
            Node::Version(version) => Ok(self.handles.open(ctx, Held::Version(version))),
            Node::Control(control) => Ok(self.handles.open(ctx, Held::Control(control))),
            Node::File(_) if writes && self.env.options().read_only => Err(Errno::EROFS),
            Node::File(file) => {
                if flags & libc::O_DIRECT != 0 {
                    Box::pin(self.is_still_current(ctx, &file)).await?;
                }
                let access = if writes { Access::Write } else { Access::Read };
                self.open_loaded(ctx, &file, access).await
            }
        }
    }

    /// Refuses what is known to fail at close(2).
    fn may_save(&self, file: &File) -> Result<()> {
        let (name, change) = {
            let state = file.state();
            if state.is_only_here() {
                return Ok(());
            }
            let change = if state.stored.is_some() { Change::Version } else { Change::Object };
            (state.name.clone(), change)
        };
        self.writeback.may_write(&name, change)
    }

    /// O_DIRECT asks the vault, whatever is cached; for a guest what was asked a moment ago will
    /// do. ESTALE makes the kernel look the name up again and open what it finds then.
    async fn is_still_current(self: &Arc<Self>, ctx: &RequestCtx, file: &File) -> Result<()> {
        let (name, stored) = {
            let state = file.state();
            match &state.stored {
                Some(stored) if !state.is_dirty() && !state.is_only_here() => {
                    (state.name.clone(), stored.clone())
                }
                _ => return Ok(()),
            }
        };
        let age = if self.is_guest(ctx.caller.uid) { GUEST_FRESH } else { Duration::ZERO };
        let found = self.env.cache().fetch_within(ctx.call().await, &name, age).await;
        let found = found.map_err(|e| self.env.failed("open", name.as_str(), &e))?;
        match found {
            Some(Found { stale: Some(why), .. }) => {
                let (errno, why) = match Errno::from(why) {
                    Errno::EBUSY => (
                        Errno::EBUSY,
                        "the request budget is used up, and O_DIRECT needs the current version",
                    ),
                    _ => (
                        Errno::ETIMEDOUT,
                        "the vault does not answer, and O_DIRECT needs its current version",
                    ),
                };
                Err(self.env.refused("open", name.as_str(), errno, why))
            }
            Some(found) if stored.is(&found.object.meta) => Ok(()),
            Some(_) | None => Err(Errno::ESTALE),
        }
    }

    /// A handle, if the file's bytes are in memory. Looking at them and counting the handle is one
    /// step: the RELEASE of another handle comes at any time, and frees bytes that no handle has
    /// open. So is looking whether the kernel has the size of another version: another open may
    /// find the file's version gone, and make it the newest one, at any time.
    fn open_now(&self, ctx: &RequestCtx, file: &Arc<File>, access: Access) -> Option<Result<Opened>> {
        let tx = self.env.journal().begin();
        let mut state = file.change(&tx);
        if state.kernel_behind {
            return None;
        }
        if access == Access::Overwrite
            && let Err(e) = self.resize_in(&mut state, 0, WriteOrigin::Opening)?
        {
            return Some(Err(e));
        }
        if state.buffer.is_none()
            && state.pinned.is_none()
            && let Some(stored) = &state.stored
        {
            state.pinned = Some(self.env.bytes_in_memory(stored)?);
        }
        let writes = access != Access::Read;
        if writes && state.failure.as_ref().is_some_and(|failure| failure.errno == Errno::EEXIST) {
            // This open comes after the name was seen to be taken: it means to change what it
            // shows.
            state.exclusive = false;
            state.failure = None;
        }
        Some(Ok(self.open_in(&tx, ctx, file, &mut state, writes)))
    }

    /// A handle, as a part of a change of the file: a file that waits for its writer and has none
    /// is stored by a successor.
    pub(super) fn open_in(
        &self,
        tx: &Transaction,
        ctx: &RequestCtx,
        file: &Arc<File>,
        state: &mut FileState,
        writes: bool,
    ) -> Opened {
        if writes {
            state.mark_storable();
        }
        state.opens += 1;
        let fh = self.handles.next_number();
        let writer = writes.then(|| {
            state.add_writer(fh);
            Writer::of(ctx.caller.pid)
        });
        self.handles.open_in(tx, ctx, fh, Held::File { file: file.clone(), writer })
    }

    /// The same, fetching the bytes if need be.
    pub(super) async fn open_loaded(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        file: &Arc<File>,
        access: Access,
    ) -> Result<Opened> {
        if let Some(opened) = self.open_now(ctx, file, access) {
            return opened;
        }
        let call = ctx.call().await;
        let _in_use = file.in_use();
        for _ in 0..LOADS {
            Box::pin(self.load(call, file)).await?;
            Box::pin(self.let_kernel_forget(file)).await;
            if let Some(opened) = self.open_now(ctx, file, access) {
                return opened;
            }
        }
        Err(Errno::EIO)
    }
}
