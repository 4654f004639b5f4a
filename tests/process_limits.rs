//! Real mounts on bad days: a vault that hangs, limits of the machine, floods, a key that is revoked.

mod common;
mod proxy;
#[allow(dead_code, reason = "each test binary uses a part of it")]
#[path = "vault_server/served.rs"]
mod served;

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Mount, Place, assert_nothing_left, run, signal, until};
use nix::sys::signal::Signal;
use proxy::{Fault, Proxy};
use served::Served;

struct Scene {
    mount: Option<Mount>,
    proxy: Proxy,
    _served: Served,
}

impl Scene {
    fn with(more: &[&str]) -> Self {
        let place = Place::new();
        let served = Served::start(&place.data);
        let proxy = Proxy::before(&served.url);
        // An object that this mount has not read.
        let key = place.data.join("api-key");
        let put = format!(
            "printf 1 | {} put --api-url {} --api-key-file {} -- cold",
            common::VAULTFS,
            served.url,
            key.display()
        );
        let mut shell = Command::new("sh");
        place.isolate(&mut shell);
        run(shell.args(["-c", &put])).ok();
        let mut command =
            place.vaultfs(["mount", "--timeout", "3s", "--drain", "1s", "--api-url", &proxy.url]);
        command.arg("--api-key-file").arg(place.data.join("api-key")).args(more).arg(&place.mnt);
        run(&mut command).ok();
        Self { mount: Some(Mount::adopt(place)), proxy, _served: served }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn end(mut self) {
        self.proxy.clear();
        drop(self.mount.take().unwrap().unmount());
    }
}

fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn a_vault_that_hangs_holds_up_nobody_who_does_not_need_it() {
    let scene = Scene::with(&[]);
    let mount = scene.mount();
    fs::write(mount.path("warm"), "1").unwrap();
    fs::read(mount.path("warm")).unwrap();
    scene.proxy.always(Fault::BlackHole);
    let cold = mount.path("cold");
    let waiting = std::thread::spawn(move || fs::read(cold).unwrap_err().raw_os_error());
    until("the question is out", || scene.proxy.requests() > 0);
    let began = Instant::now();
    for script in [
        "stat -f . >/dev/null",
        "test -r . -a -x .",
        "stat . >/dev/null",
        "cat .vaultfs/status.json >/dev/null",
    ] {
        mount.sh(script);
    }
    assert_eq!(mount.sh("cat warm"), "1");
    mount.status();
    // Not one of them has waited for its deadline.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(waiting.join().unwrap(), Some(libc::ETIMEDOUT));
    scene.end();
}

#[test]
fn an_answer_without_end_takes_no_memory() {
    let scene = Scene::with(&["--max-size", "64KiB"]);
    let mount = scene.mount();
    let (_, worker) = mount.pids();
    let before = resident_kib(worker);
    for (fault, name) in [(Fault::Huge, "a"), (Fault::Endless, "b")] {
        scene.proxy.always(fault);
        assert!(fs::read(mount.path(name)).is_err());
    }
    assert!(scene.proxy.endless() < 1 << 28, "{} bytes were read", scene.proxy.endless());
    let grown = resident_kib(worker).saturating_sub(before);
    assert!(grown < 32 * 1024, "it grew by {grown} KiB");
    scene.end();
}

#[test]
fn a_flood_of_cold_readers_and_of_questions_is_bounded() {
    const READERS: usize = 1500;
    let scene = Scene::with(&[]);
    let mount = scene.mount();
    let (_, worker) = mount.pids();
    let (files, tasks) = (open_files(worker), threads(worker));
    scene.proxy.always(Fault::Delay(Duration::from_millis(20)));
    std::thread::scope(|scope| {
        for n in 0..READERS {
            let path = mount.path(format!("cold-{n}"));
            let reader = std::thread::Builder::new().stack_size(64 * 1024);
            // What each gets is one of the two answers there are.
            let spawned = reader.spawn_scoped(scope, move || {
                let errno = fs::read(path).unwrap_err().raw_os_error();
                assert!(
                    [Some(libc::ENOENT), Some(libc::ETIMEDOUT), Some(libc::EBUSY)].contains(&errno),
                    "{errno:?}"
                );
            });
            drop(spawned.unwrap());
        }
        for _ in 0..20 {
            assert!(open_files(worker) < files + 300, "{} descriptors", open_files(worker));
            assert!(threads(worker) <= tasks + 4, "{} threads", threads(worker));
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    scene.proxy.clear();
    let socket = socket_of(mount);
    let flood: Vec<_> = (0..500).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    assert!(open_files(worker) < files + 300, "{} descriptors", open_files(worker));
    drop(flood);
    until("it answers again", || run(mount.vaultfs(["status"]).arg(mount.mnt())).code == Some(0));
    fs::write(mount.path("f"), "1").unwrap();
    scene.end();
}

/// The control socket of a mount: the file that the keeper made for it.
fn socket_of(mount: &Mount) -> std::path::PathBuf {
    let status = mount.status();
    let own = format!("{}.{}.", status["dev"].as_str().unwrap(), status["keeper_pid"]);
    let uid = nix::unistd::geteuid();
    let dirs = ["/run/vaultfs".into(), format!("/run/user/{uid}/vaultfs"), format!("/tmp/vaultfs-{uid}")];
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let mut ours = files.filter(|file| file.file_name().to_str().unwrap().starts_with(&own));
    ours.find(|file| UnixStream::connect(file.path()).is_ok()).expect("it listens").path()
}

#[test]
fn without_descriptors_it_fails_and_goes_on_when_there_are_some() {
    let scene = Scene::with(&[]);
    let mount = scene.mount();
    let (_, worker) = mount.pids();
    fs::write(mount.path("warm"), "1").unwrap();
    fs::read(mount.path("warm")).unwrap();
    // The connection that is open would do for the next question.
    scene.proxy.down();
    scene.proxy.up();
    let limit = |soft: &str| {
        run(Command::new("prlimit").args(["--pid", &worker.to_string(), &format!("--nofile={soft}")])).ok();
    };
    let hard = run(Command::new("prlimit").args([
        "--pid",
        &worker.to_string(),
        "--nofile",
        "--output",
        "HARD",
        "--noheadings",
        "--raw",
    ]));
    limit("3:");
    let errno = fs::read(mount.path("cold")).unwrap_err().raw_os_error();
    assert!([Some(libc::ETIMEDOUT), Some(libc::EIO)].contains(&errno), "{errno:?}");
    assert_eq!(fs::read_to_string(mount.path("warm")).unwrap(), "1", "what is here needs none");
    limit(&format!("{}:", hard.ok().trim()));
    until("it works again", || fs::write(mount.path("f"), "2").is_ok());
    assert!(mount.log().contains("Too many open files"), "{}", mount.log());
    scene.end();
}

#[test]
fn a_log_on_a_full_disk_stops_nothing() {
    if !common::is_root() {
        eprintln!("SKIPPED: only root can make a small file system");
        return;
    }
    let place = Place::new();
    let disk = place.dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&disk)).ok();
    let log = disk.join("log");
    run(&mut place.mount_command(&["-v", "--log", log.to_str().unwrap()])).ok();
    let mount = Mount::adopt(place);
    let mut filler = fs::File::create(disk.join("filler")).unwrap();
    while filler.write_all(&[0; 1024]).is_ok() {}
    for n in 0..10 {
        fs::write(mount.path("f"), n.to_string()).unwrap();
        assert!(fs::read(mount.path(format!("absent-{n}"))).is_err());
    }
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "9");
    drop(mount.unmount());
    drop(filler);
    run(Command::new("umount").arg(&disk)).ok();
}

#[test]
fn a_key_that_is_revoked_under_a_mount_takes_pages_and_open_files_within_the_refresh_time() {
    let scene = Scene::with(&["--refresh", "1s"]);
    let mount = scene.mount();
    fs::write(mount.path("f"), "secret").unwrap();
    let mut held = fs::File::open(mount.path("f")).unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "secret");
    let key = mount.place().data.clone();
    let serve = |args: &[&str]| run(mount.vaultfs(["serve", "--data"]).arg(&key).arg("key").args(args)).ok();
    let listed = serve(&["list"]);
    let ids =
        listed.split_whitespace().filter(|word| word.starts_with("key_") || word.starts_with("vault_key"));
    let ids: Vec<String> = ids.map(str::to_owned).collect();
    assert!(!ids.is_empty(), "{listed}");
    for id in &ids {
        serve(&["revoke", id]);
    }
    until("the open file is taken away", || {
        held.rewind().unwrap();
        let mut buffer = [0; 6];
        held.read(&mut buffer).err().and_then(|e| e.raw_os_error()) == Some(libc::EACCES)
    });
    assert_eq!(fs::read(mount.path("f")).unwrap_err().raw_os_error(), Some(libc::EACCES));
    drop(held);
    scene.end();
}

#[test]
fn a_mount_in_a_namespace_of_its_own_ends_with_its_keeper_and_leaves_nothing() {
    if !common::is_root() {
        eprintln!("SKIPPED: only root can make a mount namespace");
        return;
    }
    let place = Place::new();
    let mut shell = Command::new("unshare");
    place.isolate(&mut shell);
    let script = format!("\"$0\" mount '{}' \"$1\" && echo 1 >\"$1/f\" && cat \"$1/f\"", place.embedded());
    let said = run(shell.args(["-m", "sh", "-c", &script, common::VAULTFS]).arg(&place.mnt)).ok();
    assert_eq!(said, "1\n");
    // Nobody is in the namespace any more but the processes of the mount, which keep it.
    assert!(!common::is_mounted(&place.mnt));
    let ours = common::processes_of(&place.mnt);
    let keeper = ours.iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "vaultfs-keeper")
    });
    signal(*keeper.expect("it goes on"), Signal::SIGTERM);
    assert_nothing_left(&place.mnt);
}
