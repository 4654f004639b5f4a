//! A real mount for tests: made, watched, unmounted, and nothing left behind.
//!
//! A test that hangs on a mount cannot be killed, so each mount has a watchdog: past its time it aborts the FUSE
//! connection through fusectl, which frees whoever waits. Commands run under a time limit of their own.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Past this the connection is aborted, whatever is going on.
const WATCHDOG: Duration = Duration::from_secs(120);

/// The built binary.
pub const VAULTFS: &str = env!("CARGO_BIN_EXE_vaultfs");

/// Runs the built binary with `args`, at most 60 s.
pub fn vaultfs(args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", VAULTFS]).args(args);
    command.env_remove("WORKOS_API_KEY").env_remove("WORKOS_API_URL").env_remove("CREDENTIALS_DIRECTORY");
    command.stdin(Stdio::null()).output().expect("timeout(1) is there")
}

/// Standard output as text.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `condition` holds, at most 20 s.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "still not so after 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A mount of an embedded vault in a directory of its own; unmounted when dropped.
pub struct Mount {
    dir: TempDir,
    options: Vec<String>,
    watchdog: Option<Sender<()>>,
}

impl Mount {
    /// With default options.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// With more options of `vaultfs mount`.
    pub fn with(options: &[&str]) -> Self {
        Self::in_dir(TempDir::new().expect("a temporary directory"), options)
    }

    /// In this directory, which may hold a vault from an earlier mount.
    pub fn in_dir(dir: TempDir, options: &[&str]) -> Self {
        // A second user has to get as far as the mount point.
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(dir.path(), mode).expect("our own directory");
        let mut mount =
            Self { dir, options: options.iter().map(|o| (*o).to_owned()).collect(), watchdog: None };
        fs::create_dir_all(mount.path()).expect("the mount point");
        mount.mount();
        mount
    }

    fn mount(&mut self) {
        let embedded = format!("--embedded={}", self.data().display());
        let mountpoint = self.path();
        let mut args = vec!["mount", &embedded];
        args.extend(self.options.iter().map(String::as_str));
        let mountpoint = mountpoint.to_str().expect("temporary directories are UTF-8").to_owned();
        args.push(&mountpoint);
        let output = vaultfs(&args);
        assert!(output.status.success(), "vaultfs mount: {}", errors(&output));
        let (sender, receiver) = channel();
        let dev = self.dev().expect("a mount that is ready is in the mount table");
        std::thread::spawn(move || {
            if receiver.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("watchdog: aborting the FUSE connection of {dev}");
                abort(&dev);
            }
        });
        self.watchdog = Some(sender);
    }

    /// The mount point.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A path in the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The embedded vault's directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The option that names the same vault to other commands.
    pub fn embedded(&self) -> String {
        format!("--embedded={}", self.data().display())
    }

    /// The mount's device number as the mount table has it, if it is mounted.
    pub fn dev(&self) -> Option<String> {
        dev_of(&self.path())
    }

    /// Unmounts, and gives back the directory with the vault in it.
    pub fn unmount(mut self) -> TempDir {
        let output = self.try_unmount();
        assert!(output.status.success(), "vaultfs unmount: {}", errors(&output));
        std::mem::replace(&mut self.dir, TempDir::new().expect("a temporary directory"))
    }

    /// Unmounts and mounts again with the same options.
    pub fn remount(&mut self) {
        let output = self.try_unmount();
        assert!(output.status.success(), "vaultfs unmount: {}", errors(&output));
        self.mount();
    }

    /// Runs `vaultfs unmount`.
    pub fn try_unmount(&mut self) -> Output {
        let path = self.path();
        let output = vaultfs(&["unmount", path.to_str().expect("temporary directories are UTF-8")]);
        if output.status.success() {
            self.watchdog = None;
        }
        output
    }

    /// Runs a script in the mount, at most 60 s; its standard output, and its exit code must be 0.
    pub fn sh(&self, script: &str) -> String {
        self.shell("bash", script)
    }

    /// The same in this shell.
    pub fn shell(&self, shell: &str, script: &str) -> String {
        let output = self.run(shell, script);
        assert!(output.status.success(), "{shell} -c {script:?}: {}\n{}", output.status, errors(&output));
        text(&output)
    }

    /// The same, whatever its exit code.
    pub fn run(&self, shell: &str, script: &str) -> Output {
        Command::new("timeout")
            .args(["-k", "5", "60", shell, "-c", script])
            .current_dir(self.path())
            .stdin(Stdio::null())
            .output()
            .expect("timeout(1) is there")
    }

    /// The numbers in `.versions/NAME`; none if there is no such object.
    pub fn versions(&self, name: &str) -> Vec<u64> {
        let Ok(dir) = fs::read_dir(self.path().join(".versions").join(name)) else { return Vec::new() };
        let mut numbers: Vec<u64> = dir
            .map(|entry| entry.expect("a readable directory").file_name())
            .map(|name| name.to_string_lossy().parse().expect("versions are numbers"))
            .collect();
        numbers.sort_unstable();
        numbers
    }

    /// `/.vaultfs/status.json`.
    pub fn status(&self) -> serde_json::Value {
        let text = fs::read(self.at(".vaultfs/status.json")).expect("a readable control file");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Requests sent to the vault so far.
    pub fn requests(&self) -> u64 {
        self.status()["vault"]["requests"].as_u64().expect("a number")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.watchdog.is_none() {
            return;
        }
        let dev = self.dev();
        let output = self.try_unmount();
        if !output.status.success() {
            eprintln!("vaultfs unmount: {}", errors(&output));
            if let Some(dev) = dev {
                abort(&dev);
            }
            let lazily = Command::new("umount").arg("-l").arg(self.path()).status();
            assert!(std::thread::panicking(), "a mount was left: {lazily:?}");
        }
    }
}

/// The device number of what is mounted at `path`, from the mount table: never asks the file system.
pub fn dev_of(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let line = table.lines().rev().find(|line| line.split(' ').nth(4) == path.to_str())?;
    line.contains(" - fuse.vaultfs ").then(|| line.split(' ').nth(2).expect("field 3").to_owned())
}

/// Aborts the FUSE connection of this device.
pub fn abort(dev: &str) {
    let control = Path::new("/sys/fs/fuse/connections");
    if fs::read_dir(control).map(|mut d| d.next().is_none()).unwrap_or(true) {
        // It may be mounted already; then this fails and the next step works.
        let _ = Command::new("mount").args(["-t", "fusectl", "fusectl"]).arg(control).status();
    }
    let minor = dev.rsplit(':').next().expect("major:minor");
    if let Ok(mut file) = fs::OpenOptions::new().write(true).open(control.join(minor).join("abort")) {
        // A connection that is gone needs no abort.
        let _ = file.write_all(b"1");
    }
}
