//! A directory for a group of rows, mounts of vaultfs in it, and what their processes take.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long a mount, an unmount or anything else that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The build that is measured, if it is not this one.
static BINARY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// From now on this build is measured; `None` is the one that was built with the benchmark.
pub fn measure_binary(binary: Option<&Path>) {
    *BINARY.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = binary.map(Path::to_owned);
}

/// A directory that goes with everything in it.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("vaultfs-test-").tempdir().map_err(|e| e.to_string())?;
        // As long as a key made up for a benchmark needs to be.
        let key = dir.path().join("key");
        fs::write(&key, "sk_benchmark").map_err(|e| e.to_string())?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).map_err(|e| e.to_string())?;
        Ok(Self { dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory.
    pub fn make(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.path(name);
        fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    /// The program, in an environment of its own.
    pub fn vaultfs(&self) -> Command {
        let binary = BINARY.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut command = Command::new(binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_vaultfs").as_ref()));
        for name in ["WORKOS_API_KEY", "WORKOS_API_URL", "CREDENTIALS_DIRECTORY", "XDG_RUNTIME_DIR"] {
            command.env_remove(name);
        }
        let home = self.dir.path();
        command.env("HOME", home).env("XDG_STATE_HOME", home.join("state"));
        command.env("XDG_DATA_HOME", home.join("share"));
        command
    }

    /// Mounts the vault at `url` on a new directory of this name.
    pub fn mount(&self, name: &str, url: &str, options: &[&str]) -> Result<Mount<'_>, String> {
        let vault = ["--api", "kv", "--api-url", url, "--api-key-file"];
        let mut args: Vec<String> = vault.iter().map(|a| (*a).to_owned()).collect();
        args.push(self.path("key").display().to_string());
        args.extend(options.iter().map(|o| (*o).to_owned()));
        self.mount_with(name, args)
    }

    /// Mounts an embedded vault on a new directory of this name.
    pub fn mount_embedded(&self, name: &str) -> Result<Mount<'_>, String> {
        let data = self.path(&format!("{name}-data")).display().to_string();
        self.mount_with(name, vec![format!("--embedded={data}")])
    }

    fn mount_with(&self, name: &str, args: Vec<String>) -> Result<Mount<'_>, String> {
        let mnt = self.make(name)?;
        let begun = Instant::now();
        run(self.vaultfs().arg("mount").args(args).arg(&mnt))?;
        Ok(Mount { place: self, mnt, took: begun.elapsed() })
    }
}

/// Runs a command that must succeed within a minute; its standard output.
pub fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{name}: {e}"))?;
    wait(&format!("{name} ends"), || child.try_wait().ok().flatten()).inspect_err(|_| {
        // Nobody waits for it any more.
        let _ = child.kill();
    })?;
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("{name}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim()))
}

/// Asks until there is an answer.
pub fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T, String> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > end {
            return Err(format!("not within {PATIENCE:?}: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A mounted vault; unmounted when dropped.
pub struct Mount<'a> {
    place: &'a Place,
    pub mnt: PathBuf,
    /// How long `vaultfs mount` took.
    pub took: Duration,
}

impl Mount<'_> {
    pub fn path(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    /// `vaultfs status --json`.
    pub fn status(&self) -> Result<Value, String> {
        let text = run(self.place.vaultfs().args(["status", "--json"]).arg(&self.mnt))?;
        let mut status: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        Ok(status[0].take())
    }

    /// Requests that the kernel sent to the daemon, by kind, where it counts them.
    pub fn kernel_requests(&self) -> Result<Option<Counts>, String> {
        Ok(self.status()?["kernel"]["requests"].as_object().map(|kinds| {
            let count = |(kind, n): (&String, &Value)| Some((kind.to_lowercase(), n.as_u64()?));
            Counts(kinds.iter().filter_map(count).collect())
        }))
    }

    /// The processes of the mount.
    pub fn pids(&self) -> Vec<u32> {
        let needle = self.mnt.as_os_str().as_encoded_bytes().to_vec();
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        all.filter(|pid| {
            // Their names begin so (`vaultfs-keeper`), and the mount point is among their
            // arguments.
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            name.starts_with(b"vaultfs") && line.windows(needle.len()).any(|part| part == needle)
        })
        .collect()
    }

    /// Their proportional set size, in bytes.
    pub fn pss(&self) -> Result<u64, String> {
        self.pids().iter().map(|pid| rollup(*pid, "Pss:")).sum()
    }

    /// CPU time of all of them so far.
    pub fn cpu(&self) -> Duration {
        self.pids().iter().filter_map(|pid| cpu(*pid)).sum()
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Err(e) = run(self.place.vaultfs().args(["unmount", "--force"]).arg(&self.mnt)) {
            eprintln!("   {e}");
            detach(&self.mnt);
        }
    }
}

/// Takes away whatever is mounted there.
pub fn detach(mnt: &Path) {
    // Nothing is to be done about a failure but to see it in the next `mount`.
    let _ = Command::new("umount").arg("-l").arg(mnt).stderr(Stdio::null()).status();
}

fn rollup(pid: u32, field: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let kb = text.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok());
    kb.map(|kb: u64| kb * 1024).ok_or_else(|| format!("{path}: no {field}"))
}

fn cpu(pid: u32) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    // The first number is the time on a processor, in nanoseconds.
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Some(Duration::from_nanos(tasks.filter_map(of).sum()))
}

/// Requests by kind.
#[derive(Debug, Clone)]
pub struct Counts(Vec<(String, u64)>);

impl Counts {
    /// Those that somebody waits for: no RELEASE, no FORGET.
    pub fn blocking(&self) -> u64 {
        let waits =
            |kind: &str| !["release", "releasedir", "forget", "batch_forget", "interrupt"].contains(&kind);
        self.0.iter().filter(|(kind, _)| waits(kind)).map(|(_, n)| n).sum()
    }
}
