//! Finds the request that kills workers (poison), without failing any other.
//!
//! 1. Each request that waits for something is journaled while it is *under way*. A death is
//!    charged to those under way, and to no other.
//! 2. Only crashes are charged ([`Ending`]); upgrades and a SIGKILL from outside are not, however
//!    many there are.
//! 3. After a crash, resent requests that were under way begin one after another, evenly spaced
//!    within [`RELEASED_WITHIN`], those with the fewest crashes first ([`delay`]). Innocent
//!    requests complete, and the poison is soon alone, or the only one present each time.
//! 4. A request is poisoned, and failed, once it has two crashes, and was alone at the last one, or
//!    twice more suspect than all others.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a worker ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// As the keeper ordered.
    Ordered,
    /// By a SIGKILL from outside, or unknown.
    #[default]
    Killed,
    /// By itself; by the kernel's OOM killer; or by the keeper, for want of a heartbeat.
    Crashed,
}

/// Crashes before a request may be poisoned.
const MIN_CRASHES: u32 = 2;
/// Points for having been alone at a crash; for having been the most suspect, half of it.
const ALONE: u32 = 2;

/// What the next worker knows of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fs) struct CrashRecord {
    /// Crashes while it was under way. The first field: an older program reads no more than this.
    pub deaths: u32,
    /// When the first worker got it, in milliseconds since boot.
    pub arrived: u64,
    /// A worker handles it, and may die of it.
    pub under_way: bool,
    /// See [`ALONE`].
    pub alone: u32,
    /// It is failed.
    pub poisoned: bool,
}

impl CrashRecord {
    pub fn new(arrived: u64) -> Self {
        Self { arrived, under_way: true, ..Self::default() }
    }

    /// Of a request without a record: it did not wait, or was never begun. `others` were under way.
    pub fn unknown(arrived: u64, ending: Ending, others: usize) -> Self {
        let mut crash_record = Self::new(arrived);
        crash_record.charge(ending, if others == 0 { ALONE } else { 0 });
        crash_record
    }

    fn charge(&mut self, ending: Ending, alone: u32) {
        self.under_way = false;
        match ending {
            Ending::Ordered | Ending::Killed => {}
            Ending::Crashed => {
                self.deaths += 1;
                self.alone += alone;
                self.poisoned |= alone > 0 && self.deaths >= MIN_CRASHES && self.alone >= ALONE;
            }
        }
    }

    pub fn is_suspect(&self) -> bool {
        self.deaths > 0
    }
}

/// Charges a worker's death to those that were under way.
pub(in crate::fs) fn charge<'a>(all: impl Iterator<Item = &'a mut CrashRecord>, ending: Ending) {
    let mut there: Vec<&mut CrashRecord> = all.filter(|crash_record| crash_record.under_way).collect();
    let most = there.iter().map(|crash_record| crash_record.deaths).max().unwrap_or(0);
    let count = there.len();
    let leaders = there.iter().filter(|crash_record| crash_record.deaths == most).count();
    for crash_record in &mut there {
        let alone = match (count, leaders) {
            (1, _) => ALONE,
            (_, 1) if crash_record.deaths == most => ALONE / 2,
            _ => 0,
        };
        crash_record.charge(ending, alone);
    }
}

/// All suspects begin within this time.
const RELEASED_WITHIN: Duration = Duration::from_millis(1500);

/// How long this suspect waits before it begins, if it has so much time left: at most half of it.
pub(in crate::fs) fn delay(id: u64, all: &HashMap<u64, CrashRecord>, left: Duration) -> Duration {
    /// Equals have a random order, another one in each process.
    static SHUFFLE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let suspected = || all.iter().filter(|(_, crash_record)| crash_record.is_suspect());
    let order = |id: &u64| (all.get(id).map(|crash_record| crash_record.deaths), SHUFFLE.hash_one(id));
    let own = order(&id);
    let (before, count) = (suspected().filter(|(id, _)| order(id) < own).count(), suspected().count());
    RELEASED_WITHIN.min(left / 2) * before as u32 / count.max(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker dies while these are under way.
    fn death(all: &mut [CrashRecord], there: &[usize], ending: Ending) {
        there.iter().for_each(|at| all[*at].under_way = true);
        charge(all.iter_mut(), ending);
        assert!(all.iter().all(|crash_record| !crash_record.under_way));
    }

    fn poisoned(all: &[CrashRecord]) -> Vec<usize> {
        (0..all.len()).filter(|at| all[*at].poisoned).collect()
    }

    #[test]
    fn upgrades_and_kills_are_held_against_nobody() {
        for there in [&[0][..], &[0, 1, 2]] {
            let mut all = [CrashRecord::default(); 3];
            death(&mut all, &[0, 1, 2], Ending::Crashed);
            let before = all;
            for ending in [Ending::Killed, Ending::Ordered] {
                for _ in 0..100 {
                    death(&mut all, there, ending);
                }
            }
            assert_eq!(all, before, "{there:?}");
            assert!(!CrashRecord::unknown(0, Ending::Killed, 0).is_suspect());
        }
    }

    #[test]
    fn two_crashes_alone_are_enough() {
        let mut all = [CrashRecord::default()];
        death(&mut all, &[0], Ending::Crashed);
        assert_eq!(poisoned(&all), [0; 0]);
        death(&mut all, &[0], Ending::Killed);
        assert_eq!(poisoned(&all), [0; 0]);
        death(&mut all, &[0], Ending::Crashed);
        assert_eq!(poisoned(&all), [0]);
        let mut unknown = CrashRecord::unknown(0, Ending::Crashed, 0);
        unknown.under_way = true;
        charge(std::iter::once(&mut unknown), Ending::Crashed);
        assert!(unknown.poisoned);
    }

    #[test]
    fn who_was_there_with_others_as_suspect_is_not_guilty() {
        let mut all = [CrashRecord::default(); 9];
        for _ in 0..20 {
            death(&mut all, &[0, 1, 2, 3, 4, 5, 6, 7, 8], Ending::Crashed);
        }
        assert_eq!(poisoned(&all), [0; 0]);
        death(&mut all, &[4], Ending::Crashed);
        assert_eq!(poisoned(&all), [4]);
    }

    #[test]
    fn one_that_is_there_each_time_is_found_among_new_ones() {
        let mut all = [CrashRecord::default(); 9];
        death(&mut all, &[0, 1, 2, 3, 4], Ending::Crashed);
        death(&mut all, &[0, 5, 6], Ending::Crashed);
        assert_eq!(poisoned(&all), [0; 0], "by accident it was the one that was there before");
        death(&mut all, &[0, 7, 8], Ending::Crashed);
        assert_eq!(poisoned(&all), [0]);
    }

    /// Workers that die of request 4 as soon as it begins, while each of the others takes so long.
    fn deaths_until_found(takes: Duration) -> usize {
        let mut left: HashMap<u64, CrashRecord> = (0..9).map(|id| (id, CrashRecord::new(0))).collect();
        for deaths in 1..=30 {
            charge(left.values_mut(), Ending::Crashed);
            let poisoned: Vec<u64> = left.iter().filter(|(_, r)| r.poisoned).map(|(id, _)| *id).collect();
            if !poisoned.is_empty() {
                assert_eq!(poisoned, [4]);
                return deaths;
            }
            // The numbers differ, and so does the order, from one worker to the next.
            let begins = |id: &u64, all: &HashMap<u64, CrashRecord>| {
                let moved = |id: u64| id + 100 * deaths as u64;
                let all = all.iter().map(|(id, crash_record)| (moved(*id), *crash_record)).collect();
                delay(moved(*id), &all, Duration::from_secs(30))
            };
            let all = left.clone();
            let death = begins(&4, &all);
            left.retain(|id, _| *id == 4 || begins(id, &all) + takes > death);
            left.iter_mut().for_each(|(id, r)| r.under_way = *id == 4 || begins(id, &all) < death);
        }
        panic!("not found");
    }

    #[test]
    fn the_poison_is_found_within_a_few_deaths_and_nobody_else() {
        for _ in 0..20 {
            for takes in [1, 20, 300].map(Duration::from_millis) {
                let deaths = deaths_until_found(takes);
                assert!(deaths <= 7, "{takes:?}: {deaths} deaths");
            }
            // Without any answer in time it is found all the same.
            deaths_until_found(Duration::from_secs(10));
        }
    }

    #[test]
    fn all_of_many_begin_in_time_and_one_alone_at_once() {
        let suspect = |deaths| CrashRecord { deaths, ..CrashRecord::default() };
        let all: HashMap<u64, CrashRecord> = (0..500).map(|id| (id, suspect(1 + id as u32 % 5))).collect();
        for (id, crash_record) in &all {
            let begins = delay(*id, &all, Duration::from_secs(30));
            let window = RELEASED_WITHIN * (crash_record.deaths - 1) / 5;
            assert!((window..window + RELEASED_WITHIN / 5).contains(&begins), "{id}: {begins:?}");
            assert!(delay(*id, &all, Duration::from_secs(1)) < Duration::from_millis(500));
        }
        assert_eq!(delay(7, &HashMap::from([(7, suspect(3))]), Duration::from_secs(30)), Duration::ZERO);
    }
}
