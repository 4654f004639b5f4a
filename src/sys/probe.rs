//! Access to a path that may hang, with a timeout.
//!
//! stat(2) on a mount with a stuck daemon cannot be interrupted, and a process that waits in it
//! cannot even be killed. So a child process does it and reports on its standard output. Without a
//! report within the deadline the child is killed and *not waited for*: a stuck child stays until
//! the mount is gone, and init reaps it.

use std::ffi::{CString, OsStr};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::sys::channel::{Channel, take_standard};
use crate::sys::files::ownership::by_descriptor;
use crate::sys::mount_table::Dev;
use crate::sys::mount_target;
use crate::sys::mount_target::WalkError;
use crate::sys::stdio;

/// The hidden command of the child.
pub const COMMAND: &str = "probe";

/// The child's report. Errors are errno values.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// The path without links, also where what it leads to cannot be looked at (a dead mount).
    pub canonical: PathBuf,
    /// stat(2): whether it is a directory, and its device.
    pub stat: Result<(bool, Dev), i32>,
    /// statfs(2), which asks a mount's daemon even where stat is answered from the kernel's memory.
    pub statfs: Result<(), i32>,
    /// Whether the directory is empty. What is mounted is never looked into: of a vault that would
    /// be a request for each hundred names.
    pub empty: Result<bool, i32>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The file system did not answer.
    #[error("no answer")]
    Hangs,
    /// The child could not be started or died.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// Walks to `path` in a child process ([`mount_target::walk`]) and looks at what is there, for at
/// most `within`.
pub fn stat(path: &Path, within: Duration) -> Result<Result<(Seen, OwnedFd), WalkError>, ProbeError> {
    let end = Instant::now() + within;
    let (ours, theirs) = Channel::pair()?;
    let mut child = start(&[path.as_os_str()], OwnedFd::from(theirs).into())?;
    wait_for(&mut child, ours.as_fd(), end)?;
    let received = ours.receive::<Result<Seen, WalkError>>()?;
    let _ = child.wait();
    match received {
        Some((Ok(seen), mut fds)) if fds.len() == 1 => Ok(Ok((seen, fds.remove(0)))),
        Some((Err(e), _)) => Ok(Err(e)),
        _ => Err(died()),
    }
}

/// Reads the file `path` in a child process, for at most `within`.
pub fn read(path: &Path, within: Duration) -> Result<Vec<u8>, ProbeError> {
    reported(READ, path, within)
}

/// Lists the directory `path` likewise: [`listing`].
pub fn list(path: &Path, within: Duration) -> Result<Vec<u8>, ProbeError> {
    reported(LIST, path, within)
}

fn reported(what: &str, path: &Path, within: Duration) -> Result<Vec<u8>, ProbeError> {
    let text = ask(&[OsStr::new(what), path.as_os_str()], within)?;
    // The child's last word says whether that is all.
    match text.split_last() {
        Some((0, bytes)) => Ok(bytes.to_owned()),
        Some((&errno, _)) => Err(ProbeError::Failed(io::Error::from_raw_os_error(errno.into()))),
        None => Err(died()),
    }
}

/// The option of [`COMMAND`] that reads.
const READ: &str = "--read";
/// The option of [`COMMAND`] that lists.
const LIST: &str = "--list";
/// The most names of a listing.
const MOST_NAMES: usize = 1000;

/// The names in a directory, a NUL after each; those of directories end in a slash. What they lead
/// to is not looked at.
pub fn listing(path: &Path) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path)?.take(MOST_NAMES) {
        let entry = entry?;
        all.extend_from_slice(entry.file_name().as_bytes());
        all.extend_from_slice(if entry.file_type()?.is_dir() { b"/\0" } else { b"\0" });
    }
    Ok(all)
}

fn start(args: &[&OsStr], output: Stdio) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vaultfs").arg(COMMAND).args(args);
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).spawn()
}

/// Waits for output of the child, or its end.
fn wait_for(child: &mut Child, output: BorrowedFd<'_>, end: Instant) -> Result<(), ProbeError> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(output, PollFlags::POLLIN)], timeout) {
            Ok(0) => {
                // It may be unkillable: not waited for.
                let _ = child.kill();
                return Err(ProbeError::Hangs);
            }
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(ProbeError::Failed(e.into())),
        }
    }
}

fn died() -> ProbeError {
    ProbeError::Failed(io::Error::other("the probe died"))
}

/// What the child prints.
fn ask(args: &[&OsStr], within: Duration) -> Result<Vec<u8>, ProbeError> {
    let end = Instant::now() + within;
    let mut child = start(args, Stdio::piped())?;
    let mut output = child.stdout.take().expect("asked for above");
    let mut text = Vec::new();
    loop {
        wait_for(&mut child, output.as_fd(), end)?;
        let mut part = [0; 4096];
        match output.read(&mut part)? {
            0 => break,
            n => text.extend_from_slice(&part[..n]),
        }
    }
    // It closed its output as its last act: it is not stuck.
    let _ = child.wait();
    Ok(text)
}

/// The child: prints the bytes that it read and then one with the errno, 0 if all went well.
pub fn report(read: io::Result<Vec<u8>>) -> io::Result<()> {
    let (mut bytes, errno) = match read {
        Ok(bytes) => (bytes, 0),
        Err(e) => {
            (Vec::new(), e.raw_os_error().and_then(|n| u8::try_from(n).ok()).unwrap_or(libc::EIO as u8))
        }
    };
    bytes.push(errno);
    stdio::stdout().write_all(&bytes)?;
    stdio::stdout().flush()
}

/// The child: walks, looks at what it finds, and sends both.
pub fn child(path: &Path) -> io::Result<()> {
    let line = Channel::from(take_standard(1)?);
    match mount_target::walk(path) {
        Ok((path, found)) => {
            let seen = see(&by_descriptor(&found), path);
            line.send(&Ok::<_, WalkError>(seen), &[found.as_fd()])
        }
        Err(e) => line.send(&Err::<Seen, _>(e), &[]),
    }
}

fn see(path: &Path, canonical: PathBuf) -> Seen {
    let errno = |e: io::Error| e.raw_os_error().unwrap_or(libc::EIO);
    let stat = std::fs::metadata(path).map(|m| (m.is_dir(), Dev::from_raw(m.dev()))).map_err(errno);
    let parent = std::fs::metadata(path.join("..")).map(|parent| Dev::from_raw(parent.dev()));
    let is_mount = matches!((&stat, &parent), (Ok((_, dev)), Ok(parent)) if dev != parent);
    let empty = match is_mount {
        true => Ok(false),
        false => std::fs::read_dir(path).map(|mut entries| entries.next().is_none()).map_err(errno),
    };
    Seen { canonical, stat, statfs: statfs(path).map_err(errno), empty }
}

/// statfs(2) through libc: only whether it answers counts.
fn statfs(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut buffer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is NUL-terminated, the buffer has the right size and is not read.
    match unsafe { libc::statfs(path.as_ptr(), buffer.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
