//! Requests that a worker's death leaves unanswered: the kernel resends them, and each effect
//! happens once.
//!
//! 1. A request keeps its number (`unique`); in a resent one the top bit is set.
//! 2. Most requests are idempotent: a write by its offset, a flush because stored bytes are not
//!    dirty, a release because the handle is gone, an open because its handle knows its request.
//! 3. Changes of names are not: a repeated unlink would be ENOENT. Before its first effect such a
//!    request journals an [`Intent`], which is removed after its answer. A resent one resumes from
//!    there, and takes completed steps as done. Nothing else changes these names meanwhile: the
//!    kernel holds the locks of their directories until the answer.
//! 4. A request that waits is journaled with its arrival time: its deadline is the same in every
//!    worker. A successor that comes late gets [`MIN_RETRY_TIME`], so that a completed save is not
//!    reported as failed.
//! 5. Requests that kill workers are failed: see `quarantine`.
//!
//! The task knows the request that it works for; it is not passed through every call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use serde::{Deserialize, Serialize};

use crate::failpoint;
use crate::fs::journal::Key;
use crate::fs::recovery::quarantine;
use crate::fs::recovery::quarantine::CrashRecord;
use crate::fs::types::errno::Errno;
use crate::fs::{CrashRecords, FileSystem, Step};
use crate::vault::{Call, ObjectName};

/// The flag in the number of a resent request.
const AGAIN: u64 = 1 << 63;

/// Minimum time of a resent request whose deadline has passed: perhaps no worker could answer. Given
/// once.
const MIN_RETRY_TIME: Duration = Duration::from_secs(1);
/// The same once a worker had that time: enough for what is known without the vault. Otherwise
/// deaths in short order would delay the answer without end.
const MIN_TIME: Duration = Duration::from_millis(100);
/// The age past its deadline at which a request counts as one that had [`MIN_RETRY_TIME`].
const LATE: Duration = Duration::from_secs(30);

/// What a request has begun to do, and what it must know of the state before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::fs) enum Intent {
    /// Makes a file, directory or other name.
    Make,
    /// Removes an empty directory.
    Rmdir,
    /// Removes a file's name, with the objects behind it.
    Unlink { ino: u64 },
    /// Moves a file to a name, over another file or not.
    Rename { ino: u64, name: ObjectName, over: Option<u64> },
    /// Moves a directory.
    RenameDir,
}

impl Intent {
    /// The file whose bytes are needed to resume.
    pub fn moves(&self) -> Option<u64> {
        match self {
            Intent::Rename { ino, .. } => Some(*ino),
            Intent::Make | Intent::Rmdir | Intent::Unlink { .. } | Intent::RenameDir => None,
        }
    }
}

/// The request that a task works for.
#[derive(Debug)]
struct Current {
    id: u64,
    resumed: Option<Intent>,
}

tokio::task_local! {
    static CURRENT: Arc<Current>;
    static DEADLINE: Instant;
}

/// The number of this task's request.
pub(in crate::fs) fn current() -> Option<u64> {
    CURRENT.try_with(|current| current.id).ok()
}

/// The intent of this task's request, if a dead worker had recorded one.
pub(in crate::fs) fn resumed() -> Option<Intent> {
    CURRENT.try_with(|current| current.resumed.clone()).ok().flatten()
}

/// The time left for a request of that age.
fn patience(timeout: Duration, age: Duration) -> Duration {
    timeout.saturating_sub(age).max(if age < timeout + LATE { MIN_RETRY_TIME } else { MIN_TIME })
}

impl FileSystem {
    /// Runs `work` for the request `unique`, which changes something. [`FileSystem::completed`]
    /// ends it.
    pub fn run_mutating<T: Send + 'static>(
        self: &Arc<Self>,
        unique: u64,
        work: impl FnOnce(&Arc<Self>) -> Step<T>,
    ) -> Step<T> {
        let id = unique & !AGAIN;
        let resumed = if unique & AGAIN != 0 { self.intents().get(&id).cloned() } else { None };
        let current = Arc::new(Current { id, resumed });
        self.run_idempotent(unique, |fs| match CURRENT.sync_scope(current.clone(), || work(fs)) {
            Step::Ready(result) => Step::Ready(result),
            Step::Pending(future) => Step::Pending(Box::pin(CURRENT.scope(current, future))),
        })
    }

    /// The same for a request that changes nothing. It needs [`FileSystem::completed`] if it
    /// waited, or was resent.
    pub fn run_idempotent<T: Send + 'static>(
        self: &Arc<Self>,
        unique: u64,
        work: impl FnOnce(&Arc<Self>) -> Step<T>,
    ) -> Step<T> {
        let id = unique & !AGAIN;
        let known = if unique & AGAIN != 0 { Some(self.record_of_resent(id)) } else { None };
        if known.is_some_and(|crash_record| crash_record.poisoned) {
            let why = "workers keep dying of this request: it is given up";
            return Step::Ready(Err(self.env.refused("request", &format!("number {id}"), Errno::EIO, why)));
        }
        let suspect = known.is_some_and(|crash_record| crash_record.is_suspect());
        let alone = suspect.then(|| self.suspects_alone.lock());
        if let Some(crash_record) = known {
            self.note(id, CrashRecord { under_way: true, ..crash_record });
        }
        let deadline = self.env.now() + self.time_left(unique);
        let future = match DEADLINE.sync_scope(deadline, || work(self)) {
            Step::Ready(result) => return Step::Ready(result),
            Step::Pending(future) => DEADLINE.scope(deadline, future),
        };
        let crash_record =
            known.unwrap_or_else(|| CrashRecord::new(self.env.clock().since_boot().as_millis() as u64));
        if known.is_none() || suspect {
            self.note(id, CrashRecord { under_way: !suspect, ..crash_record });
        }
        drop(alone);
        if !suspect {
            return Step::Pending(Box::pin(future));
        }
        let left = deadline.saturating_duration_since(self.env.now());
        let delay = quarantine::delay(id, &self.crash_records().of, left);
        let fs = self.clone();
        Step::later(async move {
            tokio::time::sleep(delay).await;
            fs.note(id, CrashRecord { under_way: true, ..crash_record });
            future.await
        })
    }

    /// The crash record of a resent request.
    fn record_of_resent(&self, id: u64) -> CrashRecord {
        let found = self.crash_records().of.get(&id).copied();
        found.unwrap_or_else(|| {
            let arrived = self.env.clock().since_boot().as_millis() as u64;
            let crash_records = self.crash_records();
            CrashRecord::unknown(arrived, crash_records.ending, crash_records.charged)
        })
    }

    /// The time left for the request.
    pub fn time_left(&self, unique: u64) -> Duration {
        let timeout = self.env.options().timeout;
        let crash_record = self.crash_records().of.get(&(unique & !AGAIN)).copied();
        crash_record.filter(|_| unique & AGAIN != 0).map_or(timeout, |crash_record| {
            let age =
                self.env.clock().since_boot().saturating_sub(Duration::from_millis(crash_record.arrived));
            patience(timeout, age)
        })
    }

    fn note(&self, id: u64, crash_record: CrashRecord) {
        if self.env.journal().is_enabled() {
            self.crash_records().of.insert(id, crash_record);
            let arrived = self.arrived_for_successor(crash_record.arrived);
            self.env.journal().record(&Key::CrashRecord(id), &CrashRecord { arrived, ..crash_record });
        }
    }

    /// The arrival time that the successor reads: a request that gets [`MIN_RETRY_TIME`] from this
    /// worker is [`LATE`] there.
    fn arrived_for_successor(&self, arrived: u64) -> u64 {
        let age = self.env.clock().since_boot().saturating_sub(Duration::from_millis(arrived));
        match age + MIN_RETRY_TIME > self.env.options().timeout.max(2 * MIN_RETRY_TIME) {
            true => arrived.saturating_sub(LATE.as_millis() as u64),
            false => arrived,
        }
    }

    fn forget_crash_record(&self, id: u64) {
        if self.crash_records().of.remove(&id).is_some() {
            self.env.journal().delete(&Key::CrashRecord(id));
        }
    }

    /// Charges the death of the previous worker.
    pub(in crate::fs) fn charge_last_death(&self, ending: quarantine::Ending) {
        let mut crash_records = self.crash_records();
        let there: Vec<u64> = crash_records
            .of
            .iter()
            .filter(|(_, crash_record)| crash_record.under_way)
            .map(|(id, _)| *id)
            .collect();
        (crash_records.ending, crash_records.charged) = (ending, there.len());
        quarantine::charge(crash_records.of.values_mut(), ending);
        let tx = self.env.journal().begin();
        for id in there {
            tx.record(&Key::CrashRecord(id), &crash_records.of[&id]);
        }
    }

    pub(in crate::fs) fn crash_records(&self) -> MutexGuard<'_, CrashRecords> {
        self.crash_records.lock()
    }

    /// The deadline of the current request; outside of requests, a whole `--timeout` from now.
    pub(in crate::fs) fn call(&self) -> Call {
        let deadline = DEADLINE.try_with(|deadline| *deadline);
        Call::foreground(deadline.unwrap_or_else(|_| self.env.now() + self.env.options().timeout))
    }

    /// The request `unique` has been answered: it will not be resent.
    pub fn completed(&self, unique: u64) {
        let id = unique & !AGAIN;
        if self.intents().remove(&id).is_some() {
            self.env.journal().delete(&Key::Intent(id));
        }
        self.acknowledge_open(id);
        self.forget_crash_record(id);
    }

    /// Journals the intent of the current request. From now on it may be done in parts.
    pub(in crate::fs) fn record_intent(&self, intent: Intent) {
        let Some(id) = current() else { return };
        if self.env.journal().is_enabled() {
            self.env.journal().record(&Key::Intent(id), &intent);
            self.intents().insert(id, intent.clone());
        }
        failpoint::point(match intent {
            Intent::Make => "make",
            Intent::Rmdir => "rmdir",
            Intent::Unlink { .. } => "unlink",
            Intent::Rename { .. } => "rename",
            Intent::RenameDir => "rename dir",
        });
    }

    /// The handle that the current request opened before the last worker died.
    pub(in crate::fs) fn opened_before(&self) -> Option<Arc<crate::fs::ops::open::Handle>> {
        let id = current()?;
        self.unacknowledged.lock().get(&id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_goes_on_with_the_time_that_is_left_and_looks_once_more_at_what_is_late() {
        let patience = |age| patience(Duration::from_secs(4), Duration::from_millis(age)).as_millis();
        assert_eq!(patience(0), 4000);
        assert_eq!(patience(1500), 2500);
        assert_eq!(patience(3500), 1000);
        assert_eq!(patience(14_500), 1000);
        assert_eq!(patience(34_500), 100);
    }
}
