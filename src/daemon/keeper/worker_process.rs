//! Worker processes: start, supervision and exit.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use parking_lot::{Mutex, MutexGuard};

use crate::daemon::heartbeat;
use crate::daemon::heartbeat::HeartbeatMonitor;
use crate::daemon::keeper::WORKER_COMMAND;
use crate::daemon::protocol::{MountConfig, ToKeeper, send_config, send_seal};
use crate::daemon::state_log;
use crate::daemon::state_log::SealKey;
use crate::fs::Ending;
use crate::secret::SecretString;
use crate::sys::channel::Channel;
use crate::sys::process;
use crate::sys::process::OomKills;

/// How workers are started; the same for each.
#[derive(Debug)]
pub struct SpawnConfig {
    /// The configuration, without secrets.
    pub config: MountConfig,
    /// The API key, where it did not come from a file.
    pub key: Option<SecretString>,
    /// Seals the state.
    pub seal: SealKey,
    /// The program, where it is another one than the keeper's own (`vaultfs upgrade`).
    pub program: Option<File>,
}

/// A worker process.
#[derive(Debug)]
pub struct Worker {
    /// The process.
    pub child: Child,
    /// The channel to it.
    pub channel: Channel,
    /// The channel has ended; only the exit status is missing.
    pub silent_since: Option<Instant>,
    /// When it began to serve.
    pub serving_since: Option<Instant>,
    /// Its heartbeat.
    heartbeat: HeartbeatMonitor,
    verdict: Verdict,
    /// The out-of-memory kills before it was started.
    oom_kills: OomKills,
}

/// The result of a heartbeat check.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It has a heartbeat, or has been without one for a short time.
    Free,
    /// A debugger traces it.
    Traced(u32),
    /// It is killed: the reason, and whether somebody held it (SIGSTOP, a freezer).
    Killed { why: String, held: bool },
}

/// Time for a dead worker's threads to end, before the worker counts as stuck.
const REAP_DELAY: Duration = Duration::from_millis(500);

/// A worker of a version that does not report it counts as having answered a request after this
/// time.
const SERVED: Duration = Duration::from_secs(1);

/// Timeout for the end of a killed worker.
const DEATH: Duration = Duration::from_secs(2);

impl Worker {
    /// Starts one, from `program` if that is given.
    pub fn start(spawn_config: &SpawnConfig, program: Option<&File>) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        let exe = match program.or(spawn_config.program.as_ref()) {
            Some(file) => format!("/proc/self/fd/{}", file.as_raw_fd()),
            None => "/proc/self/exe".to_owned(),
        };
        let config = &spawn_config.config;
        let oom_kills = OomKills::now();
        let mut child = Command::new(exe)
            .arg0("vaultfs")
            .arg(WORKER_COMMAND)
            .arg(&config.mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(if config.foreground { Stdio::inherit() } else { Stdio::null() })
            .spawn()?;
        let mut pipe = child.stdin.take().expect("asked for above");
        let heartbeat = HeartbeatMonitor::new(Instant::now());
        let worker = Self {
            child,
            channel: ours,
            silent_since: None,
            serving_since: None,
            heartbeat,
            verdict: Verdict::Free,
            oom_kills,
        };
        match send_config(&mut pipe, config, spawn_config.key.as_ref())
            .and_then(|()| send_seal(&mut pipe, &spawn_config.seal))
        {
            // It is dead already, which its channel will report, with the reason.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(worker),
            sent => sent.map(|()| worker),
        }
    }

    /// Whether it is dead, with its exit status where the kernel shows it. A thread that is stuck
    /// in a call on the own mount, or still frees a large memory, delays waitpid(2): the leader is
    /// then a zombie, and /proc shows its exit status.
    pub fn is_gone(&mut self) -> Option<Option<ExitStatus>> {
        match self.child.try_wait() {
            Ok(Some(status)) => return Some(Some(status)),
            Ok(None) if !process::is_zombie(self.child.id()) => return None,
            Ok(None) | Err(_) => {}
        }
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        (since.elapsed() >= REAP_DELAY).then(|| process::zombies_end(self.child.id()))
    }

    /// A worker with a zombie leader counts as gone, although one of its threads holds the channel
    /// open. A worker without a heartbeat is killed, unless a debugger traces it. A worker that
    /// does not serve yet has no heartbeat: it counts as without one while it is stopped or
    /// frozen.
    pub fn check_liveness(&mut self, state: BorrowedFd<'_>) {
        if self.silent_since.is_some() {
            return;
        }
        let pid = self.child.id();
        if process::is_zombie(pid) {
            self.silent_since = Some(Instant::now());
            return;
        }
        let heartbeats = state_log::heartbeats(state, pid).or_else(|| process::is_held(pid).then_some(0));
        let silent_for = self.heartbeat.observe(heartbeats, Instant::now());
        if silent_for < heartbeat::TIMEOUT {
            return;
        }
        match process::tracer(pid).map(Verdict::Traced) {
            Some(traced) if self.verdict == traced => {}
            Some(traced) => {
                tracing::warn!("the worker has no heartbeat; no restart while a debugger has it: {traced:?}");
                self.verdict = traced;
            }
            None => self.kill_for(format!("no heartbeat for {} s", silent_for.as_secs())),
        }
    }

    /// Kills it, once; its exit is a later event.
    pub fn kill_for(&mut self, why: String) {
        if !matches!(self.verdict, Verdict::Killed { .. }) {
            tracing::error!("killing the worker: {why}");
            self.verdict = Verdict::Killed { why, held: process::is_held(self.child.id()) };
            let _ = self.child.kill();
        }
    }

    /// How it ended, as text.
    pub fn ending(&self, status: Option<ExitStatus>) -> String {
        match &self.verdict {
            Verdict::Killed { why, .. } => format!("{why}, and was killed"),
            Verdict::Free | Verdict::Traced(_) => ending(status),
        }
    }

    /// How its exit counts for the requests that it had read. A SIGKILL from outside counts for
    /// nothing, unless the kernel sent it for lack of memory; nor does one of the keeper's for a
    /// worker that is held.
    pub fn exit_message(&self, status: Option<ExitStatus>) -> Ending {
        let is_stuck = matches!(self.verdict, Verdict::Killed { held: false, .. });
        // Of its cgroup, or of the machine: no file shows for certain which process it was.
        verdict(status, is_stuck || self.oom_kills.more_by(&OomKills::now()))
    }

    /// Its exit status, if it is dead or dies now.
    pub fn verdict(&mut self) -> Option<Ending> {
        let end = Instant::now() + REAP_DELAY;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(self.exit_message(Some(status))),
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Whether it has answered a request; for a version that does not report it, whether it has
    /// served for a while.
    pub fn has_served(&self, state: BorrowedFd<'_>) -> bool {
        let a_while = || self.serving_since.is_some_and(|since| since.elapsed() >= SERVED);
        state_log::heartbeats(state, self.child.id()).map_or_else(a_while, heartbeat::has_served)
    }

    /// A message that it sent before its death.
    pub fn pending_message(&self) -> Option<ToKeeper> {
        let mut ready = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::ZERO) {
            Ok(1..) => self.channel.receive().ok().flatten().map(|(message, _)| message),
            _ => None,
        }
    }

    /// Kills it and waits until it is gone, or stuck.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let end = Instant::now() + DEATH;
        while self.is_gone().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
        }
        if let Ok(None) = self.child.try_wait() {
            lingering().push(Pid::from_raw(self.child.id() as i32));
        }
    }
}

/// Dead workers that cannot be reaped because of a stuck thread.
static LINGERING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn lingering() -> MutexGuard<'static, Vec<Pid>> {
    LINGERING.lock()
}

/// Reaps those that have no thread left. To be called whenever a child may have died.
pub fn reap() {
    let is_still_there = |pid: &Pid| waitpid(*pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive);
    lingering().retain(is_still_there);
}

/// How a worker ended, as text.
pub fn ending(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("it exited with code {code}"),
        Some((None, Some(signal))) => format!("it was killed by signal {signal}"),
        _ => "how it ended is not known".to_owned(),
    }
}

/// How an exit counts; `kill_has_a_reason` if the worker caused its SIGKILL.
fn verdict(status: Option<ExitStatus>, kill_has_a_reason: bool) -> Ending {
    match status.map(|status| status.signal()) {
        Some(Some(libc::SIGKILL)) | None if !kill_has_a_reason => Ending::Killed,
        _ => Ending::Crashed,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, kill};

    use super::*;

    /// A process that plays a worker.
    fn worker() -> Worker {
        let (channel, _) = Channel::pair().unwrap();
        Worker {
            child: Command::new("sleep").arg("60").spawn().unwrap(),
            channel,
            silent_since: None,
            serving_since: None,
            heartbeat: HeartbeatMonitor::new(Instant::now()),
            verdict: Verdict::Free,
            oom_kills: OomKills::now(),
        }
    }

    #[test]
    fn a_worker_that_the_keeper_kills_did_not_move_by_itself_unless_somebody_had_stopped_it() {
        let mut stuck = worker();
        stuck.kill_for("it did not move for 5 s".to_owned());
        assert_eq!(stuck.verdict(), Some(Ending::Crashed));

        let mut stopped = worker();
        let pid = Pid::from_raw(stopped.child.id() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        while !process::is_stopped(stopped.child.id()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        stopped.kill_for("it did not move for 5 s".to_owned());
        assert_eq!(stopped.verdict(), Some(Ending::Killed));

        let mut killed = worker();
        killed.child.kill().unwrap();
        assert_eq!(killed.verdict(), Some(Ending::Killed));
    }

    #[test]
    fn a_kill_from_outside_says_nothing_and_every_other_end_that_nobody_ordered_does() {
        for (status, has_a_reason, expected) in [
            (Some(libc::SIGKILL), false, Ending::Killed),
            (Some(libc::SIGKILL), true, Ending::Crashed),
            (None, false, Ending::Killed),
            (None, true, Ending::Crashed),
            (Some(libc::SIGABRT), false, Ending::Crashed),
            (Some(libc::SIGSEGV), false, Ending::Crashed),
            (Some(1 << 8), false, Ending::Crashed),
        ] {
            let said = verdict(status.map(ExitStatus::from_raw), has_a_reason);
            assert_eq!(said, expected, "{status:?}, {has_a_reason}");
        }
    }
}
