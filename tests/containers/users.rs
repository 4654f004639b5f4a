//! Engines whose containers have other users than the machine: rootless podman, and dockerd with
//! `userns-remap`.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::engine::{self, Engine, IMAGE, need};
use crate::support::common::{
    Beside, DeviceForAll, Mount, Place, Ran, VAULTFS, open_to_all, run, signal, until,
};

/// A user with a mount and a volume plugin of their own. In namespaces of the test's own, so that
/// podman's pause process ends with it; and with shared mounts, as systemd makes them, else podman
/// would not see what is mounted later.
pub fn rootless() {
    let place = Place::new();
    let _device = DeviceForAll::open();
    let home = home_of_nobody(&place);
    let script = r#"set -e
        cd "$HOME"
        export XDG_RUNTIME_DIR=$HOME CONTAINERS_CONF=$HOME/containers.conf CONTAINERS_STORAGE_CONF=$HOME/storage.conf
        ./vaultfs mount --embedded=v mnt
        printf s3cret > mnt/db
        podman import image.tar "$IMAGE" > /dev/null
        inside() { podman run --rm --network=none "$@"; }
        inside -v "$HOME/mnt:/s:ro" "$IMAGE" /bin/sh -c 'id -u; cat /s/db; echo; if echo x > /s/no; then echo written; fi'
        inside -v "$HOME/mnt:/s" "$IMAGE" /bin/sh -c 'echo -n new > /s/made'
        cat mnt/made; echo
        ./vaultfs volume-plugin --socket p.sock --state state --keep-mounted 0s -o "embedded=$HOME/v" &
        until [ -S p.sock ]; do sleep 0.05; done
        podman volume create --driver vt app
        inside -v app:/s "$IMAGE" /bin/sh -c 'cat /s/made; echo'
        # With no time to keep it the plugin unmounts it on its own, just after the container's end.
        for try in $(seq 200); do ./vaultfs status | grep -q volumes/app || break; sleep 0.1; done
        if ./vaultfs status | grep volumes/app; then echo "it is left"; fi
        podman volume rm app > /dev/null
        kill %1; wait %1 || true
        ./vaultfs unmount mnt"#;
    let said = as_nobody(&home, "", script);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "0\ns3cret\nnew\napp\nnew\n"), "{said:?}");
    assert!(said.err.contains("Read-only file system"), "{said:?}");
}

/// The second table of docs/CONTAINERS.md: rootless containers whose users are mapped in another
/// way.
pub fn rootless_and_mapped() {
    need("newuidmap", "uidmap");
    let place = Place::new();
    let _device = DeviceForAll::open();
    let home = home_of_nobody(&place);
    // In the mount namespace of the test: users to map to, and the permission to let them in.
    fs::write(home.join("ids"), "nobody:200000:65536\n").unwrap();
    fs::write(home.join("fuse.conf"), "user_allow_other\n").unwrap();
    let prepare = "touch /etc/fuse.conf
        for table in /etc/subuid /etc/subgid; do mount --bind $HOME/ids $table; done
        mount --bind $HOME/fuse.conf /etc/fuse.conf";
    let script = r#"
        cd "$HOME"
        export XDG_RUNTIME_DIR=$HOME CONTAINERS_CONF=$HOME/containers.conf CONTAINERS_STORAGE_CONF=$HOME/storage.conf
        podman import image.tar "$IMAGE" > /dev/null || exit
        inside() {
            podman run --rm --network=none "$@" -v "$HOME/mnt:/s" "$IMAGE" /bin/sh -c 'cat /s/db' 2> said ||
                grep -o 'OCI permission denied\|ermission denied' said | head -n 1
        }
        for open in "" "--allow-other" "--allow-other --file-mode=0644 --dir-mode=0755"; do
            ./vaultfs mount --embedded=v $open mnt || exit
            echo s3cret > mnt/db
            for user in --cap-drop=ALL --userns=keep-id --user=1000; do echo "$user: $(inside $user)"; done
            ./vaultfs unmount --lazy mnt
        done"#;
    let said = as_nobody(&home, prepare, script);
    let lines: Vec<&str> = said.out.lines().collect();
    let [nothing, others, modes] = [0, 3, 6].map(|at| lines.get(at..at + 3).unwrap_or_default());
    assert_eq!(nothing[0], "--cap-drop=ALL: s3cret", "{said:?}");
    for refused in &nothing[1..] {
        assert!(refused.ends_with("ermission denied"), "{said:?}");
    }
    assert_eq!(others[..2], ["--cap-drop=ALL: s3cret", "--userns=keep-id: s3cret"], "{said:?}");
    assert!(others[2].ends_with("ermission denied"), "{said:?}");
    assert_eq!(
        modes,
        ["--cap-drop=ALL: s3cret", "--userns=keep-id: s3cret", "--user=1000: s3cret"],
        "{said:?}"
    );
}

/// A directory with what podman needs, and an empty directory to mount on.
fn home_of_nobody(place: &Place) -> PathBuf {
    let home = place.dir.path().join("home");
    fs::create_dir_all(home.join("mnt")).unwrap();
    fs::copy(VAULTFS, home.join("vaultfs")).unwrap();
    let image = engine::image(&home);
    for (name, text) in [
        (
            "containers.conf",
            format!("{}[engine.volume_plugins]\nvt=\"{}/p.sock\"\n", engine::SETTINGS, home.display()),
        ),
        (
            "storage.conf",
            format!(
                "[storage]\ndriver=\"vfs\"\nrunroot=\"{0}/run\"\ngraphroot=\"{0}/graph\"\n[storage.options]\n\
                 ignore_chown_errors=\"true\"\n",
                home.display()
            ),
        ),
    ] {
        // Of limits an ordinary user can only lower.
        fs::write(home.join(name), text.replace("default_ulimits", "#")).unwrap();
    }
    for path in [place.dir.path(), &home, &home.join("vaultfs"), &image] {
        open_to_all(path);
    }
    for theirs in [&home, &home.join("mnt")] {
        chown(theirs, Some(65534), Some(65534)).unwrap();
    }
    home
}

/// Runs a script as an ordinary user, after another one as root.
fn as_nobody(home: &Path, prepare: &str, script: &str) -> Ran {
    let prepared = format!(
        "set -e\n{prepare}\nexec setpriv --reuid nobody --regid nogroup --clear-groups bash -c \"$1\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "shared", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["bash", "-c", &prepared, "bash", script]);
    for name in ["XDG_STATE_HOME", "XDG_DATA_HOME"] {
        command.env_remove(name);
    }
    run(command.env("HOME", home).env("IMAGE", IMAGE).current_dir("/"))
}

/// The table of docs/CONTAINERS.md: the mount belongs to whom the container's root is outside.
pub fn remapped() {
    let mount = Mount::with(&["--allow-other", "--uid=100000", "--gid=100000"]);
    open_to_all(mount.place().dir.path());
    fs::write(mount.path("db"), "s3cret").unwrap();
    // It has a mount namespace of its own, with what is mounted by then.
    let engine = Engine::docker_remapped();
    let bind = format!("{}:/s", mount.mnt().display());
    let said = engine.sh(&["-v", &bind], "cat /proc/self/uid_map /s/db; echo -n x > /s/made").ok();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "s3cret"]);
    assert_eq!(mount.versions("made"), [1]);
    engine.sh(&["--user=1000", "-v", &bind], "cat /s/db").fails(1);
    volumes_of_mapped_users(&engine, mount.place());
    drop(engine);
}

/// The plugin has to be where dockerd sees what is mounted, which here is a namespace of dockerd's
/// own.
fn volumes_of_mapped_users(engine: &Engine, place: &Place) {
    let mut command = engine.beside_dockerd(VAULTFS);
    place.isolate(&mut command);
    command.arg("volume-plugin").arg("--socket").arg(&engine.plugin_socket);
    command.arg("--state").arg(place.dir.path().join("volumes")).arg("-o").arg(&place.embedded()[2..]);
    let mut plugin = Beside::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
    until("the plugin listens", || UnixStream::connect(&engine.plugin_socket).is_ok());
    engine.volume("owned", &["uid=100000", "gid=100000"]);
    engine.volume("open", &["mode=0644"]);
    engine.volume("plain", &[]);
    let read = |volume: &str, options: &[&str]| {
        let volume = format!("{volume}:/s");
        engine.sh(
            &[options, &["-v", &volume]].concat(),
            "cat /s/db && if echo -n x > /s/new; then cat /s/new; fi",
        )
    };
    assert_eq!(read("owned", &[]).ok(), "s3cretx");
    read("owned", &["--user=1000"]).fails(1);
    let everybody = read("open", &["--user=1000"]);
    assert!(everybody.out == "s3cret" && everybody.err.contains("ermission denied"), "{everybody:?}");
    read("plain", &[]).fails(1);
    assert_eq!(read("plain", &["--userns=host"]).ok(), "s3cretx", "this container's root is root");
    engine.run(["volume", "rm", "owned", "open", "plain"]).ok();
    signal(plugin.0.id() as i32, Signal::SIGTERM);
    assert!(plugin.ends().success() && !engine.plugin_socket.exists());
    assert_eq!(fs::read_dir(place.dir.path().join("volumes/volumes")).unwrap().count(), 0);
}
