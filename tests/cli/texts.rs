//! Names, texts and files that others chose: what a terminal sees of them, and which of them are
//! read and written.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;

use crate::support::common::{self, Beside, Mount, Place, Ran, is_root, run, until};
use crate::support::mount_table;

/// A name that would clear the screen, forge a line, reverse what follows and hide a part of
/// itself, where it were shown as it is.
const NAME: &str = "a\n\u{1b}[2J\u{9b}1m\u{202e}\u{2066}\u{200b}\u{2028}\u{7f}\r\tvaultfs: all is well";
/// The same as a file's name.
const FILE: &str = "a%0A%1B[2J\u{9b}1m\u{202e}\u{2066}\u{200b}\u{2028}\u{7f}%0D%09vaultfs: all is well";
/// As people see it.
const SEEN: &str = r"a\n\u{1b}[2J\u{9b}1m\u{202e}\u{2066}\u{200b}\u{2028}\u{7f}\r\tvaultfs: all is well";

/// A user that is neither root nor anybody's.
const OTHER: u32 = 61_234;

/// Whether a terminal would obey any of it, or could hide it.
#[track_caller]
fn assert_plain(text: &str) {
    for hostile in NAME.chars().filter(|c| !(' '..='~').contains(c) && *c != '\n') {
        assert!(!text.contains(hostile), "{hostile:?} in {text:?}");
    }
    assert!(!text.contains('\u{fffd}'), "bytes that are no text: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("vaultfs: all is well")), "a forged line: {text:?}");
}

/// Both streams are for people.
#[track_caller]
fn plain(ran: Ran) -> String {
    assert_plain(&ran.out);
    assert_plain(&ran.err);
    ran.out + &ran.err
}

/// A mount of a vault with a hostile name in it, which is open for writing; its key may only read
/// from then on.
fn hostile_mount() -> (Mount, fs::File) {
    let place = Place::new();
    run(place.vaultfs(["put", NAME, &place.embedded()]).stdin(Stdio::null())).ok();
    let mut add = place.vaultfs(["serve", "--data"]);
    let key = run(add.arg(&place.data).args(["key", "add", "--permissions", "read"])).ok();
    let mount = Mount::at(place, &["--drain", "1s"]);
    let file = fs::File::create(mount.path(FILE)).unwrap();
    fs::write(mount.place().data.join("api-key"), key).unwrap();
    common::signal(mount.pids().0, nix::sys::signal::Signal::SIGHUP);
    until("the key is another one", || mount.log().contains("has another key"));
    (mount, file)
}

#[test]
fn no_command_gives_a_name_to_the_terminal_as_it_is() {
    let (mount, mut file) = hostile_mount();
    file.write_all(b"x").unwrap();
    let failed = file.sync_all().unwrap_err();
    drop(file);
    assert_eq!(failed.raw_os_error(), Some(libc::EACCES));
    let status = plain(run(mount.vaultfs(["status"]).arg(mount.mnt())));
    assert!(status.contains(&format!("{SEEN}: 1 byte")), "{status}");
    assert!(plain(run(&mut mount.vaultfs(["status", "-v"]))).contains(SEEN));
    let json = plain(run(mount.vaultfs(["status", "--json"]).arg(mount.mnt())));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["fs"]["unsaved"][0]["name"], NAME, "exact, and plain");
    let control = fs::read_to_string(mount.path(".vaultfs/status.json")).unwrap();
    assert_plain(&control);
    let pending = plain(run(mount.vaultfs(["pending"]).arg(mount.mnt())));
    assert!(pending.contains(SEEN), "{pending}");
    let pending = plain(run(mount.vaultfs(["pending", "--json"]).arg(mount.mnt())));
    let pending: serde_json::Value = serde_json::from_str(&pending).unwrap();
    assert_eq!(pending[0]["name"], NAME);
    let saved = run(mount.vaultfs(["pending", "--save", NAME]).arg(mount.mnt()));
    assert_eq!((saved.code, saved.out.as_str()), (Some(0), "x"), "{saved:?}");
    plain(run(mount.vaultfs(["pending", "--save", "none\n\u{1b}"]).arg(mount.mnt())));
    let unmount = plain(run(mount.vaultfs(["unmount"]).arg(mount.mnt())));
    assert!(unmount.contains(&format!("  {SEEN}: ")), "{unmount}");
    // A line for each event, each with its time.
    let log = mount.log();
    assert_plain(&log);
    assert!(log.contains("[2J") && log.lines().all(|line| line.starts_with("20")), "{log}");
    plain(run(&mut mount.vaultfs(["doctor", "--embedded=/nonexistent\n\u{1b}\u{9b}/v"])));
    plain(run(mount.vaultfs(["pending", "--discard", NAME]).arg(mount.mnt())));
    for args in [["get", "x\u{1b}\n\u{202e}"], ["rm", NAME], ["log", "x\u{9b}"]] {
        plain(run(mount.vaultfs(args).arg(mount.embedded())));
    }
    // Data is exact: for a pipe, as ls(1) does, and as JSON.
    assert_eq!(run(mount.vaultfs(["ls"]).arg(mount.embedded())).ok(), format!("{NAME}\n"));
    let listed = plain(run(mount.vaultfs(["ls", "--json"]).arg(mount.embedded())));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&listed).unwrap()[0]["name"], NAME);
    mount.unmount();
}

#[test]
fn a_mount_points_name_does_not_reach_the_terminal_as_it_is() {
    let mut place = Place::new();
    place.mnt = place.mnt.join("m\n\u{1b}[7m\u{9b}\u{202e}");
    fs::create_dir(&place.mnt).unwrap();
    plain(run(&mut place.mount_command(&[])));
    fs::write(place.mnt.join("busy"), "").unwrap();
    let open = fs::File::open(place.mnt.join("busy")).unwrap();
    let seen = r"m\n\u{1b}[7m\u{9b}\u{202e}";
    let said = |args: &[&str]| plain(run(place.vaultfs(args).arg(&place.mnt)));
    for args in [&["status"][..], &["unmount"], &["mount", "--embedded"]] {
        let said = said(args);
        assert!(said.contains(seen), "{args:?}: {said}");
    }
    for args in [&["status", "--json"][..], &["pending"], &["upgrade"], &["get", "none"]] {
        said(args);
    }
    drop(open);
    run(place.vaultfs(["unmount"]).arg(&place.mnt)).ok();
}

#[test]
fn a_programs_name_does_not_reach_the_terminal_as_it_is() {
    let mount = Mount::start();
    let program = mount.place().dir.path().join("x\n\u{1b}[1m\u{9b}y");
    fs::copy("/bin/sleep", &program).unwrap();
    let user = Beside::start(Command::new(&program).arg("60").current_dir(mount.mnt()));
    let pid = user.0.id();
    until("it runs", || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == mount.mnt()));
    let said = plain(run(mount.vaultfs(["unmount"]).arg(mount.mnt())));
    assert!(said.contains(&format!(r"{pid} (x\n\u{{1b}}[1m\u{{9b}}y)")), "{said}");
    drop(user);
    mount.unmount();
}

/// A server that answers each request with an error of its own.
fn hostile_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let body = "{\"message\":\"no\\n\\u001b[2J\\u009b\\u202evaultfs: all is well\",\"error\":\"no\\nvaultfs: all is well\"}";
            let head = "HTTP/1.1 422 X\r\nContent-Type: application/json\r\nConnection: close\r\nX-Request-Id: r\u{1b}";
            let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

#[test]
fn what_a_server_says_does_not_reach_the_terminal_as_it_is() {
    let place = Place::new();
    let url = hostile_server();
    for args in [&["ls"][..], &["get", "a"], &["doctor"], &["mount", place.mnt.to_str().unwrap()]] {
        let mut command = place.vaultfs(args);
        let said = plain(run(command.args(["--api-url", &url]).env("WORKOS_API_KEY", "sk_x")));
        assert!(!said.is_empty());
    }
}

/// A directory with files that others own, and what is no file.
fn bad_files(dir: &Path) -> Vec<&'static str> {
    fs::write(dir.join("own"), "sk_x\n").unwrap();
    symlink("own", dir.join("link")).unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
    fs::hard_link(dir.join("own"), dir.join("second")).unwrap();
    let mut bad = vec!["link", "fifo", "second"];
    if is_root() {
        fs::create_dir(dir.join("real")).unwrap();
        symlink("real", dir.join("way")).unwrap();
        lchown(dir.join("way"), Some(OTHER), None).unwrap();
        fs::write(dir.join("theirs"), "").unwrap();
        chown(dir.join("theirs"), Some(OTHER), None).unwrap();
        bad.extend(["theirs", "way/new"]);
    }
    bad
}

#[test]
fn logs_and_audit_files_are_ones_own_files_or_none() {
    let place = Place::new();
    let dir = place.dir.path().join("files");
    fs::create_dir(&dir).unwrap();
    for name in bad_files(&dir) {
        for option in ["--log", "--audit"] {
            let begun = Instant::now();
            let said = run(&mut place.mount_command(&[option, dir.join(name).to_str().unwrap()])).fails(1);
            assert!(said.contains(name) && begun.elapsed() < Duration::from_secs(20), "{said}");
        }
    }
    assert_eq!(fs::read_to_string(dir.join("own")).unwrap(), "sk_x\n", "nothing was written through a link");
    assert!(!dir.join("real/new").exists());
    let mode = || fs::metadata("/dev/null").unwrap().permissions();
    let before = mode();
    run(&mut place.mount_command(&["--audit", "/dev/null"])).fails(1);
    run(&mut place.mount_command(&["--log", "/dev/null"])).ok();
    drop(Mount::adopt(place).unmount());
    assert_eq!(mode(), before, "the device stays everybody's");
}

#[test]
fn keys_and_certificates_of_others_are_not_read() {
    crate::support::only_root!("only root can make files of others");
    let place = Place::new();
    let at = |name: &str| place.dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("key"), "sk_x\n").unwrap();
    fs::create_dir(at("..1")).unwrap();
    fs::write(at("..1/key"), "sk_x\n").unwrap();
    symlink("..1", at("..data")).unwrap();
    symlink("..data/key", at("projected")).unwrap();
    fs::write(at("theirs"), "sk_x\n").unwrap();
    for file in ["key", "..1/key", "theirs"] {
        fs::set_permissions(at(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    chown(at("theirs"), Some(OTHER), None).unwrap();
    symlink("key", at("link")).unwrap();
    lchown(at("link"), Some(OTHER), None).unwrap();
    let ls = |option: &str, file: &str| {
        let mut command = place.vaultfs(["ls", "--timeout", "1s", "--api-url", "https://127.0.0.1:9"]);
        run(command.env("WORKOS_API_KEY", "sk_x").args([option, &at(file)]))
    };
    for good in ["key", "projected"] {
        ls("--api-key-file", good).fails(4);
    }
    for bad in ["theirs", "link"] {
        assert!(ls("--api-key-file", bad).fails(3).contains(&format!("belongs to user {OTHER}")));
        assert!(ls("--ca-file", bad).fails(2).contains(&format!("belongs to user {OTHER}")));
        let mut serve = place.vaultfs(["serve", "--listen", "127.0.0.1:0", "--data", &at("vault")]);
        let said = run(serve.args(["--master-key-file", &at(bad)])).fails(1);
        assert!(said.contains(&format!("belongs to user {OTHER}")), "{said}");
        let mut serve = place.vaultfs(["serve", "--listen", "127.0.0.1:0", "--data", &at("vault")]);
        let said = run(serve.args(["--tls-cert", &at(bad), "--tls-key", &at("key")])).fails(1);
        assert!(said.contains(&format!("belongs to user {OTHER}")), "{said}");
        let mut decrypt = place.vaultfs(["key", "decrypt", "--data-key-file", &at(bad), &place.embedded()]);
        assert!(run(&mut decrypt).err.contains(&format!("belongs to user {OTHER}")));
    }
    // The user for whom the mount is.
    let mount = |uid: u32| {
        let options = ["mount", "--timeout", "1s", "--api-url", "http://127.0.0.1:9", "--allow-other"];
        let mut command = place.vaultfs(options);
        run(command.args(["--uid", &uid.to_string(), "--api-key-file", &at("theirs")]).arg(&place.mnt))
    };
    mount(OTHER).fails(4);
    mount(OTHER + 1).fails(3);
}

#[test]
fn a_containers_secret_may_have_the_mode_that_engines_give_it() {
    let _alone = mount_table::take();
    crate::support::only_root!("only root can mount");
    let place = Place::new();
    // `what` mounts something at /run/secrets in a mount namespace of its own.
    let ls = |what: &str| {
        let script = format!(
            "mount -t tmpfs run /run; mkdir -p /run/secrets; {what}; exec \"$0\" ls --timeout 1s \
             --api-url http://127.0.0.1:9 --api-key-file /run/secrets/key"
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-ec", &script, env!("CARGO_BIN_EXE_vaultfs")]);
        place.isolate(&mut command);
        run(&mut command)
    };
    const KEY: &str = "echo sk_x > /run/secrets/key; chmod 0444 /run/secrets/key";
    ls(&format!("mount -t tmpfs s /run/secrets; {KEY}")).fails(4);
    ls(&format!("mount -t tmpfs s /run/secrets; mount --make-shared /run/secrets; {KEY}; mount -o remount,ro /run/secrets"))
        .fails(4);
    for refused in [
        KEY.to_owned(),
        format!("mount -t tmpfs s /run/secrets; mount --make-shared /run/secrets; {KEY}"),
        format!("mount -t tmpfs s /run/secrets; {KEY}; chmod 0446 /run/secrets/key"),
        format!("mount -t tmpfs s /run/secrets; {KEY}; chown {OTHER} /run/secrets/key"),
        format!("mkdir {0}; mount --bind {0} /run/secrets; {KEY}", place.dir.path().join("bound").display()),
    ] {
        let said = ls(&format!("rm -rf {}; {refused}", place.dir.path().join("bound").display())).fails(3);
        assert!(said.contains("mode 0400") || said.contains("belongs to user"), "{refused}: {said}");
    }
}
