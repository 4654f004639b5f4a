//! The worker's heartbeat: how the keeper sees that a worker lives and makes no progress.
//!
//! A worker that is stopped (SIGSTOP), or deadlocked, blocks every program that uses the mount, and
//! no exit status shows it. So it counts a heartbeat each second in the memory that the keeper
//! holds, and the keeper checks it each time it wakes. A worker without a heartbeat for [`TIMEOUT`]
//! is killed; its successor answers the requests that it had read. False alarms are excluded:
//!
//! 1. A busy machine. The heartbeat has a thread of its own that does nothing else, so that no
//!    number of requests delays it; and a keeper that did not run counts only a moment of that time
//!    ([`HeartbeatMonitor`]).
//! 2. Sleep. The clock stops while the machine is suspended, and a frozen cgroup has the keeper in
//!    it, as a rule.
//! 3. A debugger. A worker that is traced is not killed until it is released.
//! 4. A worker that starts, and a program of another version: it has no heartbeat, and is judged
//!    only while it is stopped or frozen.
//!
//! The thread counts only while the runtime makes progress: a task there runs the liveness probe
//! each second. When the probe has not returned for [`STUCK`] (which may be work, on a slow
//! machine) the heartbeat stops, and the keeper does the rest. A notification that the kernel
//! blocks delays its own thread only, and stops no heartbeat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::daemon::state_log::State;
use crate::daemon::worker::Service;

/// Between two heartbeats.
const INTERVAL: Duration = Duration::from_secs(1);

/// A worker without a heartbeat for this long is killed: half the default deadline of a request, so
/// that its successor can answer in time.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Intervals without progress of the runtime after which the heartbeat stops.
const STUCK: u32 = 20;

/// Whether a worker with so many heartbeats has answered a request: the first is counted at the
/// start, the second at its first answer, or a second later.
pub fn has_served(heartbeats: u32) -> bool {
    heartbeats > 1
}

/// The longest time between two checks of a keeper that runs.
const LONGEST_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What the keeper knows of a worker's heartbeat.
#[derive(Debug)]
pub struct HeartbeatMonitor {
    heartbeats: Option<u32>,
    silent_for: Duration,
    checked_at: Instant,
}

impl HeartbeatMonitor {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { heartbeats: None, silent_for: Duration::ZERO, checked_at: now }
    }

    /// Records the worker's count; returns for how long it has not changed while the keeper was
    /// running.
    pub fn observe(&mut self, heartbeats: Option<u32>, now: Instant) -> Duration {
        let passed = now.duration_since(self.checked_at).min(LONGEST_CHECK_INTERVAL);
        self.checked_at = now;
        self.silent_for = if heartbeats.is_none() || heartbeats != self.heartbeats {
            Duration::ZERO
        } else {
            self.silent_for + passed
        };
        self.heartbeats = heartbeats;
        self.silent_for
    }
}

/// Starts the worker's heartbeat, which lasts as long as the process.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    state: Arc<State>,
    runtime: &tokio::runtime::Handle,
    service: Arc<dyn Service>,
) -> std::io::Result<()> {
    let moves = Arc::new(AtomicU64::new(0));
    let moved = moves.clone();
    let (served, answers) = (state.clone(), service.clone());
    runtime.spawn(async move {
        loop {
            service.check_liveness();
            moved.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(INTERVAL).await;
        }
    });
    state.tick();
    runtime.spawn(async move {
        answers.first_answer().await;
        served.tick();
    });
    std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
        let (mut known, mut missed) = (0, 0);
        loop {
            std::thread::sleep(INTERVAL);
            // In intervals, not by the clock: a stop of this thread, too, is no fault of the
            // runtime.
            let now = moves.load(Ordering::Relaxed);
            missed = if now == known { missed + 1 } else { 0 };
            known = now;
            if missed < STUCK {
                state.tick();
            } else if missed == STUCK {
                tracing::error!(
                    "the runtime has not moved for {STUCK} s: no more heartbeats, waiting for a restart"
                );
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Duration = Duration::from_millis(500);

    #[test]
    fn only_time_that_the_keeper_saw_counts() {
        let start = Instant::now();
        let mut monitor = HeartbeatMonitor::new(start);
        let mut now = start;
        let mut observe = |heartbeats, passed| {
            now += passed;
            monitor.observe(heartbeats, now)
        };
        assert_eq!(observe(None, HALF), Duration::ZERO);
        assert_eq!(observe(None, Duration::from_secs(60)), Duration::ZERO, "no heartbeat ever");
        assert_eq!(observe(Some(1), HALF), Duration::ZERO);
        for n in 1..10 {
            assert_eq!(observe(Some(1), HALF), HALF * n);
        }
        assert_eq!(observe(Some(1), Duration::from_secs(3600)), HALF * 11, "the keeper was stopped, too");
        assert_eq!(observe(Some(2), HALF), Duration::ZERO, "it goes on");
        assert_eq!(observe(Some(2), HALF), HALF);
        // Of another process.
        assert_eq!(observe(None, HALF), Duration::ZERO);
    }
}
