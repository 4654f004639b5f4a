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

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};

use crate::failpoint;
use crate::fs::journal::{Key, Transaction};
use crate::fs::recovery::quarantine;
use crate::fs::recovery::quarantine::{CrashRecord, Ending};
use crate::fs::types::ctx::{Caller, Intent, RequestCtx};
use crate::fs::types::env::Env;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::{Step, Work};

/// The flag in the number of a resent request.
const AGAIN: u64 = 1 << 63;

/// Minimum time of a resent request past its deadline: perhaps no worker could answer.
/// Given once.
const MIN_RETRY_TIME: Duration = Duration::from_secs(1);
/// The same once a worker had that time: enough for what is known without the vault. Otherwise
/// deaths in short order would delay the answer without end.
const MIN_TIME: Duration = Duration::from_millis(100);
/// The age past its deadline at which a request counts as one that had [`MIN_RETRY_TIME`].
const LATE: Duration = Duration::from_secs(30);

/// How long crash records and intents of the dead worker are kept: resent requests arrive at once.
pub(in crate::fs) const RESENT_WITHIN: Duration = Duration::from_secs(60);

/// The number of a request, the same when it is resent.
pub(in crate::fs) fn number_of(unique: u64) -> u64 {
    unique & !AGAIN
}

/// A request that may be worked for.
pub(in crate::fs) struct Begun<'a> {
    pub ctx: RequestCtx,
    /// Its crash record, if it is resent.
    known: Option<CrashRecord>,
    /// Of a suspect: held while it works on the kernel's thread.
    alone: Option<MutexGuard<'a, ()>>,
}

/// The time left for a request of that age.
fn patience(timeout: Duration, age: Duration) -> Duration {
    timeout.saturating_sub(age).max(if age < timeout + LATE { MIN_RETRY_TIME } else { MIN_TIME })
}

/// Crash records of unanswered requests.
#[derive(Debug, Default)]
struct CrashRecords {
    of: HashMap<u64, CrashRecord>,
    /// How the last worker ended.
    ending: Ending,
    /// How many requests were under way then.
    charged: usize,
}

/// What is known of requests that may be resent.
pub(in crate::fs) struct Replay {
    env: Arc<Env>,
    intents: Mutex<HashMap<u64, Intent>>,
    /// Requests that may kill workers (`quarantine`).
    crash_records: Mutex<CrashRecords>,
    /// What suspects do on the kernel's threads is done by one of them at a time.
    suspects_alone: Mutex<()>,
}

impl Replay {
    pub fn new(env: Arc<Env>) -> Arc<Self> {
        Arc::new(Self {
            env,
            intents: Mutex::default(),
            crash_records: Mutex::default(),
            suspects_alone: Mutex::default(),
        })
    }

    /// What a dead worker wrote down.
    pub fn restore(&self, intents: HashMap<u64, Intent>, crash_records: HashMap<u64, CrashRecord>) {
        *self.intents.lock() = intents;
        self.crash_records.lock().of = crash_records;
    }

    /// The files that interrupted requests move.
    pub fn moved_files(&self) -> Vec<u64> {
        self.intents.lock().values().filter_map(Intent::moves).collect()
    }

    /// Begins `work` for the request `unique`: polled once, it is done if nothing has to be asked
    /// of the vault. [`Replay::completed`] ends a request that changed something, waited, or was
    /// resent.
    pub fn run<'a, T: 'a, W: Work<T> + 'a>(
        self: &Arc<Self>,
        unique: u64,
        caller: Caller,
        work: impl FnOnce(RequestCtx) -> W,
    ) -> Step<'a, T> {
        let Begun { ctx, known, alone } = match self.begin(unique, caller) {
            Ok(begun) => begun,
            Err(e) => return Step::Ready(Err(e)),
        };
        let id = ctx.id;
        let mut future: BoxFuture<'a, Result<T>> = Box::pin(work(ctx));
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Step::Ready(result);
        }
        let suspect = alone.is_some();
        let crash_record =
            known.unwrap_or_else(|| CrashRecord::new(self.env.clock().since_boot().as_millis() as u64));
        if known.is_none() || suspect {
            self.note(id, CrashRecord { under_way: !suspect, ..crash_record });
        }
        drop(alone);
        if !suspect {
            return Step::Pending(future);
        }
        let left = self.time_left(unique);
        let delay = quarantine::delay(id, &self.crash_records.lock().of, left);
        let replay = self.clone();
        Step::Pending(Box::pin(async move {
            tokio::time::sleep(delay).await;
            replay.note(id, CrashRecord { under_way: true, ..crash_record });
            future.await
        }))
    }

    /// A request arrives. It is refused if workers keep dying of it.
    pub fn begin(&self, unique: u64, caller: Caller) -> Result<Begun<'_>> {
        let (id, is_resent) = (number_of(unique), unique & AGAIN != 0);
        let known = is_resent.then(|| self.record_of_resent(id));
        if known.is_some_and(|crash_record| crash_record.poisoned) {
            let why = "this request keeps crashing workers: it is given up";
            return Err(self.env.refused("request", &format!("number {id}"), Errno::EIO, why));
        }
        let suspect = known.is_some_and(|crash_record| crash_record.is_suspect());
        let alone = suspect.then(|| self.suspects_alone.lock());
        if let Some(crash_record) = known {
            self.note(id, CrashRecord { under_way: true, ..crash_record });
        }
        let resumed = if is_resent { self.intents.lock().get(&id).cloned() } else { None };
        let deadline = self.env.now() + self.time_left(unique);
        Ok(Begun { ctx: RequestCtx::new(id, caller, deadline, resumed), known, alone })
    }

    /// The crash record of a resent request.
    fn record_of_resent(&self, id: u64) -> CrashRecord {
        let found = self.crash_records.lock().of.get(&id).copied();
        found.unwrap_or_else(|| {
            let arrived = self.env.clock().since_boot().as_millis() as u64;
            let crash_records = self.crash_records.lock();
            CrashRecord::unknown(arrived, crash_records.ending, crash_records.charged)
        })
    }

    /// The time left for the request.
    pub fn time_left(&self, unique: u64) -> Duration {
        let timeout = self.env.options().timeout;
        if unique & AGAIN == 0 {
            return timeout;
        }
        let crash_record = self.crash_records.lock().of.get(&number_of(unique)).copied();
        crash_record.map_or(timeout, |crash_record| {
            let age =
                self.env.clock().since_boot().saturating_sub(Duration::from_millis(crash_record.arrived));
            patience(timeout, age)
        })
    }

    fn note(&self, id: u64, crash_record: CrashRecord) {
        if self.env.journal().is_enabled() {
            self.crash_records.lock().of.insert(id, crash_record);
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
        if self.crash_records.lock().of.remove(&id).is_some() {
            self.env.journal().delete(&Key::CrashRecord(id));
        }
    }

    /// Charges the death of the previous worker.
    pub fn charge_last_death(&self, ending: Ending) {
        let mut crash_records = self.crash_records.lock();
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

    /// The request with this number has been answered: it will not be resent.
    pub fn completed(&self, id: u64) {
        if self.intents.lock().remove(&id).is_some() {
            self.env.journal().delete(&Key::Intent(id));
        }
        self.forget_crash_record(id);
    }

    /// Journals what the request is about to do. From now on it may be done in parts.
    pub fn record_intent(&self, ctx: &RequestCtx, intent: Intent) {
        let point = intent.failpoint();
        self.note_intent(&self.env.journal().begin(), ctx, intent);
        failpoint::point(point);
    }

    /// The same of what is done at once: as a part of that change.
    pub fn record_intent_in(&self, tx: &Transaction, ctx: &RequestCtx, intent: Intent) {
        failpoint::point(intent.failpoint());
        self.note_intent(tx, ctx, intent);
    }

    fn note_intent(&self, tx: &Transaction, ctx: &RequestCtx, intent: Intent) {
        if self.env.journal().is_enabled() {
            tx.record(&Key::Intent(ctx.id), &intent);
            self.intents.lock().insert(ctx.id, intent);
        }
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
