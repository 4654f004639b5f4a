//! What the keeper waits for: signals, the worker's messages and its death, the command that
//! started it, and, where everything is refused, requests. One poll(2), with a deadline.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::daemon::keeper::worker_process;
use crate::daemon::keeper::{Keeper, Phase, StarterPipe};
use crate::daemon::protocol::ToKeeper;

/// Interval between checks for a zombie leader and for a missing heartbeat, which have no event.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// An event that the keeper handles.
#[derive(Debug)]
pub(super) enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    Worker(ToKeeper),
    /// With its exit status, where the kernel gave one.
    WorkerGone(Option<ExitStatus>),
    /// The starting command ended before it had a report.
    StarterGone,
    /// There is a request to refuse, or the connection is gone.
    Request,
    Timeout,
}

impl Keeper {
    /// Waits for the next event, until `until` at the latest.
    pub(super) fn next_event(&mut self, starter: Option<&StarterPipe>, until: Option<Instant>) -> Event {
        loop {
            if let Some(worker) = self.worker.as_mut().filter(|worker| worker.silent_since.is_some())
                && let Some(status) = worker.is_gone()
            {
                return worker.pending_message().map_or(Event::WorkerGone(status), Event::Worker);
            }
            let ready = match self.wait(starter, until) {
                Ok(ready) => ready,
                Err(e) => {
                    tracing::error!("poll: {e}");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if let Some(worker) = self.worker.as_mut().filter(|_| ready.worker) {
                match worker.channel.receive() {
                    Ok(Some((message, _))) => return Event::Worker(message),
                    Ok(None) => worker.silent_since = Some(Instant::now()),
                    Err(e) => tracing::error!("a message of the worker's cannot be read: {e}"),
                }
            } else if let Some(worker) = &mut self.worker {
                worker.check_liveness(self.state.as_fd());
            }
            if ready.signal {
                match self.signals.read_signal().ok().flatten().map(|s| s.ssi_signo as i32) {
                    Some(libc::SIGTERM | libc::SIGINT) => return Event::Stop,
                    Some(libc::SIGHUP) => return Event::Reload,
                    Some(libc::SIGCHLD) => {
                        worker_process::reap();
                        self.supervise_helper();
                    }
                    _ => {}
                }
            }
            if ready.request {
                return Event::Request;
            }
            if ready.starter_gone {
                return Event::StarterGone;
            }
            if until.is_some_and(|t| Instant::now() >= t) {
                return Event::Timeout;
            }
        }
    }

    fn wait(&self, starter: Option<&StarterPipe>, until: Option<Instant>) -> nix::Result<Ready> {
        let connected = self.worker.as_ref().filter(|worker| worker.silent_since.is_none());
        // A worker's exit is also polled: SIGCHLD may arrive before it can be reaped.
        let pause = match (&self.worker, connected) {
            (Some(_), None) => Some(Duration::from_millis(20)),
            (Some(_), Some(_)) => Some(CHECK_INTERVAL),
            (None, _) => None,
        };
        let left = until.map(|t| t.saturating_duration_since(Instant::now()));
        let timeout = [pause, left].into_iter().flatten().min();
        // Rounded up: a wait that ends just before its time would spin.
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut add = |fd: Option<BorrowedFd<'_>>, flags| {
            fd.map(|fd| {
                // SAFETY: each is a descriptor of this keeper's, which outlives the poll below.
                fds.push(PollFd::new(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }, flags));
                fds.len() - 1
            })
        };
        let starter_at = add(starter.and_then(StarterPipe::fd), PollFlags::empty());
        let worker_at = add(connected.map(|worker| worker.channel.as_fd()), PollFlags::POLLIN);
        let refuses = matches!(self.phase, Phase::Failed);
        let device = self.mounted.as_ref().filter(|_| refuses).map(|mounted| mounted.device.as_fd());
        let request_at = add(device, PollFlags::POLLIN);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        let is = |at: Option<usize>| at.is_some_and(|i| fds[i].any() == Some(true));
        Ok(Ready {
            signal: is(Some(0)),
            starter_gone: is(starter_at),
            worker: is(worker_at),
            request: is(request_at),
        })
    }
}

struct Ready {
    signal: bool,
    starter_gone: bool,
    worker: bool,
    request: bool,
}

pub(super) fn take_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
