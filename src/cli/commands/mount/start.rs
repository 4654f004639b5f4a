//! Starts the keeper of a mount, waits for its answer, and checks the mount from outside.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::exit::{Exit, Failure};
use crate::cli::service;
use crate::daemon::keeper;
use crate::daemon::protocol::{MountConfig, Outcome, see_log, send_config};
use crate::display::Shown;
use crate::secret::SecretString;
use crate::sys::channel::send_descriptor;
use crate::sys::mount_table::Dev;
use crate::sys::mount_target::Target;
use crate::sys::{probe, stdio};
use crate::vault::lazy::Start;

/// A wait for the vault that takes longer than this is reported.
const QUIET_WAIT: Duration = Duration::from_secs(1);

/// Starts the keeper and waits for its line: the mount is ready, or why it is not.
pub(super) fn start_keeper(
    config: &MountConfig,
    key: Option<&SecretString>,
    target: Target,
    runtime_dir: Option<&Path>,
) -> anyhow::Result<(Child, Outcome)> {
    let (pipe, theirs) = UnixStream::pair()?;
    let mut keeper = Command::new("/proc/self/exe");
    keeper
        .arg0("vaultfs")
        .arg(keeper::COMMAND)
        .arg(&config.mountpoint)
        .args(runtime_dir.into_iter().flat_map(|dir| [OsStr::new(keeper::RUNTIME_DIR), dir.as_os_str()]))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped());
    for variable in service::VARIABLES {
        keeper.env_remove(variable);
    }
    let mut child = keeper.spawn()?;
    // The command holds the keeper's end of the socket.
    drop(keeper);
    let Some(said) = child.stdout.take() else { anyhow::bail!("no pipe from the keeper") };
    send_descriptor(pipe.as_fd(), target.directory())?;
    // From here on the keeper alone keeps the directory open.
    drop(target);
    send_config(pipe, config, key)?;
    if matches!(config.start, Start::Wait(_)) && !speaks_within(&said, QUIET_WAIT)? {
        stdio::say(format_args!("waiting for the vault; {}", see_log(&config.log_place)));
    }
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    if line.is_empty() {
        let status = child.wait()?;
        anyhow::bail!("the keeper process ended without a word ({status})");
    }
    Ok((child, serde_json::from_str(&line)?))
}

/// Whether input or its end arrives within `time`.
fn speaks_within(said: &impl AsFd, time: Duration) -> nix::Result<bool> {
    let mut fds = [PollFd::new(said.as_fd(), PollFlags::POLLIN)];
    let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, time) {
        Err(Errno::EINTR) => Ok(false),
        ready => ready.map(|n| n > 0),
    }
}

/// Timeout for the first request to a new mount.
const ANSWER: Duration = Duration::from_secs(10);

/// Verifies that the mount answers, is the one that was made (`dev`), and that a file in it can be
/// read. Returns the content of its status file.
pub(super) fn stat_from_outside(mountpoint: &Path, dev: Dev) -> Result<Vec<u8>, Failure> {
    let failed = |what: String| Failure::new(Exit::Failed, format!("{}: {what}", mountpoint.shown()));
    let seen = probe::stat(mountpoint, ANSWER)
        .map_err(|e| failed(format!("mounted, but it cannot be used: {e}")))?;
    let (seen, _) = seen.map_err(|_| failed("mounted, but something on the way was replaced".into()))?;
    match (seen.stat, seen.statfs) {
        (Ok((true, seen)), Ok(())) if seen == dev => service::read_through(mountpoint, ANSWER)
            .map_err(|e| failed(format!("mounted, but nothing can be read: {e}"))),
        (Ok((_, seen)), Ok(())) if seen != dev => Err(failed("mounted, but another mount covers it".into())),
        (Err(errno), _) | (_, Err(errno)) => Err(failed(format!(
            "mounted, but it cannot be used: {}",
            std::io::Error::from_raw_os_error(errno)
        ))),
        _ => Err(failed("mounted, but it is no directory".into())),
    }
}
