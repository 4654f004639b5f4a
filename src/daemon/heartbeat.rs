//! The worker's pulse: how the keeper sees that a worker lives and does not move.
//!
//! A worker that is stopped (SIGSTOP), or whose threads wait for each other, holds up every program that uses the
//! mount, and no death tells of it. So its heart beats once a second, into the memory that the keeper holds, and the
//! keeper looks there each time it wakes. One that has not beaten for [`STILL`] is killed; its successor answers what
//! it had read, and nothing is lost. What is not to be mistaken for it:
//!
//! 1. A loaded machine. The heart is a thread of its own that does nothing else, so that no number of requests holds
//!    it up; and a keeper that did not run counts only a moment of that time ([`Finger`]), as it says nothing of the worker.
//! 2. Sleep. The clock stops while the machine is suspended, and a frozen group of processes has the keeper in it.
//! 3. A debugger. Who traces the worker wants it to stand still: it is left alone until it is let go.
//! 4. A program of another version, whose heart never beats: it is not judged.
//!
//! The heart beats while the runtime moves: a task there takes the locks that requests need, each second. When it has
//! not come back for [`STUCK`] (which may be work, on a slow machine) the heart stops, and the keeper does the rest. A
//! notification that the kernel lets wait holds up its own thread only, and is no reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::daemon::state_log::State;
use crate::daemon::worker::Service;

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);

/// A worker whose heart has not beaten for so long is killed: the default of a request's deadline, so that who waits
/// has an answer before long.
pub const STILL: Duration = Duration::from_secs(10);

/// The same while the mount ends, and somebody waits for that.
pub const STILL_AT_THE_END: Duration = Duration::from_secs(5);

/// Beats after which a runtime that does not move stops the heart.
const STUCK: u32 = 20;

/// Whether a worker whose heart has beaten so often has answered a request: the first beat is when it begins, the second
/// when it has answered one, or a second later.
pub fn has_served(beats: u32) -> bool {
    beats > 1
}

/// Two looks of a keeper that runs are not further apart.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// What the keeper has felt of a worker's pulse.
#[derive(Debug)]
pub struct Finger {
    beats: Option<u32>,
    still: Duration,
    felt: Instant,
}

impl Finger {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { beats: None, still: Duration::ZERO, felt: now }
    }

    /// Takes in how often the heart has beaten, if it ever did; since when it has not, as far as the keeper was there
    /// to see it.
    pub fn feel(&mut self, beats: Option<u32>, now: Instant) -> Duration {
        let passed = now.duration_since(self.felt).min(BETWEEN_LOOKS);
        self.felt = now;
        self.still =
            if beats.is_none() || beats != self.beats { Duration::ZERO } else { self.still + passed };
        self.beats = beats;
        self.still
    }
}

/// Lets the worker's heart beat, for as long as the process lives.
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
            service.feel();
            moved.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(BEAT).await;
        }
    });
    state.beat();
    runtime.spawn(async move {
        answers.first_answer().await;
        served.beat();
    });
    std::thread::Builder::new().name("heart".into()).spawn(move || {
        let (mut known, mut missed) = (0, 0);
        loop {
            std::thread::sleep(BEAT);
            // In beats, not by the clock: what stops this thread, too, is no fault of the runtime's.
            let now = moves.load(Ordering::Relaxed);
            missed = if now == known { missed + 1 } else { 0 };
            known = now;
            if missed < STUCK {
                state.beat();
            } else if missed == STUCK {
                tracing::error!("the runtime has not moved for {STUCK} s: waiting to be replaced");
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
        let mut finger = Finger::new(start);
        let mut now = start;
        let mut feel = |beats, passed| {
            now += passed;
            finger.feel(beats, now)
        };
        assert_eq!(feel(None, HALF), Duration::ZERO);
        assert_eq!(feel(None, Duration::from_secs(60)), Duration::ZERO, "it never beat");
        assert_eq!(feel(Some(1), HALF), Duration::ZERO);
        for n in 1..10 {
            assert_eq!(feel(Some(1), HALF), HALF * n);
        }
        assert_eq!(feel(Some(1), Duration::from_secs(3600)), HALF * 11, "the keeper was stopped, too");
        assert_eq!(feel(Some(2), HALF), Duration::ZERO, "it goes on");
        assert_eq!(feel(Some(2), HALF), HALF);
        // Of another process.
        assert_eq!(feel(None, HALF), Duration::ZERO);
    }
}
