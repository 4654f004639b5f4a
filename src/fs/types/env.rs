//! What every part of the file system may use: options, clock, runtime, cache, journal, kernel, and
//! the log of errors. Built once, before the parts; the kernel is attached later.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::fs::journal::{JournalWriter, Key};
use crate::fs::types::errno::Errno;
use crate::fs::types::error_log::{ErrorLog, LastError};
use crate::fs::{Kernel, Options};
use crate::vault::cache::{Cache, CacheConfig};
use crate::vault::save::Stored;
use crate::vault::{Call, DynVault, Error, Object, ObjectId, ObjectName};

/// How many refresh times the kernel goes without asking while changes are brought to it.
const TTL_TICKS: u32 = 12;

/// See the module.
pub(in crate::fs) struct Env {
    options: Options,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    cache: Arc<Cache>,
    journal: JournalWriter,
    /// Absent until the session is there, which needs the file system first.
    kernel: OnceLock<Arc<dyn Kernel>>,
    errors: Arc<ErrorLog>,
    started: SystemTime,
}

impl Env {
    /// Call it on the runtime that background work belongs to.
    pub fn new(
        vault: DynVault,
        options: Options,
        clock: Arc<dyn Clock>,
        journal: JournalWriter,
    ) -> Arc<Self> {
        let config = CacheConfig {
            refresh: options.refresh,
            max_stale: options.max_stale,
            timeout: options.timeout,
            capacity: options.cache_size,
        };
        Arc::new(Self {
            cache: Cache::new(vault, clock.clone(), config),
            runtime: Handle::current(),
            kernel: OnceLock::new(),
            errors: Arc::default(),
            started: clock.wall(),
            options,
            clock,
            journal,
        })
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The deadline of background work that begins now.
    pub fn deadline(&self) -> std::time::Instant {
        self.now() + self.options.timeout
    }

    /// Time left of a call.
    pub fn left(&self, call: &Call) -> Duration {
        call.deadline.saturating_duration_since(self.now())
    }

    pub fn wall(&self) -> SystemTime {
        self.clock.wall()
    }

    /// When this worker started.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// For background work: operations are called from threads outside of the runtime.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The bytes of just this version, if they are in memory.
    pub fn bytes_in_memory(&self, stored: &Stored) -> Option<Arc<Object>> {
        let object = self.cache.value_in_memory(&stored.id, &stored.version)?;
        stored.is(&object.meta).then_some(object)
    }

    /// Journals what a successor needs.
    pub fn journal(&self) -> &JournalWriter {
        &self.journal
    }

    /// Writes down what a successor has to know of a vault that lags.
    pub fn note_lag(&self) {
        if self.journal.is_enabled()
            && let Some(lag) = self.cache.lag_memory()
        {
            self.journal.record(&Key::Lag, &lag);
        }
    }

    /// An object was deleted here, or is known to be gone: of another one that has its name by now
    /// only if `id` says which.
    pub fn note_deleted(&self, name: &ObjectName, id: Option<&ObjectId>) {
        match id {
            Some(id) => self.cache.deleted_object(name, id),
            None => self.cache.deleted(name),
        }
        self.note_lag();
    }

    pub fn kernel(&self) -> Option<&Arc<dyn Kernel>> {
        self.kernel.get()
    }

    /// The session is there. A second one would be a second mount of the same state: there is none.
    pub fn attach_kernel(&self, kernel: Arc<dyn Kernel>) {
        let _ = self.kernel.set(kernel);
    }

    /// Makes the kernel read an inode anew.
    pub fn inval_inode(&self, ino: u64) {
        if let Some(kernel) = self.kernel() {
            kernel.inval_inode(ino);
        }
    }

    /// For how long the kernel may go on without asking, where what changes is brought to it.
    pub fn ttl(&self, fresh_for: Duration) -> Duration {
        if fresh_for.is_zero() || !self.cache.is_refreshed() { fresh_for } else { self.longest_ttl() }
    }

    /// The longest of all.
    pub fn longest_ttl(&self) -> Duration {
        self.options.refresh.saturating_mul(TTL_TICKS)
    }

    pub fn errors(&self) -> &ErrorLog {
        &self.errors
    }

    /// Logs a failure with operation and name, keeps it for `status`, and returns its errno.
    pub fn failed(&self, operation: &'static str, name: &str, error: &Error) -> Errno {
        let errno = Errno::from(error);
        if self.keep(operation, name, errno, error.to_string()) {
            tracing::warn!(operation, name, ?errno, %error, "operation failed");
        }
        errno
    }

    /// The same for a local refusal: `why` says what to do.
    pub fn refused(&self, operation: &'static str, name: &str, errno: Errno, why: &str) -> Errno {
        if self.keep(operation, name, errno, why.to_owned()) {
            tracing::info!(operation, name, ?errno, "refused: {why}");
        }
        errno
    }

    fn keep(&self, operation: &'static str, name: &str, errno: Errno, message: String) -> bool {
        self.errors.add(&self.runtime, LastError::new(self.wall(), operation, name, errno, message))
    }
}
