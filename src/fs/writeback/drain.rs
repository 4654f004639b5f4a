//! Drain: stores what is unsaved when the mount ends, or when a command asks.

use std::sync::Arc;

use crate::fs::inode::file::{Failure, File};
use crate::fs::types::unsaved::Unsaved;
use crate::fs::writeback::Writeback;
use crate::fs::writeback::commit::Cause;
use crate::fs::writeback::retry::FIRST_RETRY;
use crate::vault::Call;

/// What a drain stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Files without a writer: the mount may stay.
    Closed,
    /// Everything: the mount is gone, and its writers cannot write any more.
    All,
}

impl Drain {
    fn covers(self, file: &File) -> bool {
        let state = file.state();
        state.is_dirty() && (self == Drain::All || state.writers.is_empty())
    }
}

impl Writeback {
    /// Stores what is unsaved, deletes what should be gone, and names what is left of both when
    /// nothing is on its way any more.
    pub async fn drain(self: &Arc<Self>, what: Drain, call: &Call) -> Vec<Unsaved> {
        self.retry_failed_deletes(|one| !one.retried, call).await;
        // What fails is among what is left.
        let _ = self.delete_deferred_below("", call).await;
        loop {
            // A change that is on its way ends first: it would meet the next mount's save of the
            // same name.
            let is_out = |file: &Arc<File>| file.commit_lock.available_permits() == 0;
            let files: Vec<Arc<File>> =
                self.inodes.lock().all_files().filter(|file| what.covers(file) || is_out(file)).collect();
            let ends = files.iter().map(|file| async {
                if what.covers(file) {
                    // `left_over` below reports what fails.
                    let _ = self.commit(file, call, Cause::Drain).await;
                } else {
                    let _ = self.lock_commit(file, call).await;
                }
            });
            futures_util::future::join_all(ends).await;
            // A vault that fails at once may do better before the time is up. A key will hardly:
            // where there is a new one in its file, it was read at the first refusal.
            let may_do_better = |file: &Arc<File>| {
                let failed = |failure: &Failure| failure.is_retried() && !failure.key_refused;
                what.covers(file) && file.state().failure.as_ref().is_some_and(failed)
            };
            let may_progress = files.iter().any(may_do_better) || self.has_pending_deletes();
            if !may_progress || self.env.left(call) <= FIRST_RETRY {
                return self.left_over();
            }
            tokio::time::sleep(FIRST_RETRY).await;
            let _ = self.delete_deferred_below("", call).await;
        }
    }
}
