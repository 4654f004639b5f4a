//! What programs may bring along without ending a worker, and what stays the same when a vault is
//! mounted again.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::common::{self, Mount, Place, run, until, wait};

const LAST_SECOND: i64 = 253_402_300_799;

fn utimens(path: &Path, seconds: i64, nanoseconds: i64) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let times = [libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds }; 2];
    match unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn no_argument_of_a_call_ends_a_worker() {
    let mount = Mount::start();
    mount.sh("echo x > a; mkdir d");
    let before = mount.pids();
    for path in ["a", "d", ""] {
        for seconds in [
            i64::MIN,
            i64::MIN + 1,
            -1 << 40,
            -(1 << 31),
            -1,
            0,
            LAST_SECOND,
            LAST_SECOND + 1,
            1 << 40,
            i64::MAX,
        ] {
            for nanoseconds in [0, 500_000_000, 999_999_999] {
                utimens(&mount.path(path), seconds, nanoseconds).unwrap();
                let meta = fs::metadata(mount.path(path)).unwrap();
                let expected = match seconds {
                    ..0 => (0, 0),
                    0..=LAST_SECOND => (seconds, nanoseconds),
                    _ => (LAST_SECOND, 999_999_999),
                };
                assert_eq!((meta.mtime(), meta.mtime_nsec()), expected, "{path:?} {seconds} {nanoseconds}");
            }
        }
    }
    mount.sh("set -e; touch -d @-1 a; touch -d 1901-12-13 d; touch -d @-1 new; cat a new");
    let file = OpenOptions::new().read(true).write(true).open(mount.path("a")).unwrap();
    for offset in [i64::MAX as u64, i64::MAX as u64 - 1, 1 << 40, u64::from(u32::MAX), 1 << 31] {
        assert!(file.write_at(b"x", offset).is_err(), "{offset}");
        assert!(file.set_len(offset).is_err(), "{offset}");
        assert!(matches!(file.read_at(&mut [0; 4096], offset), Ok(0) | Err(_)), "{offset}");
    }
    for mode in [0, 0o7777, -1, -2, 6, 0xffff] {
        // SAFETY: takes numbers only.
        unsafe { libc::fallocate(file.as_raw_fd(), mode, 1, i64::MAX - 1) };
    }
    drop(file);
    mount.sh("chmod 7777 a; chmod 0 a; chmod 600 a; chmod 1777 d; mknod p p; mknod r c 1 3 || true");
    for name in ["\u{7f}\u{1}", "%", "%2", "%zz", "\n", "..%2F", &"n".repeat(255), &"é".repeat(127)] {
        let _ = fs::write(mount.path(name), "x");
        let _ = fs::create_dir(mount.path(name));
        let _ = fs::rename(mount.path(name), mount.path("other"));
        let _ = fs::remove_file(mount.path("other"));
    }
    assert_eq!(mount.pids(), before, "the same worker");
    mount.sh("echo after > a; cat a");
}

#[test]
fn copies_of_files_of_any_year_are_taken() {
    let mount = Mount::start();
    let before = mount.pids();
    let old = mount.place().dir.path().join("old");
    fs::create_dir(&old).unwrap();
    let mut taken = 0;
    for year in
        ["1901-12-13", "1965-06-01", "1969-12-31 23:59:59.5 UTC", "2038-01-20", "2500-01-01", "12000-01-01"]
    {
        let path = old.join(year.replace(' ', "_"));
        fs::write(&path, year).unwrap();
        // The file system that is copied from may not know that year.
        run(Command::new("touch").args(["-d", year]).arg(&path));
        taken += 1;
    }
    run(Command::new("cp").arg("-a").arg(&old).arg(mount.path("copy"))).ok();
    assert_eq!(fs::read_dir(mount.path("copy")).unwrap().count(), taken);
    mount.sh("set -e; grep -q 1965 copy/1965-06-01; for f in copy/*; do mv \"$f\" \"$f.moved\"; done; ls -lR --time-style=full-iso");
    assert_eq!(mount.pids(), before, "the same worker");
    assert!(mount.status()["unsaved"].as_array().is_none_or(Vec::is_empty));
}

/// Number, times and size of everything below, by path.
fn looks(mnt: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, i64, i64, u64)> {
    let (mut all, mut left) = (BTreeMap::new(), vec![mnt.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let times = if meta.is_dir() {
                left.push(path.clone());
                (0, 0, 0, 0)
            } else {
                (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
            };
            let look = (meta.ino(), times.0, times.1, times.2, times.3, meta.size());
            all.insert(path.strip_prefix(mnt).unwrap().to_owned(), look);
        }
    }
    all
}

const TREE: &str = "set -e; mkdir -p d/e; for n in 1 2 3; do echo $n > f$n; echo $n > d/f$n; echo $n > d/e/f$n; done; \
                    touch empty; echo x >> f1; sed -i s/1/one/ d/f1; cp -a f2 d/copy; chmod 640 f3";

/// `ls -i` and find(1) take the numbers of listings.
#[test]
fn listings_have_the_numbers_of_lookups() {
    let mount = Mount::start();
    mount.sh(
        "mkdir -p d/e; for n in 1 2 3; do echo $n > f$n; echo $n > d/e/g$n; done; echo x > d/s; mkdir d/s2",
    );
    let mount = Mount::at(mount.unmount(), &[]);
    let compare = "import os
def walk(path):
    listed = [(e.path, e.inode()) for e in os.scandir(path)]
    for path, number in listed:
        assert number == os.lstat(path).st_ino < 2**32 - 1, (path, number)
    return len(listed) + sum(walk(path) for path, _ in listed if os.path.isdir(path))
os.mkdir('made')
print(walk('.'))";
    assert_eq!(mount.sh(&format!("python3 -c \"{compare}\"")), "10\n");
}

#[test]
fn numbers_and_times_are_the_same_after_unmount_and_mount() {
    let mount = Mount::start();
    mount.sh(TREE);
    let mount = Mount::at(mount.unmount(), &[]);
    let first = looks(mount.mnt());
    assert!(first.values().all(|look| look.0 < u64::from(u32::MAX)), "{first:?}");
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(looks(mount.mnt()), first);
    // What is saved from now on looks so in the next mount, too.
    mount.sh("echo again > f1; echo new > d/new; python3 -c 'open(\"py\", \"w\").write(\"x\")'");
    let saved = looks(mount.mnt());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(looks(mount.mnt()), saved, "nothing moves after the close");
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(looks(mount.mnt()), saved);
}

#[test]
#[ignore = "with restic and tar, which scripts/test --all installs"]
fn a_second_backup_reads_nothing_again() {
    let mount = Mount::at(Place::new(), &[]);
    mount.sh(TREE);
    let mount = Mount::at(mount.unmount(), &[]);
    let home = mount.place().dir.path().to_owned();
    let restic = |mnt: &Path| {
        let mut command = Command::new("restic");
        command.env("RESTIC_PASSWORD", "x").env("RESTIC_REPOSITORY", home.join("repository"));
        command.env("XDG_CACHE_HOME", home.join("cache")).current_dir(mnt);
        command
    };
    run(restic(mount.mnt()).arg("init")).ok();
    run(restic(mount.mnt()).args(["backup", "."])).ok();
    let tar = |mnt: &Path, archive: &str| {
        let mut command = Command::new("tar");
        command.arg("--no-check-device").arg(format!("--listed-incremental={}", home.join("snar").display()));
        command.arg("-cvf").arg(home.join(archive)).arg("-C").arg(mnt).arg(".");
        command
    };
    // tar takes for changed what is not older than its first run.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    run(&mut tar(mount.mnt(), "1.tar")).ok();
    let mount = Mount::at(mount.unmount(), &[]);
    let said = run(restic(mount.mnt()).args(["backup", "."])).ok();
    assert!(said.contains("Files:           0 new,     0 changed"), "{said}");
    let listed = run(&mut tar(mount.mnt(), "2.tar")).ok();
    assert!(listed.lines().all(|line| line.ends_with('/')), "{listed}");
}

const PROGRAM: &str = r#"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct stat s;
    if (sizeof(s.st_ino) != 4) return 9;
    for (int i = 1; i < argc; i++) {
        if (stat(argv[i], &s)) { perror(argv[i]); return 1; }
        int fd = open(argv[i], O_RDONLY);
        if (fd < 0 || fstat(fd, &s)) { perror(argv[i]); return 2; }
        close(fd);
        if (!S_ISDIR(s.st_mode)) continue;
        DIR *d = opendir(argv[i]);
        struct dirent *e;
        int n = 0;
        while ((e = readdir(d))) n++;
        printf("%d\n", n);
        closedir(d);
    }
    return 0;
}
"#;

#[test]
fn a_program_for_32_bits_sees_all() {
    let mount = Mount::start();
    mount.sh("mkdir d; for n in $(seq 20); do echo $n > d/f$n; done; echo x > f");
    let (source, program) = (mount.place().dir.path().join("p.c"), mount.place().dir.path().join("p"));
    fs::write(&source, PROGRAM).unwrap();
    run(Command::new("gcc").arg("-m32").arg("-o").arg(&program).arg(&source)).ok();
    let paths = [".", "d", "f", "d/f7", ".versions/f", ".versions/f/1", ".vaultfs/status.json"];
    let out = run(Command::new(&program).args(paths).current_dir(mount.mnt())).ok();
    assert_eq!(out, "4\n22\n3\n");
    let place = mount.unmount();
    let mount = Mount::at(place, &[]);
    // From a listing alone, nothing looked up.
    assert_eq!(run(Command::new(&program).arg("d").current_dir(mount.mnt())).ok(), "22\n");
}

#[test]
fn a_directory_made_after_rmdir_works_while_somebody_is_in_the_old_one() {
    let mount = Mount::start();
    mount.sh(
        "set -e; mkdir d; (cd d; exec sleep 30) & sleep .2; rmdir d; mkdir d; echo x > d/f; cat d/f; kill $!",
    );
    let inside = "set -e; mkdir -p s/t; echo 1 > s/t/f; (cd s/t; exec sleep 30) & sleep .2; rm -r s; mkdir -p s/t; echo 2 > s/t/f; \
                  test $(cat s/t/f) = 2; rm -r s; echo file > s; test $(cat s) = file; rm s; mkdir s; echo 3 > s/f; cat s/f; \
                  mv s s.bak; mkdir s; echo 4 > s/f; test \"$(cat s.bak/f s/f)\" = $'3\\n4'; kill $!";
    mount.sh(inside);
    // Objects made elsewhere show in it, too.
    let held = File::open(mount.path("s.bak")).unwrap();
    mount.sh("rm -r s.bak");
    let mut put = mount.vaultfs(["put"]);
    put.arg(mount.embedded()).arg("s.bak/elsewhere");
    let mut child = put.stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"there").unwrap();
    assert!(child.wait().unwrap().success());
    until("what was made elsewhere is there", || {
        fs::read_to_string(mount.path("s.bak/elsewhere")).is_ok_and(|text| text == "there")
    });
    assert_eq!(held.metadata().unwrap().nlink(), 0);
    assert_ne!(held.metadata().unwrap().ino(), fs::metadata(mount.path("s.bak")).unwrap().ino());
}

#[test]
fn git_checkout_with_a_shell_in_the_directory() {
    let mount = Mount::at(Place::below("/var/tmp"), &[]);
    let work = "set -e; git init -q -b main .; git config user.email a@b; git config user.name n; mkdir d; echo 1 > d/f; \
                git add d; git commit -qm one; git checkout -qb other; git rm -rq d; echo x > g; git add g; git commit -qm two; \
                git checkout -q main; (cd d; exec sleep 30) & sleep .2; git checkout -q other; test ! -e d; git checkout -q main; \
                cat d/f; echo 2 > d/f; git commit -qam three; git status --porcelain; kill $!";
    assert_eq!(mount.sh(work), "1\n");
}

#[test]
fn a_directory_that_an_engine_made_gives_way_to_the_secret() {
    let mount = Mount::with(&["--refresh", "1s"]);
    mount.sh("mkdir late");
    let held = File::open(mount.path("late")).unwrap();
    let put = format!("echo secret | {} put '{}' late", common::VAULTFS, mount.embedded());
    run(Command::new("sh").args(["-c", &put])).ok();
    let shown = wait(|| fs::read_to_string(mount.path("late")).ok(), std::time::Duration::from_secs(20));
    assert_eq!(shown.as_deref(), Some("secret\n"));
    drop(held);
    mount.sh("set -e; test -f late; echo changed > late; cat late; ls -l late");
}
