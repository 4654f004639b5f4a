//! docs/CONTAINERS.md, followed word by word: each block of commands is run, with this test's
//! places for the document's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::engine::{Engine, IMAGE};
use crate::put;
use crate::support::common::{Place, VAULTFS, assert_nothing_left, run, until};

/// The blocks of commands, in their order.
fn blocks() -> Vec<String> {
    let text = include_str!("../../docs/CONTAINERS.md");
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Where the document's words are replaced.
struct Reader<'a> {
    place: &'a Place,
    podman: &'a Engine,
    docker_driver: String,
}

impl Reader<'_> {
    fn new<'a>(place: &'a Place, podman: &'a Engine, docker: &Engine) -> Reader<'a> {
        let bin = place.dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(VAULTFS, bin.join("vaultfs")).unwrap();
        for (name, engine) in [("podman", podman), ("docker", docker)] {
            fs::write(bin.join(name), engine.script()).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Reader { place, podman, docker_driver: format!("vaultfs-document-{}", std::process::id()) }
    }

    /// Runs a block that begins like this; its standard output.
    #[track_caller]
    fn follows(&self, block: &str, beginning: &str) -> String {
        assert!(block.starts_with(beginning), "another block than {beginning:?}: {block}");
        let driver = if block.contains("docker volume") { &self.docker_driver } else { &self.podman.driver };
        let mut script = String::from("set -e\n");
        for line in block.lines() {
            let line = line
                .replace("/srv/vault", self.place.data.to_str().unwrap())
                .replace("/srv/secrets", self.place.mnt.to_str().unwrap())
                .replace("IMAGE", IMAGE)
                .replace("/plugins/vaultfs.sock", &format!("/plugins/{}.sock", self.docker_driver))
                .replace("/run/vaultfs-volumes.sock", self.podman.plugin_socket.to_str().unwrap())
                .replace("--driver vaultfs", &format!("--driver {driver}"));
            script += &line;
            script.push('\n');
            if let Some(command) = line.strip_suffix(" &") {
                // Nobody types so fast that the plugin would not listen yet.
                let socket = command.split(' ').find(|word| word.ends_with(".sock")).unwrap();
                script += &format!(
                    "plugin=$!; trap 'kill $plugin; wait $plugin' EXIT\nuntil [ -S {socket} ]; do sleep 0.05; done\n"
                );
            }
        }
        let mut shell = Command::new("bash");
        self.place.isolate(&mut shell);
        let path = format!("{}/bin:{}", self.place.dir.path().display(), std::env::var("PATH").unwrap());
        // The plugin's default for its state is root's.
        let script = script.replace(
            "vaultfs volume-plugin",
            &format!("vaultfs volume-plugin --state {}", self.place.dir.path().join("volumes").display()),
        );
        run(shell.env("PATH", path).args(["-c", &script])).ok()
    }
}

/// What the document's reader does, from its top to its end.
pub fn followed(podman: &Engine, docker: &Engine) {
    let place = Place::new();
    let mut all = blocks().into_iter();
    let mut next = || all.next().expect("there is one more block");
    put(&place, "app/token", "1");
    let reader = Reader::new(&place, podman, docker);

    // Bind the mount.
    let said = reader.follows(&next(), "mkdir -p /srv/secrets\nvaultfs mount");
    assert_eq!(said, "s3crets3cret", "from podman and from docker");
    run(place.vaultfs(["unmount"]).arg(&place.mnt)).ok();

    // A command on the host.
    podman.start(
        "web",
        &[],
        "trap 'echo heard > /tmp/hup' HUP; echo 1 > /tmp/ready; while :; do sleep 1; done",
    );
    reader.follows(&next(), "vaultfs mount --embedded=/srv/vault --on-change");
    until("the container traps it", || podman.run(["exec", "web", "cat", "/tmp/ready"]).out == "1\n");
    put(&place, "db", "another");
    until("the container heard", || podman.run(["exec", "web", "cat", "/tmp/hup"]).out == "heard\n");
    podman.remove("web");
    run(place.vaultfs(["unmount"]).arg(&place.mnt)).ok();

    // Podman's secrets: made, read in a container, removed.
    let said = reader.follows(&next(), "printf %s 's3cret' | podman secret create");
    assert_eq!(said.lines().nth(1).map(|line| line.starts_with("s3cret")), Some(true), "{said}");
    let listed = run(place.vaultfs(["ls"]).arg(place.embedded())).ok();
    assert!(!listed.contains("podman/"), "{listed}");

    // Volumes.
    let said = reader.follows(&next(), "vaultfs volume-plugin --socket /run/docker/plugins/vaultfs.sock");
    assert_eq!(said, "app-secrets\ntoken\napp-secrets\n");
    let said = reader.follows(&next(), "vaultfs volume-plugin --socket /run/vaultfs-volumes.sock");
    assert!(said.contains("app-secrets\n") && said.contains("token\n"), "{said}");
    assert_eq!(all.next(), None, "a block that nobody followed");
    assert_nothing_left(&place.mnt);
}
