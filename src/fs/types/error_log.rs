//! The failures of the file system: for `status`, for the metrics and for the log.
//!
//! In the log the same failure (operation, name and errno) is one line a minute, with a count at
//! its end; and of the failures of one user with one errno only the first [`LINES`] are logged one
//! by one: a program in a loop fills no disk. Minutes begin with the first failure after the last
//! one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::fs::types::errno::Errno;
use crate::vault::attribution;

/// Failures kept for `status`.
const LAST_ERRORS: usize = 20;

/// In this time a repeated failure is logged once.
const FOLDED: Duration = Duration::from_secs(60);

/// Failures of one user with one errno that are logged one by one in that time.
const LINES: usize = 10;

/// Pairs of user and errno that are counted separately in that time.
const KINDS: usize = 1000;

/// A failure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastError {
    /// RFC 3339.
    pub at: String,
    /// What was tried.
    pub operation: String,
    /// On which name.
    pub name: String,
    /// What the program saw.
    pub errno: String,
    /// The sentence.
    pub message: String,
}

impl LastError {
    pub(in crate::fs) fn new(
        at: SystemTime,
        operation: &str,
        name: &str,
        errno: Errno,
        message: String,
    ) -> Self {
        Self {
            at: humantime::format_rfc3339_seconds(at).to_string(),
            operation: operation.to_owned(),
            name: name.to_owned(),
            errno: format!("{errno:?}"),
            message,
        }
    }
}

/// Operation, name and errno.
type Same = (String, String, String);

/// A user and an errno.
type Kind = (Option<u32>, String);

/// The failures of one kind in the present minute.
#[derive(Debug, Default)]
struct Logged {
    /// Those that have a line, and how often they came again.
    lines: HashMap<Same, u64>,
    /// Those that have none.
    others: u64,
}

#[derive(Debug, Default)]
struct ErrorCounts {
    latest: VecDeque<LastError>,
    /// How often each errno was the answer.
    counts: BTreeMap<String, u64>,
    minute: HashMap<Kind, Logged>,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::fs) struct ErrorLog(Mutex<ErrorCounts>);

impl ErrorLog {
    /// Keeps a failure; whether it is to be logged now.
    pub fn add(self: &Arc<Self>, runtime: &Handle, failure: LastError) -> bool {
        let mut inner = self.lock();
        *inner.counts.entry(failure.errno.clone()).or_default() += 1;
        if inner.minute.is_empty() {
            let log = Arc::downgrade(self);
            runtime.spawn(async move {
                tokio::time::sleep(FOLDED).await;
                if let Some(log) = log.upgrade() {
                    log.end_minute();
                }
            });
        }
        let mut kind = (attribution::current().uid(), failure.errno.clone());
        if inner.minute.len() >= KINDS && !inner.minute.contains_key(&kind) {
            kind.0 = None;
        }
        let logged = inner.minute.entry(kind).or_default();
        let same = (failure.operation.clone(), failure.name.clone(), failure.errno.clone());
        if let Some(again) = logged.lines.get_mut(&same) {
            *again += 1;
            inner.keep(failure);
            return false;
        }
        if logged.lines.len() >= LINES {
            logged.others += 1;
            return false;
        }
        logged.lines.insert(same, 0);
        inner.keep(failure);
        true
    }

    /// The latest, oldest first.
    pub fn latest(&self) -> Vec<LastError> {
        self.lock().latest.iter().cloned().collect()
    }

    /// How often each errno was the answer.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.lock().counts.clone()
    }

    /// Tells what has no line of its own.
    fn end_minute(&self) {
        let minute = std::mem::take(&mut self.lock().minute);
        for ((uid, errno), logged) in minute {
            for ((operation, name, errno), times) in logged.lines.into_iter().filter(|(_, times)| *times > 0)
            {
                tracing::warn!(operation, name, errno, times, "the same failure again within a minute");
            }
            if logged.others > 0 {
                let (uid, times) = (uid.map(i64::from), logged.others);
                tracing::warn!(
                    uid,
                    errno,
                    times,
                    "more failures of this user with this errno within a minute"
                );
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ErrorCounts> {
        self.0.lock()
    }
}

impl ErrorCounts {
    fn keep(&mut self, failure: LastError) {
        if self.latest.len() == LAST_ERRORS {
            self.latest.pop_front();
        }
        self.latest.push_back(failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::attribution::Attribution;

    struct Setup(Arc<ErrorLog>);

    impl Setup {
        fn fails(&self, uid: u32, name: &str, errno: Errno) -> bool {
            let failure = LastError::new(SystemTime::UNIX_EPOCH, "lookup", name, errno, String::new());
            Attribution::of(uid, true).scope(|| self.0.add(&Handle::current(), failure))
        }

        fn lines(&self, uid: u32, errno: Errno, names: impl Iterator<Item = u32>) -> usize {
            names.filter(|n| self.fails(uid, &n.to_string(), errno)).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_has_few_lines_a_minute_and_hides_nobody_elses() {
        let log = Setup(Arc::default());
        assert_eq!(log.lines(1, Errno::EBUSY, (0..1000).map(|n| n % 2)), 2, "the same is logged once");
        assert_eq!(log.lines(1, Errno::EBUSY, 0..1000), LINES - 2, "and of many the first");
        assert_eq!(log.0.counts()["EBUSY"], 2000, "all are counted");
        assert!(log.fails(1, "x", Errno::EIO) && log.fails(2, "x", Errno::EBUSY));
        let latest = log.0.latest();
        assert!(latest.iter().any(|failure| failure.errno == "EIO"), "{latest:?}");
        assert_eq!(latest.len(), LAST_ERRORS);
        tokio::time::sleep(FOLDED).await;
        tokio::task::yield_now().await;
        assert!(log.0.lock().minute.is_empty());
        assert!(log.fails(1, "0", Errno::EBUSY), "in the next minute again");
    }

    #[tokio::test]
    async fn users_without_number_take_no_memory_without_bound() {
        let log = Setup(Arc::default());
        let lines = (0..100_000).filter(|uid| log.fails(*uid, "x", Errno::EBUSY)).count();
        assert!(lines <= KINDS + 1, "{lines}");
        assert!(log.0.lock().minute.len() <= KINDS + 1);
    }
}
