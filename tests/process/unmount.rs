//! `vaultfs unmount` and `vaultfs status` on real mounts.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::common::{self, Beside, Mount, assert_nothing_left, is_mounted, run, signal, until};

#[test]
fn what_is_not_mounted() {
    let mount = Mount::start();
    let beside = mount.mnt().with_file_name("data");
    assert!(run(mount.vaultfs(["unmount"]).arg(&beside)).fails(5).contains("nothing is mounted"));
    assert!(run(&mut mount.vaultfs(["unmount", "/proc"])).fails(5).contains("not a vaultfs mount"));
    run(&mut mount.vaultfs(["status", "/proc"])).fails(5);
    run(&mut mount.vaultfs(["unmount", "/no/such/place"])).fails(5);
}

/// A shell that uses the mount in some way; it says "ready" when it does.
fn user(mnt: &Path, script: &str) -> Beside {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{script}; echo ready; exec sleep 60 <&-")])
        .current_dir("/")
        .arg("sh")
        .arg(mnt);
    let mut shell = Beside::start(command.stdout(Stdio::piped()).stdin(Stdio::null()));
    let mut line = String::new();
    let out = shell.0.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    shell
}

#[test]
fn who_uses_it_is_named_and_it_stays() {
    let mount = Mount::start();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "1").unwrap();
    for script in ["cd \"$1/d\"", "exec 3< \"$1/d/f\"", "cd \"$1\""] {
        let shell = user(mount.mnt(), script);
        let said = run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(1);
        assert!(said.contains(&format!("{} (", shell.0.id())), "{script}: {said}");
        assert_eq!(fs::read_to_string(mount.path("d/f")).unwrap(), "1");
    }
    mount.unmount();
}

#[test]
fn a_shell_inside_it_is_told_to_leave_and_the_command_does_not_count() {
    let mount = Mount::start();
    fs::write(mount.path("f"), "1").unwrap();
    let inside = format!("{} unmount . 3<f; echo $? $$", common::VAULTFS);
    let ran = mount.script("sh", &inside);
    let (code, shell) = ran.out.trim().split_once(' ').unwrap();
    assert_eq!(code, "1");
    assert!(ran.err.contains(&format!("in use by {shell} (sh): cd out of it")), "{}", ran.err);

    let mut unmount = mount.vaultfs(["unmount", "."]);
    run(unmount.current_dir(mount.mnt())).ok();
    assert_nothing_left(mount.mnt());
}

#[test]
fn a_mapped_file_keeps_it_busy() {
    let mount = Mount::start();
    fs::write(mount.path("f"), "1").unwrap();
    let file = fs::File::open(mount.path("f")).unwrap();
    let one = std::num::NonZeroUsize::new(1).unwrap();
    let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a fresh mapping, unmapped below, never dereferenced.
    let mapping = unsafe {
        libc::mmap(std::ptr::null_mut(), one.get(), read, shared, std::os::fd::AsRawFd::as_raw_fd(&file), 0)
    };
    assert_ne!(mapping, libc::MAP_FAILED);
    drop(file);
    let said = run(mount.vaultfs(["unmount"]).arg(mount.mnt()));
    // SAFETY: mapped above with this length.
    unsafe { libc::munmap(mapping, one.get()) };
    assert!(said.fails(1).contains(&format!("{} (", std::process::id())));
}

#[test]
fn other_places_that_show_it_are_named() {
    crate::support::only_root!("only root can bind a directory");
    let mount = Mount::start();
    let [second, third] = ["second", "third"].map(|name| mount.mnt().with_file_name(name));
    for place in [&second, &third] {
        fs::create_dir(place).unwrap();
        run(Command::new("mount").arg("--bind").arg(mount.mnt()).arg(place)).ok();
    }
    let said = run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(1);
    assert!(said.contains(&format!("{}, {}:", second.display(), third.display())), "{said}");
    let said = run(mount.vaultfs(["unmount"]).arg(&third)).fails(1);
    assert!(said.contains(&format!("still at {}:", second.display())), "{said}");
    fs::write(second.join("f"), "1").unwrap();
    run(mount.vaultfs(["unmount"]).arg(&second)).ok();
    assert!(!is_mounted(&second));
    assert_nothing_left(mount.mnt());
}

#[test]
fn a_refused_unmount_stores_nothing_half_written() {
    use std::io::Write;
    let mount = Mount::start();
    let mut file = fs::File::create(mount.path("f")).unwrap();
    file.write_all(b"half").unwrap();
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(1);
    file.write_all(b" and half").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "half and half");
    assert_eq!(fs::read_dir(mount.path(".versions/f")).unwrap().count(), 1);
}

#[test]
fn lazy_detaches_and_ends_when_the_last_user_lets_go() {
    let mount = Mount::start();
    fs::write(mount.path("f"), "1").unwrap();
    let mut file = fs::File::open(mount.path("f")).unwrap();
    let ran = run(mount.vaultfs(["unmount", "--lazy"]).arg(mount.mnt()));
    assert!(ran.err.contains(&format!("{} (", std::process::id())), "{}", ran.err);
    ran.ok();
    assert!(!is_mounted(mount.mnt()));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).unwrap();
    assert_eq!(text, "1", "an open file goes on working");
    drop(file);
    assert_nothing_left(mount.mnt());
}

#[test]
fn force_takes_it_away_from_who_uses_it() {
    let mount = Mount::start();
    fs::write(mount.path("f"), "1").unwrap();
    let _shell = user(mount.mnt(), "exec 3< \"$1/f\"");
    run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).ok();
    assert_nothing_left(mount.mnt());
}

#[test]
fn force_ends_a_worker_that_does_not_answer() {
    let mount = Mount::start();
    let (_, worker) = mount.pids();
    signal(worker, Signal::SIGSTOP);
    let said = run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt()));
    assert!(said.err.contains("does not answer"), "{}", said.err);
    said.ok();
    assert_nothing_left(mount.mnt());
}

#[test]
fn unmount_waits_for_the_successor_of_a_worker_that_does_not_move() {
    let mount = Mount::start();
    fs::write(mount.path("f"), "1").unwrap();
    let (_, worker) = mount.pids();
    signal(worker, Signal::SIGSTOP);
    mount.unmount();
}

#[test]
fn status_shows_a_mount_to_people_and_to_scripts() {
    let mount = Mount::start();
    fs::write(mount.path("f"), "1").unwrap();
    let status = mount.status();
    assert_eq!(status["mountpoint"].as_str(), mount.mnt().to_str());
    assert_eq!(status["fs"]["unsaved"].as_array().map(Vec::len), Some(0));
    assert_eq!(status["fs"]["vault"]["dialect"], "object");
    assert!(status["kernel"]["resend"].is_boolean());
    assert!(!status["memory"]["worker"].is_null(), "it says what is not locked");
    let text = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
    for part in [mount.mnt().to_str().unwrap(), "embedded", "unsaved", "budget", "cache", "memory"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    // As when `head` has read enough.
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let unread = mount.vaultfs(["status"]).arg(mount.mnt()).stdout(write).output().unwrap();
    assert_eq!((unread.status.code(), unread.stderr), (Some(0), vec![]));
    let all = run(&mut mount.vaultfs(["status", "--json"])).out;
    assert!(all.contains(mount.mnt().to_str().unwrap()));
}

#[test]
fn status_says_that_a_worker_hangs() {
    let mount = Mount::start();
    let (keeper, worker) = mount.pids();
    // It would replace the worker, after the same five seconds.
    signal(keeper, Signal::SIGSTOP);
    signal(worker, Signal::SIGSTOP);
    let ran = run(mount.vaultfs(["status"]).arg(mount.mnt()));
    signal(worker, Signal::SIGCONT);
    signal(keeper, Signal::SIGCONT);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("does not answer: no answer within 5 s"), "{}", ran.out);
    until("it goes on", || fs::write(mount.path("f"), "1").is_ok());
}

#[test]
fn the_control_socket_and_record_are_gone_afterwards() {
    let mount = Mount::start();
    let status = mount.status();
    let own = format!("{}.{}.", status["dev"].as_str().unwrap(), status["keeper_pid"]);
    let uid = nix::unistd::geteuid();
    let dirs = ["/run/vaultfs".into(), format!("/run/user/{uid}/vaultfs"), format!("/tmp/vaultfs-{uid}")];
    let files = || {
        let all = dirs.iter().flat_map(|d| fs::read_dir(d).into_iter().flatten().flatten());
        all.filter(|f| f.file_name().to_str().unwrap().starts_with(&own)).count()
    };
    assert_eq!(files(), 2);
    mount.unmount();
    assert_eq!(files(), 0);
}
