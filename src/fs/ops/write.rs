//! WRITE and SETATTR: changes to a file's buffer and to attributes that are set here. A truncation
//! of a file that no writer has open is committed here; other changes by the close.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::FileSystem;
use crate::fs::handle::Held;
use crate::fs::inode::Node;
use crate::fs::inode::file::{File, FileState, Persistence};
use crate::fs::inode::writers::WriteOrigin;
use crate::fs::types::attr::{Attr, SetAttr};
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::commit::Cause;

impl FileSystem {
    /// WRITE. The bytes a writer's handle builds on are in memory since its open, so this never
    /// waits.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        self.write_as(WriteOrigin::Handle(fh), fh, offset, data)
    }

    /// WRITE of pages of a mapping: the handle is one of those that the file was mapped with.
    pub fn write_mapped(&self, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        self.write_as(WriteOrigin::Mapping, fh, offset, data)
    }

    fn write_as(&self, origin: WriteOrigin, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let handle = self.handles.get(fh)?;
        let Held::File { file, writer: Some(_) } = &handle.held else { return Err(Errno::EBADF) };
        let mut state = file.change_alone();
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        if end > self.env.options().max_size {
            state.write_error = Some(Errno::EFBIG);
            self.handles.note_refused(&handle, Errno::EFBIG);
            return Err(self.too_big(state.name.as_str()));
        }
        let grown = state.size().max(end);
        if let Err(full) = self.temporaries.reserve_room(&mut state, grown) {
            if state.persistence != Persistence::Scratch {
                state.write_error = Some(full);
                self.handles.note_refused(&handle, full);
            }
            return Err(full);
        }
        let now = self.env.wall();
        state.local.written();
        // Nothing but a revocation takes away the bytes that a writer builds on.
        let Some(buffer) = state.buffer_of_stored(now) else {
            self.handles.note_refused(&handle, Errno::EACCES);
            return Err(Errno::EACCES);
        };
        file.mark_kernel_cached();
        // Both fit: `end` is at most --max-size, which fits into memory.
        buffer.write_at(offset as usize, data);
        buffer.changed(origin, now);
        Ok(data.len() as u32)
    }

    /// SETATTR: local attributes at once; a new size in the buffer, stored before the answer if no
    /// writer has the file open; otherwise its close stores it.
    pub async fn setattr(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        ino: u64,
        fh: Option<u64>,
        set: SetAttr,
    ) -> Result<(Attr, Duration)> {
        let node = self.inodes.node(ino)?;
        match (&node, set.size) {
            (_, None) => self.namespace.set_local(&node, &set)?,
            (Node::File(_), Some(_)) if self.env.options().read_only => return Err(Errno::EROFS),
            (Node::File(file), Some(size)) => {
                // The kernel sends the time of truncate(2) with it, which is no utimens call.
                let set = SetAttr { mtime: None, ..set };
                self.resize(ctx, (&node, file), fh, size, &set).await?;
            }
            (Node::Dir(_), Some(_)) => return Err(Errno::EISDIR),
            (Node::Version(_) | Node::Control(..), Some(_)) => return Err(Errno::EPERM),
        }
        Ok((self.namespace.attr(&node), self.namespace.attr_ttl(&node)))
    }

    async fn resize(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        (node, file): (&Node, &Arc<File>),
        fh: Option<u64>,
        size: u64,
        set: &SetAttr,
    ) -> Result<()> {
        // An unacknowledged handle is open again when it is used.
        let handle = fh.and_then(|fh| self.handles.get(fh).ok());
        if let Some(handle) = &handle {
            self.handles.note_refused(handle, None);
        }
        let fh = handle.map(|handle| handle.fh);
        let (origin, commits) = {
            let state = file.state();
            let commits = state.writers.is_empty();
            let otherwise = if commits { WriteOrigin::Unattributed } else { WriteOrigin::Opening };
            (fh.map_or(otherwise, |fh| state.write_origin(fh)), commits)
        };
        if commits && fh.is_none() {
            self.propagator.is_at_its_name(file, ctx.caller)?;
        }
        if !commits && let Some(result) = self.resize_now(file, size, origin) {
            result?;
            return self.set_local_if_any(node, set);
        }
        let call = ctx.call().await;
        let in_use = file.in_use();
        if size > 0 {
            Box::pin(self.load(call, file)).await?;
        }
        self.resize_now(file, size, origin).unwrap_or(Err(Errno::EIO))?;
        drop(in_use);
        self.set_local_if_any(node, set)?;
        if commits {
            Box::pin(self.writeback.commit(file, call, Cause::Truncate)).await?;
        }
        self.inodes.lock().drop_unheld(file.ino);
        Ok(())
    }

    fn set_local_if_any(&self, node: &Node, set: &SetAttr) -> Result<()> {
        match set {
            SetAttr { mode: None, uid: None, gid: None, atime: None, mtime: None, .. } => Ok(()),
            _ => self.namespace.set_local(node, set),
        }
    }

    /// Cuts or extends the buffer; `None` if the bytes to build on are not in memory.
    pub(in crate::fs) fn resize_now(
        &self,
        file: &File,
        size: u64,
        origin: WriteOrigin,
    ) -> Option<Result<()>> {
        self.resize_in(&mut file.change_alone(), size, origin)
    }

    pub(super) fn resize_in(
        &self,
        state: &mut FileState,
        size: u64,
        origin: WriteOrigin,
    ) -> Option<Result<()>> {
        if size > self.env.options().max_size {
            return Some(Err(self.too_big(state.name.as_str())));
        }
        state.write_error = None;
        state.mark_storable();
        let before = state.size();
        if size == before {
            return Some(Ok(()));
        }
        if state.buffer.is_none() && state.pinned.is_none() && state.stored.is_some() && size > 0 {
            return None;
        }
        if let Err(e) = self.temporaries.reserve_room(state, size) {
            return Some(Err(e));
        }
        let now = self.env.wall();
        let pinned = state.pinned.clone();
        state.local.written();
        let buffer = state.buffer(pinned.as_ref().map_or(&[], |o| o.content.bytes.expose()), now);
        buffer.resize(size as usize);
        if size == 0 {
            // No close stores what was written before, even if it is left from an earlier save.
            buffer.cut_off();
        }
        buffer.changed(origin, now);
        Some(Ok(()))
    }

    fn too_big(&self, name: &str) -> Errno {
        let limit = self.env.options().max_size;
        self.env.refused(
            "write",
            name,
            Errno::EFBIG,
            &format!("the file would be over --max-size ({limit} bytes)"),
        )
    }
}
