//! Finds the request that kills workers (poison), without failing any other.
//!
//! 1. Each request that waits for something is journaled while it is *under way*. A death is
//!    charged to those under way, and to no other.
//! 2. Only crashes are charged ([`Ending`]); upgrades and a SIGKILL from outside are not, however
//!    many there are.
//! 3. After a crash, resent requests that were under way are released in groups of one, two, four
//!    and so on ([`Quarantine`]), those with the fewest crashes first; each group waits for the
//!    answers of the one before, up to a timeout. Innocent requests complete, and the poison is
//!    soon alone, or the only one present each time.
//! 4. A request is poisoned, and failed, once it has two crashes, and was alone at the last one, or
//!    twice more suspect than all others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

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

/// All requests of a dead worker arrive within so long after the first of them.
const ALL_HERE: Duration = Duration::from_millis(50);
/// All are released by then. Each group gets half of the remaining time.
const RELEASED_WITHIN: Duration = Duration::from_millis(1500);

/// Releases suspects in groups.
#[derive(Debug, Default)]
pub(in crate::fs) struct Quarantine {
    queue: Mutex<Queue>,
    /// A released request has ended.
    ended: Notify,
    /// Work on the kernel's threads is done by one suspect at a time.
    pub immediate: Mutex<()>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    running: HashSet<u64>,
    is_releasing: bool,
}

#[derive(Debug)]
struct Waiting {
    deaths: u32,
    /// Random order among equals.
    shuffle_key: u64,
    id: u64,
    release: oneshot::Sender<()>,
}

impl Quarantine {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Enqueues a suspect. Dropping the ticket reports its end.
    pub fn enter(self: &Arc<Self>, id: u64, deaths: u32, runtime: &tokio::runtime::Handle) -> Ticket {
        let (release, released) = oneshot::channel();
        let shuffle_key = shuffle_key(id);
        let mut queue = self.queue();
        queue.waiting.push(Waiting { deaths, shuffle_key, id, release });
        if !std::mem::replace(&mut queue.is_releasing, true) {
            runtime.spawn(self.clone().release_in_groups());
        }
        Ticket { quarantine: self.clone(), id, released }
    }

    async fn release_in_groups(self: Arc<Self>) {
        tokio::time::sleep(ALL_HERE).await;
        let end = Instant::now() + RELEASED_WITHIN;
        let (mut level, mut size) = (0, 1);
        loop {
            {
                let mut queue = self.queue();
                queue.waiting.retain(|waiting| !waiting.release.is_closed());
                let Some(least) = queue.waiting.iter().map(|waiting| waiting.deaths).min() else {
                    queue.is_releasing = false;
                    return;
                };
                if least > level {
                    (level, size) = (least, 1);
                }
                queue.release(least, size);
            }
            size *= 2;
            let time = end.saturating_duration_since(Instant::now()) / 2;
            // Late arrivals have no time of their own left, and are released at once.
            let _ = tokio::time::timeout(time, self.all_ended()).await;
        }
    }

    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.queue().running.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Queue {
    /// Releases up to `count` requests with so many crashes.
    fn release(&mut self, deaths: u32, count: usize) {
        let (mut next, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.deaths == deaths);
        self.waiting = others;
        next.sort_by_key(|waiting| waiting.shuffle_key);
        self.waiting.extend(next.split_off(count.min(next.len())));
        for Waiting { id, release, .. } in next {
            if release.send(()).is_ok() {
                self.running.insert(id);
            }
        }
    }
}

/// Differs between processes.
fn shuffle_key(id: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::LazyLock;
    static SHUFFLE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    SHUFFLE.hash_one(id)
}

/// A suspect's place in the queue.
#[derive(Debug)]
pub(in crate::fs) struct Ticket {
    quarantine: Arc<Quarantine>,
    id: u64,
    released: oneshot::Receiver<()>,
}

impl Ticket {
    /// Waits for the release.
    pub async fn released(&mut self) {
        // The sender lives as long as the mount.
        let _ = (&mut self.released).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queue = self.quarantine.queue();
        if queue.running.remove(&self.id) && queue.running.is_empty() {
            self.quarantine.ended.notify_one();
        }
    }
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

    /// Workers that die of request 4 once it is released, while each of the others takes so long.
    async fn deaths_until_found(takes: Duration) -> usize {
        let mut left: Vec<(usize, CrashRecord)> = (0..9).map(|id| (id, CrashRecord::default())).collect();
        left.iter_mut().for_each(|(_, crash_record)| crash_record.under_way = true);
        for deaths in 1..=30 {
            charge(left.iter_mut().map(|(_, crash_record)| crash_record), Ending::Crashed);
            let poisoned: Vec<usize> =
                left.iter().filter(|(_, crash_record)| crash_record.poisoned).map(|(id, _)| *id).collect();
            if !poisoned.is_empty() {
                assert_eq!(poisoned, [4]);
                return deaths;
            }
            let quarantine = Arc::new(Quarantine::default());
            let died = Arc::new(Notify::new());
            let world = Arc::new(Mutex::new(left.clone()));
            let runtime = tokio::runtime::Handle::current();
            let mut tasks = tokio::task::JoinSet::new();
            for (id, crash_record) in &left {
                let (id, entry_id) = (*id, *id as u64 + 100 * deaths as u64);
                let ticket = crash_record
                    .is_suspect()
                    .then(|| quarantine.enter(entry_id, crash_record.deaths, &runtime));
                let (died, world) = (died.clone(), world.clone());
                tasks.spawn(async move {
                    let mut ticket = ticket;
                    if let Some(ticket) = &mut ticket {
                        ticket.released().await;
                    }
                    world.lock().iter_mut().find(|(at, _)| *at == id).unwrap().1.under_way = true;
                    if id == 4 {
                        died.notify_one();
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(takes).await;
                    world.lock().retain(|(at, _)| *at != id);
                });
            }
            died.notified().await;
            tasks.shutdown().await;
            left = world.lock().clone();
        }
        panic!("not found");
    }

    #[tokio::test(start_paused = true)]
    async fn the_poison_is_found_within_a_few_deaths_and_nobody_else() {
        for takes in [1, 20, 300].map(Duration::from_millis) {
            let deaths = deaths_until_found(takes).await;
            assert!(deaths <= 7, "{takes:?}: {deaths} deaths");
        }
        // Without any answer in time it is found all the same.
        deaths_until_found(Duration::from_secs(10)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn all_of_many_are_let_go_in_time() {
        let quarantine = Arc::new(Quarantine::default());
        let runtime = tokio::runtime::Handle::current();
        let begun = Instant::now();
        let tickets: Vec<Ticket> =
            (0..500).map(|id| quarantine.enter(id, 1 + id as u32 % 5, &runtime)).collect();
        let mut kept = Vec::new();
        for mut ticket in tickets {
            ticket.released().await;
            // None is answered.
            kept.push(ticket);
        }
        assert!(
            begun.elapsed() <= ALL_HERE + RELEASED_WITHIN + Duration::from_millis(100),
            "{:?}",
            begun.elapsed()
        );
        drop(kept);
        let mut late = quarantine.enter(1000, 1, &runtime);
        late.released().await;
    }
}
