//! Mounts over the kv dialect: everything that mounts over the object dialect do, and what is its
//! own.

#[path = "../mount/programs.rs"]
mod programs;
#[path = "../mount/saves.rs"]
mod saves;
#[path = "../support/mod.rs"]
mod support;
#[path = "../mount/tree.rs"]
mod tree;

use std::fs;

use crate::support::common::{self, Mount, Place, run};

/// The errno of reading a file.
fn read_error(path: &std::path::Path) -> Option<i32> {
    fs::read(path).unwrap_err().raw_os_error()
}

fn dialect(mount: &Mount) -> String {
    let text = fs::read(mount.path(".vaultfs/status.json")).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&text).unwrap();
    status["vault"]["dialect"].as_str().unwrap().to_owned()
}

#[test]
fn the_dialect_is_the_one_asked_for() {
    let mount = Mount::start();
    assert_eq!(dialect(&mount), "kv");
}

#[test]
fn old_versions_are_listed_and_read_only_if_seen() {
    let mount = Mount::start();
    mount.sh("for v in 1 22 333; do echo $v > f; done");
    assert_eq!(mount.sh("cat .versions/f/*"), "1\n22\n333\n", "this mount wrote them");
    let times = mount.sh("stat -c %y .versions/f/*");
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(mount.sh("stat -c %s .versions/f/*"), "2\n3\n4\n");
    assert_eq!(mount.sh("stat -c %y .versions/f/*"), times);
    assert_eq!(mount.sh("cat .versions/f/3"), "333\n");
    for old in ["1", "2"] {
        assert_eq!(read_error(&mount.path(".versions/f").join(old)), Some(libc::EOPNOTSUPP), "{old}");
    }
    assert!(mount.log().contains("open of a version"), "it is said why");
    let refused = mount.script("bash", "cp .versions/f/1 f");
    assert!(refused.code != Some(0));
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"333\n", "and nothing was touched");
    // What was seen stays readable when it is no longer the current one.
    mount.sh("echo 4444 > f; cat .versions/f/3 .versions/f/4");
    assert_eq!(mount.versions("f"), [1, 2, 3, 4]);
}

#[test]
fn a_directory_that_names_imply_is_found_by_one_search() {
    let place = Place::new();
    let embedded = place.embedded();
    let script = "for i in $(seq 0 249); do echo x | \"$0\" put \"$1\" --api kv -- \"d$i/deep/f\"; done";
    run(std::process::Command::new("sh").args(["-c", script, common::VAULTFS, &embedded])).ok();
    // Nothing stays fresh: each lookup of a name that is not there has to ask.
    let mount = Mount::at(place, &["--refresh", "1ms"]);
    assert_eq!(mount.sh("ls | wc -l").trim(), "250");
    let put = "echo x | \"$0\" put \"$1\" -- new/deep/f";
    run(std::process::Command::new("sh").args(["-c", put, common::VAULTFS, &mount.embedded()])).ok();
    let before = mount.requests();
    assert!(fs::metadata(mount.path("new")).unwrap().is_dir());
    // One, if a refresh has found the name meanwhile.
    let asked = mount.requests() - before;
    assert!(asked <= 2, "the read by name and the search, not three pages: {asked}");
    assert_eq!(fs::read(mount.path("new/deep/f")).unwrap(), b"x\n");
    let before = mount.requests();
    assert_eq!(read_error(&mount.path("absent")), Some(libc::ENOENT));
    assert_eq!(mount.requests() - before, 2);
    let before = mount.requests();
    assert_eq!(read_error(&mount.path("deep")), Some(libc::ENOENT), "it is no directory of the root");
    assert_eq!(mount.requests() - before, 1 + 3, "of the 251 names that hold deep/ none begins so");
    let mount = Mount::at(mount.unmount(), &["--refresh", "1h"]);
    mount.status();
    assert!(mount.requests() <= 2, "neither mounting nor looking at a mount lists its names");
}

#[test]
fn either_dialect_shows_the_bytes_that_the_other_wrote() {
    let mount = Mount::start();
    mount.sh("mkdir d; head -c 5000 /dev/urandom > d/random; printf 'no newline' > text; : > empty");
    common::until("the empty file is stored", || mount.versions("empty") == [1]);
    let names = ["d/random", "text", "empty"];
    let bytes = names.map(|name| fs::read(mount.path(name)).unwrap());
    let place = mount.unmount();
    let mut object = place.vaultfs(["mount", &place.embedded(), "--api", "object"]);
    run(object.arg(&place.mnt)).ok();
    let mount = Mount::adopt(place);
    assert_eq!(dialect(&mount), "object");
    for (name, bytes) in names.into_iter().zip(bytes) {
        assert_eq!(fs::read(mount.path(name)).unwrap(), bytes, "{name}");
        assert_eq!(mount.versions(name), [1], "{name}");
    }
    mount.sh("cp text back; cp d/random d/back");
    let mount = Mount::at(mount.unmount(), &[]);
    mount.sh("cmp text back; cmp d/random d/back");
}
