//! Start, restart and takeover of workers: the first one starts like every successor, and an
//! upgrade is one more takeover. After repeated deaths the mount fails.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::daemon::keeper::events::Event;
use crate::daemon::keeper::worker_process::Worker;
use crate::daemon::keeper::{DRAIN_MARGIN, Goal, Keeper, Phase, StarterPipe, restart_policy};
use crate::daemon::protocol::{ExitError, MountFacts, ToKeeper, ToWorker, see_log};
use crate::daemon::runtime_dir::RuntimeDir;
use crate::daemon::worker::reason;
use crate::display::Shown;
use crate::fs::Ending;
use crate::sys::fuse_device;
use crate::sys::mount::{Mounted, Way};
use crate::sys::mountpoint;
use crate::sys::unmount;

/// Timeout from a successor's start to serving.
const TAKEOVER: Duration = Duration::from_secs(30);
/// An upgrade is refused after so many kills of the new worker.
const UPGRADE_TRIES: u32 = 5;
/// Prefix of the message of a failed upgrade.
pub const NOT_UPGRADED: &str = "the new program could not take over";
/// The end of a worker that an upgrade replaced, in status: `vaultfs upgrade` looks for it.
pub const UPGRADED: &str = "it was upgraded";

impl Keeper {
    /// Starts a worker that confirms that it can read the state.
    pub(super) fn spawn_and_verify(
        &mut self,
        program: Option<&File>,
        state: &ToWorker,
        starter: Option<&StarterPipe>,
    ) -> Result<Worker, ExitError> {
        let mut worker = Worker::start(&self.spawn_config, program)
            .map_err(|e| ExitError::new(format!("the worker process cannot be started: {e}")))?;
        if let Err(e) = worker.channel.send(state, &[self.state.as_fd()]) {
            self.start_ended = worker.verdict();
            return Err(lost(&e));
        }
        let before = self.worker.replace(worker);
        let said = self.expect(starter);
        let worker = std::mem::replace(&mut self.worker, before);
        match (said?, worker) {
            (ToKeeper::Readable, Some(worker)) => Ok(worker),
            (ToKeeper::Failed(failed), _) => Err(failed),
            (other, _) => Err(unexpected(&other)),
        }
    }

    pub(super) fn connect(&mut self, starter: Option<&StarterPipe>) -> Result<(), ExitError> {
        self.send(&ToWorker::Connect, &[]).map_err(|e| lost(&e))?;
        match self.expect(starter)? {
            ToKeeper::Connected(spec) => {
                self.spawn_config.config.spec = spec;
                Ok(())
            }
            ToKeeper::Failed(failed) => Err(failed),
            other => Err(unexpected(&other)),
        }
    }

    /// Passes the mount to the worker, answers INIT if still open, and publishes the record.
    pub(super) fn hand_mount(&mut self, starter: Option<&StarterPipe>) -> Result<(), ExitError> {
        let (Some(mounted), Some(listener), Some(helper)) = (&self.mounted, &self.listener, &self.helper)
        else {
            return Err(ExitError::new("nothing is mounted"));
        };
        let dev = mounted.dev;
        let facts = MountFacts {
            keeper_pid: std::process::id(),
            fuse_abi: mounted.init.abi(),
            resend: can_resend(mounted),
            keeper_memory: self.memory.clone(),
            restarts: self.restarts,
            last_end: self.last_end.clone(),
            ending: self.ending,
            helper_pid: helper.pid(),
        };
        let is_new = self.init_reply.is_empty();
        let serve = ToWorker::Serve {
            init: mounted.init.as_bytes().to_vec(),
            dev,
            resend: !is_new && facts.resend,
            facts,
        };
        self.send(&serve, &[mounted.device.as_fd(), listener.as_fd(), helper.workers_end()])
            .map_err(|e| lost(&e))?;
        let reply = match self.expect(starter)? {
            ToKeeper::Init(reply) => reply,
            ToKeeper::Failed(failed) => return Err(failed),
            other => return Err(unexpected(&other)),
        };
        if is_new {
            let mounted = self.mounted.as_ref().expect("looked at above");
            fuse_device::answer(&mounted.device, &reply)
                .map_err(|e| ExitError::new(format!("the kernel did not take the answer to INIT: {e}")))?;
            self.init_reply = reply;
        } else if reply != self.init_reply {
            return Err(ExitError::new("it does not speak with the kernel as the worker before it did"));
        }
        self.send(&ToWorker::Go, &[]).map_err(|e| lost(&e))?;
        match self.expect(starter)? {
            ToKeeper::Serving => {}
            other => return Err(unexpected(&other)),
        }
        if let Some(worker) = &mut self.worker {
            worker.serving_since = Some(Instant::now());
        }
        self.supervise_helper();
        self.write_record(dev, None, None)
            .map_err(|e| ExitError::new(format!("the mount cannot be written down: {e}")))
    }

    /// The next message of a starting worker.
    fn expect(&mut self, starter: Option<&StarterPipe>) -> Result<ToKeeper, ExitError> {
        let until = starter.is_none().then(|| Instant::now() + TAKEOVER);
        loop {
            match self.next_event(starter, until) {
                Event::Worker(message) => return Ok(message),
                Event::WorkerGone(status) => {
                    let how = self.how_it_ended(status);
                    self.start_ended = Some(self.exit_message(status));
                    return Err(ExitError::new(format!(
                        "the worker process died ({how}); {}",
                        self.see_log()
                    )));
                }
                Event::Stop | Event::StarterGone if starter.is_some() => {
                    return Err(ExitError::new("interrupted before it was mounted"));
                }
                event @ (Event::Stop | Event::Reload) => self.later.push_back(event),
                Event::Timeout if until.is_some() => {
                    return Err(ExitError::new("the worker process took too long to start"));
                }
                Event::StarterGone | Event::Request | Event::Timeout => {}
            }
        }
    }

    /// What the exit says of the requests in progress.
    pub(super) fn exit_message(&self, status: Option<ExitStatus>) -> Ending {
        self.worker.as_ref().map(|worker| worker.exit_message(status)).unwrap_or_default()
    }

    /// Records a worker's exit for the requests in progress. One that has not served had none.
    pub(super) fn record_exit(&mut self, ending: Ending) {
        if self.worker.as_ref().is_some_and(|worker| worker.serving_since.is_some()) {
            self.ending = ending;
        }
    }

    /// The worker died: restarts it, now or after a pause.
    pub(super) fn worker_died(&mut self, ending: Ending, how: String) {
        let has_served = self.worker.take().is_some_and(|worker| worker.has_served(self.state.as_fd()));
        self.restarts += 1;
        self.last_end = Some(how.clone());
        let mount_ends = self.goal != Goal::Serve;
        match self.restart_policy.died(Instant::now(), ending, has_served, mount_ends) {
            Some(Duration::ZERO) => {
                tracing::error!("the worker died ({how}): restarting it");
                self.replace_worker();
            }
            Some(pause) => {
                tracing::error!("the worker died again ({how}): restart in {pause:?}");
                self.write_down_the_unsaved(None);
                self.phase = Phase::BackingOff(Instant::now() + pause);
            }
            None => self.give_up(&how),
        }
    }

    /// Starts a worker that takes over, and continues towards the mount's goal. A failed takeover
    /// counts as a death.
    pub(super) fn replace_worker(&mut self) {
        self.phase = Phase::Serving;
        if let Err(failed) = self.take_over(None) {
            tracing::error!("takeover failed: {failed}");
            let ending = self.verdict_of_start();
            if let Some(worker) = &mut self.worker {
                worker.kill();
            }
            self.write_down_the_unsaved(None);
            return self.worker_died(ending, format!("its takeover failed: {failed}"));
        }
        tracing::info!(restarts = self.restarts, "takeover complete: another worker serves the mount");
        match self.goal {
            Goal::Serve => {}
            Goal::Drain => self.drain(),
            // Its session ends at once, and then it stores what is unsaved.
            Goal::Leave => {
                let time = self.spawn_config.config.drain + DRAIN_MARGIN;
                self.phase = Phase::FinalDrain(Instant::now() + time);
            }
        }
    }

    /// For commands that find no worker to ask.
    fn write_down_the_unsaved(&self, broken: Option<String>) {
        let Some(dev) = self.dev() else { return };
        let unsaved = self.unsaved_in_state();
        for left in unsaved.iter().flatten().filter(|_| broken.is_some()) {
            tracing::error!(name = left.name, "not stored: {}", reason(left));
        }
        if let Err(e) = self.write_record(dev, broken, unsaved) {
            tracing::error!("the record cannot be written: {e}");
        }
    }

    fn take_over(&mut self, worker: Option<Worker>) -> Result<(), ExitError> {
        let fresh_mount =
            worker.is_none() && self.mounted.as_ref().is_some_and(|mounted| !can_resend(mounted));
        let worker = match worker {
            Some(worker) => worker,
            None => self.spawn_and_verify(None, &ToWorker::State { takeover: true, fresh_mount }, None)?,
        };
        self.worker = Some(worker);
        self.connect(None)?;
        if fresh_mount && self.is_mounted() {
            self.remount()?;
        }
        self.hand_mount(None)
    }

    /// For kernels that cannot resend requests: requests in flight fail, and a new mount replaces
    /// the old one.
    fn remount(&mut self) -> Result<(), ExitError> {
        if let Some(dev) = self.dev() {
            // Only needed if a stuck thread of the worker still holds the device.
            let _ = unmount::abort(dev);
        }
        self.abandon();
        // The same directory, if it is where it was: nothing of it was kept open.
        let failed = |e: &dyn std::fmt::Display| ExitError::new(e.to_string());
        let target = mountpoint::check(self.mountpoint(), true).map_err(|e| failed(&e))?;
        if target.path() != self.mountpoint() {
            return Err(failed(&format_args!("{} leads elsewhere now", self.mountpoint().shown())));
        }
        self.mount(&target, Way::AtOnce)?;
        tracing::info!(mountpoint = %target.path().shown(), "remounted");
        Ok(())
    }

    /// A new program takes over. It must be able to read the state before the old worker ends.
    pub(super) fn upgrade(&mut self, path: &Path) {
        let ready = File::open(path).map_err(|e| ExitError::new(format!("{}: {e}", path.shown()))).and_then(
            |program| self.spawn_and_verify_unless_killed(&program).map(|worker| (program, worker)),
        );
        if !self.mounted.as_ref().is_some_and(can_resend) {
            let why = "this kernel cannot hand a mount over (Linux 6.9 can): unmount and mount again";
            return self.notify(&ToWorker::NotUpgraded(why.to_owned()));
        }
        let (program, successor) = match ready {
            Ok(ready) => ready,
            Err(failed) => {
                tracing::error!("no upgrade to {}: {failed}", path.shown());
                return self.notify(&ToWorker::NotUpgraded(failed.message));
            }
        };
        tracing::info!("takeover by {}", path.shown());
        // The successor gets the unanswered requests again; none of them is to blame.
        self.record_exit(Ending::Ordered);
        if let Some(old) = &mut self.worker {
            old.kill();
        }
        self.restarts += 1;
        self.last_end = Some(UPGRADED.to_owned());
        match self.take_over(Some(successor)) {
            Ok(()) => self.spawn_config.program = Some(program),
            Err(failed) => {
                tracing::error!("takeover by the new program failed, the old one continues: {failed}");
                self.last_end = Some(match self.verdict_of_start() {
                    // Killed from outside: a retry may succeed.
                    Ending::Killed => failed.message,
                    Ending::Crashed | Ending::Ordered => format!("{NOT_UPGRADED}: {failed}"),
                });
                if let Some(worker) = &mut self.worker {
                    worker.kill();
                }
                self.worker = None;
                self.replace_worker();
            }
        }
    }

    /// What the exit of a worker that never served says of the next one.
    fn verdict_of_start(&mut self) -> Ending {
        let seen = self.start_ended.take();
        seen.or_else(|| self.worker.as_mut().and_then(Worker::verdict)).unwrap_or(Ending::Crashed)
    }

    /// A worker of the new program; a kill from outside is retried.
    fn spawn_and_verify_unless_killed(&mut self, program: &File) -> Result<Worker, ExitError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let state = ToWorker::State { takeover: true, fresh_mount: false };
            match self.spawn_and_verify(Some(program), &state, None) {
                Err(_) if self.start_ended.take() == Some(Ending::Killed) && tries < UPGRADE_TRIES => {}
                other => return other,
            }
        }
    }

    fn see_log(&self) -> String {
        see_log(&self.spawn_config.config.log_place)
    }

    /// Workers keep dying: from now on every request fails.
    fn give_up(&mut self, how: &str) {
        let path = self.mountpoint().shown().to_string();
        let again = restart_policy::retry_after();
        self.retry_at = Some(Instant::now() + again);
        let again = again.as_secs();
        let why = format!(
            "its worker keeps dying ({how}; {}): everything on it fails with EIO; another one is tried in {again} s, and \
             so on; `vaultfs unmount --force {path}` removes it, and what was not stored is lost then",
            self.see_log()
        );
        tracing::error!("{path}: {why}");
        // The socket is closed: commands find the record.
        self.listener = None;
        self.write_down_the_unsaved(Some(why));
        if let Some(mounted) = self.mounted.as_ref().filter(|mounted| can_resend(mounted)) {
            let _ = fuse_device::resend(&mounted.device);
        }
        self.phase = Phase::Failed;
        if self.goal != Goal::Serve {
            self.later.push_back(Event::Stop);
        }
    }
}

impl Keeper {
    /// The cause of the deaths may be over: one retry. Requests wait meanwhile.
    pub(super) fn retry(&mut self) {
        tracing::info!("restart: retrying with another worker");
        self.retry_at = None;
        let made = self.dev().map(|dev| RuntimeDir::listen(dev, std::process::id()));
        match made {
            Some(Ok((directory, listener))) => {
                (self.directory, self.listener) = (directory, Some(listener));
                self.replace_worker();
            }
            Some(Err(e)) => self.give_up(&format!("the control socket cannot be made: {e}")),
            None => {}
        }
    }
}

/// Whether the kernel resends what a dead worker had read; a test may pretend that it does not.
fn can_resend(mounted: &Mounted) -> bool {
    #[cfg(debug_assertions)]
    if std::env::var_os("VAULTFS_TEST_NO_RESEND").is_some() {
        return false;
    }
    mounted.init.resend()
}

fn unexpected(message: &ToKeeper) -> ExitError {
    ExitError::new(format!("the worker sent an unexpected {message:?}"))
}

fn lost(e: &io::Error) -> ExitError {
    ExitError::new(format!("the worker cannot be reached: {e}"))
}
