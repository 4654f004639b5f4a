//! What vaultfs is compared with: tmpfs, and file systems in user space that everybody knows, over
//! files on tmpfs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::mount::{Place, detach, run, wait};

/// A mount that is taken away when dropped.
pub struct Peer {
    pub name: &'static str,
    pub mnt: PathBuf,
    server: Option<Child>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        detach(&self.mnt);
        if let Some(server) = &mut self.server {
            // It may have ended by itself.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A tmpfs of its own, with a file of each of these names and contents.
pub fn tmpfs(place: &Place, files: impl Iterator<Item = (String, String)>) -> Result<Peer, String> {
    let mnt = place.make("tmpfs")?;
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mnt))?;
    let peer = Peer { name: "tmpfs", mnt, server: None };
    for (name, text) in files {
        let path = peer.mnt.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| e.to_string())?;
        }
        fs::write(path, text).map_err(|e| e.to_string())?;
    }
    Ok(peer)
}

/// Every peer that can be had, each over the directory `of`.
pub fn others(place: &Place, of: &Path) -> Vec<Peer> {
    let made = [bindfs(place, of), sshfs(place, of), rclone(place, of)];
    made.into_iter()
        .filter_map(|peer| peer.inspect_err(|e| eprintln!("   without a peer: {e}")).ok())
        .collect()
}

/// What is installed of them, as they say themselves.
pub fn versions() -> Vec<String> {
    let told = |program: &str, arg: &str, begins: &str| {
        let out = Command::new(program).arg(arg).output().ok()?;
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        let line = text.lines().find(|line| line.to_lowercase().starts_with(begins))?;
        let version = line
            .split([' ', '_', ','])
            .find(|word| word.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit()))?;
        Some(format!("{} {}", begins, version.trim_start_matches('v')))
    };
    let all = [
        told("bindfs", "--version", "bindfs"),
        told("sshfs", "--version", "sshfs"),
        told("rclone", "version", "rclone"),
        told("/usr/sbin/sshd", "-V", "openssh"),
    ];
    all.into_iter().flatten().collect()
}

fn bindfs(place: &Place, of: &Path) -> Result<Peer, String> {
    let mnt = place.make("bindfs")?;
    run(Command::new("bindfs").arg(of).arg(&mnt))?;
    Ok(Peer { name: "bindfs", mnt, server: None })
}

fn rclone(place: &Place, of: &Path) -> Result<Peer, String> {
    let mnt = place.make("rclone")?;
    let config = place.path("rclone.conf");
    fs::write(&config, "").map_err(|e| e.to_string())?;
    let mut command = Command::new("rclone");
    command.arg("--config").arg(&config).arg("mount").arg(of).arg(&mnt);
    let server = command.args(["--read-only", "--vfs-cache-mode", "off"]);
    let server = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = server.spawn().map_err(|e| format!("rclone: {e}"))?;
    let peer = Peer { name: "rclone mount", mnt, server: Some(server) };
    mounted(&peer)?;
    Ok(peer)
}

/// Over an sshd of its own, on loopback.
fn sshfs(place: &Place, of: &Path) -> Result<Peer, String> {
    let (mnt, host, user) = (place.make("sshfs")?, place.path("host"), place.path("user"));
    for key in [&host, &user] {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key))?;
    }
    // sshd's place for what it gives up its privileges in.
    let _ = fs::create_dir_all("/run/sshd");
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?;
    let config = place.path("sshd_config");
    let text = format!(
        "ListenAddress {port}\nHostKey {}\nAuthorizedKeysFile {}.pub\nPermitRootLogin yes\nStrictModes no\n\
         UsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n",
        host.display(),
        user.display()
    );
    fs::write(&config, text).map_err(|e| e.to_string())?;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o600)).map_err(|e| e.to_string())?;
    let mut sshd = Command::new("/usr/sbin/sshd");
    let sshd = sshd.args(["-D", "-f"]).arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
    let server = sshd.spawn().map_err(|e| format!("sshd: {e}"))?;
    let peer = Peer { name: "sshfs", mnt, server: Some(server) };
    wait("sshd answers", || std::net::TcpStream::connect(port).ok())?;
    let mut command = Command::new("sshfs");
    command
        .arg(format!("root@127.0.0.1:{}", of.display()))
        .arg(&peer.mnt)
        .args(["-p", &port.port().to_string()]);
    let identity = format!("IdentityFile={}", user.display());
    for option in
        [identity.as_str(), "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    {
        command.args(["-o", option]);
    }
    run(&mut command)?;
    mounted(&peer)?;
    Ok(peer)
}

fn mounted(peer: &Peer) -> Result<(), String> {
    let line = format!(" {} ", peer.mnt.display());
    wait(&format!("{} is mounted", peer.name), || {
        fs::read_to_string("/proc/self/mountinfo").ok()?.contains(&line).then_some(())
    })
}
