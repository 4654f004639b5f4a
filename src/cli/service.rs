//! `vaultfs mount --foreground` under a service manager: it says when the mount is ready, how it is
//! doing, and that it is alive.
//!
//! systemd (or the process that set `NOTIFY_SOCKET`) gets READY=1 once a file was really read
//! through the mount, a STATUS= line when something changes, STOPPING=1 before the end, and, where
//! it set a watchdog, WATCHDOG=1 as long as the mount answers: each time a child process reads a
//! control file on it, which may hang without harm. A mount that its keeper cannot restore is thus
//! restarted by the manager, and a vault that is unreachable is not a reason: control files never
//! ask the vault.

use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::cli::commands::status;
use crate::display;
use crate::display::Shown;
use crate::fs::Status;
use crate::sys::files::check_way;
use crate::sys::probe;
use crate::sys::probe::ProbeError;
use crate::sys::stdio;

/// The variables of a service manager; no other process needs them.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
/// The control file that is read to see whether the mount answers.
const CONTROL: &str = ".vaultfs/status.json";
/// How often the mount is looked at where the manager has no wish of its own.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// How long an answer may take where it has none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a control file through the mount, in a child process: the proof that it answers.
pub fn read_through(mountpoint: &Path, within: Duration) -> Result<Vec<u8>, ProbeError> {
    probe::read(&mountpoint.join(CONTROL), within)
}

/// Stays until the keeper ends, then ends as it did; signals are passed on to it.
pub fn stay(mut keeper: Child, mountpoint: &Path) -> anyhow::Result<ExitCode> {
    // Until here a signal just ended this process, and with it, unmounted, what it had started.
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block()?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
    stdio::say(format_args!("{} is mounted", mountpoint.shown()));
    let managed = std::env::var_os("NOTIFY_SOCKET").is_some();
    let (stop, stopped) = channel::<()>();
    if managed {
        let mountpoint = mountpoint.to_owned();
        notify("READY=1\nSTATUS=mounted");
        std::thread::Builder::new().name("watch".into()).spawn(move || watch(mountpoint, &stopped))?;
    }
    let pid = Pid::from_raw(keeper.id() as i32);
    loop {
        if let Some(status) = keeper.try_wait()? {
            let code = status.code().or(status.signal().map(|_| 1)).and_then(|c| u8::try_from(c).ok());
            return Ok(ExitCode::from(code.unwrap_or(1)));
        }
        // The signal descriptor may wake for a child of the watch's, too.
        let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        match signals.read_signal()?.map(|s| s.ssi_signo as i32) {
            None | Some(libc::SIGCHLD) => {}
            Some(number) => {
                let signal = Signal::try_from(number)?;
                if managed && signal != Signal::SIGHUP {
                    let _ = stop.send(());
                    notify("STOPPING=1\nSTATUS=storing unsaved writes, unmounting");
                }
                kill(pid, signal)?;
            }
        }
    }
}

/// Looks at the mount again and again, until it is to end.
fn watch(mountpoint: PathBuf, stopped: &Receiver<()>) {
    let watchdog = watchdog();
    // As sd_watchdog_enabled(3) advises: at half of the time; and an answer that takes longer comes
    // too late.
    let pause = watchdog.map_or(CHECK_INTERVAL, |time| time / 2);
    let patience = watchdog.map_or(PATIENCE, |time| time / 2);
    let mut said = String::new();
    loop {
        let text = match read_through(&mountpoint, patience) {
            Ok(text) => {
                if watchdog.is_some() {
                    notify("WATCHDOG=1");
                }
                serde_json::from_slice(&text).map_or_else(|_| "mounted".into(), |status| line(&status))
            }
            Err(e) => format!("THE MOUNT DOES NOT ANSWER: {e}"),
        };
        // The end has the last word.
        match stopped.try_recv() {
            Err(TryRecvError::Empty) if text != said => notify(&format!("STATUS={}", display::line(&text))),
            Err(TryRecvError::Empty) => {}
            _ => return,
        }
        said = text;
        match stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

/// The state of a mount in one line, as `systemctl status` shows it.
fn line(status: &Status) -> String {
    let unsaved = match status.unsaved.len() {
        0 => String::new(),
        1 => "; 1 write is not stored yet".into(),
        n => format!("; {n} writes are not stored yet"),
    };
    let said = status::state(status);
    // The number of requests would make each line a new one.
    let said = said.split(", ").next().unwrap_or_default();
    format!("the vault {said}{unsaved}")
}

/// The time within which the manager wants WATCHDOG=1 from this process, if it does.
pub fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros)
}

/// Tells the manager, where there is one (sd_notify(3)). The crate sd-notify does not know the
/// abstract sockets that containers use.
pub fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => check_way(name.as_ref()).and_then(|()| SocketAddr::from_pathname(&name)),
    };
    // A manager that does not read must not stop us from passing on its signals.
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(e) = sent {
        stdio::say(format_args!("hint: the service manager cannot be notified: {e}"));
    }
}
