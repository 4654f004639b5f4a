//! What POSIX programs rely on, by direct system calls on a real mount.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::support::common::{self, Mount, run};

/// The errno of what must have failed.
#[track_caller]
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// What a system call returned, with its errno.
fn call(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn open_rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// The kernel sends the RELEASE of a handle after close(2) has returned: while the next open is on
/// its way.
#[test]
fn reopening_at_once_never_loses_bytes() {
    let mount = Mount::start();
    let path = mount.path("s");
    fs::write(&path, vec![b'.'; 5000]).unwrap();
    for n in 0..300u64 {
        let file = open_rw(&path);
        file.write_all_at(b"x", n).unwrap();
        drop(file);
        let file = open_rw(&path);
        file.write_all_at(b"y", 4000 + n).unwrap();
        drop(file);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 5000, "after {n}");
        assert!(bytes[..=n as usize].iter().all(|b| *b == b'x'), "after {n}");
    }
}

#[test]
fn locks_between_processes() {
    let mount = Mount::start();
    fs::write(mount.path("s"), "x").unwrap();
    let file = open_rw(&mount.path("s"));
    call(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }).unwrap();
    assert_eq!(mount.script("bash", "flock -n s true").code, Some(1), "flock is held");
    call(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) }).unwrap();
    mount.sh("flock -n s true");
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    call(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) }).unwrap();
    let other = "import fcntl; fcntl.lockf(open('s', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)";
    assert_eq!(mount.script("bash", &format!("python3 -c \"{other}\" 2> /dev/null")).code, Some(1));
    drop(file);
    mount.sh(&format!("python3 -c \"{other}\""));
}

#[test]
fn flags_of_open() {
    let mount = Mount::start();
    let path = mount.path("s");
    fs::write(&path, "0123456789").unwrap();
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(&path)), libc::EEXIST);
    let (mut a, mut b) = (
        OpenOptions::new().append(true).open(&path).unwrap(),
        OpenOptions::new().append(true).open(&path).unwrap(),
    );
    a.write_all(b"a").unwrap();
    b.write_all(b"b").unwrap();
    a.write_all(b"c").unwrap();
    drop((a, b));
    assert_eq!(fs::read_to_string(&path).unwrap(), "0123456789abc");
    let reader = File::open(&path).unwrap();
    let writer = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 0, "O_TRUNC is seen by who has it open");
    writer.write_all_at(b"new", 0).unwrap();
    drop(writer);
    assert_eq!(mount.versions("s").len(), 3);
    assert_eq!(
        errno(OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path)),
        libc::ENOTDIR
    );
    assert_eq!(errno(OpenOptions::new().write(true).open(mount.mnt())), libc::EISDIR);
}

#[test]
fn seeking() {
    let mount = Mount::start();
    fs::write(mount.path("s"), "0123456789").unwrap();
    let mut file = File::open(mount.path("s")).unwrap();
    assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), 7);
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "789");
    let seek = |at, whence| match unsafe { libc::lseek(file.as_raw_fd(), at, whence) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        to => Ok(to),
    };
    assert_eq!(seek(4, libc::SEEK_DATA), Ok(4));
    assert_eq!(seek(4, libc::SEEK_HOLE), Ok(10), "the only hole is behind the end");
    assert_eq!(seek(10, libc::SEEK_DATA), Err(libc::ENXIO));
}

#[test]
fn sizes() {
    let mount = Mount::with(&["--max-size", "10000"]);
    let path = mount.path("s");
    fs::write(&path, "0123456789").unwrap();
    call(unsafe { libc::truncate(c(&path).as_ptr(), 4) }).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123");
    call(unsafe { libc::truncate(c(&path).as_ptr(), 6) }).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123\0\0");
    let file = open_rw(&path);
    file.set_len(2).unwrap();
    file.write_all_at(b"z", 5).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"01\0\0\0z");
    assert_eq!(errno(file.set_len(10_001)), libc::EFBIG);
    file.sync_all().unwrap();
    file.write_all_at(b"y", 5).unwrap();
    assert_eq!(errno(file.write_at(b"zz", 9999)), libc::EFBIG);
    assert_eq!(errno(file.sync_all()), libc::EFBIG, "a part of what was meant is not stored");
    file.set_len(5).unwrap();
    file.write_all_at(b"z", 5).unwrap();
    assert_eq!(errno(call(unsafe { libc::ftruncate(file.as_raw_fd(), -1) })), libc::EINVAL);
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 6);
    drop(file);
    assert_eq!(mount.versions("s"), [1, 2, 3, 4]);
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let mount = Mount::start();
    let path = mount.path("s");
    fs::write(&path, "0123456789").unwrap();
    let file = open_rw(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(b"ab", 0).unwrap();
    file.sync_all().unwrap();
    let mut text = vec![0; 10];
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(text, b"ab23456789");
    fs::write(&path, "another").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "another");
    assert_eq!(mount.versions("s"), [1, 2]);
}

/// telldir(3)'s places stay good while names come and go: none of those that stay is skipped or
/// doubled.
#[test]
fn reading_a_directory_that_changes() {
    let mount = Mount::start();
    let dir = mount.path("d");
    fs::create_dir(&dir).unwrap();
    let name = |n: usize| format!("name-{n:03}-{}", "x".repeat(100));
    (0..120).for_each(|n| fs::write(dir.join(name(n)), "x").unwrap());
    let next = |stream: *mut libc::DIR| unsafe {
        let entry = libc::readdir(stream);
        (!entry.is_null())
            .then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_str().unwrap().to_owned())
    };
    let stream = unsafe { libc::opendir(c(&dir).as_ptr()) };
    assert!(!stream.is_null());
    let first: Vec<String> = (0..20).map(|_| next(stream).unwrap()).collect();
    let place = unsafe { libc::telldir(stream) };
    (0..120).filter(|n| n % 3 == 0).for_each(|n| fs::remove_file(dir.join(name(n))).unwrap());
    (200..220).for_each(|n| fs::write(dir.join(name(n)), "x").unwrap());
    let rest: Vec<String> = std::iter::from_fn(|| next(stream)).collect();
    unsafe { libc::seekdir(stream, place) };
    let again: Vec<String> = std::iter::from_fn(|| next(stream)).collect();
    assert_eq!(again, rest, "from the place on it is the same");
    let seen: Vec<&String> = first.iter().chain(&rest).collect();
    for n in (0..120).filter(|n| n % 3 != 0) {
        assert_eq!(seen.iter().filter(|s| ***s == name(n)).count(), 1, "{}", name(n));
    }
    unsafe { libc::rewinddir(stream) };
    let fresh: Vec<String> = std::iter::from_fn(|| next(stream)).collect();
    assert_eq!(fresh.len(), 2 + 80 + 20, "from the beginning it is as it is now");
    call(unsafe { libc::fsync(libc::dirfd(stream)) }).unwrap();
    unsafe { libc::closedir(stream) };
}

#[test]
fn mappings() {
    let mount = Mount::start();
    let path = mount.path("s");
    fs::write(&path, vec![b'.'; 10_000]).unwrap();
    let file = open_rw(&path);
    let (length, access) = (10_000, libc::PROT_READ | libc::PROT_WRITE);
    let map =
        unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(map, libc::MAP_FAILED);
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), length) };
    bytes[9_999] = b'!';
    file.write_all_at(b"?", 0).unwrap();
    assert_eq!(bytes[0], b'?', "a mapping sees what is written");
    call(unsafe { libc::msync(map, length, libc::MS_SYNC) }).unwrap();
    assert_eq!(mount.versions("s"), [1, 2]);
    bytes[1] = b'#';
    drop(file);
    call(unsafe { libc::munmap(map, length) }).unwrap();
    common::until("what was written last is stored", || mount.versions("s") == [1, 2, 3]);
    let stored = run(&mut mount.vaultfs(["get", &mount.embedded(), "s"])).ok();
    assert_eq!((stored.len(), &stored[..3], &stored[9_999..]), (length, "?#.", "!"));
}

#[test]
fn flags_of_rename() {
    let mount = Mount::start();
    for name in ["a", "b"] {
        fs::write(mount.path(name), name).unwrap();
    }
    let rename = |from: &str, to: &str, flags| {
        let (from, to) = (c(&mount.path(from)), c(&mount.path(to)));
        call(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
    };
    assert_eq!(errno(rename("a", "b", libc::RENAME_NOREPLACE)), libc::EEXIST);
    assert_eq!(errno(rename("a", "b", libc::RENAME_EXCHANGE)), libc::EINVAL);
    assert_eq!(errno(rename("a", "b", libc::RENAME_WHITEOUT)), libc::EINVAL);
    rename("a", "c", libc::RENAME_NOREPLACE).unwrap();
    rename("b", "b", 0).unwrap();
    assert_eq!(mount.sh("cat b c; ls"), "bab\nc\n");
}

#[test]
fn times_and_room() {
    let mount = Mount::start();
    let path = mount.path("s");
    fs::write(&path, "x").unwrap();
    let at = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
    let set = |times: [libc::timespec; 2]| {
        call(unsafe { libc::utimensat(libc::AT_FDCWD, c(&path).as_ptr(), times.as_ptr(), 0) }).unwrap();
        let meta = fs::metadata(&path).unwrap();
        [(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())]
    };
    let (old, new) = ((1_000_000_000, 123_456_789), (1_700_000_000, 1));
    assert_eq!(set([at(old.0, old.1), at(new.0, new.1)]), [old, new]);
    assert_eq!(set([at(0, libc::UTIME_OMIT), at(old.0, 7)]), [old, (old.0, 7)]);
    let now = set([at(0, libc::UTIME_OMIT), at(0, libc::UTIME_NOW)])[1].0;
    assert!(now > new.0, "{now}");
    let room = nix::sys::statvfs::statvfs(mount.mnt()).unwrap();
    assert!(room.blocks_available() > 0 && room.files_available() > 0 && room.name_max() == 255);
    assert_eq!(errno(File::create(mount.path("n".repeat(256)))), libc::ENAMETOOLONG);
}

#[test]
fn pipes_and_sockets_live_in_memory() {
    let mount = Mount::start();
    mount.sh("mkdir d; mkfifo -m 600 d/pipe; (echo through > d/pipe &) ; test \"$(cat d/pipe)\" = through");
    let path = mount.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    assert_eq!(errno(UnixListener::bind(&path)), libc::EADDRINUSE);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut text = String::new();
    listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    mount.sh("ln socket other && rm socket && test -S other && ln other socket && rm other");
    drop(UnixStream::connect(&path).unwrap());
    let kind = |name: &str| fs::symlink_metadata(mount.path(name)).unwrap().file_type();
    assert!(kind("d/pipe").is_fifo() && kind("socket").is_socket());
    mount.sh("mv d/pipe p; ls -l p | grep -q ^p; echo value > object; ! mv -T p object 2> /dev/null");
    assert_eq!(mount.sh("find . -type s -o -type p | sort; cat object"), "./p\n./socket\nvalue\n");
    assert_eq!(run(&mut mount.vaultfs(["ls", &mount.embedded()])).ok(), "object\n");
    mount.sh("rm p socket; test ! -e p");
    let path = c(&mount.path("device"));
    assert_eq!(errno(call(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, 0x103) })), libc::EPERM);
    drop(listener);
    fs::write(mount.path("z"), "z").unwrap();
    mount.sh("mkfifo q");
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(mount.sh("ls"), "object\nz\n");
}

/// Modes decide for others, and only the owner's are ever needed without --allow-other.
#[test]
fn other_users() {
    if !common::is_root() {
        eprintln!("skipped: only root can switch between users");
        return;
    }
    let mount = Mount::with(&["--allow-other", "--file-mode", "0644", "--dir-mode", "0755"]);
    common::open_to_all(mount.place().dir.path());
    mount.sh("umask 022; echo open > open; echo closed > closed; chmod 600 closed");
    let as_nobody = |script: &str| {
        let script = format!("cd {} && {script}", mount.mnt().display());
        mount
            .script("bash", &format!("setpriv --reuid=65534 --regid=65534 --clear-groups bash -c '{script}'"))
            .code
    };
    assert_eq!(as_nobody("cat open && test -r open && test ! -w open"), Some(0));
    assert_ne!(as_nobody("cat closed"), Some(0));
    assert_eq!(
        as_nobody("test ! -r closed && ! touch new 2> /dev/null && ! rm -f open 2> /dev/null"),
        Some(0)
    );
    mount.sh("chmod 644 closed");
    assert_eq!(as_nobody("cat closed"), Some(0));
}
