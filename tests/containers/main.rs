//! Containers for real: podman and dockerd, with the mount bound into them and with volumes of the
//! plugin.
//!
//! Needs root, podman, dockerd, runc, busybox-static and inotify-tools, which scripts/test
//! installs. Each engine has directories of its own, dockerd a socket of its own; nothing of the
//! machine's engines is touched.

mod document;
mod engine;
#[path = "../support/mod.rs"]
mod support;
mod users;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use engine::Engine;
use serde_json::json;

use crate::support::common::{self, Mount, Place, is_mounted, is_root, processes_of, run, until};
use crate::support::plugin::{self, Plugin};

/// Says aloud that nothing was tested.
fn cannot() -> bool {
    if !is_root() {
        eprintln!("SKIPPED: containers need root");
    }
    !is_root()
}

#[test]
fn podman_binds_a_mount() {
    if !cannot() {
        binds(&Engine::podman());
    }
}

#[test]
fn dockerd_binds_a_mount() {
    if !cannot() {
        binds(&Engine::docker());
    }
}

#[test]
fn podman_containers_see_a_rotation() {
    if !cannot() {
        rotations(&Engine::podman());
    }
}

#[test]
fn dockerd_containers_see_a_rotation() {
    if !cannot() {
        rotations(&Engine::docker());
    }
}

#[test]
fn podman_uses_volumes_of_the_plugin() {
    if !cannot() {
        volumes(&Engine::podman());
    }
}

#[test]
fn dockerd_uses_volumes_of_the_plugin() {
    if !cannot() {
        volumes(&Engine::docker());
    }
}

#[test]
fn a_volume_whose_dockerd_was_killed_can_be_removed() {
    if !cannot() {
        engine_killed(&mut Engine::docker());
    }
}

#[test]
fn podman_cp_leaves_a_volume_to_its_container() {
    if !cannot() {
        copied_beside_a_container(&Engine::podman());
    }
}

#[test]
fn docker_cp_leaves_a_volume_to_its_container() {
    if !cannot() {
        copied_beside_a_container(&Engine::docker());
    }
}

/// `:U` chowns the volume to whom the container runs as, whatever it was created for.
#[test]
fn a_volume_that_podman_gives_to_a_user_is_theirs() {
    if cannot() {
        return;
    }
    let (engine, place) = (Engine::podman(), Place::new());
    common::open_to_all(place.dir.path());
    let _plugin = Plugin::listening_at(engine.plugin_socket.clone(), place, &[]);
    engine.volume("given", &["uid=1000", "gid=1000"]);
    let script = "echo -n x > /s/a && mkdir /s/d && echo -n y > /s/d/b && cat /s/a /s/d/b";
    assert_eq!(engine.sh(&["--user=1001:1001", "-v", "given:/s:U"], script).ok(), "xy");
    engine.run(["volume", "rm", "given"]).ok();
}

#[test]
fn podman_in_a_mount_namespace_of_its_own_writes_no_secret_to_the_disk() {
    if !cannot() {
        engine_without_the_mounts(&Engine::podman());
    }
}

#[test]
fn a_container_that_docker_restarts_while_the_vault_is_away_goes_on() {
    if !cannot() {
        restarts(&Engine::docker());
    }
}

#[test]
fn rootless_podman_uses_the_mounts_of_its_user() {
    if !cannot() {
        users::rootless();
    }
}

#[test]
fn rootless_podman_that_maps_users_needs_a_mount_for_others() {
    if !cannot() {
        users::rootless_and_mapped();
    }
}

#[test]
fn dockerd_that_maps_users_binds_a_mount() {
    if !cannot() {
        users::remapped();
    }
}

#[test]
fn what_the_document_says_works() {
    if !cannot() {
        document::followed(&Engine::podman(), &Engine::docker());
    }
}

/// `-v MNT:/s` as root, as another user, read-only, in a user namespace, and of a single file.
fn binds(engine: &Engine) {
    let mount = Mount::start();
    fs::write(mount.path("db"), "one").unwrap();
    let bind = format!("{}:/s", mount.mnt().display());
    assert_eq!(engine.sh(&["-v", &bind], "cat /s/db; echo -n two > /s/new").ok(), "one");
    assert_eq!(mount.versions("new"), [1], "stored before the container ended");
    let said = engine.sh(&["-v", &format!("{bind}:ro")], "cat /s/new; echo x > /s/db");
    assert!(said.out == "two" && said.err.contains("Read-only"), "{said:?}");
    // Closed to everybody but the mount's user, whatever the modes.
    let said = engine.sh(&["--user=1000", "-v", &bind], "cat /s/db").fails(1);
    assert!(said.contains("ermission denied"), "{said}");
    let file = format!("{}:/run/secrets/db:ro", mount.path("db").display());
    assert_eq!(engine.sh(&["-v", &file], "cat /run/secrets/db").ok(), "one");
    let place = mount.unmount_beside_engines();

    let mount = Mount::at(place, &["--allow-other", "--uid=1000", "--gid=1000"]);
    common::open_to_all(mount.place().dir.path());
    assert_eq!(engine.sh(&["--user=1000:1000", "-v", &bind], "cat /s/db").ok(), "one");
    engine.sh(&["--user=1001:1001", "-v", &bind], "cat /s/db").fails(1);
    let place = mount.unmount_beside_engines();

    let mount = Mount::at(place, &["--allow-other", "--file-mode=0644", "--dir-mode=0755"]);
    assert_eq!(engine.sh(&["--user=1001:1001", "-v", &bind], "cat /s/db").ok(), "one");
    if !engine.is_docker() {
        let mapped = ["--uidmap=0:100000:65536", "--gidmap=0:100000:65536", "-v", &bind];
        assert_eq!(engine.sh(&mapped, "cat /s/db").ok(), "one");
    }
    drop(mount);
}

/// Stores a value elsewhere than through the mount.
fn put(place: &Place, name: &str, value: &str) {
    let line = format!("printf %s '{value}' | {} put {} {name}", common::VAULTFS, place.embedded());
    let mut shell = Command::new("sh");
    place.isolate(&mut shell);
    run(shell.arg("-c").arg(line)).ok();
}

/// A change made elsewhere, seen in a bound directory with inotify, and in a single bound file with
/// `--in-place`.
fn rotations(engine: &Engine) {
    let place = Place::new();
    put(&place, "db", "old");
    let mount = Mount::at(place, &["--refresh=200ms"]);
    let bind = format!("{}:/s", mount.mnt().display());
    let watch =
        "inotifywait -m -q --format '%e %f' /s > /tmp/seen & cat /s/db > /tmp/old; while :; do sleep 1; done";
    engine.start("watcher", &["-v", &bind], watch);
    let ask = |what: &str| engine.run(["exec", "watcher", "/bin/sh", "-c", what]).out;
    until("the container reads the old value", || ask("cat /tmp/old") == "old");
    // A watch shows in fdinfo once it is there.
    until("it watches", || ask("cat /proc/[0-9]*/fdinfo/*").contains("inotify wd:"));
    put(mount.place(), "db", "new and longer");
    until("it sees the new value", || ask("cat /s/db") == "new and longer");
    until("it was told", || ask("cat /tmp/seen").contains("MOVED_TO db"));
    engine.remove("watcher");
    let place = mount.unmount_beside_engines();

    // One file: what is bound is one inode, so that only its bytes can change.
    let mount = Mount::at(place, &["--refresh=200ms", "--in-place"]);
    let file = format!("{}:/run/secrets/db:ro", mount.path("db").display());
    engine.start("single", &["-v", &file], "while :; do sleep 1; done");
    assert_eq!(engine.run(["exec", "single", "cat", "/run/secrets/db"]).ok(), "new and longer");
    put(mount.place(), "db", "third");
    until("the file has the new bytes", || {
        engine.run(["exec", "single", "cat", "/run/secrets/db"]).out == "third"
    });
    engine.remove("single");
}

/// The plugin, with all that can happen to it.
fn volumes(engine: &Engine) {
    let place = Place::new();
    common::open_to_all(place.dir.path());
    let defaults = format!("embedded={}", place.data.display());
    let mut plugin = Plugin::listening_at(engine.plugin_socket.clone(), place, &["-o", &defaults]);
    let get = |plugin: &Plugin, name: &str| {
        run(plugin.place.vaultfs(["get"]).arg(plugin.place.embedded()).arg(name))
    };

    nothing_of_the_image_gets_into_the_vault(engine, &plugin);
    assert_eq!(get(&plugin, "app/token").ok(), "s3cret");
    users_and_modes(engine);
    let refused = engine.run(["volume", "create", "--driver", &engine.driver, "-o", "colour=red", "bad"]);
    assert!(
        refused.code != Some(0) && refused.err.contains("-o colour: there is no such option"),
        "{refused:?}"
    );
    hostile_options(engine, &plugin);
    plugin_and_container_killed(engine, &mut plugin, &defaults);
    container_removed_while_the_plugin_is_away(engine, &mut plugin, &defaults);

    for name in ["app", "user", "ro"] {
        engine.run(["volume", "rm", name]).ok();
    }
    assert_eq!(fs::read_dir(plugin.state().join("volumes")).unwrap().count(), 0);
    plugin.stop();
    assert!(!plugin.socket().exists());
}

/// Options of somebody who may create volumes and wants more.
fn hostile_options(engine: &Engine, plugin: &Plugin) {
    let mark = plugin.place.dir.path().join("mark").display().to_string();
    let command = format!("on-change=touch {mark}");
    for (option, sentence) in [
        (&*command, "not for a volume to say"),
        ("on_change=/bin/true", "not for a volume to say"),
        ("api-key-file=/etc/shadow", "not for a volume to say"),
        ("o=on-change=/bin/true", "there is no such option"),
        ("profile=../../etc/passwd", "a profile's name has"),
        ("mode=4777", "permissions in octal"),
        ("file-mode=4755", "file-mode"),
        ("uid=0 --on-change=/bin/true", "uid"),
    ] {
        let refused = engine.run(["volume", "create", "--driver", &engine.driver, "-o", option, "hostile"]);
        assert!(refused.code != Some(0) && refused.err.contains(sentence), "{option}: {refused:?}");
        assert_ne!(engine.run(["volume", "inspect", "hostile"]).code, Some(0), "{option}");
    }
    // A value is a value, whatever it looks like.
    let prefix = format!("prefix=app/../ --{command}");
    engine.volume("hostile", &[&prefix]);
    // Nothing but what an engine has to see, so that it does not fill the volume.
    assert_eq!(engine.sh(&["-v", "hostile:/s"], "ls -A /s; cat /s/../s/token").out, ".vaultfs\n");
    engine.run(["volume", "rm", "hostile"]).ok();
    assert!(!std::path::Path::new(&mark).exists());
}

fn nothing_of_the_image_gets_into_the_vault(engine: &Engine, plugin: &Plugin) {
    engine.volume("app", &["prefix=app"]);
    let script = "ls -A /data; echo -n s3cret > /data/token; ls -A /data";
    assert_eq!(engine.sh(&["-v", "app:/data"], script).ok(), ".vaultfs\ntoken\n");
    // Not empty any more: the image's `token` does not replace ours either.
    assert_eq!(engine.sh(&["-v", "app:/data"], "cat /data/token").ok(), "s3cret");
    let listed = run(plugin.place.vaultfs(["ls"]).arg(plugin.place.embedded())).ok();
    assert_eq!(listed, "app/token\n");
    engine.volume("ro", &["prefix=app", "read-only"]);
    let said = engine.sh(&["-v", "ro:/data"], "cat /data/token; echo x > /data/token");
    assert!(said.out == "s3cret" && said.code != Some(0), "{said:?}");
}

fn users_and_modes(engine: &Engine) {
    let said = engine.sh(&["--user=1000", "-v", "app:/data"], "cat /data/token").fails(1);
    assert!(said.contains("ermission denied"), "{said}");
    engine.volume("user", &["prefix=app", "uid=1000", "gid=1000", "mode=0640"]);
    assert_eq!(engine.sh(&["--user=1000", "-v", "user:/data:ro"], "cat /data/token").ok(), "s3cret");
    let modes = engine.sh(&["-v", "user:/data"], "stat -c '%u %a' /data /data/token").ok();
    assert_eq!(modes, "1000 750\n1000 640\n");
    if !engine.is_docker() {
        let mapped = ["--uidmap=0:101000:65536", "--gidmap=0:101000:65536", "-v", "user:/data"];
        engine.sh(&mapped, "cat /data/token").fails(1);
        // The container's user 0 is the host's 1000.
        let mapped =
            ["--uidmap=0:1000:1", "--uidmap=1:101000:65536", "--gidmap=0:1000:1", "--gidmap=1:101000:65536"];
        let mapped: Vec<_> = mapped.into_iter().chain(["-v", "user:/data"]).collect();
        assert_eq!(engine.sh(&mapped, "cat /data/token").ok(), "s3cret");
    }
}

/// Two containers on one volume; the plugin is killed under them, and one of them is, too.
fn plugin_and_container_killed(engine: &Engine, plugin: &mut Plugin, defaults: &str) {
    let at: PathBuf = plugin.state().join("volumes/app");
    for name in ["one", "two"] {
        engine.start(name, &["-v", "app:/data"], "while :; do sleep 1; done");
    }
    engine.run(["exec", "one", "/bin/sh", "-c", "echo -n shared > /data/both"]).ok();
    assert_eq!(engine.run(["exec", "two", "cat", "/data/both"]).ok(), "shared");
    let refused = engine.run(["volume", "rm", "app"]);
    assert!(refused.code != Some(0), "in use: {refused:?}");
    plugin.kill();
    assert_eq!(engine.run(["exec", "two", "cat", "/data/both"]).ok(), "shared", "without the plugin");
    plugin.run(&["-o", defaults]);
    engine.run(["kill", "--signal=KILL", "one"]).ok();
    engine.remove("one");
    assert_eq!(engine.run(["exec", "two", "cat", "/data/both"]).ok(), "shared");
    assert!(is_mounted(&at));
    engine.remove("two");
    until("the last one's end unmounts", || !is_mounted(&at));
    until("no process is left", || processes_of(&at).is_empty());
}

/// A dockerd that was killed has forgotten for whom it mounted a volume, and never says that they
/// are gone.
fn engine_killed(engine: &mut Engine) {
    let place = Place::new();
    let defaults = format!("embedded={}", place.data.display());
    let plugin = Plugin::listening_at(engine.plugin_socket.clone(), place, &["-o", &defaults]);
    let at = plugin.state().join("volumes/kept");
    engine.volume("kept", &[]);
    let options = ["--stop-signal=KILL", "-v", "kept:/data"];
    engine.start("lost", &options, "echo -n v > /data/a; while :; do sleep 1; done");
    until("it has written", || fs::read(at.join("a")).is_ok_and(|value| value == b"v"));
    engine.kill_and_start();
    engine.remove("lost");
    assert!(is_mounted(&at), "nobody has struck it out");

    engine.start("next", &options, "while :; do sleep 1; done");
    let refused = plugin.refused("VolumeDriver.Remove", json!({ "Name": "kept" }));
    assert!(refused.contains("mount namespace of process"), "{refused}");
    assert_eq!(engine.run(["exec", "next", "cat", "/data/a"]).ok(), "v");
    engine.remove("next");
    assert!(is_mounted(&at), "still counted");

    let processes = processes_of(&at);
    engine.run(["volume", "rm", "kept"]).ok();
    assert!(!at.exists() && processes.len() > 1);
    until("no process is left", || processes_of(&at).is_empty());
    let log = plugin.log();
    assert_eq!(log.matches("its users were never struck out").count(), 1, "{log}");
}

/// The engine mounts and unmounts once more, with the ID of the container that runs.
fn copied_beside_a_container(engine: &Engine) {
    let plugin = Plugin::listening_at(engine.plugin_socket.clone(), Place::new(), &[]);
    let at = plugin.state().join("volumes/shared");
    engine.volume("shared", &[]);
    engine.start("first", &["-v", "shared:/s"], "echo -n one > /s/x; while :; do sleep 1; done");
    until("it has written", || fs::read(at.join("x")).is_ok_and(|value| value == b"one"));
    let processes = processes_of(&at);
    for _ in 0..2 {
        engine.run(["cp", "/etc/hostname", "first:/tmp/copy"]).ok();
        engine.run(["cp", "first:/s/x", plugin.place.dir.path().join("copy").to_str().unwrap()]).ok();
    }
    assert!(is_mounted(&at), "it runs");
    let second = ["-v", "shared:/s"];
    assert_eq!(engine.sh(&second, "cat /s/x; echo -n two > /s/y").ok(), "one");
    assert_eq!(engine.run(["exec", "first", "cat", "/s/y"]).ok(), "two");
    assert_eq!(processes_of(&at), processes, "one mount for both");
    engine.remove("first");
    until("the last one's end unmounts", || !is_mounted(&at));
    engine.run(["volume", "rm", "shared"]).ok();
}

fn engine_without_the_mounts(engine: &Engine) {
    let plugin = Plugin::listening_at(engine.plugin_socket.clone(), Place::new(), &[]);
    let at = plugin.state().join("volumes/blind");
    engine.volume("blind", &[]);
    let writes = [
        "run",
        "--rm",
        "--network=none",
        "-v",
        "blind:/s",
        engine::IMAGE,
        "/bin/sh",
        "-c",
        "echo geheim > /s/x",
    ];
    let plain = engine.command(writes);
    let mut apart = Command::new("unshare");
    apart.arg("--mount").arg(plain.get_program()).args(plain.get_args());
    apart.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = run(&mut apart);
    assert!(said.code != Some(0) && said.err.contains("does not see its mount"), "{said:?}");
    assert!(!at.exists(), "nothing is on the disk");
    engine.run(writes).ok();
    engine.run(["volume", "rm", "blind"]).ok();
    let got = run(plugin.place.vaultfs(["get"]).arg(plugin.place.embedded()).arg("x"));
    assert_eq!(got.ok(), "geheim\n");
}

/// As `restart: always` of compose. Docker gives a container up whose volume cannot be mounted.
fn restarts(engine: &Engine) {
    let place = Place::new();
    let (server, url) = plugin::server(&place);
    let key = place.data.join("api-key");
    let socket = engine.plugin_socket.clone();
    let plugin = Plugin::listening_at(socket, place, &["--keep-mounted", "60s"]);
    plugin.profile("away", &json!({ "api-url": url, "api-key-file": key, "timeout": "2s" }));
    engine.volume("kept", &["profile=away"]);
    engine.sh(&["-v", "kept:/s"], "echo -n v > /s/x").ok();
    engine.start("again", &["--restart=always", "-v", "kept:/s"], "cat /s/x && sleep 1");
    let count = || -> u32 {
        engine.run(["inspect", "-f", "{{.RestartCount}}", "again"]).ok().trim().parse().unwrap()
    };
    until("it restarts", || count() > 0);
    common::signal(server.0.id() as i32, nix::sys::signal::Signal::SIGSTOP);
    let before = count();
    until("it restarts while the vault is away", || count() > before + 1);
    common::signal(server.0.id() as i32, nix::sys::signal::Signal::SIGCONT);
    let before = count();
    until("it goes on", || count() > before);
    assert!(!engine.run(["logs", "again"]).err.contains("cat:"), "it read the secret each time");
    engine.remove("again");
    engine.run(["volume", "rm", "kept"]).ok();
    assert!(!plugin.state().join("volumes/kept").exists(), "a removal does not wait");
}

/// The engine cannot tell the plugin that a container is gone. Its volume can be removed all the
/// same, and one whose container still runs cannot.
fn container_removed_while_the_plugin_is_away(engine: &Engine, plugin: &mut Plugin, defaults: &str) {
    let at = |plugin: &Plugin, name: &str| plugin.state().join("volumes").join(name);
    for end in [Plugin::kill, Plugin::stop] {
        for name in ["gone", "stays"] {
            engine.volume(name, &["prefix=app"]);
            engine.start(name, &["-v", &format!("{name}:/data")], "while :; do sleep 1; done");
        }
        end(plugin);
        engine.run(["kill", "gone"]).ok();
        // Some engines complain that the volume cannot be unmounted; the container is gone by then.
        let said = engine.run(["rm", "-f", "gone"]);
        assert!(!engine.run(["ps", "-a"]).ok().contains("gone"), "{said:?}");
        plugin.run(&["-o", defaults]);
        assert!(is_mounted(&at(plugin, "gone")), "nobody has struck it out");

        let refused = engine.run(["volume", "rm", "stays"]);
        assert!(refused.code != Some(0) && refused.err.contains(" use"), "{refused:?}");
        // The engine keeps count itself. So does the plugin:
        let refused = plugin.refused("VolumeDriver.Remove", json!({ "Name": "stays" }));
        assert!(
            refused.contains("in use by a container: stop what uses it first")
                && refused.contains("mount namespace of process"),
            "{refused}"
        );
        assert_eq!(engine.run(["exec", "stays", "cat", "/data/token"]).ok(), "s3cret");

        let processes = processes_of(&at(plugin, "gone"));
        engine.run(["volume", "rm", "gone"]).ok();
        assert!(!at(plugin, "gone").exists() && processes.len() > 1);
        until("no process is left", || processes_of(&at(plugin, "gone")).is_empty());
        engine.remove("stays");
        engine.run(["volume", "rm", "stays"]).ok();
        let listed = plugin.ok("VolumeDriver.List", json!({})).to_string();
        assert!(!listed.contains("gone") && !listed.contains("stays"), "{listed}");
    }
}
