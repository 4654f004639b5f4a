//! `vaultfs mount` from outside: what it takes, what it refuses, how mounts end. Real mounts.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::common::{
    self, Beside, Mount, Place, assert_nothing_left, in_foreground, is_mounted, is_root, mount_lines,
    processes_of, run, signal, until,
};

#[test]
fn mounting_says_nothing_and_unmounting_leaves_nothing() {
    let place = Mount::start().unmount();
    // The first one says that it made a vault.
    let mounted = run(&mut place.mount_command(&[]));
    assert_eq!((mounted.code, mounted.out.as_str(), mounted.err.as_str()), (Some(0), "", ""));
    let mount = Mount::adopt(place);
    fs::write(mount.path("a"), "1").unwrap();
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "1");
    let line = mount_lines(mount.mnt()).pop().unwrap();
    assert!(line.contains("nosuid,nodev") && line.contains("fuse.vaultfs embedded=/"), "{line}");
    let place = mount.unmount();

    let mount = Mount::at(place, &[]);
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "1", "what was stored is there again");
}

#[test]
fn the_daemons_stand_on_their_own() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    for (pid, name) in [(keeper, "vaultfs-keeper"), (worker, "vaultfs-worker")] {
        let proc = |file: &str| format!("/proc/{pid}/{file}");
        assert_eq!(fs::read_to_string(proc("comm")).unwrap().trim(), name);
        assert_eq!(fs::read_link(proc("cwd")).unwrap(), Path::new("/"));
        for fd in 0..3 {
            assert_eq!(fs::read_link(proc(&format!("fd/{fd}"))).unwrap(), Path::new("/dev/null"));
        }
        let stat = fs::read_to_string(proc("stat")).unwrap();
        let session: i32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
        assert_eq!(session, keeper, "a session of their own");
    }
}

#[test]
fn descriptors_of_the_shell_are_not_kept() {
    let place = Place::new();
    let held = place.dir.path().join("held");
    fs::write(&held, "").unwrap();
    let line = format!("exec 7<'{}'; exec \"$@\"", held.display());
    let mut command = Command::new("sh");
    place.isolate(&mut command);
    command.args(["-c", &line, "sh", common::VAULTFS, "mount", &place.embedded()]).arg(&place.mnt);
    run(&mut command).ok();
    let mount = Mount::adopt(place);
    let (keeper, worker) = mount.pids();
    for pid in [keeper, worker] {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            assert_ne!(fs::read_link(entry.path()).ok().as_deref(), Some(held.as_path()));
        }
    }
}

#[test]
fn mount_points_that_cannot_be_used() {
    let place = Place::new();
    let refused = |path: &Path, more: &[&str]| {
        let mut command = place.vaultfs(["mount", &place.embedded()]);
        run(command.args(more).arg(path)).fails(1)
    };
    let missing = place.dir.path().join("missing");
    assert!(refused(&missing, &[]).contains("mkdir"), "it says what to do");
    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refused(&file, &[]).contains("not a directory"));
    fs::write(place.mnt.join("in the way"), "").unwrap();
    assert!(refused(&place.mnt, &[]).contains("-o nonempty"));
    assert_nothing_left(&place.mnt);

    let mount = Mount::at(place, &["-o", "nonempty,noexec"]);
    assert!(!mount.path("in the way").exists());
    assert!(mount_lines(mount.mnt())[0].contains("noexec"));
}

#[test]
fn a_directory_is_mounted_on_through_a_link_and_with_odd_characters() {
    let mut place = Place::new();
    let odd = place.dir.path().join("a b\\c\n√");
    fs::create_dir(&odd).unwrap();
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(&odd, &link).unwrap();
    place.mnt = link;
    run(&mut place.mount_command(&[])).ok();
    fs::write(odd.join("x"), "1").unwrap();
    run(place.vaultfs(["unmount"]).arg(&place.mnt)).ok();
    assert!(!odd.join("x").exists());
    until("its processes are gone", || processes_of(&odd).is_empty());
}

#[test]
fn a_live_mount_is_left_alone() {
    let mount = Mount::start();
    fs::write(mount.path("a"), "1").unwrap();
    let said = run(mount.vaultfs(["mount", "--embedded"]).arg(mount.mnt())).fails(1);
    assert!(said.contains("vaultfs unmount"), "{said}");
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "1");
    assert_eq!(mount_lines(mount.mnt()).len(), 1);
}

#[test]
fn a_hanging_mount_is_left_alone() {
    let mount = Mount::start();
    let (_, worker) = mount.pids();
    signal(worker, Signal::SIGSTOP);
    let said = run(mount.vaultfs(["mount", "--embedded"]).arg(mount.mnt()));
    signal(worker, Signal::SIGCONT);
    assert!(said.fails(1).contains("hangs"));
    fs::write(mount.path("a"), "1").unwrap();
}

#[test]
fn a_foreign_mount_is_left_alone() {
    crate::support::only_root!("only root can make a foreign mount");
    let place = Place::new();
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&place.mnt)).ok();
    let said = run(&mut place.mount_command(&[]));
    let unmount = run(place.vaultfs(["unmount"]).arg(&place.mnt));
    let lines = mount_lines(&place.mnt);
    run(Command::new("umount").arg(&place.mnt)).ok();
    assert!(said.fails(1).contains("tmpfs"));
    assert!(unmount.fails(5).contains("tmpfs"));
    assert_eq!(lines.len(), 1);
}

#[test]
fn a_dead_mount_is_replaced() {
    let mount = Mount::start();
    fs::write(mount.path("a"), "1").unwrap();
    let (keeper, worker) = mount.pids();
    // The keeper first, and the worker before it can clean up.
    signal(worker, Signal::SIGSTOP);
    signal(keeper, Signal::SIGKILL);
    signal(worker, Signal::SIGKILL);
    until("the mount is dead", || {
        fs::read_dir(mount.mnt()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    let status = run(mount.vaultfs(["status"]).arg(mount.mnt())).code;
    assert_eq!(status, Some(1), "status says that something is wrong");
    let doctor = run(&mut mount.vaultfs(["doctor"])).out;
    let dead = doctor.lines().skip_while(|line| !line.contains(mount.mnt().to_str().unwrap())).take(2);
    let dead = dead.collect::<Vec<_>>().join("\n");
    assert!(dead.contains("PROBLEM") && dead.contains("vaultfs unmount"), "{doctor}");
    let embedded = format!("--embedded={}", mount.mnt().with_file_name("data").display());
    run(mount.vaultfs(["mount", &embedded]).arg(mount.mnt())).ok();
    assert_eq!(mount_lines(mount.mnt()).len(), 1);
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "1");
}

#[test]
fn a_dead_mount_can_be_unmounted() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    signal(worker, Signal::SIGSTOP);
    signal(keeper, Signal::SIGKILL);
    signal(worker, Signal::SIGKILL);
    until("both are gone", || processes_of(mount.mnt()).is_empty());
    assert!(run(mount.vaultfs(["unmount"]).arg(mount.mnt())).err_of_success().contains("dead"));
    assert!(!is_mounted(mount.mnt()));
}

/// Who goes on writing must not find the plain directory below.
#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn when_the_keeper_dies_the_mount_is_dead_until_it_is_mounted_again_or_unmounted() {
    for next in ["mount", "unmount"] {
        let mut mount = Mount::start();
        let mut unfinished = fs::File::create(mount.path("unfinished")).unwrap();
        unfinished.write_all(b"half").unwrap();
        let (keeper, _) = mount.pids();
        let path = mount.path("a");
        let service = std::thread::spawn(move || {
            let mut saved = 0;
            loop {
                let save = || {
                    let mut file = fs::File::create(&path)?;
                    file.write_all(format!("{}", saved + 1).as_bytes())?;
                    file.sync_all()
                };
                match save() {
                    Ok(()) => saved += 1,
                    Err(e) => return (saved, e.raw_os_error()),
                }
            }
        });
        until("a save was made", || fs::read(mount.path("a")).is_ok_and(|text| !text.is_empty()));
        signal(keeper, Signal::SIGKILL);
        let (saved, refused) = service.join().unwrap();
        // A request that was out when the worker ended is aborted; its vault, which is in it here,
        // ends a little before it.
        assert!(matches!(refused, Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)), "{refused:?}");
        until("its processes are gone", || processes_of(mount.mnt()).is_empty());
        assert!(is_mounted(mount.mnt()));
        let refused = fs::write(mount.path("b"), "secret").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTCONN));
        let status = run(mount.vaultfs(["status"]).arg(mount.mnt()));
        assert!(status.code == Some(1) && status.out.contains("DEAD"), "{status:?}");
        drop(unfinished);
        let mount = match next {
            "mount" => {
                let again = std::sync::atomic::AtomicBool::new(false);
                std::thread::scope(|scope| {
                    // Programs do not wait until it is there.
                    scope.spawn(|| {
                        while !again.load(std::sync::atomic::Ordering::SeqCst) {
                            let _ = fs::write(mount.path("c"), "secret");
                        }
                    });
                    let mounted = run(&mut mount.place().mount_command(&[]));
                    again.store(true, std::sync::atomic::Ordering::SeqCst);
                    // An ordinary user's is removed first.
                    assert!(!is_root() || mounted.code == Some(0), "{mounted:?}");
                });
                mount.watch_again(common::TEST_TIME);
                assert_eq!(mount_lines(mount.mnt()).len(), 1);
                mount
            }
            _ => {
                run(mount.vaultfs(["unmount"]).arg(mount.mnt())).ok();
                let place = mount.unmount_done();
                assert_eq!(fs::read_dir(&place.mnt).unwrap().count(), 0, "nothing was written below it");
                Mount::at(place, &[])
            }
        };
        let stored: u64 = fs::read_to_string(mount.path("a")).unwrap().parse().unwrap();
        assert!(stored == saved || stored == saved + 1, "{saved} was acknowledged, {stored} is stored");
        assert_eq!(mount.versions("a").len() as u64, stored);
        assert_eq!(mount.versions("unfinished"), [0; 0], "only what was closed is stored");
        let place = mount.unmount();
        assert_eq!(fs::read_dir(&place.mnt).unwrap().count(), 0, "nothing was written below it");
    }
}

#[test]
fn sigterm_ends_a_mount_and_detaches_it_from_who_uses_it() {
    let mount = Mount::start();
    fs::write(mount.path("a"), "1").unwrap();
    let (keeper, worker) = mount.pids();
    let file = fs::File::open(mount.path("a")).unwrap();
    // A service manager signals every process of a service: the worker leaves it to the keeper.
    signal(worker, Signal::SIGTERM);
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "1");
    signal(keeper, Signal::SIGTERM);
    assert_nothing_left(mount.mnt());
    drop(file);
}

#[test]
fn sighup_does_not_end_it() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    signal(keeper, Signal::SIGHUP);
    signal(worker, Signal::SIGHUP);
    until("the worker heard it", || mount.log().contains("the key is the same"));
    fs::write(mount.path("a"), "1").unwrap();
}

#[test]
fn an_umount_from_outside_ends_the_processes() {
    crate::support::only_root!("only root can run umount");
    let mount = Mount::start();
    run(Command::new("umount").arg(mount.mnt())).ok();
    assert_nothing_left(mount.mnt());
}

#[test]
fn what_covers_our_mount_is_not_unmounted() {
    crate::support::only_root!("only root can make a foreign mount");
    let mount = Mount::start();
    let (keeper, _) = mount.pids();
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(mount.mnt())).ok();
    signal(keeper, Signal::SIGTERM);
    until("its processes are gone", || processes_of(mount.mnt()).is_empty());
    let lines = mount_lines(mount.mnt());
    run(Command::new("umount").arg(mount.mnt())).ok();
    run(Command::new("umount").arg(mount.mnt())).ok();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("tmpfs"));
}

#[test]
fn in_the_foreground_it_stays_and_passes_signals_and_codes_on() {
    let place = Place::new();
    let (mut front, mut said) = in_foreground(&mut place.mount_command(&["-f"]));
    let mount = Mount::adopt(place);
    let pid = front.0.id() as i32;
    signal(pid, Signal::SIGINT);
    assert_eq!(front.ends().code(), Some(0));
    let mut log = String::new();
    said.read_to_string(&mut log).unwrap();
    assert!(log.contains("asked to stop"), "{log}");
    assert_nothing_left(mount.mnt());
}

#[test]
fn when_the_foreground_command_is_killed_the_mount_goes_too() {
    let place = Place::new();
    let (mut front, _said) = in_foreground(&mut place.mount_command(&["-f"]));
    let mount = Mount::adopt(place);
    front.0.kill().unwrap();
    front.ends();
    assert_nothing_left(mount.mnt());
}

#[test]
fn usage_errors() {
    let place = Place::new();
    let fails = |args: &[&str]| run(place.vaultfs(["mount"]).args(args).arg(&place.mnt)).fails(2);
    assert!(fails(&["--embedded", "--api-url", "http://127.0.0.1:1"]).contains("--api-url"));
    assert!(fails(&["--embedded", "-o", "ro,sulky"]).contains("sulky"));
    assert!(fails(&["--embedded", "-o", "remount"]).contains("unmount it"));
    assert!(fails(&["--embedded", "--file-mode", "4755"]).contains("--file-mode"));
    assert!(fails(&["--embedded", "--scratch", "[a"]).contains("--scratch"));
    assert!(fails(&["--embedded", "--timeout", "xx"]).contains("10s"));
    assert!(fails(&["--embedded", "--uid", "no-such-user"]).contains("a name or a number"));
    assert!(fails(&["--embedded", "--cache-size", "0"]).contains("--cache-size"));
    assert!(fails(&["--embedded", "--max-size", "2GiB"]).contains("--max-size"));
    assert!(fails(&["--embedded", "--prefix", "/"]).contains("--prefix"));
    let file = run(place.vaultfs(["mount", "--embedded=/etc/passwd"]).arg(&place.mnt)).fails(1);
    assert!(file.contains("/etc/passwd is not a directory"), "{file}");
    for typo in ["worke", "keepe", "probes"] {
        let said = run(&mut place.vaultfs([typo])).fails(2);
        assert!(said.contains("unrecognized") && !said.contains("similar"), "{said}");
    }
    let inside = format!("--embedded={}", place.mnt.join("data").display());
    assert!(fails(&[&inside]).contains("hidden by the mount"));
    assert_nothing_left(&place.mnt);
}

#[test]
fn a_log_file_is_the_owners_only_and_never_on_the_mount() {
    let place = Place::new();
    let on_mount = place.mnt.join("log");
    let on_mount = on_mount.to_str().unwrap();
    assert!(run(&mut place.mount_command(&["--log", on_mount])).fails(1).contains("on the mount"));
    let log = place.dir.path().join("log");
    let mount = Mount::at(place, &["--log", log.to_str().unwrap(), "-vv"]);
    fs::write(mount.path("a"), "1").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&log).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(fs::read_to_string(&log).unwrap().contains("serving"));
}

#[test]
fn no_vault_no_mount() {
    let place = Place::new();
    let mount = |url: &str, key: &str| {
        let mut command = place.vaultfs(["mount", "--api-url", url, "--timeout", "3s"]);
        let start = Instant::now();
        let ran = run(command.arg(&place.mnt).env("WORKOS_API_KEY", key));
        assert!(start.elapsed() < Duration::from_secs(20), "at once, took {:?}", start.elapsed());
        ran
    };
    // Reserved, and nothing listens there.
    assert!(!mount("http://127.0.0.1:1", "sk_test_x").fails(4).is_empty());
    let url = answering("401 Unauthorized", r#"{"message":"Unauthorized"}"#);
    assert!(!mount(&url, "sk_test_wrong").fails(3).contains("sk_test_wrong"));
    let url = answering("200 OK", "<html>not a vault</html>");
    mount(&url, "sk_test_x").fails(4);
    let no_key = run(place.vaultfs(["mount", "--api-url", &url]).arg(&place.mnt));
    assert!(no_key.fails(3).contains("WORKOS_API_KEY"));
    assert_nothing_left(&place.mnt);
}

#[test]
fn an_interrupted_mount_leaves_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let place = Place::new();
    for options in [&[][..], &["-f"]] {
        let mut command = place.vaultfs(["mount", "--api-url", &url, "--timeout", "60s"]);
        command.args(options).arg(&place.mnt).env("WORKOS_API_KEY", "sk_test_x");
        let mut front = Beside::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        // The worker has connected, and waits for an answer that never comes.
        let asked = silent.accept().unwrap();
        signal(front.0.id() as i32, Signal::SIGTERM);
        assert_eq!(front.ends().code(), None, "ended by the signal");
        assert_nothing_left(&place.mnt);
        drop(asked);
    }
}

#[test]
fn other_users_come_in_as_far_as_modes_let_them() {
    crate::support::only_root!("only root can become another user");
    let place = Place::new();
    common::open_to_all(place.dir.path());
    let mount = Mount::at(place, &["--allow-other", "--file-mode", "0644", "--dir-mode", "0755"]);
    assert!(mount_lines(mount.mnt())[0].contains("default_permissions,allow_other"));
    fs::write(mount.path("open"), "1").unwrap();
    fs::write(mount.path("closed"), "2").unwrap();
    let mode = |mode| <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode);
    fs::set_permissions(mount.path("open"), mode(0o644)).unwrap();
    fs::set_permissions(mount.path("closed"), mode(0o600)).unwrap();
    let as_nobody = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script, "sh"]);
        run(command.arg(mount.mnt()).current_dir("/"))
    };
    assert_eq!(as_nobody("cat \"$1/open\"").ok(), "1");
    assert_ne!(as_nobody("cat \"$1/closed\"").code, Some(0));
    assert_ne!(as_nobody("echo 3 > \"$1/open\"").code, Some(0));
    assert_ne!(as_nobody("echo 3 > \"$1/new\"").code, Some(0));
    assert_ne!(as_nobody("rm -f \"$1/open\"").code, Some(0));
    assert_eq!(fs::read_to_string(mount.path("open")).unwrap(), "1");
}

/// An HTTP server that answers everything alike, for as long as the test runs.
fn answering(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n");
            let _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

trait Success {
    fn err_of_success(self) -> String;
}

impl Success for common::Ran {
    /// Standard error of a command that must have succeeded.
    #[track_caller]
    fn err_of_success(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.err
    }
}
