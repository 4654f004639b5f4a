//! When a dead worker is restarted.
//!
//! | How it ended | It had served | The next one is started |
//! |---|---|---|
//! | by SIGKILL from outside, or unknown | anything or nothing | at once; after at most 1 s after many deaths |
//! | in any other way ([`Ending::Crashed`]) | anything | the same |
//! | in any other way | nothing | at once, then after pauses from 1 s to 32 s; after ten in a row it is given up |
//!
//! While the mount ends, it is given up after ten deaths, or where the pause would be more than 1
//! s.
//!
//! A SIGKILL from outside is no evidence against the next worker, so programs do not wait. A worker
//! that has answered a request can answer others; the quarantine (`fs::recovery`) handles a request
//! that kills workers. A cause that keeps every worker from serving (no memory, a broken program)
//! is not cured by a restart.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::fs::Ending;

/// Deaths without a served request that are followed by an immediate restart.
const IMMEDIATE_RESTARTS: u32 = 3;
/// Deaths in a row after which restarts are given up, for a minute.
const TOO_MANY: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(32);
/// Deaths within this time are recent.
const RECENT_TIME: Duration = Duration::from_secs(10);
/// With more recent deaths the restart is delayed, so that a loop of kills does not use a whole
/// processor.
const MANY: [(usize, Duration); 2] = [(30, Duration::from_secs(1)), (15, Duration::from_millis(250))];
/// Longest pause while the mount ends.
const LONGEST_AT_THE_END: Duration = Duration::from_secs(1);

/// Counts the deaths of workers that were not asked to end.
#[derive(Debug)]
pub struct RestartPolicy {
    immediate_restarts: u32,
    too_many: u32,
    recent: VecDeque<Instant>,
    /// Crashes before a served request.
    in_a_row: u32,
    /// Since the shutdown began.
    at_the_end: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        let (immediate_restarts, too_many) = limits();
        Self { immediate_restarts, too_many, recent: VecDeque::new(), in_a_row: 0, at_the_end: 0 }
    }
}

impl RestartPolicy {
    /// Records a death; returns the pause before the restart, or `None` to give up.
    pub fn died(
        &mut self,
        now: Instant,
        ending: Ending,
        has_served: bool,
        mount_ends: bool,
    ) -> Option<Duration> {
        let pause = self.pause(now, ending, has_served);
        if !mount_ends {
            return pause;
        }
        self.at_the_end = self.at_the_end.saturating_add(1);
        pause.filter(|pause| *pause <= LONGEST_AT_THE_END && self.at_the_end <= self.too_many)
    }

    fn pause(&mut self, now: Instant, ending: Ending, has_served: bool) -> Option<Duration> {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= RECENT_TIME) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        if has_served {
            self.in_a_row = 0;
        }
        match ending {
            Ending::Crashed if !has_served => {
                self.in_a_row = self.in_a_row.saturating_add(1);
                self.pause_of_a_row()
            }
            Ending::Crashed | Ending::Killed | Ending::Ordered => Some(self.pause_of_many()),
        }
    }

    fn pause_of_a_row(&self) -> Option<Duration> {
        if self.in_a_row > self.too_many {
            return None;
        }
        match self.in_a_row.saturating_sub(self.immediate_restarts) {
            0 => Some(Duration::ZERO),
            more => Some(Duration::from_secs(1 << (more - 1).min(5)).min(LONGEST_PAUSE)),
        }
    }

    fn pause_of_many(&self) -> Duration {
        let free = self.immediate_restarts as usize;
        let reached = |(many, _): &&(usize, Duration)| self.recent.len() > (*many).max(free);
        MANY.iter().find(reached).map_or(Duration::ZERO, |(_, pause)| *pause)
    }
}

/// Deaths of helpers in a minute that are followed by an immediate restart.
pub fn immediate_restarts() -> usize {
    limits().0 as usize
}

/// Time before a retry after giving up.
pub fn retry_after() -> Duration {
    #[cfg(debug_assertions)]
    if let Ok(text) = std::env::var("VAULTFS_TEST_AGAIN")
        && let Ok(ms) = text.parse()
    {
        return Duration::from_millis(ms);
    }
    Duration::from_secs(60)
}

/// [`IMMEDIATE_RESTARTS`] and [`TOO_MANY`], but where a test wants others
/// (`VAULTFS_TEST_DEATHS=IMMEDIATE_RESTARTS,TOO_MANY`).
fn limits() -> (u32, u32) {
    #[cfg(debug_assertions)]
    if let Ok(text) = std::env::var("VAULTFS_TEST_DEATHS")
        && let Some((immediate_restarts, too_many)) = text.split_once(',')
        && let (Ok(immediate_restarts), Ok(too_many)) = (immediate_restarts.parse(), too_many.parse())
    {
        return (immediate_restarts, too_many);
    }
    (IMMEDIATE_RESTARTS, TOO_MANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Deaths of one kind, so far apart; the pause after each.
    fn pauses(ending: Ending, has_served: bool, apart: Duration, deaths: u32) -> Vec<Option<Duration>> {
        let (mut policy, start) = (RestartPolicy::default(), Instant::now());
        (0..deaths).map(|n| policy.died(start + apart * n, ending, has_served, false)).collect()
    }

    #[test]
    fn the_whole_table() {
        let outside = [(Ending::Killed, false), (Ending::Killed, true), (Ending::Crashed, true)];
        for (ending, has_served) in outside {
            // (how far apart, how many, the pauses that there are): never longer than a second,
            // never given up.
            let rows: [(u64, u32, &[u64]); 4] =
                [(60_000, 50, &[0]), (800, 200, &[0]), (500, 200, &[0, 250]), (100, 500, &[0, 250, 1000])];
            for (apart, deaths, expected) in rows {
                let all = pauses(ending, has_served, MS(apart), deaths);
                let expected: Vec<_> = expected.iter().map(|ms| Some(MS(*ms))).collect();
                let mut seen = all.clone();
                seen.dedup();
                assert_eq!(seen, expected, "{ending:?}, {has_served}, every {apart} ms");
                assert!(all[..15].iter().all(|pause| *pause == Some(Duration::ZERO)));
            }
        }
        for apart in [1, 1000, 60_000] {
            let all = pauses(Ending::Crashed, false, MS(apart), 12);
            let seconds = |s| Some(Duration::from_secs(s));
            assert_eq!(all[..10], [0, 0, 0, 1, 2, 4, 8, 16, 32, 32].map(seconds), "every {apart} ms");
            assert_eq!(all[10..], [None, None]);
        }
    }

    #[test]
    fn only_a_worker_that_serves_ends_a_row() {
        let mut policy = RestartPolicy::default();
        let now = Instant::now();
        for _ in 0..10 {
            assert!(policy.died(now, Ending::Crashed, false, false).is_some());
            // One that was killed from outside says nothing of the others.
            assert!(policy.died(now, Ending::Killed, false, false).is_some());
        }
        assert_eq!(policy.died(now, Ending::Crashed, false, false), None);
        // A try after it was given up is one try.
        assert_eq!(policy.died(now + MS(60_000), Ending::Crashed, false, false), None);
        assert!(policy.died(now + MS(120_000), Ending::Crashed, true, false).is_some());
        assert_eq!(policy.died(now + MS(140_000), Ending::Crashed, false, false), Some(Duration::ZERO));
    }
    #[test]
    fn who_waits_for_the_end_waits_for_few_deaths() {
        for (ending, has_served, deaths) in [
            (Ending::Killed, false, 10),
            (Ending::Killed, true, 10),
            (Ending::Crashed, true, 10),
            (Ending::Crashed, false, 4),
        ] {
            let (mut policy, now) = (RestartPolicy::default(), Instant::now());
            let lived = (0..30).take_while(|_| policy.died(now, ending, has_served, true).is_some()).count();
            assert_eq!(lived, deaths, "{ending:?}, {has_served}");
        }
    }
}
