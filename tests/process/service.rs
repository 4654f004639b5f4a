//! `vaultfs mount --foreground` under a service manager: what it is told, and the units that are
//! installed.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::common::{self, Beside, Mount, Place, VAULTFS, run, signal, wait};

/// A service manager's ear.
struct Manager(UnixDatagram);

impl Manager {
    fn at(address: &SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self(socket)
    }

    /// The next message, if one comes in time.
    fn next(&self) -> Option<String> {
        let mut text = [0; 4096];
        let len = self.0.recv(&mut text).ok()?;
        Some(String::from_utf8(text[..len].to_vec()).unwrap())
    }

    /// Waits for a message with this line.
    #[track_caller]
    fn hears(&self, line: &str) {
        let heard = || self.next().filter(|text| text.lines().any(|l| l.starts_with(line)));
        assert!(wait(heard, Duration::from_secs(30)).is_some(), "not heard: {line}");
    }
}

fn start(place: &Place, socket: &str, watchdog: Option<&str>) -> Beside {
    let mut command = place.mount_command(&["--foreground"]);
    command.env("NOTIFY_SOCKET", socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(usec) = watchdog {
        command.env("WATCHDOG_USEC", usec);
    }
    Beside::start(&mut command)
}

#[test]
fn the_manager_hears_when_it_is_ready_and_when_it_ends() {
    let place = Place::new();
    let path = place.dir.path().join("notify");
    let manager = Manager::at(&SocketAddr::from_pathname(&path).unwrap());
    let mut front = start(&place, path.to_str().unwrap(), None);
    manager.hears("READY=1");
    let mount = Mount::adopt(place);
    fs::write(mount.path("a"), "1").unwrap();
    manager.hears("STATUS=the vault answers");
    let (keeper, _) = mount.pids();
    let environment = fs::read(format!("/proc/{keeper}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"), "it is for the main process");
    signal(front.0.id() as i32, Signal::SIGTERM);
    manager.hears("STOPPING=1");
    assert_eq!(front.ends().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_only_while_the_mount_answers() {
    let place = Place::new();
    let name = format!("vaultfs-test-{}", std::process::id());
    let manager = Manager::at(&SocketAddr::from_abstract_name(&name).unwrap());
    let mut front = start(&place, &format!("@{name}"), Some("400000"));
    manager.hears("READY=1");
    let mount = Mount::adopt(place);
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    let (_, worker) = mount.pids();
    signal(worker, Signal::SIGSTOP);
    // Said by the first look that got no answer; what was on its way before it is heard before it.
    manager.hears("STATUS=THE MOUNT DOES NOT ANSWER");
    let fed = (0..10).filter_map(|_| manager.next()).any(|text| text.contains("WATCHDOG=1"));
    signal(worker, Signal::SIGCONT);
    assert!(!fed, "nothing could be read");
    manager.hears("WATCHDOG=1");
    signal(front.0.id() as i32, Signal::SIGTERM);
    assert_eq!(front.ends().code(), Some(0));
}

#[test]
fn the_manager_hears_of_a_server_and_of_the_volume_plugin() {
    let place = Place::new();
    let path = place.dir.path().join("notify");
    let manager = Manager::at(&SocketAddr::from_pathname(&path).unwrap());
    let (data, state) = (place.data.to_str().unwrap(), place.dir.path().join("volumes"));
    let plugin = place.dir.path().join("plugin.sock");
    let serve = ["serve", "--data", data, "--listen", "127.0.0.1:0"];
    let volumes = ["volume-plugin", "--socket", plugin.to_str().unwrap(), "--state", state.to_str().unwrap()];
    for args in [&serve[..], &volumes[..]] {
        let mut command = place.vaultfs(args);
        command.env("NOTIFY_SOCKET", &path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut service = Beside::start(&mut command);
        manager.hears("READY=1");
        // Said when it answers, not before.
        let socket = if args[0] == "serve" { place.data.join("vault.sock") } else { plugin.clone() };
        std::os::unix::net::UnixStream::connect(socket).unwrap();
        signal(service.0.id() as i32, Signal::SIGTERM);
        manager.hears("STOPPING=1");
        assert_eq!(service.ends().code(), Some(0), "{args:?}");
    }
}

#[test]
fn the_watchdog_is_fed_only_while_the_volume_plugin_answers() {
    let place = Place::new();
    let path = place.dir.path().join("notify");
    let manager = Manager::at(&SocketAddr::from_pathname(&path).unwrap());
    let socket = place.dir.path().join("plugin.sock");
    let mut command = place.vaultfs(["volume-plugin", "--socket", socket.to_str().unwrap(), "--state"]);
    command.arg(place.dir.path().join("volumes")).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let mut plugin = Beside::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    // No engine would find it any more.
    fs::rename(&socket, place.dir.path().join("elsewhere")).unwrap();
    let silent = || (0..5).all(|_| manager.next().is_none()).then_some(());
    assert!(wait(silent, Duration::from_secs(10)).is_some(), "it feeds though nobody can ask it");
    fs::rename(place.dir.path().join("elsewhere"), &socket).unwrap();
    manager.hears("WATCHDOG=1");
    signal(plugin.0.id() as i32, Signal::SIGTERM);
    assert_eq!(plugin.ends().code(), Some(0));
}

#[test]
fn an_empty_credential_is_no_key() {
    let place = Place::new();
    fs::write(place.dir.path().join("workos-api-key"), "\n").unwrap();
    let mut command = place.mount_command(&[]);
    run(command.env("CREDENTIALS_DIRECTORY", place.dir.path())).ok();
    let mount = Mount::adopt(place);
    let mut ask = mount.vaultfs(["ls", "--api-url", "http://127.0.0.1:1"]);
    assert!(run(ask.env("CREDENTIALS_DIRECTORY", mount.place().dir.path())).fails(3).contains("no API key"));
}

fn units() -> [(&'static str, PathBuf); 3] {
    let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    [("system", "vaultfs@.service"), ("user", "vaultfs@.service"), ("system", "vaultfs-volumes.service")]
        .map(|(kind, name)| (kind, below.join(kind).join(name)))
}

/// A mount namespace of the service's own would hide the mount from the host.
#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn no_option_of_the_units_hides_the_mount() {
    let own_namespace = [
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateIPC",
        "PrivateUsers",
        "PrivatePIDs",
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "ProtectClock",
        "ProtectHostname",
        "ProcSubset",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "NoExecPaths",
        "ExecPaths",
        "BindPaths",
        "BindReadOnlyPaths",
        "TemporaryFileSystem",
        "MountFlags",
        "MountImages",
        "MountAPIVFS",
        "ExtensionImages",
        "RootDirectory",
        "RootImage",
        "DynamicUser",
        "NetworkNamespacePath",
        "IPCNamespacePath",
        // Of a user's service they keep fusermount3 from mounting.
        "NoNewPrivileges",
    ];
    for (_, unit) in units() {
        let text = fs::read_to_string(&unit).unwrap();
        for line in text.lines() {
            let name = line.split('=').next().unwrap();
            assert!(!own_namespace.contains(&name), "{}: {line}", unit.display());
        }
        let of_mounts: &[_] = match unit.ends_with("vaultfs@.service") {
            true => &["KillMode=mixed", "LoadCredential=workos-api-key:", "WatchdogSec="],
            // It ends at once, whatever it hangs in; volumes go on.
            false => &["KillMode=process", "WatchdogSec=", "WatchdogSignal=SIGKILL"],
        };
        for needed in ["Type=notify", "MemorySwapMax=0"].iter().chain(of_mounts) {
            assert!(text.lines().any(|line| line.starts_with(needed)), "{}: {needed}", unit.display());
        }
    }
    for (_, unit) in units().into_iter().filter(|(kind, _)| *kind == "system") {
        let text = fs::read_to_string(&unit).unwrap();
        for needed in
            ["CapabilityBoundingSet=~", "RestrictAddressFamilies=", "SystemCallArchitectures=native"]
        {
            assert!(text.lines().any(|line| line.starts_with(needed)), "{}: {needed}", unit.display());
        }
    }
    // What implies it for a manager that is not root.
    let implied = ["SystemCall", "Restrict", "LockPersonality", "MemoryDeny", "Private", "Protect"];
    let user = fs::read_to_string(&units()[1].1).unwrap();
    assert!(
        !user.lines().any(|line| implied.iter().any(|name| line.starts_with(name) && line.contains('='))
            && !line.starts_with("RestartPrevent"))
    );
}

/// With what the unit leaves to root a mount saves, reads, serves others and ends.
#[test]
fn a_mount_of_root_needs_none_of_the_capabilities_that_the_units_take() {
    if !common::is_root() {
        eprintln!("skipped: only root has capabilities");
        return;
    }
    for (_, unit) in units().into_iter().filter(|(kind, _)| *kind == "system") {
        let text = fs::read_to_string(unit).unwrap();
        let taken = text.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet=~CAP_"));
        let taken = taken.flat_map(|names| names.split(" CAP_")).map(str::to_lowercase);
        // Older kernels and setpriv do not know the newest.
        let known = run(Command::new("setpriv").arg("--list-caps")).ok();
        let known: Vec<_> = taken.filter(|name| known.lines().any(|line| line == name)).collect();
        assert!(known.len() > 10, "{known:?}");
        let set = known.iter().map(|name| format!("-{name}")).collect::<Vec<_>>().join(",");

        let place = Place::new();
        common::open_to_all(place.dir.path());
        let mount =
            place.mount_command(&["--allow-other", "--file-mode=0666", "--dir-mode=0777", "--refresh=1s"]);
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set", &set, "--inh-caps", &set])
            .arg(mount.get_program())
            .args(mount.get_args());
        place.isolate(&mut command);
        run(&mut command).ok();
        let mount = Mount::adopt(place);
        let bound = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line =
                status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
            u64::from_str_radix(&line, 16).unwrap()
        };
        const SYS_MODULE: u64 = 1 << 16;
        let (keeper, worker) = mount.pids();
        assert_eq!((bound(keeper) & SYS_MODULE, bound(worker) & SYS_MODULE), (0, 0));
        assert_eq!(mount.sh("echo one > a; mv a b; cat b"), "one\n");
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c"]);
        // What a process and its child write to one descriptor is one version: that is seen in
        // their /proc/PID/fdinfo.
        run(other.arg("(echo x; (echo y); echo z) > other").current_dir(mount.mnt())).ok();
        assert_eq!(mount.sh("cat other"), "x\ny\nz\n");
        assert_eq!(mount.versions("other").len(), 1);
        mount.unmount();
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let place = Place::new();
    for (kind, unit) in units() {
        let copy = place.dir.path().join(kind).join(unit.file_name().unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        let text = fs::read_to_string(unit).unwrap().replace("/usr/bin/vaultfs", VAULTFS);
        fs::write(&copy, text.replace("Documentation=", "#")).unwrap();
        let mut verify = Command::new("systemd-analyze");
        verify.env("XDG_RUNTIME_DIR", place.dir.path());
        let said = run(verify.args([&format!("--{kind}"), "verify", "--man=no"]).arg(&copy));
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{kind}");
    }
}
