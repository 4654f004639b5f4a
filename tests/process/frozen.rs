//! The worker lives and does not move: stopped, or its threads wait for each other. Real mounts.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::common::{Mount, Place, run, signal, until, wait};

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
    let place = Place::new();
    let point = place.dir.path().join("point");
    let mut command = place.mount_command(&[]);
    run(command.env("VAULTFS_TEST_CRASH", &point)).ok();
    let mount = Mount::adopt(place);
    fs::write(mount.path("f"), "1").unwrap();
    let next = point.with_extension("next");
    fs::write(&next, "stall liveness").unwrap();
    fs::rename(&next, &point).unwrap();
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
