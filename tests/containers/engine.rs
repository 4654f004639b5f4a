//! podman and dockerd, each with directories of its own, and an image made of busybox.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::common::{Beside, Ran, run, signal, until, wait};

/// The image. At /data it has files that must never get into a vault.
pub const IMAGE: &str = "vaultfs-test:1";
/// containers.conf for podman in and outside of containers, in any cgroup hierarchy.
pub const SETTINGS: &str = "[containers]\ndefault_ulimits=[\"nofile=20000:20000\",\"nproc=4096:4096\"]\n[engine]\n\
    runtime=\"runc\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n";
/// The client of dockerd.
const DOCKER: &str = "/usr/bin/docker";

pub struct Engine {
    dir: TempDir,
    /// How it is started, and its process.
    dockerd: Option<(Command, Beside)>,
    pub driver: String,
    pub plugin_socket: PathBuf,
}

impl Engine {
    /// podman with settings that work in and outside of containers, in any cgroup hierarchy.
    pub fn podman() -> Self {
        need("podman", "podman");
        need("runc", "runc");
        let dir = directory();
        let socket = dir.path().join("plugin.sock");
        let at = dir.path().display();
        let settings = format!("{SETTINGS}[engine.volume_plugins]\nvt=\"{}\"\n", socket.display());
        fs::write(dir.path().join("containers.conf"), settings).unwrap();
        let storage = format!("[storage]\ndriver=\"vfs\"\nrunroot=\"{at}/run\"\ngraphroot=\"{at}/graph\"\n");
        fs::write(dir.path().join("storage.conf"), storage).unwrap();
        let engine = Self { dir, dockerd: None, driver: "vt".into(), plugin_socket: socket };
        engine.import();
        engine
    }

    /// A dockerd of this test's own, without networks.
    pub fn docker() -> Self {
        Self::dockerd(Command::new("dockerd"), directory())
    }

    /// One that maps users: the container's root is the machine's user 100000. The machine's own
    /// table of such users is hidden by one in a mount namespace of the daemon's own.
    pub fn docker_remapped() -> Self {
        let dir = directory();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let users = dir.path().join("users");
        fs::write(&users, "nobody:100000:65536\n").unwrap();
        let script =
            "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec dockerd \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&users).arg("--userns-remap=nobody:nogroup");
        Self::dockerd(command, dir)
    }

    fn dockerd(mut command: Command, dir: TempDir) -> Self {
        need("dockerd", "docker.io");
        let at = |name: &str| dir.path().join(name);
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("pid")).arg("--host").arg(format!("unix://{}", at("sock").display()));
        command.args(["--storage-driver=vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"]);
        command.args(["--ip-forward=false", "--exec-opt=native.cgroupdriver=cgroupfs"]);
        let log = fs::File::create(at("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let dockerd = Beside::start(&mut command);
        // All of a machine's dockerds look for plugins in the same place.
        static ENGINES: AtomicU32 = AtomicU32::new(0);
        let number = ENGINES.fetch_add(1, Ordering::Relaxed);
        let driver = format!("vaultfs-test-{}-{number}", std::process::id());
        let plugin_socket = PathBuf::from(format!("/run/docker/plugins/{driver}.sock"));
        let engine = Self { dir, dockerd: Some((command, dockerd)), driver, plugin_socket };
        engine.answers();
        engine.import();
        engine
    }

    #[track_caller]
    fn answers(&self) {
        let up = || self.run(["version"]).code.filter(|code| *code == 0);
        let up = wait(up, Duration::from_secs(60));
        let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        assert!(up.is_some(), "dockerd does not answer:\n{}", log());
    }

    /// `kill -9` of dockerd, which is then started anew. Containers outlive it until that.
    pub fn kill_and_start(&mut self) {
        let (mut command, killed) = self.dockerd.take().unwrap();
        drop(killed);
        // Its containerd dies with it, and may stay a zombie that the next dockerd would take for
        // alive.
        let file = self.dir.path().join("exec/containerd/containerd.pid");
        let stat = format!("/proc/{}/stat", fs::read_to_string(&file).unwrap().trim());
        let dead = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        until("containerd is dead", dead);
        fs::remove_file(&file).unwrap();
        let started = Beside::start(&mut command);
        self.dockerd = Some((command, started));
        self.answers();
    }

    pub fn is_docker(&self) -> bool {
        self.dockerd.is_some()
    }

    /// `podman ARGS…` or `docker ARGS…`, not run yet.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let at = self.dir.path();
        let mut command;
        if self.is_docker() {
            command = Command::new(DOCKER);
            command.arg("-H").arg(format!("unix://{}/sock", at.display()));
            command.env("DOCKER_CONFIG", at);
        } else {
            command = Command::new("podman");
            command.env("CONTAINERS_CONF", at.join("containers.conf"));
            command.env("CONTAINERS_STORAGE_CONF", at.join("storage.conf"));
        }
        command.args(args);
        command
    }

    /// A script that is this engine where people type `podman` or `docker`.
    pub fn script(&self) -> String {
        let at = self.dir.path().display();
        let engine = match self.is_docker() {
            true => format!("env DOCKER_CONFIG={at} {DOCKER} -H unix://{at}/sock"),
            false => format!(
                "env CONTAINERS_CONF={at}/containers.conf CONTAINERS_STORAGE_CONF={at}/storage.conf /usr/bin/podman"
            ),
        };
        format!(
            "#!/bin/sh\nif [ \"$1\" = run ]; then shift; exec {engine} run --network=none \"$@\"; fi\nexec {engine} \"$@\"\n"
        )
    }

    /// Runs a command of the engine.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Ran {
        run(&mut self.command(args))
    }

    /// Runs a script in a new container.
    pub fn sh(&self, options: &[&str], script: &str) -> Ran {
        let fixed = ["run", "--rm", "--network=none"];
        self.run(fixed.iter().chain(options).copied().chain([IMAGE, "/bin/sh", "-c", script]))
    }

    /// Starts a container that runs a script in the background.
    #[track_caller]
    pub fn start(&self, name: &str, options: &[&str], script: &str) {
        let fixed = ["run", "-d", "--network=none", "--name", name];
        self.run(fixed.iter().chain(options).copied().chain([IMAGE, "/bin/sh", "-c", script])).ok();
    }

    /// Ends a container at once: podman gives it 10 s unless told otherwise.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        let at_once = if self.is_docker() { &["rm", "-f"][..] } else { &["rm", "-f", "-t", "0"] };
        self.run(at_once.iter().copied().chain([name])).ok();
    }

    /// A command in the mount namespace of dockerd.
    pub fn beside_dockerd(&self, program: &str) -> Command {
        let pid = self.dockerd.as_ref().unwrap().1.0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--", program]);
        command
    }

    /// A volume of the plugin.
    #[track_caller]
    pub fn volume(&self, name: &str, options: &[&str]) {
        let options = options.iter().flat_map(|option| ["-o", option]);
        self.run(["volume", "create", "--driver", &self.driver].into_iter().chain(options).chain([name]))
            .ok();
    }

    fn import(&self) {
        let tar = image(self.dir.path());
        self.run(["import", tar.to_str().unwrap(), IMAGE]).ok();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some((_, dockerd)) = &mut self.dockerd {
            signal(dockerd.0.id() as i32, Signal::SIGTERM);
            // It ends its containerd, too.
            dockerd.ends();
            // One that was killed leaves its directory mounted on itself, and the next one takes
            // that for the machine's.
            run(Command::new("umount").arg("--quiet").arg(self.dir.path().join("data")));
        } else {
            self.run(["rm", "-f", "-a"]);
            self.run(["image", "rm", "-f", IMAGE]);
        }
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("vaultfs-test-{}-engine-", std::process::id()))
        .tempdir()
        .unwrap()
}

pub fn need(command: &str, package: &str) {
    let found = run(Command::new("sh").args(["-c", &format!("command -v {command}")])).code == Some(0);
    assert!(found, "'{command}' is missing: apt-get install {package}, or scripts/test, which does it");
}

/// The image as an archive in this directory.
pub fn image(dir: &Path) -> PathBuf {
    let (root, tar) = (dir.join("image"), dir.join("image.tar"));
    make_image(&root);
    run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".")).ok();
    tar
}

fn make_image(root: &Path) {
    for dir in ["bin", "data/sub", "etc", "tmp", "proc", "dev", "sys", "run"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for dir in ["", "bin", "data", "data/sub", "etc", "run"] {
        fs::set_permissions(root.join(dir), fs::Permissions::from_mode(0o755)).unwrap();
    }
    need("busybox", "busybox-static");
    let busybox = root.join("bin/busybox");
    run(Command::new("sh").arg("-c").arg("cp \"$(command -v busybox)\" \"$1\"").arg("sh").arg(&busybox)).ok();
    for name in
        ["sh", "cat", "ls", "id", "stat", "sleep", "echo", "test", "mkdir", "touch", "rm", "true", "seq"]
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("data/from-image"), "of the image").unwrap();
    fs::write(root.join("data/token"), "of the image, too").unwrap();
    fs::write(root.join("data/sub/x"), "x").unwrap();
    with_libraries(root, "inotifywait", "inotify-tools");
}

/// Copies a program of this machine and the libraries it is linked with.
fn with_libraries(root: &Path, program: &str, package: &str) {
    need(program, package);
    let script = "p=$(command -v \"$1\"); cp \"$p\" \"$2/bin/\"; for l in $(ldd \"$p\" | grep -o '/[^ ]*'); do \
                  mkdir -p \"$2$(dirname $l)\" && cp -L \"$l\" \"$2$l\"; done; chmod -R a+rX \"$2\"";
    run(Command::new("sh").args(["-c", script, "sh", program]).arg(root)).ok();
}
