//! The messages between the processes of a mount.
//!
//! - A new process gets its [`MountConfig`] and the API key on its standard input, a pipe: never in
//!   arguments, environment or a file. The key travels beside the JSON, not in it. The keeper's is
//!   a socket, on which the directory to mount on comes first, as a descriptor.
//! - The keeper reports the outcome to the command that started it: one JSON line on its standard
//!   output.
//! - Keeper and worker talk over a [`Channel`](crate::sys::channel::Channel): datagrams of JSON
//!   that may carry descriptors. Either side sees the end of the other as the end of the channel.
//!
//! The descriptors 0-2 carry everything that is inherited;
//! [`close_inherited`](crate::sys::channel::close_inherited) closes the rest, so that a mount never
//! holds open what the shell that started it had open.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::daemon::state_log::SealKey;
use crate::fs::{Ending, Options};
use crate::secret::SecretString;
use crate::sys::mount::KernelOptions;
use crate::sys::mount_table::Dev;
use crate::vault::lazy::Start;

/// Everything a keeper and its workers need to know; no secret in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountConfig {
    /// Absolute, without links.
    pub mountpoint: PathBuf,
    /// For the file system.
    pub options: Options,
    /// For the kernel.
    pub kernel: KernelOptions,
    /// Which vault; opaque to this layer.
    pub spec: serde_json::Value,
    /// What to do when the vault does not answer at the start.
    pub start: Start,
    /// How long unsaved writes are tried when the mount ends.
    pub drain: Duration,
    /// What to run when something was changed elsewhere.
    pub on_change: Option<String>,
    /// Where log lines go; opaque to this layer.
    pub log: serde_json::Value,
    /// The same for people: a file, or the command that shows it. Empty in an older version's.
    #[serde(default)]
    pub log_place: String,
    /// `--foreground`: log on standard error, end with the parent.
    pub foreground: bool,
}

/// Where a message sends its reader for the reason.
pub fn see_log(place: &str) -> String {
    match place {
        "" => "see the log".to_owned(),
        place => format!("see the log: {place}"),
    }
}

/// Why a process ended: an exit code of the command line, and a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ExitError {
    /// The exit code.
    pub exit: u8,
    /// What happened and what to do.
    pub message: String,
}

impl ExitError {
    /// Exit code 1, for what has no code of its own.
    pub fn new(message: impl Into<String>) -> Self {
        Self { exit: 1, message: message.into() }
    }
}

/// The exit code of a mount that ended with writes the vault does not have.
pub const EXIT_UNSAVED: u8 = 7;

/// The keeper's report to the starting command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The mount is made and served.
    Ready {
        /// The new mount.
        dev: Dev,
        /// Its keeper.
        keeper_pid: u32,
    },
    /// Nothing is mounted.
    Failed(ExitError),
}

/// From keeper to worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// The first message: carries the state of the mount. The worker says whether it can read it.
    State {
        /// A takeover: the state is of a previous worker, and the vault need not answer now.
        takeover: bool,
        /// The mount is a new one that knows nothing of the inodes and handles in the state.
        #[serde(rename = "anew")]
        fresh_mount: bool,
    },
    /// Connect to the vault.
    Connect,
    /// An upgrade that was asked for does not take place.
    NotUpgraded(String),
    /// Take over this mount. Carries the /dev/fuse descriptor, the control socket's listener and
    /// the line to the helper.
    Serve {
        /// The INIT request as the kernel sent it.
        init: Vec<u8>,
        /// The mount.
        dev: Dev,
        /// For status.
        facts: MountFacts,
        /// A dead worker may have left requests unanswered.
        resend: bool,
    },
    /// The kernel has its answer to INIT (or had it all along): serve.
    Go,
    /// Store what is unsaved, and say what could not be.
    Drain,
    /// Exit now.
    End,
    /// Read the key file again.
    ReloadKey,
}

/// From worker to keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper {
    /// The state can be read.
    Readable,
    /// The vault accepted the key (or need not answer yet); its description, as far as it is known.
    Connected(serde_json::Value),
    /// It did not, or the worker cannot start; the worker ends.
    Failed(ExitError),
    /// The answer to INIT that this worker's session is built for.
    Init(Vec<u8>),
    /// Requests are being served.
    Serving,
    /// A command asked for a takeover by this program.
    Upgrade(PathBuf),
    /// The answer to [`ToWorker::Drain`]: how many writes are left.
    Drained(usize),
    /// The session is over, and so many writes are left; the worker ends.
    Ended(usize),
}

/// What the keeper knows and `status` shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountFacts {
    /// The keeper.
    pub keeper_pid: u32,
    /// The FUSE protocol version the kernel speaks.
    pub fuse_abi: (u32, u32),
    /// Whether the kernel sends requests again that a dead worker left unanswered (Linux 6.9).
    pub resend: bool,
    /// Whether the keeper's memory is locked.
    pub keeper_memory: crate::sys::hardening::LockState,
    /// How many workers there were before this one.
    pub restarts: u32,
    /// How the last one ended.
    pub last_end: Option<String>,
    /// How the last serving worker ended: evidence about the requests it had read.
    #[serde(default)]
    pub ending: Ending,
    /// The helper that is there already, 0 if none: what it asks is never taken for a program's
    /// request.
    pub helper_pid: u32,
}

/// Writes a configuration and a key for a new process to read.
pub fn send_config(mut to: impl Write, config: &MountConfig, key: Option<&SecretString>) -> io::Result<()> {
    write_part(&mut to, &serde_json::to_vec(config)?)?;
    match key {
        // This function exists to pass the key on.
        Some(key) => {
            to.write_all(&[1])?;
            write_part(&mut to, key.expose().as_bytes())
        }
        None => to.write_all(&[0]),
    }
}

/// Reads what [`send_config`] wrote.
pub fn receive_config(mut from: impl Read) -> io::Result<(MountConfig, Option<SecretString>)> {
    let config = serde_json::from_slice(&read_part(&mut from)?)?;
    let mut has_key = [0];
    from.read_exact(&mut has_key)?;
    if has_key == [0] {
        return Ok((config, None));
    }
    let mut bytes = read_part(&mut from)?;
    let text = String::from_utf8(std::mem::take(&mut *bytes))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the key is not text"))?;
    Ok((config, Some(SecretString::new(text))))
}

/// Writes the key that seals the mount's state, after [`send_config`].
pub fn send_seal(mut to: impl Write, seal: &SealKey) -> io::Result<()> {
    // This function exists to pass the key on.
    write_part(&mut to, seal.expose())
}

/// Reads what [`send_seal`] wrote.
pub fn receive_seal(mut from: impl Read) -> io::Result<SealKey> {
    let bytes = read_part(&mut from)?;
    SealKey::from_bytes(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Neither a configuration nor a key is longer.
const MAX_PART: usize = 1 << 20;

fn write_part(to: &mut impl Write, part: &[u8]) -> io::Result<()> {
    to.write_all(&(part.len() as u32).to_le_bytes())?;
    to.write_all(part)
}

fn read_part(from: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_PART {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    let mut part = Zeroizing::new(vec![0; len]);
    from.read_exact(&mut part)?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::channel::Channel;

    fn config() -> MountConfig {
        MountConfig {
            mountpoint: "/mnt/v".into(),
            options: Options::default(),
            kernel: KernelOptions::default(),
            spec: serde_json::json!({"endpoint": "x"}),
            start: Start::Wait(Duration::from_secs(1)),
            drain: Duration::from_secs(60),
            on_change: None,
            log: serde_json::Value::Null,
            log_place: String::new(),
            foreground: false,
        }
    }

    #[test]
    fn configuration_and_key_travel_apart() {
        let key = SecretString::new("sk_test_handover".into());
        let mut pipe = Vec::new();
        send_config(&mut pipe, &config(), Some(&key)).expect("a vector takes everything");
        let (back, came) = receive_config(&pipe[..]).expect("own output");
        assert_eq!(back.mountpoint, config().mountpoint);
        assert_eq!(came.expect("sent").expose(), key.expose());

        let mut pipe = Vec::new();
        send_config(&mut pipe, &config(), None).expect("a vector takes everything");
        assert!(receive_config(&pipe[..]).expect("own output").1.is_none());
        assert!(receive_config(&pipe[..pipe.len() - 1]).is_err());
    }

    #[test]
    fn messages_carry_descriptors_and_the_end_is_seen() {
        let (a, b) = Channel::pair().expect("a socket pair");
        let file = std::fs::File::open("/proc/self/stat").expect("proc");
        a.send(&ToWorker::Drain, &[file.as_fd()]).expect("sent");
        let (message, fds) = b.receive::<ToWorker>().expect("read").expect("not the end");
        assert!(matches!(message, ToWorker::Drain));
        assert_eq!(fds.len(), 1);
        drop(a);
        assert!(b.receive::<ToWorker>().expect("read").is_none());
    }
}
