//! The worker dies, and nobody notices: kills at random moments under load, at chosen points of
//! each operation, in loops; and another program that takes over. Real mounts, with the vault in
//! the worker that is killed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::common::api::Api;
use crate::support::common::{
    self, IMMORTAL, Mount, Place, Size, VAULTFS, child_of, kill, kill_worker, replace_worker, run, until,
    worker_of,
};

/// Mounts with debug switches in the environment of the mount's processes.
fn mount_with(switches: &[(&str, &str)]) -> Mount {
    mount_for(common::TEST_TIME, switches, &[])
}

/// The same with more options, for so long at the most.
fn mount_for(time: Duration, switches: &[(&str, &str)], args: &[&str]) -> Mount {
    let place = Place::new();
    let mut command = place.mount_command(args);
    command.envs(switches.iter().copied());
    run(&mut command).ok();
    Mount::adopt_for(place, time)
}

/// close(2) with its answer.
fn close(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor was the file's, and nobody else's.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A value that tells whether it is whole.
fn value(number: u64) -> Vec<u8> {
    let mut bytes = format!("{number:08} ").into_bytes();
    let len = 20 + (number * 397) % 5000;
    bytes.extend((0..len).map(|at| b'a' + ((number + at) % 26) as u8));
    bytes
}

/// Its number, if it is whole.
fn number_of(bytes: &[u8]) -> Option<u64> {
    let number = bytes.get(..8).and_then(|b| std::str::from_utf8(b).ok()).and_then(|t| t.parse().ok());
    number.filter(|number| value(*number) == bytes)
}

/// What the programs of a load have done.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    done: Mutex<HashMap<String, u64>>,
    wrong: Mutex<Vec<String>>,
    /// Milliseconds.
    slowest_read: AtomicU64,
    /// The same of a sync of a file beside the vault: what its disk makes everybody wait, and a
    /// dying worker, too.
    slowest_sync: AtomicU64,
}

impl Load {
    /// Runs `work` again and again, as a program of this name.
    fn program(
        self: &Arc<Self>,
        name: &str,
        mut work: impl FnMut(u64) -> Result<(), String> + Send + 'static,
    ) -> std::thread::JoinHandle<u64> {
        let (load, name) = (self.clone(), name.to_owned());
        load.done.lock().unwrap().insert(name.clone(), 0);
        std::thread::spawn(move || {
            let mut turn = 0;
            while !load.over.load(Ordering::SeqCst) {
                turn += 1;
                if let Err(e) = work(turn) {
                    load.wrong.lock().unwrap().push(format!("{name}, turn {turn}: {e}"));
                    break;
                }
                load.done.lock().unwrap().insert(name.clone(), turn);
            }
            turn
        })
    }

    fn is_well(&self) -> bool {
        self.wrong.lock().unwrap().is_empty()
    }

    /// Waits until each program that uses the mount has done something more.
    fn progress(&self) {
        let before = self.done.lock().unwrap().clone();
        let goes_on = |(name, turn): (&String, &u64)| name == CHANGER || *turn > before[name];
        until("each program goes on", || !self.is_well() || self.done.lock().unwrap().iter().all(goes_on));
    }

    /// Reads a value; its number.
    fn read(&self, path: &Path) -> Result<u64, String> {
        let start = Instant::now();
        let bytes = fs::read(path).map_err(|e| format!("read: {e}"))?;
        self.slowest_read.fetch_max(start.elapsed().as_millis() as u64, Ordering::SeqCst);
        number_of(&bytes).ok_or_else(|| format!("torn: {} bytes", bytes.len()))
    }
}

fn write_with(path: &Path, bytes: &[u8], options: &OpenOptions, sync: bool) -> std::io::Result<()> {
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    close(file)
}

fn said<T>(what: &'static str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

/// Eight readers and four writers. Each writer saves in another way, one version a turn.
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn start_load(load: &Arc<Load>, mnt: &Path) -> Vec<(&'static str, std::thread::JoinHandle<u64>)> {
    let mut new = OpenOptions::new();
    new.write(true).create(true).truncate(true);
    // Shared with readers: only what is saved by a rename is never seen half-written.
    for name in ["moved", "vim"] {
        write_with(&mnt.join(name), &value(0), &new, false).unwrap();
    }
    for reader in 0..6 {
        let (by, path) = (load.clone(), mnt.join(["moved", "quiet"][reader % 2]));
        if reader == 1 {
            write_with(&path, &value(7), &new, false).unwrap();
        }
        load.program(&format!("reader {reader}"), move |_| by.read(&path).map(drop));
    }
    let (by, path) = (load.clone(), mnt.with_file_name("control"));
    let options = new.clone();
    load.program("writer elsewhere", move |turn| {
        let start = Instant::now();
        said("save", write_with(&path, &value(turn), &options, true))?;
        by.slowest_sync.fetch_max(start.elapsed().as_millis() as u64, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    });
    let mut held = File::open(mnt.join("quiet")).unwrap();
    load.program("reader of an open file", move |_| {
        let mut bytes = Vec::new();
        said("seek", held.seek(SeekFrom::Start(0)))?;
        said("read", held.read_to_end(&mut bytes))?;
        if bytes == value(7) { Ok(()) } else { Err("other bytes".to_owned()) }
    });
    let dir = mnt.to_owned();
    load.program("lister", move |_| {
        let names: Vec<_> = said("ls", fs::read_dir(&dir))?.map(|e| e.map(|e| e.file_name())).collect();
        match names.iter().filter(|n| n.as_ref().is_ok_and(|n| n == "quiet")).count() {
            1 => Ok(()),
            n => Err(format!("a name is listed {n} times")),
        }
    });
    let (plain, moved, vim, synced) =
        (mnt.join("plain"), mnt.join("moved"), mnt.join("vim"), mnt.join("synced"));
    let options = new.clone();
    let plain =
        load.program("plain", move |turn| said("save", write_with(&plain, &value(turn), &options, false)));
    let options = new.clone();
    let moved = load.program("moved", move |turn| {
        let temporary = moved.with_extension("tmp");
        let mut excl = OpenOptions::new();
        excl.write(true).create_new(true);
        said("write", write_with(&temporary, &value(turn), &excl, false))?;
        said("rename", fs::rename(&temporary, &moved))?;
        let _ = &options;
        Ok(())
    });
    let options = new.clone();
    let vim = load.program("vim", move |turn| {
        let (backup, swap) = (vim.with_file_name("vim~"), vim.with_file_name(".vim.swp"));
        said("swap", write_with(&swap, b"swap", &options, true))?;
        said("backup", fs::rename(&vim, &backup))?;
        said("write", write_with(&vim, &value(turn), &options, true))?;
        said("unlink backup", fs::remove_file(&backup))?;
        said("unlink swap", fs::remove_file(&swap))
    });
    let synced = load.program("synced", move |turn| {
        said("save", write_with(&synced, &value(turn), &new, true))?;
        // Names that come and go.
        let dir = synced.with_file_name(format!("dir{}", turn % 3));
        said("mkdir", fs::create_dir(&dir))?;
        said("make", fs::write(dir.join("x"), "1"))?;
        said("unlink", fs::remove_file(dir.join("x")))?;
        said("rmdir", fs::remove_dir(&dir))
    });
    vec![("plain", plain), ("moved", moved), ("vim", vim), ("synced", synced)]
}

/// `deaths` is how many workers died since the slowest read was last looked at: each may hold a
/// reader up.
fn end_load(
    load: &Load,
    mount: &Mount,
    writers: Vec<(&'static str, std::thread::JoinHandle<u64>)>,
    deaths: u64,
) {
    load.over.store(true, Ordering::SeqCst);
    let turns: Vec<_> = writers.into_iter().map(|(name, writer)| (name, writer.join().unwrap())).collect();
    assert_eq!(*load.wrong.lock().unwrap(), Vec::<String>::new());
    for (name, turn) in &turns {
        assert_eq!(fs::read(mount.path(name)).unwrap(), value(*turn), "{name}: the last save");
        // What was there before the first turn is a version, too.
        let before = u64::from(["moved", "vim"].contains(name));
        let versions = mount.versions(name);
        let mut known = HashMap::new();
        let number = |n: &u64| number_of(&fs::read(mount.path(format!(".versions/{name}/{n}"))).unwrap());
        let mut again = Vec::new();
        for n in &versions {
            again.extend(known.insert(number(n), *n).map(|first| (first, *n)));
        }
        assert_eq!(again, [], "{name}: these versions are one save");
        assert_eq!(versions.len() as u64, turn + before, "{name}: one save, one version");
    }
    let slowest = load.slowest_read.load(Ordering::SeqCst) / deaths.max(1);
    let disk = load.slowest_sync.load(Ordering::SeqCst);
    eprintln!("{turns:?} saves; the slowest read took {slowest} ms, a sync elsewhere {disk} ms");
    // Past its deadline no operation waits for longer than 2 s. A quiet machine needs 1 to 2 s in
    // all.
    assert!(slowest < 12_000 + disk, "a reader waited {slowest} ms, a sync elsewhere {disk} ms");
}

/// Who changes things past the mount.
const CHANGER: &str = "changer";

/// Changes a name in the vault, past the mount, and reads it there: it goes forward only, and
/// whole.
fn start_changes(load: &Arc<Load>, mount: &Mount) -> std::thread::JoinHandle<u64> {
    let api = Api::of(mount);
    let id = api.create("changing", &value(0));
    let put = move |number: u64| {
        // The vault is in the worker: what was not answered is done again, and may be done twice.
        let done = || api.try_update(&id, &value(number)).ok();
        common::wait(done, Duration::from_secs(20)).ok_or_else(|| "it cannot be changed".to_owned())
    };
    until("it is seen here", || mount.path("changing").exists());
    let (by, path, mut last) = (load.clone(), mount.path("changing"), 0);
    load.program("reader of changes", move |_| {
        let before = std::mem::replace(&mut last, by.read(&path)?);
        if before <= last { Ok(()) } else { Err(format!("it showed {before} and then {last}")) }
    });
    load.program(CHANGER, put)
}

/// How many kills: VAULTFS_TEST_KILLS for the long form.
fn kills() -> u64 {
    std::env::var("VAULTFS_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(30)
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn kills_at_random_moments_under_load_fail_nothing() {
    let time = common::TEST_TIME * u32::try_from(2 * kills().div_ceil(30)).unwrap();
    let mount = mount_for(time, &[IMMORTAL], &["--refresh", "500ms"]);
    let (keeper, _) = mount.pids();
    let load = Arc::new(Load::default());
    let writers = start_load(&load, mount.mnt());
    let changer = start_changes(&load, &mount);
    let mut random = u64::from(std::process::id());
    let (mut workers, mut helpers, mut upgrades, mut early) = (0, 0, 0, None);
    // Of the reads of a turn, for each death in it.
    let (mut longest, mut deaths) = (0, 0);
    for turn in 0..kills() {
        if !load.is_well() {
            break;
        }
        // Now and then somebody has to get through.
        load.progress();
        let waited = load.slowest_read.swap(0, Ordering::SeqCst);
        longest = longest.max(waited / std::mem::take(&mut deaths).max(1));
        if turn == kills() / 10 {
            early = Some(sizes(keeper));
        }
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_micros((random >> 33) % 60_000));
        let victims: &[&str] = match (random >> 20) % 7 {
            0 | 1 => &["vaultfs-worker"],
            2 => &["vaultfs-helper"],
            3 => &["vaultfs-helper", "vaultfs-worker"],
            // The next one as soon as it is there.
            4 => &["vaultfs-worker", "vaultfs-worker"],
            5 => &["vaultfs-worker", "upgrade"],
            _ => &["upgrade", "upgrade"],
        };
        for victim in victims {
            match *victim {
                "upgrade" => {
                    run(mount.vaultfs(["upgrade"]).arg(mount.mnt())).ok();
                    upgrades += 1;
                }
                "vaultfs-worker" => {
                    replace_worker(keeper);
                    workers += 1;
                    deaths += 1;
                }
                helper => {
                    kill(keeper, helper);
                    helpers += 1;
                }
            }
        }
    }
    load.progress();
    let late = sizes(keeper);
    load.slowest_read.store(longest, Ordering::SeqCst);
    load.over.store(true, Ordering::SeqCst);
    let last = changer.join().unwrap();
    end_load(&load, &mount, writers, deaths);
    let early = early.expect("a tenth of the way is behind us");
    eprintln!(
        "{workers} workers and {helpers} helpers were killed, with {upgrades} upgrades; {last} changes were made elsewhere"
    );
    assert_eq!(mount.status()["restarts"], workers + upgrades);
    assert!(mount.versions("changing").len() as u64 > last);
    until("the last change elsewhere shows", || fs::read(mount.path("changing")).unwrap() == value(last));
    until("a helper works", || mount.status()["fs"]["changes"]["helper"]["state"] == "works");
    // A few deaths leave nothing that could be told from warming up.
    if kills() >= 100 {
        for ((who, early), late) in PROCESSES.into_iter().zip(early).zip(late) {
            early.assert_not_outgrown(who, late);
        }
    }
    mount.unmount();
}

const PROCESSES: [&str; 3] = ["vaultfs-keeper", "vaultfs-worker", "vaultfs-helper"];

/// The least that each process takes in a second of its life.
fn sizes(keeper: i32) -> [Size; 3] {
    // One that was killed while it waits in the kernel may be there for a while yet.
    let there = |name| common::wait(|| child_of(keeper, name), Duration::from_secs(20));
    let of = |name| {
        let pid = if name == PROCESSES[0] { Some(keeper) } else { there(name) };
        Size::of(pid.expect("nobody kills it now"))
    };
    let mut least = PROCESSES.map(of);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        for (least, now) in least.iter_mut().zip(PROCESSES.map(of)) {
            least.0 = std::array::from_fn(|n| least.0[n].min(now.0[n]));
        }
    }
    least
}

/// A mount whose worker dies at points of the test's choice.
struct Fragile {
    mount: Mount,
    point: PathBuf,
}

impl Fragile {
    fn new() -> Self {
        let place = Place::new();
        let point = place.dir.path().join("point");
        let mut command = place.mount_command(&[]);
        command.env("VAULTFS_TEST_CRASH", &point).env(IMMORTAL.0, IMMORTAL.1);
        run(&mut command).ok();
        Self { mount: Mount::adopt(place), point }
    }

    /// Does something during which the worker dies at `point`, once.
    #[track_caller]
    fn at<T>(&self, point: &str, what: impl FnOnce() -> T) -> T {
        let next = self.point.with_extension("next");
        fs::write(&next, point).unwrap();
        fs::rename(&next, &self.point).unwrap();
        let result = what();
        until(point, || !self.point.exists());
        result
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path(name)
    }
}

/// Each line of a publish of the memory that the keeper holds, at the first one that a change
/// makes.
#[test]
fn killed_between_any_two_lines_of_a_publish_each_operation_happens_once() {
    let fragile = Fragile::new();
    let path = |name: &str| fragile.path(name);
    let points = ["begun", "encoded", "allocated", "written", "published", "noted"];
    for point in points.map(|line| format!("journal {line}")) {
        let point = point.as_str();
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("f"), "first").unwrap();
        fs::write(path("a"), "over").unwrap();
        fragile.at(point, || fs::create_dir(path("new"))).unwrap();
        fragile.at(point, || fs::remove_dir(path("new"))).unwrap();
        let file = fragile.at(point, || File::create_new(path("made"))).unwrap();
        fragile.at(point, || (&file).write_all(b"written")).unwrap();
        fragile.at(point, || file.sync_all()).unwrap();
        fragile.at(point, || close(file)).unwrap();
        assert_eq!(fs::read(path("made")).unwrap(), b"written", "{point}");
        assert_eq!(fragile.mount.versions("made"), [1], "{point}");
        fragile
            .at(point, || OpenOptions::new().write(true).open(path("f")).and_then(|f| f.set_len(2)))
            .unwrap();
        assert_eq!(fs::read(path("f")).unwrap(), b"fi", "{point}");
        fragile.at(point, || fs::rename(path("a"), path("f"))).unwrap();
        assert_eq!(fs::read(path("f")).unwrap(), b"over", "{point}");
        assert_eq!(fragile.mount.versions("f"), [1, 2, 3], "{point}");
        fragile.at(point, || fragile.mount.sh("rm f"));
        fragile.at(point, || fs::rename(path("dir"), path("moved"))).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(fragile.mount.mnt()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["made", "moved"], "{point}");
        fragile.mount.sh("rm made && rmdir moved");
    }
    let log = fragile.mount.log();
    assert!(!log.contains("cannot be read"), "{log}");
    fragile.mount.unmount();
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn killed_between_intent_and_outcome_each_operation_happens_once() {
    let fragile = Fragile::new();
    let path = |name: &str| fragile.path(name);
    let names = || {
        let mut names: Vec<_> = fs::read_dir(fragile.mount.mnt())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    for point in ["make", "answer", "answered"] {
        fragile.at(point, || fs::create_dir(path("dir"))).unwrap();
        fragile.at(if point == "make" { "rmdir" } else { point }, || fs::remove_dir(path("dir"))).unwrap();
        let mut excl = OpenOptions::new();
        excl.write(true).create_new(true);
        let file = fragile.at(point, || excl.open(path("new"))).unwrap();
        close(file).unwrap();
        until("it is stored", || fragile.mount.versions("new").len() == 1);
        fragile.mount.sh("rm new");
        let fifo = path("fifo");
        fragile.at(point, || nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)).unwrap();
        fs::remove_file(&fifo).unwrap();
        assert_eq!(names(), Vec::<String>::new(), "{point}");
    }
    for point in ["commit", "stored", "answer", "answered"] {
        fragile.at(point, || fragile.mount.sh("printf %s first > f"));
        fragile.at(point, || fragile.mount.sh("printf %s second > f"));
        assert_eq!(fs::read_to_string(path("f")).unwrap(), "second");
        assert_eq!(fragile.mount.versions("f"), [1, 2], "{point}");
        fragile.at(point, || fragile.mount.sh("truncate -s 3 f"));
        assert_eq!(fragile.mount.versions("f"), [1, 2, 3], "{point}");
        fragile.mount.sh("rm f");
    }
    for point in ["flush", "commit", "stored", "answer", "answered", "release", "released"] {
        let mut file = File::create(path("f")).unwrap();
        file.write_all(b"closed").unwrap();
        fragile.at(point, || close(file)).unwrap();
        assert_eq!(fs::read_to_string(path("f")).unwrap(), "closed", "{point}");
        assert_eq!(fragile.mount.versions("f"), [1], "close, {point}");
        fragile.mount.sh("rm f");
    }
    for point in ["fsync", "commit", "stored", "answer", "answered"] {
        let mut file = File::create(path("f")).unwrap();
        file.write_all(b"synced").unwrap();
        fragile.at(point, || file.sync_all()).unwrap();
        assert_eq!(fragile.mount.versions("f"), [1], "fsync, {point}");
        close(file).unwrap();
        assert_eq!(fragile.mount.versions("f"), [1], "fsync and close, {point}");
        fragile.mount.sh("rm f");
    }
    // What only RELEASE stores: a file that was made and not written to.
    for point in ["release", "released", "commit", "stored"] {
        let file = File::create(path("f")).unwrap();
        fragile.at(point, || close(file)).unwrap();
        until("it is stored", || fragile.mount.versions("f") == [1]);
        fragile.mount.sh("rm f");
    }
    for point in ["make", "linked", "answer", "answered"] {
        let (fifo, other) = (path("fifo"), path("other"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fragile.at(point, || fs::hard_link(&fifo, &other)).unwrap();
        assert_eq!(names(), ["fifo", "other"], "{point}");
        assert_eq!(fs::metadata(&fifo).unwrap().ino(), fs::metadata(&other).unwrap().ino(), "{point}");
        fs::remove_file(fifo).unwrap();
        fs::remove_file(other).unwrap();
    }
    for point in ["unlink", "deleted", "answer", "answered"] {
        fs::write(path("f"), "1").unwrap();
        let held = File::open(path("f")).unwrap();
        fragile.at(point, || fs::remove_file(path("f"))).unwrap();
        assert_eq!(names(), Vec::<String>::new(), "{point}");
        let mut byte = [0];
        held.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!((byte, held.metadata().unwrap().nlink()), (*b"1", 0), "{point}");
    }
    for point in ["rename", "rename stored", "rename deleted", "answer", "answered"] {
        fs::write(path("from"), point).unwrap();
        fragile.at(point, || fs::rename(path("from"), path("to"))).unwrap();
        assert_eq!(names(), ["to"], "{point}");
        assert_eq!(fragile.mount.versions("to"), [1], "{point}");
        fs::write(path("from"), "over").unwrap();
        fragile.at(point, || fs::rename(path("from"), path("to"))).unwrap();
        assert_eq!(names(), ["to"], "{point}");
        assert_eq!(fs::read_to_string(path("to")).unwrap(), "over");
        assert_eq!(fragile.mount.versions("to"), [1, 2], "{point}");
        fragile.mount.sh("rm to");
    }
    for point in ["rename dir", "answer", "answered"] {
        fs::create_dir(path("from")).unwrap();
        fragile.at(point, || fs::rename(path("from"), path("to"))).unwrap();
        assert_eq!(names(), ["to"], "{point}");
        fs::remove_dir(path("to")).unwrap();
    }
}

#[test]
fn what_is_open_unsaved_and_held_back_goes_on() {
    let mount = mount_with(&[IMMORTAL]);
    let (keeper, _) = mount.pids();
    fs::write(mount.path("f"), "0123456789").unwrap();
    fs::write(mount.path("replaced"), "old").unwrap();
    let mut reader = File::open(mount.path("f")).unwrap();
    reader.read_exact(&mut [0; 4]).unwrap();
    let old = File::open(mount.path("replaced")).unwrap();
    fs::write(mount.path("replaced.new"), "new").unwrap();
    fs::rename(mount.path("replaced.new"), mount.path("replaced")).unwrap();
    let mut unsaved = File::create(mount.path("unsaved")).unwrap();
    unsaved.write_all(&value(5000)).unwrap();
    fs::write(mount.path(".f.swp"), "scratch").unwrap();
    fs::write(mount.path("kept.bak"), "not provisional: not made with O_EXCL").unwrap();
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(mount.path("held~"))
        .unwrap()
        .write_all(b"held")
        .unwrap();
    let lock = OpenOptions::new().read(true).write(true).open(mount.path("f")).unwrap();
    let locked =
        nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap();
    // SAFETY: a mapping of a file that stays as it is.
    let map = unsafe {
        let protection = libc::PROT_READ;
        libc::mmap(std::ptr::null_mut(), 10, protection, libc::MAP_SHARED, reader.as_raw_fd(), 0)
    };
    assert_ne!(map, libc::MAP_FAILED);
    std::os::unix::fs::chown(mount.path("f"), None, None).unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o440);
    fs::set_permissions(mount.path("f"), mode).unwrap();
    fs::create_dir(mount.path("empty")).unwrap();
    let inode = fs::metadata(mount.path("f")).unwrap().ino();

    for _ in 0..2 {
        kill_worker(keeper);
        assert_eq!(fs::read(mount.path("unsaved")).unwrap(), value(5000));
    }
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "456789", "the offset stays");
    let mut three = [0; 3];
    old.read_exact_at(&mut three, 0).unwrap();
    assert_eq!(&three, b"old", "who has the old version open keeps it");
    // SAFETY: mapped above, ten bytes long.
    assert_eq!(unsafe { std::slice::from_raw_parts(map.cast::<u8>(), 10) }, b"0123456789");
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(map, 10) };
    let other = File::open(mount.path("f")).unwrap();
    let refused = nix::fcntl::Flock::lock(other, nix::fcntl::FlockArg::LockExclusiveNonblock);
    assert!(refused.is_err(), "the lock is held");
    drop(locked);
    assert_eq!(fs::read_to_string(mount.path(".f.swp")).unwrap(), "scratch");
    assert_eq!(fs::read_to_string(mount.path("held~")).unwrap(), "held");
    let meta = fs::metadata(mount.path("f")).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.ino()), (0o440, inode));
    assert!(mount.path("empty").is_dir());
    unsaved.write_all(b"!").unwrap();
    close(unsaved).unwrap();
    assert_eq!(mount.versions("unsaved"), [1]);
    let stored = run(&mut mount.vaultfs(["get", &mount.embedded(), "unsaved"])).ok();
    assert_eq!(stored.into_bytes(), [value(5000), b"!".to_vec()].concat());
    until("what only looks like a temporary is stored", || mount.versions("held~") == [1]);
}

/// A copy of the program in which a text is another one of the same length: another program.
fn another_program(dir: &Path, name: &str, from: &str, to: &str) -> PathBuf {
    let mut bytes = fs::read(VAULTFS).unwrap();
    let places: Vec<usize> = memchr_all(&bytes, from.as_bytes());
    assert!(!places.is_empty(), "{from:?} is in the program");
    for at in places {
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    path
}

fn memchr_all(bytes: &[u8], text: &[u8]) -> Vec<usize> {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == text[0]).map(|(at, _)| at);
    starts.filter(|at| bytes[*at..].starts_with(text)).collect()
}

#[test]
fn another_version_takes_over_under_load_and_one_that_cannot_does_not() {
    let mount = mount_with(&[IMMORTAL]);
    let (keeper, first) = mount.pids();
    let dir = mount.place().dir.path().to_owned();
    let version = format!("vaultfs {}", env!("CARGO_PKG_VERSION"));
    let newer = format!("{}9", &version[..version.len() - 1]);
    assert_eq!(mount.status()["version"], version);
    let upgrade = |program: &Path| {
        let mut command = Command::new(program);
        mount.place().isolate(&mut command);
        run(command.arg("upgrade").arg(mount.mnt()))
    };

    let stranger = another_program(&dir, "stranger", "vaultfs state 5", "vaultfs state 9");
    let said = upgrade(&stranger).fails(1);
    assert!(said.contains("version 5") && said.contains("version 9"), "{said}");
    assert_eq!(worker_of(keeper), Some(first), "the old one stays");

    let program = another_program(&dir, "newer", &version, &newer);
    let load = Arc::new(Load::default());
    let writers = start_load(&load, mount.mnt());
    load.progress();
    upgrade(&program).ok();
    load.progress();
    let worker = worker_of(keeper).unwrap();
    assert_eq!(fs::read_link(format!("/proc/{worker}/exe")).unwrap(), fs::canonicalize(&program).unwrap());
    assert_eq!(mount.status()["version"], newer);
    // Its successors are of that version, too.
    kill_worker(keeper);
    load.progress();
    assert_eq!(mount.status()["version"], newer);
    end_load(&load, &mount, writers, 1);
    mount.unmount();
}
