//! What another user of the machine can make root's commands do: nothing.
//!
//! The other user is a process of its own (this binary again, [`other_user`], under another uid):
//! it makes a real mount of type fuse.vaultfs with fusermount3, and leaves what it likes where
//! root's commands look.

mod file_systems;
mod other_user;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use self::other_user::{Other, USERS};
use crate::support::common::{self, DeviceForAll, Mount, Place, Ran, is_mounted, open_to_all, run, until};
use crate::support::mount_table;

/// What any command may take here: it ends by itself, and not when somebody lets it.
const ENDS: Duration = Duration::from_secs(40);

/// One after the other: commands with no mount named look at all there are.
fn turn() -> Option<(Arc<mount_table::Held>, DeviceForAll)> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return None;
    }
    Some((mount_table::take(), DeviceForAll::open()))
}

/// All cases at a time: what they wait for are time limits of the commands.
fn each<T: Send>(cases: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| check(case));
        }
    });
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

/// A process of root's that is called like a keeper.
struct Victim(Child);

impl Victim {
    fn new(place: &Place) -> Self {
        let program = place.dir.path().join("vaultfs-keeper");
        if !program.exists() {
            fs::copy("/bin/sleep", &program).unwrap();
        }
        Self(Command::new(program).arg("600").spawn().unwrap())
    }

    #[track_caller]
    fn assert_lives(&mut self) {
        // Whatever was sent has arrived when the next process has come and gone.
        Command::new("true").status().unwrap();
        assert!(self.0.try_wait().unwrap().is_none(), "it was killed");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_command_takes_another_users_vault_for_its_own() {
    let Some(_turn) = turn() else { return };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(&key, "sk_test_of_root_alone\n").unwrap();
    let came = Arc::new(AtomicBool::new(false));
    let url = format!("http://{}", server.local_addr().unwrap());
    std::thread::spawn({
        let came = came.clone();
        move || server.incoming().for_each(|_| came.store(true, Ordering::Relaxed))
    });
    let spec = json!({"endpoint": {"url": url}, "api": "kv", "key_file": key.path(), "ca_file": null,
                      "key_context": {}, "prefix": null, "timeout": {"secs": 5, "nanos": 0}, "max_size": 1048576});
    let other = Other::with(json!({"spec": spec, "socket": "silent"}));
    for command in [
        &["ls"][..],
        &["get", "a"],
        &["put", "a"],
        &["rm", "a"],
        &["log", "a"],
        &["restore", "a", "--version", "1"],
    ] {
        let ran = other.root(command);
        assert_ne!(ran.code, Some(0), "{command:?}: {ran:?}");
        assert!(!ran.err.contains(&url) && !ran.err.contains(other.path()), "{command:?}: {ran:?}");
        assert!(!came.load(Ordering::Relaxed), "{command:?} went to the other user's server");
    }
    assert!(!other.root(&["pending"]).err.contains(other.path()));
    let ran = other.root(&["upgrade"]);
    assert!(!ran.err.contains(other.path()), "{ran:?}");
}

#[test]
fn no_signal_goes_to_a_number_in_a_file() {
    let Some(_turn) = turn() else { return };
    let place = Place::new();
    let mut victim = Victim::new(&place);
    let pid = u64::from(victim.0.id());
    each([pid, 0, 1, 0x7fff_ffff, u64::from(std::process::id()), 0xffff_ffff], |number| {
        let other =
            Other::with(json!({"pid": number, "socket": if number == pid { "silent" } else { "full" }}));
        let ran = other.root(&["unmount", "--force", other.path()]);
        assert!(!is_mounted(&other.mnt), "{number}: {ran:?}");
    });
    victim.assert_lives();
}

#[test]
fn the_record_of_a_keeper_that_is_gone_names_nobody() {
    let Some(_turn) = turn() else { return };
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    let status = mount.status();
    let dev = status["dev"].as_str().unwrap();
    let mut victim = Victim::new(mount.place());
    let record = format!("/run/vaultfs/{dev}.{keeper}.json");
    let mut text: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    for pid in [keeper, worker] {
        common::signal(pid, nix::sys::signal::Signal::SIGSTOP);
    }
    for pid in [keeper, worker] {
        common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
    until("they are dead", || common::processes_of(mount.mnt()).is_empty());
    // As it is when the number of the keeper has gone to the next process.
    text["keeper_pid"] = victim.0.id().into();
    let stale = format!("/run/vaultfs/{dev}.{}.json", victim.0.id());
    fs::write(&stale, text.to_string()).unwrap();
    fs::set_permissions(&stale, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = run(mount.vaultfs(["status"]).arg(mount.mnt()));
    assert!(ran.out.contains("DEAD"), "{ran:?}");
    run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).ok();
    victim.assert_lives();
    assert!(!is_mounted(mount.mnt()));
    // The next mount clears up.
    let place = mount.unmount_done();
    let next = Mount::at(place, &[]);
    assert!(!Path::new(&stale).exists());
    next.unmount();
}

#[test]
fn a_link_to_roots_socket_leads_nowhere() {
    let Some(_turn) = turn() else { return };
    let mount = Mount::start();
    let status = mount.status();
    let socket = format!("/run/vaultfs/{}.{}.sock", status["dev"].as_str().unwrap(), status["keeper_pid"]);
    assert!(Path::new(&socket).exists());
    let whole: [&[&str]; 5] =
        [&["status"], &["pending"], &["upgrade"], &["unmount"], &["unmount", "--force"]];
    each(whole, |command| {
        let other = Other::with(json!({"socket": socket}));
        let ran = other.root(&[command, &[other.path()]].concat());
        assert_ne!(ran.code, Some(0), "{command:?}: {ran:?}");
        assert!(!ran.out.contains("answers,"), "{ran:?}");
        assert!(is_mounted(mount.mnt()), "{command:?} ended root's mount");
        assert_eq!(mount.status()["worker_pid"], status["worker_pid"], "{command:?}");
    });
    fs::write(mount.path("f"), "1").unwrap();
    mount.unmount();
}

#[test]
fn a_socket_that_does_not_answer_holds_nobody_up() {
    let Some(_turn) = turn() else { return };
    let others = ["drips", "floods", "silent", "full"].map(|manner| Other::with(json!({"socket": manner})));
    std::thread::scope(|scope| {
        // All of them are asked, each user for some seconds.
        for command in ["status", "doctor"] {
            let others = &others;
            scope.spawn(move || {
                let ran = others[0].root(&[command]);
                let all = others.iter().all(|other| ran.out.contains(other.path()));
                assert!(ran.code != Some(0) && all, "{ran:?}");
            });
        }
        each(&others, |other| {
            each([&["status"][..], &["pending"], &["upgrade"], &["unmount"]], |command| {
                let ran = other.root(&[command, &[other.path()]].concat());
                assert_ne!(ran.code, Some(0), "{command:?}: {ran:?}");
            });
        });
    });
}

#[test]
fn a_mount_point_that_is_no_text_is_shown_as_well_as_it_can_be() {
    let Some(_turn) = turn() else { return };
    let other = Other::with(json!({"socket": "full", "odd name": true}));
    each([&["status"][..], &["status", "--json"], &["doctor"]], |command| {
        let ran = other.root(command);
        assert!(ran.out.matches(other.path()).count() >= 2, "{command:?}: {ran:?}");
    });
}

#[test]
fn many_mounts_of_one_user_take_the_time_of_one() {
    let Some(_turn) = turn() else { return };
    let other = Other::with(json!({"socket": "drips", "more mounts": 14}));
    let ran = other.root(&["status", "-v"]);
    assert_eq!(ran.out.matches(other.path()).count(), 15, "{ran:?}");
    assert!(ran.out.contains("other mounts of its user take too long"), "{ran:?}");
}

#[test]
fn nothing_in_place_of_a_record_is_waited_for_or_followed() {
    let Some(_turn) = turn() else { return };
    let secret = tempfile::NamedTempFile::new().unwrap();
    let record = json!({"mountpoint": "/x", "keeper_pid": 1, "spec": null, "broken": "of root alone"});
    fs::write(&secret, record.to_string()).unwrap();
    let instead = ["fifo", "vast", "mount", "/dev/zero", secret.path().to_str().unwrap()];
    let others = instead.map(|instead| Other::with(json!({"record": instead, "socket": "silent"})));
    let ran = others[0].root(&["status"]);
    assert!(ran.code != Some(0) && !ran.out.contains("of root alone"), "{ran:?}");
    each(&others, |other| {
        for command in [&["status", other.path()], &["pending", other.path()]] {
            let ran = other.root(command);
            assert_ne!(ran.code, Some(0), "{command:?}: {ran:?}");
            assert!(!ran.out.contains("of root alone"), "{ran:?}");
        }
        other.root(&["unmount", "--force", other.path()]).ok();
        assert!(!is_mounted(&other.mnt), "{}", other.path());
    });
    drop(others);
    let other = Other::with(json!({"directory": "mount"}));
    assert_eq!(other.root(&["status"]).code, Some(1));
    // Also where root is led to the other user's directory.
    let mut command = other.place.vaultfs(["status"]);
    command.env("XDG_RUNTIME_DIR", other.mnt.parent().unwrap());
    symlink(&other.mnt, other.mnt.parent().unwrap().join("vaultfs")).unwrap();
    assert_eq!(run(&mut command).code, Some(1));
}

#[test]
fn what_another_user_answers_is_shown_and_not_believed() {
    let Some(_turn) = turn() else { return };
    let vast = u64::MAX;
    let answers = [
        json!({"status": "x"}),
        json!({"status": [1, 2]}),
        json!({"status": {"fs": "x", "drain_s": vast, "worker_pid": vast, "omitted": vast, "uptime_s": vast}}),
        json!({"status": {"fs": {"unsaved": 5}, "mountpoint": "/elsewhere", "drain_s": vast, "worker_pid": 1}}),
        json!({"drained": []}),
        json!({"ended": [{"name": "a", "path": "/etc/shadow", "size": 1, "error": null, "conflict": false}]}),
        json!({"status": {"fs": {"unsaved": [
            {"name": "a", "path": "../../../../etc/shadow", "size": 1, "error": null, "conflict": false}]}}}),
    ];
    each(answers, |answer| {
        let other = Other::with(json!({"socket": answer.to_string(), "mountpoint": "/elsewhere"}));
        for command in [
            &["status", other.path()][..],
            &["status", "--json", other.path()],
            &["pending", other.path()],
            &["pending", "--json", "--retry", other.path()],
            &["pending", "--save", "a", other.path()],
            &["pending", "--discard", "a", other.path()],
        ] {
            let ran = other.root(command);
            assert!(!ran.out.contains("/elsewhere") && !ran.err.contains("/elsewhere"), "{ran:?}");
            assert!(!ran.out.contains("root:"), "{ran:?}");
        }
        other.root(&["unmount", other.path()]);
    });
}

#[test]
fn a_link_of_another_user_is_not_followed_to_a_mount() {
    let Some(_turn) = turn() else { return };
    let place = Place::new();
    open_to_all(place.dir.path());
    let mount = Mount::at(place, &[]);
    let link = mount.place().dir.path().join("link");
    symlink(mount.mnt(), &link).unwrap();
    assert_eq!(run(mount.vaultfs(["status"]).arg(&link)).code, Some(0), "root's own");
    std::os::unix::fs::lchown(&link, Some(USERS[0]), None).unwrap();
    let whole: [&[&str]; 4] = [&["status"], &["upgrade"], &["unmount"], &["unmount", "--force"]];
    for command in whole {
        let said = run(mount.vaultfs(command).arg(&link)).fails(5);
        assert!(said.contains("a link of another user's is on the way"), "{said}");
    }
    assert!(is_mounted(mount.mnt()));
    mount.unmount();
}

#[test]
fn a_user_does_not_believe_others_either() {
    let Some(_turn) = turn() else { return };
    let uid = USERS[0];
    let place = Place::new();
    open_to_all(place.dir.path());
    let command = |args: &[&str]| {
        let mut command = place.vaultfs(args);
        command.uid(uid).gid(uid).current_dir("/");
        command
    };
    // Where this user's records would be, somebody else was first.
    let dir = PathBuf::from(format!("/tmp/vaultfs-{uid}"));
    fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
    let mount = Mount::start();
    let dev = mount.status()["dev"].as_str().unwrap().to_owned();
    let (keeper, _) = mount.pids();
    let own = fs::read_dir("/run/vaultfs").unwrap().flatten();
    for file in own.filter(|file| file.file_name().to_str().unwrap().starts_with(&format!("{dev}.{keeper}.")))
    {
        let _ = fs::copy(file.path(), dir.join(file.file_name()));
    }
    for chown in [None, Some(uid)] {
        // The directory is another user's; then only the files in it are.
        if let Some(uid) = chown {
            std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).unwrap();
        }
        run(&mut command(&["status"])).fails(5);
        assert_eq!(run(&mut command(&["ls"])).code, Some(5));
        let said = run(command(&["unmount", "--force"]).arg(mount.mnt())).fails(5);
        assert!(said.contains("the mount of another user"), "{said}");
    }
    fs::remove_dir_all(&dir).unwrap();
    mount.unmount();
}

#[test]
fn namespaces_of_others_are_not_entered() {
    let Some(_turn) = turn() else { return };
    let helper = Place::new();
    let umount = helper.dir.path().join("umount.fuse.vaultfs");
    symlink(common::VAULTFS, &umount).unwrap();
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--mount", "--map-root-user", "sh", "-c", "echo in; exec sleep 600"]);
    let mut inside = inside.uid(USERS[0]).gid(USERS[0]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(inside.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ran = run(Command::new(&umount).arg("/mnt").args(["-N", &inside.id().to_string()]));
    let _ = inside.kill();
    let _ = inside.wait();
    if line != "in\n" {
        eprintln!("SKIPPED: this machine gives no user namespaces to ordinary users");
        return;
    }
    assert!(ran.fails(32).contains("another user namespace"));
}

/// Runs a script in a mount namespace where neither /run nor /tmp can be written. The project may
/// be below /tmp: the program is bound into the place first.
fn read_only(place: &Place, script: &str) -> Ran {
    let mut command = Command::new("unshare");
    place.isolate(&mut command);
    let whole = format!(
        "set -e; E={}; M={}; D={}; V=$D/vaultfs; touch $V; mount --bind {} $V; \
         mount -t tmpfs -o ro none /run; mount -t tmpfs -o ro none /tmp; {script}",
        place.embedded(),
        place.mnt.display(),
        place.dir.path().display(),
        common::VAULTFS
    );
    run(command.args(["--mount", "sh", "-c", &whole]))
}

#[test]
fn where_nothing_can_be_written_a_place_can_be_named() {
    let Some(_turn) = turn() else { return };
    let place = Place::below("/var/tmp");
    let said = read_only(&place, "$V mount $E $M").fails(1);
    for part in ["/run/vaultfs", "/run/user/0/vaultfs", "/tmp/vaultfs-0", "--runtime-dir", "XDG_RUNTIME_DIR"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let with_variable = "mkdir $D/x; export XDG_RUNTIME_DIR=$D/x; $V mount $E $M; $V status $M; echo 1 > $M/a; \
                         $V ls; unset XDG_RUNTIME_DIR; $V status $M | grep -q '^  vault'; $V unmount $M; test ! -e $D/x/vaultfs";
    let out = read_only(&place, with_variable).ok();
    assert!(out.contains("keeper ") && out.ends_with("a\n"), "{out}");
    let with_option = "mkdir $D/y; $V mount $E --runtime-dir $D/y $M; R=--runtime-dir=$D/y; $V status $R $M; \
                       $V pending $R $M; $V upgrade $R $M; $V ls $R; $V doctor $R > $D/doctor || true; \
                       $V unmount $R $M; test ! -e $D/y/vaultfs";
    let out = read_only(&place, with_option).ok();
    assert!(out.contains("keeper ") && out.ends_with("a\n"), "{out}");
    let by_mount_8 = "ln -s $V $D/mount.vaultfs; $D/mount.vaultfs ${E#--} $M -o runtime_dir=$D/y; \
                      $V status $M; ln -s $V $D/umount.fuse.vaultfs; $D/umount.fuse.vaultfs $M; \
                      test ! -e $D/y/vaultfs";
    let out = read_only(&place, by_mount_8).ok();
    assert!(out.contains("keeper "), "a command finds what a keeper was given: {out}");
    // What was named is used, or nothing is.
    let said =
        run(place.mount_command(&["--runtime-dir", "/proc/no"]).env("XDG_RUNTIME_DIR", place.dir.path()));
    assert!(said.fails(1).contains("/proc/no/vaultfs"));
}
