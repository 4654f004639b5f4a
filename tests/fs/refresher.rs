//! The refresher: how soon a deletion shows, what it may spend, and a vault whose clock is not
//! ours. Time is paused.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use vaultfs::clock::Clock;
use vaultfs::fs::{Errno, Options};
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, MemoryVault, OBJECT_CAPABILITIES};

use crate::shell::Shell;
use crate::shell::helper::Helper;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// A mount of a vault with objects `n0`, `n1` …, which is followed for as long as somebody listens.
async fn followed(sh: Shell, names: usize, limit: Option<(u32, Duration)>) -> Shell {
    if let Some((limit, window)) = limit {
        sh.memory.report_limit(limit, window);
    }
    for n in 0..names {
        sh.put(&format!("n{n}"), "x").await;
    }
    sh.pass(Duration::from_secs(10)).await;
    Helper::start(&sh);
    sh.fs.propagator().follow_changes();
    sh
}

#[tokio::test(start_paused = true)]
async fn a_deletion_in_kv_shows_as_soon_as_the_budget_allows() {
    for (names, limit, listed, within_s) in [
        (50, Some(1000), true, 5.0),
        (450, Some(1000), true, 5.0),
        (450, Some(1000), false, 5.0),
        (2000, Some(1000), true, 20.0),
        (2000, Some(1000), false, 20.0),
        (2000, None, true, 5.0),
    ] {
        let sh = followed(Shell::kv(), names, limit.map(|limit| (limit, MINUTE))).await;
        let _listens = sh.fs.propagator().subscribe();
        sh.cat("n7").await;
        if listed {
            sh.ls("").await.unwrap();
        }
        // Where nobody has listed the names, they are known after the first time.
        sh.pass(Duration::from_secs(30)).await;
        sh.kernel.helper.calls();
        sh.delete("n7").await;
        let shows = sh.fs.status().changes.refresh.deletions_s.unwrap();
        assert!(shows <= within_s, "{names} names: {shows} s");
        // What is under way has passed it by already.
        sh.pass(Duration::from_secs_f64(2.0 * shows)).await;
        let calls = sh.kernel.helper.calls();
        assert_eq!(calls, [("unlink", "n7".to_owned(), None)], "{names} names, {limit:?}, {listed}");
        assert_eq!(sh.cost(sh.stat("n7")).await, (Err(Errno::ENOENT), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_vast_vault_is_not_listed_because_one_name_is_used() {
    let sh = followed(Shell::kv(), 2500, None).await;
    let _listens = sh.fs.propagator().subscribe();
    sh.cat("n7").await;
    sh.pass(Duration::from_secs(600)).await;
    let refresh = sh.fs.status().changes.refresh;
    assert_eq!((refresh.deletion_requests, refresh.deletions_s), (20, None));
    assert!(refresh.requests <= refresh.ticks + 22, "{refresh:?}");
    // Who lists it wants to know of all.
    sh.ls("").await.unwrap();
    sh.pass(Duration::from_secs(60)).await;
    sh.delete("n2400").await;
    sh.pass(Duration::from_secs(10)).await;
    assert_eq!(sh.cost(sh.stat("n2400")).await, (Err(Errno::ENOENT), 0));
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_ticks_takes_a_tenth_of_the_budget_at_most() {
    // A request is worth 6 s and 0.6 s: ticks that want to be oftener, that just need not, and
    // rarer. And windows that are no minutes: a second, an hour.
    let times = [
        (100, MINUTE, 100),
        (100, MINUTE, 6500),
        (100, MINUTE, 30_000),
        (1000, MINUTE, 5000),
        (10, Duration::from_secs(1), 5000),
        (300, HOUR, 5000),
        (9000, HOUR, 5000),
    ];
    for capabilities in [OBJECT_CAPABILITIES, KV_CAPABILITIES] {
        for names in [50, 250, 1200] {
            for (limit, window, refresh) in times {
                let options = Options { refresh: Duration::from_millis(refresh), ..Options::default() };
                let sh = followed(Shell::of(capabilities, options), names, Some((limit, window))).await;
                let _listens = sh.fs.propagator().subscribe();
                sh.ls("").await.unwrap();
                let ((), cost) = sh.cost(sh.pass(HOUR)).await;
                let share = u64::from(limit) * 360 / window.as_secs();
                let case = format!("{:?}, {names}, {limit}, {window:?}, {refresh}", capabilities.dialect);
                assert!(cost <= share, "{case}: {cost} of {share}");
                // And it is not asleep.
                assert!(cost >= share.min(3_600_000 / refresh) / 2, "{case}: {cost}");
            }
        }
    }
}

/// A clock beside another.
#[derive(Debug)]
struct Skewed {
    right: Arc<dyn Clock>,
    ahead_ms: AtomicI64,
}

impl Clock for Skewed {
    fn now(&self) -> Instant {
        self.right.now()
    }
    fn wall(&self) -> SystemTime {
        let ahead = self.ahead_ms.load(Ordering::Relaxed);
        let off = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { self.right.wall() - off } else { self.right.wall() + off }
    }
    fn since_boot(&self) -> Duration {
        self.right.since_boot()
    }
}

/// A mount of a vault of 250 names in kv, all of them known, with a clock that is ahead, and that
/// tells so or not.
async fn beside(ahead_ms: i64, told: bool) -> (Shell, Arc<Skewed>) {
    let right = Shell::paused();
    let clock = Arc::new(Skewed { right: right.clone(), ahead_ms: AtomicI64::new(ahead_ms) });
    let memory = Arc::new(MemoryVault::new(KV_CAPABILITIES, clock.clone()));
    memory.report_ahead(told.then_some(ahead_ms));
    let sh = Shell::mounted(memory, right, Options::default());
    for n in 0..250 {
        sh.put(&format!("n{n}"), "x").await;
    }
    Helper::start(&sh);
    sh.pass(Duration::from_secs(10)).await;
    sh.ls("").await.unwrap();
    for n in 1..10 {
        sh.cat(&format!("n{n}")).await;
    }
    sh.fs.propagator().refresh_now().await;
    sh.kernel.helper.calls();
    (sh, clock)
}

/// The names that were rotated since the last call.
fn rotated(sh: &Shell) -> Vec<String> {
    sh.kernel.helper.calls().into_iter().map(|(_, path, _)| path).collect()
}

const HOURS: i64 = 3_600_000;

#[tokio::test(start_paused = true)]
async fn changes_are_seen_whatever_the_clock_of_the_vault_says() {
    for (ahead_ms, told) in [
        (-7 * HOURS, true),
        (-2500, true),
        (0, true),
        (2500, true),
        (5 * HOURS, true),
        (-500_000, false),
        (500_000, false),
    ] {
        let (sh, clock) = beside(ahead_ms, told).await;
        for version in ["1", "2", "3"] {
            sh.pass(Duration::from_secs(3)).await;
            sh.put("n7", version).await;
            let ((), cost) = sh.cost(sh.fs.propagator().refresh_now()).await;
            // A vault that does not tell its time is asked for more than the last seconds, once.
            let most = if told { 2 } else { 4 };
            assert!(cost <= most, "one request, and the value: {cost}");
            assert_eq!(rotated(&sh), ["n7"], "{ahead_ms}");
            assert_eq!(sh.cat("n7").await, version);
        }
        // Within one second, before and after a tick, and within one millisecond.
        sh.put("n1", "a").await;
        sh.put("n2", "a").await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(rotated(&sh), ["n1", "n2"], "{ahead_ms}");
        sh.put("n3", "a").await;
        sh.pass(Duration::from_millis(2)).await;
        sh.put("n2", "b").await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(rotated(&sh), ["n2", "n3"], "{ahead_ms}");
        assert_eq!((sh.cat("n2").await, sh.cat("n3").await), ("b".to_owned(), "a".to_owned()));
        // One that shows late: it has a time before that of one that was seen.
        clock.ahead_ms.fetch_sub(2000, Ordering::Relaxed);
        sh.put("n4", "late").await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(rotated(&sh), ["n4"], "{ahead_ms}");
        assert_eq!(sh.cat("n4").await, "late");
        // Nothing is told twice.
        sh.fs.propagator().refresh_now().await;
        assert_eq!(rotated(&sh), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_put_back_hides_no_change() {
    let (sh, clock) = beside(0, true).await;
    sh.put("n1", "before").await;
    sh.pass(Duration::from_secs(4)).await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(rotated(&sh), ["n1"]);
    clock.ahead_ms.store(-HOURS, Ordering::Relaxed);
    sh.memory.report_ahead(Some(-HOURS));
    sh.put("n2", "after").await;
    sh.pass(Duration::from_secs(4)).await;
    // The first tick hears of the other time, and believes nothing for it.
    sh.fs.propagator().refresh_now().await;
    sh.pass(Duration::from_secs(4)).await;
    assert_eq!(sh.cost(sh.cat("n3")).await.1, 1);
    sh.fs.propagator().refresh_now().await;
    assert_eq!(rotated(&sh), ["n2"]);
    assert_eq!(sh.cat("n2").await, "after");
    for _ in 0..3 {
        sh.pass(Duration::from_secs(4)).await;
        sh.put("n5", "again").await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(rotated(&sh), ["n5"]);
    }
}
