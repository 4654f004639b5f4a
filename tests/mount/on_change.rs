//! `--on-change` on a real mount: run for what changed elsewhere, told what, never a value.

use std::fs;
use std::path::PathBuf;

use crate::support::common::{self, Mount, Place, run, until};

const CANARY: &str = "canary-3f9b1c";

/// A vault with `tls/key`, mounted with this command; `$OUT` in it stands for a directory for what
/// it writes.
fn mounted(command: &str) -> (Mount, PathBuf) {
    let place = Place::new();
    let out = place.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    put(&place, "tls/key", "old");
    let command = command.replace("$OUT", out.to_str().unwrap());
    (Mount::at(place, &["--refresh=200ms", &format!("--on-change={command}")]), out)
}

/// Stores a value elsewhere than through the mount.
fn put(place: &Place, name: &str, value: &str) {
    let line = format!("printf %s '{value}' | {} put {} {name}", common::VAULTFS, place.embedded());
    let mut shell = std::process::Command::new("sh");
    place.isolate(&mut shell);
    run(shell.arg("-c").arg(line)).ok();
}

#[test]
fn a_command_is_run_for_what_changed_elsewhere_and_sees_it() {
    let (mount, out) = mounted(
        "env > $OUT/env.new; cat \"$VAULTFS_MOUNTPOINT/$VAULTFS_NAME\" > $OUT/value; \
         echo \"$VAULTFS_EVENT $VAULTFS_NAME\" >> $OUT/runs; mv $OUT/env.new $OUT/env",
    );
    let runs = || fs::read_to_string(out.join("runs")).unwrap_or_default();
    // As a server does that has its key open in memory and in the kernel's cache.
    assert_eq!(fs::read_to_string(mount.path("tls/key")).unwrap(), "old");
    put(mount.place(), "tls/key", CANARY);
    until("the command was run", || out.join("env").exists());
    assert_eq!(
        fs::read_to_string(out.join("value")).unwrap(),
        CANARY,
        "the mount shows what it is told about"
    );
    let env = fs::read_to_string(out.join("env")).unwrap();
    for line in ["VAULTFS_NAME=tls/key", "VAULTFS_VERSION=2", "VAULTFS_EVENT=changed"] {
        assert!(env.lines().any(|l| l == line), "{line}: {env}");
    }
    assert!(env.contains(&format!("VAULTFS_MOUNTPOINT={}", mount.mnt().display())));
    assert!(!env.contains(CANARY) && !env.contains("WORKOS"), "{env}");

    // What is saved here is no news; what is made and removed elsewhere is.
    fs::write(mount.path("local"), "1").unwrap();
    put(mount.place(), "other", "2");
    until("it was run for the new name", || runs().contains("created other"));
    run(mount.vaultfs(["rm", "other"]).arg(mount.embedded())).ok();
    until("it was run for the deletion", || runs().contains("deleted other"));
    assert!(!runs().contains("local"), "{}", runs());
    assert_eq!(runs().lines().filter(|line| line.ends_with("tls/key")).count(), 1, "{}", runs());
    assert!(!mount.log().contains(CANARY));
}

#[test]
fn a_command_that_fails_is_logged_with_its_exit_code_and_the_next_is_run_all_the_same() {
    let (mount, out) = mounted("echo run >> $OUT/runs; echo no such unit >&2; exit 3");
    let runs = || fs::read_to_string(out.join("runs")).unwrap_or_default().lines().count();
    put(mount.place(), "a", "1");
    until("it is in the log", || mount.log().contains("it ended with exit code 3: no such unit"));
    assert_eq!(runs(), 1);
    put(mount.place(), "a", "2");
    until("it was run again", || runs() == 2);
}

#[test]
fn a_command_without_text_is_refused() {
    let place = Place::new();
    let said = run(&mut place.mount_command(&["--on-change= "])).fails(2);
    assert!(said.contains("nginx -s reload"), "{said}");
}

/// The command takes its time for the name `slow`, and nothing of it gets lost with its worker.
#[test]
fn a_command_outlives_its_worker_and_what_waits_is_run_after_it() {
    let (mount, out) = mounted(
        "if [ $VAULTFS_NAME = slow ]; then echo slow begins >> $OUT/runs; sleep 4; fi; \
         echo \"$VAULTFS_NAME ends\" >> $OUT/runs",
    );
    let runs = || fs::read_to_string(out.join("runs")).unwrap_or_default();
    put(mount.place(), "slow", "1");
    until("it runs", || runs().contains("slow begins"));
    put(mount.place(), "after", "1");
    until("the mount shows the next change", || mount.path("after").exists());
    let (_, worker) = mount.pids();
    common::signal(worker, nix::sys::signal::Signal::SIGKILL);
    until("another worker serves", || mount.pids().1 != worker);
    // A name is new to it once it has listed all names, at once after it serves.
    until("it has listed them", || mount.status()["fs"]["changes"]["refresh"]["ticks"] != 0);
    put(mount.place(), "after2", "1");
    until("all were run", || runs().lines().count() == 4);
    let order: Vec<String> = runs().lines().map(str::to_owned).collect();
    assert_eq!(order, ["slow begins", "slow ends", "after ends", "after2 ends"], "one at a time");
    assert!(mount.log().contains("\"slow\" (created) continues after a takeover"), "{}", mount.log());
}

#[test]
fn a_command_ends_with_the_mount_and_what_waits_is_named() {
    for dies in [false, true] {
        let (mount, out) =
            mounted("echo $$ > $OUT/pid.new; mv $OUT/pid.new $OUT/pid; trap '' TERM; sleep 50 & wait; wait");
        put(mount.place(), "slow", "1");
        until("it runs", || out.join("pid").exists());
        put(mount.place(), "after", "1");
        until("the mount shows the next change", || mount.path("after").exists());
        if dies {
            let (_, worker) = mount.pids();
            common::signal(worker, nix::sys::signal::Signal::SIGKILL);
            until("another worker serves", || mount.pids().1 != worker);
        }
        let pid = fs::read_to_string(out.join("pid")).unwrap();
        let alive = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|state| state.starts_with(['S', 'R', 'D']))
        };
        assert!(alive());
        let place = mount.unmount();
        assert!(!alive(), "it goes on");
        let log = place.log();
        assert!(log.contains("\"after\" (created): not run, the mount ends"), "{log}");
        assert!(log.contains("\"slow\" (created): was ended with the mount"), "{log}");
    }
}
