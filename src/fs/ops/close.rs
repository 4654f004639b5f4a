//! FLUSH, FSYNC and RELEASE: which of them stores what was written, and what the last close of a
//! file ends.

use std::sync::Arc;

use crate::failpoint;
use crate::fs::inode::file::File;
use crate::fs::ops::open::{Handle, Held, Writer, commits_on_close};
use crate::fs::types::errno::Errno;
use crate::fs::writeback::commit::Cause;
use crate::fs::{Caller, FileSystem, Step};

impl FileSystem {
    /// FLUSH: close(2) of one descriptor. Commits if the close policy says so.
    pub fn flush(self: &Arc<Self>, fh: u64, caller: Caller) -> Step<()> {
        let handle = match self.handle(fh) {
            Ok(handle) => handle,
            Err(e) => return Step::Ready(Err(e)),
        };
        let Held::File { file, writer: Some(writer) } = &handle.held else { return Step::Ready(Ok(())) };
        if let Some(refused) = writer.refusal() {
            return Step::Ready(Err(refused));
        }
        let kernel = self.env.kernel().map(|kernel| &**kernel);
        if !file.state().has_uncommitted(fh) || !commits_on_close(file, &writer.opener, caller, kernel) {
            return Step::Ready(Ok(()));
        }
        failpoint::point("flush");
        self.store_for(handle.clone(), Cause::Close)
    }

    /// FSYNC: commits whatever is unsaved, by any handle.
    pub fn fsync(self: &Arc<Self>, fh: u64) -> Step<()> {
        failpoint::point("fsync");
        match self.handle(fh) {
            Ok(handle) => self.store_for(handle, Cause::Fsync),
            Err(e) => Step::Ready(Err(e)),
        }
    }

    fn store_for(self: &Arc<Self>, handle: Arc<Handle>, cause: Cause) -> Step<()> {
        let Held::File { file, writer } = &handle.held else { return Step::Ready(Ok(())) };
        if let Some(refused) = writer.as_ref().and_then(Writer::refusal) {
            return Step::Ready(Err(refused));
        }
        let (is_dirty, is_its_own, conflict) = {
            let mut state = file.change_alone();
            state.store_made();
            let is_its_own = state.buffer.as_ref().is_some_and(|b| b.writers.may_have_written(handle.fh));
            (state.is_dirty(), is_its_own, state.failure.as_ref().map(|failure| failure.conflict))
        };
        if !is_dirty {
            return Step::Ready(Ok(()));
        }
        let reports_result = is_its_own || cause == Cause::Fsync;
        let cause = match (cause, conflict) {
            // A close without writes retries another handle's failed commit, and does not report
            // its result.
            (Cause::Close, Some(_)) if !is_its_own => Cause::Retry,
            // A conflict about another handle's bytes is reported, not decided.
            (Cause::Fsync, Some(true)) if !is_its_own => return Step::Ready(Err(Errno::ESTALE)),
            _ => cause,
        };
        let (fs, file) = (self.clone(), file.clone());
        Step::later(async move {
            let result = fs.commit(&file, &fs.call(), cause).await;
            if reports_result { result } else { Ok(()) }
        })
    }

    /// RELEASE: the last close of a handle. Unsaved bytes are committed now, after close(2) has
    /// returned.
    pub fn release(self: &Arc<Self>, fh: u64) -> Step<()> {
        failpoint::point("release");
        let handle = self.drop_handle(fh);
        failpoint::point("released");
        match handle.as_ref().map(|h| &h.held) {
            Some(Held::File { file, .. }) => self.let_go(file, fh),
            _ => Step::Ready(Ok(())),
        }
    }

    /// Closes one handle of the file, which may have been a writer's.
    pub(in crate::fs) fn let_go(self: &Arc<Self>, file: &Arc<File>, fh: u64) -> Step<()> {
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
                return Step::Ready(Ok(()));
            }
            state.release();
            self.temporaries.account_room(&mut state);
            unsaved
        };
        if !unsaved {
            self.promote_later(file);
            self.table().drop_unheld(file.ino);
            return Step::Ready(Ok(()));
        }
        let (fs, file) = (self.clone(), file.clone());
        Step::later(async move {
            // The failure is recorded in the file, the log and status: no program waits for this
            // answer.
            let _ = fs.commit(&file, &fs.call(), Cause::Release).await;
            fs.table().drop_unheld(file.ino);
            Ok(())
        })
    }

    /// A write failed for want of memory: the partial buffer is dropped, and the name shows the
    /// vault's version.
    pub(in crate::fs) fn take_back(&self, file: &Arc<File>) {
        let name = self.give_up(file);
        tracing::warn!(name = name.as_str(), "a write failed for want of memory: nothing of it is stored");
        self.inval_name(&name);
    }
}
