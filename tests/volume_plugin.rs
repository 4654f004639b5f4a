//! The volume plugin as an engine meets it: its socket, spoken to as dockerd and podman do, over real mounts.

mod common;
mod plugin;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Beside, Place, is_mounted, is_root, processes_of, run, until, wait};
use plugin::Plugin;
use serde_json::{Value, json};

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
    // `docker run`: mounted, unmounted, mounted again under another ID; a second container beside it.
    let at = plugin.mount("v1", "id-1");
    plugin.unmount("v1", "id-1");
    until("it is unmounted and leaves no directory", || !at.exists());
    assert_eq!((plugin.mount("v1", "id-2"), plugin.mount("v1", "id-3")), (at.clone(), at.clone()));
    fs::write(at.join("token"), "s3cret").unwrap();
    assert_eq!(plugin.ok("VolumeDriver.Path", json!({ "Name": "v1" }))["Mountpoint"], json!(at));
    assert_eq!(plugin.ok("VolumeDriver.Get", json!({ "Name": "v1" }))["Volume"]["Status"]["users"], 2);
    plugin.unmount("v1", "id-2");
    assert!(plugin.refused("VolumeDriver.Remove", json!({ "Name": "v1" })).contains("in use by a container"));
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
    assert_eq!(plugin.mount("v1", id), at, "a repeated request");
    plugin.unmount("v1", id);
    until("podman counts by itself", || !is_mounted(&at));
    plugin.unmount("v1", id);
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
        // As a container has it: bound to another place, in a mount namespace that hears nothing of the host's.
        let place = plugin.place.dir.path().join("in-the-container");
        fs::create_dir(&place).unwrap();
        let bind =
            format!("mount --bind {0} {1} && umount {0} && exec sleep 600", at.display(), place.display());
        let container = Beside::start(Command::new("unshare").args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &bind,
        ]));
        let pid = container.0.id();
        until("it runs", || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
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
    assert!(create("v", json!({ "refresh": "soon" })).contains("-o refresh"));
    assert!(create("../v", json!({})).contains("cannot name a volume"));
    assert!(plugin.refused("VolumeDriver.Create", json!({})).contains("names no volume"));
    assert!(plugin.refused("VolumeDriver.Mount", json!({ "Name": "v" })).contains("names no ID"));
    assert!(plugin.ask("VolumeDriver.Get", "{").1["Err"].as_str().unwrap().contains("cannot be read"));
    assert!(plugin.ask("Graph.Driver", "").1["Err"].as_str().unwrap().contains("volume plugin protocol"));
    // Without a vault that can be reached: Mount says so, and nothing else waits for it.
    let key = plugin.place.dir.path().join("key");
    fs::write(&key, "sk_test_volume").unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let options = json!({ "api-url": "http://127.0.0.1:9", "api-key-file": key, "timeout": "2s" });
    plugin.ok("VolumeDriver.Create", json!({ "Name": "away", "Opts": options }));
    let said = plugin.refused("VolumeDriver.Mount", json!({ "Name": "away", "ID": "a" }));
    assert!(said.starts_with("vaultfs volume away: ") && said.contains("127.0.0.1:9"), "{said}");
    assert_eq!(plugin.ok("VolumeDriver.Get", json!({ "Name": "away" }))["Volume"]["Mountpoint"], "");
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "away" }));
    assert!(!fs::read_to_string(plugin.state().join("volumes.json")).unwrap().contains("away"));
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
