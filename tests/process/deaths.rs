//! What workers die of, and who pays for it: nobody but the request that kills them. Real mounts of
//! a vault that is slow or silent, so that there is always something in flight.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::cgroup::Limited;
use crate::support::common::{
    self, IMMORTAL, Mount, Place, assert_nothing_left, child_of, kill, kill_worker, replace_worker, run,
    signal, until, worker_of,
};
use crate::support::proxy::{Fault, Proxy};
use crate::support::vault_server::served::Served;

/// A mount of a vault that others fill, and the way to it.
struct Slow {
    mount: Mount,
    proxy: Proxy,
    point: PathBuf,
    _served: Served,
}

impl Slow {
    /// With so many objects, `0` and so on, that the mount has not read yet.
    fn start(objects: usize, switches: &[(&str, &str)], args: &[&str]) -> Self {
        let place = Place::new();
        let served = Served::start(&place.data);
        let proxy = Proxy::before(&served.url);
        let key_file = place.data.join("api-key").to_str().unwrap().to_owned();
        let mut command = place.vaultfs(["mount", "--api-url", &proxy.url, "--api-key-file", &key_file]);
        let point = place.dir.path().join("point");
        command.args(args).arg(&place.mnt);
        command.env("VAULTFS_TEST_CRASH", &point).envs(switches.iter().copied());
        let fill = place.dir.path().join("fill");
        fs::create_dir(&fill).unwrap();
        let mut filling = place.vaultfs(["mount", "--api-url", &proxy.url, "--api-key-file", &key_file]);
        run(filling.arg(&fill)).ok();
        for object in 0..objects {
            fs::write(fill.join(object.to_string()), value(object)).unwrap();
        }
        run(place.vaultfs(["unmount"]).arg(&fill)).ok();
        run(&mut command).ok();
        Self { mount: Mount::adopt(place), proxy, point, _served: served }
    }

    fn keeper(&self) -> i32 {
        self.mount.pids().0
    }

    /// Programs that read one object each; what they got, and when.
    fn read(&self, objects: std::ops::Range<usize>) -> Readers {
        let asked = self.proxy.requests();
        let reader = |object: usize| {
            let path = self.mount.path(object.to_string());
            std::thread::spawn(move || {
                let begun = Instant::now();
                (object, fs::read(path), begun.elapsed())
            })
        };
        let readers = objects.map(reader).collect();
        until("one of them waits for the vault", || self.proxy.requests() > asked);
        Readers(readers)
    }
}

fn value(object: usize) -> Vec<u8> {
    format!("value {object} ").repeat(30).into_bytes()
}

/// Which object, what its reader got, and how long that took.
type Answer = (usize, std::io::Result<Vec<u8>>, Duration);

struct Readers(Vec<JoinHandle<Answer>>);

impl Readers {
    /// Each got what it asked for; the longest time.
    #[track_caller]
    fn got_all(self) -> Duration {
        let answers: Vec<_> = self.0.into_iter().map(|reader| reader.join().unwrap()).collect();
        for (object, answer, time) in &answers {
            match answer {
                Ok(bytes) => assert_eq!(*bytes, value(*object), "object {object}"),
                Err(e) => panic!("object {object}, after {time:?}: {e}"),
            }
        }
        answers.iter().map(|(_, _, time)| *time).max().unwrap()
    }
}

#[test]
fn upgrades_and_kills_in_short_order_fail_nothing() {
    let slow = Slow::start(60, &[IMMORTAL], &["--timeout", "30s"]);
    let keeper = slow.keeper();
    slow.proxy.always(Fault::Delay(Duration::from_millis(700)));
    for (round, sequence) in ["uuuu", "ku", "uk", "kuku", "kk", "kkkkkkkkkk"].into_iter().enumerate() {
        let readers = slow.read(10 * round..10 * (round + 1));
        for what in sequence.chars() {
            std::thread::sleep(Duration::from_millis(300));
            match what {
                'u' => drop(run(slow.mount.vaultfs(["upgrade"]).arg(slow.mount.mnt())).ok()),
                _ => drop(replace_worker(keeper)),
            }
        }
        let slowest = readers.got_all();
        eprintln!("{sequence}: the slowest reader waited {slowest:?}");
    }
    assert!(!slow.mount.log().contains("it is given up"));
    slow.proxy.clear();
    slow.mount.unmount();
}

#[test]
fn a_save_alone_in_flight_at_many_kills_is_stored_once() {
    let slow = Slow::start(0, &[IMMORTAL], &["--timeout", "40s"]);
    let keeper = slow.keeper();
    let mut file = File::create(slow.mount.path("f")).unwrap();
    file.write_all(b"synced").unwrap();
    slow.proxy.always(Fault::Delay(Duration::from_secs(1)));
    let syncing = std::thread::spawn(move || (file.sync_all(), file));
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(300));
        replace_worker(keeper);
    }
    let (synced, file) = syncing.join().unwrap();
    synced.unwrap();
    slow.proxy.clear();
    drop(file);
    assert_eq!(slow.mount.versions("f"), [1]);
    slow.mount.unmount();
}

#[test]
fn a_request_that_kills_workers_is_given_up() {
    let slow = Slow::start(0, &[IMMORTAL], &[]);
    fs::create_dir(slow.mount.path("from")).unwrap();
    fs::write(&slow.point, "abort rename dir").unwrap();
    let refused = fs::rename(slow.mount.path("from"), slow.mount.path("to")).unwrap_err();
    fs::remove_file(&slow.point).unwrap();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert_eq!(slow.mount.status()["restarts"], 2);
    fs::write(slow.mount.path("f"), "everything else goes on").unwrap();
}

/// Nothing in the process would miss the thread that tells the kernel what is new: readers would
/// have old bytes for good.
#[test]
fn a_worker_ends_with_a_thread_of_its_own_and_what_that_was_to_do_is_done() {
    let slow = Slow::start(0, &[IMMORTAL], &["--format", "json"]);
    let path = slow.mount.path("f");
    fs::write(&slow.point, "panic notice").unwrap();
    // The name is to show another file: what the vault made of it.
    fs::write(&path, r#"{"n":1}"#).unwrap();
    until("a thread has panicked", || !slow.point.exists());
    until("another worker serves", || slow.mount.status()["restarts"] == 1);
    assert_eq!(slow.mount.status()["last_end"], "it was killed by signal 6");
    until("the new bytes show", || fs::read(&path).unwrap() == b"{\n  \"n\": 1\n}\n");
    fs::write(&path, r#"{"n":2}"#).unwrap();
    until("later ones, too", || fs::read(&path).unwrap() == b"{\n  \"n\": 2\n}\n");
    assert_eq!(slow.mount.versions("f"), [1, 2]);
    slow.mount.unmount();
}

#[test]
fn a_request_that_takes_all_memory_is_given_up() {
    let Some(group) = Limited::to("memory", "memory.max", "memory.limit_in_bytes", 192 << 20) else { return };
    let slow = Slow::start(0, &[IMMORTAL], &[]);
    let (keeper, worker) = slow.mount.pids();
    if !group.takes(&[keeper, worker]) {
        return;
    }
    fs::create_dir(slow.mount.path("from")).unwrap();
    fs::write(&slow.point, "grow rename dir").unwrap();
    let refused = fs::rename(slow.mount.path("from"), slow.mount.path("to")).unwrap_err();
    fs::remove_file(&slow.point).unwrap();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    let status = slow.mount.status();
    assert_eq!((&status["restarts"], &status["last_end"]), (&2.into(), &"it was killed by signal 9".into()));
    fs::write(slow.mount.path("f"), "everything else goes on").unwrap();
    slow.mount.unmount();
}

/// One that kills as soon as it is begun, and one that kills with what the vault answers, when
/// others have their answers, too.
#[test]
fn the_request_that_kills_workers_is_found_among_others_and_only_that_is_given_up() {
    let slow = Slow::start(40, &[IMMORTAL], &[]);
    let rounds = ["rename dir", "found", "rename dir", "found"];
    for (round, point) in rounds.into_iter().enumerate() {
        let before = slow.mount.status()["restarts"].as_u64().unwrap();
        let (from, to, read) = (
            slow.mount.path(format!("from{round}")),
            slow.mount.path("to"),
            slow.mount.path((39 - round).to_string()),
        );
        fs::create_dir(&from).unwrap();
        slow.proxy.always(Fault::Delay(Duration::from_millis(300)));
        let whose = if point == "found" { format!("found {}", 39 - round) } else { point.to_owned() };
        let others = 8 * round..8 * (round + 1);
        let put = || fs::write(&slow.point, format!("abort {whose}")).unwrap();
        // All are to be in flight at the first death.
        let (readers, refused) = if point == "found" {
            put();
            let killer = std::thread::spawn(move || fs::read(&read).map(drop));
            std::thread::sleep(Duration::from_millis(100));
            (slow.read(others), killer.join().unwrap())
        } else {
            let readers = slow.read(others);
            put();
            (readers, fs::rename(&from, to))
        };
        fs::remove_file(&slow.point).unwrap();
        let slowest = readers.got_all();
        slow.proxy.clear();
        let deaths = slow.mount.status()["restarts"].as_u64().unwrap() - before;
        eprintln!("{whose}: {deaths} deaths, the slowest reader waited {slowest:?}");
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EIO), "{whose}");
        assert!((2..=6).contains(&deaths), "{whose}: {deaths} deaths");
    }
    assert_eq!(slow.mount.log().matches("it is given up").count(), rounds.len());
    slow.mount.unmount();
}

/// A save and a read time out over these deaths, each of which has so many milliseconds after it;
/// the save is made all the same. Nobody waits until `latest`.
fn deadlines_go_on(first: u64, deaths: &[u64], latest: Duration) {
    let slow = Slow::start(1, &[IMMORTAL], &["--timeout", "4s"]);
    let keeper = slow.keeper();
    let mut file = File::create(slow.mount.path("f")).unwrap();
    file.write_all(b"x").unwrap();
    slow.proxy.always(Fault::BlackHole);
    let syncing = std::thread::spawn(move || {
        let begun = Instant::now();
        (file.sync_all(), begun.elapsed(), file)
    });
    let readers = slow.read(0..1);
    std::thread::sleep(Duration::from_millis(first));
    for pause in deaths {
        replace_worker(keeper);
        std::thread::sleep(Duration::from_millis(*pause));
    }
    let (synced, sync_time, file) = syncing.join().unwrap();
    let (_, read, read_time) = readers.0.into_iter().next().unwrap().join().unwrap();
    eprintln!("fsync {sync_time:?}, read {read_time:?}");
    assert_eq!(synced.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    for time in [sync_time, read_time] {
        assert!((Duration::from_millis(3900)..latest).contains(&time), "{time:?}");
    }
    slow.proxy.clear();
    drop(file);
    until("it is stored all the same", || slow.mount.versions("f") == [1]);
    slow.mount.unmount();
}

#[test]
fn a_deadline_goes_on_over_a_death() {
    deadlines_go_on(3400, &[0], Duration::from_millis(5900));
}

/// Each successor begins to serve after a second, as the vault is silent, and the time is over by
/// then.
#[test]
fn many_deaths_hold_nobody_up_beyond_the_deadline() {
    deadlines_go_on(3000, &[1600; 7], Duration::from_secs(9));
}

/// Programs wait for the vault only where they need it: it may be slow, or silent.
#[test]
fn a_successor_asks_the_vault_nothing_before_it_serves() {
    let slow = Slow::start(1, &[IMMORTAL], &["--refresh", "1h"]);
    let keeper = slow.keeper();
    let file = OpenOptions::new().read(true).write(true).open(slow.mount.path("0")).unwrap();
    slow.proxy.always(Fault::Silence);
    let asked = slow.proxy.requests();
    for death in 0..5 {
        replace_worker(keeper);
        file.write_all_at(&[b'a' + death], 0).unwrap();
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [b'a' + death, b'a']);
        assert_eq!(slow.proxy.requests(), asked);
    }
    slow.proxy.clear();
    drop(file);
    slow.mount.unmount();
}

#[test]
fn when_workers_keep_dying_everything_is_refused_and_nothing_shows_below() {
    let place = Place::new();
    fs::write(place.mnt.join("below"), "1").unwrap();
    let point = place.dir.path().join("point");
    let mut command = place.mount_command(&["-o", "nonempty"]);
    command.env("VAULTFS_TEST_CRASH", &point).env("VAULTFS_TEST_DEATHS", "9,4");
    run(&mut command).ok();
    let mount = Mount::adopt(place);
    let (keeper, _) = mount.pids();
    fs::write(mount.path("a"), "1").unwrap();
    let mut unsaved = fs::File::create(mount.path("unsaved")).unwrap();
    unsaved.write_all(b"secret").unwrap();
    // Each by itself, and before it has served.
    fs::write(&point, "abort receive-state").unwrap();
    kill_worker(keeper);
    let refused = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(libc::EIO));
    refused(fs::read_dir(mount.mnt()).unwrap_err());
    refused(fs::read(mount.path("below")).unwrap_err());
    refused(fs::write(mount.path("x"), "secret").unwrap_err());
    let status = run(mount.vaultfs(["status"]).arg(mount.mnt()));
    assert_eq!(status.code, Some(1));
    assert!(status.out.contains("BROKEN") && status.out.contains("vaultfs unmount"), "{}", status.out);
    assert!(mount.log().contains("keeps dying"));
    // Whatever a helper did would be refused, too.
    kill(keeper, "vaultfs-helper");
    until("the helper is gone", || child_of(keeper, "vaultfs-helper").is_none());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(child_of(keeper, "vaultfs-helper"), None);
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(1);
    let said = run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).fails(7);
    assert!(said.contains("\n  unsaved: the file is still open\n"), "{said}");
    assert_nothing_left(mount.mnt());
    let log = mount.log();
    let named = "not stored when the mount ended: the file is still open name=\"unsaved\"";
    assert!(log.contains(named), "{log}");
    assert!(!mount.mnt().join("x").exists());
}

#[test]
fn a_mount_that_was_given_up_is_tried_again() {
    let switches = [("VAULTFS_TEST_DEATHS", "9,4"), ("VAULTFS_TEST_AGAIN", "1000")];
    let slow = Slow::start(1, &switches, &[]);
    let keeper = slow.keeper();
    let mut unsaved = OpenOptions::new().write(true).open(slow.mount.path("0")).unwrap();
    unsaved.write_all(b"unsaved").unwrap();
    fs::write(&slow.point, "abort receive-state").unwrap();
    kill_worker(keeper);
    let refused = |e: std::io::Error| e.raw_os_error() == Some(libc::EIO);
    assert!(fs::read_dir(slow.mount.mnt()).is_err_and(refused));
    until("a try has failed", || slow.mount.log().matches("keeps dying").count() >= 2);
    assert!(run(slow.mount.vaultfs(["status"]).arg(slow.mount.mnt())).out.contains("BROKEN"));
    fs::remove_file(&slow.point).unwrap();
    until("it is served again", || fs::read_dir(slow.mount.mnt()).is_ok());
    // The keeper is notified after the first answers.
    let status = || run(slow.mount.vaultfs(["status"]).arg(slow.mount.mnt()));
    until("status says so", || status().code == Some(0));
    unsaved.write_all(b"!").unwrap();
    unsaved.sync_all().unwrap();
    drop(unsaved);
    assert_eq!(&fs::read(slow.mount.path("0")).unwrap()[..8], b"unsaved!");
    slow.mount.unmount();
}

/// A read or a write of the load takes no longer than a request's deadline and this. A quiet
/// machine needs less than 2 s of it.
const GRACE: Duration = Duration::from_secs(10);

/// Programs that read and write while `disturb` does its worst; none of it fails, or waits for
/// long.
fn nobody_waits_long(mount: &Mount, disturb: impl FnOnce()) {
    let over = std::sync::atomic::AtomicBool::new(false);
    let work = |name: &str| {
        let (mut longest, mut turns) = (Duration::ZERO, 0);
        while !over.load(std::sync::atomic::Ordering::SeqCst) {
            let begun = Instant::now();
            fs::write(mount.path(name), format!("{turns}")).unwrap();
            longest = longest.max(begun.elapsed());
            let begun = Instant::now();
            assert_eq!(fs::read_to_string(mount.path(name)).unwrap(), format!("{turns}"));
            longest = longest.max(begun.elapsed());
            turns += 1;
        }
        (longest, turns)
    };
    std::thread::scope(|scope| {
        let programs = ["a", "b"].map(|name| scope.spawn(move || work(name)));
        disturb();
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        for program in programs {
            let (longest, turns) = program.join().unwrap();
            eprintln!("{turns} saves, the longest operation took {longest:?}");
            // A save is three requests that may wait, each for its own deadline; the default is 10
            // s.
            assert!(longest < Duration::from_secs(10) + GRACE, "{longest:?}");
        }
    });
}

#[test]
fn kills_from_outside_make_nobody_wait_and_are_no_reason_to_give_up() {
    let mount = Mount::start();
    let (keeper, _) = mount.pids();
    nobody_waits_long(&mount, || {
        for kill in 0..24 {
            kill_worker(keeper);
            std::thread::sleep(Duration::from_millis(150 + 37 * (kill % 9)));
        }
        // As soon as there is one, before it serves anybody: so many kills are held against no
        // request.
        for _ in 0..5 {
            replace_worker(keeper);
        }
    });
    assert!(!mount.log().contains("keeps dying") && !mount.log().contains("it is given up"));
    let restarts = mount.status()["restarts"].as_u64().unwrap();
    assert!(restarts >= 28, "{restarts}");
    mount.unmount();
}

#[test]
fn workers_that_crash_after_they_served_are_succeeded_at_once() {
    let mount = Mount::start();
    let (keeper, _) = mount.pids();
    let begun = Instant::now();
    for turn in 0..14 {
        fs::write(mount.path("f"), format!("{turn}")).unwrap();
        let worker = worker_of(keeper);
        signal(worker.expect("it has just served"), Signal::SIGABRT);
        until("it is succeeded", || worker_of(keeper).is_some_and(|now| Some(now) != worker));
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(!mount.log().contains("keeps dying"));
    mount.unmount();
}

#[test]
fn an_upgrade_whose_worker_dies_is_asked_of_the_next_one() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    // It gets the request, and never passes it on.
    signal(worker, Signal::SIGSTOP);
    let mut command = mount.vaultfs(["upgrade"]);
    let mut upgrade = common::Beside::start(command.arg(mount.mnt()).stderr(std::process::Stdio::piped()));
    std::thread::sleep(Duration::from_millis(300));
    kill_worker(keeper);
    assert!(upgrade.ends().success());
    assert_eq!(mount.status()["last_end"], "it was upgraded");
    // Kills that come while it is on.
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0.. {
                if over.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                if let Some(worker) = worker_of(keeper) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(200 + 41 * (turn % 9)));
            }
        });
        let upgrades: Vec<_> = (0..10).map(|_| run(mount.vaultfs(["upgrade"]).arg(mount.mnt()))).collect();
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        for upgrade in upgrades {
            upgrade.ok();
        }
    });
    mount.unmount();
}

#[test]
fn an_upgrade_does_not_wait_for_a_keeper_that_is_stopped() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    signal(keeper, Signal::SIGSTOP);
    let begun = Instant::now();
    let upgraded = run(mount.vaultfs(["upgrade"]).arg(mount.mnt()));
    let time = begun.elapsed();
    signal(keeper, Signal::SIGCONT);
    let said = upgraded.fails(1);
    assert!(said.contains("is stopped") && said.contains(&format!("kill -CONT {keeper}")), "{said}");
    assert!(time < Duration::from_secs(15), "{time:?}");
    until("then the upgrade takes place", || worker_of(keeper).is_some_and(|now| now != worker));
    fs::write(mount.path("f"), "1").unwrap();
    mount.unmount();
}

#[test]
fn a_kernel_that_cannot_send_again_gets_a_new_mount() {
    let place = Place::new();
    let mut command = place.mount_command(&[]);
    run(command.envs([IMMORTAL, ("VAULTFS_TEST_NO_RESEND", "1")])).ok();
    let mount = Mount::adopt(place);
    let (keeper, _) = mount.pids();
    fs::write(mount.path("f"), "1").unwrap();
    let mut unsaved = File::create(mount.path("unsaved")).unwrap();
    unsaved.write_all(b"unsaved").unwrap();
    kill_worker(keeper);
    until("new operations work", || fs::read_to_string(mount.path("f")).is_ok_and(|text| text == "1"));
    assert!(unsaved.write_all(b"x").is_err(), "what was open is lost");
    until("what was unsaved is stored", || mount.versions("unsaved") == [1]);
    assert_eq!(mount.status()["kernel"]["resend"], false);
    assert!(run(mount.vaultfs(["upgrade"]).arg(mount.mnt())).fails(1).contains("6.9"));
    drop(unsaved);
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).ok();
    assert_nothing_left(mount.mnt());
}
