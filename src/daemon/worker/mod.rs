//! The worker's life between "the vault answered" and its exit.
//!
//! It takes over the mount ([`session`]), serves until the session ends, and then stores what is
//! unsaved. It ends for one of four reasons, each with a defined end:
//!
//! | Reason | What it does |
//! |---|---|
//! | the mount is gone (umount from anywhere) | drains for `--drain`, names what is left, exits 0 or 7 |
//! | the keeper asks ([`ToWorker::Drain`], after SIGTERM) | drains, answers; then the keeper unmounts: as above |
//! | the keeper died | drains what is closed, names what is left, exits: the mount stays, dead |
//! | [`ToWorker::End`], or `unmount --force` | names what is left and exits |
//!
//! After the death of the keeper the mount is not removed: programs would go on writing to the
//! plain directory below it. The worker holds the device last; when it exits, every request fails
//! with ENOTCONN.
//!
//! The worker ignores signals, which the keeper handles: a service manager sends SIGTERM to every
//! process of a service. The worker makes no call on its own mount.

pub mod kernel_notifier;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Filesystem;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::alarm;
use serde_json::json;
use tokio::sync::{broadcast, mpsc, watch};

use crate::daemon::control;
use crate::daemon::control::{ControlChannels, Handler};
use crate::daemon::heartbeat;
use crate::daemon::protocol::{
    EXIT_UNSAVED, ExitError, MountConfig, MountFacts, ToKeeper, ToWorker, receive_config, receive_seal,
};
use crate::daemon::state_log;
use crate::daemon::state_log::{SealKey, State, StateError};
use crate::display::Shown;
use crate::failpoint;
use crate::fs::{Drain, HelperReport, Kernel, Processes, Unsaved};
use crate::fuse::session;
use crate::secret::SecretString;
use crate::sys::channel::{Channel, close_inherited, take_standard};
use crate::sys::fuse_device;
use crate::sys::fuse_device::Init;
use crate::sys::hardening::LockState;
use crate::sys::mount_table::Dev;
use crate::sys::unmount;

/// What the worker serves.
#[async_trait::async_trait]
pub trait Service: Send + Sync + 'static {
    /// Called once, before the first request, with what serves the mount.
    fn attach_processes(&self, processes: Processes);
    /// Called once, before the first request, with the way to send notifications.
    fn attach_kernel(&self, kernel: Arc<dyn Kernel>);
    /// Handles a report of the helper.
    fn helper_reports(&self, report: HelperReport);
    /// File system, cache and vault, as JSON for `status`.
    fn status(&self) -> serde_json::Value;
    /// Request counts, as JSON for `status`.
    fn requests(&self) -> serde_json::Value;
    /// Returns when a request has been answered.
    async fn first_answer(&self);
    /// Liveness probe: blocks if requests cannot be answered.
    fn check_liveness(&self);
    /// Stores what is unsaved; returns what could not be stored in time.
    async fn drain(&self, what: Drain, within: Duration) -> Vec<Unsaved>;
    /// Stores unsaved writes after all, also over newer versions.
    async fn retry(&self, name: Option<&str>) -> Vec<Unsaved>;
    /// Discards an unsaved write. False if there is none of that name.
    fn discard(&self, name: &str) -> bool;
    /// Reads the key file again.
    async fn reload_key(&self);
    /// Ends the commands that the mount runs.
    async fn end_commands(&self);
    /// Finishes what is in flight, within that time, and starts nothing until the result is
    /// dropped.
    async fn pause(&self, within: Duration) -> Box<dyn Any + Send>;
}

/// What a worker takes over.
#[derive(Debug)]
pub struct TakeoverState {
    /// The state log, with the records of the previous worker.
    pub state: Arc<State>,
    /// A takeover: the vault need not answer now.
    pub takeover: bool,
    /// The kernel knows nothing of the inodes and handles in the state.
    pub fresh_mount: bool,
}

/// The name of a worker in `ps`, by which commands recognize it.
pub const NAME: &std::ffi::CStr = c"vaultfs-worker";

/// The worker's channel to its keeper.
#[derive(Debug, Clone)]
pub struct KeeperLink(Arc<Channel>);

/// The first steps of a worker process: descriptors, signals, configuration.
pub fn begin() -> io::Result<(MountConfig, Option<SecretString>, SealKey, KeeperLink)> {
    close_inherited();
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: ignoring installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn)? };
    }
    std::env::set_current_dir("/")?;
    let mut pipe = std::fs::File::from(take_standard(0)?);
    let (config, key) = receive_config(&mut pipe)?;
    let seal = receive_seal(&mut pipe)?;
    Ok((config, key, seal, KeeperLink(Arc::new(Channel::from(take_standard(1)?)))))
}

impl KeeperLink {
    /// Reports that there is no vault; the worker then ends with the failure's code.
    pub fn failed(&self, failed: &ExitError) {
        self.send(&ToKeeper::Failed(failed.clone()));
    }

    /// Reports the vault that answered, for the workers after this one.
    pub fn connected(&self, spec: serde_json::Value) {
        self.send(&ToKeeper::Connected(spec));
    }

    /// Sends a message. The reader of the channel notices a dead keeper.
    fn send(&self, message: &ToKeeper) {
        if let Err(e) = self.0.send(message, &[]) {
            tracing::debug!("the keeper did not receive {message:?}: {e}");
        }
    }

    /// Takes over the state, if this program can read it, once the previous worker is gone.
    pub fn receive_state(&self, seal: &SealKey) -> Result<TakeoverState, ExitError> {
        let (message, mut fds) = self.0.receive().map_err(lost)?.ok_or_else(|| lost("it ended"))?;
        let (ToWorker::State { takeover, fresh_mount }, Some(fd)) = (message, fds.pop()) else {
            return Err(lost("it sent no state"));
        };
        let unreadable = |e: StateError| ExitError::new(e.to_string());
        if let Err(e) = state_log::check(&fd).map_err(unreadable) {
            self.failed(&e);
            return Err(e);
        }
        self.send(&ToKeeper::Readable);
        match self.0.receive().map_err(lost)? {
            Some((ToWorker::Connect, _)) => {}
            _ => return Err(lost("it did not say connect")),
        }
        failpoint::point("receive-state");
        let state = Arc::new(State::open(fd, seal).map_err(unreadable)?);
        Ok(TakeoverState { state, takeover, fresh_mount })
    }

    fn expect_serve(&self) -> Result<Assignment, ExitError> {
        let (message, fds) = self.0.receive().map_err(lost)?.ok_or_else(|| lost("it ended"))?;
        let ToWorker::Serve { init, dev, facts, resend } = message else {
            return Err(lost("it asked for something else first"));
        };
        let init = Init::from_bytes(init).ok_or_else(|| lost("it sent no INIT"))?;
        match <[OwnedFd; 3]>::try_from(fds) {
            Ok([device, listener, helper]) => {
                let (listener, helper) = (UnixListener::from(listener), Channel::from(helper));
                Ok(Assignment { init, dev, facts, resend, device, listener, helper })
            }
            Err(_) => Err(lost("it sent no descriptors")),
        }
    }

    fn expect_go(&self) -> Result<(), ExitError> {
        match self.0.receive().map_err(lost)? {
            Some((ToWorker::Go, _)) => Ok(()),
            _ => Err(lost("it did not say go")),
        }
    }

    /// Reads the channel in a thread of its own; the receiver ends when the keeper does.
    fn listen(&self) -> io::Result<mpsc::UnboundedReceiver<ToWorker>> {
        let (to, from) = mpsc::unbounded_channel();
        let channel = self.0.clone();
        std::thread::Builder::new().name("keeper-link".into()).spawn(move || {
            while let Ok(Some((message, _))) = channel.receive() {
                if to.send(message).is_err() {
                    return;
                }
            }
        })?;
        Ok(from)
    }
}

fn lost(why: impl std::fmt::Display) -> ExitError {
    ExitError::new(format!("the keeper cannot be followed: {why}"))
}

/// What the keeper hands over.
struct Assignment {
    init: Init,
    dev: Dev,
    facts: MountFacts,
    resend: bool,
    device: OwnedFd,
    listener: UnixListener,
    helper: Channel,
}

/// Facts of a worker process.
#[derive(Debug)]
pub struct ProcessInfo {
    /// Whether its memory is locked.
    pub memory: LockState,
    /// Where its heartbeat is counted.
    pub state: Arc<State>,
}

/// Takes over the mount that the keeper hands over and serves it to its end. Returns the exit code.
pub fn serve(
    link: &KeeperLink,
    config: &MountConfig,
    runtime: &tokio::runtime::Handle,
    filesystem: impl Filesystem,
    service: Arc<dyn Service>,
    ProcessInfo { memory, state }: ProcessInfo,
) -> Result<u8, ExitError> {
    let io_failed = |what: &'static str| move |e: io::Error| ExitError::new(format!("{what}: {e}"));
    let Assignment { init, dev, facts, resend, device, listener, helper } = link.expect_serve()?;
    let again = resend.then(|| device.try_clone()).transpose().map_err(io_failed("no descriptor"))?;
    let (session, reply) =
        session::shake_hands(filesystem, &init).map_err(io_failed("the FUSE handshake failed"))?;
    session::attach(&session, device).map_err(io_failed("the FUSE device cannot be used"))?;
    let helper = Arc::new(helper);
    let notices = kernel_notifier::spawn(session.notifier(), session.as_fd(), helper.clone(), dev)
        .map_err(io_failed("no thread for notifications"))?;
    service.attach_processes(Processes {
        restarts: facts.restarts,
        last_end: facts.last_end.clone(),
        ending: facts.ending,
        worker_memory_locked: memory == LockState::Locked,
        keeper_memory_locked: facts.keeper_memory == LockState::Locked,
    });
    service.attach_kernel(notices.clone());
    if facts.helper_pid != 0 {
        service.helper_reports(HelperReport::Started { pid: facts.helper_pid });
    }
    link.send(&ToKeeper::Init(reply));
    link.expect_go()?;
    if let Some(device) = again {
        // Before this session reads anything: what it had read would be sent again, too.
        fuse_device::resend(&device.into())
            .unwrap_or_else(|e| tracing::error!("requests cannot be resent: {e}"));
    }

    let (over, session_end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("fuser-main".into())
        .spawn(move || {
            let _ = over.send(session.run());
        })
        .map_err(io_failed("no thread for the session"))?;
    let from_keeper = link.listen().map_err(io_failed("no thread for the keeper's line"))?;
    listen_to_helper(helper, service.clone()).map_err(io_failed("no thread for the helper's line"))?;
    heartbeat::start(state, runtime, service.clone()).map_err(io_failed("no thread for the heartbeat"))?;
    link.send(&ToKeeper::Serving);
    tracing::info!(mountpoint = %config.mountpoint.shown(), %dev, "serving");

    let handler = Arc::new(ControlHandler {
        service,
        config: config.clone(),
        dev,
        facts,
        notices,
        memory,
        started: Instant::now(),
    });
    let unsaved = runtime.block_on(supervise(handler, link.clone(), listener, from_keeper, session_end));
    for left in &unsaved {
        tracing::error!(name = left.name, "not stored when the mount ended: {}", reason(left));
    }
    Ok(if unsaved.is_empty() { 0 } else { EXIT_UNSAVED })
}

/// Reads what the helper reports, in a thread of its own that ends with the process.
fn listen_to_helper(line: Arc<Channel>, service: Arc<dyn Service>) -> io::Result<()> {
    std::thread::Builder::new().name("helper-link".into()).spawn(move || {
        loop {
            match line.receive::<HelperReport>() {
                Ok(Some((report, _))) => service.helper_reports(report),
                // Both ends are the keeper's: it is gone, and the helper with it.
                Ok(None) => return service.helper_reports(HelperReport::Leaving),
                Err(e) => tracing::error!("the channel to the helper failed: {e}"),
            }
        }
    })?;
    Ok(())
}

/// Why a write is unsaved, for people.
pub fn reason(unsaved: &Unsaved) -> &str {
    unsaved.error.as_deref().unwrap_or("the file is still open")
}

/// Serves the control socket.
struct ControlHandler {
    service: Arc<dyn Service>,
    config: MountConfig,
    dev: Dev,
    facts: MountFacts,
    notices: Arc<kernel_notifier::NoticeSender>,
    memory: LockState,
    started: Instant,
}

#[async_trait::async_trait]
impl Handler for ControlHandler {
    fn status(&self) -> serde_json::Value {
        json!({
            "mountpoint": self.config.mountpoint,
            "dev": self.dev,
            "keeper_pid": self.facts.keeper_pid,
            "worker_pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "drain_s": self.config.drain.as_secs(),
            "restarts": self.facts.restarts,
            "last_end": self.facts.last_end,
            "version": crate::VERSION,
            "kernel": {
                "fuse_abi": format!("{}.{}", self.facts.fuse_abi.0, self.facts.fuse_abi.1),
                "resend": self.facts.resend,
                "requests": self.service.requests(),
            },
            "memory": { "keeper": self.facts.keeper_memory, "worker": self.memory },
            "log": self.config.log_place,
            "options": self.config.options,
            "spec": self.config.spec,
            "fs": self.service.status(),
        })
    }

    async fn drain(&self, within: Option<Duration>) -> Vec<Unsaved> {
        self.service.drain(Drain::Closed, within.unwrap_or(self.config.drain)).await
    }

    async fn retry(&self, name: Option<&str>) -> Vec<Unsaved> {
        self.service.retry(name).await
    }

    fn discard(&self, name: &str) -> bool {
        self.service.discard(name)
    }
}

/// Asks the keeper for an upgrade.
struct Upgrader {
    link: KeeperLink,
    refused: broadcast::Sender<String>,
    service: Arc<dyn Service>,
}

/// How long what is out may take to end before an upgrade; and the new program to start, while
/// nothing is begun.
const PAUSE: Duration = Duration::from_secs(1);

#[async_trait::async_trait]
impl control::Upgrade for Upgrader {
    async fn to(&self, program: &Path) -> String {
        let mut refused = self.refused.subscribe();
        let paused = self.service.pause(PAUSE).await;
        self.link.send(&ToKeeper::Upgrade(program.to_owned()));
        // Granted, it ends this process.
        if let Ok(refused) = tokio::time::timeout(PAUSE, refused.recv()).await {
            return refused.unwrap_or_default();
        }
        drop(paused);
        refused.recv().await.unwrap_or_default()
    }
}

/// Why the main loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The connection to the kernel is gone.
    SessionOver,
    /// The keeper died.
    Orphaned,
    /// The keeper or a command asked for the end.
    Requested,
}

/// Time for a last drain: of writes made during the unmount, or in flight when the end is
/// requested.
pub const LAST_DRAIN: Duration = Duration::from_secs(2);

/// A notification waits for requests in its directory, which this process answers within
/// `--timeout`.
const LAST_NOTICES: Duration = Duration::from_secs(30);

/// Time for the other steps of an exit.
const EXIT_MARGIN: Duration = Duration::from_secs(20);

type SessionEnd = tokio::sync::oneshot::Receiver<io::Result<()>>;

fn reload_key(handler: Arc<ControlHandler>) {
    tokio::spawn(async move { handler.service.reload_key().await });
}

async fn supervise(
    handler: Arc<ControlHandler>,
    link: KeeperLink,
    listener: UnixListener,
    mut from_keeper: mpsc::UnboundedReceiver<ToWorker>,
    mut session_end: SessionEnd,
) -> Vec<Unsaved> {
    let (end, mut asked_to_end) = mpsc::unbounded_channel();
    let (refused, _) = broadcast::channel(1);
    let upgrade = Upgrader { link: link.clone(), refused: refused.clone(), service: handler.service.clone() };
    let (over, ended) = watch::channel(None);
    let channels = ControlChannels { end, ended, upgrade: Arc::new(upgrade) };
    let socket = listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener))
        .map(|listener| tokio::spawn(control::serve(listener, handler.clone(), channels)));
    // Draining before the mount is gone, and after: the same time counts for both.
    let mut draining: Option<Instant> = None;
    let cause = loop {
        tokio::select! {
            message = from_keeper.recv() => match message {
                Some(ToWorker::Drain) => {
                    draining.get_or_insert_with(Instant::now);
                    drain_and_answer(handler.clone(), link.clone());
                }
                Some(ToWorker::ReloadKey) => reload_key(handler.clone()),
                Some(ToWorker::End) => break Cause::Requested,
                Some(ToWorker::NotUpgraded(why)) => drop(refused.send(why)),
                Some(
                    ToWorker::State { .. } | ToWorker::Connect | ToWorker::Serve { .. } | ToWorker::Go,
                ) => {}
                None => break Cause::Orphaned,
            },
            result = &mut session_end => {
                if let Ok(Err(e)) = result {
                    tracing::error!("the FUSE session failed: {e}");
                }
                break Cause::SessionOver;
            }
            Some(()) = asked_to_end.recv() => break Cause::Requested,
        }
    };
    tracing::info!(?cause, "ending");
    let begun = draining.unwrap_or_else(Instant::now);
    let left = || handler.config.drain.saturating_sub(begun.elapsed()).max(LAST_DRAIN);
    let patience = if cause == Cause::Requested { LAST_DRAIN } else { left() };
    let unsaved = if cause == Cause::Orphaned {
        tracing::error!(
            "the keeper is gone: storing unsaved writes; then {} is dead until it is mounted again, or unmounted",
            handler.config.mountpoint.shown()
        );
        // No process kills a stuck worker without a keeper: an alarm ends it.
        alarm::set((patience + LAST_NOTICES + EXIT_MARGIN).as_secs() as u32);
        // Writes in flight are not acknowledged: their writer gets ENOTCONN.
        let unsaved = handler.service.drain(Drain::Closed, patience).await;
        leave(&handler).await;
        unsaved
    } else {
        handler.service.drain(Drain::All, patience).await
    };
    handler.service.end_commands().await;
    link.send(&ToKeeper::Ended(unsaved.len()));
    let _ = over.send(Some(unsaved.clone()));
    match socket {
        Ok(serving) => drop(serving.await),
        Err(e) => tracing::warn!("there was no control socket: {e}"),
    }
    unsaved
}

/// Nothing answers after this process: nothing may keep the device open, or requests would wait for
/// ever.
async fn leave(handler: &ControlHandler) {
    let all_sent = tokio::time::timeout(LAST_NOTICES, handler.notices.all_sent()).await;
    if let Err(e) = unmount::abort(handler.dev)
        && all_sent.is_err()
    {
        tracing::error!("a notification to the kernel does not end, nor does the connection: {e}");
    }
}

fn drain_and_answer(handler: Arc<ControlHandler>, link: KeeperLink) {
    tokio::spawn(async move {
        let unsaved = handler.service.drain(Drain::Closed, handler.config.drain).await;
        for left in &unsaved {
            tracing::warn!(name = left.name, "not stored yet: {}", reason(left));
        }
        link.send(&ToKeeper::Drained(unsaved.len()));
    });
}
