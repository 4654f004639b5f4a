//! The worker lives and does not move: stopped, or its threads wait for each other. Real mounts.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::cgroup::Freezer;
use crate::support::common::{Mount, Place, run, signal, until, wait, worker_of};

/// The keeper's patience, and what a loaded machine may add to it.
const AT_MOST: Duration = Duration::from_secs(25);

fn last_end(mount: &Mount) -> String {
    mount.status()["last_end"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_worker_that_is_stopped_is_succeeded_and_no_operation_fails() {
    let mount = Mount::start();
    fs::write(mount.path("f"), "1").unwrap();
    let mut unsaved = File::create(mount.path("unsaved")).unwrap();
    unsaved.write_all(b"half").unwrap();
    let (keeper, worker) = mount.pids();
    signal(worker, Signal::SIGSTOP);
    let stopped = Instant::now();
    // The kernel does not know this name, so that it has to ask.
    fs::write(mount.path("new"), "2").unwrap();
    // The deadline of each request, and what an operation may wait beyond it.
    assert!(stopped.elapsed() < Duration::from_secs(12), "{:?}", stopped.elapsed());
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "1");
    unsaved.write_all(b" and half").unwrap();
    unsaved.sync_all().unwrap();
    drop(unsaved);
    assert_eq!(fs::read_to_string(mount.path("unsaved")).unwrap(), "half and half");
    assert_eq!(mount.versions("unsaved"), [1]);
    assert_eq!(last_end(&mount), "no heartbeat for 5 s, and was killed");
    assert_eq!(mount.pids().0, keeper);
    let log = mount.log();
    assert!(log.contains("killing the worker: no heartbeat for 5 s"), "{log}");
    mount.unmount();
}

/// A mount, and the file that tells its workers where to stand still.
fn stalling() -> (Mount, PathBuf) {
    let place = Place::new();
    let point = place.dir.path().join("point");
    let mut command = place.mount_command(&[]);
    run(command.env("VAULTFS_TEST_CRASH", &point)).ok();
    (Mount::adopt(place), point)
}

/// The first thread that comes to that point stands still there, and takes the file away.
fn stall(point: &Path, at: &str) {
    let next = point.with_extension("next");
    fs::write(&next, format!("stall {at}")).unwrap();
    fs::rename(&next, point).unwrap();
}

#[test]
fn workers_that_are_stopped_while_they_start_are_succeeded() {
    let (mount, point) = stalling();
    fs::write(mount.path("f"), "1").unwrap();
    let (keeper, mut worker) = mount.pids();
    stall(&point, "receive-state");
    signal(worker, Signal::SIGKILL);
    let begun = Instant::now();
    for is_last in [false, true] {
        let next = || worker_of(keeper).filter(|now| *now != worker && !point.exists());
        worker = wait(next, AT_MOST).expect("the next worker, at the point");
        if !is_last {
            stall(&point, "receive-state");
        }
        signal(worker, Signal::SIGSTOP);
    }
    fs::write(mount.path("new"), "2").unwrap();
    assert!(begun.elapsed() < 2 * AT_MOST, "{:?}", begun.elapsed());
    let why =
        "its takeover failed: the worker process died (no heartbeat for 5 s, and was killed); see the log: ";
    assert!(last_end(&mount).starts_with(why), "{}", last_end(&mount));
    assert_eq!(mount.status()["restarts"], 3);
    assert_eq!(mount.pids().0, keeper);
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "1");
    mount.unmount();
}

/// Like one that is stopped, though /proc shows it asleep; and what somebody does to workers is
/// held against no request.
#[test]
fn workers_that_a_freezer_holds_are_succeeded_whether_they_serve_or_start() {
    let Some(freezer) = Freezer::new() else { return };
    let (mount, point) = stalling();
    fs::write(mount.path("f"), "1").unwrap();
    let (keeper, serving) = mount.pids();
    // The next one stands still before it serves.
    stall(&point, "receive-state");
    if !freezer.freezes(serving) {
        return fs::remove_file(&point).unwrap();
    }
    let begun = Instant::now();
    let path = mount.path("new");
    let writer = std::thread::spawn(move || fs::write(path, "2"));
    let next = || worker_of(keeper).filter(|now| *now != serving && !point.exists());
    let starting = wait(next, AT_MOST).expect("the next worker, at the point");
    assert!(freezer.freezes(starting));
    writer.join().unwrap().unwrap();
    assert!(begun.elapsed() < AT_MOST, "{:?}", begun.elapsed());
    let why =
        "its takeover failed: the worker process died (no heartbeat for 5 s, and was killed); see the log: ";
    assert!(last_end(&mount).starts_with(why), "{}", last_end(&mount));
    assert_eq!(mount.status()["restarts"], 2);
    assert!(!mount.log().contains("it is given up"), "{}", mount.log());
    mount.unmount();
}

#[test]
fn a_worker_that_is_stopped_for_a_moment_goes_on() {
    let mount = Mount::start();
    let before = mount.pids();
    for _ in 0..3 {
        signal(before.1, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(3));
        signal(before.1, Signal::SIGCONT);
        fs::write(mount.path("f"), "1").unwrap();
        // A heartbeat.
        std::thread::sleep(Duration::from_millis(1500));
    }
    assert_eq!(mount.pids(), before);
}

/// As by a freezer of whole groups of processes, or a machine that sleeps.
#[test]
fn a_worker_that_was_stopped_with_its_keeper_goes_on() {
    let mount = Mount::start();
    let before = mount.pids();
    signal(before.1, Signal::SIGSTOP);
    signal(before.0, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(13));
    signal(before.0, Signal::SIGCONT);
    std::thread::sleep(Duration::from_secs(1));
    signal(before.1, Signal::SIGCONT);
    fs::write(mount.path("f"), "1").unwrap();
    assert_eq!(mount.pids(), before);
}

#[test]
fn a_worker_whose_threads_wait_for_each_other_is_succeeded() {
    let (mount, point) = stalling();
    fs::write(mount.path("f"), "1").unwrap();
    stall(&point, "liveness");
    until("it stands still, with what requests need", || !point.exists());
    let stalled = Instant::now();
    fs::write(mount.path("new"), "2").unwrap();
    // It waits longer, as it may be at work.
    assert!(stalled.elapsed() < AT_MOST + Duration::from_secs(20), "{:?}", stalled.elapsed());
    assert!(stalled.elapsed() > Duration::from_secs(20), "{:?}", stalled.elapsed());
    assert_eq!(last_end(&mount), "no heartbeat for 5 s, and was killed");
    assert!(mount.log().contains("the runtime has not moved for 20 s"), "{}", mount.log());
    mount.unmount();
}

#[test]
fn a_worker_that_a_debugger_holds_is_left_alone_until_it_is_let_go() {
    let mount = Mount::start();
    let (_, worker) = mount.pids();
    signal(worker, Signal::SIGSTOP);
    // Before each thread has stopped the tracer would be asked whether they are to.
    until("it has stopped", || {
        let tasks = fs::read_dir(format!("/proc/{worker}/task")).unwrap().flatten();
        tasks.map(|t| fs::read_to_string(t.path().join("stat")).unwrap()).all(|s| s.contains(") T "))
    });
    // The tracer is a thread: its end lets the worker go.
    let held = std::thread::spawn(move || {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: takes no memory of ours.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, worker, none, none) } == 0;
        if seized {
            std::thread::sleep(Duration::from_secs(14));
        }
        seized
    });
    let log = || mount.log();
    let is_left = wait(|| log().contains("a debugger has it").then_some(()), AT_MOST).is_some();
    let comm = fs::read_to_string(format!("/proc/{worker}/comm")).unwrap_or_default();
    if !held.join().unwrap() {
        eprintln!("SKIPPED: only root can look into a worker");
        return;
    }
    assert!(is_left, "{}", log());
    assert_eq!(comm, "vaultfs-worker\n");
    fs::write(mount.path("f"), "1").unwrap();
    assert_ne!(mount.pids().1, worker);
    mount.unmount();
}
