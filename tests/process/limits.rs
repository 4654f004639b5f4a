//! Real mounts on bad days: a vault that hangs, limits of the machine, floods, a key that is
//! revoked.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::cgroup::Limited;
use crate::support::common::{self, Mount, Place, assert_nothing_left, run, signal, until};
use crate::support::mount_table;
use crate::support::proxy::{Fault, Proxy};
use crate::support::vault_server::served::Served;

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
    const READERS: usize = 8;
    let scene = Scene::with(&[]);
    let mount = scene.mount();
    let (_, worker) = mount.pids();
    let before = resident_kib(worker);
    // Several are taken in at once, each up to what eight times `--max-size` is: none of that may
    // stay.
    for (round, fault) in
        [Fault::Huge, Fault::Endless, Fault::Endless, Fault::Endless].into_iter().enumerate()
    {
        scene.proxy.always(fault);
        std::thread::scope(|scope| {
            crowd(scope, READERS, |n| assert!(fs::read(mount.path(format!("cold-{round}-{n}"))).is_err()));
        });
    }
    assert!(scene.proxy.endless() < 1 << 31, "{} bytes were read", scene.proxy.endless());
    let grown = resident_kib(worker).saturating_sub(before);
    assert!(grown < 12 * 1024, "it grew by {grown} KiB");
    scene.end();
}

/// Locked memory of a process, in KiB.
fn locked_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn memory_stays_locked_while_that_of_a_burst_is_given_back() {
    crate::support::only_root!("only root may lock all memory");
    let mount = Mount::with(&["--cache-size", "1MiB"]);
    let (_, worker) = mount.pids();
    assert!(locked_kib(worker) > 0, "it is locked");
    for n in 0..200 {
        fs::write(mount.path(format!("f{n}")), vec![b'x'; 50_000]).unwrap();
    }
    // Memory is looked at each 10 s, and given back once it has stopped to grow.
    let end = Instant::now() + Duration::from_secs(25);
    let mut least = u64::MAX;
    while Instant::now() < end {
        least = least.min(locked_kib(worker));
    }
    assert!(least > 0, "for a moment nothing was locked");
    drop(mount.unmount());
}

/// Threads that run `work`, each with a small stack.
fn crowd<'a>(
    scope: &'a std::thread::Scope<'a, '_>,
    number: usize,
    work: impl Fn(usize) + Send + Sync + 'a,
) -> Vec<std::thread::ScopedJoinHandle<'a, ()>> {
    let work = std::sync::Arc::new(work);
    let one = |n| {
        let work = work.clone();
        let thread = std::thread::Builder::new().stack_size(64 * 1024);
        thread.spawn_scoped(scope, move || work(n)).unwrap()
    };
    (0..number).map(one).collect()
}

#[test]
fn a_flood_of_cold_readers_and_of_questions_is_bounded() {
    const READERS: usize = 1500;
    let scene = Scene::with(&[]);
    let mount = scene.mount();
    let (_, worker) = mount.pids();
    fs::write(mount.path("warm"), "1").unwrap();
    fs::read(mount.path("warm")).unwrap();
    let (files, tasks, memory) = (open_files(worker), threads(worker), resident_kib(worker));

    // One cold name: one question, whose answer is everybody's.
    scene.proxy.always(Fault::Delay(Duration::from_millis(500)));
    let before = scene.proxy.requests();
    std::thread::scope(|scope| {
        crowd(scope, READERS, |_| assert_eq!(fs::read(mount.path("cold")).unwrap(), b"1"));
    });
    let asked = scene.proxy.requests() - before;
    assert!(asked <= 3, "{asked} requests, the refresher's among them");

    // As many names, of which none exists. What each gets is one of the answers there are, within
    // its deadline (3 s for its lookup, and half a second until the answer is given for it) and
    // what so many threads take by themselves.
    scene.proxy.always(Fault::Delay(Duration::from_millis(20)));
    std::thread::scope(|scope| {
        let readers = crowd(scope, READERS, |n| {
            let began = Instant::now();
            let errno = fs::read(mount.path(format!("cold-{n}"))).unwrap_err().raw_os_error();
            let answers = [Some(libc::ENOENT), Some(libc::ETIMEDOUT), Some(libc::EBUSY)];
            assert!(answers.contains(&errno), "{errno:?}");
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        });
        // Nobody else is held up by them.
        while !readers.iter().all(|reader| reader.is_finished()) {
            let began = Instant::now();
            assert_eq!(fs::read_to_string(mount.path("warm")).unwrap(), "1");
            assert!(began.elapsed() < Duration::from_secs(10), "what is here takes {:?}", began.elapsed());
            assert!(open_files(worker) < files + 300, "{} descriptors", open_files(worker));
            assert!(threads(worker) <= tasks + 4, "{} threads", threads(worker));
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    scene.proxy.clear();
    let grown = resident_kib(worker).saturating_sub(memory);
    assert!(grown < 32 * 1024, "it grew by {grown} KiB");
    let socket = socket_of(mount);
    let flood: Vec<_> = (0..500).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    assert!(open_files(worker) < files + 300, "{} descriptors", open_files(worker));
    drop(flood);
    until("it answers again", || run(mount.vaultfs(["status"]).arg(mount.mnt())).code == Some(0));
    assert_eq!(fs::read_to_string(mount.path("cold")).unwrap(), "1");
    fs::write(mount.path("f"), "1").unwrap();
    assert_eq!(mount.pids().1, worker, "it is the same one");
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

/// Sets a limit of a running process.
fn limit(pid: i32, what: &str) {
    run(Command::new("prlimit").args(["--pid", &pid.to_string(), what])).ok();
}

#[test]
fn a_keeper_without_descriptors_starts_a_worker_as_soon_as_there_are_some() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    fs::write(mount.path("f"), "1").unwrap();
    limit(keeper, "--nofile=3:4096");
    signal(worker, Signal::SIGKILL);
    // A program that asks meanwhile waits, and is answered in the end.
    let path = mount.path("f");
    let reader = std::thread::spawn(move || fs::read_to_string(path).unwrap());
    until("it says why", || mount.log().contains("Too many open files"));
    limit(keeper, "--nofile=1024:4096");
    assert_eq!(reader.join().unwrap(), "1");
    fs::write(mount.path("f"), "2").unwrap();
    mount.unmount();
}

#[test]
fn a_worker_without_address_space_is_succeeded_and_nothing_is_lost() {
    let mount = Mount::start();
    let (_, worker) = mount.pids();
    let large = vec![b'x'; 1 << 20];
    let mut unsaved = fs::File::create(mount.path("unsaved")).unwrap();
    unsaved.write_all(b"unsaved").unwrap();
    // Less than it has: whatever it asks for from now on is refused.
    limit(worker, "--as=1048576:");
    for n in 0..8 {
        fs::write(mount.path(format!("f{n}")), &large).unwrap();
        assert!(fs::read(mount.path(format!("f{n}"))).unwrap() == large);
    }
    drop(unsaved);
    until("it is stored", || mount.versions("unsaved") == [1]);
    assert_eq!(fs::read_to_string(mount.path("unsaved")).unwrap(), "unsaved");
    mount.unmount();
}

#[test]
fn a_log_on_a_full_disk_stops_nothing() {
    crate::support::only_root!("only root can make a small file system");
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
    // Its directory goes last: the disk is in it.
    let _place = mount.unmount();
    drop(filler);
    run(Command::new("umount").arg(&disk)).ok();
}

/// Has the vault take all keys back.
fn revoke_all(mount: &Mount) {
    let serve = |args: &[&str]| {
        run(mount.vaultfs(["serve", "--data"]).arg(&mount.place().data).arg("key").args(args)).ok()
    };
    let listed = serve(&["list"]);
    let ids: Vec<&str> = listed
        .split_whitespace()
        .filter(|word| word.starts_with("key_") || word.starts_with("vault_key"))
        .collect();
    assert!(!ids.is_empty(), "{listed}");
    for id in ids {
        serve(&["revoke", id]);
    }
}

/// A page of a file, mapped.
struct Page(*mut libc::c_void);

impl Page {
    fn of(file: &fs::File) -> Self {
        // SAFETY: a new mapping, of a file that nobody cuts.
        let at = unsafe {
            let fd = file.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at)
    }

    /// The first byte, or the error that a program would die of.
    fn first(&self) -> std::io::Result<u8> {
        let (mut read, write) = std::io::pipe().unwrap();
        // SAFETY: the kernel looks at one byte of the mapping, and says EFAULT where a program
        // would get SIGBUS.
        match unsafe { libc::write(write.as_raw_fd(), self.0, 1) } {
            1 => {
                let mut byte = [0];
                read.read_exact(&mut byte)?;
                Ok(byte[0])
            }
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped in `of`, and nobody refers to it.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

#[test]
fn a_revocation_takes_the_pages_of_mappings_and_of_mounts_that_are_not_asked_at_open() {
    for more in [&["--refresh", "1s"][..], &["--refresh", "1s", "--read-only"]] {
        let scene = Scene::with(more);
        let mount = scene.mount();
        let mut held = fs::File::open(mount.path("cold")).unwrap();
        let page = Page::of(&held);
        assert_eq!(page.first().unwrap(), b'1');
        assert_eq!(fs::read_dir(mount.mnt()).unwrap().count(), 1);
        revoke_all(mount);
        let began = Instant::now();
        until("the mapping is taken away", || page.first().is_err());
        // The refresh time, and what a loaded machine takes beyond it.
        assert!(began.elapsed() < Duration::from_secs(20), "{more:?}: {:?}", began.elapsed());
        assert_eq!(page.first().unwrap_err().raw_os_error(), Some(libc::EFAULT));
        held.rewind().unwrap();
        assert_eq!(held.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::EACCES), "{more:?}");
        assert_eq!(fs::read(mount.path("cold")).unwrap_err().raw_os_error(), Some(libc::EACCES));
        let listed = fs::read_dir(mount.mnt()).and_then(|mut names| names.next().transpose());
        assert_eq!(listed.unwrap_err().raw_os_error(), Some(libc::EACCES), "{more:?}");
        drop((page, held));
        scene.end();
    }
}

#[test]
fn a_revocation_takes_the_names_that_the_kernel_listed() {
    for more in [&["--refresh", "1s"][..], &["--refresh", "1s", "--read-only"]] {
        let scene = Scene::with(more);
        let mount = scene.mount();
        assert_eq!(fs::read_dir(mount.mnt()).unwrap().count(), 1);
        revoke_all(mount);
        let list = || fs::read_dir(mount.mnt()).and_then(|mut names| names.next().transpose());
        until("the names are taken away", || list().is_err());
        assert_eq!(list().unwrap_err().raw_os_error(), Some(libc::EACCES), "{more:?}");
        scene.end();
    }
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
    revoke_all(mount);
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
fn a_revocation_under_a_sleeping_mount_is_heard_before_an_open_or_mapped_file_is_read() {
    for more in [&["--refresh", "100ms"][..], &["--refresh", "100ms", "--read-only"]] {
        let scene = Scene::with(more);
        let mount = scene.mount();
        let mut held = fs::File::open(mount.path("cold")).unwrap();
        let (page, other) = (Page::of(&held), Page::of(&held));
        let mut reads = || {
            held.rewind().unwrap();
            held.read(&mut [0]).map_err(|e| e.raw_os_error())
        };
        assert_eq!((page.first().unwrap(), reads()), (b'1', Ok(1)));
        let asleep = || mount.status()["fs"]["changes"]["refresh"]["awake"] == false;
        until("it falls asleep", asleep);
        assert_eq!((page.first().unwrap(), reads()), (b'1', Ok(1)), "and wakes");
        until("it falls asleep again", asleep);
        // What a tick that was under way has asked for is answered.
        std::thread::sleep(Duration::from_millis(300));
        let before = scene.proxy.requests();
        revoke_all(mount);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(scene.proxy.requests(), before, "nobody uses it: {more:?}");
        assert_eq!(page.first().unwrap_err().raw_os_error(), Some(libc::EFAULT), "{more:?}");
        assert_eq!(reads(), Err(Some(libc::EACCES)), "{more:?}");
        drop((page, other, held));
        scene.end();
    }
}

/// A small disk, gone with the test.
struct Disk(std::path::PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_under_an_embedded_vault_is_enospc_and_the_save_is_made_when_there_is_room() {
    crate::support::only_root!("only root can make a small file system");
    let place = Place::new();
    fs::create_dir_all(&place.data).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "none"]).arg(&place.data)).ok();
    let data = place.data.clone();
    let _disk = Disk(data.clone());
    run(&mut place.mount_command(&["--drain", "2s"])).ok();
    let mount = Mount::adopt(place);
    fs::write(mount.path("f"), "old").unwrap();
    let mut filler = fs::File::create(data.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let mut file = fs::File::create(mount.path("g")).unwrap();
    // What the database has allotted already holds a little more.
    let (number, error) = (0..100)
        .find_map(|n: u8| {
            file.rewind().unwrap();
            file.write_all(&[n; 60_000]).unwrap();
            Some((n, file.sync_all().err()?))
        })
        .expect("it is full");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    drop(file);
    assert_eq!(fs::read(mount.path("g")).unwrap(), [number; 60_000], "its bytes are kept");
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"old", "and what is stored can be read");
    let said = run(mount.vaultfs(["status"]).arg(mount.mnt())).prints(1);
    assert!(said.contains("is full: make room on it") && said.contains("NOT WELL"), "{said}");
    assert!(said.contains(data.to_str().unwrap()), "which disk: {said}");
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(7);
    drop(filler);
    fs::remove_file(data.join("filler")).unwrap();
    until("it is stored by itself", || mount.status()["fs"]["unsaved"].as_array().unwrap().is_empty());
    assert_eq!(fs::read(mount.path("g")).unwrap(), [number; 60_000]);
    drop(mount.unmount());
}

#[test]
fn a_mount_in_a_namespace_of_its_own_ends_with_its_keeper_and_leaves_nothing() {
    let _alone = mount_table::take();
    crate::support::only_root!("only root can make a mount namespace");
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

/// Address space that is used up already: whatever more it asks for it does not get, the stack of a
/// thread least of all.
fn end_memory(pid: i32) {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the pointers are to a limit that outlives the call, and to none.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_worker_that_gets_no_memory_or_no_thread_leaves_a_dead_mount_when_its_keeper_dies() {
    for what in ["memory", "threads"] {
        let mount = Mount::with(&["--drain", "1s"]);
        fs::write(mount.path("f"), "1").unwrap();
        let (keeper, worker) = mount.pids();
        let threads_group = match what {
            "memory" => {
                end_memory(worker);
                None
            }
            _ => match Limited::to("pids", "pids.max", "pids.max", 1) {
                Some(group) if group.takes(&[worker]) => Some(group),
                _ => return,
            },
        };
        let began = Instant::now();
        signal(keeper, Signal::SIGKILL);
        until("the mount is dead", || {
            fs::metadata(mount.mnt()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
        });
        let took = began.elapsed();
        // The time for what is unsaved, and no wait for a thread that never begins.
        assert!(took < Duration::from_secs(25), "{what}: {took:?}");
        until("its processes are gone", || common::processes_of(mount.mnt()).is_empty());
        eprintln!("{what}: dead after {took:?}, its processes ended after {:?}", began.elapsed());
        assert!(common::is_mounted(mount.mnt()), "the plain directory does not show");
        drop(threads_group);
        run(mount.vaultfs(["unmount"]).arg(mount.mnt())).ok();
        mount.unmount_done();
    }
}
