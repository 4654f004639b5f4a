//! `--audit` on a real mount, and who spent the requests.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::common::{self, Mount, Place, run};

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn who_opens_what_is_written_down_and_no_value() {
    for options in [&["--read-only"][..], &[]] {
        let mount = Mount::start();
        mount.sh("mkdir db; printf %s canary-one > db/password; printf %s canary-two > db/password");
        let place = mount.unmount();
        let file = place.dir.path().join("audit");
        let audit = format!("--audit={}", file.display());
        let mount = Mount::at(place, &[options, &[audit.as_str()]].concat());
        mount.sh("cat db/password db/password > /dev/null; ls -lR > /dev/null; cat .versions/db/password/2 > /dev/null");
        common::until("three openings are written down", || lines(&file).len() == 3);
        for line in lines(&file) {
            assert_eq!((line["op"].as_str(), line["name"].as_str()), (Some("read"), Some("db/password")));
            assert_eq!(line["program"], "cat");
            assert_eq!(line["uid"].as_u64(), Some(nix::unistd::geteuid().as_raw().into()));
            assert_eq!(line["gid"].as_u64(), Some(nix::unistd::getegid().as_raw().into()));
            assert!(line["pid"].as_u64() > Some(1) && line["version"].is_string() && line["at"].is_string());
        }
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&file).unwrap().contains("canary"));

        // As logrotate does it.
        let old = file.with_extension("1");
        fs::rename(&file, &old).unwrap();
        common::signal(mount.pids().0, Signal::SIGHUP);
        common::until("the file is made anew", || file.exists());
        mount.sh("cat db/password");
        common::until("the new file has the next line", || lines(&file).len() == 1);
        assert_eq!(lines(&old).len(), 3);
        let status = mount.status();
        assert_eq!(status["fs"]["audit"], serde_json::json!({ "written": 4, "lost": 0, "error": null }));
    }
}

#[test]
fn the_version_in_the_audit_file_is_that_of_the_extended_attribute() {
    for api in ["object", "kv"] {
        let place = Place::new();
        let file = place.dir.path().join("audit");
        let mount = Mount::at(place, &["--api", api, &format!("--audit={}", file.display())]);
        mount.sh("echo 1 > f; echo 2 > f; cat f > /dev/null");
        let version = mount.sh("getfattr --only-values -n user.vault.version f");
        assert_eq!(version.len(), if api == "kv" { 36 } else { 1 }, "{version}");
        common::until("it is written down", || {
            lines(&file).iter().any(|line| line["op"] == "read" && line["version"] == version.as_str())
        });
    }
}

#[test]
fn an_audit_file_that_cannot_be_is_refused_before_the_mount() {
    let place = Place::new();
    let on_it = format!("--audit={}", place.mnt.join("audit").display());
    assert!(run(&mut place.mount_command(&[&on_it])).fails(2).contains("hidden by the mount"));
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let link = format!("--audit={}", link.display());
    assert!(run(&mut place.mount_command(&[&link])).fails(1).contains("audit file"));
    assert!(!common::is_mounted(&place.mnt));
}

#[test]
fn status_names_the_programs_that_spend_the_requests() {
    let mount = Mount::start();
    mount.sh("for n in 1 2 3 4 5; do echo $n > f$n; done");
    let mount = Mount::at(mount.unmount(), &[]);
    mount.sh("cat f1 f2 f3 > /dev/null; wc -c f4 > /dev/null");
    let spent = mount.status()["fs"]["vault"]["spent_by"].clone();
    let by = |program: &str| {
        let line = spent.as_array().unwrap().iter().find(|line| line["program"] == program);
        line.and_then(|line| line["requests"].as_u64()).unwrap_or(0)
    };
    assert_eq!((by("cat"), by("wc")), (3, 1), "{spent}");
    let all: u64 = spent.as_array().unwrap().iter().map(|line| line["requests"].as_u64().unwrap()).sum();
    assert!(all <= mount.status()["fs"]["vault"]["requests"].as_u64().unwrap());
    let text = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
    assert!(text.contains("spent by") && text.contains("cat 3"), "{text}");
}

#[test]
fn a_full_disk_costs_lines_and_no_read() {
    if !common::is_root() {
        eprintln!("skipped: only root can mount a disk that is full");
        return;
    }
    let place = Place::new();
    let disk = place.dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    run(std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&disk)).ok();
    let unmounted = Unmounted(disk.clone());
    let file = disk.join("audit");
    let mount = Mount::at(place, &["--refresh=10m", &format!("--audit={}", file.display())]);
    mount.sh("echo value > f; cat f");
    let filler = disk.join("filler");
    let full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    // The page that the file has begun still takes some lines.
    common::until("lines are lost", || {
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"value\n");
        mount.status()["fs"]["audit"]["lost"].as_u64() > Some(0)
    });
    let text = run(mount.vaultfs(["status"]).arg(mount.mnt())).prints(1);
    assert!(text.contains("LOST") && text.contains("NOT WELL: "), "{text}");
    assert!(text.contains("of the audit file w"), "{text}");
    fs::remove_file(&filler).unwrap();
    common::until("lines are written again", || {
        fs::read(mount.path("f")).unwrap();
        mount.status()["fs"]["audit"]["error"].is_null()
    });
    drop(mount.unmount());
    drop(unmounted);
}

/// A mount of the test's own, gone with it.
struct Unmounted(std::path::PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
