//! The mounts of volumes: each one `vaultfs mount`, with processes of its own that outlive the
//! plugin.
//!
//! The plugin never accesses a mount itself: the mount table shows whether it exists, and a child
//! process, which may hang, checks that it answers. A mount counts as made only after a file was
//! read through it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::daemon::control::{Answer, Request};
use crate::daemon::live_mounts;
use crate::daemon::worker;
use crate::display::Shown;
use crate::sys::mount::KernelOptions;
use crate::sys::mount_table::Entry;
use crate::sys::probe;
use crate::sys::probe::ProbeError;
use crate::sys::{mount_table, mount_users, mountpoint, trust};

/// Timeout of `vaultfs mount`. dockerd closes the connection after 120 s and should have an error
/// message by then.
const PATIENCE: Duration = Duration::from_secs(110);
/// Timeout of `vaultfs unmount`, beyond twice the mount's `drain`.
const END: Duration = Duration::from_secs(120);
/// Assumed `drain` of a mount that does not report it.
const DRAIN: Duration = Duration::from_secs(60);
/// How long a mount may take to answer a read that asks no vault.
const ANSWER: Duration = Duration::from_secs(5);
/// Interval between checks of the mount table during an unmount.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Limit of a command's error output.
const SENTENCE: u64 = 4096;
/// A file that every mount has, and answers itself.
const CONTROL_FILE: &str = ".vaultfs/status.json";

/// Completes when the operation is to be interrupted.
pub type Interruption = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes and removes mounts. Errors are messages for the user of the container engine.
#[async_trait]
pub trait Mounter: Send + Sync {
    /// Mounts at `at`, which it makes if it is missing; returns when the mount answers.
    async fn mount(&self, at: &Path, arguments: &[String]) -> Result<(), String>;
    /// Stores unsaved writes of the mount there; an error names what could not be stored in time.
    async fn store(&self, at: &Path, within: Duration) -> Result<(), String>;
    /// Stores unsaved writes and unmounts. If it is interrupted, the mount stays, or is gone
    /// already.
    async fn unmount(&self, at: &Path, unless: Interruption) -> Result<(), String>;
    /// As [`Mounter::unmount`], but refuses while a visible process uses the mount, and if unsaved
    /// writes remain after this time.
    async fn unmount_idle(&self, at: &Path, within: Duration) -> Result<(), String>;
    /// A process that has it bound elsewhere in its mount namespace, as a message. Accesses no
    /// mount.
    async fn holder(&self, at: &Path) -> Option<String>;
    /// Refuses if the mount is missing at this path for a process that is about to bind it.
    /// Accesses no mount.
    fn is_seen_by(&self, at: &Path, process: Option<u32>) -> Result<(), String>;
    /// Whether a vaultfs is mounted there. Accesses no mount.
    fn is_mounted(&self, at: &Path) -> bool;
    /// Removes the mount point of an ended mount.
    fn tidy(&self, at: &Path);
}

/// [`Mounter`] by this program's own commands.
#[derive(Debug)]
pub struct Commands {
    /// Whether `--allow-other` is possible: for root always, for others where fuse.conf permits it.
    allow_other: bool,
}

impl Commands {
    /// Checks what this machine permits.
    pub fn new() -> Self {
        let kernel = KernelOptions { allow_other: true, ..KernelOptions::default() };
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Self { allow_other: mountpoint::check_machine(&kernel, uid, gid).is_ok() }
    }
}

impl Default for Commands {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Mounter for Commands {
    async fn mount(&self, at: &Path, arguments: &[String]) -> Result<(), String> {
        if let Some(top) = top(at)? {
            if !is_ours(&top) {
                return Err(format!("something else ({}) is mounted on {}", top.fs_type, at.shown()));
            }
            match read_control_file(at).await {
                Ok(()) => return Ok(()),
                Err(Unread::Errno(libc::ENOTCONN)) => {
                    tracing::warn!(at = %at.shown(), "a dead mount: replacing it");
                    // What is below it is closed.
                    run(vaultfs("unmount").arg("--lazy").arg("--").arg(at), END).await?;
                }
                Err(e) => return Err(format!("its mount is there but cannot be used: {e}")),
            }
        }
        let bare = make_bare(at).map_err(|e| format!("{} cannot be made: {e}", at.shown()))?;
        let mut command = vaultfs("mount");
        // An engine copies the image's files into an empty volume.
        command.arg("--never-empty").args(self.allow_other.then_some("--allow-other"));
        if !arguments.iter().any(|argument| argument.starts_with("--embedded")) {
            // That directory has the key of the default vault, which names it in its options: no
            // other vault may get it.
            command.env_remove("CREDENTIALS_DIRECTORY");
        }
        let mounted = run(command.args(arguments).arg("--").arg(at), PATIENCE).await;
        // It is below the mount by now. A container that has it in place of the mount gets nothing
        // out of it, and nothing in.
        let closed = bare.set_permissions(Permissions::from_mode(0o000));
        if !self.is_mounted(at) {
            self.tidy(at);
        }
        mounted?;
        closed.map_err(|e| format!("{} cannot be closed: {e}", at.shown()))?;
        read_control_file(at).await.map_err(|e| format!("mounted, but it cannot be used: {e}"))
    }

    async fn store(&self, at: &Path, within: Duration) -> Result<(), String> {
        let Some(top) = ours(at)? else { return Ok(()) };
        let request = Request::Drain { timeout_ms: Some(within.as_millis() as u64) };
        match ask(top, request, within + ANSWER).await {
            Some(Answer::Drained(left)) if !left.is_empty() => {
                let left = left.iter().map(|write| format!("{}: {}", write.name, worker::reason(write)));
                Err(format!("not stored: {}", left.collect::<Vec<_>>().join("; ")))
            }
            // Of a mount that does not answer, `vaultfs unmount` says what is wrong with it.
            _ => Ok(()),
        }
    }

    async fn unmount(&self, at: &Path, mut unless: Interruption) -> Result<(), String> {
        let Some(top) = ours(at)? else { return Ok(()) };
        let patience = time_to_end(top).await;
        // Lazy: no container uses it, and a process on the host that has it open must not delay the
        // engine.
        let mut command = vaultfs("unmount");
        command.arg("--lazy").arg("--").arg(at);
        let (stop, stopped) = oneshot::channel();
        let mut ended = tokio::spawn(async move {
            let stopped = async {
                if stopped.await.is_err() {
                    std::future::pending().await
                }
            };
            run_unless(&mut command, patience, stopped).await
        });
        loop {
            tokio::select! {
                ended = &mut ended => return ended.unwrap_or_else(|e| Err(e.to_string())),
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = &mut unless => {
                    let _ = stop.send(());
                    // It may still unmount until it has ended.
                    let ended = ended.await.unwrap_or_else(|e| Err(e.to_string()));
                    return if self.is_mounted(at) { ended } else { Ok(()) };
                }
            }
            // The command goes on until the mount's processes have ended, which the mount namespace
            // of a container that is just ending may delay; the next mount need not wait for them.
            if !self.is_mounted(at) {
                return Ok(());
            }
        }
    }

    async fn unmount_idle(&self, at: &Path, within: Duration) -> Result<(), String> {
        let Some(top) = ours(at)? else { return Ok(()) };
        let patience = time_to_end(top).await;
        self.store(at, within).await?;
        // Not lazy: it fails while a process has a file of it open, and stores writes made since.
        run(vaultfs("unmount").arg("--").arg(at), patience).await
    }

    async fn holder(&self, at: &Path) -> Option<String> {
        let top = ours(at).ok()??;
        let holders = tokio::task::spawn_blocking(move || mount_users::bound_elsewhere(&top)).await.ok()?;
        let holder = holders.first()?;
        Some(format!("the mount namespace of process {} ({}) has it", holder.pid, holder.name))
    }

    fn is_seen_by(&self, at: &Path, process: Option<u32>) -> Result<(), String> {
        let mount = ours(at)?.ok_or("its mount has just gone")?;
        let known = process.and_then(|pid| Some((pid, mount_table::table_of(pid).ok()?)));
        let advice = "run the plugin where the engine runs, in the same mount and process namespaces";
        let Some((pid, table)) = known else {
            return Err(format!(
                "it is unknown whether the engine sees its mount, because its process is not visible here: {advice}"
            ));
        };
        match table.iter().rfind(|entry| entry.mountpoint == at) {
            Some(top) if top.dev == mount.dev => Ok(()),
            _ => Err(format!(
                "the engine (process {pid}) does not see its mount, and containers would write to the disk: {advice}"
            )),
        }
    }

    fn is_mounted(&self, at: &Path) -> bool {
        matches!(mount_table::top_at(at), Ok(Some(top)) if is_ours(&top))
    }

    fn tidy(&self, at: &Path) {
        if let Err(e) = fs::remove_dir(at)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::error!("{} stays: {e}; its files are on this disk and in no vault", at.shown());
        }
    }
}

/// The directory to mount on, for this user to use until it is mounted on.
fn make_bare(at: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).create(at)?;
    // An earlier one was closed.
    fs::set_permissions(at, Permissions::from_mode(0o700))?;
    File::open(at)
}

/// What is mounted at a place.
fn top(at: &Path) -> Result<Option<Entry>, String> {
    mount_table::top_at(at).map_err(|e| format!("the mount table cannot be read: {e}"))
}

/// What is mounted at a place, if it is of ours.
fn ours(at: &Path) -> Result<Option<Entry>, String> {
    Ok(top(at)?.filter(is_ours))
}

fn is_ours(mount: &Entry) -> bool {
    mount.is_vaultfs() && trust::is_own(mount)
}

/// Queries a mount's processes over their socket, not over the file system.
async fn ask(mount: Entry, request: Request, within: Duration) -> Option<Answer> {
    let asked = tokio::task::spawn_blocking(move || {
        let mount = live_mounts::of(&mount)?;
        mount.connect(ANSWER).and_then(|mut client| client.ask(&request, within)).ok()
    });
    asked.await.ok().flatten()
}

/// How long `vaultfs unmount` may take with this mount.
async fn time_to_end(mount: Entry) -> Duration {
    let drain = match ask(mount, Request::Status, ANSWER).await {
        Some(Answer::Status(status)) => status["drain_s"].as_u64().map(Duration::from_secs),
        _ => None,
    };
    drain.unwrap_or(DRAIN).saturating_mul(2).saturating_add(END)
}

/// A `vaultfs` command that ends with the plugin: later it could remove a mount that the next run
/// of the plugin has given to a container.
fn vaultfs(command: &str) -> Command {
    let mut vaultfs = Command::new("/proc/self/exe");
    vaultfs.arg0("vaultfs").arg(command).kill_on_drop(true);
    vaultfs.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let plugin = nix::unistd::getpid();
    let ends_with_it = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before prctl.
        if nix::unistd::getppid() == plugin { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: prctl and getppid may be called between fork and exec.
    unsafe { vaultfs.pre_exec(ends_with_it) };
    vaultfs
}

/// Runs a `vaultfs` command; the error is its message.
async fn run(command: &mut Command, patience: Duration) -> Result<(), String> {
    run_unless(command, patience, std::future::pending()).await
}

/// As [`run`], with an interruption; the command has ended when this returns.
async fn run_unless(
    command: &mut Command,
    patience: Duration,
    unless: impl Future<Output = ()>,
) -> Result<(), String> {
    let mut child = command.spawn().map_err(|e| format!("vaultfs cannot be started: {e}"))?;
    let said = child.stderr.take();
    let finished = async {
        let mut text = Vec::new();
        if let Some(said) = said {
            let _ = said.take(SENTENCE).read_to_end(&mut text).await;
        }
        (child.wait().await, text)
    };
    let why = tokio::select! {
        finished = finished => return match finished {
            (Err(e), _) => Err(format!("vaultfs cannot be waited for: {e}")),
            (Ok(status), _) if status.success() => Ok(()),
            (Ok(status), text) => Err(sentence(&String::from_utf8_lossy(&text), &status)),
        },
        () = tokio::time::sleep(patience) => format!("no answer within {} s", patience.as_secs()),
        () = unless => "interrupted, because it is wanted again".to_owned(),
    };
    let _ = child.kill().await;
    Err(why)
}

/// A command's standard error as one sentence, without its name and hints.
fn sentence(said: &str, status: &std::process::ExitStatus) -> String {
    let lines = said.lines().map(|line| line.strip_prefix("vaultfs: ").unwrap_or(line).trim());
    let lines: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with("hint:")).collect();
    if lines.is_empty() { format!("vaultfs ended without a word ({status})") } else { lines.join("; ") }
}

/// Why a file of the mount was not read.
enum Unread {
    Hangs,
    Errno(i32),
    Failed(String),
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unread::Hangs => {
                f.write_str("it does not answer (`vaultfs unmount --force` on its path ends it)")
            }
            Unread::Errno(errno) => write!(f, "{}", io::Error::from_raw_os_error(*errno)),
            Unread::Failed(why) => f.write_str(why),
        }
    }
}

/// Reads a file through the mount that it answers without the vault.
async fn read_control_file(at: &Path) -> Result<(), Unread> {
    let file = at.join(CONTROL_FILE);
    let read = tokio::task::spawn_blocking(move || probe::read(&file, ANSWER)).await;
    match read {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(ProbeError::Hangs)) => Err(Unread::Hangs),
        Ok(Err(ProbeError::Failed(e))) => {
            Err(e.raw_os_error().map_or_else(|| Unread::Failed(e.to_string()), Unread::Errno))
        }
        Err(e) => Err(Unread::Failed(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_a_command_says_becomes_a_sentence() {
        let status = std::process::ExitStatus::from_raw(3 << 8);
        let said = "vaultfs: hint: keys start with sk_\nvaultfs: not stored:\n  a: the vault is away\n";
        assert_eq!(sentence(said, &status), "not stored:; a: the vault is away");
        assert!(sentence("", &status).contains("exit status: 3"));
    }
}
