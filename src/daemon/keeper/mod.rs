//! The keeper: mounts, holds the /dev/fuse descriptor and the mount's state, keeps a worker alive,
//! unmounts.
//!
//! 1. It must survive whatever kills a worker: one thread, no runtime, and little to do. It waits
//!    for signals and for the worker's messages, with a timeout.
//! 2. The connection lives while the keeper holds /dev/fuse. The keeper therefore opens no file on
//!    its own mount (there may be no answer), and closes the descriptor before it unmounts.
//! 3. Nothing is mounted before the worker has a vault: a wrong key is an exit code, not a dead
//!    mount (`mounting`).
//! 4. A dead worker is replaced at once (`takeover`): same device, same state, same control socket;
//!    programs only wait. After repeated deaths (`restart_policy`) restarts are delayed; in the end
//!    every request fails with EIO (`fail_requests`), with one retry a minute. The mount stays:
//!    below it is a plain directory, where programs would write to disk.
//! 5. A kernel that cannot resend what a dead worker had read (before Linux 6.9) gets a new mount
//!    in place of the old one: requests in flight and open files fail; unsaved writes continue.
//! 6. waitpid(2) does not show every death: a thread stuck in a call on its own mount keeps the
//!    process a zombie. The closed channel and /proc are checked, too.
//! 7. A worker without a heartbeat (`heartbeat`) is killed and restarted. So is, once, a worker
//!    that does not complete a step of the shutdown (`shutdown`).
//! 8. SIGTERM and SIGINT: drain, unmount (detached if in use), exit 0 or 7. SIGHUP: the worker
//!    reads its key file again. Without a worker, unsaved writes are read from the state, so that
//!    each is named.

mod events;
pub mod fail_requests;
mod mounting;
pub mod restart_policy;
mod shutdown;
mod takeover;
pub mod worker_process;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use crate::daemon::helper::HelperSupervisor;
use crate::daemon::keeper::worker_process::{SpawnConfig, Worker, ending};
use crate::daemon::protocol::{ExitError, MountConfig, Outcome, ToKeeper, ToWorker, receive_config};
use crate::sys::mount::Mounted;
use crate::sys::mount_table::Dev;

use crate::daemon::keeper::events::{Event, take_signals};
use crate::daemon::keeper::restart_policy::RestartPolicy;
use crate::daemon::keeper::shutdown::has_accounted;
pub use crate::daemon::keeper::takeover::{NOT_UPGRADED, UPGRADED};
use crate::daemon::runtime_dir::{Record, RuntimeDir};
use crate::daemon::state_log;
use crate::daemon::state_log::SealKey;
use crate::fs::{Ending, Unsaved};
use crate::secret::SecretString;
use crate::sys::channel::{close_inherited, receive_descriptor, take_standard};
use crate::sys::fuse_device;
use crate::sys::hardening::LockState;
use crate::sys::mount_target::Target;

/// The hidden commands that start the processes of a mount.
pub const COMMAND: &str = "keeper";
/// The option of [`COMMAND`] for the directory of the control socket, absolute.
pub const RUNTIME_DIR: &str = "--runtime-dir";
/// See [`COMMAND`].
pub const WORKER_COMMAND: &str = "worker";
/// The keeper's name in `ps`, by which commands recognize it.
pub const NAME: &std::ffi::CStr = c"vaultfs-keeper";

/// Time that a worker may take beyond `--drain` to report the end of the drain.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// Time that programs and other mount namespaces may use a mount after SIGTERM unmounted it.
const GRACE: Duration = Duration::from_secs(2);
/// Timeout of a worker's end: it stores for 2 s, and ends commands within 2 s more.
const END_PATIENCE: Duration = Duration::from_secs(8);

/// What a keeper process starts with.
#[derive(Debug)]
pub struct Begun {
    /// The mount.
    pub config: MountConfig,
    /// The vault's key.
    pub key: Option<SecretString>,
    /// The directory to mount on.
    pub target: Target,
    /// The pipe to the command that started it.
    pub starter: StarterPipe,
}

/// The first steps of a keeper process: descriptors, session, configuration.
pub fn begin() -> io::Result<Begun> {
    close_inherited();
    // Fails only for a process group's leader, which a new child is not.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/")?;
    let starter = take_standard(0)?;
    let directory = receive_descriptor(starter.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let (config, key) = receive_config(File::from(starter))?;
    let target = Target::new(config.mountpoint.clone(), directory)?;
    let starter = StarterPipe(Some(File::from(take_standard(1)?)));
    if config.foreground {
        // The waiting command is all that a supervisor sees: end with it.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
    }
    Ok(Begun { config, key, target, starter })
}

/// The pipe to the command that started the keeper; closed after one message.
#[derive(Debug)]
pub struct StarterPipe(Option<File>);

impl StarterPipe {
    /// Reports the outcome. False if the starting command did not read it.
    pub fn report(&mut self, outcome: &Outcome) -> bool {
        let text = serde_json::to_string(outcome).unwrap_or_default();
        self.0.take().is_some_and(|mut pipe| writeln!(pipe, "{text}").is_ok())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}

/// Runs a mount from start to end. Returns the exit code.
pub fn run(begun: Begun, memory: LockState) -> u8 {
    let Begun { config, key, target, mut starter } = begun;
    let started = Keeper::new(config, key, memory).and_then(|keeper| keeper.start(target, &mut starter));
    match started {
        Ok(keeper) => keeper.serve(),
        Err(failed) => {
            if let Ok(directory) = RuntimeDir::own() {
                directory.tidy();
            }
            // The reader reports it: one journal should not have it twice.
            if starter.report(&Outcome::Failed(failed.clone())) {
                tracing::debug!("not mounted: {failed}");
            } else {
                tracing::error!("not mounted: {failed}");
            }
            failed.exit
        }
    }
}

/// What the keeper waits for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Serving,
    /// A restart of the worker is delayed until then.
    BackingOff(Instant),
    /// Every request is failed; a worker is retried from time to time.
    Failed,
    Draining(Instant),
    /// The mount is unmounted; the connection has to end.
    Unmounting(Instant),
    /// The worker stores what was written during the unmount.
    FinalDrain(Instant),
    Ending(Instant),
}

impl Phase {
    fn until(self) -> Option<Instant> {
        match self {
            Phase::Serving | Phase::Failed => None,
            Phase::BackingOff(t)
            | Phase::Draining(t)
            | Phase::Unmounting(t)
            | Phase::FinalDrain(t)
            | Phase::Ending(t) => Some(t),
        }
    }
}

/// The target state of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Serve,
    /// It ends once everything is stored.
    Drain,
    /// It is unmounted, or cannot be: only the worker has to end.
    Leave,
}

struct Keeper {
    spawn_config: SpawnConfig,
    memory: LockState,
    signals: SignalFd,
    /// The mount's state, in a memfd.
    state: OwnedFd,
    worker: Option<Worker>,
    helper: Option<HelperSupervisor>,
    mounted: Option<Mounted>,
    /// The answer to INIT, which every worker has to repeat.
    init_reply: Vec<u8>,
    listener: Option<UnixListener>,
    directory: RuntimeDir,
    phase: Phase,
    goal: Goal,
    /// A worker that did not end was replaced: the next one is the last.
    replaced: bool,
    restart_policy: RestartPolicy,
    restarts: u32,
    last_end: Option<String>,
    /// How the last serving worker ended.
    ending: Ending,
    /// How a worker ended during its start.
    start_ended: Option<Ending>,
    /// When the next worker is tried while every request fails.
    retry_at: Option<Instant>,
    /// Signals that arrived during the start of a worker.
    later: VecDeque<Event>,
    /// The worker has reported the end of its session.
    session_over: bool,
}

impl Keeper {
    fn new(config: MountConfig, key: Option<SecretString>, memory: LockState) -> Result<Self, ExitError> {
        let failed = |what: &'static str| move |e: io::Error| ExitError::new(format!("{what}: {e}"));
        let directory = RuntimeDir::own().map_err(failed("there is no place for the control socket"))?;
        let signals = take_signals().map_err(|e| ExitError::new(format!("signals: {e}")))?;
        let seal = SealKey::random().map_err(failed("no key for the mount's state"))?;
        let state = state_log::create().map_err(failed("no memory for the mount's state"))?;
        Ok(Self {
            spawn_config: SpawnConfig { config, key, seal, program: None },
            memory,
            signals,
            state,
            worker: None,
            helper: None,
            mounted: None,
            init_reply: Vec::new(),
            listener: None,
            directory,
            phase: Phase::Serving,
            goal: Goal::Serve,
            replaced: false,
            restart_policy: RestartPolicy::default(),
            restarts: 0,
            last_end: None,
            ending: Ending::default(),
            start_ended: None,
            retry_at: None,
            later: VecDeque::new(),
            session_over: false,
        })
    }

    fn dev(&self) -> Option<Dev> {
        self.mounted.as_ref().map(|mounted| mounted.dev)
    }

    fn mountpoint(&self) -> &Path {
        &self.spawn_config.config.mountpoint
    }

    fn send(&self, message: &ToWorker, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        match &self.worker {
            Some(worker) => worker.channel.send(message, fds),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Includes the unsaved writes where there is no worker to ask.
    fn write_record(
        &self,
        dev: Dev,
        broken: Option<String>,
        unsaved: Option<Vec<Unsaved>>,
    ) -> io::Result<()> {
        let config = &self.spawn_config.config;
        let (spec, log) = (config.spec.clone(), config.log_place.clone());
        let record = Record::of_this_keeper(config.mountpoint.clone(), spec, log);
        self.directory.write(dev, &Record { broken, unsaved, ..record })
    }

    /// A deferred event, or the next one.
    fn event(&mut self) -> Event {
        let later = self.later.pop_front();
        later.unwrap_or_else(|| self.next_event(None, self.phase.until().or(self.retry_at)))
    }

    fn session_ended(&mut self, left: usize) {
        tracing::debug!(left, "the session is over");
        self.session_over = true;
        self.withdraw();
    }

    /// For people.
    fn how_it_ended(&self, status: Option<ExitStatus>) -> String {
        self.worker.as_ref().map_or_else(|| ending(status), |worker| worker.ending(status))
    }

    fn worker_gone(&mut self, status: Option<ExitStatus>) {
        let says = self.exit_message(status);
        self.record_exit(says);
        self.worker_died(says, self.how_it_ended(status));
    }

    fn serve(mut self) -> u8 {
        loop {
            let event = self.event();
            match (event, self.phase) {
                (Event::Stop, Phase::Serving) => {
                    tracing::info!("asked to stop: committing unsaved writes");
                    self.drain();
                }
                // A worker is needed to store what is unsaved.
                (Event::Stop, Phase::BackingOff(_)) => {
                    if self.goal == Goal::Serve {
                        self.goal = Goal::Drain;
                    }
                    self.replace_worker();
                }
                (Event::Stop, Phase::Failed) => return self.end_without_worker(),
                (Event::Timeout, Phase::BackingOff(_)) => self.replace_worker(),
                (Event::Timeout, Phase::Failed) => self.retry(),
                (Event::Request, Phase::Failed) => {
                    if !self.fail_request() {
                        return self.end_without_worker();
                    }
                }
                (Event::Reload, _) => self.notify(&ToWorker::ReloadKey),
                (Event::Worker(ToKeeper::Upgrade(path)), Phase::Serving) => self.upgrade(&path),
                (Event::Worker(ToKeeper::Drained(left)), Phase::Draining(_)) => {
                    tracing::info!(left, "drained");
                    self.leave();
                }
                (Event::Timeout, Phase::Draining(_)) => {
                    if !self.replace("it does not say that it has drained") {
                        self.leave();
                    }
                }
                (Event::Timeout, Phase::Unmounting(_)) if self.is_connected() => {
                    tracing::warn!(
                        "the mount is still in use, perhaps in another mount namespace: ending the worker"
                    );
                    self.end_worker();
                }
                (Event::Timeout, Phase::Unmounting(_)) => {
                    self.phase =
                        Phase::FinalDrain(Instant::now() + self.spawn_config.config.drain + DRAIN_MARGIN);
                }
                (Event::Timeout, Phase::FinalDrain(_)) => self.end_worker(),
                (Event::Timeout, Phase::Ending(_)) => {
                    self.worker.iter_mut().for_each(|worker| worker.kill_for("it does not end".to_owned()));
                    self.phase = Phase::Ending(Instant::now() + END_PATIENCE);
                }
                (Event::Worker(ToKeeper::Ended(left)), _) => self.session_ended(left),
                (Event::WorkerGone(status), phase) => {
                    let is_over = self.session_over || matches!(phase, Phase::Ending(_));
                    if is_over && (has_accounted(status) || self.session_over || self.replaced) {
                        return self.finish(status);
                    }
                    self.replaced |= is_over;
                    self.worker_gone(status);
                }
                (event, phase) => tracing::debug!(?event, ?phase, "nothing to do"),
            }
        }
    }

    /// Fails one request. False when the connection is gone.
    fn fail_request(&self) -> bool {
        let Some(mounted) = &self.mounted else { return false };
        match fail_requests::one(&mounted.device) {
            Ok(connected) => connected,
            Err(e) => {
                tracing::error!("the FUSE device cannot be used: {e}");
                false
            }
        }
    }

    fn supervise_helper(&mut self) {
        let Some(helper) = &mut self.helper else { return };
        match self.phase {
            // A new helper's calls would fail.
            Phase::Failed => _ = helper.has_ended(),
            Phase::Serving
            | Phase::BackingOff(_)
            | Phase::Draining(_)
            | Phase::Unmounting(_)
            | Phase::FinalDrain(_)
            | Phase::Ending(_) => helper.supervise(),
        }
    }

    /// Whether the kernel still has the mount, in any namespace.
    fn is_connected(&self) -> bool {
        self.mounted.as_ref().is_some_and(|mounted| fuse_device::is_connected(&mounted.device))
    }

    /// Whether this mount namespace has it, wherever.
    fn is_mounted(&self) -> bool {
        let is_there = |mounted: &Mounted| mounted.entry(self.mountpoint()).is_ok_and(|at| at.is_some());
        self.mounted.as_ref().is_some_and(is_there)
    }

    fn notify(&self, message: &ToWorker) {
        if let Err(e) = self.send(message, &[]) {
            // The next event is its end.
            tracing::debug!("the worker cannot be reached: {e}");
        }
    }
}
