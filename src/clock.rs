//! Time, handed in from outside so that tests never wait for it.
//!
//! Production code asks a [`Clock`] and never the operating system; [`ManualClock`] stands still
//! until a test moves it. Only freshness, deadlines and timestamps go through here: sleeping inside
//! the runtime uses tokio's timer, which tests can pause.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// The last second that RFC 3339 can write, in seconds since 1970.
pub const LAST_SECOND: u64 = 253_402_300_799;

/// The nearest time from 1970 to 9999: what can be written down, in records and as text. Whatever
/// brings a time in from outside (a program, the vault) passes it through here.
pub fn bounded(at: SystemTime) -> SystemTime {
    let last = Duration::new(LAST_SECOND, 999_999_999);
    UNIX_EPOCH + at.duration_since(UNIX_EPOCH).unwrap_or_default().min(last)
}

/// A source of monotonic and of wall-clock time.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Monotonic time: deadlines, freshness.
    fn now(&self) -> Instant;
    /// Wall-clock time: timestamps that a user sees.
    fn wall(&self) -> SystemTime;
    /// Monotonic time that means the same to every process of the machine, until that is started
    /// again.
    fn since_boot(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
    fn since_boot(&self) -> Duration {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes a timespec; cannot fail for this clock.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    }
}

/// A clock that only tests advance.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<(Instant, SystemTime)>>, Instant);

impl ManualClock {
    /// Starts at the machine's present time and stands still.
    pub fn new() -> Self {
        let start = Instant::now();
        Self(Arc::new(Mutex::new((start, SystemTime::now()))), start)
    }

    /// Moves both times on by `by`.
    pub fn advance(&self, by: Duration) {
        let mut t = self.0.lock();
        t.0 += by;
        t.1 += by;
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.0.lock().0
    }
    fn wall(&self) -> SystemTime {
        self.0.lock().1
    }
    fn since_boot(&self) -> Duration {
        self.now().duration_since(self.1)
    }
}
