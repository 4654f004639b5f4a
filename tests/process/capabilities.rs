//! What root's processes of a mount may still do. Real mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::support::common::{self, Mount, Place, child_of, run, until};

/// Numbers of linux/capability.h.
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const FOWNER: u64 = 1 << 3;
const KILL: u64 = 1 << 5;
const IPC_LOCK: u64 = 1 << 14;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

const FILES: u64 = DAC_OVERRIDE | DAC_READ_SEARCH;

/// A set of /proc/PID/status, in text of that form.
fn set(status: &str, name: &str) -> u64 {
    let hex = status.lines().find_map(|line| line.strip_prefix(name)).expect("in the status");
    u64::from_str_radix(hex.trim(), 16).expect("hexadecimal")
}

/// Each thread has permitted and effective what of `kept` this process has, and in the bounding set
/// that or, where it starts programs, what this process has.
fn assert_kept(who: &str, pid: i32, kept: u64, starts_programs: bool) {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let (own_bounding, own_permitted) = (set(&own, "CapBnd:"), set(&own, "CapPrm:"));
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert_eq!(set(&status, "CapPrm:"), own_permitted & kept, "{who}: {status}");
        assert_eq!(set(&status, "CapEff:"), own_permitted & kept, "{who}: {status}");
        let bounding = if starts_programs { own_bounding } else { own_bounding & kept };
        assert_eq!(set(&status, "CapBnd:"), bounding, "{who}: {status}");
        assert_eq!(set(&status, "NoNewPrivs:"), 0, "{who}: {status}");
    }
}

/// What a worker needs besides where it has to end a connection by a forced unmount. To be asked
/// before the mount is made.
fn without_fusectl() -> u64 {
    let place = "/sys/fs/fuse/connections";
    if fs::read_dir(place).is_ok_and(|mut connections| connections.next().is_none()) {
        let _ = Command::new("mount").args(["-t", "fusectl", "none", place]).status();
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let has = mounts.lines().any(|line| line.split(' ').nth(2) == Some("fusectl"));
    if has { 0 } else { SYS_ADMIN }
}

fn helper_of(keeper: i32) -> i32 {
    common::wait(|| child_of(keeper, "vaultfs-helper"), std::time::Duration::from_secs(30)).expect("a helper")
}

#[test]
fn processes_of_roots_mount_keep_the_capabilities_that_they_need() {
    crate::support::only_root!("an ordinary user's processes have none");
    let worker = FILES | SYS_PTRACE | IPC_LOCK | without_fusectl();
    let mount = Mount::start();
    let (keeper, first) = mount.pids();
    assert_kept("keeper", keeper, FILES | SYS_PTRACE | IPC_LOCK | SYS_ADMIN, true);
    assert_kept("worker", first, worker, false);
    let helper = helper_of(keeper);
    until("the helper has begun", || has_begun(helper));
    assert_kept("helper", helper, FILES | FOWNER, false);
    // The one that takes over is no other.
    let second = common::replace_worker(keeper);
    until("it serves", || mount.pids().1 == second);
    assert_kept("worker that took over", second, worker, false);
    fs::write(mount.path("a"), "1").unwrap();
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "1");
    mount.unmount();
}

/// It drops what it does not need as soon as it has its clone of the mount.
fn has_begun(helper: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{helper}/status")).unwrap();
    set(&status, "CapEff:") & SYS_ADMIN == 0
}

#[test]
fn a_command_of_on_change_has_what_the_mount_command_had() {
    crate::support::only_root!("an ordinary user's processes have none");
    let place = Place::new();
    let kept = FILES | SYS_PTRACE | IPC_LOCK | KILL | without_fusectl();
    let out = place.dir.path().join("status");
    let command = format!("cat /proc/self/status > {0}.new; mv {0}.new {0}", out.display());
    let mount = Mount::at(place, &["--refresh=200ms", &format!("--on-change={command}")]);
    let (_, worker) = mount.pids();
    assert_kept("worker", worker, kept, true);
    let put = format!("printf 1 | {} put {} a", common::VAULTFS, mount.embedded());
    let mut shell = Command::new("sh");
    mount.place().isolate(&mut shell);
    run(shell.arg("-c").arg(put)).ok();
    until("the command was run", || out.exists());
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let seen = fs::read_to_string(&out).unwrap();
    for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(set(&seen, name), set(&own, name), "{name} {seen}");
    }
    assert_eq!(set(&seen, "NoNewPrivs:"), 0, "sudo works in it");
    mount.unmount();
}

/// Files that another user owns, whose times and names the helper changes, and whose closing the
/// worker decides on.
#[test]
fn what_is_left_is_enough_for_files_and_programs_of_another_user() {
    crate::support::only_root!("only root mounts for another user");
    let place = Place::new();
    common::open_to_all(place.dir.path());
    let mount = Mount::at(place, &["--refresh=200ms", "--allow-other", "--uid=65534", "--gid=65534"]);
    let as_nobody = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "sh",
            "-c",
            script,
        ]);
        run(command.current_dir("/")).ok()
    };
    // Two descriptors of one open file: the close of the first one stores nothing, which is told
    // from fdinfo.
    let file = mount.path("a");
    as_nobody(&format!("exec 3> '{0}' && echo 1 >&3 && echo 2 >&3 && exec 3>&-", file.display()));
    assert_eq!(mount.versions("a"), [1]);
    assert_eq!(fs::metadata(&file).unwrap().uid(), 65534);
    let put = format!("printf changed | {} put {} a", common::VAULTFS, mount.embedded());
    let mut shell = Command::new("sh");
    mount.place().isolate(&mut shell);
    run(shell.arg("-c").arg(put)).ok();
    until("the change shows", || fs::read_to_string(&file).unwrap() == "changed");
    mount.unmount();
}
