//! The canary test: secrets that occur nowhere else go through every path of the built program,
//! failures included, at its most verbose; then they are looked for wherever a secret must not be.
//!
//! `hunt` knows where to look, `play` drives a mount and the commands, `echo` is a server that
//! repeats in its broken answers what it was sent, `memory` looks into the processes.

mod echo;
mod hunt;
mod memory;
mod play;

use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use hunt::{Hunt, canary};
use play::{Secret, Vault};

use crate::support::common::{Beside, Place, is_mounted, is_root, processes_of, run, signal, until};

/// Where sockets and records of mounts are, for whoever runs this.
fn runtime_dirs() -> Vec<PathBuf> {
    let uid = nix::unistd::geteuid();
    let dirs = ["/run/vaultfs".to_owned(), format!("/run/user/{uid}/vaultfs"), format!("/tmp/vaultfs-{uid}")];
    dirs.map(PathBuf::from).to_vec()
}

/// Everything below the test's directory but the mount and the key files; what our processes show.
#[track_caller]
fn nothing_shows(when: &str, hunt: &Hunt, place: &Place) {
    let (root, key) = (fs::canonicalize(place.dir.path()).unwrap(), place.data.join("api-key"));
    let (keys, runtime) = (root.join("keys"), runtime_dirs());
    let mut roots: Vec<&Path> = vec![&root];
    roots.extend(runtime.iter().map(PathBuf::as_path));
    // Each process of ours names the mount point or the vault's directory in its arguments.
    let mut pids = processes_of(&place.mnt);
    pids.extend(processes_of(&place.data));
    hunt.nowhere(when, &roots, &[&place.mnt, &key, &keys], &pids);
}

/// What the vault made as key at its first start, without the prefix that all keys have.
fn guard_key(hunt: &mut Hunt, place: &Place) -> String {
    let file = place.data.join("api-key");
    let key = fs::read_to_string(&file).unwrap().trim().to_owned();
    hunt.guard("the API key", key.strip_prefix("sk_").unwrap());
    assert!(!hunt.find(&fs::read(file).unwrap()).is_empty(), "the search finds what is there");
    key
}

#[test]
fn the_embedded_vault_leaves_no_trace() {
    let (mut hunt, secret) = (Hunt::default(), Secret::new());
    secret.guard(&mut hunt);
    let vault = Vault::new(Place::new(), None);
    let log = vault.place().dir.path().join("mount.log");
    let args = ["-vvv", "--max-size", "64KiB", "--log", log.to_str().unwrap()];
    run(vault.command(&["mount"]).args(args).arg(&vault.place().mnt)).ok();
    let vault = vault.watched();
    guard_key(&mut hunt, vault.place());

    let open = play::files(&vault, &secret, &mut hunt);
    nothing_shows("while a file is being written", &hunt, vault.place());
    drop(open);
    play::commands(&vault, &secret, &mut hunt);
    nothing_shows("mounted", &hunt, vault.place());
    assert!(fs::metadata(&log).unwrap().len() > 0, "it logged");

    let place = vault.unmount();
    nothing_shows("afterwards", &hunt, &place);
    only_json(place, &secret, &mut hunt);
}

/// `--format json`, and text that is none: the codec's errors.
fn only_json(place: Place, secret: &Secret, hunt: &mut Hunt) {
    let vault = Vault::new(place, None);
    let log = vault.place().dir.path().join("json.log");
    let args = ["-vvv", "--format", "json", "--log", log.to_str().unwrap()];
    run(vault.command(&["mount"]).args(args).arg(&vault.place().mnt)).ok();
    let vault = vault.watched();
    for (case, text) in secret.broken_json().iter().enumerate() {
        let mut file = fs::File::create(vault.path(format!("no-json-{case}"))).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EINVAL), "case {case}");
    }
    play::say(&mut vault.command_with_mount(&["status"]), hunt).prints(1);
    nothing_shows("refused as no JSON", hunt, vault.place());
    let left = play::say(&mut vault.command_with_mount(&["unmount"]), hunt);
    assert_eq!(left.code, Some(7), "{}", left.err);
    play::say(&mut vault.command_with_mount(&["unmount", "--force"]), hunt).fails(7);
    nothing_shows("afterwards", hunt, vault.place());
}

/// `vaultfs serve`, at its most verbose, on a port of its own; output goes to files of the test.
fn serve(place: &Place) -> (Beside, String) {
    let file = |name: &str| fs::File::create(place.dir.path().join(name)).unwrap();
    let mut command =
        place.vaultfs(["serve", "--listen", "127.0.0.1:0", "-vvv", "--max-size", "64KiB", "--data"]);
    command.arg(&place.data).stdout(file("serve.out")).stderr(file("serve.err"));
    // As a shell with `ulimit -c unlimited` would start it.
    let unlimited = || {
        let all = nix::sys::resource::RLIM_INFINITY;
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, all, all);
        Ok(())
    };
    // SAFETY: one system call, which allocates nothing.
    unsafe { command.pre_exec(unlimited) };
    let served = Beside::start(&mut command);
    let out = || fs::read_to_string(place.dir.path().join("serve.out")).unwrap();
    until("it serves", || out().ends_with('\n'));
    (served, out().trim().to_owned())
}

/// Mounts the vault at `url` in the foreground, so that the process that had the key in its
/// environment stays.
fn mount_in_front(place: &Place, url: &str, key: &str) -> Beside {
    let log = fs::File::create(place.dir.path().join("front.log")).unwrap();
    let timeouts = ["--timeout", "2s", "--drain", "1s", "--refresh", "10ms", "--max-size", "128KiB"];
    let mut command = place.vaultfs(["mount", "-f", "-vvv", "--api-url", url]);
    command.args(timeouts).arg(&place.mnt).env("WORKOS_API_KEY", key).env("TMPDIR", place.dir.path());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let front = Beside::start(&mut command);
    until("it is mounted", || is_mounted(&place.mnt) && processes_of(&place.mnt).len() >= 3);
    let status = || place.vaultfs(["status"]).arg(&place.mnt).stdout(Stdio::null()).status().unwrap();
    until("it answers", || status().success());
    front
}

#[test]
fn a_served_vault_and_its_key_leave_no_trace_even_when_it_dies() {
    let (mut hunt, secret, place) = (Hunt::default(), Secret::new(), Place::new());
    secret.guard(&mut hunt);
    let (mut served, url) = serve(&place);
    guard_key(&mut hunt, &place);
    refused_keys(&place, &url, &mut hunt);
    // A key that is in no file at all.
    let (key, _) = made_key(&place, "read,write,delete", &mut hunt);
    let mut front = mount_in_front(&place, &url, &key);
    let vault = Vault::new(place, Some((url.clone(), key))).watched();
    hardened(vault.place(), served.0.id() as i32);

    let open = play::files(&vault, &secret, &mut hunt);
    nothing_shows("while a file is being written", &hunt, vault.place());
    drop(open);
    play::commands(&vault, &secret, &mut hunt);
    nothing_shows("mounted", &hunt, vault.place());

    forbidden(&vault, &url, &secret, &mut hunt);

    // The vault dies, as it would from a bug: no core, and the mount has what it could not store.
    signal(served.0.id() as i32, Signal::SIGABRT);
    let end = served.ends();
    assert_eq!(end.signal(), Some(libc::SIGABRT));
    assert!(!end.core_dumped(), "a core file would hold what it served");
    let failed = refused(&vault, &secret);
    assert!(matches!(failed, libc::EIO | libc::ETIMEDOUT), "{failed}");
    let status = play::say(&mut vault.command_with_mount(&["status", "--json"]), &mut hunt).prints(1);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status[0]["fs"]["unsaved"][0]["name"], "text", "{status}");
    play::say(&mut vault.command_with_mount(&["status"]), &mut hunt);
    for words in [&["pending"][..], &["pending", "--json"]] {
        let pending = play::say(&mut vault.command_with_mount(words), &mut hunt);
        assert!(pending.out.contains("text"), "{pending:?}");
    }
    play::say(&mut vault.command(&["ls"]), &mut hunt);
    hunt.hear("status.json", fs::read(vault.path(".vaultfs/status.json")).unwrap());
    hunt.hear("metrics", fs::read(vault.path(".vaultfs/metrics")).unwrap());
    nothing_shows("without its vault", &hunt, vault.place());
    let left = play::say(&mut vault.command_with_mount(&["unmount"]), &mut hunt);
    assert_eq!(left.code, Some(7), "{}", left.err);
    play::say(&mut vault.command_with_mount(&["unmount", "--force"]), &mut hunt).fails(7);
    front.ends();
    nothing_shows("afterwards", &hunt, vault.place());
}

/// The errno of a save that fails.
fn refused(vault: &Vault, secret: &Secret) -> i32 {
    let open = fs::OpenOptions::new().append(true).open(vault.path("text"));
    let stored = open.and_then(|mut file| {
        file.write_all(secret.text().as_bytes())?;
        file.sync_all()
    });
    stored.unwrap_err().raw_os_error().unwrap()
}

/// A new key of the served vault, and its id. It is printed once, and from then on it is looked
/// for.
fn made_key(place: &Place, permissions: &str, hunt: &mut Hunt) -> (String, String) {
    let data = place.data.to_str().unwrap();
    let add = ["serve", "-vvv", "--data", data, "key", "add", "--permissions", permissions];
    let made = play::say_errors(&mut place.vaultfs(add), hunt);
    let id = made.err.split_once("made ").unwrap().1.split(' ').next().unwrap().to_owned();
    let key = made.ok().trim().to_owned();
    hunt.guard("a made key", key.strip_prefix("sk_").unwrap());
    let list = play::say(&mut place.vaultfs(["serve", "--data", data, "key", "list"]), hunt).ok();
    assert!(list.contains(&id));
    (key, id)
}

/// A key that may only read, and then nothing.
fn forbidden(vault: &Vault, url: &str, secret: &Secret, hunt: &mut Hunt) {
    let (key, id) = made_key(vault.place(), "read", hunt);
    let command = |words: &[&str]| {
        let mut command = vault.place().vaultfs(words);
        command.args(["--api-url", url]).env("WORKOS_API_KEY", &key);
        command
    };
    assert_eq!(play::feed(&mut command(&["put", "text"]), secret.text().repeat(2).as_bytes(), hunt), Some(3));
    play::say(&mut command(&["rm", "text"]), hunt).fails(3);
    play::say(&mut command(&["ls"]), hunt).ok();
    let revoke = ["serve", "--data", vault.place().data.to_str().unwrap(), "key", "revoke", &id];
    play::say(&mut vault.place().vaultfs(revoke), hunt).ok();
    play::say(&mut command(&["ls"]), hunt).fails(3);
}

/// Keys that are not taken: none of them is repeated.
fn refused_keys(place: &Place, url: &str, hunt: &mut Hunt) {
    let keys = place.dir.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let wrong = canary("wrong");
    hunt.guard("a wrong key", &wrong);
    let mut refused = |what: &str, key: Option<&str>, file: Option<(&str, u32)>| {
        let mut command = place.vaultfs(["mount", "-vvv", "--api-url", url]);
        if let Some(key) = key {
            command.env("WORKOS_API_KEY", key);
        }
        if let Some((text, mode)) = file {
            let path = keys.join(what);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            command.arg("--api-key-file").arg(path);
        }
        play::say(command.arg(&place.mnt), hunt).fails(3);
        assert!(!is_mounted(&place.mnt), "{what}");
    };
    refused("unknown", Some(&format!("sk_{wrong}")), None);
    refused("two-lines", Some(&format!("sk_{wrong}\nsk_{wrong}")), None);
    refused("not-ascii", Some(&format!("{wrong}ü")), None);
    refused("unknown-file", None, Some((&format!("sk_{wrong}\n"), 0o600)));
    refused("open", None, Some((&format!("sk_{wrong}\n"), 0o644)));
    refused("for-the-group", None, Some((&format!("sk_{wrong}\n"), 0o660)));
    refused("too-long", None, Some((&wrong.repeat(1000), 0o600)));
    refused("no-line", None, Some((&format!("{wrong} {wrong}\n"), 0o600)));
}

/// No core, and memory locked where the limit allows; where not, `status` says so.
fn hardened(place: &Place, served: i32) {
    let status = run(place.vaultfs(["status", "--json"]).arg(&place.mnt)).ok();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let memory = &status[0]["memory"];
    let pid = |name: &str| status[0][name].as_i64().unwrap() as i32;
    let front = processes_of(&place.mnt);
    let mut seen = 0;
    for pid in front.into_iter().chain([served]) {
        // One that has just asked for the status may have ended.
        let Ok(limits) = fs::read_to_string(format!("/proc/{pid}/limits")) else { continue };
        seen += 1;
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().filter(|w| *w == "0").count(), 2, "{core}");
        // Its own user cannot look in; root always can.
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).is_ok(), is_root(), "process {pid}");
    }
    assert!(seen >= 4, "keeper, worker, helper and server, of which {seen} are there");
    let locked = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmLck:")).unwrap().trim().to_owned();
        line.trim_end_matches(" kB").parse::<u64>().unwrap() > 0
    };
    let text = run(place.vaultfs(["status"]).arg(&place.mnt)).ok();
    for name in ["keeper", "worker"] {
        let is_locked = locked(pid(&format!("{name}_pid")));
        assert_eq!(memory[name] == "locked", is_locked, "{name}: {memory}");
        assert!(is_locked || text.contains("NOT locked"), "{text}");
    }
    assert_eq!(locked(served), memory["worker"] == "locked", "the server's limit is the same");
}

#[test]
fn answers_that_repeat_secrets_are_not_repeated() {
    let (mut hunt, secret, place) = (Hunt::default(), Secret::new(), Place::new());
    secret.guard(&mut hunt);
    let key = canary("key");
    hunt.guard("the API key", &key);
    let server = echo::Echo::start(secret.text());
    let mut front = mount_in_front(&place, &server.url, &format!("sk_{key}"));
    let vault = Vault::new(place, Some((server.url.clone(), format!("sk_{key}")))).watched();
    for case in 0..server.cases {
        let name = format!("get{case}");
        let _ = fs::read(vault.path(&name));
        play::say_errors(&mut vault.command(&["get", &name, "--timeout", "2s"]), &mut hunt);
        let name = format!("put{case}");
        let _ = fs::write(vault.path(&name), secret.text());
        play::feed(
            &mut vault.command(&["put", &name, "--timeout", "2s"]),
            secret.text().as_bytes(),
            &mut hunt,
        );
    }
    assert!(server.hits() >= 4 * server.cases, "{} requests: not every path was driven", server.hits());
    hunt.hear("status.json", fs::read(vault.path(".vaultfs/status.json")).unwrap());
    play::say(&mut vault.command_with_mount(&["status"]), &mut hunt).prints(1);
    play::say(&mut vault.command_with_mount(&["unmount"]), &mut hunt).fails(7);
    nothing_shows("after broken answers", &hunt, vault.place());
    play::say(&mut vault.command_with_mount(&["unmount", "--force"]), &mut hunt).fails(7);
    front.ends();
    nothing_shows("afterwards", &hunt, vault.place());
}

/// What a panic says could quote anything: only its place is shown. The panic is provoked in a
/// process of its own, by this test itself when it finds the variable.
#[test]
fn a_panic_says_only_where() {
    const VARIABLE: &str = "VAULTFS_TEST_PANIC";
    if let Some(word) = std::env::var_os(VARIABLE) {
        vaultfs::cli::log::quiet_panics();
        panic!("{}", word.display());
    }
    let (mut hunt, word) = (Hunt::default(), canary("panic"));
    hunt.guard("the panic's text", &word);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "canary::a_panic_says_only_where", "--nocapture"]).env(VARIABLE, &word);
    let said = run(&mut command);
    assert_eq!(said.code, Some(101));
    assert!(said.err.contains("panic at ") && said.err.contains("canary/mod.rs"), "{}", said.err);
    assert!(hunt.find((said.out + &said.err).as_bytes()).is_empty());
}
