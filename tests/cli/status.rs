//! What `vaultfs status` prints: a line for each mount, the details of one, and where its log is.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::common::{Mount, Place, run, signal, until};
use crate::support::pty::Terminal;
use crate::support::vault_server::Server;

/// The line of a mount in the table, as words.
fn row(table: &str, mount: &Mount) -> Vec<String> {
    let at = mount.mnt().to_str().unwrap();
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(at));
    line.unwrap_or_else(|| panic!("{at} in {table}")).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn without_a_mount_point_status_is_a_table_with_a_header() {
    let mount = Mount::start();
    let table = run(&mut mount.vaultfs(["status"])).out;
    let mut columns = table.lines().next().unwrap().split_whitespace();
    assert!(columns.by_ref().eq(["MOUNTPOINT", "STATE", "VAULT", "UNSAVED", "UP"]), "{table}");
    let vault = mount.embedded().trim_start_matches("--").to_owned();
    assert_eq!(row(&table, &mount)[1..4], ["ok".to_owned(), vault, "0".to_owned()], "{table}");
    let (at, from) = (mount.mnt().to_str().unwrap(), table.find("STATE").unwrap());
    let line = table.lines().find(|line| line.starts_with(&format!("{at} "))).unwrap();
    assert!(line[from..].starts_with("ok "), "{table}");
    // A terminal shows the same, with a colour.
    let (_, seen) = Terminal::run(&mut mount.vaultfs(["status"])).ends();
    assert!(seen.starts_with("MOUNTPOINT ") && seen.contains("\u{1b}[32mok\u{1b}[0m "), "{seen}");
    // Details are for those who ask.
    assert!(!table.contains("budget"), "{table}");
    let all = run(&mut mount.vaultfs(["status", "-v"])).out;
    assert!(all.contains(&format!("{at}  ok\n")) && all.contains("  budget "), "{all}");
    mount.unmount();
}

#[test]
fn no_mount_has_one_exit_code() {
    let place = Place::new();
    // Mounts are found by the user, and this user has none.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let program = place.dir.path().join("vaultfs");
    fs::copy(crate::support::common::VAULTFS, &program).unwrap();
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for words in [&["status"][..], &["status", "--json"], &["pending"], &["upgrade"], &["ls"]] {
        let mut command = std::process::Command::new(&program);
        std::os::unix::process::CommandExt::uid(command.args(words).env_clear().current_dir("/"), 61_234);
        let ran = run(&mut command);
        assert_eq!(ran.code, Some(5), "{words:?}: {ran:?}");
        assert!(ran.err.contains("mount"), "{words:?}: {ran:?}");
        assert_eq!(ran.out, if words.len() > 1 { "[]\n" } else { "" }, "{words:?}");
    }
}

#[test]
fn failures_of_programs_are_shown_and_no_mount_is_not_well_for_them() {
    let mount = Mount::start();
    assert!(std::os::unix::fs::symlink("a", mount.path("link")).is_err());
    assert!(fs::write(mount.path("big"), vec![b'x'; 2 << 20]).is_err());
    let said = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
    assert!(said.starts_with(&format!("{}  ok\n", mount.mnt().display())), "{said}");
    assert!(said.contains("  failed ") && said.contains(" link: "), "{said}");
    assert_eq!(row(&run(&mut mount.vaultfs(["status"])).out, &mount)[1], "ok");
    mount.unmount();
}

#[test]
fn status_and_messages_name_the_log() {
    let mut place = Place::new();
    place.mnt = fs::canonicalize(&place.mnt).unwrap();
    let log = place.dir.path().join("own.log");
    let mount = Mount::at(place, &["--log", log.to_str().unwrap()]);
    let log = format!("  log        {}\n", log.display());
    assert_eq!(mount.status()["log"].as_str(), log.split_whitespace().nth(1));
    let said = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
    assert!(said.contains(&log), "{said}");
    let (keeper, worker) = mount.pids();
    signal(worker, nix::sys::signal::Signal::SIGSTOP);
    signal(keeper, nix::sys::signal::Signal::SIGKILL);
    signal(worker, nix::sys::signal::Signal::SIGKILL);
    until("the mount is dead", || {
        fs::read_dir(mount.mnt()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    let said = run(mount.vaultfs(["status"]).arg(mount.mnt())).prints(1);
    assert!(said.contains("DEAD: ") && said.contains(&log), "{said}");
    let table = run(&mut mount.vaultfs(["status"])).prints(1);
    assert_eq!(row(&table, &mount)[1..3], ["NOT", "WELL"], "{table}");
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).ok();
    mount.unmount_done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_not_well_has_exit_code_1_and_a_cause_is_shown_once() {
    let server = Server::start().await;
    let place = Place::new();
    let key = place.dir.path().join("key");
    fs::write(&key, &server.key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let url = server.url.clone();
    let way = ["mount", "--timeout=2s", "--refresh=1s", "--drain=1s", "--api-url", &url, "--api-key-file"];
    run(place.vaultfs(way).arg(&key).arg(&place.mnt)).ok();
    let mount = Mount::adopt(place);
    for name in ["one", "two"] {
        fs::write(mount.path(name), "1").unwrap();
    }
    run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
    server.stop().await;
    for name in ["one", "two"] {
        let mut file = fs::File::create(mount.path(name)).unwrap();
        std::io::Write::write_all(&mut file, b"2").unwrap();
        file.sync_all().unwrap_err();
    }
    let _ = fs::read(mount.path("absent"));
    let said = run(mount.vaultfs(["status"]).arg(mount.mnt())).prints(1);
    assert!(said.contains("NOT WELL: 2 saves failed") && said.contains("DOES NOT ANSWER"), "{said}");
    assert_eq!(said.matches("no connection to the vault").count(), 1, "{said}");
    assert!(said.contains("one: 1 byte, see above\n") && !said.contains("vault_obj_"), "{said}");
    let table = run(&mut mount.vaultfs(["status"])).prints(1);
    assert_eq!(row(&table, &mount)[1..5], ["NOT", "WELL", &url, "2"], "{table}");
    run(mount.vaultfs(["status", "--json"]).arg(mount.mnt())).prints(1);
    run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).fails(7);
    mount.unmount_done();
}

/// As /etc/fstab has it. A comma ends no option of fusermount3, and no escape gets into the table.
#[test]
fn the_mount_table_names_the_vault() {
    for odd in ["data", "a,b\\c d", "e\u{1b}[7mn\n"] {
        let mut place = Place::new();
        place.data = place.dir.path().join(odd);
        let mount = Mount::at(place, &[]);
        let mut findmnt = std::process::Command::new("findmnt");
        let source = run(findmnt.args(["-n", "-r", "-o", "SOURCE", "-M"]).arg(mount.mnt())).ok();
        let dir = mount.mnt().with_file_name(odd).to_str().unwrap().replace('\\', "\\\\");
        let dir = dir.replace('\u{1b}', "\\u{1b}").replace('\n', "\\n");
        // findmnt -r escapes what is no plain character.
        let raw = |text: &str| text.replace("\\x20", " ").replace("\\x5c", "\\");
        assert_eq!(raw(source.trim_end()), format!("embedded={dir}"), "{odd:?}");
        fs::write(mount.path("a"), "1").unwrap();
        mount.unmount();
    }
}

#[test]
fn json_is_one_array_for_each_list() {
    let mount = Mount::start();
    fs::write(mount.path("a"), "1").unwrap();
    let (at, embedded) = (mount.mnt().to_str().unwrap().to_owned(), mount.embedded());
    let array = |args: &[&str]| -> Vec<serde_json::Value> {
        let ran = run(&mut mount.vaultfs(args));
        serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{args:?}: {e}: {ran:?}"))
    };
    assert_eq!(array(&["status", "--json", &at])[0]["mountpoint"], at.as_str());
    assert!(array(&["pending", "--json", &at]).is_empty());
    assert_eq!(array(&["ls", "--json", &embedded])[0]["name"], "a");
    assert_eq!(array(&["log", "a", "--json", &embedded])[0]["version"], 1);
    assert!(array(&["doctor", "--json", &embedded]).iter().all(|finding| finding["check"].is_string()));
    let upgraded = array(&["upgrade", "--json", &at]);
    assert_eq!((&upgraded[0]["mountpoint"], upgraded.len()), (&at.clone().into(), 1));
    let place = mount.unmount();
    let data = place.data.to_str().unwrap();
    let keys = run(&mut place.vaultfs(["serve", "--data", data, "key", "list", "--json"])).ok();
    let keys: Vec<serde_json::Value> = serde_json::from_str(&keys).unwrap();
    assert_eq!(keys[0]["permissions"], serde_json::json!(["read", "write", "delete", "keys"]));
    assert!(keys[0]["id"].as_str().unwrap().starts_with("key_") && keys[0]["name"].is_string(), "{keys:?}");
    assert!(keys[0]["created_at"].as_str().unwrap().ends_with('Z'), "{keys:?}");
}
