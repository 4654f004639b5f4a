//! Volumes over the life of their containers, and of the plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::common::{self, Beside, Place, is_mounted, is_root, processes_of, run, signal, until};
use crate::support::mount_table;
use crate::support::plugin::{Plugin, server};

/// A request that changes something: its kind, the volume, the user.
#[derive(Debug, Clone)]
struct Change(&'static str, String, String);

/// The users of each volume.
type Volumes = BTreeMap<String, BTreeSet<String>>;

impl Change {
    /// One that must be answered with yes.
    fn possible(volumes: &Volumes, random: &mut impl FnMut(u64) -> u64) -> Self {
        let (name, id) = (format!("v{}", random(2)), format!("id{}", random(2)));
        let kind = match volumes.get(&name) {
            None => "Create",
            Some(users) if users.contains(&id) => "Unmount",
            Some(users) if users.is_empty() && random(3) == 0 => "Remove",
            Some(_) => "Mount",
        };
        Self(kind, name, id)
    }

    fn made(&self, volumes: &mut Volumes) {
        let Self(kind, name, id) = self;
        match *kind {
            "Create" => drop(volumes.insert(name.clone(), BTreeSet::new())),
            "Remove" => drop(volumes.remove(name)),
            "Mount" => drop(volumes.get_mut(name).unwrap().insert(id.clone())),
            _ => drop(volumes.get_mut(name).unwrap().remove(id)),
        }
    }

    fn body(&self) -> String {
        json!({ "Name": self.1, "ID": self.2, "Opts": {} }).to_string()
    }
}

/// Volumes and how many use them, as the plugin says it.
fn listed(plugin: &Plugin) -> BTreeMap<String, usize> {
    let answer = plugin.ok("VolumeDriver.List", json!({}));
    let one = |volume: &Value| {
        (volume["Name"].as_str().unwrap().to_owned(), volume["Status"]["users"].as_u64().unwrap() as usize)
    };
    answer["Volumes"].as_array().unwrap().iter().map(one).collect()
}

fn counts(volumes: &Volumes) -> BTreeMap<String, usize> {
    volumes.iter().map(|(name, users)| (name.clone(), users.len())).collect()
}

#[test]
fn a_plugin_killed_at_any_point_leaves_nothing_and_forgets_nothing() {
    let rounds = if std::env::var_os("VAULTFS_TEST_ALL").is_some() { 150 } else { 12 };
    let mut state = u64::from(std::process::id()) << 20 | 1;
    eprintln!("seed {state}");
    let mut random = |below: u64| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut plugin = Plugin::start(Place::new(), &[]);
    let mut volumes = Volumes::new();
    let at = |plugin: &Plugin, name: &str| plugin.state().join("volumes").join(name);
    let mut cut_off = BTreeSet::new();
    for _ in 0..rounds {
        let (pid, after) = (plugin.pid(), Duration::from_millis(random(500)));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            signal(pid, Signal::SIGKILL);
        });
        let open = loop {
            let change = Change::possible(&volumes, &mut random);
            match plugin.try_ask(&format!("VolumeDriver.{}", change.0), &change.body()) {
                Some((200, _)) => change.made(&mut volumes),
                Some(refused) => panic!("{change:?}: {refused:?}"),
                None => break change,
            }
        };
        killer.join().unwrap();
        plugin.kill();
        plugin.run(&[]);
        // What was not answered was done or was not; the rest is as it was said.
        let found = listed(&plugin);
        if found != counts(&volumes) {
            open.made(&mut volumes);
            cut_off.insert(open.0);
            assert_eq!(found, counts(&volumes), "{open:?}");
        }
        for name in ["v0", "v1"] {
            let at = at(&plugin, name);
            let used = volumes.get(name).is_some_and(|users| !users.is_empty());
            until(&format!("{name} is mounted if it is used, else gone ({open:?}, {volumes:?})"), || {
                is_mounted(&at) == used && at.exists() == used && (used || processes_of(&at).is_empty())
            });
            assert!(!used || fs::read(at.join(".vaultfs/status.json")).is_ok(), "it answers");
        }
    }
    eprintln!("done, and not answered: {cut_off:?}");
    for (name, users) in &volumes {
        users.iter().for_each(|id| plugin.unmount(name, id));
        plugin.ok("VolumeDriver.Remove", json!({ "Name": name }));
        until("nothing is left", || processes_of(&at(&plugin, name)).is_empty());
    }
    assert_eq!(fs::read_dir(plugin.state().join("volumes")).unwrap().count(), 0);
    plugin.stop();
}

/// As a container has it: bound to another place, in a mount namespace that hears nothing of the
/// host's.
pub fn container(plugin: &Plugin, at: &Path) -> Beside {
    let place = plugin.place.dir.path().join("in-the-container");
    fs::create_dir_all(&place).unwrap();
    let bind = format!("mount --bind {0} {1} && umount {0} && exec sleep 600", at.display(), place.display());
    let args = ["--mount", "--propagation", "private", "sh", "-c", &bind];
    let container = Beside::start(Command::new("unshare").args(args));
    let comm = format!("/proc/{}/comm", container.0.id());
    until("it runs", || fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n"));
    container
}

#[test]
fn docker_cp_does_not_take_the_volume_of_its_container() {
    let _alone = mount_table::take();
    let mut plugin = Plugin::start(Place::new(), &[]);
    plugin.create("v", json!({}));
    let at = plugin.mount("v", "c1");
    fs::write(at.join("x"), "1").unwrap();
    let processes = processes_of(&at);
    for end in [Plugin::kill, Plugin::stop] {
        plugin.mount("v", "c1");
        end(&mut plugin);
        plugin.run(&[]);
        plugin.unmount("v", "c1");
        // The next request for this volume waits for what that one does.
        assert_eq!(plugin.mount("v", "c2"), at);
        plugin.unmount("v", "c2");
    }
    assert_eq!(plugin.ok("VolumeDriver.Get", json!({ "Name": "v" }))["Volume"]["Status"]["users"], 1);
    assert_eq!((fs::read_to_string(at.join("x")).unwrap(), processes_of(&at)), ("1".to_owned(), processes));
    plugin.unmount("v", "c1");
    until("it is unmounted", || !is_mounted(&at));

    // Whatever was counted: what a container has is not taken from it.
    if is_root() {
        plugin.mount("v", "c1");
        let container = container(&plugin, &at);
        plugin.unmount("v", "c1");
        let said = plugin.refused("VolumeDriver.Remove", json!({ "Name": "v" }));
        assert!(said.contains("volume v is in use: the mount namespace of process"), "{said}");
        assert!(is_mounted(&at));
        drop(container);
        until("it is unmounted after the container", || !is_mounted(&at));
    }
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v" }));
}

#[test]
fn an_engine_without_the_mount_is_refused_and_its_bare_directory_is_closed() {
    let _alone = mount_table::take();
    crate::support::only_root!("mount namespaces need root");
    let plugin = Plugin::start(Place::new(), &[]);
    plugin.create("v", json!({}));
    let at = plugin.state().join("volumes/v");
    let body = r#"{"Name":"v","ID":"a"}"#;
    let ask = |command: &mut Command| {
        let said = plugin.place.dir.path().join("said");
        let curl = ["-s", "-d", body, "http://x/VolumeDriver.Mount", "--unix-socket"];
        run(command.arg("curl").arg("-o").arg(&said).args(curl).arg(plugin.socket())).ok();
        fs::read_to_string(&said).unwrap()
    };
    let mut private = Command::new("unshare");
    let said = ask(private.args(["--mount", "--propagation", "private"]));
    assert!(said.contains("does not see its mount") && said.contains("run the plugin where"), "{said}");
    assert!(!at.exists(), "nothing is left");
    let said = ask(&mut Command::new("env"));
    assert!(said.contains(&*at.to_string_lossy()), "{said}");
    // What is below the mount.
    let look = format!("umount -l {0} && stat -c %a {0}", at.display());
    let bare = run(Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &look]));
    assert_eq!(bare.ok(), "0\n");
    plugin.unmount("v", "a");
    until("it is unmounted", || !at.exists());
}

#[test]
fn a_mount_is_kept_for_a_container_that_restarts_while_the_vault_is_away() {
    let place = Place::new();
    let (server, url) = server(&place);
    let key = place.data.join("api-key");
    let keep = ["--keep-mounted", "1h"];
    let mut plugin = Plugin::start(place, &keep);
    plugin.profile("away", &json!({ "api-url": url, "api-key-file": key, "timeout": "1s" }));
    plugin.create("v", json!({ "profile": "away", "prefix": "app" }));
    let at = plugin.mount("v", "a");
    fs::write(at.join("x"), "1").unwrap();
    plugin.unmount("v", "a");
    signal(server.0.id() as i32, Signal::SIGSTOP);
    assert_eq!(plugin.mount("v", "b"), at);
    assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "1");
    plugin.unmount("v", "b");
    assert_eq!(plugin.ok("VolumeDriver.Path", json!({ "Name": "v" }))["Mountpoint"], "");
    assert!(is_mounted(&at));
    // A removal does not wait for the hour, nor does the plugin's end.
    signal(server.0.id() as i32, Signal::SIGCONT);
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v" }));
    assert!(!at.exists());
    plugin.create("v", json!({ "profile": "away" }));
    plugin.mount("v", "a");
    plugin.unmount("v", "a");
    plugin.stop();
    assert!(!at.exists());
    let got = |name: &str| {
        run(plugin.place.vaultfs(["get", "--api-url", &url, "--api-key-file"]).arg(&key).arg(name)).ok()
    };
    assert_eq!(got("app/x"), "1");
}

#[test]
fn what_opens_files_or_runs_commands_is_for_profiles() {
    let plugin = Plugin::start(Place::new(), &[]);
    let mark = plugin.place.dir.path().join("mark");
    let log = plugin.place.dir.path().join("audit");
    fs::write(&log, "").unwrap();
    fs::set_permissions(&log, Permissions::from_mode(0o644)).unwrap();
    let command = format!("touch {}", mark.display());
    for (name, value) in [
        ("on-change", &*command),
        ("on_change", &command),
        ("audit", log.to_str().unwrap()),
        ("log", log.to_str().unwrap()),
        ("api-key-file", "/etc/shadow"),
        ("api-key-file", "sk_geheim"),
        ("api-url", "https://u:geheim@evil.example.com"),
        ("ca-file", "/etc/hostname"),
        ("embedded", "/data/vault"),
        ("key-context", "a=b"),
        ("cache-size", "1GiB"),
        ("timeout", "1s"),
        ("scratch", "*.x"),
    ] {
        let said = plugin.refused("VolumeDriver.Create", json!({ "Name": "v", "Opts": { name: value } }));
        assert!(!said.contains("geheim"), "{said}");
        let says = [&*format!("{}/v, with the line", plugin.profiles().display()), "takes a path"];
        assert!(says.iter().any(|says| said.contains(says)), "{name}: {said}");
    }
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o644, "left alone");
    assert_eq!(plugin.ok("VolumeDriver.List", json!({})), json!({ "Volumes": [] }));

    // The line that the refusal showed, written as it is.
    let said =
        plugin.refused("VolumeDriver.Create", json!({ "Name": "v", "Opts": { "on-change": command } }));
    let line = said.split('`').nth(1).unwrap();
    fs::create_dir_all(plugin.profiles()).unwrap();
    fs::write(plugin.profiles().join("v"), line).unwrap();
    plugin.create("v", json!({ "profile": "v", "prefix": "app", "refresh": "1s" }));
    let said = plugin.refused(
        "VolumeDriver.Create",
        json!({ "Name": "w", "Opts": { "profile": "v", "on-change": "true" } }),
    );
    assert!(said.contains("the profile v says that"), "{said}");
    plugin.mount("v", "a");
    let put = format!("printf 1 | {} put {} app/x", common::VAULTFS, plugin.place.embedded());
    let mut shell = Command::new("sh");
    plugin.place.isolate(&mut shell);
    run(shell.args(["-c", &put])).ok();
    until("the command of the profile runs", || mark.exists());
    // It is read at each mount, and has to be fit then.
    plugin.unmount("v", "a");
    fs::set_permissions(plugin.profiles().join("v"), Permissions::from_mode(0o666)).unwrap();
    until("the next mount says that others can write to the profile", || {
        plugin.ask("VolumeDriver.Mount", r#"{"Name":"v","ID":"b"}"#).1.to_string().contains("chmod go-w")
    });
    plugin.ok("VolumeDriver.Remove", json!({ "Name": "v" }));
}
