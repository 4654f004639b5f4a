//! mount(8), /etc/fstab and umount(8) with the helpers in place. Root only: mount(8) looks for them
//! in /sbin.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::common::{
    self, Beside, DeviceForAll, Mount, Place, VAULTFS, assert_nothing_left, is_mounted, is_root, mount_lines,
    open_to_all, run, until,
};
use crate::support::mount_table;

/// The helpers in /sbin, for the one test that uses them: mount(8) and umount(8) of all others
/// would, too.
struct Helpers {
    _alone: Arc<mount_table::Held>,
}

const NAMES: [&str; 3] = ["mount.vaultfs", "mount.fuse.vaultfs", "umount.fuse.vaultfs"];

impl Helpers {
    /// `None` for ordinary users, said aloud.
    fn install() -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED: only root can put helpers where mount(8) looks for them");
            return None;
        }
        let alone = mount_table::take();
        for path in Self::paths() {
            // What an earlier run left is a link to a build; anything else is somebody's.
            if fs::read_link(&path).is_ok_and(|to| to.ends_with("debug/vaultfs")) {
                fs::remove_file(&path).unwrap();
            }
            symlink(VAULTFS, &path)
                .unwrap_or_else(|e| panic!("{}: {e}: is vaultfs installed?", path.display()));
        }
        Some(Self { _alone: alone })
    }

    fn paths() -> impl Iterator<Item = PathBuf> {
        NAMES.iter().map(|name| Path::new("/sbin").join(name))
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for path in Self::paths() {
            fs::remove_file(path).unwrap();
        }
        assert!(Self::paths().all(|path| fs::symlink_metadata(path).is_err()), "a helper is left in /sbin");
    }
}

/// `mount ARGS…` with the test's directories.
fn mount(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new("mount");
    place.isolate(&mut command);
    command.args(args);
    command
}

fn umount(place: &Place, args: &[&str]) -> common::Ran {
    let mut command = Command::new("umount");
    place.isolate(&mut command);
    run(command.args(args).arg(&place.mnt))
}

fn source(place: &Place) -> String {
    format!("embedded={}", place.data.display())
}

fn findmnt(mnt: &Path, column: &str) -> String {
    run(Command::new("findmnt").args(["-n", "-o", column, "-M"]).arg(mnt)).ok().trim().to_owned()
}

#[test]
fn mount_8_mounts_and_everybody_sees_what() {
    let Some(_helpers) = Helpers::install() else { return };
    for kind in ["vaultfs", "fuse.vaultfs"] {
        let place = Place::new();
        let (source, mnt) = (source(&place), place.mnt.to_str().unwrap().to_owned());
        run(&mut mount(&place, &["-t", kind, &source, &mnt, "-o", "ro,noatime,cache_size=1MiB"])).ok();
        let mounted = Mount::adopt(place);
        assert_eq!(findmnt(mounted.mnt(), "SOURCE"), source);
        assert_eq!(findmnt(mounted.mnt(), "FSTYPE"), "fuse.vaultfs");
        assert!(fs::write(mounted.path("a"), "1").is_err(), "read-only");
        let options = findmnt(mounted.mnt(), "OPTIONS");
        assert!(options.contains("noatime") && !options.contains("relatime"), "{options}");
        let df = run(Command::new("df").arg("--output=source,fstype,target").arg(mounted.mnt())).ok();
        assert!(df.contains(&source) && df.contains("fuse.vaultfs"), "{df}");
        assert_eq!(umount(mounted.place(), &[]).ok(), "");
        assert_nothing_left(mounted.mnt());
    }
}

#[test]
fn a_line_of_fstab_with_the_key_in_a_file() {
    let Some(_helpers) = Helpers::install() else { return };
    let place = Place::new();
    let mut serving = place.vaultfs(["serve", "--listen", "127.0.0.1:0", "--data"]);
    let mut server = Beside::start(serving.arg(&place.data).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut url = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.0.stdout.take().unwrap()), &mut url)
        .unwrap();
    let (url, key) = (url.trim(), place.data.join("api-key"));
    let fstab = place.dir.path().join("fstab");
    let options = "noauto,nofail,_netdev,user,x-systemd.automount,x-systemd.mount-timeout=30,comment=secrets,defaults,drain=1s,timeout=2s";
    let line = format!("{url} {} vaultfs {options},credentials={} 0 0\n", place.mnt.display(), key.display());
    fs::write(&fstab, &line).unwrap();
    let (fstab, mnt) = (fstab.to_str().unwrap(), place.mnt.to_str().unwrap().to_owned());
    run(&mut mount(&place, &["--fstab", fstab, &mnt])).ok();
    fs::write(place.mnt.join("a"), "1").unwrap();
    assert_eq!(findmnt(&place.mnt, "SOURCE"), url);
    // Mounted already, as it sees by the source.
    fs::write(fstab, line.replace("noauto", "auto")).unwrap();
    run(&mut mount(&place, &["--all", "--fstab", fstab])).ok();
    assert_eq!(mount_lines(&place.mnt).len(), 1);
    assert_eq!(umount(&place, &[]).ok(), "");
    assert_nothing_left(&place.mnt);
    run(&mut mount(&place, &["--all", "--fstab", fstab])).ok();
    assert_eq!(fs::read_to_string(place.mnt.join("a")).unwrap(), "1");
    // The vault goes away: what is unsaved keeps the mount, and umount says so.
    drop(server);
    let mut unsaved = fs::File::create(place.mnt.join("b")).unwrap();
    unsaved.write_all(b"2").unwrap();
    assert!(unsaved.sync_all().is_err());
    drop(unsaved);
    let refused = umount(&place, &["-c"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.err.contains("b:"), "{}", refused.err);
    assert!(is_mounted(&place.mnt));
    let forced = umount(&place, &["-c", "-f"]);
    assert!(forced.err.contains("given up"), "{}", forced.err);
    assert_nothing_left(&place.mnt);
}

#[test]
fn what_cannot_be_mounted_is_a_sentence() {
    let Some(_helpers) = Helpers::install() else { return };
    let place = Place::new();
    let (source, mnt) = (source(&place), place.mnt.to_str().unwrap().to_owned());
    let fails = |args: &[&str], code| run(&mut mount(&place, args)).fails(code);
    let no_key = fails(&["-t", "vaultfs", "http://127.0.0.1:1", &mnt], 32);
    assert!(no_key.contains("api_key_file="), "{no_key}");
    let silent = place.dir.path().join("key");
    fs::write(&silent, "sk_test_x\n").unwrap();
    fs::set_permissions(&silent, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let key = format!("api_key_file={}", silent.display());
    assert!(fails(&["-t", "vaultfs", "http://127.0.0.1:1", &mnt, "-o", &key], 32).contains("127.0.0.1:1"));
    // From a line of fstab what is said goes to the journal.
    for option in [
        "api_key=sk_SECRET",
        "apikey=sk_SECRET",
        "password=sk_SECRET",
        "WORKOS_API_KEY=sk_SECRET",
        "umask=SECRET",
    ] {
        let said = fails(&["-t", "vaultfs", "http://127.0.0.1:1", &mnt, "-o", option], 1);
        let name = option.split('=').next().unwrap();
        assert!(said.contains(name) && !said.contains("SECRET"), "{said}");
        let sloppy = run(&mut mount(&place, &["-s", "-f", "-t", "vaultfs", &source, &mnt, "-o", option])).err;
        assert!(sloppy.contains(&format!("{name}=… is not known")) && !sloppy.contains("SECRET"), "{sloppy}");
    }
    assert!(fails(&["-t", "vaultfs", &source, &mnt, "-o", "alow_other"], 1).contains("allow_other?"));
    assert!(fails(&["-t", "vaultfs", &source, &mnt, "-o", "refresh=soon"], 1).contains("refresh"));
    // mount(8) passes -f and -s on.
    assert_eq!(run(&mut mount(&place, &["-f", "-t", "vaultfs", &source, &mnt])).ok(), "");
    assert!(!is_mounted(&place.mnt));
    run(&mut mount(&place, &["-s", "-v", "-n", "-t", "vaultfs", &source, &mnt, "-o", "bogus=1,rw"])).ok();
    let mounted = Mount::adopt(place);
    let remount = run(&mut mount(mounted.place(), &["-o", "remount,ro", &mnt]));
    assert_ne!(remount.code, Some(0));
    assert!(remount.err.contains("unmount it"), "{}", remount.err);
}

#[test]
fn umount_stores_and_names_what_keeps_it() {
    let Some(_helpers) = Helpers::install() else { return };
    let place = Place::new();
    let (source, mnt) = (source(&place), place.mnt.to_str().unwrap().to_owned());
    run(&mut mount(&place, &["-t", "vaultfs", &source, &mnt])).ok();
    // Held back for five seconds, or until the mount ends.
    run(Command::new("bash").arg("-c").arg(format!("cd {mnt}; set -C; echo kept > tmp12345678"))).ok();
    let held = fs::File::open(place.mnt.join("tmp12345678")).unwrap();
    // Root's plain `umount` asks statfs(2) for the type, which knows no more than "fuse": no
    // helper. systemd gives -c.
    let refused = umount(&place, &["-c"]).fails(32);
    assert!(refused.contains("in use by"), "{refused}");
    drop(held);
    umount(&place, &["-c"]).ok();
    assert_nothing_left(&place.mnt);
    let mounted = Mount::at(place, &[]);
    assert_eq!(fs::read_to_string(mounted.path("tmp12345678")).unwrap(), "kept\n");
    let mnt = mounted.mnt().to_owned();
    run(Command::new("fusermount3").arg("-u").arg(&mnt)).ok();
    assert_nothing_left(&mnt);
}

#[test]
fn a_mount_namespace_of_somebody_elses() {
    let Some(_helpers) = Helpers::install() else { return };
    let place = Place::new();
    let (source, mnt) = (source(&place), place.mnt.to_str().unwrap().to_owned());
    let mut inside = Command::new("unshare");
    let sleeper = Beside::start(inside.args(["--mount", "--propagation", "private", "sleep", "60"]));
    let pid = sleeper.0.id();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    until("it has a namespace of its own", || {
        fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|theirs| theirs != own)
    });
    let there = || fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().contains(&mnt);
    run(&mut mount(&place, &["-N", &pid.to_string(), "-t", "vaultfs", &source, &mnt])).ok();
    assert!(there() && !is_mounted(&place.mnt));
    run(Command::new("umount").args(["-N", &pid.to_string(), &mnt])).ok();
    until("it is unmounted", || !there());
    assert_nothing_left(&place.mnt);
}

/// In a mount namespace with an `/etc/fstab` and an `/sbin` of its own: nothing of the machine is
/// changed.
#[test]
fn an_ordinary_user_mounts_by_a_line_of_fstab_and_unmounts() {
    let _alone = mount_table::take();
    crate::support::only_root!("only root can make a mount namespace with another /etc/fstab");
    let place = Place::new();
    let dir = place.dir.path();
    let home = dir.join("home");
    for made in [&home, &dir.join("upper"), &dir.join("work")] {
        fs::create_dir(made).unwrap();
    }
    open_to_all(dir);
    for theirs in [&home, &place.mnt] {
        std::os::unix::fs::chown(theirs, Some(65534), Some(65534)).unwrap();
    }
    let line = format!(
        "embedded={} {} vaultfs noauto,user,x-gvfs-show,log={} 0 0\n",
        home.join("v").display(),
        place.mnt.display(),
        home.join("log").display()
    );
    fs::write(dir.join("fstab"), line).unwrap();
    let script = r#"set -e
        mount --bind "$DIR/fstab" /etc/fstab
        mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$DIR/upper,workdir=$DIR/work" /usr/sbin
        rm -f /usr/sbin/mount.vaultfs /usr/sbin/umount.fuse.vaultfs
        cp "$VAULTFS" /usr/sbin/mount.vaultfs
        ln -s mount.vaultfs /usr/sbin/umount.fuse.vaultfs
        if [ -d /run/mount ]; then mount -t tmpfs none /run/mount; fi
        mknod -m 666 "$DIR/fuse" c 10 229
        mount --bind "$DIR/fuse" /dev/fuse
        as_user() { setpriv --reuid nobody --regid nogroup --clear-groups env HOME="$DIR/home" "$@"; }
        cd /
        as_user mount "$MNT"
        findmnt -n -o SOURCE,FSTYPE,OPTIONS -M "$MNT"
        as_user bash -c 'echo 1 > "$0/a"; cat "$0/a"' "$MNT"
        if cat "$MNT/a" 2>/dev/null; then echo "root can look"; fi
        as_user bash -c 'set -C; echo kept > "$0/tmp12345678"' "$MNT"
        if as_user bash -c 'cd "$0"; umount "$0"' "$MNT"; then echo "unmounted in use"; fi
        as_user umount "$MNT"
        if findmnt -M "$MNT"; then echo "it is left"; fi
        as_user mount "$MNT"
        as_user cat "$MNT/tmp12345678"
        as_user fusermount3 -u "$MNT""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c", script]);
    command.env("DIR", dir).env("MNT", &place.mnt).env("VAULTFS", VAULTFS);
    for name in ["XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    let said = run(&mut command);
    assert_eq!(said.code, Some(0), "{said:?}");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.len(), 3, "{said:?}");
    assert!(
        lines[0].starts_with("embedded=")
            && lines[0].contains("fuse.vaultfs")
            && lines[0].contains("user_id=65534"),
        "{lines:?}"
    );
    assert_eq!(lines[1..], ["1", "kept"]);
    assert!(said.err.contains("in use by"), "{said:?}");
    assert_nothing_left(&place.mnt);
}

/// What mount(8) runs for a user whose line in fstab says `user`: the helper, with the user's
/// rights.
#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    let Some(_helpers) = Helpers::install() else { return };
    let place = Place::new();
    let _device = DeviceForAll::open();
    // The build may be where only root can look.
    let helper = place.dir.path().join("mount.vaultfs");
    fs::copy(VAULTFS, &helper).unwrap();
    for path in [place.dir.path(), &helper] {
        open_to_all(path);
    }
    std::os::unix::fs::chown(&place.mnt, Some(1000), Some(1000)).unwrap();
    let home = place.dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    let as_user = |program: &Path| {
        let mut command = Command::new(program);
        place.isolate(&mut command);
        command.env("HOME", &home).env_remove("XDG_STATE_HOME").env_remove("XDG_DATA_HOME");
        command.current_dir("/").uid(1000).gid(1000);
        command
    };
    let options = "rw,noexec,nosuid,nodev,noatime,nosymfollow,user=joe,x-gvfs-show";
    let said = run(as_user(&helper).arg("embedded").arg(&place.mnt).args(["-o", options]));
    assert!(said.code == Some(0) && said.err.contains("nosymfollow has no effect"), "{said:?}");
    let line = mount_lines(&place.mnt).pop().unwrap();
    assert!(
        ["user_id=1000", "noexec", "noatime", " embedded "].iter().all(|part| line.contains(part)),
        "{line}"
    );
    let mut write = as_user(Path::new("sh"));
    run(write.arg("-c").arg(format!("echo 1 > {0}/a; cat {0}/a", place.mnt.display()))).ok();
    assert!(home.join(".local/share/vaultfs").exists(), "the vault of this user");
    let mut off = as_user(Path::new("fusermount3"));
    run(off.arg("-u").arg(&place.mnt)).ok();
    assert_nothing_left(&place.mnt);
}
