//! Nothing of a key can be seen in our processes from outside. Real mounts; the ordinary user's
//! too.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::common::{
    self, Beside, DeviceForAll, Mount, Place, assert_nothing_left, in_foreground, is_mounted, open_to_all,
    run, until,
};
use crate::support::mount_table;

/// Made for this test.
const KEY: &str = "sk_test_canary_8c1f0e7d";

/// What /proc shows of a process: arguments and initial environment.
fn shown(pid: i32) -> String {
    ["cmdline", "environ"]
        .map(|file| String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap()).into_owned())
        .join("\n")
}

#[test]
fn no_process_shows_the_key_or_leaves_a_core() {
    let place = Place::new();
    let mut command = place.mount_command(&["-f", "-vv"]);
    let (front, _said) = in_foreground(command.env("WORKOS_API_KEY", KEY));
    let mount = Mount::adopt(place);
    let (keeper, worker) = mount.pids();
    for pid in [front.0.id() as i32, keeper, worker] {
        assert!(!shown(pid).contains(KEY), "process {pid}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
        let numbers: Vec<&str> = core.split_whitespace().filter(|w| w.parse::<u64>().is_ok()).collect();
        assert_eq!(numbers, ["0", "0"], "{core}");
    }
    // Before it is replaced by another environment, the initial block did hold the key: without
    // that the test would prove nothing.
    let probe = Beside::start(Command::new("sleep").arg("60").env("WORKOS_API_KEY", KEY));
    until("the environment shows", || shown(probe.0.id() as i32).contains(KEY));
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).ok();
}

/// A directory that `nobody` owns, and a copy of the program that `nobody` can run.
struct Nobody {
    place: Place,
    program: std::path::PathBuf,
    _device: DeviceForAll,
}

const NOBODY: u32 = 65534;

impl Nobody {
    fn new() -> Self {
        let place = Place::new();
        open_to_all(place.dir.path());
        let program = place.dir.path().join("vaultfs");
        fs::copy(common::VAULTFS, &program).unwrap();
        open_to_all(&program);
        for dir in ["home", "mnt"] {
            let dir = place.dir.path().join(dir);
            let _ = fs::create_dir(&dir);
            std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Self { place, program, _device: DeviceForAll::open() }
    }

    fn run_as(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(program);
        self.place.isolate(&mut command);
        let home = self.place.dir.path().join("home");
        command.env("XDG_STATE_HOME", home.join("state")).env("HOME", home).current_dir("/");
        command
    }

    fn vaultfs(&self, args: &[&str]) -> Command {
        let mut command = self.run_as(&self.program);
        command.args(args);
        command
    }

    fn mount(&self, more: &[&str]) -> Command {
        let data = self.place.dir.path().join("home/data");
        let mut command = self.vaultfs(&["mount", &format!("--embedded={}", data.display())]);
        command.args(more).arg(&self.place.mnt);
        command
    }
}

impl Drop for Nobody {
    fn drop(&mut self) {
        if is_mounted(&self.place.mnt) {
            let _ = Command::new("umount").arg("-l").arg(&self.place.mnt).status();
        }
    }
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    let _alone = mount_table::take();
    crate::support::only_root!("only root can become another user");
    let nobody = Nobody::new();
    let mnt = nobody.place.mnt.clone();
    refusals(&nobody);

    run(&mut nobody.mount(&[])).ok();
    let file = mnt.join("a");
    let script = format!("printf secret > '{0}' && cat '{0}'", file.display());
    assert_eq!(run(nobody.run_as(Path::new("sh")).args(["-c", &script])).ok(), "secret");
    assert_eq!(fs::read_dir(&mnt).unwrap_err().raw_os_error(), Some(libc::EACCES), "closed even to root");
    closed_to_others(&nobody);

    let shell = format!("cd '{}' && echo ready && exec sleep 60", mnt.display());
    let mut shell =
        nobody.run_as(Path::new("sh")).args(["-c", &shell]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = shell.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let busy = run(nobody.vaultfs(&["unmount"]).arg(&mnt)).fails(1);
    assert!(busy.contains(&format!("{} (sleep)", shell.id())), "{busy}");
    shell.kill().unwrap();
    shell.wait().unwrap();

    run(nobody.vaultfs(&["unmount"]).arg(&mnt)).ok();
    assert_nothing_left(&mnt);

    // The dead mount of an ordinary user is replaced by that user.
    run(&mut nobody.mount(&[])).ok();
    for pid in common::processes_of(&mnt) {
        common::signal(pid, nix::sys::signal::Signal::SIGSTOP);
    }
    for pid in common::processes_of(&mnt) {
        common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
    until("both are gone", || common::processes_of(&mnt).is_empty());
    run(&mut nobody.mount(&[])).ok();
    assert_eq!(common::mount_lines(&mnt).len(), 1);
    assert_eq!(run(nobody.run_as(Path::new("cat")).arg(&file)).ok(), "secret");
    run(nobody.vaultfs(&["unmount"]).arg(&mnt)).ok();
    assert_nothing_left(&mnt);
}

fn refusals(nobody: &Nobody) {
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|l| l.trim() == "user_allow_other") {
        assert!(run(&mut nobody.mount(&["--allow-other"])).fails(1).contains("user_allow_other"));
    }
    assert!(run(&mut nobody.mount(&["--uid", "0"])).fails(1).contains("--uid"));
    // In a mount namespace of its own, where the program is something that cannot be run.
    let hide = "mount --bind /etc/fuse.conf \"$(command -v fusermount3)\" && exec \"$@\"";
    let inner = nobody.mount(&[]);
    let mut hidden = Command::new("unshare");
    hidden.args(["-m", "sh", "-c", hide, "sh"]).arg(inner.get_program()).args(inner.get_args());
    nobody.place.isolate(&mut hidden);
    hidden.env("HOME", nobody.place.dir.path().join("home"));
    assert!(run(&mut hidden).fails(1).contains("fuse3"));
    let inner = nobody.mount(&[]);
    let mut bound = Command::new("setpriv");
    bound.arg("--no-new-privs").arg(inner.get_program()).args(inner.get_args());
    nobody.place.isolate(&mut bound);
    assert!(run(&mut bound).fails(1).contains("NoNewPrivileges"));
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o600)).unwrap();
    let closed = run(&mut nobody.mount(&[]));
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    assert!(closed.fails(1).contains("/dev/fuse"));
    assert_nothing_left(&nobody.place.mnt);
}

/// A process that is not dumpable belongs, in /proc, to root.
fn closed_to_others(nobody: &Nobody) {
    common::until("keeper, worker and helper", || common::processes_of(&nobody.place.mnt).len() == 3);
    let pids = common::processes_of(&nobody.place.mnt);
    for pid in pids {
        assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
        let proc = format!("/proc/{pid}");
        let peek = run(nobody.run_as(Path::new("cat")).arg(format!("{proc}/environ")));
        assert_ne!(peek.code, Some(0), "its own user cannot look in");
    }
}
