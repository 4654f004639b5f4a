//! One save, one version, on a real mount: which close(2) stores, and with how many requests.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::common::{self, Mount};

const SHELLS: [&str; 3] = ["bash", "dash", "zsh"];

#[test]
fn echo_is_one_version_and_one_request_once_the_name_is_known() {
    let mount = Mount::start();
    for shell in SHELLS {
        let before = mount.requests();
        mount.script(shell, &format!("echo one > {shell}")).ok();
        assert_eq!(mount.requests() - before, 1, "{shell}, a new name");
        let before = mount.requests();
        mount.script(shell, &format!("echo two > {shell}")).ok();
        assert_eq!(mount.requests() - before, 1, "{shell}, a name that is there");
        assert_eq!(mount.versions(shell), [1, 2], "{shell}");
        assert_eq!(fs::read(mount.path(shell)).unwrap(), b"two\n");
    }
}

#[test]
fn a_save_from_cold_is_two_requests() {
    let mount = Mount::with(&["--refresh", "1ms"]);
    mount.sh("echo one > old");
    let mount = Mount::at(mount.unmount(), &["--refresh", "1ms"]);
    let before = mount.requests();
    mount.sh("echo two > old");
    assert_eq!(mount.requests() - before, 2, "the read and the update");
    let before = mount.requests();
    mount.sh("echo one > new");
    assert_eq!(mount.requests() - before, 2, "the listing and the creation");
}

#[test]
fn grouped_redirections_are_one_version() {
    let mount = Mount::start();
    mount.sh("echo base > base");
    for shell in SHELLS {
        let scripts = [
            ("group", "{ echo 1; cat base; cat base; echo 2; } > F", "1\nbase\nbase\n2\n"),
            ("subshell", "( echo 1; cat base; cat base; echo 2 ) > F", "1\nbase\nbase\n2\n"),
            ("loop", "for i in 1 2 3; do echo $i; cat base; done > F", "1\nbase\n2\nbase\n3\nbase\n"),
            ("exec", "exec 3>F; echo a >&3; cat base >&3; echo b >&3; exec 3>&-", "a\nbase\nb\n"),
            ("append", "{ echo a; cat base; } >> F", "a\nbase\n"),
            ("pipe", "echo a | { cat; cat base; } > F", "a\nbase\n"),
            ("background", "{ cat base; cat base; } > F & wait", "base\nbase\n"),
        ];
        for (what, script, content) in scripts {
            let name = format!("{shell}-{what}");
            mount.script(shell, &script.replace('F', &name)).ok();
            assert_eq!(fs::read_to_string(mount.path(&name)).unwrap(), content, "{name}");
            assert_eq!(mount.versions(&name), [1], "{name}");
        }
    }
}

#[test]
fn a_program_that_forks_half_way_stores_once() {
    let mount = Mount::start();
    let program = r#"
import os, subprocess
f = open("f", "w"); f.write("half"); f.flush()
subprocess.run(["true"])
subprocess.run(["true"], close_fds=False)
pid = os.fork()
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
f.write(" whole"); f.close()
"#;
    mount.sh(&format!("python3 -c '{program}'"));
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "half whole");
    assert_eq!(mount.versions("f"), [1]);
}

#[test]
fn a_child_that_outlives_its_parent_stores_what_it_wrote() {
    let mount = Mount::start();
    let program = r#"
import os, time
parent = os.getpid()
f = os.open("f", os.O_WRONLY | os.O_CREAT, 0o600)
if os.fork() == 0:
    while os.getppid() == parent: time.sleep(0.01)
    os.write(f, b"late"); os.close(f); os._exit(0)
os._exit(0)
"#;
    mount.sh(&format!("python3 -c '{program}'"));
    common::until("the child's bytes are stored", || mount.versions("f") == [1]);
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"late");
}

#[test]
fn empty_files_are_stored_at_the_last_close() {
    let mount = Mount::start();
    mount.sh(": > colon; touch touched; echo x > full");
    common::until("both are stored", || mount.versions("colon") == [1] && mount.versions("touched") == [1]);
    mount.sh(": > full");
    common::until("the truncation is stored", || mount.versions("full") == [1, 2]);
    assert_eq!(fs::metadata(mount.path("full")).unwrap().size(), 0);
    mount.sh(": > full; touch full touched");
    assert_eq!((mount.versions("full").len(), mount.versions("touched").len()), (2, 1), "nothing changed");
}

#[test]
fn truncation_is_one_version() {
    let mount = Mount::start();
    mount.sh("printf 123456 > f; truncate -s 4 f");
    assert_eq!(mount.versions("f"), [1, 2], "truncate(1)");
    mount.sh("python3 -c 'import os; os.truncate(\"f\", 2)'");
    assert_eq!(mount.versions("f"), [1, 2, 3], "truncate(2) stores before it answers");
    mount.sh("truncate -s 5 f");
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"12\0\0\0");
    assert_eq!(fs::read(mount.path(".versions/f/2")).unwrap(), b"1234");
}

#[test]
fn appends_and_random_writes_keep_the_rest() {
    let mount = Mount::start();
    mount.sh("printf abcdef > f; printf gh >> f; printf XY | dd of=f bs=1 seek=2 conv=notrunc status=none");
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"abXYefgh");
    assert_eq!(mount.versions("f"), [1, 2, 3]);
    mount.sh("dd if=/dev/urandom of=r bs=777 count=300 status=none; cp r s; cmp r s");
    assert_eq!(mount.versions("r"), [1]);
}

#[test]
fn shared_mappings_are_stored() {
    let mount = Mount::start();
    let program = r#"
import mmap
open("m", "wb").write(b"a" * 9000)
f = open("m", "r+b"); m = mmap.mmap(f.fileno(), 0)
m[8999:9000] = b"z"; m[0:3] = b"xyz"; m.flush(); m.close(); f.close()
"#;
    mount.sh(&format!("python3 -c '{program}'"));
    let mut content = vec![b'a'; 9000];
    content[..3].copy_from_slice(b"xyz");
    content[8999] = b'z';
    assert_eq!(fs::read(mount.path("m")).unwrap(), content);
    common::until("the mapping's bytes are in the vault", || {
        fs::read(mount.path(".versions/m/2")).is_ok_and(|stored| stored == content)
    });
}

#[test]
fn several_handles_see_one_file() {
    let mount = Mount::start();
    let program = r#"
import os
a = os.open("f", os.O_RDWR | os.O_CREAT, 0o600); b = os.open("f", os.O_RDWR); c = os.open("f", os.O_RDONLY)
os.write(a, b"from a"); os.pwrite(b, b"B", 5)
assert os.pread(c, 99, 0) == b"from B", os.pread(c, 99, 0)
assert os.fstat(c).st_size == 6
os.close(a); os.pwrite(b, b"!", 6); os.close(b); os.close(c)
"#;
    mount.sh(&format!("python3 -c '{program}'"));
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"from B!");
    assert_eq!(mount.versions("f").len(), 2, "one for each close that had something to store");
}

/// A program that keeps rewriting `f` under a lock, which others do as well, in threads or
/// processes; how often, and in how many threads, its arguments say.
const REWRITES: &str = r#"
import fcntl, os, sys, threading
count, threads = int(sys.argv[1]), int(sys.argv[2])
def rewrite(who):
    for n in range(count):
        f = os.open("f", os.O_RDWR)
        fcntl.flock(f, fcntl.LOCK_EX)
        value = f"{who} {n}\n".encode() * 500
        os.ftruncate(f, 0)
        half = len(value) // 2
        os.write(f, value[:half]); os.write(f, value[half:])
        os.close(f)
all = [threading.Thread(target=rewrite, args=(f"{os.getpid()}-{t}",)) for t in range(threads)]
for t in all: t.start()
for t in all: t.join()
"#;

/// Programs that open `f` for writing and close it again until `stop` is there, having read it,
/// under a lock or not.
const LOOKS: &str = r#"
import fcntl, os, sys
while not os.path.exists("../stop"):
    f = os.open("f", os.O_RDWR)
    if sys.argv[1] == "lock":
        fcntl.flock(f, fcntl.LOCK_SH)
        value = os.read(f, 1 << 20)
        assert value and len(set(value.splitlines())) == 1 and value.count(b"\n") in (1, 500), value[:99]
    elif sys.argv[1] == "copy":
        os.close(os.dup(f))
    os.close(f)
"#;

#[test]
fn rewrites_under_a_lock_are_one_version_each_whoever_opens_and_closes_the_file() {
    const TURNS: usize = 60;
    let mount = Mount::start();
    mount.sh("echo base > f");
    let stop = mount.mnt().with_file_name("stop");
    let python = |program: &str, args: &[&str]| {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", program]).args(args).current_dir(mount.mnt());
        command.stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let looks: Vec<_> = ["lock", "no lock", "copy"].map(|how| python(LOOKS, &[how])).into();
    let turns = TURNS.to_string();
    let rewrites: Vec<_> = ["1", "1", "3"].map(|threads| python(REWRITES, &[&turns, threads])).into();
    let ends = |programs: Vec<std::process::Child>| {
        for program in programs {
            let ended = program.wait_with_output().unwrap();
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        }
    };
    ends(rewrites);
    fs::write(&stop, "").unwrap();
    ends(looks);
    let versions = mount.versions("f");
    let mut values = std::collections::BTreeSet::new();
    for version in &versions[1..] {
        let value = fs::read_to_string(mount.path(format!(".versions/f/{version}"))).unwrap();
        let line = value.lines().next().unwrap_or_else(|| panic!("version {version} is empty")).to_owned();
        assert_eq!(value, format!("{line}\n").repeat(500), "version {version} is a part");
        assert!(values.insert(line), "version {version} is a second one of the same save");
    }
    assert_eq!(values.len(), 5 * TURNS, "one version for each save");
}

#[test]
fn a_program_that_also_inherited_the_file_open_stores_at_its_close() {
    let mount = Mount::start();
    let program = r#"
import os
f = os.open("f", os.O_WRONLY)
os.write(f, b"mine"); os.close(f)
assert open(".versions/f/2", "rb").read() == b"mine\n", "close has returned"
"#;
    mount.sh(&format!("echo base > f; {{ python3 -c '{program}'; }} >> f"));
    assert_eq!(mount.versions("f"), [1, 2]);
}

#[test]
fn a_mapping_is_stored_by_its_own_close_with_another_one_of_the_same_file_about() {
    let mount = Mount::start();
    let program = r#"
import mmap, os
open("m", "wb").write(b"a" * 9000)
a = os.open("m", os.O_RDWR); one = mmap.mmap(a, 0)
b = os.open("m", os.O_RDWR); two = mmap.mmap(b, 0)
def stored(n): return open(f".versions/m/{n}", "rb").read()
one[0:3] = b"one"
os.close(a)
assert stored(2)[:3] == b"one", "the kernel sent it with the handle of the other one"
two[3:6] = b"two"
os.close(b)
assert stored(3)[:6] == b"onetwo"
one[6:11] = b"three"
one.close(); two.close()
"#;
    mount.sh(&format!("python3 -c '{program}'"));
    common::until("what was written after the last close is in the vault", || {
        fs::read(mount.path(".versions/m/4")).is_ok_and(|stored| stored.starts_with(b"onetwothreea"))
    });
}

#[test]
fn writes_through_o_sync_are_a_version_each() {
    let mount = Mount::start();
    for flag in ["sync", "dsync"] {
        mount.sh(&format!("printf abcd | dd of={flag} oflag={flag} bs=2 status=none"));
        assert_eq!(mount.versions(flag), [1, 2], "{flag}");
        assert_eq!(fs::read(mount.path(format!(".versions/{flag}/1"))).unwrap(), b"ab");
        assert_eq!(fs::read(mount.path(flag)).unwrap(), b"abcd");
    }
}

#[test]
fn what_is_saved_unchanged_makes_no_version() {
    let mount = Mount::with(&["--refresh", "1ms"]);
    mount.sh("for i in 1 2 3; do echo same > f; done; cp f g; cp g f; printf 'same\n' > f");
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"same\n");
    assert_eq!(mount.versions("f"), [1]);
    let before = mount.versions("g");
    mount.sh("cp f g");
    assert_eq!(mount.versions("g"), before);
}

#[test]
fn bytes_over_the_limit_are_refused_at_the_write() {
    let mount = Mount::with(&["--max-size", "1KiB"]);
    mount.sh("head -c 1024 /dev/zero > fits");
    assert_eq!(fs::metadata(mount.path("fits")).unwrap().size(), 1024);
    let ran = mount.script("bash", "head -c 1025 /dev/zero > over");
    assert!(ran.code != Some(0));
    assert!(ran.err.contains("File too large"), "{}", ran.err);
    assert!(!mount.path("over").exists(), "a part is not stored");
    mount.sh("echo good > keep; head -c 1025 /dev/zero > ../big");
    let ran = mount.script("bash", "cp ../big keep");
    assert!(ran.err.contains("File too large"), "{}", ran.err);
    assert_eq!(fs::read_to_string(mount.path("keep")).unwrap(), "good\n");
    assert_eq!(mount.versions("keep"), [1]);
}

#[test]
fn copies_keep_bytes_and_times() {
    let mount = Mount::start();
    mount.sh("cp -p /bin/ls ls; cmp /bin/ls ls");
    let (ours, theirs) = (fs::metadata(mount.path("ls")).unwrap(), fs::metadata("/bin/ls").unwrap());
    assert_eq!((ours.size(), ours.mtime()), (theirs.size(), theirs.mtime()));
    assert_eq!(mount.versions("ls"), [1]);
}

#[test]
fn direct_opens_ask_the_vault() {
    let mount = Mount::with(&["--refresh", "1h"]);
    mount.sh("echo old > f; cat f");
    let put = format!("echo new | {} put '{}' f", common::VAULTFS, mount.embedded());
    common::run(std::process::Command::new("sh").args(["-c", &put])).ok();
    assert_eq!(mount.sh("cat f"), "old\n", "within the refresh time the cache answers");
    assert_eq!(mount.sh("dd if=f iflag=direct status=none"), "new\n");
    assert_eq!(mount.sh("cat f; stat -c %s f"), "new\n4\n");
}
