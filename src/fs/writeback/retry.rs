//! Failed commits: how they are recorded, and their background retries.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::fs::inode::file::{Failure, File};
use crate::fs::types::errno::Errno;
use crate::fs::writeback::Writeback;
use crate::fs::writeback::commit::{Cause, Job};
use crate::vault::{Call, Error, ErrorKind};

/// A background retry waits this long first, then twice as long each time.
pub(super) const FIRST_RETRY: Duration = Duration::from_secs(1);

/// And mostly never longer than this (`last_pause`).
pub(in crate::fs) const LAST_RETRY: Duration = Duration::from_secs(60);

impl Writeback {
    /// Records why a commit failed, and starts its retries if it may succeed later.
    pub(super) fn commit_failed(
        self: &Arc<Self>,
        file: &Arc<File>,
        job: &Job,
        cause: Cause,
        e: &Error,
    ) -> Errno {
        let before = file.state().failure.as_ref().map(|f| (f.errno, f.number));
        let errno = Errno::from(e);
        let number = match before {
            // Logged and reported already: a background retry is reported only if it fails in
            // another way.
            Some((known, number)) if cause.is_by_itself() && known == errno => number,
            _ => {
                self.env.failed(cause.name(), job.name.as_str(), e);
                self.failures.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        let mut state = file.change_alone();
        if !e.maybe_applied {
            state.forget_sent(&job.name);
        }
        let generation = job.generation;
        let conflict = matches!(e.kind, ErrorKind::VersionMismatch | ErrorKind::MadeAndDeleted);
        let key_refused = matches!(e.kind, ErrorKind::Unauthorized | ErrorKind::Forbidden);
        let failure = Failure { errno, message: e.to_string(), conflict, key_refused, generation, number };
        let starts = failure.is_retried() && state.retrying.is_none();
        state.failure = Some(failure);
        if starts {
            state.retrying = Some(self.env.now() + FIRST_RETRY);
            self.start_retries(file);
        }
        errno
    }

    pub fn start_retries(self: &Arc<Self>, file: &Arc<File>) {
        self.env.spawn(self.clone().retry(file.clone()));
    }

    /// Tries a failed commit again until it is stored, refused for good, or in conflict.
    async fn retry(self: Arc<Self>, file: Arc<File>) {
        let mut pause = FIRST_RETRY;
        loop {
            file.change_alone().retrying = Some(self.env.now() + pause);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.last_pause(&file));
            let call = Call::background(self.env.deadline());
            let stored = self.commit(&file, &call, Cause::Retry).await.is_ok();
            let again = file.state().failure.as_ref().is_some_and(Failure::is_retried);
            if stored || !again {
                break;
            }
        }
        file.change_alone().retrying = None;
        self.inodes.lock().drop_unheld(file.ino);
    }

    /// The longest pause. A key may lack a permission for weeks: each file then costs at most one
    /// request a minute.
    fn last_pause(&self, file: &File) -> Duration {
        let state = file.state();
        let refused = state.failure.as_ref().is_some_and(|failure| failure.key_refused);
        let looks_first = state.stored.is_some() && !self.env.cache().vault().capabilities().version_check;
        if refused && looks_first { LAST_RETRY * 2 } else { LAST_RETRY }
    }

    /// A dead worker had counted so many failures.
    pub fn restore_failures(&self, count: u64) {
        self.failures.store(count, Ordering::Relaxed);
    }

    /// Marks a failed commit as a conflict with a newer version: background retries end.
    pub fn conflict(&self, file: &File) {
        let mut state = file.change_alone();
        let name = state.name.clone();
        if let Some(failure) = &mut state.failure {
            failure.conflict = true;
            failure.message = "the object has changed in the vault since; the bytes are kept here".to_owned();
            tracing::warn!(name = name.as_str(), "an unsaved write is in conflict with a newer version");
        }
    }
}
