//! The other user: a mount that is not served, and what lies in its runtime directory.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::mount::MntFlags;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, socketpair};
use serde_json::{Value, json};
use vaultfs::sys::mountpoint::permits_allow_other;

use super::{ENDS, mounts_below};
use crate::support::common::{Place, Ran, mount_lines, open_to_all, run};

/// Users that every machine has, with nothing of theirs running: each test has its own.
pub const USERS: [u32; 14] = [1, 2, 3, 5, 6, 7, 8, 9, 10, 13, 33, 34, 38, 39];

/// Another user, with a mount that is not served.
pub struct Other {
    pub uid: u32,
    pub place: Place,
    pub mnt: PathBuf,
    process: Child,
}

impl Other {
    /// `leaves`: what is to lie in the runtime directory, see [`hostile`].
    pub fn with(leaves: Value) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let uid = USERS[NEXT.fetch_add(1, Ordering::Relaxed) % USERS.len()];
        let place = Place::new();
        open_to_all(place.dir.path());
        // What a test that was killed has left.
        let _ = fs::remove_dir_all(format!("/tmp/vaultfs-{uid}"));
        std::os::unix::fs::chown(&place.mnt, Some(uid), Some(uid)).unwrap();
        let mnt = place.mnt.join("m");
        let order = json!({"mnt": mnt, "run": format!("/tmp/vaultfs-{uid}"), "leaves": leaves});
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["trust::other_user::hostile", "--exact", "--ignored", "--nocapture"])
            .env("HOSTILE", order.to_string());
        command.uid(uid).gid(uid).current_dir("/");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("mounted")), "see its output");
        Self { uid, place, mnt, process }
    }

    /// Runs a command of root's, which must end.
    #[track_caller]
    pub fn root(&self, args: &[&str]) -> Ran {
        let begun = Instant::now();
        let ran = run(&mut self.place.vaultfs(args));
        assert!(begun.elapsed() < ENDS, "{args:?} took {:?}", begun.elapsed());
        assert!(!matches!(ran.code, None | Some(101)), "{args:?}: {ran:?}");
        assert!(!ran.err.contains("panicked"), "{args:?}: {ran:?}");
        ran
    }

    pub fn path(&self) -> &str {
        self.mnt.to_str().unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let run = PathBuf::from(format!("/tmp/vaultfs-{}", self.uid));
        // Also on records in it.
        for mnt in mounts_below(self.place.dir.path()).into_iter().chain(mounts_below(&run)).rev() {
            let _ = nix::mount::umount2(Path::new(&mnt), MntFlags::MNT_DETACH);
        }
        let _ = nix::mount::umount2(&odd_name(self.path()), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(run);
    }
}

/// The other user's process. Does what `HOSTILE` says, says so, and stays until it is killed. Not a
/// test.
#[test]
#[ignore = "it is started by the tests here"]
fn hostile() {
    let Ok(order) = std::env::var("HOSTILE") else { return };
    let order: Value = serde_json::from_str(&order).unwrap();
    let (mnt, dir) = (order["mnt"].as_str().unwrap(), PathBuf::from(order["run"].as_str().unwrap()));
    // As a keeper is called.
    fs::write(format!("/proc/self/task/{}/comm", std::process::id()), "vaultfs-keeper").unwrap();
    let leaves = &order["leaves"];
    let mut held = Vec::new();
    if leaves["odd name"] == true {
        fs::create_dir(odd_name(mnt)).unwrap();
        held.push(fuse(&odd_name(mnt)));
    }
    for n in 0..leaves["more mounts"].as_u64().unwrap_or(0) {
        let more = format!("{mnt}{n}");
        fs::create_dir(&more).unwrap();
        held.push(fuse(Path::new(&more)));
        leave(&dir, &dev_of(&more), leaves);
    }
    fs::create_dir(mnt).unwrap();
    held.push(fuse(Path::new(mnt)));
    leave(&dir, &dev_of(mnt), leaves);
    println!("mounted");
    std::thread::sleep(Duration::from_secs(600));
}

/// A directory beside `mnt` that no JSON can name.
fn odd_name(mnt: &str) -> PathBuf {
    OsString::from_vec([mnt.as_bytes(), b"\xff\n1 1 0:1 . . rw - fuse.vaultfs x rw,user_id=0"].concat())
        .into()
}

/// Mounts, and serves nothing: who looks at it waits.
fn fuse(mnt: &Path) -> OwnedFd {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap();
    let mut command = Command::new("fusermount3");
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let allow_other = if permits_allow_other(&conf) { ",allow_other" } else { "" };
    let options = format!("rw,nosuid,nodev,fsname=vaultfs,subtype=vaultfs{allow_other}");
    command.args(["-o", &options, "--"]).arg(mnt);
    assert!(command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string()).status().unwrap().success());
    let (mut byte, mut space) = ([0u8], nix::cmsg_space!(RawFd));
    let mut parts = [IoSliceMut::new(&mut byte)];
    recvmsg::<()>(ours.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    // The descriptor that came is open from here on.
    ours
}

fn dev_of(mnt: &str) -> String {
    mount_lines(Path::new(mnt))[0].split(' ').nth(2).unwrap().to_owned()
}

/// Leaves a record and a socket.
fn leave(dir: &Path, dev: &str, leaves: &Value) {
    if leaves["directory"] == "mount" {
        fs::DirBuilder::new().mode(0o700).create(dir).unwrap();
        std::mem::forget(fuse(dir));
        return;
    }
    let _ = fs::DirBuilder::new().mode(0o700).create(dir);
    let pid = leaves["pid"].as_u64().unwrap_or(std::process::id().into());
    let record = dir.join(format!("{dev}.{pid}.json"));
    let spec = leaves["spec"].clone();
    let text = json!({"mountpoint": leaves["mountpoint"].as_str().unwrap_or("/x"), "keeper_pid": pid,
                      "keeper_started": started(std::process::id()), "spec": spec});
    match leaves["record"].as_str() {
        Some("fifo") => nix::unistd::mkfifo(&record, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        Some("vast") => fs::File::create(&record).unwrap().set_len(1 << 40).unwrap(),
        Some("mount") => drop(fs::write(&record, "").map(|()| std::mem::forget(fuse(&record)))),
        Some(target) => symlink(target, &record).unwrap(),
        None => fs::write(&record, text.to_string()).unwrap(),
    }
    let socket = dir.join(format!("{dev}.{pid}.sock"));
    match leaves["socket"].as_str() {
        None => {}
        Some(target) if target.starts_with('/') => symlink(target, socket).unwrap(),
        Some(manner) => listen(&socket, manner.to_owned()),
    }
}

/// Field 22 of /proc/PID/stat.
fn started(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap()
}

/// Answers, each connection in a thread of its own.
fn listen(path: &Path, manner: String) {
    let listener = UnixListener::bind(path).unwrap();
    if manner == "full" {
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        std::mem::forget((UnixStream::connect(path), listener));
        return;
    }
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let manner = manner.clone();
            std::thread::spawn(move || match manner.as_str() {
                "silent" => std::thread::sleep(Duration::from_secs(600)),
                "drips" => {
                    while stream.write_all(b" ").is_ok() {
                        std::thread::sleep(Duration::from_millis(500));
                    }
                }
                "floods" => while stream.write_all(&[b' '; 4096]).is_ok() {},
                answer => {
                    let mut question = [0; 4096];
                    while matches!(stream.read(&mut question), Ok(n) if n > 0) {
                        let _ = stream.write_all(format!("{answer}\n").as_bytes());
                    }
                }
            });
        }
    });
}
