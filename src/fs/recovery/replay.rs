//! Requests that a worker's death leaves unanswered: the kernel sends them again, and each effect happens once.
//!
//! 1. A request keeps its number (`unique`); sent again, its top bit is set.
//! 2. Most requests can just be done again: a write by its offset, a flush because what is stored is not dirty any
//!    more, a release because the handle is gone, an open because its handle knows the request it is of.
//! 3. What changes names cannot: an unlink done twice would be ENOENT. So when such a request has found that it may
//!    go on, and before its first effect, it writes down what it is [`Intent`], and after its answer that this is
//!    over. Sent again it goes on from there, and takes what is done already for done. Nobody else can have changed
//!    these names meanwhile: the kernel holds their directories' locks until it has the answer.
//! 4. What has to wait is written down when it begins, with its time: its deadline is the same whoever serves it. Only a
//!    successor that comes late gets a moment all the same ([`MIN_RETRY_TIME`]), so that a save that is done is not denied.
//! 5. Those that workers die of are given up: see `quarantine`.
//!
//! Which request a piece of work is for is known to the task, not handed through every call.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::failpoint;
use crate::fs::journal::Key;
use crate::fs::recovery::quarantine;
use crate::fs::recovery::quarantine::CrashRecord;
use crate::fs::types::errno::Errno;
use crate::fs::{CrashRecords, FileSystem, Step};
use crate::vault::{Call, ObjectName};

/// Set in the number of a request that is sent again.
const AGAIN: u64 = 1 << 63;

/// What a successor gets at least for a request whose time is over, or nearly: there may have been nobody to answer it.
const MIN_RETRY_TIME: Duration = Duration::from_secs(1);
/// And if that was so for longer than [`LATE`], which no one death is the reason for: for what is known without the vault.
const MIN_TIME: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(30);

/// What a request has begun to do; what it has to know of how things were before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::fs) enum Intent {
    /// Making a file, directory or other name that was not there.
    Make,
    /// Removing a directory that was there and empty.
    Rmdir,
    /// Removing a file's name, with the objects behind it.
    Unlink { ino: u64 },
    /// Moving a file to a name, over another file or not.
    Rename { ino: u64, name: ObjectName, over: Option<u64> },
    /// Moving a directory.
    RenameDir,
}

impl Intent {
    /// The file whose bytes are needed to go on.
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

/// The number of the request that this task works for.
pub(in crate::fs) fn current() -> Option<u64> {
    CURRENT.try_with(|current| current.id).ok()
}

/// What this request had begun to do when the last worker died.
pub(in crate::fs) fn resumed() -> Option<Intent> {
    CURRENT.try_with(|current| current.resumed.clone()).ok().flatten()
}

/// The time left for a request that came `age` ago and is begun now.
fn patience(timeout: Duration, age: Duration) -> Duration {
    timeout.saturating_sub(age).max(if age < timeout + LATE { MIN_RETRY_TIME } else { MIN_TIME })
}

impl FileSystem {
    /// Does `work` for the request `unique`, which changes something. [`FileSystem::completed`] ends it.
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

    /// The same for one that changes nothing. [`FileSystem::completed`] is to be called if it had to wait, or was sent
    /// again.
    pub fn run_idempotent<T: Send + 'static>(
        self: &Arc<Self>,
        unique: u64,
        work: impl FnOnce(&Arc<Self>) -> Step<T>,
    ) -> Step<T> {
        let id = unique & !AGAIN;
        let known = if unique & AGAIN != 0 { Some(self.record_of_resent(id)) } else { None };
        if known.is_some_and(|crash_record| crash_record.poisoned) {
            let why = "workers keep dying of this request: it is given up";
            return Step::Ready(Err(self.refused("request", &format!("number {id}"), Errno::EIO, why)));
        }
        let suspect = known.is_some_and(|crash_record| crash_record.is_suspect());
        let alone = suspect
            .then(|| self.quarantine.immediate.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        if let Some(crash_record) = known {
            self.note(id, CrashRecord { under_way: true, ..crash_record });
        }
        let deadline = self.clock.now() + self.time_left(unique);
        let future = match DEADLINE.sync_scope(deadline, || work(self)) {
            Step::Ready(result) => return Step::Ready(result),
            Step::Pending(future) => DEADLINE.scope(deadline, future),
        };
        let crash_record =
            known.unwrap_or_else(|| CrashRecord::new(self.clock.since_boot().as_millis() as u64));
        if known.is_none() || suspect {
            self.note(id, CrashRecord { under_way: !suspect, ..crash_record });
        }
        drop(alone);
        if !suspect {
            return Step::Pending(Box::pin(future));
        }
        let mut ticket = self.quarantine.enter(id, crash_record.deaths, &self.runtime);
        let fs = self.clone();
        Step::later(async move {
            ticket.released().await;
            fs.note(id, CrashRecord { under_way: true, ..crash_record });
            future.await
        })
    }

    /// What there is against a request that is sent again.
    fn record_of_resent(&self, id: u64) -> CrashRecord {
        let found = self.crash_records().of.get(&id).copied();
        found.unwrap_or_else(|| {
            let (arrived, ending) = (self.clock.since_boot().as_millis() as u64, self.last_ending());
            CrashRecord::unknown(arrived, ending, self.crash_records().charged)
        })
    }

    /// How long the request may take from now on.
    pub fn time_left(&self, unique: u64) -> Duration {
        let timeout = self.options.timeout;
        let crash_record = self.crash_records().of.get(&(unique & !AGAIN)).copied();
        crash_record.filter(|_| unique & AGAIN != 0).map_or(timeout, |crash_record| {
            let age = self.clock.since_boot().saturating_sub(Duration::from_millis(crash_record.arrived));
            patience(timeout, age)
        })
    }

    fn note(&self, id: u64, crash_record: CrashRecord) {
        if self.journal.is_enabled() {
            self.crash_records().of.insert(id, crash_record);
            self.journal.record(&Key::CrashRecord(id), &crash_record);
        }
    }

    fn forget_crash_record(&self, id: u64) {
        if self.crash_records().of.remove(&id).is_some() {
            self.journal.delete(&Key::CrashRecord(id));
        }
    }

    /// The worker before this one is dead: says so of what it was at.
    pub(in crate::fs) fn charge_last_death(&self) {
        let ending = self.last_ending();
        let mut crash_records = self.crash_records();
        let there: Vec<u64> = crash_records
            .of
            .iter()
            .filter(|(_, crash_record)| crash_record.under_way)
            .map(|(id, _)| *id)
            .collect();
        crash_records.charged = there.len();
        quarantine::charge(crash_records.of.values_mut(), ending);
        let batch = self.journal.batch();
        for id in there {
            self.journal.record(&Key::CrashRecord(id), &crash_records.of[&id]);
        }
        drop(crash_records);
        drop(batch);
    }

    fn last_ending(&self) -> quarantine::Ending {
        self.processes.get().map(|processes| processes.ending).unwrap_or_default()
    }

    pub(in crate::fs) fn crash_records(&self) -> MutexGuard<'_, CrashRecords> {
        self.crash_records.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The bound of what the current request does; of work that is for none, a whole `--timeout`.
    pub(in crate::fs) fn call(&self) -> Call {
        let deadline = DEADLINE.try_with(|deadline| *deadline);
        Call::foreground(deadline.unwrap_or_else(|_| self.clock.now() + self.options.timeout))
    }

    /// The request `unique` has been answered: it will not come again.
    pub fn completed(&self, unique: u64) {
        let id = unique & !AGAIN;
        if self.intents().remove(&id).is_some() {
            self.journal.delete(&Key::Intent(id));
        }
        self.acknowledge_open(id);
        self.forget_crash_record(id);
    }

    /// Writes down what the current request is about to do. From now on it can be done in parts.
    pub(in crate::fs) fn record_intent(&self, intent: Intent) {
        let Some(id) = current() else { return };
        if self.journal.is_enabled() {
            self.journal.record(&Key::Intent(id), &intent);
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
        let fh = self.unacknowledged.handle_of(id)?;
        self.handles().get(&fh).cloned()
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
