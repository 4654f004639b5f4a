//! The keeper: mounts, holds the /dev/fuse descriptor and the mount's state, keeps a worker alive, unmounts.
//!
//! 1. It must survive what the worker may die of. So it is one thread, no runtime, and does little: wait for
//!    signals and for the worker's messages, with a deadline where it waits for something to happen.
//! 2. While it holds /dev/fuse the connection lives, whatever happens to the worker. It therefore never opens a
//!    file on its own mount (nobody might be there to answer), and lets go of the descriptor before it unmounts.
//! 3. Nothing is mounted before the worker has a vault: a wrong key is an exit code, not a dead mount (`mounting`).
//! 4. When the worker dies, a successor takes over at once (`takeover`): same device, same state, same control socket. Programs only
//!    wait. Where they keep dying (`restart_policy`) there are pauses, and at last everything on the mount is EIO (`fail_request`), but
//!    for a try each minute: it is not unmounted, because below it is a plain directory, where what programs go on writing would be on disk.
//! 5. A kernel that cannot send again what a dead worker had read (before Linux 6.9) gets a new mount in the old one's
//!    place: what was in flight fails, and what was open; what is unsaved goes on.
//! 6. waitpid(2) is not enough to see a worker's death: a thread stuck in a call on the own mount keeps the
//!    process a zombie whose parent is not told. The closed channel and the state in /proc are looked at too.
//! 7. One without a heartbeat (`heartbeat`) is killed and restarted as any that died. So is, once, one that does not do
//!    what the end of the mount needs.
//! 8. SIGTERM and SIGINT act here only: drain, unmount (detached, if it is in use), exit 0 or 7. SIGHUP makes
//!    the worker read its key file again. Where no worker is left to say what the vault does not have, it is read
//!    from the state: no unsaved write ends unnamed.

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
use crate::daemon::protocol::{Failed, MountConfig, Outcome, ToKeeper, ToWorker, receive_config};
use crate::sys::mount::Mounted;
use crate::sys::mount_table;
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

/// The hidden commands that the processes of a mount are started with.
pub const COMMAND: &str = "keeper";
/// The option of [`COMMAND`] that says where the control socket is to be, absolute.
pub const RUNTIME_DIR: &str = "--runtime-dir";
/// See [`COMMAND`].
pub const WORKER_COMMAND: &str = "worker";
/// How the keeper is called in `ps`; it is recognised by it.
pub const NAME: &std::ffi::CStr = c"vaultfs-keeper";

/// How long a worker may take, beyond `--drain`, to say that it has drained.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// How long programs, and other mount namespaces, may go on using a mount that was taken away because of SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long a worker that was told to end may take: it stores for 2 s, and ends commands within 2 s more.
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
    // Fails only for a process group's leader, which a freshly started child is not.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/")?;
    let starter = take_standard(0)?;
    let directory = receive_descriptor(starter.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let (config, key) = receive_config(File::from(starter))?;
    let target = Target::new(config.mountpoint.clone(), directory)?;
    let starter = StarterPipe(Some(File::from(take_standard(1)?)));
    if config.foreground {
        // The command that waits for us is all that a supervisor sees: end with it.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
    }
    Ok(Begun { config, key, target, starter })
}

/// The pipe to the command that started the keeper; closed after one message.
#[derive(Debug)]
pub struct StarterPipe(Option<File>);

impl StarterPipe {
    /// Says how it went, and whether somebody heard it: a command that was interrupted does not listen any more.
    pub fn tell(&mut self, outcome: &Outcome) -> bool {
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
            // Who hears it says so; twice in one journal would be once too often.
            if starter.tell(&Outcome::Failed(failed.clone())) {
                tracing::debug!("not mounted: {failed}");
            } else {
                tracing::error!("not mounted: {failed}");
            }
            failed.exit
        }
    }
}

/// What the keeper is waiting for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Serving,
    /// To start another worker.
    BackingOff(Instant),
    /// To try another worker, in a while: every request is refused.
    Failed,
    Draining(Instant),
    /// For the end of the connection, after unmounting.
    Unmounting(Instant),
    /// For the worker to store what was written while the mount went.
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

/// What is to become of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Serve,
    /// It ends, once everything is stored.
    Drain,
    /// It is unmounted, or cannot be: only its worker has to end.
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
    /// The answer to INIT, which each worker has to give alike.
    init_reply: Vec<u8>,
    listener: Option<UnixListener>,
    directory: RuntimeDir,
    phase: Phase,
    goal: Goal,
    /// A worker that did not end as it was told to has been replaced: the next one is the last.
    replaced: bool,
    restart_policy: RestartPolicy,
    restarts: u32,
    last_end: Option<String>,
    /// What the end of the last worker that served says of the requests it was at.
    ending: Ending,
    /// The worker that was being started ended; what that says.
    start_ended: Option<Ending>,
    /// When another worker is tried, where everything is refused.
    retry_at: Option<Instant>,
    /// Signals that came while a worker was being started.
    later: VecDeque<Event>,
    /// The worker has said that its session is over.
    session_over: bool,
}

impl Keeper {
    fn new(config: MountConfig, key: Option<SecretString>, memory: LockState) -> Result<Self, Failed> {
        let failed = |what: &'static str| move |e: io::Error| Failed::new(format!("{what}: {e}"));
        let directory = RuntimeDir::own().map_err(failed("there is no place for the control socket"))?;
        let signals = take_signals().map_err(|e| Failed::new(format!("signals: {e}")))?;
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

    /// With what the vault does not have, where there is no worker to ask.
    fn write_record(
        &self,
        dev: Dev,
        broken: Option<String>,
        unsaved: Option<Vec<Unsaved>>,
    ) -> io::Result<()> {
        let config = &self.spawn_config.config;
        let record = Record::of_this_keeper(config.mountpoint.clone(), config.spec.clone());
        self.directory.write(dev, &Record { broken, unsaved, ..record })
    }

    /// What came while a worker was replaced, or what comes next.
    fn event(&mut self) -> Event {
        let later = self.later.pop_front();
        later.unwrap_or_else(|| self.next_event(None, self.phase.until().or(self.retry_at)))
    }

    fn session_ended(&mut self, left: usize) {
        tracing::debug!(left, "the session is over");
        self.session_over = true;
        self.withdraw();
    }

    fn worker_gone(&mut self, status: Option<ExitStatus>) {
        let says = self.what_its_end_says(status);
        self.record_exit(says);
        let how = self.worker.as_ref().map_or_else(|| ending(status), |w| w.ending(status));
        self.worker_died(says, how);
    }

    fn serve(mut self) -> u8 {
        loop {
            let event = self.event();
            match (event, self.phase) {
                (Event::Stop, Phase::Serving) => {
                    tracing::info!("asked to stop: committing what is unsaved");
                    self.drain();
                }
                // There has to be a worker to store what is unsaved.
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
                (Event::Reload, _) => self.tell(&ToWorker::ReloadKey),
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
                        "something still has the mount, another mount namespace perhaps: ending it"
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

    /// Refuses one request. False when the connection is gone.
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
            // Whatever another one did would be refused.
            Phase::Failed => _ = helper.has_ended(),
            Phase::Serving
            | Phase::BackingOff(_)
            | Phase::Draining(_)
            | Phase::Unmounting(_)
            | Phase::FinalDrain(_)
            | Phase::Ending(_) => helper.supervise(),
        }
    }

    /// Whether the kernel still has the mount, wherever.
    fn is_connected(&self) -> bool {
        self.mounted.as_ref().is_some_and(|mounted| fuse_device::is_connected(&mounted.device))
    }

    fn is_mounted(&self, dev: Dev) -> bool {
        mount_table::is_mounted(self.mountpoint(), dev)
    }

    fn tell(&self, message: &ToWorker) {
        if let Err(e) = self.send(message, &[]) {
            // Its end is the next event.
            tracing::debug!("the worker does not hear: {e}");
        }
    }
}
