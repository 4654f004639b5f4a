//! The volume plugin as an engine meets it: its socket, spoken to as dockerd and podman do, over
//! real mounts.

mod containers;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::containers::container;
use crate::support::common::{Beside, Place, is_mounted, is_root, processes_of, run, signal, until, wait};
use crate::support::plugin::{Plugin, server};

#[test]
fn a_conversation_with_dockerd() {
    let plugin = Plugin::start(Place::new(), &[]);
    let meta = fs::metadata(plugin.socket()).unwrap();
    assert!(meta.file_type().is_socket() && meta.mode() & 0o777 == 0o600);
    assert_eq!(plugin.ask("Plugin.Activate", ""), (200, json!({ "Implements": ["VolumeDriver"] })));
    assert_eq!(
        plugin.ask("VolumeDriver.Capabilities", ""),
        (200, json!({ "Capabilities": { "Scope": "local" } }))
    );
    // `docker volume create` and `docker volume ls`.
    assert!(
        plugin.refused("VolumeDriver.Get", json!({ "Name": "v1" })).contains("no vaultfs volume named v1")
    );
    plugin.create("v1", json!({ "prefix": "app" }));
    plugin.create("v1", json!({ "prefix": "app" }));
    let listed = plugin.ok("VolumeDriver.List", json!({}));
    assert_eq!(
        (listed["Volumes"][0]["Name"].as_str(), listed["Volumes"][0]["Mountpoint"].as_str()),
        (Some("v1"), Some(""))
    );
    // `docker run`: mounted, unmounted, mounted again under another ID; a second container beside
    // it.
    let at = plugin.mount("v1", "id-1");
    plugin.unmount("v1", "id-1");
    until("it is unmounted and leaves no directory", || !at.exists());
    assert_eq!((plugin.mount("v1", "id-2"), plugin.mount("v1", "id-3")), (at.clone(), at.clone()));
    fs::write(at.join("token"), "s3cret").unwrap();
    assert_eq!(plugin.ok("VolumeDriver.Path", json!({ "Name": "v1" }))["Mountpoint"], json!(at));
    assert_eq!(plugin.ok("VolumeDriver.Get", json!({ "Name": "v1" }))["Volume"]["Status"]["users"], 2);
    plugin.unmount("v1", "id-2");
    let open = fs::File::open(at.join("token")).unwrap();
    assert!(plugin.refused("VolumeDriver.Remove", json!({ "Name": "v1" })).contains("in use by a container"));
    drop(open);
    assert_eq!(fs::read_to_string(at.join("token")).unwrap(), "s3cret");
    plugin.unmount("v1", "id-3");
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v1" }));
    assert!(!at.exists());
    // It is in the vault, under the prefix.
    let got = run(plugin.place.vaultfs(["get"]).arg(plugin.place.embedded()).arg("app/token"));
    assert_eq!(got.ok(), "s3cret");
}

#[test]
fn a_conversation_with_podman() {
    let plugin = Plugin::start(Place::new(), &[]);
    let id = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2";
    plugin.ask("Plugin.Activate", "");
    assert_eq!(plugin.ask("VolumeDriver.Get", r#"{"Name":"v1"}"#).0, 500);
    plugin.create("v1", json!({}));
    let at = plugin.mount("v1", id);
    plugin.unmount("v1", id);
    until("podman counts by itself", || !is_mounted(&at));
    plugin.unmount("v1", id);
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v1" }));
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v1" }));
}

#[test]
fn an_empty_volume_does_not_look_empty_and_a_used_one_shows_what_is_in_it() {
    let plugin = Plugin::start(Place::new(), &[]);
    plugin.create("v", json!({}));
    let at = plugin.mount("v", "a");
    let names = || -> Vec<_> {
        fs::read_dir(&at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(), [".vaultfs"]);
    fs::write(at.join("x"), "1").unwrap();
    assert_eq!(names(), ["x"]);
    plugin.unmount("v", "a");
}

#[test]
fn a_plugin_that_was_killed_finds_its_mounts_alive() {
    let mut plugin = Plugin::start(Place::new(), &[]);
    plugin.create("used", json!({}));
    plugin.create("other", json!({ "prefix": "p" }));
    let at = plugin.mount("used", "a");
    fs::write(at.join("x"), "1").unwrap();
    let keepers = processes_of(&at);
    plugin.kill();
    assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "1", "containers go on");
    plugin.run(&[]);
    assert_eq!(plugin.mount("used", "b"), at);
    assert_eq!(processes_of(&at), keepers, "the same mount");
    assert_eq!(plugin.ok("VolumeDriver.List", json!({}))["Volumes"].as_array().unwrap().len(), 2);
    plugin.unmount("used", "a");
    assert!(is_mounted(&at));
    // SIGTERM leaves what is used.
    plugin.stop();
    assert!(!plugin.socket().exists());
    assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "1");
    plugin.run(&[]);
    plugin.unmount("used", "b");
    until("it is unmounted", || !is_mounted(&at));
    until("its processes end", || processes_of(&at).is_empty());
}

#[test]
fn a_volume_whose_container_went_while_the_plugin_was_away_can_be_removed_when_idle() {
    let mut plugin = Plugin::start(Place::new(), &[]);
    plugin.create("v", json!({}));
    let at = plugin.mount("v", "a");
    fs::write(at.join("x"), "1").unwrap();
    plugin.kill();
    plugin.run(&[]);
    let remove = |plugin: &Plugin| plugin.refused("VolumeDriver.Remove", json!({ "Name": "v" }));
    let open = Beside::start(Command::new("sleep").arg("600").stdin(fs::File::open(at.join("x")).unwrap()));
    let said = remove(&plugin);
    assert!(said.contains("in use by a container") && said.contains("sleep"), "{said}");
    drop(open);
    if is_root() {
        let _container = container(&plugin, &at);
        let said = remove(&plugin);
        assert!(said.contains("mount namespace of process"), "{said}");
        assert!(is_mounted(&at));
    }
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v" }));
    assert!(!at.exists());
    until("its processes end", || processes_of(&at).is_empty());
}

#[test]
fn what_was_mounted_for_nobody_is_unmounted_at_the_start() {
    let mut plugin = Plugin::start(Place::new(), &[]);
    plugin.create("v", json!({}));
    plugin.kill();
    // As after a crash between the mount and its being written down.
    let at = plugin.state().join("volumes/v");
    fs::create_dir_all(&at).unwrap();
    run(plugin.place.vaultfs(["mount", &plugin.place.embedded()]).arg(&at)).ok();
    plugin.run(&[]);
    until("it is unmounted", || !is_mounted(&at));
}

#[test]
fn refusals_are_sentences() {
    let plugin = Plugin::start(Place::new(), &[]);
    let create = |name: &str, options: Value| {
        plugin.refused("VolumeDriver.Create", json!({ "Name": name, "Opts": options }))
    };
    assert!(create("v", json!({ "colour": "red" })).contains("-o colour: there is no such option"));
    assert!(create("v", json!({ "read-onyl": "" })).ends_with("did you mean read-only?"));
    assert!(create("v", json!({ "refresh": "soon" })).contains("-o refresh"));
    assert!(create("v", json!({ "wait": "3m" })).contains("Docker waits 2 minutes"));
    assert!(create("v", json!({ "prefix": "/app/" })).ends_with("give -o prefix=app"));
    assert!(create("../v", json!({})).contains("cannot name a volume"));
    assert!(plugin.refused("VolumeDriver.Create", json!({})).contains("names no volume"));
    assert!(plugin.refused("VolumeDriver.Mount", json!({ "Name": "v" })).contains("names no ID"));
    assert!(plugin.ask("VolumeDriver.Get", "{").1["Err"].as_str().unwrap().contains("cannot be read"));
    assert!(plugin.ask("Graph.Driver", "").1["Err"].as_str().unwrap().contains("volume plugin protocol"));
    // Without a vault that can be reached: Mount says so, and nothing else waits for it.
    let key = key_file(&plugin.place, 0o600);
    let options = json!({ "api-url": "http://127.0.0.1:9", "api-key-file": key, "timeout": "2s" });
    plugin.profile("away", &options);
    plugin.create("away", json!({ "profile": "away" }));
    let said = plugin.refused("VolumeDriver.Mount", json!({ "Name": "away", "ID": "a" }));
    assert!(said.starts_with("vaultfs volume away: ") && said.contains("127.0.0.1:9"), "{said}");
    let logged = plugin.log() + &plugin.place.log();
    assert_eq!(logged.matches("127.0.0.1:9").count(), 1, "{logged}");
    assert_eq!(plugin.ok("VolumeDriver.Get", json!({ "Name": "away" }))["Volume"]["Mountpoint"], "");
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "away" }));
    assert!(!fs::read_to_string(plugin.state().join("volumes.json")).unwrap().contains("away"));
}

/// A file that is a key to look at.
fn key_file(place: &Place, mode: u32) -> PathBuf {
    let key = place.dir.path().join("key");
    fs::write(&key, "sk_test_volume").unwrap();
    fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
    key
}

#[test]
fn what_every_mount_would_refuse_is_refused_at_create_and_not_written_down() {
    // No vault for all volumes.
    let plugin = Plugin::start(Place::new(), &["-o", "read-only=false"]);
    let data = &plugin.place.data;
    let key = key_file(&plugin.place, 0o600);
    let text = plugin.place.dir.path().join("text");
    fs::write(&text, "no certificate").unwrap();
    let url = "https://vault.example.com";
    for (options, says) in [
        (
            json!({ "api-url": "https://u:geheim@vault.example.com", "api-key-file": key }),
            "-o api-url: no user or password belongs into the URL",
        ),
        (json!({ "api-url": "http://vault.example.com", "api-key-file": key }), "plain http would show"),
        (json!({ "api-url": url }), "no API key for https://vault.example.com: give -o api-key-file=FILE"),
        (json!({}), "no API key for https://api.workos.com"),
        (json!({ "api-url": url, "api-key-file": "/nope/key" }), "/nope/key"),
        (json!({ "api-url": url, "api-key-file": "/dev/null" }), "/dev/null"),
        (
            json!({ "api-url": url, "api-key-file": key, "ca-file": "/nope/ca" }),
            "-o ca-file /nope/ca: No such",
        ),
        (json!({ "api-url": url, "api-key-file": key, "ca-file": text }), "-o ca-file holds no certificate"),
        (json!({ "embedded": data, "api-key-file": key }), "-o embedded has a key of its own"),
        (json!({ "embedded": data, "api-url": url }), "-o embedded and -o api-url name two vaults"),
        (json!({ "embedded": key }), "is no directory"),
        (json!({ "embedded": data, "timeout": "0s" }), "-o timeout 0 leaves no time"),
        (json!({ "embedded": data, "refresh": "0s" }), "-o refresh"),
        (json!({ "embedded": data, "prefix": "/" }), "-o prefix=/"),
        (json!({ "embedded": data, "audit": "/nope/x" }), "the audit file /nope/x cannot be used"),
        (json!({ "embedded": data, "log": "/nope/x" }), "the log cannot be written: /nope/x: "),
        (json!({ "embedded": "rel" }), "-o embedded takes a path of the host from / on"),
        (json!({ "api-url": url, "api-key-file": "sk_geheim" }), "-o api-key-file takes a path"),
    ] {
        plugin.profile("p", &options);
        let said = plugin.refused("VolumeDriver.Create", json!({ "Name": "v", "Opts": { "profile": "p" } }));
        assert!(said.contains(says) && !said.contains(" --"), "{options}: {said}");
    }
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    plugin.profile("p", &json!({ "api-url": url, "api-key-file": key }));
    let options = json!({ "profile": "p" });
    let said = plugin.refused("VolumeDriver.Create", json!({ "Name": "v", "Opts": options }));
    assert!(said.contains("0644"), "{said}");
    assert_eq!(plugin.ok("VolumeDriver.List", json!({})), json!({ "Volumes": [] }));
    let written = fs::read_to_string(plugin.state().join("volumes.json")).unwrap_or_default() + &plugin.log();
    assert!(!written.contains("geheim"), "{written}");

    // What is there stays there without its key, and what was made is not made again.
    key_file(&plugin.place, 0o600);
    let create = json!({ "Name": "v", "Opts": options });
    plugin.ok("VolumeDriver.Create", create.clone());
    fs::remove_file(&key).unwrap();
    plugin.ok("VolumeDriver.Create", create);
}

#[test]
fn a_plugin_whose_own_options_cannot_be_does_not_start() {
    let place = Place::new();
    let key = key_file(&place, 0o600).display().to_string();
    let elsewhere = |name: &str| place.dir.path().join(name);
    let start = |socket: &Path, options: &str| {
        let mut command = place.vaultfs(["volume-plugin", "-o", options, "--socket"]);
        run(command.arg(socket).arg("--state").arg(elsewhere("state")))
    };
    let socket = elsewhere("v.sock");
    for (options, code, says) in [
        ("api_key_file=/nope/key,api-url=https://x", 3, "/nope/key"),
        (&*format!("api-key-file={key},api-url=http://evil.example.com"), 2, "-o api-url: plain http"),
        ("api-url=https://u:geheim@x", 2, "no user or password"),
        ("embedded=rel", 2, "from / on"),
        ("embedded,audit=/nope/x", 1, "the audit file /nope/x"),
    ] {
        let said = start(&socket, options).fails(code);
        assert!(said.contains(says) && !said.contains("geheim"), "{options}: {said}");
    }
    assert!(!elsewhere("state").exists() && !socket.exists());
    // Volumes may bring a key of their own: these start, as far as to the socket.
    for options in ["api-url=https://x", "read-only"] {
        let deep = elsewhere("not/there/v.sock");
        let said = start(&deep, options).fails(1);
        assert!(said.contains("not is not there: make it (mkdir -p)") && said.contains("--socket"), "{said}");
    }
    assert!(!elsewhere("not").exists());
    let said = run(place.vaultfs(["volume-plugin", "--state", "/proc/x", "--socket"]).arg(&socket)).fails(1);
    assert!(said.contains("/proc/x: ") && said.contains("with --state DIR"), "{said}");
    let said = start(Path::new("/proc/v.sock"), "read-only").fails(1);
    assert!(said.contains("/proc/v.sock: ") && said.contains("choose a --socket"), "{said}");
}

#[test]
fn a_request_is_read_before_it_is_answered() {
    let plugin = Plugin::start(Place::new(), &["-v"]);
    for (method, path, status) in [
        ("POST", "Plugin.Activate", 200),
        ("POST", "VolumeDriver.Capabilities", 200),
        ("POST", "VolumeDriver.List", 200),
        ("POST", "VolumeDriver.Get", 500),
        ("GET", "VolumeDriver.List", 405),
        ("POST", "Nothing", 500),
    ] {
        let mut stream = UnixStream::connect(plugin.socket()).unwrap();
        write!(
            stream,
            "{method} /{path} HTTP/1.1\r\nHost: \r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
        )
        .unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let early = stream.read(&mut [0; 1]).map_err(|e| e.kind());
        assert_eq!(early, Err(ErrorKind::WouldBlock), "{path} is answered before it was all said");
        stream.write_all(b"{}").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(plugin.log().contains(path), "-v tells each request: {}", plugin.log());
    }
    let long = format!("{{\"Name\":\"{}\"}}", "x".repeat(2 << 20));
    if let Some((status, said)) = plugin.try_ask("VolumeDriver.Get", &long) {
        assert!(status == 500 && said["Err"].as_str().unwrap().contains("cannot be read"), "{said}");
    }
    plugin.ok("VolumeDriver.List", json!({}));
}

#[test]
fn an_engine_that_hangs_up_leaves_no_user_behind() {
    let plugin = Plugin::start(Place::new(), &[]);
    plugin.create("v", json!({}));
    let body = r#"{"Name":"v","ID":"impatient"}"#;
    let mut stream = UnixStream::connect(plugin.socket()).unwrap();
    write!(
        stream,
        "POST /VolumeDriver.Mount HTTP/1.1\r\nHost: plugin\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let at = plugin.state().join("volumes/v");
    wait(|| at.exists().then_some(()), Duration::from_secs(20)).expect("it has begun");
    drop(stream);
    // The next request for this volume waits for the end of that one.
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v" }));
    assert!(!is_mounted(&at));
}

#[test]
fn two_plugins_do_not_share_a_socket_or_a_state() {
    let plugin = Plugin::start(Place::new(), &[]);
    let other = |socket: &Path, state: &Path| {
        let mut command = plugin.place.vaultfs(["volume-plugin", "--socket"]);
        run(command.arg(socket).arg("--state").arg(state)).fails(1)
    };
    let elsewhere = plugin.place.dir.path().join("elsewhere");
    assert!(other(&plugin.socket(), &elsewhere).contains("another process"));
    assert!(
        other(&plugin.place.dir.path().join("b.sock"), &plugin.state()).contains("another volume plugin")
    );
    plugin.ok("VolumeDriver.List", json!({}));
}

#[test]
fn defaults_and_modes_reach_the_mount() {
    let place = Place::new();
    let defaults = format!("embedded={},mode=0644", place.data.display());
    let plugin = Plugin::start(place, &["-o", &defaults]);
    let options = if is_root() { json!({ "uid": "1000", "ro": "" }) } else { json!({ "ro": "" }) };
    plugin.ok("VolumeDriver.Create", json!({ "Name": "v", "Opts": options }));
    run(plugin.place.vaultfs(["put", "a"]).arg(plugin.place.embedded())).ok();
    let at = plugin.mount("v", "i");
    let file = fs::metadata(at.join("a")).unwrap();
    assert_eq!(fs::write(at.join("b"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    if is_root() {
        assert_eq!((file.uid(), file.mode() & 0o777), (1000, 0o444));
        let root = fs::metadata(&at).unwrap();
        assert_eq!((root.uid(), root.mode() & 0o055), (1000, 0o055));
    }
    plugin.unmount("v", "i");
}

#[test]
fn a_vault_that_is_away_holds_up_neither_the_next_container_nor_a_removal() {
    let place = Place::new();
    let (server, url) = server(&place);
    let key = place.data.join("api-key");
    let plugin = Plugin::start(place, &[]);
    let options = json!({ "api-url": url, "api-key-file": key, "timeout": "1s", "drain": "10m" });
    plugin.profile("away", &options);
    plugin.create("v", json!({ "profile": "away" }));
    let at = plugin.mount("v", "a");
    signal(server.0.id() as i32, Signal::SIGSTOP);
    assert!(
        fs::write(at.join("late"), "precious").is_err() || !fs::read(at.join("late")).unwrap().is_empty()
    );
    // The mount is given ten minutes to store that. Nobody who wants the volume waits for them.
    plugin.unmount("v", "a");
    let begun = Instant::now();
    assert_eq!(plugin.mount("v", "b"), at);
    assert_eq!(fs::read_to_string(at.join("late")).unwrap(), "precious");
    plugin.unmount("v", "b");
    let said = plugin.refused("VolumeDriver.Remove", json!({ "Name": "v" }));
    assert!(said.starts_with("vaultfs volume v: not stored: late: ") && !said.contains("precious"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(is_mounted(&at));
    signal(server.0.id() as i32, Signal::SIGCONT);
    let removed = || plugin.ask("VolumeDriver.Remove", r#"{"Name":"v"}"#).0 == 200;
    until("it is stored and removed", removed);
    assert!(!at.exists());
    let got = run(plugin.place.vaultfs(["get", "--api-url", &url, "--api-key-file"]).arg(&key).arg("late"));
    assert_eq!(got.ok(), "precious");
}

#[test]
fn a_key_handed_over_by_systemd_is_for_the_default_vault_alone() {
    let place = Place::new();
    let (_server, url) = server(&place);
    let credentials = place.dir.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::copy(place.data.join("api-key"), credentials.join("workos-api-key")).unwrap();
    let mut plugin = Plugin::start(place, &[]);
    plugin.stop();
    plugin.credentials = Some(credentials);
    plugin.run(&["-o", &format!("api-url={url}")]);
    plugin.ok("VolumeDriver.Create", json!({ "Name": "default", "Opts": { "prefix": "p" } }));
    plugin.profile("own", &json!({ "api-url": url }));
    let own = json!({ "Name": "own", "Opts": { "profile": "own" } });
    let said = plugin.refused("VolumeDriver.Create", own);
    assert!(said.contains("no API key for ") && said.contains("-o api-key-file=FILE"), "{said}");
    let at = plugin.mount("default", "a");
    fs::write(at.join("x"), "1").unwrap();
    plugin.unmount("default", "a");
    until("it is unmounted", || !is_mounted(&at));
}
