//! What reading costs on a real mount, counted by the mount itself: requests of the kernel, and of
//! the vault.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::support::common::{self, Mount, Place, run};

/// Long enough that nothing is past its time while a test runs.
const LONG: &str = "--refresh=10m";

/// Requests by operation, without those that nobody waits for.
fn waited_for(mount: &Mount) -> BTreeMap<String, u64> {
    let status = mount.status();
    let counts = status["kernel"]["requests"].as_object().unwrap();
    let counts = counts.iter().map(|(name, n)| (name.clone(), n.as_u64().unwrap()));
    counts.filter(|(name, _)| !matches!(name.as_str(), "forget" | "release" | "releasedir")).collect()
}

/// What `work` costs in requests that somebody waits for.
fn cost(mount: &Mount, work: impl FnOnce()) -> BTreeMap<String, u64> {
    let before = waited_for(mount);
    work();
    let mut after = waited_for(mount);
    after.iter_mut().for_each(|(name, n)| *n -= before.get(name).copied().unwrap_or(0));
    after.retain(|_, n| *n > 0);
    after
}

fn counts(expected: &[(&str, u64)]) -> BTreeMap<String, u64> {
    expected.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

/// open, fstat, read to the end, close: what cat does.
fn cat(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    let size = file.metadata().unwrap().size();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, size, "{path:?}");
    bytes
}

fn list(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A vault with these objects.
fn vault_of<'a>(objects: impl IntoIterator<Item = (&'a str, &'a str)>) -> Place {
    let mount = Mount::start();
    for (name, value) in objects {
        let path = mount.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }
    mount.unmount()
}

#[test]
fn on_a_read_only_mount_warm_reads_stats_and_listings_cost_no_request() {
    let place = vault_of([("db/password", "hunter2"), ("db/user", "app"), ("token", "t0k3n")]);
    let mount = Mount::at(place, &["--read-only", LONG]);
    let all = || {
        assert_eq!(list(mount.mnt()), ["db", "token"]);
        assert_eq!(list(&mount.path("db")), ["password", "user"]);
        assert_eq!(cat(&mount.path("db/password")), b"hunter2");
        assert_eq!(fs::metadata(mount.path("token")).unwrap().size(), 5);
        assert_eq!(cat(&mount.path("token")), b"t0k3n");
        assert_eq!(fs::metadata(mount.path("absent")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    };
    // The second time tells the kernel the times that the first reads changed.
    all();
    all();
    let vault = mount.status()["fs"]["vault"]["requests"].as_u64();
    assert_eq!(cost(&mount, || (0..100).for_each(|_| all())), counts(&[]));
    assert_eq!(mount.status()["fs"]["vault"]["requests"].as_u64(), vault);
}

#[test]
fn on_a_read_write_mount_a_warm_cat_is_one_request() {
    let place = vault_of([("db/password", "hunter2")]);
    let mount = Mount::at(place, &[LONG]);
    for _ in 0..2 {
        assert_eq!(cat(&mount.path("db/password")), b"hunter2");
        list(&mount.path("db"));
    }
    let path = mount.path("db/password");
    assert_eq!(cost(&mount, || drop(cat(&path))), counts(&[("open", 1)]));
    assert_eq!(cost(&mount, || assert_eq!(fs::metadata(&path).unwrap().size(), 7)), counts(&[]));
    assert_eq!(cost(&mount, || assert_eq!(list(&mount.path("db")), ["password"])), counts(&[("opendir", 1)]));
    let cost = cost(&mount, || assert!((0..10_000).all(|_| fs::metadata(mount.path("absent")).is_err())));
    assert!(cost.values().sum::<u64>() <= 1, "{cost:?}");
}

#[test]
fn listings_show_at_once_what_is_made_and_removed_here() {
    let mount = Mount::with(&[LONG]);
    let mut expected = Vec::new();
    for n in 0..20 {
        let name = format!("n{n:02}");
        fs::write(mount.path(&name), "x").unwrap();
        expected.push(name);
        assert_eq!(list(mount.mnt()), expected);
        if n % 3 == 0 {
            fs::remove_file(mount.path(expected.remove(0))).unwrap();
            assert_eq!(list(mount.mnt()), expected);
        }
    }
    fs::rename(mount.path(&expected[0]), mount.path("z")).unwrap();
    fs::create_dir(mount.path("y")).unwrap();
    expected.remove(0);
    expected.extend(["y".to_owned(), "z".to_owned()]);
    assert_eq!(list(mount.mnt()), expected);
}

#[test]
fn listings_show_what_is_made_and_removed_elsewhere() {
    for options in [&["--read-only", "--refresh=500ms"][..], &["--refresh=500ms"]] {
        let mount = Mount::at(vault_of([("d/here", "x")]), options);
        assert_eq!(list(&mount.path("d")), ["here"]);
        let put = |name: &str| {
            let mut put = mount.vaultfs(["put", &mount.embedded(), name]);
            run(&mut put).ok();
        };
        put("d/new");
        common::until("the new name shows", || list(&mount.path("d")) == ["here", "new"]);
        run(&mut mount.vaultfs(["rm", &mount.embedded(), "d/here"])).ok();
        common::until("the old name is gone", || list(&mount.path("d")) == ["new"]);
        assert!(!mount.path("late").exists());
        put("late");
        common::until("what was absent is there", || mount.path("late").exists());
    }
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let place = vault_of([("f", "value"), ("d/g", "x")]);
    let mount = Mount::at(place, &["--read-only"]);
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let f = mount.path("f");
    assert_eq!(fs::metadata(&f).unwrap().mode() & 0o777, 0o400);
    assert_eq!(fs::metadata(mount.path("d")).unwrap().mode() & 0o777, 0o500);
    if common::is_root() {
        // Who is not root is refused by the modes. Without an open the write is what fails.
        let mut open = OpenOptions::new().read(true).write(true).open(&f).unwrap();
        assert_eq!(open.write(b"x").unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert_eq!(open.set_len(0).unwrap_err().raw_os_error(), Some(libc::EROFS));
        let mut text = String::new();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "value");
        assert_eq!(errno(fs::write(&f, "other")), Some(libc::EROFS), "O_TRUNC");
        assert_eq!(errno(fs::write(mount.path("new"), "")), Some(libc::EROFS));
        assert_eq!(errno(fs::remove_file(&f)), Some(libc::EROFS));
        assert_eq!(errno(fs::rename(&f, mount.path("h"))), Some(libc::EROFS));
        assert_eq!(errno(fs::create_dir(mount.path("e"))), Some(libc::EROFS));
        assert_eq!(errno(fs::hard_link(&f, mount.path("e"))), Some(libc::EROFS));
        assert_eq!(errno(std::os::unix::fs::symlink("f", mount.path("e"))), Some(libc::EROFS));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        assert_eq!(errno(fs::set_permissions(&f, mode)), Some(libc::EROFS));
    }
    assert_eq!(cat(&f), b"value");
    assert_eq!(list(mount.mnt()), ["d", "f"]);
}

#[test]
fn what_a_refused_mapping_wrote_is_not_shown_to_others() {
    if !common::is_root() {
        eprintln!("skipped: only root may open a file without w for writing");
        return;
    }
    let mount = Mount::at(vault_of([("f", "value")]), &["--read-only", LONG]);
    let file = OpenOptions::new().read(true).write(true).open(mount.path("f")).unwrap();
    let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a mapping of a file that stays open and has these bytes, used and unmapped in here.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 5, protection, shared, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>().write(b'X');
        assert_eq!(libc::msync(at, 5, libc::MS_SYNC), -1);
        libc::munmap(at, 5);
    }
    common::until("the true bytes are back", || cat(&mount.path("f")) == b"value");
}

#[test]
fn control_files_and_versions_are_true_without_an_open() {
    let place = vault_of([("f", "one")]);
    let mount = Mount::at(place, &[]);
    fs::write(mount.path("f"), "second").unwrap();
    let mount = Mount::at(mount.unmount(), &["--read-only"]);
    let status = mount.path(".vaultfs/status.json");
    for _ in 0..5 {
        let text = cat(&status);
        serde_json::from_slice::<serde_json::Value>(&text).unwrap();
    }
    let old = File::open(&status).unwrap();
    let before = fs::read(&status).unwrap();
    assert_eq!(cat(&mount.path("f")), b"second");
    let requests = |text: &[u8]| {
        let status: serde_json::Value = serde_json::from_slice(text).unwrap();
        status["vault"]["requests"].as_u64().unwrap()
    };
    assert!(requests(&fs::read(&status).unwrap()) > requests(&before), "each look is a new one");
    let mut held = vec![0; old.metadata().unwrap().size() as usize];
    old.read_exact_at(&mut held, 0).unwrap();
    assert!(requests(&held) <= requests(&before), "who has it open keeps what it was");
    if !common::KV {
        assert_eq!(list(&mount.path(".versions/f")), ["1", "2"]);
        assert_eq!(cat(&mount.path(".versions/f/1")), b"one");
    }
    assert_eq!(cat(&mount.path(".versions/f/2")), b"second");
}

#[test]
fn without_handles_an_open_file_keeps_its_version() {
    let mount = Mount::at(vault_of([("f", "the old one")]), &["--read-only", "--refresh=300ms"]);
    let old = File::open(mount.path("f")).unwrap();
    let put = "printf %s 'and another' | \"$0\" put \"$1\" f";
    let mut command = std::process::Command::new("sh");
    mount.place().isolate(&mut command);
    run(command.args(["-c", put, common::VAULTFS, &mount.embedded()])).ok();
    common::until("the new value shows", || cat(&mount.path("f")) == b"and another");
    // The pages are gone, as under memory pressure: the bytes have to come from the mount.
    // SAFETY: advice about a descriptor that is open.
    unsafe { libc::posix_fadvise(old.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let mut bytes = [0; 11];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"the old one");
}

#[test]
fn what_is_warm_outlives_the_processes() {
    let mount = Mount::at(vault_of([("f", "value"), ("g", "x")]), &["--read-only", LONG]);
    (0..2).for_each(|_| drop(cat(&mount.path("f"))));
    let (keeper, worker) = mount.pids();
    for pid in [keeper, worker] {
        common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
    let dead = || fs::metadata(mount.path("g")).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN));
    common::until("nobody answers", dead);
    assert_eq!(cat(&mount.path("f")), b"value");
}
