//! File systems of other users, links into them, and variables that name them: not asked.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use nix::mount::MntFlags;
use serde_json::json;

use super::{ENDS, Other, USERS, each, turn};
use crate::support::common::{self, Place, is_mounted, open_to_all, run};

#[test]
fn a_file_system_of_another_user_is_not_asked_for_files() {
    let Some(_turn) = turn() else { return };
    let other = Other::with(json!({}));
    let inside = other.path().to_owned() + "/file";
    let link = other.place.dir.path().join("ours");
    symlink(&inside, &link).unwrap();
    let free = other.place.dir.path().join("free");
    fs::create_dir(&free).unwrap();
    let free = free.to_str().unwrap();
    let key = other.place.dir.path().join("key");
    fs::write(&key, "sk_x").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let url = ["--api-url", "http://127.0.0.1:1", "--api-key-file", key.to_str().unwrap()];
    // Nor is anything mounted there, which could not be removed without asking.
    for path in [inside.clone(), other.path().to_owned() + "/..", link.to_str().unwrap().to_owned() + "/x"] {
        let ran = other.root(&["mount", &other.place.embedded(), &path]);
        assert!(ran.fails(1).contains(&format!("another user (uid {}) serves", other.uid)), "{path}");
    }
    for path in [inside.as_str(), link.to_str().unwrap()] {
        let ran = other.root(&["ls", "--api-url", url[1], "--api-key-file", path]);
        assert!(ran.fails(3).contains("serves, and is not asked"), "{path}");
        let data = format!("--embedded={path}");
        for command in
            [&["ls", &data][..], &["mount", &data, free], &["serve", "--data", path, "key", "list"]]
        {
            let ran = other.root(command);
            assert!(
                ran.code != Some(0) && ran.err.contains("serves, and is not asked"),
                "{command:?}: {ran:?}"
            );
        }
        for command in [&["ls", "--ca-file", path][..], &["put", "--ca-file", path, "x"]] {
            let ran = other.root(&[command, &url].concat());
            assert!(
                ran.code != Some(0) && ran.err.contains("serves, and is not asked"),
                "{command:?}: {ran:?}"
            );
        }
        let ran = other.root(&["status", "--runtime-dir", path]);
        assert!(ran.code.is_some(), "{ran:?}");
        // What is appended to is no link, wherever it leads.
        let ran = other.root(&[&["mount", "--log", path, free][..], &url].concat());
        let is_said =
            ["serves, and is not asked", "no regular file"].iter().any(|said| ran.err.contains(said));
        assert!(ran.code != Some(0) && is_said, "{ran:?}");
    }
}

/// A file system of user 1, which does not answer; others are let in.
struct Silent(PathBuf, Option<fs::File>);

impl Silent {
    fn at(path: PathBuf) -> Self {
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=1,group_id=1,allow_other", device.as_raw_fd());
        let flags = nix::mount::MsFlags::MS_NOSUID;
        nix::mount::mount(Some("x"), &path, Some("fuse"), flags, Some(&*data)).unwrap();
        Self(path, Some(device))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // What waits for it is released.
        self.1 = None;
        let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Variables that say where files are.
const VARIABLES: [&str; 8] = [
    "HOME",
    "XDG_STATE_HOME",
    "XDG_DATA_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
    "STATE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
];

#[test]
fn no_variable_and_no_option_leads_into_a_file_system_of_another_user() {
    let Some(_turn) = turn() else { return };
    let place = Place::new();
    let at = |name: &str| place.dir.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    for name in ["theirs", "free"] {
        fs::create_dir(at(name)).unwrap();
    }
    let _theirs = Silent::at(at("theirs"));
    symlink(at("theirs"), at("link")).unwrap();
    std::os::unix::fs::lchown(at("link"), Some(1), Some(1)).unwrap();
    let run = |command: &mut Command| {
        let begun = Instant::now();
        let ran = run(command);
        assert!(begun.elapsed() < ENDS && ran.code.is_some(), "{command:?}: {ran:?}");
        ran
    };
    let (data, key) = (format!("--embedded={}", text("own")), text("key"));
    fs::write(&key, "sk_x").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (free, served, socket, state) = (text("free"), text("served"), text("socket"), text("state"));
    for way in ["theirs", "link"] {
        let inside = text(way) + "/x";
        let (embedded, unix) = (format!("--embedded={inside}"), format!("unix:{inside}"));
        let refused = [
            &["ls", &embedded][..],
            &["mount", &embedded, &free],
            &["mount", &data, &inside],
            &["ls", "--api-url", &unix, "--api-key-file", &key],
            &["mount", &data, "--audit", &inside, &free],
            &["mount", &data, "--log", &inside, &free],
            &["doctor", "--root", &inside],
            &["serve", "--data", &inside],
            &["serve", "--data", &served, "--socket", &inside],
            &["volume-plugin", "--socket", &inside, "--state", &state],
            &["volume-plugin", "--socket", &socket, "--state", &inside],
        ];
        each(refused, |words| assert_ne!(run(&mut place.vaultfs(words)).code, Some(0), "{words:?}"));
        for variable in VARIABLES {
            // Nothing but that variable says where.
            let led = |command: &mut Command| {
                if variable == "HOME" {
                    command.env_remove("XDG_STATE_HOME").env_remove("XDG_DATA_HOME");
                }
                run(command.env(variable, at(way)))
            };
            each(["ls", "status", "pending", "doctor", "upgrade"], |word| {
                drop(led(&mut place.vaultfs([word])))
            });
            led(&mut place.vaultfs(["ls", "--embedded"]));
            if led(&mut place.mount_command(&[])).code == Some(0) {
                run(place.vaultfs(["unmount"]).arg(&place.mnt)).ok();
            }
            assert!(!is_mounted(&place.mnt), "{variable}");
        }
    }
}

#[test]
fn where_root_has_no_number_its_links_are_known_by_where_they_are() {
    let Some(_turn) = turn() else { return };
    let place = Place::new();
    open_to_all(place.dir.path());
    let (uid, at) = (USERS[1], |name: &str| place.dir.path().join(name));
    for (dir, mode) in [("closed", 0o755), ("sticky", 0o1777)] {
        fs::create_dir(at(dir)).unwrap();
        fs::set_permissions(at(dir), fs::Permissions::from_mode(mode)).unwrap();
        for (link, owner) in [("roots", 0), ("own", uid), ("theirs", USERS[0])] {
            let link = at(dir).join(link);
            symlink(at("key"), &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(owner), Some(owner)).unwrap();
        }
    }
    fs::write(at("key"), "sk_x\n").unwrap();
    fs::set_permissions(at("key"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(at("key"), Some(uid), Some(uid)).unwrap();
    let inside = |program: &str, args: &[&str]| {
        let mut command = Command::new("unshare");
        place.isolate(&mut command);
        command
            .args(["--user", &format!("--map-user={uid}"), &format!("--map-group={uid}"), program])
            .args(args);
        run(command.uid(uid).gid(uid).current_dir("/"))
    };
    if inside("true", &[]).code != Some(0) {
        eprintln!("SKIPPED: this machine gives no user namespaces to ordinary users");
        return;
    }
    // The maker is unknown there: only that no other user could be it.
    for (link, is_followed) in [
        ("closed/roots", true),
        ("closed/own", true),
        ("sticky/own", true),
        ("sticky/roots", false),
        ("sticky/theirs", false),
    ] {
        let link = at(link);
        let args = ["ls", "--api-url", "http://127.0.0.1:1", "--api-key-file", link.to_str().unwrap()];
        let ran = inside(common::VAULTFS, &args);
        let code = if is_followed { 4 } else { 3 };
        let said = ran.fails(code);
        assert!(is_followed || said.contains("is a link that belongs to"), "{said}");
    }
}
