//! What /proc and pidfds tell about processes that are not our children.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::mounts::Dev;

/// The process id and state of /proc/PID/stat, and its parent's id.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state and the parent's id follow it.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// When a process was started, in the kernel's ticks: with its number that is who it is.
pub fn started(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The 22nd field; the state, after the name, is the third.
    text.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// State Z: the leader is dead, whatever its other threads wait for.
pub fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state == 'Z')
}

/// Who holds the process as a debugger does, if somebody does.
pub fn tracer(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// How a zombie ended that cannot be waited for yet, where the kernel says so: to who may look into the process.
pub fn zombies_end(pid: u32) -> Option<ExitStatus> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    // Field 52, as waitpid(2) has it; the state is the third. Whoever may not look is told 0.
    let status: i32 = rest.trim_end().split(' ').nth(52 - 3)?.parse().ok()?;
    (status != 0).then(|| ExitStatus::from_raw(status))
}

/// State T: somebody sent SIGSTOP, or a debugger holds it.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| matches!(state, 'T' | 't'))
}

/// Whether `pid` is a live keeper, and not a zombie or whoever got its number later.
pub fn is_keeper(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim_end().as_bytes() == super::keeper::NAME.to_bytes()) && !is_zombie(pid)
}

/// The processes that `parent` started.
pub fn children_of(parent: u32) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// The live workers of a keeper: one, but during an upgrade.
pub fn workers_of(keeper: u32) -> Vec<u32> {
    let is_worker = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim_end().as_bytes() == super::worker::NAME.to_bytes())
            && !is_zombie(*pid)
    };
    children_of(keeper).into_iter().filter(is_worker).collect()
}

/// Whether a process that we may look into has an inotify watch on something of the file system `dev`. Looks at every
/// descriptor of every process, and touches no file system but /proc.
pub fn watch(dev: Dev) -> bool {
    let (major, minor) = dev.numbers();
    // As the kernel has it inside.
    let needle = format!(" sdev:{:x} ", major << 20 | minor);
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().filter(|process| is_number(&process.file_name())).any(|process| {
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { return false };
        descriptors.flatten().any(|descriptor| {
            let is_inotify = std::fs::read_link(descriptor.path())
                .is_ok_and(|target| target.as_os_str() == "anon_inode:inotify");
            is_inotify
                && std::fs::read_to_string(process.path().join("fdinfo").join(descriptor.file_name()))
                    .is_ok_and(|info| info.contains(&needle))
        })
    })
}

fn is_number(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

/// A process whose end we want to see, whatever happens to its number.
#[derive(Debug)]
pub struct Watched(Option<OwnedFd>);

impl Watched {
    /// Starts watching.
    pub fn new(pid: u32) -> Self {
        // SAFETY: takes numbers only; the descriptor it returns is ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        // SAFETY: as above.
        Self((fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Waits for its end; a process that could not be opened had ended already.
    pub fn ended(&self, within: Duration) -> bool {
        let Some(fd) = &self.0 else { return true };
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(n) => return n > 0,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_dead_leader_is_seen() {
        let mut child = Command::new("true").spawn().unwrap();
        let watched = Watched::new(child.id());
        assert!(watched.ended(Duration::from_secs(10)));
        assert!(is_zombie(child.id()), "not waited for yet");
        assert_eq!(zombies_end(child.id()), None, "0 may mean that it is not told");
        assert_eq!(children_of(std::process::id()).iter().filter(|pid| **pid == child.id()).count(), 1);
        child.wait().unwrap();
        assert!(!is_zombie(std::process::id()));
        assert!(started(std::process::id()) >= started(nix::unistd::getppid().as_raw() as u32));
        assert_eq!(started(child.id()), None);
        assert!(!is_keeper(std::process::id()));
    }

    #[test]
    fn a_zombie_tells_how_it_ended() {
        for (script, expected) in [("kill -9 $$", 9), ("exit 7", 7 << 8)] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            assert!(Watched::new(child.id()).ended(Duration::from_secs(10)));
            assert_eq!(zombies_end(child.id()), Some(ExitStatus::from_raw(expected)), "{script}");
            assert_eq!(child.wait().unwrap(), ExitStatus::from_raw(expected));
        }
    }

    #[test]
    fn a_live_one_is_waited_for_in_vain() {
        assert!(!Watched::new(std::process::id()).ended(Duration::from_millis(1)));
    }
}
