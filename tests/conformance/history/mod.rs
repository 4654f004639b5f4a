//! Histories: many programs save and read on two mounts of one vault, in different dialects, and
//! past them; each value says who wrote it. While they do, processes are killed, stopped, upgraded
//! and starved, answers are lost, disks fill. Afterwards the vault's history must be one that a
//! correct file system could have made (`check`).
//!
//! The short form takes the faults in turn. The long one is a test for each
//! (`VAULTFS_HISTORY_MINUTES`, else 20). `VAULTFS_HISTORY_SEED` repeats the random choices of a
//! run, though not how processes happened to be scheduled. What it does not do is move the clocks:
//! they are those of the machine, and libfaketime is none of ours.

mod api;
mod check;
mod faults;
mod scene;
mod value;
mod work;

use std::collections::BTreeMap;
use std::time::Duration;

use faults::Kind;
use scene::{DEADLINE, Scene};

/// Of the short form, each fault.
const SHORT: Duration = Duration::from_millis(4000);

#[test]
#[ignore = "the programs of the load, started by the other tests"]
fn worker() {
    work::work();
}

fn seed() -> u64 {
    let given = std::env::var("VAULTFS_HISTORY_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| work::now() % 1_000_000)
}

/// A long form's time.
fn long() -> Duration {
    let minutes = std::env::var("VAULTFS_HISTORY_MINUTES").ok().and_then(|m| m.parse::<f64>().ok());
    Duration::from_secs_f64(minutes.unwrap_or(20.0) * 60.0)
}

/// Lets each of these happen for `time`, one after the other, and judges what came out.
#[track_caller]
fn endure(faults: &[Kind], time: Duration) {
    let seed = seed();
    eprintln!("seed {seed}, {faults:?}");
    let slots = u32::try_from(faults.len()).unwrap();
    let mut scene = Scene::start(seed, time * slots * 2 + Duration::from_secs(240));
    let mut done = BTreeMap::new();
    let mut failures = Vec::new();
    let mut slowest = (Duration::ZERO, String::new());
    for (n, fault) in faults.iter().enumerate() {
        fault.rage(&mut scene, time, &mut done);
        if n + 1 == faults.len() {
            // What is under way counts, too.
            scene.end_load();
        }
        if !fault.may_fail() {
            failures = scene.failures();
            // In the few seconds that the turn of all faults gives to each, a loaded machine meets
            // deadlines; nothing else.
            failures.retain(|text| !(time == SHORT && text.contains("timed out")));
            if !failures.is_empty() {
                eprintln!("{fault:?}: {} operations failed", failures.len());
                break;
            }
        }
        if !fault.may_fail() {
            slowest = scene.slowest();
        }
    }
    let (wrong, figures) = scene.judge();
    if !faults.iter().any(|fault| fault.may_fail()) {
        slowest = figures.slowest.clone();
    }
    eprintln!("{figures:?}, the longest wait {slowest:?}, and {}", Scene::told(&done));
    failures.iter().take(20).for_each(|text| eprintln!("{text}"));
    let mut broken: BTreeMap<&str, u32> = BTreeMap::new();
    for violation in &wrong {
        let times = broken.entry(violation.rule).or_default();
        *times += 1;
        if *times <= 4 {
            eprintln!("{}: {}", violation.rule, violation.text);
        }
    }
    assert!(broken.is_empty(), "rules that were broken, and how often: {broken:?}; seed {seed}");
    assert!(failures.is_empty(), "{} operations failed; seed {seed}", failures.len());
    // Until the first fault that makes programs wait as long as it likes.
    assert!(slowest.0 < DEADLINE + Duration::from_secs(2), "{slowest:?}; seed {seed}");
}

#[test]
fn histories_hold_whatever_happens() {
    endure(&Kind::ALL, SHORT);
}

#[test]
#[ignore = "takes 20 minutes"]
fn histories_hold_over_kills_and_then_upgrades() {
    endure(&[Kind::Worker, Kind::Upgrade], long() / 2);
}

macro_rules! long {
    ($($name:ident $kind:ident),* $(,)?) => {$(
        #[test]
        #[ignore = "takes 20 minutes"]
        fn $name() {
            endure(&[Kind::$kind], long());
        }
    )*};
}

long! {
    histories_hold_without_a_fault None,
    histories_hold_when_helpers_die Helper,
    histories_hold_when_workers_die Worker,
    histories_hold_over_upgrades Upgrade,
    histories_hold_when_workers_die_while_they_are_upgraded Both,
    histories_hold_when_workers_freeze Freeze,
    histories_hold_when_memory_runs_out Memory,
    histories_hold_when_answers_are_cut_held_and_late Network,
    histories_hold_when_the_server_dies Server,
    histories_hold_when_the_disk_is_full Disk,
    histories_hold_when_keepers_die Keeper,
}
