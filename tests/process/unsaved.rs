//! How a mount ends that has writes the vault does not have. Real mounts of a server that stops
//! answering.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::common::{
    self, Beside, Mount, Place, assert_nothing_left, in_foreground, is_root, run, signal, until,
};

/// `vaultfs serve`, which can be made to stop answering.
struct Server {
    process: Beside,
    url: String,
    key_file: String,
}

impl Server {
    fn start(place: &Place) -> Self {
        let mut command = place.vaultfs(["serve", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(&place.data).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Beside::start(&mut command);
        let mut url = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let key_file = place.data.join("api-key").to_str().unwrap().to_owned();
        Self { process, url: url.trim().to_owned(), key_file }
    }

    fn silence(&self) {
        let pid = self.process.0.id();
        signal(pid as i32, Signal::SIGSTOP);
        // Each thread stops for itself, and until then may answer.
        until("it has stopped", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            tasks.map(|t| fs::read_to_string(t.path().join("stat")).unwrap()).all(|s| s.contains(") T "))
        });
    }

    fn resume(&self) {
        signal(self.process.0.id() as i32, Signal::SIGCONT);
    }

    fn mount_command(&self, place: &Place, more: &[&str]) -> Command {
        let mut command = place.vaultfs(["mount", "--timeout", "1s", "--drain", "1s"]);
        command.args(["--api-url", &self.url, "--api-key-file", &self.key_file]).args(more).arg(&place.mnt);
        command
    }
}

/// A mount with one write that could not be stored; closing the file said so.
fn with_an_unsaved_write(server: &Server, place: Place) -> Mount {
    run(&mut server.mount_command(&place, &[])).ok();
    let mount = Mount::adopt(place);
    spoil(server, &mount);
    mount
}

/// The same in the foreground; what it logs is in `log`.
fn in_foreground_with_an_unsaved_write(
    server: &Server,
    place: Place,
) -> (Beside, BufReader<ChildStderr>, Mount) {
    let log = place.dir.path().join("log");
    let mut command = server.mount_command(&place, &["-f", "--log", log.to_str().unwrap()]);
    let (front, said) = in_foreground(&mut command);
    let mount = Mount::adopt(place);
    spoil(server, &mount);
    (front, said, mount)
}

fn spoil(server: &Server, mount: &Mount) {
    fs::write(mount.path("stored"), "1").unwrap();
    server.silence();
    let mut file = fs::File::create(mount.path("lost")).unwrap();
    file.write_all(b"precious").unwrap();
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
}

#[test]
fn unmount_names_what_is_left_and_keeps_the_mount_until_it_is_stored() {
    let place = Place::new();
    let server = Server::start(&place);
    let mount = with_an_unsaved_write(&server, place);
    let said = run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(7);
    assert!(said.contains("lost: ") && !said.contains("stored: /"), "{said}");
    assert!(!said.contains("precious"));
    assert_eq!(fs::read_to_string(mount.path("lost")).unwrap(), "precious", "kept, and readable");
    let status = run(mount.vaultfs(["status"]).arg(mount.mnt())).prints(1);
    assert!(status.contains("lost: 8 bytes"), "{status}");

    server.resume();
    assert_stored(&server, mount.unmount());
}

/// Another key, which may do no more than that.
fn key_that_may(permissions: &str, place: &Place) -> String {
    let mut add = place.vaultfs(["serve", "--data"]);
    add.arg(&place.data).args(["key", "add", "--permissions", permissions]);
    let key_file = place.dir.path().join("key");
    fs::write(&key_file, run(&mut add).ok()).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    key_file.to_str().unwrap().to_owned()
}

/// Revokes the key that [`key_that_may`] has made.
fn revoke_that_key(place: &Place) {
    let key = |args: &[&str]| run(place.vaultfs(["serve", "--data"]).arg(&place.data).arg("key").args(args));
    let listed = key(&["list"]).ok();
    let made = listed.lines().find(|line| line.ends_with("\tunnamed")).expect("it is listed");
    key(&["revoke", made.split('\t').next().expect("its id")]).ok();
}

#[test]
fn what_the_vault_refuses_to_delete_is_listed_until_it_is_kept() {
    let place = Place::new();
    let mut server = Server::start(&place);
    server.key_file = key_that_may("read,write", &place);
    run(&mut server.mount_command(&place, &[])).ok();
    let mount = Mount::adopt(place);
    let pending = |args: &[&str]| run(mount.vaultfs(["pending"]).arg(mount.mnt()).args(args));
    // A backup by its name: rename(2) answers at once, and the vault is asked to delete a little
    // later.
    mount.sh("echo value > f; mv f f.save");
    pending(&[]).ok();
    until("the deletion is refused", || pending(&[]).code == Some(7));
    let listed: serde_json::Value = serde_json::from_str(&pending(&["--json"]).out).unwrap();
    assert_eq!((listed[0]["name"].as_str(), listed[0]["undeleted"].as_bool()), (Some("f"), Some(true)));
    let said = pending(&["--retry"]).code;
    assert_eq!(said, Some(7), "refused again");
    let said = pending(&[]).out;
    assert!(said.starts_with("undeleted ") && said.contains(" f  it should be gone, but"), "{said}");
    let status = run(mount.vaultfs(["status"]).arg(mount.mnt())).prints(1);
    assert!(status.contains("NOT WELL: an object that should be gone was not deleted"), "{status}");
    assert!(mount.sh("getfattr --only-values -n user.vault.error f").starts_with("it should be gone"));
    pending(&["--discard", "f"]).ok();
    assert_eq!(mount.sh("cat f f.save"), "value\nvalue\n");
}

#[test]
fn a_deletion_that_is_held_back_is_made_or_named_at_unmount() {
    let mut place = Place::new();
    let mut server = Server::start(&place);
    for args in [&["unmount"][..], &["unmount", "--force"]] {
        run(&mut server.mount_command(&place, &[])).ok();
        let mount = Mount::adopt(place);
        // Within the time that it is held back.
        mount.sh("echo value > f; mv f f.save");
        run(mount.vaultfs(args).arg(mount.mnt())).ok();
        place = mount.unmount_done();
        run(&mut server.mount_command(&place, &[])).ok();
        let mount = Mount::adopt(place);
        assert_eq!(mount.sh("ls; rm f.save"), "f.save\n", "{args:?}");
        place = mount.unmount();
    }
    server.key_file = key_that_may("read,write", &place);
    run(&mut server.mount_command(&place, &[])).ok();
    let mount = Mount::adopt(place);
    mount.sh("echo value > f; mv f f.save");
    for args in [&["unmount"][..], &["unmount", "--force"]] {
        let said = run(mount.vaultfs(args).arg(mount.mnt())).fails(7);
        assert!(said.contains("\n  f: it should be gone, but was not deleted: "), "{said}");
    }
    assert_nothing_left(mount.mnt());
    assert!(mount.log().contains("not stored when the mount ended: it should be gone"), "{}", mount.log());
}

/// Whether a thread of the process waits in the kernel, so that it cannot be killed.
fn is_stuck(pid: i32, thread: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default()).any(|stat| {
        let is_it = stat.contains(&format!("({thread})"));
        is_it && stat.contains(") D ")
    })
}

#[test]
fn a_worker_that_is_killed_while_it_waits_to_tell_the_kernel_something_is_succeeded_soon() {
    let place = Place::new();
    let mut server = Server::start(&place);
    let put = format!(
        "printf cold | {} put --api-url {} --api-key-file {} -- cold",
        common::VAULTFS,
        server.url,
        server.key_file
    );
    let mut shell = Command::new("sh");
    place.isolate(&mut shell);
    run(shell.args(["-c", &put])).ok();
    server.key_file = key_that_may("read,write", &place);
    let mut command = place.vaultfs(["mount", "--timeout", "60s", "--drain", "1s", "--refresh", "10m"]);
    command.args(["--api-url", &server.url, "--api-key-file", &server.key_file]).arg(&place.mnt);
    run(&mut command).ok();
    let mount = Mount::adopt(place);
    // A key known to be unable to write is refused at open(2): this one is exchanged afterwards.
    let mut file = fs::File::create(mount.path("refused")).unwrap();
    file.write_all(b"1").unwrap();
    revoke_that_key(mount.place());
    key_that_may("read", mount.place());
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EACCES));
    drop(file);

    // A lookup that is out holds the directory, and a notification about a name in it waits for
    // that.
    server.silence();
    let requests = || mount.status()["fs"]["vault"]["requests"].as_u64().unwrap();
    let (before, cold) = (requests(), mount.path("cold"));
    let reader = std::thread::spawn(move || fs::read(cold));
    until("the lookup is out", || requests() > before);
    let (_, worker) = mount.pids();
    run(mount.vaultfs(["pending"]).arg(mount.mnt()).args(["--discard", "refused"])).ok();
    until("the notification waits", || is_stuck(worker, "notify"));

    let killed = Instant::now();
    signal(worker, Signal::SIGKILL);
    until("another one has taken over", || {
        let status = run(mount.vaultfs(["status", "--json"]).arg(mount.mnt()));
        let status: serde_json::Value = serde_json::from_str(&status.out).unwrap_or_default();
        status[0]["worker_pid"].as_i64().is_some_and(|pid| pid != i64::from(worker))
    });
    assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    assert!(!reader.is_finished(), "the lookup goes on");
    server.resume();
    assert_eq!(reader.join().unwrap().unwrap(), b"cold");
    assert_eq!(mount.status()["last_end"], "it was killed by signal 9");
    until("nothing is left of it", || !std::path::Path::new(&format!("/proc/{worker}")).exists());
    mount.unmount();
}

#[test]
fn force_gives_up_aloud() {
    let place = Place::new();
    let server = Server::start(&place);
    let mount = with_an_unsaved_write(&server, place);
    let said = run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).fails(7);
    assert!(said.contains("lost: ") && said.contains("given up"), "{said}");
    assert_nothing_left(mount.mnt());
    assert!(mount.log().contains("lost"));
    server.resume();
}

#[test]
fn what_is_given_up_is_given_its_true_reason() {
    let place = Place::new();
    let server = Server::start(&place);
    run(&mut server.mount_command(&place, &[])).ok();
    let mount = Mount::adopt(place);
    drop(server);
    let mut file = fs::File::create(mount.path("lost")).unwrap();
    file.write_all(b"precious").unwrap();
    file.sync_all().unwrap_err();
    let listed = run(mount.vaultfs(["pending", "--json"]).arg(mount.mnt())).out;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let reason = listed[0]["error"].as_str().unwrap();
    // Open: the drain before the end leaves it, and the last try of two seconds fails as well.
    let said = run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).fails(7);
    assert!(said.contains(&format!("lost: {reason}\n")), "{reason}\n{said}");
    assert_nothing_left(mount.mnt());
}

#[test]
fn what_is_still_being_written_is_stored_at_a_forced_end() {
    for by_force in [true, false] {
        let place = Place::new();
        let server = Server::start(&place);
        run(&mut server.mount_command(&place, &[])).ok();
        let mount = Mount::adopt(place);
        let mut file = fs::File::create(mount.path("lost")).unwrap();
        file.write_all(b"precious").unwrap();
        if by_force {
            run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).ok();
        } else {
            signal(mount.pids().0, Signal::SIGTERM);
        }
        assert_stored(&server, mount.unmount_done());
    }
}

#[test]
fn a_foreground_mount_that_ends_with_unsaved_writes_exits_7() {
    for end in ["SIGTERM", "umount"] {
        if end == "umount" && !is_root() {
            eprintln!("SKIPPED: only root can run umount");
            continue;
        }
        let place = Place::new();
        let server = Server::start(&place);
        let (mut front, _said, mount) = in_foreground_with_an_unsaved_write(&server, place);
        match end {
            "SIGTERM" => signal(front.0.id() as i32, Signal::SIGTERM),
            _ => {
                run(Command::new("umount").arg(mount.mnt())).ok();
            }
        }
        assert_eq!(front.ends().code(), Some(7), "{end}");
        assert_nothing_left(mount.mnt());
        let log = fs::read_to_string(mount.place().dir.path().join("log")).unwrap();
        assert!(log.contains("name=\"lost\"") && !log.contains("precious"), "{log}");
        server.resume();
    }
}

/// What a frozen worker has not stored is its successor's: stored where the vault is back, named
/// where it is not.
#[test]
fn force_on_a_frozen_worker_stores_or_names_what_is_unsaved() {
    for vault_is_back in [true, false] {
        let place = Place::new();
        let server = Server::start(&place);
        let mount = with_an_unsaved_write(&server, place);
        let (_, worker) = mount.pids();
        signal(worker, Signal::SIGSTOP);
        if vault_is_back {
            server.resume();
        }
        let said = run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt()));
        assert!(said.err.contains("the worker does not answer: killing it"), "{}", said.err);
        if vault_is_back {
            said.ok();
            assert_stored(&server, mount.unmount_done());
            continue;
        }
        let said = said.fails(7);
        assert!(said.contains("\n  lost: ") && said.contains("given up"), "{said}");
        assert_nothing_left(mount.mnt());
        assert!(is_named(&mount.log(), "the vault at "), "{}", mount.log());
        server.resume();
    }
}

#[test]
fn sigterm_on_a_frozen_worker_stores_or_names_what_is_unsaved() {
    for vault_is_back in [true, false] {
        let place = Place::new();
        let server = Server::start(&place);
        let (mut front, _said, mount) = in_foreground_with_an_unsaved_write(&server, place);
        let (_, worker) = mount.pids();
        signal(worker, Signal::SIGSTOP);
        if vault_is_back {
            server.resume();
        }
        signal(front.0.id() as i32, Signal::SIGTERM);
        let code = front.ends().code();
        let log = fs::read_to_string(mount.place().dir.path().join("log")).unwrap();
        assert_eq!(code, Some(if vault_is_back { 0 } else { 7 }), "{log}");
        assert_eq!(is_named(&log, "the vault at "), !vault_is_back, "{log}");
        if vault_is_back {
            assert_stored(&server, mount.unmount_done());
        } else {
            assert_nothing_left(mount.mnt());
            server.resume();
        }
    }
}

/// Whether the log says what was lost, and why.
fn is_named(log: &str, why: &str) -> bool {
    let parts = ["not stored when the mount ended: ", why, "name=\"lost\""];
    log.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// The next mount shows what was written to the one before.
fn assert_stored(server: &Server, place: Place) {
    run(&mut server.mount_command(&place, &[])).ok();
    let mount = Mount::adopt(place);
    assert_eq!(fs::read_to_string(mount.path("lost")).unwrap(), "precious");
    assert_eq!(mount.versions("lost"), [1]);
}

/// Nobody is left to ask: the keeper reads what its workers wrote down.
#[test]
fn what_is_unsaved_is_named_also_when_no_worker_comes_up_any_more() {
    let place = Place::new();
    let (point, log) = (place.dir.path().join("point"), place.dir.path().join("log"));
    let mut command = place.mount_command(&["-f", "--log", log.to_str().unwrap()]);
    command.env("VAULTFS_TEST_CRASH", &point);
    let (mut front, _said) = in_foreground(&mut command);
    let mount = Mount::adopt(place);
    let mut file = fs::File::create(mount.path("lost")).unwrap();
    file.write_all(b"precious").unwrap();
    let (_, worker) = mount.pids();
    fs::write(&point, "always receive-state").unwrap();
    signal(worker, Signal::SIGSTOP);
    signal(front.0.id() as i32, Signal::SIGTERM);
    assert_eq!(front.ends().code(), Some(7));
    assert_nothing_left(mount.mnt());
    let log = fs::read_to_string(&log).unwrap();
    assert!(is_named(&log, "the file is still open"), "{log}");
}

#[test]
fn a_conflict_is_kept_and_decided_by_a_person() {
    let mount = Mount::with(&["--strict"]);
    let pending = |args: &[&str]| {
        let mut command = mount.vaultfs(["pending"]);
        run(command.arg(mount.mnt()).args(args))
    };
    let elsewhere = |value: &str| {
        let put = format!("printf %s {value} | {} put '{}' -- f", common::VAULTFS, mount.embedded());
        run(Command::new("sh").args(["-c", &put])).ok();
    };
    mount.sh("echo base > f");
    // Opened before the change elsewhere, stored after it.
    let conflicting = |text: &str, value: &str| {
        let mut file = fs::OpenOptions::new().append(true).open(mount.path("f")).unwrap();
        elsewhere(value);
        file.write_all(text.as_bytes()).unwrap();
        let told = file.sync_all().unwrap_err();
        assert_eq!(told.raw_os_error(), Some(libc::ESTALE));
    };
    conflicting("mine\n", "theirs");
    assert_eq!(
        fs::read_to_string(mount.path("f")).unwrap(),
        "base\nmine\n",
        "what was written stays readable"
    );
    let listed: serde_json::Value = serde_json::from_str(&{
        let ran = pending(&["--json"]);
        assert_eq!(ran.code, Some(7));
        ran.out
    })
    .unwrap();
    assert_eq!((listed[0]["name"].as_str(), listed[0]["conflict"].as_bool()), (Some("f"), Some(true)));
    assert_eq!(pending(&["--save", "f"]).ok(), "base\nmine\n");
    pending(&["--save", "g"]).fails(5);

    pending(&["--retry"]).ok();
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "base\nmine\n");
    assert_eq!(fs::read_to_string(mount.path(".versions/f/2")).unwrap(), "theirs");
    assert_eq!(mount.versions("f"), [1, 2, 3]);

    conflicting("again\n", "theirs-again");
    pending(&["--discard", "f"]).ok();
    common::until("it shows what the vault has", || {
        fs::read_to_string(mount.path("f")).is_ok_and(|text| text == "theirs-again")
    });
    pending(&["--discard", "f"]).fails(5);
}

#[test]
fn a_terminal_sees_how_a_drain_goes_on() {
    let place = Place::new();
    let server = Server::start(&place);
    run(&mut server.mount_command(&place, &["--drain=3s"])).ok();
    let mount = Mount::adopt(place);
    spoil(&server, &mount);
    let line = format!("{} unmount {}", common::VAULTFS, mount.mnt().display());
    let mut terminal = Command::new("script");
    mount.place().isolate(&mut terminal);
    let said = run(terminal.args(["-qec", &line, "/dev/null"]));
    assert_eq!(said.code, Some(7), "{said:?}");
    let (_, shown) = said.out.split_once("\r\u{1b}[Kstoring: 1 left, for at most ").unwrap();
    let seconds: u32 = shown.split(' ').next().unwrap().parse().unwrap();
    assert!((1..=3).contains(&seconds), "of --drain, and no more: {said:?}");
    // Taken away before the sentence that stays.
    let (_, rest) = said.out.rsplit_once("\r\u{1b}[K").unwrap();
    assert!(rest.contains("lost: "), "{said:?}");
    server.resume();
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).ok();
    mount.unmount_done();
}

#[test]
fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let place = Place::new();
    let server = Server::start(&place);
    let (mut front, said) = in_foreground(&mut server.mount_command(&place, &["-f", "-vv"]));
    let mount = Mount::adopt(place);
    let (_, worker) = mount.pids();
    drop(said);
    spoil(&server, &mount);
    assert_eq!(fs::read_to_string(mount.path("lost")).unwrap(), "precious");
    assert_eq!(mount.pids().1, worker, "it goes on");
    server.resume();
    let place = mount.unmount();
    assert_eq!(front.ends().code(), Some(0));
    let embedded = place.embedded();
    assert_eq!(run(place.vaultfs(["get", &embedded, "lost"]).env_remove("XDG_DATA_HOME")).ok(), "precious");
}

#[test]
fn a_log_whose_reader_sleeps_stops_nothing() {
    let (mut front, said) = {
        let place = Place::new();
        let (front, said) = in_foreground(&mut place.mount_command(&["-f", "-vv"]));
        nix::fcntl::fcntl(said.get_ref(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let mount = Mount::adopt(place);
        for n in 0..200 {
            fs::write(mount.path(format!("f{n}")), "value").unwrap();
        }
        assert_eq!(fs::read_to_string(mount.path("f7")).unwrap(), "value");
        mount.unmount();
        (front, said)
    };
    let full = nix::poll::PollFd::new(said.get_ref().as_fd(), nix::poll::PollFlags::POLLIN);
    assert_eq!(nix::poll::poll(&mut [full], nix::poll::PollTimeout::ZERO), Ok(1), "it was not read");
    assert_eq!(front.ends().code(), Some(0));
}

#[test]
fn what_cannot_be_said_changes_no_exit_code() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let place = Place::new();
    let server = Server::start(&place);
    server.silence();
    // Says that the vault does not answer yet.
    let code = |command: &mut Command| command.stdin(Stdio::null()).stderr(full()).status().unwrap().code();
    assert_eq!(code(&mut server.mount_command(&place, &["--lazy"])), Some(0));
    server.resume();
    let mount = Mount::adopt(place);
    spoil(&server, &mount);
    assert_eq!(code(mount.vaultfs(["unmount"]).arg(mount.mnt())), Some(7));
    assert_eq!(code(mount.vaultfs(["status"]).arg("/nowhere")), Some(5));

    for args in [&["status"] as &[&str], &["status", "--json"], &["pending"], &["pending", "--save", "lost"]]
    {
        let said = mount.vaultfs(args).arg(mount.mnt()).stdout(full()).output().unwrap();
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.starts_with("vaultfs: cannot write to standard output: "), "{args:?}: {error}");
    }
    for args in [&["--help"] as &[&str], &["mount", "--help"], &["completion", "bash"]] {
        assert_eq!(mount.vaultfs(args).stdout(full()).status().unwrap().code(), Some(1), "{args:?}");
    }
    // A reader that had enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(mount.vaultfs(["status"]).arg(mount.mnt()).stdout(writer).status().unwrap().code(), Some(1));
    server.resume();
}
