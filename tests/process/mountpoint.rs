//! Where a mount may be made, and where it is made while somebody exchanges what is on the way;
//! what is left of one that fails. Real mounts.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::support::common::{
    self, DeviceForAll, Mount, Place, VAULTFS, assert_nothing_left, is_mounted, is_root, mount_lines,
    open_to_all, run, until,
};
use crate::support::mount_table;

/// Another user, who is nobody's friend.
const OTHER: u32 = 1000;
const NOBODY: u32 = 65534;

fn skip() -> bool {
    if !is_root() {
        eprintln!("SKIPPED: only root can become another user");
    }
    !is_root()
}

fn links_of_others(path: &Path, to: &Path) {
    symlink(to, path).unwrap();
    lchown(path, Some(OTHER), Some(OTHER)).unwrap();
}

/// Whether anything of ours is mounted below `dir`.
fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = dir.to_str().unwrap();
    table.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect()
}

#[test]
fn a_link_of_another_users_is_not_followed_at_the_end_and_not_on_the_way() {
    if skip() {
        return;
    }
    let place = Place::new();
    let root = place.dir.path().canonicalize().unwrap();
    // Anybody may make links there, and only their owners may remove them.
    let shared = root.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir_all(root.join("victim/below")).unwrap();
    links_of_others(&shared.join("end"), &root.join("victim/below"));
    links_of_others(&shared.join("way"), &root.join("victim"));
    symlink(shared.join("way"), root.join("own")).unwrap();
    for path in [shared.join("end"), shared.join("way/below"), root.join("own/below")] {
        let said = run(place.vaultfs(["mount", &place.embedded()]).arg(&path)).fails(1);
        assert!(said.contains("uid 1000") && said.contains("the directory itself"), "{said}");
    }
    assert_eq!(mounts_below(&root), [""; 0]);

    // A directory of the other user's is none: it can be mounted on, there or through a link of
    // one's own.
    let theirs = shared.join("theirs");
    fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(OTHER), Some(OTHER)).unwrap();
    symlink(&theirs, root.join("link")).unwrap();
    for path in [theirs.clone(), root.join("link")] {
        run(place.vaultfs(["mount", &place.embedded()]).arg(&path)).ok();
        assert_eq!(mount_lines(&theirs).len(), 1);
        run(place.vaultfs(["unmount"]).arg(&theirs)).ok();
    }
    assert_nothing_left(&theirs);
}

/// Exchanges two names again and again until it is dropped.
struct Exchange<'a>(&'a AtomicBool);

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn exchange(a: &Path, b: &Path, until: &AtomicBool) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (a, b) = (text(a), text(b));
    while !until.load(Ordering::Relaxed) {
        // SAFETY: both paths are NUL-terminated.
        unsafe {
            libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE)
        };
        std::thread::yield_now();
    }
}

/// Mounts while directory and link change places all the time, and says how often it was mounted.
fn race(place: &Place, rounds: u32, command: impl Fn(&str) -> Command) -> u32 {
    let root = place.dir.path().canonicalize().unwrap();
    let (victim, link) = (root.join("victim"), root.join("link"));
    let over = AtomicBool::new(false);
    let mut mounted = 0;
    std::thread::scope(|scope| {
        let _end = Exchange(&over);
        scope.spawn(|| exchange(&place.mnt, &link, &over));
        for round in 0..rounds {
            let ran = run(&mut command("mount"));
            assert!(!is_mounted(&victim), "round {round}: over the victim's directory: {ran:?}");
            assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
            if ran.code == Some(0) {
                mounted += 1;
                run(&mut command("unmount")).ok();
            }
            assert_eq!(mounts_below(&root), [""; 0], "round {round}: {ran:?}");
        }
    });
    until("its processes are gone", || common::processes_of(&root).is_empty());
    mounted
}

#[test]
fn a_directory_that_changes_places_with_a_link_all_the_time_is_all_that_root_mounts_on() {
    if skip() {
        return;
    }
    let place = Place::new();
    let root = place.dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("victim")).unwrap();
    links_of_others(&root.join("link"), &root.join("victim"));
    let mounted = race(&place, 50, |verb| match verb {
        "mount" => place.mount_command(&[]),
        _ => {
            let mut command = place.vaultfs(["unmount"]);
            command.arg(&place.mnt);
            command
        }
    });
    eprintln!("mounted {mounted} times of 50");
}

/// A user, a directory in which that user mounts, and a copy of the program that this user can run.
struct User {
    place: Place,
    root: PathBuf,
    _device: DeviceForAll,
}

impl User {
    fn new() -> Self {
        let place = Place::new();
        let root = place.dir.path().canonicalize().unwrap();
        open_to_all(&root);
        fs::copy(VAULTFS, root.join("vaultfs")).unwrap();
        open_to_all(&root.join("vaultfs"));
        for dir in ["home", "mnt", "victim"] {
            let _ = fs::create_dir(root.join(dir));
            chown(root.join(dir), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Self { place, root, _device: DeviceForAll::open() }
    }

    fn vaultfs(&self, args: &[&str]) -> Command {
        let mut command = self.program();
        command.args(args).arg(&self.place.mnt);
        command
    }

    fn program(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
        command.arg(self.root.join("vaultfs"));
        self.place.isolate(&mut command);
        let home = self.root.join("home");
        command.env("XDG_STATE_HOME", home.join("state")).env("HOME", home).current_dir("/");
        command
    }

    fn mount(&self) -> Command {
        self.vaultfs(&["mount", &format!("--embedded={}", self.root.join("home/data").display())])
    }

    /// Mounts another vault on this directory below the root.
    fn mount_at(&self, name: &str) -> Command {
        let mut command = self.program();
        let vault = format!("--embedded={}", self.root.join("home").join(name).display());
        command.args(["mount", &vault]).arg(self.root.join(name));
        command
    }

    /// Has this script run in the place of fusermount3 where that is to mount; `$0` is fusermount3
    /// then.
    fn before_mounting(&self, script: &str) -> PathBuf {
        let bin = self.root.join("bin");
        let _ = fs::create_dir(&bin);
        let program = bin.join("fusermount3");
        let text = format!(
            "#!/bin/sh\nr=$(command -p -v fusermount3)\ncase $1 in -u) exec \"$r\" \"$@\";; esac\n{script}\n"
        );
        fs::write(&program, text).unwrap();
        for path in [&bin, &program] {
            open_to_all(path);
        }
        bin
    }
}

#[test]
fn an_ordinary_users_mount_that_was_led_elsewhere_does_not_stay() {
    if skip() {
        return;
    }
    let user = User::new();
    let root = user.root.display();
    // What somebody who is fast enough does between the looks of fusermount3.
    let elsewhere = format!("exec \"$r\" -o \"$2\" -- {root}/victim");
    // The directory is moved away, and a link is in its place.
    let moved = format!("mv {root}/mnt {root}/moved; ln -s victim {root}/mnt; exec \"$r\" \"$@\"");
    for script in [elsewhere, moved] {
        chown(&user.root, Some(NOBODY), Some(NOBODY)).unwrap();
        let bin = user.before_mounting(&script);
        let said = run(user.mount().env("PATH", format!("{}:/usr/bin:/bin", bin.display()))).fails(1);
        assert!(said.contains("moved") && said.contains("replaced"), "{said}");
        assert_eq!(mounts_below(&user.root), [""; 0]);
        until("its processes are gone", || common::processes_of(&user.root).is_empty());
    }
}

#[test]
fn an_ordinary_user_mounts_while_a_link_of_anothers_comes_and_goes() {
    if skip() {
        return;
    }
    let user = User::new();
    links_of_others(&user.root.join("link"), &user.root.join("victim"));
    let mounted = race(&user.place, 20, |verb| match verb {
        "mount" => user.mount(),
        _ => user.vaultfs(&["unmount"]),
    });
    eprintln!("mounted {mounted} times of 20");
}

#[test]
fn a_mount_whose_directory_was_moved_ends_where_it_is() {
    if skip() {
        return;
    }
    let user = User::new();
    let mut by_root = user.place.vaultfs(["mount", &user.place.embedded()]);
    by_root.arg(user.root.join("roots/mnt"));
    for (name, mut mount) in [("roots", by_root), ("theirs", user.mount_at("theirs/mnt"))] {
        let dir = user.root.join(name);
        fs::create_dir_all(dir.join("mnt")).unwrap();
        for dir in [&dir, &dir.join("mnt")] {
            chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        run(&mut mount).ok();
        // Whoever owns the directory above can do that.
        let moved = user.root.join("moved").join(name);
        fs::create_dir_all(moved.parent().unwrap()).unwrap();
        fs::rename(&dir, &moved).unwrap();
        symlink("victim", &dir).unwrap();
        let status = run(user.place.vaultfs(["status", "--json"]).arg(moved.join("mnt"))).ok();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let keeper = status[0]["keeper_pid"].as_i64().unwrap() as i32;
        common::signal(keeper, nix::sys::signal::Signal::SIGTERM);
        until("it is unmounted", || mounts_below(&user.root).is_empty());
        until("its processes are gone", || common::processes_of(&user.root).is_empty());
    }
}

/// Id and device number of what is mounted there.
fn numbers(mnt: &Path) -> [String; 2] {
    let line = mount_lines(mnt).pop().unwrap();
    let mut fields = line.split(' ').map(str::to_owned);
    [fields.next().unwrap(), fields.nth(1).unwrap()]
}

#[test]
fn numbers_that_another_mount_had_just_now_confuse_nobody() {
    if skip() {
        return;
    }
    let user = User::new();
    let (root, mnt) = (user.root.display(), &user.place.mnt);
    let other = user.root.join("other");
    fs::create_dir(&other).unwrap();
    chown(&other, Some(NOBODY), Some(NOBODY)).unwrap();
    // What is mounted next gets what the other one had.
    let free = format!("{root}/vaultfs unmount {root}/other || exit 1");
    let mounts = format!("{free}; exec \"$r\" \"$@\"");
    let leads_elsewhere = format!("{free}; exec \"$r\" -o \"$2\" -- {root}/victim");
    let (mut led, mut reused) = (false, false);
    for round in 0..20 {
        run(&mut user.mount_at("other")).ok();
        let had = numbers(&other);
        let bin = user.before_mounting(if led { &leads_elsewhere } else { &mounts });
        let ran = run(user.mount().env("PATH", format!("{}:/usr/bin:/bin", bin.display())));
        assert!(!is_mounted(&other), "{ran:?}");
        if led {
            let said = ran.fails(1);
            assert!(said.contains("moved") && said.contains("replaced"), "{said}");
        } else {
            ran.ok();
            reused |= numbers(mnt).iter().zip(&had).any(|(now, before)| now == before);
            run(&mut user.vaultfs(&["unmount"])).ok();
        }
        assert_eq!(mounts_below(&user.root), [""; 0], "round {round}");
        until("its processes are gone", || common::processes_of(&user.root).is_empty());
        // Others mount on this machine, too.
        if led && reused {
            return;
        }
        led = !led;
    }
    panic!("no number was used again");
}

/// The keeper of a mount that was unmounted ends when the next mount has the numbers of the first.
#[test]
fn a_keeper_that_ends_late_leaves_the_mount_that_has_its_numbers_by_then() {
    if skip() {
        return;
    }
    let _alone = mount_table::take();
    for _ in 0..20 {
        let late = Mount::start();
        let ((keeper, _), had) = (late.pids(), numbers(late.mnt()));
        common::signal(keeper, Signal::SIGSTOP);
        run(Command::new("umount").arg(late.mnt())).ok();
        let next = Mount::start();
        let has = numbers(next.mnt());
        common::signal(keeper, Signal::SIGCONT);
        until("the late one is gone", || common::processes_of(late.mnt()).is_empty());
        fs::write(next.path("a"), "1").unwrap();
        assert_eq!(fs::read_to_string(next.path("a")).unwrap(), "1");
        next.unmount();
        // Others mount on this machine, too.
        if has == had {
            return;
        }
    }
    panic!("no mount got the numbers of the one before");
}

/// A command for which the kernel, or what filters calls to it, fails these calls with this errno.
fn without<'a>(command: &'a mut Command, calls: &'static [libc::c_long], errno: i32) -> &'a mut Command {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for call in calls {
        program.push(statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *call as u32));
        let answer = libc::SECCOMP_RET_ERRNO | errno as u32;
        program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, answer));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let filter = move || {
        let text = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: the program lives until the call is over. Root needs no NoNewPrivs for it.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const text) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(filter) }
}

/// What the mount table says without ids and paths.
fn without_ids(line: &str) -> String {
    line.split_once(" rw").unwrap().1.to_owned()
}

#[test]
fn the_mount_table_shows_the_same_however_the_mount_is_made() {
    if skip() {
        return;
    }
    let options = "noexec,noatime,nosymfollow,sync,allow_other,fsname=https://v.example/x";
    let plain = |vault: &str| {
        let flags = "rw,user_id=0,group_id=0,default_permissions";
        format!(",nosuid,nodev,relatime - fuse.vaultfs embedded={vault} {flags}")
    };
    let full = ",nosuid,nodev,noexec,noatime,nosymfollow - fuse.vaultfs https://v.example/x \
                rw,sync,user_id=0,group_id=0,default_permissions,allow_other";
    let long = format!("fsname=https://v.example/{}", "x".repeat(400));
    type Case = (&'static [libc::c_long], i32);
    let all: [Case; 7] = [
        (&[], 0),
        // As Docker's profile has it for who has no CAP_SYS_ADMIN, and as kernels before 5.2 have
        // it.
        (&[libc::SYS_fsopen], libc::EPERM),
        (&[libc::SYS_fsopen, libc::SYS_move_mount, libc::SYS_open_tree], libc::ENOSYS),
        (&[libc::SYS_fsconfig], libc::EINVAL),
        (&[libc::SYS_fsmount], libc::EINVAL),
        // As AppArmor has it where only mount(2) is in a profile.
        (&[libc::SYS_move_mount], libc::EACCES),
        (&[libc::SYS_close_range, libc::SYS_move_mount], libc::ENOSYS),
    ];
    for (calls, errno) in all {
        let mut place = Place::new();
        let plain = plain(place.data.to_str().unwrap());
        for (args, want) in [(&[][..], plain.as_str()), (&["-o", options], full), (&["-o", &long], "")] {
            run(without(&mut place.mount_command(args), calls, errno)).ok();
            let mount = Mount::adopt(place);
            let line = mount_lines(mount.mnt()).pop().unwrap();
            assert!(want.is_empty() || without_ids(&line) == want, "{calls:?}: {line}");
            assert!(line.contains(&"x".repeat(400)) || !want.is_empty(), "{line}");
            fs::write(mount.path("a"), "1").unwrap();
            assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "1");
            place = mount.unmount();
        }
    }
}

/// What keepers that live no more left in the runtime directory.
fn left_by_the_dead() -> Vec<String> {
    let names = fs::read_dir("/run/vaultfs").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    let is_dead =
        |name: &String| name.split('.').nth(1).is_some_and(|pid| !Path::new("/proc").join(pid).exists());
    names.filter(is_dead).collect()
}

#[test]
fn what_fails_at_any_step_leaves_nothing() {
    let _alone = mount_table::take();
    if skip() {
        return;
    }
    // Clears up what other tests left whose keepers were killed.
    Mount::start().unmount();
    let place = Place::new();
    let calls = &[libc::SYS_fsopen, libc::SYS_mount];
    let said = run(without(&mut place.mount_command(&[]), calls, libc::EPERM)).fails(1);
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
    assert_nothing_left(&place.mnt);

    // The keeper or the worker is killed when the mount is made and not attached.
    for point in ["detached", "attach", "receive-state", "always receive-state"] {
        let place = Place::new();
        let death = place.dir.path().join("death");
        fs::write(&death, point).unwrap();
        let mut command = place.mount_command(&[]);
        command.env("VAULTFS_TEST_CRASH", &death);
        let said = run(&mut command).fails(1);
        let left = left_by_the_dead();
        // Who is killed cannot tidy up: the next mount does.
        assert!(left.is_empty() || !point.contains("receive-state"), "{point}: {left:?} {said}");
        assert_nothing_left(&place.mnt);
        fs::remove_file(&death).unwrap_or_default();
        Mount::at(place, &[]).unmount();
        assert_eq!(left_by_the_dead(), [""; 0], "{point}");
    }
}

#[test]
fn a_mount_under_way_keeps_the_directory_open_and_a_finished_one_does_not() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    for pid in [keeper, worker] {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let Ok(at) = fs::read_link(entry.path()) else { continue };
            assert_ne!(at, mount.mnt(), "it would keep what is below the mount busy");
        }
    }
}

#[test]
fn a_mount_in_a_shared_tree_is_seen_in_its_copies() {
    if skip() {
        return;
    }
    let place = Place::new();
    let root = place.dir.path().canonicalize().unwrap();
    let script = "set -e; trap 'umount -l b a 2>/dev/null || :' EXIT\n\
        mkdir a b; mount -t tmpfs none a; mount --make-shared a; mount --bind a b; mkdir a/m\n\
        \"$@\" mount \"$DATA\" a/m\n\
        echo 1 > b/m/x; cat a/m/x; grep -c \"$PWD.*fuse.vaultfs\" /proc/self/mountinfo\n\
        \"$@\" unmount a/m; grep -c \"$PWD.*fuse.vaultfs\" /proc/self/mountinfo || :";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", VAULTFS]);
    place.isolate(&mut command);
    command.env("DATA", place.embedded()).current_dir(&root);
    assert_eq!(run(&mut command).ok(), "1\n2\n0\n");
}
