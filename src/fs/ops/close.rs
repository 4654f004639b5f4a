//! FLUSH, FSYNC and RELEASE: which of them stores what was written, and what the last close of a
//! file ends.

use std::sync::Arc;

use crate::failpoint;
use crate::fs::FileSystem;
use crate::fs::handle::{Handle, Held};
use crate::fs::inode::Node;
use crate::fs::inode::file::File;
use crate::fs::name::DirKind;
use crate::fs::recovery::replay::RESENT_WITHIN;
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::commit::Cause;
use crate::vault::Call;

impl FileSystem {
    /// FLUSH: close(2) of one descriptor. Commits if the close policy says so.
    pub async fn flush(self: &Arc<Self>, ctx: &RequestCtx, fh: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if let Some(refused) = handle.refusal() {
            return Err(refused);
        }
        if !self.handles.commits_on_close(&handle, ctx.caller) {
            return Ok(());
        }
        failpoint::point("flush");
        self.store_for(ctx, &handle, Cause::Close).await
    }

    /// FSYNC: commits whatever is unsaved, by any handle.
    pub async fn fsync(self: &Arc<Self>, ctx: &RequestCtx, fh: u64) -> Result<()> {
        failpoint::point("fsync");
        let handle = self.handles.get(fh)?;
        self.store_for(ctx, &handle, Cause::Fsync).await
    }

    /// FSYNCDIR: executes deferred deletes in and below the directory, and returns the error.
    pub async fn fsync_dir(&self, ctx: &RequestCtx, ino: u64) -> Result<()> {
        let Ok(Node::Dir(dir)) = self.inodes.node(ino) else { return Ok(()) };
        let DirKind::Tree(under) = &dir.kind else { return Ok(()) };
        self.writeback.delete_deferred_below(under.as_str(), ctx.call().await).await
    }

    async fn store_for(self: &Arc<Self>, ctx: &RequestCtx, handle: &Handle, cause: Cause) -> Result<()> {
        let Held::File { file, .. } = &handle.held else { return Ok(()) };
        if let Some(refused) = handle.refusal() {
            return Err(refused);
        }
        let (is_dirty, is_its_own, conflict) = {
            let mut state = file.change_alone();
            state.mark_storable();
            let is_its_own = state.buffer.as_ref().is_some_and(|b| b.writers.may_have_written(handle.fh));
            (state.is_dirty(), is_its_own, state.failure.as_ref().map(|failure| failure.conflict))
        };
        if !is_dirty {
            return Ok(());
        }
        let reports_result = is_its_own || cause == Cause::Fsync;
        let cause = match (cause, conflict) {
            // A close without writes retries another handle's failed commit, and does not report
            // its result.
            (Cause::Close, Some(_)) if !is_its_own => Cause::Retry,
            // A conflict about another handle's bytes is reported, not decided.
            (Cause::Fsync, Some(true)) if !is_its_own => return Err(Errno::ESTALE),
            _ => cause,
        };
        let result = Box::pin(self.writeback.commit(file, ctx.call().await, cause)).await;
        if reports_result { result } else { Ok(()) }
    }

    /// RELEASE: the last close of a handle. Unsaved bytes are committed now, after close(2) has
    /// returned.
    pub async fn release(self: &Arc<Self>, ctx: &RequestCtx, fh: u64) -> Result<()> {
        failpoint::point("release");
        let handle = self.handles.close(fh);
        failpoint::point("released");
        if let Some(Held::File { file, .. }) = handle.as_ref().map(|h| &h.held)
            && self.let_go(file, fh)
        {
            self.store_closed(file, ctx.call().await).await;
        }
        Ok(())
    }

    /// Closes one handle of the file, which may have been a writer's. Returns whether the file has
    /// to be stored now.
    pub(super) fn let_go(self: &Arc<Self>, file: &Arc<File>, fh: u64) -> bool {
        let unsaved = {
            let mut state = file.change_alone();
            state.opens -= 1;
            let writer = state.writers.remove(&fh);
            state.forget_closed();
            let last = state.writers.is_empty();
            // A failure was reported by close(2); a temporary one is retried in the background.
            let unsaved = writer && last && state.is_dirty() && !state.has_failed();
            let write_error = last && state.write_error.take().is_some() && state.buffer.is_some();
            if write_error {
                drop(state);
                self.take_back(file);
                return false;
            }
            state.release();
            self.temporaries.account_room(&mut state);
            unsaved
        };
        if !unsaved {
            self.temporaries.promote_later(file);
            self.inodes.lock().drop_unheld(file.ino);
        }
        unsaved
    }

    /// Stores a file after its last close.
    pub(in crate::fs) async fn store_closed(self: &Arc<Self>, file: &Arc<File>, call: &Call) {
        // The failure is recorded in the file, the log and status: no program waits for this
        // answer.
        let _ = Box::pin(self.writeback.commit(file, call, Cause::Release)).await;
        self.inodes.lock().drop_unheld(file.ino);
    }

    /// A write was refused, or a takeover lost bytes: the partial buffer is dropped, and the name
    /// shows the vault's version.
    pub(in crate::fs) fn take_back(&self, file: &Arc<File>) {
        let name = self.writeback.give_up(file);
        self.temporaries.account_room(&mut file.change_alone());
        tracing::warn!(name = name.as_str(), "a write failed: nothing of it is stored");
    }

    /// After a death: in a while these requests will not be resent, and a handle with an OPEN that
    /// nobody sent again counts as closed.
    pub(in crate::fs) fn expire_requests(self: &Arc<Self>, requests: Vec<u64>) {
        let opens = self.handles.unacknowledged();
        if requests.is_empty() && opens.is_empty() {
            return;
        }
        let (fs, env) = (self.clone(), self.env.clone());
        env.spawn(async move {
            tokio::time::sleep(RESENT_WITHIN).await;
            // All of them first: a request that is completed acknowledges its open.
            let expired = opens.iter().filter_map(|open| Some((fs.handles.expire(open)?, open)));
            let expired: Vec<_> = expired.collect();
            requests.into_iter().for_each(|request| fs.completed(request));
            for (file, handle) in expired {
                if fs.let_go(file, handle.fh) {
                    fs.store_closed(file, &Call::foreground(fs.env.deadline())).await;
                }
                if !fs.inodes.lock().is_held(file.ino) {
                    // Nor has the kernel.
                    fs.handles.close(handle.fh);
                }
            }
        });
    }
}
