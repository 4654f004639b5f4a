//! What a change waits for before it goes to the vault: one wait, with one report of its timeout.
//!
//! 1. The commit lock of a file serializes the changes of its object at the vault.
//! 2. A commit holds a permit, deferred deletes hold all of them: no hidden object is deleted while
//!    a commit is in flight, which may reuse its name.
//! 3. Lock order: the locks of files, then permits.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{AcquireError, Mutex, OwnedSemaphorePermit};

use crate::fs::inode::file::File;
use crate::fs::writeback::Writeback;
use crate::vault::{Call, Error, ErrorKind};

/// Commits in flight at a time.
pub(super) const COMMITS: u32 = 1024;

/// Deferred deletes share a permit if they begin within this time.
const TOGETHER: Duration = Duration::from_millis(250);

/// The permit of the deferred deletes that run together, and when the first of them began.
pub(super) type Together = Mutex<Option<(Weak<OwnedSemaphorePermit>, Instant)>>;

impl Writeback {
    /// Waits for a permit until the deadline of the call; `holder` says what holds it.
    async fn permit_within<T>(
        &self,
        call: &Call,
        permit: impl Future<Output = Result<T, AcquireError>>,
        holder: &str,
    ) -> Result<T, Error> {
        let permit = tokio::time::timeout(self.env.left(call), permit).await;
        // The semaphores are never closed: an error is the timeout's.
        permit.ok().and_then(Result::ok).ok_or_else(|| Error::new(ErrorKind::Deadline, holder))
    }

    /// Waits until no change of this file is out at the vault.
    pub async fn lock_commit(&self, file: &File, call: &Call) -> Result<OwnedSemaphorePermit, Error> {
        let lock = file.commit_lock.clone().acquire_owned();
        self.permit_within(call, lock, "an earlier change of this file is still on its way").await
    }

    /// A permit for a commit: no hidden object is deleted meanwhile.
    pub async fn among_stores(&self, call: &Call) -> Result<OwnedSemaphorePermit, Error> {
        let permit = self.commits.clone().acquire_owned();
        self.permit_within(call, permit, "a deletion is on its way that has to end first").await
    }

    /// A permit for deferred deletes: no commit is in flight. Deletes that begin at about the same
    /// time share it; later ones queue behind the waiting commits.
    pub async fn without_stores(&self, call: &Call) -> Result<Arc<OwnedSemaphorePermit>, Error> {
        let permit = async {
            let mut shared = self.deletes.lock().await;
            if let Some((permit, begun)) = &*shared
                && let Some(permit) = permit.upgrade()
                && self.env.now().saturating_duration_since(*begun) < TOGETHER
            {
                return Ok(permit);
            }
            let permit = Arc::new(self.commits.clone().acquire_many_owned(COMMITS).await?);
            *shared = Some((Arc::downgrade(&permit), self.env.now()));
            Ok(permit)
        };
        self.permit_within(call, permit, "a save is on its way that has to end first").await
    }

    /// Waits until the commits in flight are recorded; no other begins until the result is dropped.
    pub async fn hold_stores(&self, within: Duration) -> Option<OwnedSemaphorePermit> {
        let call = Call::foreground(self.env.now() + within);
        let all = self.commits.clone().acquire_many_owned(COMMITS);
        self.permit_within(&call, all, "a save is on its way").await.ok()
    }
}
