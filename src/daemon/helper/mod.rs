//! The helper process: makes system calls on the mount, so that a change made elsewhere is a rename
//! there.
//!
//! 1. Worker and keeper never access their own mount (a process that waits for an answer of its own
//!    cannot be killed). This process does nothing else: one thread, one call at a time, each
//!    ordered by the worker.
//! 2. It decides nothing: the worker registers each call before it orders it
//!    (`fs::propagation::helper_calls`), and refuses any other request of this process.
//! 3. It must not keep `umount` from succeeding. With CAP_SYS_ADMIN it holds a detached clone of
//!    the mount, which keeps nothing busy; it closes the clone, which keeps the file system alive,
//!    when the mount leaves the mount table. Without the capability it opens the path for each
//!    call, verifies the mount, and closes it. An O_PATH descriptor that stays open would make
//!    umount fail forever.
//! 4. The keeper holds both ends of its channel, which therefore outlives helper and worker. Orders
//!    are numbered: an answer with another number belongs to a predecessor. The helper ends with
//!    the keeper.
//! 5. Read-only modes refuse an ordinary user's helper; then it overrides them ([`userns`]).

pub mod userns;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde::{Deserialize, Serialize};

use crate::daemon::capabilities;
use crate::daemon::capabilities::Role;
use crate::daemon::keeper::restart_policy;
use crate::sys::mount_table;
use crate::sys::mount_table::Dev;

use crate::fs::{HelperCall, HelperReport};
use crate::sys::channel::{Channel, close_inherited, take_standard};

/// The hidden command that starts it.
pub const COMMAND: &str = "helper";
/// Its name in `ps`.
pub const NAME: &std::ffi::CStr = c"vaultfs-helper";

/// From worker to helper.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Repeated in the answer.
    pub number: u64,
    /// The helper's process id: an order to a dead helper must not be executed by its successor,
    /// which the worker has not verified. 0 for any.
    pub to: u32,
    /// What to do.
    pub call: HelperCall,
}

/// Runs the helper to the end of the mount, after `pause`: repeated deaths must not keep the
/// machine busy.
pub fn run(mountpoint: &Path, dev: Dev, pause: Duration) -> io::Result<()> {
    let parent = nix::unistd::getppid();
    close_inherited();
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() != parent {
        return Ok(());
    }
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: ignoring installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn)? };
    }
    std::env::set_current_dir("/")?;
    let line = Channel::from(take_standard(1)?);
    std::thread::sleep(pause);
    let table = std::fs::File::open("/proc/self/mountinfo")?;
    let place = MountAccess::of(mountpoint, dev);
    capabilities::limit(Role::Helper);
    let own = std::process::id();
    // Root overrides modes anyway.
    let mut may_override = !nix::unistd::geteuid().is_root();
    line.send(&HelperReport::Started { pid: own }, &[])?;
    while is_there(dev) {
        let mut fds =
            [PollFd::new(line.as_fd(), PollFlags::POLLIN), PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        // First a change of the mount table, which may be the end of ours.
        if fds[1].any() == Some(true) || fds[0].any() != Some(true) {
            continue;
        }
        let Some((Order { number, to, call }, _)) = line.receive()? else { return Ok(()) };
        let mut made = if to == 0 || to == own { place.make(&call) } else { Err(not_me()) };
        if may_override && made.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EACCES)) {
            may_override = false;
            if userns::enter().is_ok() {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                made = place.make(&call);
            }
        }
        let errno = made.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
        line.send(&HelperReport::Done { number, errno }, &[])?;
    }
    // The worker may be gone.
    let _ = line.send(&HelperReport::Leaving, &[]);
    Ok(())
}

fn not_me() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

/// Whether the file system is mounted in a visible place.
fn is_there(dev: Dev) -> bool {
    // An unreadable table is no evidence against it.
    mount_table::table()
        .map_or(true, |table| table.iter().any(|entry| entry.dev == dev && entry.is_vaultfs()))
}

/// The access to the mount.
enum MountAccess {
    /// A detached clone.
    Clone(OwnedFd),
    /// A path, opened for each call.
    Path(PathBuf, Dev),
}

impl MountAccess {
    fn of(mountpoint: &Path, dev: Dev) -> Self {
        match clone_of(mountpoint) {
            Ok(clone) if Dev::of(clone.as_fd()).is_ok_and(|at| at == dev) => Self::Clone(clone),
            _ => Self::Path(mountpoint.to_owned(), dev),
        }
    }

    fn make(&self, call: &HelperCall) -> io::Result<()> {
        match self {
            Self::Clone(clone) => make(clone.as_fd(), call),
            Self::Path(path, dev) => {
                let root = open_path(path)?;
                if Dev::of(root.as_fd())? != *dev {
                    return Err(io::Error::from_raw_os_error(libc::EXDEV));
                }
                make(root.as_fd(), call)
            }
        }
    }
}

/// A detached clone of the mount.
fn clone_of(mountpoint: &Path) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let path = c_text(mountpoint.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the path is NUL-terminated; the descriptor that comes back is ours.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    // SAFETY: as above.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, nix::sys::stat::Mode::empty())?)
}

fn make(root: BorrowedFd<'_>, call: &HelperCall) -> io::Result<()> {
    let at = root.as_raw_fd();
    // SAFETY: all paths are NUL-terminated, and the times point to two of them.
    let rc = match call {
        HelperCall::Rename { from, to } => {
            let (from, to) = (c_text(from.as_bytes())?, c_text(to.as_bytes())?);
            unsafe { libc::renameat(at, from.as_ptr(), at, to.as_ptr()) }
        }
        HelperCall::Unlink { path } => {
            let path = c_text(path.as_bytes())?;
            unsafe { libc::unlinkat(at, path.as_ptr(), 0) }
        }
        HelperCall::Touch { path, mtime } => {
            let path = c_text(path.as_bytes())?;
            let times = [libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT }, timespec(*mtime)];
            unsafe { libc::utimensat(at, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) }
        }
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn timespec(at: SystemTime) -> libc::timespec {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    libc::timespec { tv_sec: since.as_secs() as libc::time_t, tv_nsec: since.subsec_nanos() as libc::c_long }
}

fn c_text(text: &[u8]) -> io::Result<CString> {
    // File names hold no NUL: it is escaped in them.
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Supervises the helper: both ends of its channel, and the process.
#[derive(Debug)]
pub struct HelperSupervisor {
    workers: OwnedFd,
    helpers: OwnedFd,
    mountpoint: PathBuf,
    dev: Dev,
    child: Option<Child>,
    started: Vec<Instant>,
}

impl HelperSupervisor {
    /// A channel; [`HelperSupervisor::supervise`] starts the process.
    pub fn new(mountpoint: &Path, dev: Dev) -> io::Result<Self> {
        let (workers, helpers) = Channel::pair()?;
        let (workers, helpers) = (OwnedFd::from(workers), OwnedFd::from(helpers));
        let mountpoint = mountpoint.to_owned();
        Ok(Self { workers, helpers, mountpoint, dev, child: None, started: Vec::new() })
    }

    /// The helper's process id, 0 while there is none.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The end for each worker.
    pub fn workers_end(&self) -> BorrowedFd<'_> {
        self.workers.as_fd()
    }

    /// Starts a helper if there is none and the mount exists. To be called after any child's death.
    pub fn supervise(&mut self) {
        if !self.has_ended() || !is_there(self.dev) {
            return;
        }
        match self.start() {
            Ok(child) => self.child = Some(child),
            Err(e) => tracing::error!("the helper process cannot be started: {e}"),
        }
    }

    /// Whether there is none, or none any more.
    pub fn has_ended(&mut self) -> bool {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => return false,
            Some(Ok(Some(status))) if !status.success() => {
                tracing::warn!(%status, "the helper process died");
            }
            _ => {}
        }
        self.child = None;
        true
    }

    fn start(&mut self) -> io::Result<Child> {
        let now = Instant::now();
        self.started.retain(|at| now.duration_since(*at) < Duration::from_secs(60));
        let more = self.started.len().saturating_sub(restart_policy::immediate_restarts()) as u32;
        self.started.push(now);
        let pause = match more {
            0 => Duration::ZERO,
            more => Duration::from_millis(100).saturating_mul(1 << more.min(10)).min(LONGEST_PAUSE),
        };
        Command::new("/proc/self/exe")
            .arg0("vaultfs")
            .arg(COMMAND)
            .arg(self.dev.to_string())
            .arg(pause.as_millis().to_string())
            .arg(&self.mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::from(self.helpers.try_clone()?))
            .stderr(Stdio::null())
            .spawn()
    }

    /// Ends the helper. Its call on the mount must be answered or failed by then.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for HelperSupervisor {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_made_below_a_directory_and_errors_come_back() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        let root = open_path(dir.path()).unwrap();
        let rename = HelperCall::Rename { from: "a".into(), to: "b".into() };
        make(root.as_fd(), &rename).unwrap();
        assert_eq!(make(root.as_fd(), &rename).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let mtime = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567);
        make(root.as_fd(), &HelperCall::Touch { path: "b".into(), mtime }).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("b")).unwrap().modified().unwrap(), mtime);
        make(root.as_fd(), &HelperCall::Unlink { path: "b".into() }).unwrap();
        assert!(!dir.path().join("b").exists());
    }

    #[test]
    fn another_file_system_at_the_path_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        let place = MountAccess::Path(dir.path().to_owned(), Dev::from_raw(0));
        let refused = place.make(&HelperCall::Unlink { path: "a".into() }).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EXDEV));
        assert!(dir.path().join("a").exists());
    }
}
