//! Real mounts of which the vault is changed elsewhere: no reader sees a mix, watchers see real
//! events, the mount stays frugal, and umount is never held up by the helper.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::common::api::Api;
use crate::support::common::{self, Beside, Mount, run, until};
use crate::support::mount_table;

/// A user that is not root.
const NOBODY: u32 = 65534;

fn changes(mount: &Mount) -> serde_json::Value {
    let text = fs::read(mount.path(".vaultfs/status.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["changes"].take()
}

fn helper_works(mount: &Mount) -> u32 {
    until("the helper works", || changes(mount)["helper"]["state"] == "works");
    changes(mount)["helper"]["pid"].as_u64().unwrap() as u32
}

/// A value that says its own length: a part of it, or of two of them, is no such value.
fn value(n: u64) -> Vec<u8> {
    let size = [100, 300, 5000, 20_000][(n % 4) as usize];
    let mut text = format!("{n:08} {size:08} ").into_bytes();
    let fill = b'a' + (n % 26) as u8;
    text.resize(size, fill);
    text
}

/// The number of the value, if it is whole.
fn whole(bytes: &[u8]) -> Result<u64, String> {
    let number = |at: std::ops::Range<usize>| {
        bytes.get(at).and_then(|b| std::str::from_utf8(b).ok()).and_then(|t| t.parse::<u64>().ok())
    };
    let n = number(0..8).ok_or_else(|| format!("no number in {} bytes", bytes.len()))?;
    if bytes == value(n) { Ok(n) } else { Err(format!("{} bytes of value {n} are not it", bytes.len())) }
}

struct Readers {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Readers {
    fn start(path: &Path, kinds: &[fn(&Path) -> u64]) -> Self {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = kinds.iter().map(|kind| {
            let (stop, reads, path, kind) = (stop.clone(), reads.clone(), path.to_owned(), *kind);
            std::thread::spawn(move || {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let n = kind(&path);
                    assert!(n >= last, "{n} after {last}: an old value came back");
                    last = n;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, reads, threads }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("it saw whole values only"));
        self.reads.load(Ordering::Relaxed)
    }
}

/// open, fstat, read to the end.
fn reopens(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap();
    let size = file.metadata().unwrap().size();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, size, "size and bytes");
    whole(&bytes).unwrap()
}

/// One descriptor for a while: always the same value.
fn holds(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let mut first = None;
    for _ in 0..20 {
        let size = file.metadata().unwrap().size() as usize;
        let mut bytes = vec![0; size + 1];
        let read = file.read_at(&mut bytes, 0).unwrap();
        let n = whole(&bytes[..read]).unwrap();
        assert_eq!(*first.get_or_insert(n), n, "an open file changed");
        std::thread::sleep(Duration::from_millis(1));
    }
    first.unwrap()
}

/// A mapping for a while.
fn maps(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().size() as usize;
    // SAFETY: a mapping of its own, read only within its length and unmapped afterwards.
    unsafe {
        let at =
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        let mut first = None;
        for _ in 0..20 {
            let n = whole(std::slice::from_raw_parts(at.cast::<u8>(), size)).unwrap();
            assert_eq!(*first.get_or_insert(n), n, "a mapping changed");
            std::thread::sleep(Duration::from_millis(1));
        }
        libc::munmap(at, size);
        first.unwrap()
    }
}

/// Watches of a directory and of files.
struct Watches(File);

impl Watches {
    fn new() -> Self {
        // SAFETY: the descriptor that comes back is ours.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        assert!(fd >= 0);
        // SAFETY: as above.
        Self(unsafe { File::from_raw_fd(fd) })
    }

    fn add(&self, path: &Path, mask: u32) {
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is NUL-terminated.
        assert!(unsafe { libc::inotify_add_watch(self.0.as_raw_fd(), path.as_ptr(), mask) } >= 0);
    }

    /// The events that have come since: what, and on which name.
    fn take(&self) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n) = (&self.0).read(&mut buffer) {
            let mut at = 0;
            while at < n {
                let word =
                    |i: usize| u32::from_ne_bytes(buffer[at + 4 * i..at + 4 * i + 4].try_into().unwrap());
                let (mask, len) = (word(1), word(3) as usize);
                let name = buffer[at + 16..at + 16 + len].split(|b| *b == 0).next().unwrap_or_default();
                all.push((mask, String::from_utf8(name.to_vec()).unwrap()));
                at += 16 + len;
            }
        }
        all
    }

    /// Waits for an event.
    fn wait_for(&self, mask: u32, name: &str) {
        until(&format!("event {mask:x} on {name:?}"), || {
            self.take().iter().any(|(m, n)| m & mask != 0 && n == name)
        });
    }
}

/// Both ends: of events that are alike in a row the kernel keeps one as long as nobody has read it,
/// and hidden names are never alike.
const RENAMES: u32 = libc::IN_MOVED_FROM | libc::IN_MOVED_TO;

/// What was renamed to since the last call.
fn moved_to(watches: &Watches) -> Vec<String> {
    let to = |(mask, name): (u32, String)| (mask & libc::IN_MOVED_TO != 0).then_some(name);
    watches.take().into_iter().filter_map(to).collect()
}

/// How many rotations; `VAULTFS_ROTATIONS` asks for more.
fn rotations() -> u64 {
    std::env::var("VAULTFS_ROTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}

const FILES: u64 = 20;

#[test]
fn a_thousand_rotations_under_readers_tear_and_cut_nothing() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let watches = Watches::new();
    watches.add(mount.mnt(), RENAMES);
    let ids: Vec<String> = (0..FILES).map(|n| api.create(&format!("s{n}"), &value(0))).collect();
    until("all are there", || fs::read_dir(mount.mnt()).unwrap().count() == FILES as usize);
    let paths: Vec<PathBuf> = (0..FILES).map(|n| mount.path(format!("s{n}"))).collect();
    paths.iter().for_each(|path| assert_eq!(reopens(path), 0));
    let mut events = BTreeMap::new();
    let mut take_events = || {
        moved_to(&watches).into_iter().for_each(|name| *events.entry(name).or_insert(0) += 1);
        events.clone()
    };
    let all = |n: u64| (0..FILES).map(|file| (format!("s{file}"), n)).collect::<BTreeMap<_, _>>();
    until("each was made by a rename", || take_events() == all(1));
    let before = changes(&mount)["done"].as_u64().unwrap();
    let kinds: [fn(&Path) -> u64; 4] = [reopens, reopens, holds, maps];
    let readers: Vec<Readers> = [(0, 0), (1, 1), (2, 2), (3, 3)]
        .map(|(path, kind)| Readers::start(&paths[path], &kinds[kind..=kind]))
        .into();
    for round in 1..=rotations() / FILES {
        ids.iter().for_each(|id| api.update(id, &value(round)));
        until("all files show it", || paths.iter().all(|path| reopens(path) == round));
        // A lookup may have found it before its turn came.
        until("each by one rename", || take_events().values().all(|n| *n > round));
    }
    let reads: u64 = readers.into_iter().map(Readers::end).sum();
    assert!(reads > 100, "{reads} reads beside the rotations");
    // A rename too many would come with a tick.
    let ticks = || changes(&mount)["refresh"]["ticks"].as_u64().unwrap();
    let now = ticks();
    until("some more ticks", || reopens(&paths[0]) > 0 && ticks() > now + 3);
    assert_eq!(take_events(), all(1 + rotations() / FILES), "one IN_MOVED_TO a version");
    let status = changes(&mount);
    assert_eq!(status["done"].as_u64().unwrap() - before, rotations() / FILES * FILES);
    assert_eq!(status["helper"]["fallbacks"], 0, "{status}");
}

/// By fsync and by close, of what was changed and what was deleted elsewhere.
#[test]
fn a_save_of_a_file_that_was_replaced_is_what_the_next_open_finds() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let path = mount.path("f");
    let id = api.create("f", b"theirs");
    until("it is there", || path.exists());
    for round in 0..60 {
        let (theirs, ours) = (format!("theirs {round}"), format!("our {round}"));
        let by = |path: &Path| {
            let (file, ours) = (File::options().read(true).write(true).open(path).unwrap(), ours.clone());
            move |path: &Path| {
                file.set_len(0).unwrap();
                file.write_all_at(ours.as_bytes(), 0).unwrap();
                if round % 2 == 0 {
                    file.sync_all().unwrap();
                    assert_eq!(fs::read_to_string(path).unwrap(), ours, "fsync, round {round}");
                }
                drop(file);
                assert_eq!(fs::read_to_string(path).unwrap(), ours, "close, round {round}");
            }
        };
        let save = by(&path);
        api.update(&id, theirs.as_bytes());
        until("it shows", || fs::read_to_string(&path).unwrap() == theirs);
        save(&path);
        let made = mount.path(format!("made {round}"));
        let id = api.create(&format!("made {round}"), theirs.as_bytes());
        until("it is there", || made.exists());
        let save = by(&made);
        api.delete(&id);
        until("it is gone", || !made.exists());
        save(&made);
    }
    mount.unmount();
}

#[test]
fn watchers_see_creation_change_and_deletion_made_elsewhere() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    fs::create_dir(mount.path("d")).unwrap();
    let watches = Watches::new();
    watches.add(&mount.path("d"), libc::IN_MOVED_TO | libc::IN_DELETE | libc::IN_CREATE);
    let id = api.create("d/f", b"one");
    watches.wait_for(libc::IN_MOVED_TO, "f");
    assert_eq!(fs::read(mount.path("d/f")).unwrap(), b"one");
    let own = Watches::new();
    own.add(&mount.path("d/f"), libc::IN_ATTRIB | libc::IN_DELETE_SELF);
    api.update(&id, b"two and more");
    watches.wait_for(libc::IN_MOVED_TO, "f");
    own.wait_for(libc::IN_ATTRIB | libc::IN_DELETE_SELF, "");
    assert_eq!(fs::read(mount.path("d/f")).unwrap(), b"two and more");
    let held = File::open(mount.path("d/f")).unwrap();
    api.delete(&id);
    watches.wait_for(libc::IN_DELETE, "f");
    assert!(!mount.path("d/f").exists());
    let mut bytes = [0; 12];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"two and more");
}

#[test]
fn each_version_has_its_event_though_nobody_reads_them_in_between() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let (both, one) = (Watches::new(), Watches::new());
    both.add(mount.mnt(), RENAMES);
    one.add(mount.mnt(), libc::IN_MOVED_TO);
    let id = api.create("f", &value(0));
    until("it is there", || mount.path("f").exists());
    let done = || changes(&mount)["done"].as_u64().unwrap();
    until("by a rename", || done() == 1);
    for n in 1..=5 {
        api.update(&id, &value(n));
        until("it shows", || reopens(&mount.path("f")) == n);
        until("by a rename", || done() == n + 1);
    }
    assert_eq!(moved_to(&both), ["f"; 6]);
    // inotify(7): successive events that are identical are coalesced if the older has not yet been
    // read.
    assert_eq!(moved_to(&one), ["f"]);
}

#[test]
fn who_watches_a_file_is_told_that_it_was_deleted_elsewhere() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let id = api.create("f", b"x");
    let held = api.create("held", b"y");
    until("they are there", || mount.path("f").exists() && mount.path("held").exists());
    until("by renames", || changes(&mount)["done"] == 2);
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"x");
    let open = File::open(mount.path("held")).unwrap();
    let (dir, file, kept) = (Watches::new(), Watches::new(), Watches::new());
    dir.add(mount.mnt(), libc::IN_DELETE);
    file.add(&mount.path("f"), libc::IN_ATTRIB | libc::IN_DELETE_SELF);
    kept.add(&mount.path("held"), libc::IN_ATTRIB | libc::IN_DELETE_SELF);
    api.delete(&id);
    dir.wait_for(libc::IN_DELETE, "f");
    file.wait_for(libc::IN_DELETE_SELF, "");
    api.delete(&held);
    dir.wait_for(libc::IN_DELETE, "held");
    // Whoever has it open keeps it, and knows by the number of its names.
    kept.wait_for(libc::IN_ATTRIB, "");
    let mut byte = [0];
    open.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"y");
    drop(open);
    kept.wait_for(libc::IN_DELETE_SELF, "");
}

/// Takes a mount off that root cannot look at.
struct Off(PathBuf);

impl Drop for Off {
    fn drop(&mut self) {
        if common::is_mounted(&self.0) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// On a read-only mount nothing shows a `w`, which binds the helper of an ordinary user.
#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn on_a_read_only_mount_of_an_ordinary_user_a_change_is_a_rename_too() {
    crate::support::only_root!("only root can become another user");
    let mount = Mount::start();
    fs::write(mount.path("d"), "old").unwrap();
    let place = mount.unmount();
    let mut serve = place.vaultfs(["serve", "--rate-limit", "0", "--listen", "127.0.0.1:0", "--data"]);
    serve.arg(&place.data).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut serving = Beside::start(&mut serve);
    let mut url = String::new();
    BufReader::new(serving.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let url = url.trim().to_owned();
    // The build may be where only root can look.
    let (program, home) = (place.dir.path().join("vaultfs"), place.dir.path().join("home"));
    fs::copy(common::VAULTFS, &program).unwrap();
    common::open_to_all(place.dir.path());
    common::open_to_all(&program);
    fs::create_dir_all(&home).unwrap();
    let key = home.join("key");
    fs::copy(place.data.join("api-key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    for path in [&home, &key, &place.mnt] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let _device = common::DeviceForAll::open();
    let _off = Off(place.mnt.clone());
    let as_nobody = |program: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(program);
        place.isolate(&mut command);
        command.env("XDG_STATE_HOME", home.join("state")).env("HOME", &home).current_dir("/");
        command
    };
    let mut mount = as_nobody(&program);
    mount.args(["mount", "--read-only", "--refresh", "100ms", "--api-url", &url, "--api-key-file"]);
    run(mount.arg(&key).arg(&place.mnt)).ok();
    let cat = || run(as_nobody(Path::new("cat")).arg(place.mnt.join("d"))).ok();
    let changes = || {
        let out = run(as_nobody(&program).args(["status", "--json"]).arg(&place.mnt)).ok();
        serde_json::from_str::<Value>(&out).unwrap()[0]["fs"]["changes"].take()
    };
    assert_eq!(cat(), "old");
    until("the helper works", || changes()["helper"]["state"] == "works");
    let listing =
        run(as_nobody(Path::new("stat")).args(["-c", "%A"]).arg(&place.mnt).arg(place.mnt.join("d"))).ok();
    assert!(!listing.contains('w'), "{listing}");
    for version in ["new", "newer"] {
        let text = place.dir.path().join("value");
        fs::write(&text, version).unwrap();
        let mut put = place.vaultfs(["put", "d", "--api-url", &url, "--api-key-file"]);
        let put = put.arg(place.data.join("api-key")).stdin(File::open(&text).unwrap());
        assert!(put.status().unwrap().success());
        until("it shows", || cat() == version);
    }
    until("both by renames", || changes()["done"] == 2);
    let helper = &changes()["helper"];
    assert_eq!((&helper["fallbacks"], &helper["state"]), (&json!(0), &json!("works")), "{helper}");
    let refused = run(as_nobody(Path::new("touch")).arg(place.mnt.join("x")));
    assert!(refused.err.contains("Permission denied"), "the modes come first: {refused:?}");
    let refused = run(as_nobody(Path::new("chmod")).arg("600").arg(place.mnt.join("d")));
    assert!(refused.err.contains("Read-only file system"), "{refused:?}");
    let tested = run(as_nobody(Path::new("test")).arg("-w").arg(place.mnt.join("d")));
    assert_eq!(tested.code, Some(1), "access(2) says so before anything is tried");
    run(as_nobody(&program).arg("unmount").arg(&place.mnt)).ok();
    common::assert_nothing_left(&place.mnt);
}

#[test]
fn a_new_value_is_seen_soon_after_the_mount_has_it() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let id = api.create("f", &value(1));
    until("it is there", || mount.path("f").exists());
    assert_eq!(reopens(&mount.path("f")), 1);
    let mut waits = Vec::new();
    for n in 2..30 {
        api.update(&id, &value(n));
        let (stored, ticks) = (Instant::now(), changes(&mount)["refresh"]["ticks"].clone());
        until("it shows", || reopens(&mount.path("f")) == n);
        waits.push((stored.elapsed(), ticks));
    }
    waits.sort_by_key(|(wait, _)| *wait);
    // Most of it is the wait for the tick.
    assert!(waits[waits.len() / 2].0 < Duration::from_secs(10), "{waits:?}");
}

#[test]
fn an_idle_mount_sends_nothing() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    fs::write(mount.path("f"), "x").unwrap();
    let requests = || mount.status()["fs"]["vault"]["requests"].as_u64().unwrap();
    until("it asks while it is used", || {
        fs::read(mount.path("f")).unwrap();
        changes(&mount)["refresh"]["ticks"].as_u64().unwrap() > 3
    });
    until("it falls asleep", || mount.status()["fs"]["changes"]["refresh"]["awake"] == false);
    // A tick that was under way ends.
    std::thread::sleep(Duration::from_millis(300));
    let before = requests();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(requests(), before);
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"x", "and wakes");
}

#[test]
fn a_watched_mount_stays_awake() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let watches = Watches::new();
    watches.add(mount.mnt(), libc::IN_MOVED_TO);
    // Longer than the kernel goes without asking.
    std::thread::sleep(Duration::from_secs(2));
    api.create("f", b"x");
    watches.wait_for(libc::IN_MOVED_TO, "f");
    drop(watches);
    until("it falls asleep", || mount.status()["fs"]["changes"]["refresh"]["awake"] == false);
}

#[test]
fn a_helper_that_is_killed_is_replaced_and_rotation_goes_on() {
    let mount = Mount::with(&["--refresh", "100ms"]);
    let api = Api::of(&mount);
    let mut helper = helper_works(&mount);
    let id = api.create("f", &value(0));
    until("it is there", || mount.path("f").exists());
    for n in 1..=3 {
        common::signal(helper as i32, Signal::SIGKILL);
        until("another one works", || {
            let now = &changes(&mount)["helper"];
            now["state"] == "works" && now["pid"] != helper
        });
        helper = changes(&mount)["helper"]["pid"].as_u64().unwrap() as u32;
        let renames = changes(&mount)["done"].as_u64().unwrap();
        reopens(&mount.path("f"));
        api.update(&id, &value(n));
        until("it shows", || reopens(&mount.path("f")) == n);
        until("by a rename", || changes(&mount)["done"].as_u64().unwrap() > renames);
    }
}

#[test]
fn umount_is_never_busy_because_of_the_helper() {
    let mut mount = Mount::with(&["--refresh", "100ms"]);
    for n in 0..5 {
        let api = Api::of(&mount);
        helper_works(&mount);
        let id = api.create(&format!("f{n}"), &value(0));
        until("it is there", || mount.path(format!("f{n}")).exists());
        reopens(&mount.path(format!("f{n}")));
        api.update(&id, &value(1));
        drop(api);
        let out = run(std::process::Command::new("umount").arg(mount.mnt()));
        assert_eq!(out.code, Some(0), "{}", out.err);
        let mnt = mount.mnt().to_owned();
        common::assert_nothing_left(&mnt);
        mount = Mount::at(mount.unmount_done(), &["--refresh", "100ms"]);
    }
}

#[test]
fn in_place_a_file_changes_under_its_watchers() {
    let mount = Mount::with(&["--refresh", "100ms", "--in-place"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let id = api.create("f", b"one");
    until("it is there", || mount.path("f").exists());
    let file = File::open(mount.path("f")).unwrap();
    let ino = file.metadata().unwrap().ino();
    let watches = Watches::new();
    watches.add(&mount.path("f"), libc::IN_MODIFY);
    api.update(&id, b"two and more");
    watches.wait_for(libc::IN_MODIFY, "");
    until("the open file shows it", || {
        let mut bytes = [0; 20];
        let n = file.read_at(&mut bytes, 0).unwrap();
        &bytes[..n] == b"two and more"
    });
    assert_eq!(fs::metadata(mount.path("f")).unwrap().ino(), ino);
    assert_eq!(fs::metadata(mount.path("f")).unwrap().size(), 12);
}

/// An overlay keeps the inodes of its lower layer.
#[test]
fn in_place_an_overlay_above_the_mount_shows_what_is_new() {
    let _alone = mount_table::take();
    crate::support::only_root!("only root mounts overlays");
    let mount = Mount::with(&["--refresh", "100ms", "--in-place"]);
    let api = Api::of(&mount);
    helper_works(&mount);
    let id = api.create("f", b"one");
    until("it is there", || mount.path("f").exists());
    // In a mount namespace of its own; the upper layer may not be on the same kind of file system
    // as a container's root.
    let script = "mount -t tmpfs none /mnt && cd /mnt && mkdir upper work all && \
                  mount -t overlay -o lowerdir=\"$0\",upperdir=upper,workdir=work none all && cat all/f && \
                  while read -r line; do cat all/f; echo; done";
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", script]).arg(mount.mnt());
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut ask, mut said) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
    let mut first = [0; 3];
    said.read_exact(&mut first).expect("an overlay can be mounted");
    assert_eq!(&first, b"one");
    api.update(&id, b"two and more");
    until("the overlay shows it", || {
        writeln!(ask).unwrap();
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line == "two and more\n"
    });
    drop(ask);
    assert!(shell.wait().unwrap().success());
}
