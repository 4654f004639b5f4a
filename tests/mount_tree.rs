//! The tree on a real mount: hostile names, `a` beside `a/b`, histories, directories, options that restrict.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Mount, vaultfs};

/// Stores an object without a mount, by its plain name.
fn put(mount: &Mount, name: &str, value: &str) {
    let mut child = Command::new(common::VAULTFS)
        .args(["put", &mount.embedded(), "--", name])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), value.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "put {name:?}: {}", common::errors(&output));
}

/// All files below `dir`, as path and content.
fn walk(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), found);
        } else {
            let bytes = fs::read(entry.path()).unwrap();
            assert_eq!(entry.metadata().unwrap().size(), bytes.len() as u64, "{:?}", entry.path());
            found.push((entry.path().to_str().unwrap().to_owned(), String::from_utf8(bytes).unwrap()));
        }
    }
}

#[test]
fn hostile_names_are_all_reachable_and_escape_nowhere() {
    let mount = Mount::new();
    let names = [
        "..",
        ".",
        "../../etc/passwd",
        "/etc/passwd",
        "a//b",
        "a/",
        "//",
        "/",
        " ",
        "\n",
        "\u{1}\u{1f}",
        "a\tb",
        ".versions",
        ".versions/x",
        ".vaultfs",
        ".vaultfs/status.json",
        ".self",
        "a/.self",
        "%41",
        "%2F",
        "%_",
        "%",
        "%%25",
        "x%",
        "-rf",
        "~",
        "é/ü/\u{1F600}",
        "dir/../up",
    ];
    let long = ["é".repeat(200), "x".repeat(1024), format!("{}/end", "y".repeat(600)), "z%2F".repeat(100)];
    let all: Vec<&str> = names.into_iter().chain(long.iter().map(String::as_str)).collect();
    for name in &all {
        put(&mount, name, name);
    }
    // The index is at most the refresh time old.
    let mut found = Vec::new();
    common::eventually("every object is reachable", || {
        found.clear();
        walk(&mount.path(), &mut found);
        found.len() == all.len()
    });
    let mut contents: Vec<&str> = found.iter().map(|(_, content)| content.as_str()).collect();
    let mut expected = all.clone();
    contents.sort_unstable();
    expected.sort_unstable();
    assert_eq!(contents, expected);
    for (path, name) in &found {
        // What is written under the path is what the object of that name holds.
        fs::write(path, format!("{name}!")).unwrap();
        let output = vaultfs(&["get", &mount.embedded(), "--", name]);
        assert_eq!(common::text(&output), format!("{name}!"), "{path:?}");
    }
}

#[test]
fn an_object_beside_objects_below_its_name() {
    let mount = Mount::new();
    put(&mount, "both", "own");
    put(&mount, "both/below", "below");
    common::eventually("it is a directory with .self", || mount.at("both/.self").exists());
    assert_eq!(fs::read_to_string(mount.at("both/.self")).unwrap(), "own");
    assert_eq!(fs::read_to_string(mount.at("both/below")).unwrap(), "below");
    assert_eq!(mount.sh("ls -A both"), ".self\nbelow\n");
    assert_eq!(fs::read_to_string(mount.at(".versions/both/.self/1")).unwrap(), "own");

    mount.sh("echo first > file");
    let open = fs::File::open(mount.at("file")).unwrap();
    put(&mount, "file/later/x", "later");
    common::eventually("it shows beside the file", || mount.at("file%2Flater%2Fx").exists());
    assert_eq!(fs::read_to_string(mount.at("file%2Flater%2Fx")).unwrap(), "later");
    assert_eq!(fs::read_to_string(mount.at("file")).unwrap(), "first\n");
    assert_eq!(mount.sh("ls -d file*"), "file\nfile%2Flater%2Fx\n");
    drop(open);
}

#[test]
fn what_no_name_is_spelt_like_is_refused() {
    let mount = Mount::new();
    for spelling in ["%2E", "%41x%2F", "%00%2f%2F", "a%2Fb"] {
        assert_eq!(fs::read(mount.at(spelling)).unwrap_err().kind(), ErrorKind::NotFound, "{spelling}");
        let refused = fs::write(mount.at(spelling), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{spelling}");
    }
    let too_long = fs::write(mount.at(&"x".repeat(256)), "x").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn histories_are_files_and_restore_by_cp() {
    let mount = Mount::with(&["--show-versions"]);
    mount.sh("mkdir -p db; for v in 1 22 333; do echo $v > db/password; done");
    assert_eq!(mount.sh("ls .versions/db/password"), "1\n2\n3\n");
    assert_eq!(mount.sh("cat .versions/db/password/*"), "1\n22\n333\n");
    assert_eq!(mount.sh("stat -c %s .versions/db/password/*"), "2\n3\n4\n");
    assert_eq!(mount.sh("ls -A"), ".versions\ndb\n");
    mount.sh("cp .versions/db/password/1 db/password");
    assert_eq!(mount.versions("db/password"), [1, 2, 3, 4]);
    assert_eq!(fs::read_to_string(mount.at("db/password")).unwrap(), "1\n");
    for refused in ["echo x > .versions/db/password/1", "rm .versions/db/password/1", "mkdir .versions/x"] {
        assert!(!mount.run("bash", refused).status.success(), "{refused}");
    }
    assert!(!mount.at(".versions/db/password/5").exists());
    assert!(!mount.at(".versions/db/password/01").exists());
    mount.sh("rm db/password");
    common::eventually("the history is gone with the object", || !mount.at(".versions/db/password").exists());
}

#[test]
fn histories_are_not_listed_unless_asked_for() {
    let mount = Mount::new();
    mount.sh("echo x > a");
    assert_eq!(mount.sh("ls -A; find . -type f"), "a\n./a\n");
}

#[test]
fn directories_live_until_rmdir_and_keep_their_inode() {
    let mount = Mount::new();
    mount.sh("mkdir -p a/b/c; echo x > a/b/c/f");
    let ino = fs::metadata(mount.at("a/b")).unwrap().ino();
    assert!(!mount.run("bash", "rmdir a/b/c").status.success(), "it is not empty");
    mount.sh("rm a/b/c/f; test -d a/b/c; rmdir a/b/c a/b");
    assert_eq!(mount.sh("ls -A a"), "");
    mount.sh("mkdir a/b; echo y > a/b/g");
    assert_eq!(fs::metadata(mount.at("a/b")).unwrap().ino(), ino);
    assert!(!mount.run("bash", "mkdir a/b").status.success());
}

#[test]
fn everything_is_still_there_after_a_remount() {
    let mut mount = Mount::new();
    mount
        .sh("mkdir -p d/e; echo 1 > d/e/f; printf 'no newline' > g; head -c 3000 /dev/urandom > h; cp h d/h");
    mount.remount();
    assert_eq!(
        mount.sh("cat d/e/f g; cmp h d/h; find . -type f | sort"),
        "1\nno newline./d/e/f\n./d/h\n./g\n./h\n"
    );
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let mut mount = Mount::new();
    mount.sh("mkdir d; echo x > d/f");
    let dir = std::mem::replace(&mut mount, Mount::new()).unmount();
    let mount = Mount::in_dir(dir, &["--read-only"]);
    assert_eq!(fs::read_to_string(mount.at("d/f")).unwrap(), "x\n");
    assert_eq!(fs::metadata(mount.at("d/f")).unwrap().permissions().mode() & 0o777, 0o400);
    for change in
        ["echo y > d/f", "echo y > d/new", "rm d/f", "mkdir e", "rmdir d", "mv d/f d/g", "truncate -s 0 d/f"]
    {
        let output = mount.run("bash", change);
        assert!(
            common::errors(&output).contains("Read-only file system"),
            "{change}: {}",
            common::errors(&output)
        );
    }
}

#[test]
fn without_deletion_files_can_still_be_overwritten() {
    let mount = Mount::with(&["--no-delete"]);
    mount.sh("echo 1 > f; echo 2 > f");
    for change in ["rm f", "mv f g"] {
        let output = mount.run("bash", change);
        assert!(
            common::errors(&output).contains("Operation not permitted"),
            "{change}: {}",
            common::errors(&output)
        );
    }
    assert_eq!(mount.versions("f"), [1, 2]);
}

#[test]
fn a_prefix_is_stripped_and_added() {
    let mount = Mount::with(&["--prefix", "team/app"]);
    put(&mount, "team/app/key", "in");
    put(&mount, "team/other", "out");
    common::eventually("it shows", || mount.at("key").exists());
    mount.sh("echo new > made");
    assert_eq!(mount.sh("find . -type f | sort"), "./key\n./made\n");
    let output = vaultfs(&["get", &mount.embedded(), "team/app/made"]);
    assert_eq!(common::text(&output), "new\n");
}

#[test]
fn modes_are_cut_to_the_ceiling_and_chmod_lasts_as_long_as_the_mount() {
    let mount = Mount::with(&["--file-mode", "0640", "--dir-mode", "0750"]);
    mount.sh("umask 0; echo x > open; (umask 077; echo x > closed); mkdir d; echo x > ls; chmod 0400 ls");
    assert_eq!(mount.sh("stat -c '%a %n' open closed d ls"), "640 open\n600 closed\n750 d\n400 ls\n");
    mount.sh("chmod 0600 ls; echo y > ls; touch -d 2001-02-03 ls");
    assert_eq!(mount.sh("stat -c '%a %y' ls | cut -c1-14"), "600 2001-02-03\n");
}

#[test]
fn others_get_in_only_with_allow_other_and_then_modes_decide() {
    let mount = Mount::new();
    mount.sh("echo x > f");
    let as_nobody = |mount: &Mount, script: &str| {
        Command::new("timeout")
            .args([
                "20",
                "setpriv",
                "--reuid",
                "65534",
                "--regid",
                "65534",
                "--clear-groups",
                "sh",
                "-c",
                script,
            ])
            .env("M", mount.path())
            .output()
            .unwrap()
    };
    assert!(!as_nobody(&mount, "cat $M/f").status.success());
    assert!(!as_nobody(&mount, "ls $M").status.success());

    let mount = Mount::with(&["--allow-other", "--file-mode", "0644", "--dir-mode", "0755"]);
    mount.sh("umask 022; echo x > f; echo s > secret; chmod 0600 secret; echo g > group; chmod 0640 group");
    assert_eq!(common::text(&as_nobody(&mount, "cat $M/f")), "x\n");
    for refused in [
        "cat $M/secret",
        "cat $M/group",
        "echo y > $M/f",
        "rm $M/f",
        "mkdir $M/d",
        "cat $M/.vaultfs/status.json",
    ] {
        assert!(!as_nobody(&mount, refused).status.success(), "{refused}");
    }
    // A setgid program: the group alone opens what the group may read.
    let as_group = |script: &str| {
        Command::new("timeout")
            .args(["20", "setpriv", "--reuid", "65534", "--regid", "0", "--clear-groups", "sh", "-c", script])
            .env("M", mount.path())
            .output()
            .unwrap()
    };
    assert_eq!(common::text(&as_group("cat $M/group")), "g\n");
    assert!(!as_group("cat $M/secret").status.success());
}

#[test]
fn links_and_devices_are_refused() {
    let mount = Mount::new();
    mount.sh("echo x > f");
    for refused in ["ln f g", "ln -s f g", "mknod n c 1 3", "mkfifo p"] {
        let output = mount.run("bash", refused);
        assert!(
            common::errors(&output).contains("Operation not permitted"),
            "{refused}: {}",
            common::errors(&output)
        );
    }
}

#[test]
fn extended_attributes_tell_what_the_vault_knows() {
    let mount = Mount::new();
    mount.sh("echo x > f; echo y > f");
    assert_eq!(mount.sh("getfattr --only-values -n user.vault.version f"), "2");
    assert!(mount.sh("getfattr --only-values -n user.vault.id f").starts_with("vault_obj_"));
    assert_eq!(mount.sh("getfattr --only-values -n user.vault.stale f"), "0");
    assert!(!mount.run("bash", "setfattr -n user.vault.id -v x f").status.success());
}

#[test]
fn moving_a_file_keeps_the_history_of_what_it_replaces() {
    let mount = Mount::new();
    mount.sh(
        "echo 1 > f; echo 2 > f; echo new > tmp; id=$(getfattr --only-values -n user.vault.id f); mv tmp f; \
              test \"$id\" = \"$(getfattr --only-values -n user.vault.id f)\"; cat f",
    );
    assert_eq!(mount.versions("f"), [1, 2, 3]);
    assert!(!mount.at("tmp").exists());
    mount.sh("mkdir d; mv f d/g; cat d/g; ! test -e f");
    assert_eq!(mount.versions("d/g"), [1]);
    mount.sh("sed -i s/new/old/ d/g; echo /tmp >/dev/null; mv d e; cat e/g");
    assert_eq!(fs::read_to_string(mount.at("e/g")).unwrap(), "old\n");
}

#[test]
fn scratch_files_never_reach_the_vault() {
    let mount = Mount::with(&["--scratch", "*.part"]);
    mount.sh("echo s > .f.swp; echo p > x.part; echo f > f; cat .f.swp x.part; mv x.part done");
    assert_eq!(mount.sh("ls -A"), ".f.swp\ndone\nf\n");
    let names = common::text(&vaultfs(&["ls", &mount.embedded()]));
    assert_eq!(names, "done\nf\n");
    mount.sh("rm .f.swp; ! test -e .f.swp");
}
