//! Processes that are not children of this one, as /proc and pidfds show them.
//!
//! Process ids are reused, so nothing is signalled by its number ([`Process`]).

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::sys::mount_table;
use crate::sys::mount_table::Dev;

/// The numbers of all processes.
pub fn all() -> impl Iterator<Item = u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The process id and state of /proc/PID/stat, and its parent's id.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state and the parent's id follow it.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A process's start time in kernel ticks, which with its number identifies it.
pub fn started(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The 22nd field; the state, after the name, is the third.
    text.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// State Z: the leader is dead, although other threads may still run.
pub fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state == 'Z')
}

/// The debugger that traces the process, if any.
pub fn tracer(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Exit status of a zombie that cannot be waited for yet; the kernel shows it only with the right
/// to trace the process.
pub fn zombies_end(pid: u32) -> Option<ExitStatus> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    // Field 52, as waitpid(2) has it; the state is the third. Without the right to trace it is 0.
    let status: i32 = rest.trim_end().split(' ').nth(52 - 3)?.parse().ok()?;
    (status != 0).then(|| ExitStatus::from_raw(status))
}

/// State T: stopped by SIGSTOP, or by a debugger.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| matches!(state, 'T' | 't'))
}

/// Whether it makes no step until it is let go: it is stopped, or in a frozen cgroup (of version 2;
/// a process that version 1 froze cannot even be killed).
pub fn is_held(pid: u32) -> bool {
    is_stopped(pid) || is_frozen(pid)
}

fn is_frozen(pid: u32) -> bool {
    let is_frozen = |text: String| text.lines().any(|line| line == "frozen 1");
    cgroup_files(&pid.to_string(), "cgroup.events").any(|(_, text)| is_frozen(text))
}

/// The files of that name in the cgroups of a process, of version 2 and of the version 1 hierarchy
/// that the name begins with.
fn cgroup_files(pid: &str, file: &'static str) -> impl Iterator<Item = (PathBuf, String)> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mounts = mount_table::table().unwrap_or_default();
    let mut paths = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let fs_type = if number == "0" { "cgroup2" } else { "cgroup" };
        let begins = |controller: &str| file.split('.').next() == Some(controller);
        if number == "0" || controllers.split(',').any(begins) {
            let hierarchies = mounts.iter().filter(|mount| mount.fs_type == fs_type);
            paths.extend(
                hierarchies.map(|mount| mount.mountpoint.join(group.trim_start_matches('/')).join(file)),
            );
        }
    }
    paths.into_iter().filter_map(|path| Some((path.clone(), std::fs::read_to_string(path).ok()?)))
}

/// Processes that the kernel has killed for lack of memory, as far as it shows them.
#[derive(Debug, Clone, Default)]
pub struct OomKills {
    /// In this process's cgroup: the file, and the count.
    cgroup: Option<(PathBuf, u64)>,
    /// On the whole machine.
    machine: Option<u64>,
}

impl OomKills {
    /// Until now, since boot.
    pub fn now() -> Self {
        let count = |text: &str| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        };
        let files = ["memory.events.local", "memory.events", "memory.oom_control"];
        let mut found = files.into_iter().flat_map(|file| cgroup_files("self", file));
        let machine = std::fs::read_to_string("/proc/vmstat").ok();
        Self {
            cgroup: found.find_map(|(path, text)| Some((path, count(&text)?))),
            machine: machine.and_then(|text| count(&text)),
        }
    }

    /// Whether there were more by then. Those in other cgroups do not count, unless this process
    /// was moved between cgroups meanwhile.
    pub fn more_by(&self, then: &Self) -> bool {
        match (&self.cgroup, &then.cgroup) {
            (Some((before, count)), Some((now, counted))) if before == now => counted > count,
            _ => then.machine > self.machine,
        }
    }
}

/// Whether a visible process has an inotify watch on the file system `dev`. Reads every descriptor
/// of every process, and accesses no file system but /proc.
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

/// A live process of one user, held by a pidfd, so that waits and signals never reach another
/// process of its number.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    uid: u32,
    fd: OwnedFd,
}

impl Process {
    /// The process that has this number now, if all its user ids are `uid` (not a set-uid program).
    pub fn open(pid: u32, uid: u32) -> Option<Self> {
        let number = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: takes numbers only; the descriptor it returns is ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: as above.
        let process = Self { pid, uid, fd: unsafe { OwnedFd::from_raw_fd(fd as i32) } };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let is_theirs = field("Uid:")?.split_ascii_whitespace().all(|id| id.parse() == Ok(uid));
        let is_zombie = field("State:")?.trim_start().starts_with('Z');
        // What was read above is of this process only if it has not ended since it was opened.
        (is_theirs && !is_zombie && !process.ended(Duration::ZERO)).then_some(process)
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it was started, as [`started`]; `None` if it has ended.
    pub fn started(&self) -> Option<u64> {
        started(self.pid).filter(|_| !self.ended(Duration::ZERO))
    }

    /// The processes that it started and that run as the same user.
    pub fn children(&self) -> Vec<Self> {
        let ours = |pid: &u32| stat(*pid).is_some_and(|(_, parent)| parent == self.pid);
        // Once more when it is open: the number may have gone to another process.
        let children = all().filter(ours).filter_map(|pid| Self::open(pid, self.uid));
        let mut children: Vec<_> = children.filter(|child| ours(&child.pid)).collect();
        if self.ended(Duration::ZERO) {
            children.clear();
        }
        children
    }

    /// Whether it has this name. A hint only: any process may take a name.
    pub fn is_called(&self, name: &CStr) -> bool {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.pid));
        comm.is_ok_and(|comm| comm.trim_end().as_bytes() == name.to_bytes())
    }

    /// The argument after this option in its command line. Reading it may block on a page fault of
    /// the process: not for other users' processes.
    pub fn argument(&self, option: &str) -> Option<PathBuf> {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != option.as_bytes());
        Some(OsStr::from_bytes(words.nth(1)?).into())
    }

    /// Sends a signal, if it has not ended.
    pub fn signal(&self, signal: Signal) {
        let (fd, number) = (self.fd.as_raw_fd(), signal as libc::c_int);
        // SAFETY: the descriptor is open; no siginfo is given.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, number, std::ptr::null::<libc::c_void>(), 0)
        };
    }

    /// Waits for its end.
    pub fn ended(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout) {
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
        let own = nix::unistd::geteuid().as_raw();
        until_zombie(child.id());
        assert!(Process::open(child.id(), own).is_none(), "dead");
        assert!(is_zombie(child.id()), "not waited for yet");
        assert_eq!(zombies_end(child.id()), None, "0 may mean that it is not shown");
        child.wait().unwrap();
        assert!(!is_zombie(std::process::id()));
        assert!(started(std::process::id()) >= started(nix::unistd::getppid().as_raw() as u32));
        assert_eq!(started(child.id()), None);
    }

    #[test]
    fn out_of_memory_kills_in_other_cgroups_do_not_count() {
        let kills = |group: &str, count, machine| OomKills { cgroup: Some((group.into(), count)), machine };
        let before = kills("/a/memory.events", 1, Some(5));
        for (then, expected) in [
            (kills("/a/memory.events", 1, Some(9)), false),
            (kills("/a/memory.events", 2, Some(6)), true),
            (kills("/b/memory.events", 0, Some(6)), true),
            (kills("/b/memory.events", 7, Some(5)), false),
            (OomKills { cgroup: None, machine: Some(6) }, true),
            (OomKills::default(), false),
        ] {
            assert_eq!(before.more_by(&then), expected, "{then:?}");
        }
    }

    #[test]
    fn a_zombie_tells_how_it_ended() {
        for (script, expected) in [("kill -9 $$", 9), ("exit 7", 7 << 8)] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            until_zombie(child.id());
            assert_eq!(zombies_end(child.id()), Some(ExitStatus::from_raw(expected)), "{script}");
            assert_eq!(child.wait().unwrap(), ExitStatus::from_raw(expected));
        }
    }

    #[test]
    fn a_process_is_held_by_what_it_is() {
        let own = nix::unistd::geteuid().as_raw();
        let me = Process::open(std::process::id(), own).unwrap();
        assert!(!me.ended(Duration::from_millis(1)));
        assert_eq!(me.started(), started(std::process::id()));
        assert!(Process::open(std::process::id(), own + 1).is_none(), "of another user");
        for number in [0, u32::MAX, i32::MAX as u32] {
            assert!(Process::open(number, own).is_none(), "{number}");
        }
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let held = me.children().into_iter().find(|other| other.pid() == child.id()).unwrap();
        until("it is sleep", || held.is_called(c"sleep"));
        held.signal(Signal::SIGKILL);
        assert!(held.ended(Duration::from_secs(10)));
        child.wait().unwrap();
        assert_eq!(held.started(), None);
        assert!(held.children().is_empty());
    }

    fn until(what: &str, mut is: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !is() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn until_zombie(pid: u32) {
        until("it has ended", || is_zombie(pid));
    }
}
