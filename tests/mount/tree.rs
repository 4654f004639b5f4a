//! The tree on a real mount: hostile names, `a` beside `a/b`, histories, directories, options that
//! restrict.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::common::{self, Mount, VAULTFS, open_to_all, run};

/// Stores an object without the mount, by its plain name.
fn put(mount: &Mount, name: &str, value: &str) {
    let command = "printf %s \"$VALUE\" | \"$VAULTFS\" put \"$EMBEDDED\" -- \"$NAME\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("VALUE", value).env("NAME", name);
    run(shell.env("VAULTFS", VAULTFS).env("EMBEDDED", mount.embedded())).ok();
}

/// What the object of that plain name holds.
fn get(mount: &Mount, name: &str) -> String {
    run(&mut mount.vaultfs(["get", &mount.embedded(), "--", name])).ok()
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
    let mount = Mount::start();
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
    let longest = if common::KV { 200 } else { 1024 };
    let long = ["é".repeat(200), "x".repeat(1024), format!("{}/end", "y".repeat(600)), "z%2F".repeat(100)];
    let long = long.iter().map(String::as_str).filter(|name| name.chars().count() <= longest);
    let all: Vec<&str> = names.into_iter().chain(long).collect();
    for name in &all {
        put(&mount, name, name);
    }
    // The index is at most the refresh time old.
    let mut found = Vec::new();
    common::until("every object is reachable", || {
        found.clear();
        walk(mount.mnt(), &mut found);
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
        assert_eq!(get(&mount, name), format!("{name}!"), "{path:?}");
    }
}

#[test]
fn an_object_beside_objects_below_its_name() {
    let mount = Mount::start();
    put(&mount, "both", "own");
    put(&mount, "both/below", "below");
    common::until("it is a directory with .self", || mount.path("both/.self").exists());
    assert_eq!(fs::read_to_string(mount.path("both/.self")).unwrap(), "own");
    assert_eq!(fs::read_to_string(mount.path("both/below")).unwrap(), "below");
    assert_eq!(mount.sh("ls -A both"), ".self\nbelow\n");
    assert_eq!(fs::read_to_string(mount.path(".versions/both/.self/1")).unwrap(), "own");

    mount.sh("echo first > file");
    let open = fs::File::open(mount.path("file")).unwrap();
    put(&mount, "file/later/x", "later");
    common::until("it shows beside the file", || mount.path("file%2Flater%2Fx").exists());
    assert_eq!(fs::read_to_string(mount.path("file%2Flater%2Fx")).unwrap(), "later");
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "first\n");
    assert_eq!(mount.sh("ls -d file*"), "file\nfile%2Flater%2Fx\n");
    drop(open);
}

#[test]
fn what_no_name_is_spelt_like_is_refused() {
    let mount = Mount::start();
    for spelling in ["%2E%2E", "%2541", "x%2Ey", "a%2Fb", "%2F", "a%_"] {
        assert_eq!(fs::read(mount.path(spelling)).unwrap_err().kind(), ErrorKind::NotFound, "{spelling}");
        let refused = fs::write(mount.path(spelling), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{spelling}");
    }
    let too_long = fs::write(mount.path("x".repeat(256)), "x").unwrap_err();
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
    // What is in memory alone has no history.
    assert_eq!(
        mount.sh("echo x > .s.swp; set -C; echo x > s~; set +C; ls -A .versions; rm .s.swp s~"),
        "db\n"
    );
    mount.sh("cp .versions/db/password/1 db/password");
    assert_eq!(mount.versions("db/password"), [1, 2, 3, 4]);
    assert_eq!(fs::read_to_string(mount.path("db/password")).unwrap(), "1\n");
    for refused in ["echo x > .versions/db/password/1", "rm .versions/db/password/1", "mkdir .versions/x"] {
        assert!(mount.script("bash", refused).code != Some(0), "{refused}");
    }
    assert!(!mount.path(".versions/db/password/5").exists());
    assert!(!mount.path(".versions/db/password/01").exists());
    mount.sh("rm db/password");
    common::until("the history is gone with the object", || !mount.path(".versions/db/password").exists());
}

#[test]
fn histories_are_not_listed_unless_asked_for() {
    let mount = Mount::start();
    mount.sh("echo x > a");
    assert_eq!(mount.sh("ls -A; find . -type f"), "a\n./a\n");
}

#[test]
fn directories_live_until_rmdir_and_keep_their_inode() {
    let mount = Mount::start();
    mount.sh("mkdir -p a/b/c; echo x > a/b/c/f");
    let ino = fs::metadata(mount.path("a/b")).unwrap().ino();
    assert!(mount.script("bash", "rmdir a/b/c").code != Some(0), "it is not empty");
    mount.sh("rm a/b/c/f; test -d a/b/c; rmdir a/b/c");
    assert_eq!(fs::metadata(mount.path("a/b")).unwrap().ino(), ino);
    mount.sh("rmdir a/b");
    assert_eq!(mount.sh("ls -A a"), "");
    mount.sh("mkdir a/b; echo y > a/b/g; cat a/b/g");
    assert!(mount.script("bash", "mkdir a/b").code != Some(0));
}

#[test]
fn everything_is_still_there_after_a_remount() {
    let mount = Mount::start();
    mount
        .sh("mkdir -p d/e; echo 1 > d/e/f; printf 'no newline' > g; head -c 3000 /dev/urandom > h; cp h d/h");
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(
        mount.sh("cat d/e/f g; cmp h d/h; find . -type f | sort"),
        "1\nno newline./d/e/f\n./d/h\n./g\n./h\n"
    );
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let mount = Mount::start();
    mount.sh("mkdir d; echo x > d/f");
    let mount = Mount::at(mount.unmount(), &["--read-only"]);
    assert_eq!(fs::read_to_string(mount.path("d/f")).unwrap(), "x\n");
    assert_eq!(fs::metadata(mount.path("d/f")).unwrap().permissions().mode() & 0o777, 0o400);
    for change in
        ["echo y > d/f", "echo y > d/new", "rm d/f", "mkdir e", "rmdir d", "mv d/f d/g", "truncate -s 0 d/f"]
    {
        let ran = mount.script("bash", change);
        assert!(ran.err.contains("Read-only file system"), "{change}: {}", ran.err);
    }
}

#[test]
fn without_deletion_files_can_still_be_overwritten() {
    let mount = Mount::with(&["--no-delete"]);
    mount.sh("echo 1 > f; echo 2 > f");
    for change in ["rm f", "mv f g"] {
        let ran = mount.script("bash", change);
        assert!(ran.err.contains("Operation not permitted"), "{change}: {}", ran.err);
    }
    assert_eq!(mount.versions("f"), [1, 2]);
}

#[test]
fn a_prefix_is_stripped_and_added() {
    let mount = Mount::with(&["--prefix", "team/app"]);
    put(&mount, "team/app/key", "in");
    put(&mount, "team/other", "out");
    common::until("it shows", || mount.path("key").exists());
    mount.sh("echo new > made");
    assert_eq!(mount.sh("find . -type f | sort"), "./key\n./made\n");
    assert_eq!(get(&mount, "team/app/made"), "new\n");
}

#[test]
fn modes_are_cut_to_the_ceiling_and_chmod_lasts_as_long_as_the_mount() {
    let mount = Mount::with(&["--file-mode", "0640", "--dir-mode", "0750"]);
    mount.sh("umask 0; echo x > open; (umask 077; echo x > closed); mkdir d; echo x > ls; chmod 0400 ls");
    assert_eq!(mount.sh("stat -c '%a %n' open closed d ls"), "640 open\n600 closed\n750 d\n400 ls\n");
    mount.sh("chmod 0600 ls; echo y > ls; touch -d 2001-02-03 ls");
    assert_eq!(mount.sh("stat -c '%a %y' ls | cut -c1-14"), "600 2001-02-03\n");
}

/// Runs a script as user `nobody` with this group; `$M` is the mount point.
fn as_nobody(mount: &Mount, group: &str, script: &str) -> common::Ran {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", group, "--clear-groups", "sh", "-c", script]);
    run(command.env("M", mount.mnt()).current_dir("/"))
}

#[test]
fn others_get_in_only_with_allow_other_and_then_modes_decide() {
    let mount = Mount::start();
    open_to_all(mount.mnt().parent().unwrap());
    mount.sh("echo x > f");
    for refused in ["cat $M/f", "ls $M"] {
        assert!(as_nobody(&mount, "0", refused).err.contains("Permission denied"), "{refused}");
    }

    let mount = Mount::with(&["--allow-other", "--file-mode", "0644", "--dir-mode", "0755"]);
    open_to_all(mount.mnt().parent().unwrap());
    mount.sh("umask 022; echo x > f; echo s > secret; chmod 0600 secret; echo g > group; chmod 0640 group");
    assert_eq!(as_nobody(&mount, "65534", "cat $M/f").ok(), "x\n");
    for refused in [
        "cat $M/secret",
        "cat $M/group",
        "echo y > $M/f",
        "rm $M/f",
        "mkdir $M/d",
        "cat $M/.vaultfs/status.json",
    ] {
        assert!(as_nobody(&mount, "65534", refused).err.contains("ermission denied"), "{refused}");
    }
    // A history is no wider open than its file and the directories above that.
    mount.sh("mkdir pd; chmod 0700 pd; echo q > pd/q");
    assert_eq!(as_nobody(&mount, "65534", "cat $M/.versions/f/1").ok(), "x\n");
    for refused in ["cat $M/.versions/secret/1", "ls $M/.versions/secret", "cat $M/.versions/pd/q/1"] {
        assert!(as_nobody(&mount, "65534", refused).err.contains("ermission denied"), "{refused}");
    }
    mount.sh("chmod 0600 f");
    assert!(as_nobody(&mount, "65534", "cat $M/.versions/f/1").err.contains("ermission denied"));
    mount.sh("chmod 0644 f");
    // A setgid program: the group alone opens what the group may read.
    assert_eq!(as_nobody(&mount, "0", "cat $M/group").ok(), "g\n");
    assert!(as_nobody(&mount, "0", "cat $M/secret").code != Some(0));
}

#[test]
fn symbolic_links_and_devices_are_refused() {
    let mount = Mount::start();
    mount.sh("echo x > f");
    for refused in ["ln -s f g", "mknod n c 1 3", "mkdir d; ln d e"] {
        let ran = mount.script("bash", refused);
        assert!(
            ran.err.contains("not permitted") || ran.err.contains("not allowed"),
            "{refused}: {}",
            ran.err
        );
    }
    mount.sh("ln f g; test $(stat -c %i f) != $(stat -c %i g); test \"$(stat -c %h f g)\" = $'1\\n1'; cmp f g; ! ln f g");
    assert_eq!(mount.versions("g"), [1]);
}

#[test]
fn extended_attributes_tell_what_the_vault_knows() {
    let mount = Mount::start();
    mount.sh("echo x > f; echo y > f");
    let version = mount.sh("getfattr --only-values -n user.vault.version f");
    assert!(if common::KV { version.len() == 36 } else { version == "2" }, "{version}");
    assert!(mount.sh("getfattr --only-values -n user.vault.id f").starts_with("vault_obj_"));
    assert_eq!(mount.sh("getfattr --only-values -n user.vault.stale f"), "0");
    assert!(mount.script("bash", "setfattr -n user.vault.id -v x f").code != Some(0));
    // mv(1) copies a directory with the attributes that it can set, and is silent on the others.
    let moved = mount.script("bash", "mkdir d e; cp f d/f; mv d e/");
    assert_eq!((moved.code, moved.err.as_str()), (Some(0), ""));
}

#[test]
fn moving_a_file_keeps_the_history_of_what_it_replaces() {
    let mount = Mount::start();
    mount.sh(
        "echo 1 > f; echo 2 > f; echo new > tmp; id=$(getfattr --only-values -n user.vault.id f); mv tmp f; \
              test \"$id\" = \"$(getfattr --only-values -n user.vault.id f)\"; cat f",
    );
    assert_eq!(mount.versions("f"), [1, 2, 3]);
    assert!(!mount.path("tmp").exists());
    mount.sh("mkdir d; mv f d/g; cat d/g; ! test -e f");
    assert_eq!(mount.versions("d/g"), [1]);
    mount.sh("sed -i s/new/old/ d/g; echo /tmp >/dev/null; mv d e; cat e/g");
    assert_eq!(fs::read_to_string(mount.path("e/g")).unwrap(), "old\n");
}

#[test]
fn scratch_files_never_reach_the_vault() {
    let mount = Mount::with(&["--scratch", "*.part"]);
    mount.sh("echo s > .f.swp; echo p > x.part; echo f > f; cat .f.swp x.part; mv x.part done");
    assert_eq!(mount.sh("ls -A"), ".f.swp\ndone\nf\n");
    let names = run(&mut mount.vaultfs(["ls", &mount.embedded()])).ok();
    assert_eq!(names, "done\nf\n");
    mount.sh("rm .f.swp; ! test -e .f.swp");
}

#[test]
fn a_directory_that_is_in_memory_alone_is_renamed_and_any_other_copied() {
    let mount = Mount::start();
    mount.sh("mkdir -p a/b/c; chmod 0710 a/b");
    let ino = fs::metadata(mount.path("a/b")).unwrap().ino();
    fs::rename(mount.path("a"), mount.path("z")).unwrap();
    let moved = fs::metadata(mount.path("z/b")).unwrap();
    assert_eq!((moved.ino(), moved.permissions().mode() & 0o777), (ino, 0o710));
    assert_eq!(mount.sh("find . -type d | sort; ! test -e a"), ".\n./z\n./z/b\n./z/b/c\n");
    mount.sh("echo x > z/b/f; cat z/b/f; mkdir e");
    assert_eq!(get(&mount, "z/b/f"), "x\n");
    let refused = fs::rename(mount.path("z"), mount.path("y")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EXDEV), "an object is in it");
    fs::rename(mount.path("z/b/c"), mount.path("e")).unwrap();
    assert!(fs::rename(mount.path("e"), mount.path("z")).is_err(), "the place is taken");
    mount.sh("mv z y; cat y/b/f; ! test -e z; rmdir e; mkdir a; rmdir a");
    assert_eq!(get(&mount, "y/b/f"), "x\n");
}
