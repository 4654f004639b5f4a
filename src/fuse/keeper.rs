//! The keeper: mounts, holds the /dev/fuse descriptor, watches the worker, unmounts.
//!
//! 1. It must survive what the worker may die of. So it is one thread, no runtime, and does little: wait for
//!    signals and for the worker's messages, with a deadline where it waits for something to happen.
//! 2. While it holds /dev/fuse the connection lives, whatever happens to the worker. It therefore never opens a
//!    file on its own mount (nobody might be there to answer), and lets go of the descriptor before it unmounts.
//!    A mount whose worker died in the middle of its work is not unmounted but left dead (ENOTCONN): below it is a
//!    plain directory, where what programs go on writing would be on disk, readable.
//! 3. Nothing is mounted before the worker has a vault: a wrong key is an exit code, not a dead mount.
//! 4. waitpid(2) is not enough to see a worker's death: a thread stuck in a call on the own mount keeps the
//!    process a zombie whose parent is not told. The closed channel and the state in /proc are looked at too.
//! 5. SIGTERM and SIGINT act here only: drain, unmount (detached, if it is in use), exit 0 or 7. SIGHUP makes
//!    the worker read its key file again.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::handover::{
    Channel, Facts, Failed, MountConfig, Outcome, ToKeeper, ToWorker, close_inherited, receive_config,
    send_config, take_standard,
};
use super::helper::Minder;
use super::kernel::{self, Mode, Mounted};
use super::mounts::{self, Dev};
use super::process;
use super::runtime::{Record, RuntimeDir};
use crate::harden::LockState;
use crate::secret::SecretString;

/// The hidden commands that the processes of a mount are started with.
pub const COMMAND: &str = "keeper";
/// See [`COMMAND`].
pub const WORKER_COMMAND: &str = "worker";
/// How the keeper is called in `ps`; it is recognised by it.
pub const NAME: &std::ffi::CStr = c"vaultfs-keeper";

/// How long a worker may take, beyond `--drain`, to say that it has drained.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// How long programs may go on using a mount that was detached because of SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long a worker that was told to end may take.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The first steps of a keeper process: descriptors, session, configuration, the line to its starter.
pub fn begin() -> io::Result<(MountConfig, Option<SecretString>, Front)> {
    close_inherited();
    // Fails only for a process group's leader, which a freshly started child is not.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/")?;
    let (config, key) = receive_config(File::from(take_standard(0)?))?;
    let front = Front(Some(File::from(take_standard(1)?)));
    if config.foreground {
        // The command that waits for us is all that a supervisor sees: end with it.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
    }
    Ok((config, key, front))
}

/// The line to the command that started the keeper; silent after one message.
#[derive(Debug)]
pub struct Front(Option<File>);

impl Front {
    /// Says how it went.
    pub fn tell(&mut self, outcome: &Outcome) {
        if let Some(mut pipe) = self.0.take() {
            let text = serde_json::to_string(outcome).unwrap_or_default();
            // A command that was interrupted does not listen any more.
            let _ = writeln!(pipe, "{text}");
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}

/// Runs a mount from start to end. Returns the exit code.
pub fn run(config: MountConfig, key: Option<SecretString>, mut front: Front, memory: LockState) -> u8 {
    match Keeper::start(&config, key.as_ref(), &mut front, memory) {
        Ok(keeper) => keeper.serve(),
        Err(failed) => {
            tracing::error!("not mounted: {failed}");
            if let Ok(directory) = RuntimeDir::own() {
                directory.tidy();
            }
            front.tell(&Outcome::Failed(failed.clone()));
            failed.exit
        }
    }
}

struct Worker {
    child: Child,
    channel: Channel,
    /// The channel ended; only the exit status is missing.
    silent: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Something that the keeper reacts to.
#[derive(Debug)]
enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    Worker(ToKeeper),
    /// With its exit status, where the kernel gave one.
    WorkerGone(Option<ExitStatus>),
    /// The starting command went away before it heard anything.
    FrontGone,
    Timeout,
}

/// What the keeper is waiting for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Serving,
    Draining(Instant),
    Leaving(Instant),
    Ending(Instant),
}

impl Phase {
    fn until(self) -> Option<Instant> {
        match self {
            Phase::Serving => None,
            Phase::Draining(t) | Phase::Leaving(t) | Phase::Ending(t) => Some(t),
        }
    }
}

struct Keeper<'a> {
    config: &'a MountConfig,
    signals: SignalFd,
    worker: Worker,
    helper: Option<Minder>,
    mounted: Option<Mounted>,
    directory: RuntimeDir,
    phase: Phase,
    /// The worker has said that its session is over.
    session_over: bool,
}

impl<'a> Keeper<'a> {
    fn start(
        config: &'a MountConfig,
        key: Option<&SecretString>,
        front: &mut Front,
        memory: LockState,
    ) -> Result<Self, Failed> {
        let directory = RuntimeDir::own()
            .map_err(|e| Failed::new(format!("there is no place for the control socket: {e}")))?;
        let signals = take_signals().map_err(|e| Failed::new(format!("signals: {e}")))?;
        let worker = spawn_worker(config, key)
            .map_err(|e| Failed::new(format!("the worker process cannot be started: {e}")))?;
        let phase = Phase::Serving;
        let mut keeper = Self {
            config,
            signals,
            worker,
            helper: None,
            mounted: None,
            directory,
            phase,
            session_over: false,
        };
        match keeper.expect(front)? {
            ToKeeper::Connected => {}
            ToKeeper::Failed(failed) => return Err(failed),
            other => return Err(unexpected(&other)),
        }
        keeper.mount()?;
        if let Err(failed) = keeper.assign(front, memory) {
            keeper.abandon();
            return Err(failed);
        }
        if !config.foreground {
            // From here on nobody reads what is written there.
            drop(take_standard(2));
        }
        Ok(keeper)
    }

    fn mount(&mut self) -> Result<(), Failed> {
        let mountpoint = &self.config.mountpoint;
        let taken = mounts::top_at(mountpoint).ok().flatten().is_some_and(|e| e.is_vaultfs());
        if taken {
            return Err(Failed::new(format!(
                "{} was mounted by another vaultfs meanwhile",
                mountpoint.display()
            )));
        }
        let mounted =
            kernel::mount(mountpoint, &self.config.kernel).map_err(|e| mount_failed(mountpoint, &e))?;
        tracing::info!(mountpoint = %mountpoint.display(), dev = %mounted.dev, "mounted");
        self.mounted = Some(mounted);
        Ok(())
    }

    /// Hands the mount to the worker, answers INIT, and tells everybody.
    fn assign(&mut self, front: &mut Front, memory: LockState) -> Result<(), Failed> {
        let Some(mounted) = &self.mounted else { return Err(Failed::new("nothing is mounted")) };
        let (dev, mountpoint) = (mounted.dev, &self.config.mountpoint);
        let facts = Facts {
            keeper_pid: std::process::id(),
            fuse_abi: mounted.init.abi(),
            resend: mounted.init.resend(),
            keeper_memory: memory,
            restarts: 0,
            helper_pid: 0,
        };
        let listener;
        (self.directory, listener) = RuntimeDir::listen(dev, std::process::id())
            .map_err(|e| Failed::new(format!("the control socket cannot be made: {e}")))?;
        let serve = ToWorker::Serve { init: mounted.init.as_bytes().to_vec(), dev, facts };
        let helper = Minder::new(mountpoint, dev)
            .map_err(|e| Failed::new(format!("there is no line to the helper process: {e}")))?;
        self.worker
            .channel
            .send(&serve, &[mounted.device.as_fd(), listener.as_fd(), helper.workers_end()])
            .map_err(|e| lost(&e))?;
        self.helper = Some(helper);
        match self.expect(front)? {
            ToKeeper::Init(reply) => {
                let mounted = self.mounted.as_ref().expect("set by mount, looked at above");
                kernel::answer(&mounted.device, &reply)
                    .map_err(|e| Failed::new(format!("the kernel did not take the answer to INIT: {e}")))?;
            }
            ToKeeper::Failed(failed) => return Err(failed),
            other => return Err(unexpected(&other)),
        }
        self.worker.channel.send(&ToWorker::Go, &[]).map_err(|e| lost(&e))?;
        match self.expect(front)? {
            ToKeeper::Serving => {}
            other => return Err(unexpected(&other)),
        }
        self.look_after_helper();
        let record = Record {
            mountpoint: mountpoint.clone(),
            keeper_pid: std::process::id(),
            spec: self.config.spec.clone(),
        };
        self.directory
            .write(dev, &record)
            .map_err(|e| Failed::new(format!("the mount cannot be written down: {e}")))?;
        front.tell(&Outcome::Ready { dev, keeper_pid: std::process::id() });
        Ok(())
    }

    /// The worker's next message while the mount is being made.
    fn expect(&mut self, front: &Front) -> Result<ToKeeper, Failed> {
        loop {
            match self.next_event(Some(front), None) {
                Event::Worker(message) => return Ok(message),
                Event::WorkerGone(status) => {
                    let how = status.map_or("it is stuck".into(), |s| s.to_string());
                    return Err(Failed::new(format!("the worker process died ({how}); see the log")));
                }
                Event::Stop | Event::FrontGone => {
                    return Err(Failed::new("interrupted before it was mounted"));
                }
                Event::Reload | Event::Timeout => {}
            }
        }
    }

    fn serve(mut self) -> u8 {
        loop {
            let until = self.phase.until();
            match (self.next_event(None, until), self.phase) {
                (Event::Stop, Phase::Serving) => {
                    tracing::info!("asked to stop: storing what is unsaved");
                    self.tell(&ToWorker::Drain);
                    self.phase = Phase::Draining(Instant::now() + self.config.drain + DRAIN_MARGIN);
                }
                (Event::Reload, _) => self.tell(&ToWorker::ReloadKey),
                (Event::Worker(ToKeeper::Drained(left)), Phase::Draining(_)) => {
                    tracing::info!(left, "drained");
                    self.leave();
                }
                (Event::Timeout, Phase::Draining(_)) => {
                    tracing::error!("the worker does not say that it has drained");
                    self.leave();
                }
                (Event::Timeout, Phase::Leaving(_)) => self.end_worker(),
                (Event::Timeout, Phase::Ending(_)) => {
                    tracing::error!("the worker does not end: killing it");
                    let _ = self.worker.child.kill();
                    self.phase = Phase::Ending(Instant::now() + END_PATIENCE);
                }
                (Event::Worker(ToKeeper::Ended(left)), _) => {
                    tracing::debug!(left, "the session is over");
                    self.session_over = true;
                    self.withdraw();
                }
                (Event::WorkerGone(status), _) => return self.finish(status),
                (event, phase) => tracing::debug!(?event, ?phase, "nothing to do"),
            }
        }
    }

    /// Unmounts on request; the worker then sees the end of its session.
    fn leave(&mut self) {
        let Some(mounted) = &self.mounted else { return self.end_worker() };
        let mountpoint = &self.config.mountpoint;
        match kernel::unmount_or_detach(mountpoint, mounted.dev) {
            Ok(_) if self.is_mounted(mounted.dev) => {
                tracing::error!("another mount covers {}: it is left in place", mountpoint.display());
                self.end_worker();
            }
            Ok(true) => self.phase = Phase::Leaving(Instant::now() + self.config.drain + DRAIN_MARGIN),
            Ok(false) => {
                tracing::warn!("{} was in use: detached", mountpoint.display());
                self.phase = Phase::Leaving(Instant::now() + GRACE);
            }
            Err(e) => {
                tracing::error!("{} cannot be unmounted: {e}", mountpoint.display());
                self.end_worker();
            }
        }
    }

    fn end_worker(&mut self) {
        self.tell(&ToWorker::End);
        self.phase = Phase::Ending(Instant::now() + END_PATIENCE);
    }

    /// The worker is gone. If that was to be, nothing may be left of the mount; else all of it must stay.
    fn finish(mut self, status: Option<ExitStatus>) -> u8 {
        let code = status.and_then(|s| s.code());
        match (code, status.and_then(|s| s.signal())) {
            (Some(code), _) => tracing::info!(code, "the worker ended"),
            (None, Some(signal)) => tracing::error!(signal, "the worker was killed"),
            (None, None) => tracing::error!("the worker is stuck"),
        }
        let dev = self.mounted.as_ref().map(|mounted| mounted.dev);
        match (self.phase, dev) {
            (Phase::Serving, Some(dev)) if !self.session_over && self.is_mounted(dev) => {
                self.leave_dead(dev);
                return 1;
            }
            _ => self.abandon(),
        }
        code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1)
    }

    fn look_after_helper(&mut self) {
        if let Some(helper) = &mut self.helper {
            helper.look_after();
        }
    }

    fn is_mounted(&self, dev: Dev) -> bool {
        mounts::is_mounted(&self.config.mountpoint, dev)
    }

    /// Closes the connection and leaves the mount, where every operation fails from now on.
    fn leave_dead(&mut self, dev: Dev) {
        self.mounted = None;
        self.helper = None;
        if let Err(e) = kernel::abort(dev) {
            // Of use only where a stuck thread of the worker holds the device still.
            tracing::debug!("the connection was not aborted: {e}");
        }
        self.directory.leave(dev, std::process::id());
        let path = self.config.mountpoint.display();
        tracing::error!(
            "{path} stays mounted, dead: nothing can be read or written there (ENOTCONN), and nothing gets into the \
             directory below it. Writes that the vault had not acknowledged are lost; those that failed before are \
             named above. `vaultfs mount` with the same options replaces it, `vaultfs unmount {path}` removes it"
        );
    }

    /// Lets go of the connection and removes the mount, if it is still there and still ours.
    fn abandon(&mut self) {
        // The descriptor first: from here on every request fails at once, so that unmounting cannot wait for one.
        let Some(Mounted { device, dev, .. }) = self.mounted.take() else { return };
        drop(device);
        self.helper = None;
        let mountpoint = &self.config.mountpoint;
        match kernel::unmount(mountpoint, dev, Mode::Lazy) {
            Ok(true) => tracing::info!("unmounted"),
            Ok(false) if mounts::is_mounted(mountpoint, dev) => {
                tracing::error!("another mount covers {}: it is left in place", mountpoint.display());
            }
            Ok(false) => {}
            Err(e) => tracing::error!("{} cannot be unmounted: {e}", mountpoint.display()),
        }
        self.directory.leave(dev, std::process::id());
    }

    /// Nobody shall find this mount any more; who is connected already stays so.
    fn withdraw(&self) {
        if let Some(mounted) = &self.mounted {
            self.directory.leave(mounted.dev, std::process::id());
        }
    }

    fn tell(&self, message: &ToWorker) {
        if let Err(e) = self.worker.channel.send(message, &[]) {
            // Its end is the next event.
            tracing::debug!("the worker does not hear: {e}");
        }
    }

    /// Waits for the next thing to react to, until `until` at the latest.
    fn next_event(&mut self, front: Option<&Front>, until: Option<Instant>) -> Event {
        let mut silent_since = None;
        loop {
            if self.worker.silent {
                let since = *silent_since.get_or_insert_with(Instant::now);
                match self.worker.child.try_wait() {
                    Ok(Some(status)) => return Event::WorkerGone(Some(status)),
                    // It may still be exiting; a thread that is stuck in the kernel keeps its leader a zombie.
                    Ok(None)
                        if since.elapsed() < END_PATIENCE || !process::is_zombie(self.worker.child.id()) => {}
                    _ => return Event::WorkerGone(None),
                }
            }
            let ready = match self.wait(front, until) {
                Ok(ready) => ready,
                Err(e) => {
                    tracing::error!("poll: {e}");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if ready.worker {
                match self.worker.channel.receive() {
                    Ok(Some((message, _))) => return Event::Worker(message),
                    Ok(None) => self.worker.silent = true,
                    Err(e) => tracing::error!("a message of the worker's cannot be read: {e}"),
                }
            }
            if ready.signal {
                match self.signals.read_signal().ok().flatten().map(|s| s.ssi_signo as i32) {
                    Some(libc::SIGTERM | libc::SIGINT) => return Event::Stop,
                    Some(libc::SIGHUP) => return Event::Reload,
                    Some(libc::SIGCHLD) => self.look_after_helper(),
                    _ => {}
                }
            }
            if ready.front_gone {
                return Event::FrontGone;
            }
            if until.is_some_and(|t| Instant::now() >= t) {
                return Event::Timeout;
            }
        }
    }

    fn wait(&self, front: Option<&Front>, until: Option<Instant>) -> nix::Result<Ready> {
        // A silent worker's exit is looked for now and then, the signal for it may come first.
        let pause = self.worker.silent.then(|| Duration::from_millis(50));
        let left = until.map(|t| t.saturating_duration_since(Instant::now()));
        let timeout = [pause, left].into_iter().flatten().min();
        // Rounded up: a wait that ends just before its time would spin.
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let front_at = front.and_then(Front::fd).map(|fd| {
            fds.push(PollFd::new(fd, PollFlags::empty()));
            fds.len() - 1
        });
        let worker_at = (!self.worker.silent).then(|| {
            fds.push(PollFd::new(self.worker.channel.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        let is = |at: Option<usize>| at.is_some_and(|i| fds[i].any() == Some(true));
        Ok(Ready { signal: is(Some(0)), front_gone: is(front_at), worker: is(worker_at) })
    }
}

struct Ready {
    signal: bool,
    front_gone: bool,
    worker: bool,
}

fn spawn_worker(config: &MountConfig, key: Option<&SecretString>) -> io::Result<Worker> {
    let (ours, theirs) = Channel::pair()?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("vaultfs")
        .arg(WORKER_COMMAND)
        .arg(&config.mountpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(if config.foreground { Stdio::inherit() } else { Stdio::null() })
        .spawn()?;
    let pipe = child.stdin.take().expect("asked for above");
    let worker = Worker { child, channel: ours, silent: false };
    send_config(pipe, config, key)?;
    Ok(worker)
}

fn take_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn mount_failed(mountpoint: &Path, e: &io::Error) -> Failed {
    let what = format!("{} cannot be mounted: {e}", mountpoint.display());
    Failed::new(match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!("{what}; a container needs CAP_SYS_ADMIN and the device /dev/fuse for it")
        }
        Some(libc::ENODEV) => format!("{what}; load the kernel's module with `modprobe fuse`"),
        _ => what,
    })
}

fn unexpected(message: &ToKeeper) -> Failed {
    Failed::new(format!("the worker said {message:?} out of turn"))
}

fn lost(e: &io::Error) -> Failed {
    Failed::new(format!("the worker cannot be reached: {e}"))
}
