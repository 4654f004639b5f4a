//! `--on-change CMD`: runs a command when a secret was changed elsewhere, so that nginx reloads its
//! new key.
//!
//! 1. [`debounce`] decides when: changes of one name within a short time are one run, one command
//!    runs at a time, and very many names share one run.
//! 2. [`command`] runs it: through `/bin/sh -c`, as the mount's user, with a clean environment that
//!    names what changed and never holds a value, in a process group of its own, with a time limit.
//! 3. The command will read the mount. So no thread that answers requests waits for it, and it
//!    starts only when the mount shows the change (`is_shown`) or after a timeout.
//! 4. Only changes made elsewhere run it, so a command may write to the mount. A change of this
//!    mount may be observed before its answer: whether all changes of a name are its own (`is_own`)
//!    is checked when the run is due.
//! 5. A command and the waiting changes outlive a killed worker ([`runner`]): the successor waits
//!    for the running command before it runs the next. timeout(1) limits its time in any case.
//! 6. When the mount ends, waiting changes are dropped and a running command is ended: SIGTERM to
//!    its process group, SIGKILL [`command::END`] later.

pub mod command;
pub mod debounce;
pub mod runner;

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::daemon::hooks::command::Job;
use crate::daemon::hooks::debounce::Run;
use crate::daemon::hooks::runner::{Running, Runs, SaveState};

pub use crate::daemon::hooks::debounce::{ChangeEvent, EventKind};

/// After this time the command runs although the mount does not show the change.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// Interval between checks whether it is shown.
const ASK: Duration = Duration::from_millis(20);

/// State that outlives a worker.
pub struct Memory {
    /// What the previous worker stored.
    pub kept: Option<Vec<u8>>,
    /// Stores it for the next worker.
    pub save_state: SaveState,
}

/// Ends the commands of a mount that ends.
#[derive(Debug)]
pub struct Following {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Following {
    /// Ends the running command and starts no other.
    pub async fn end(self) {
        self.stop.send_replace(true);
        if let Err(e) = self.task.await {
            tracing::error!("--on-change did not end well: {e}");
        }
    }
}

/// What the mount reports about its changes `C`.
pub trait Source<C>: Clone + Send + Sync + 'static {
    /// The event for the command.
    fn news(&self, change: &C) -> ChangeEvent;
    /// Whether the mount shows every reported change.
    fn is_shown(&self) -> bool;
    /// Whether it made the change itself.
    fn is_own(&self, change: &C) -> bool;
}

/// Runs the job for each of `changes`, in a task of `runtime`.
pub fn follow<C: Clone + Send + 'static>(
    runtime: &tokio::runtime::Handle,
    changes: broadcast::Receiver<C>,
    source: impl Source<C>,
    job: Job,
    memory: Memory,
) -> Following {
    let (stop, stopped) = watch::channel(false);
    let (runs, alive) = Runs::restore(memory.kept.as_deref(), memory.save_state, Instant::now().into_std());
    let task = runtime.spawn(run_all(changes, source, Runner { job, runs, stopped }, alive));
    Following { stop, task }
}

#[derive(Clone)]
struct Runner {
    job: Job,
    runs: Runs,
    stopped: watch::Receiver<bool>,
}

async fn run_all<C: Clone + Send + 'static>(
    mut changes: broadcast::Receiver<C>,
    source: impl Source<C>,
    runner: Runner,
    alive: Option<Running>,
) {
    let runs = runner.runs.clone();
    let mut received: HashMap<String, Received<C>> = runs
        .waiting()
        .into_iter()
        .map(|name| (name, Received { others: true, ..Received::default() }))
        .collect();
    let mut running = alive.map(|running| tokio::spawn(runner.clone().go_on_with(running)));
    loop {
        let due = runs.due().map(Instant::from_std);
        if due.is_none() && running.is_none() {
            received.clear();
        }
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => {
                    let news = source.news(&change);
                    received.entry(news.name.clone()).or_default().add(change, &source);
                    runs.note(news);
                }
                Err(RecvError::Lagged(_)) => runs.note_many(),
                Err(RecvError::Closed) => break,
            },
            () = until(due) => {
                match runs.take() {
                    Some(run) if is_own(&run, &mut received, &source) => runs.ended(),
                    Some(run) => running = Some(tokio::spawn(runner.clone().one(run, source.clone()))),
                    None => {}
                }
            }
            () = ended(&mut running) => {
                running = None;
                runs.ended();
            }
            () = command::stop_requested(runner.stopped.clone()) => break,
        }
    }
    for run in runs.close() {
        tracing::warn!("--on-change for {run}: not run, the mount ends");
    }
    if running.is_some() {
        ended(&mut running).await;
        runs.ended();
    }
}

/// The observed changes of a waiting name.
struct Received<C> {
    /// Changes that are not known to be of this mount.
    open: Vec<C>,
    /// At least one is certainly not of this mount.
    others: bool,
}

impl<C> Default for Received<C> {
    fn default() -> Self {
        Self { open: Vec::new(), others: false }
    }
}

impl<C> Received<C> {
    fn add(&mut self, change: C, source: &impl Source<C>) {
        self.open.retain(|change| !source.is_own(change));
        self.open.push(change);
        self.others |= self.open.len() > debounce::MOST;
        if self.others {
            self.open.clear();
        }
    }
}

/// Whether this mount made all changes of the names of a run; forgets them.
fn is_own<C>(run: &Run, received: &mut HashMap<String, Received<C>>, source: &impl Source<C>) -> bool {
    let Run::One(news) = run else {
        received.clear();
        return false;
    };
    let received = received.remove(&news.name);
    received
        .is_some_and(|received| !received.others && received.open.iter().all(|change| source.is_own(change)))
}

impl Runner {
    async fn one<C>(self, run: Run, source: impl Source<C>) {
        let end = Instant::now() + SHOWN_WITHIN;
        while !source.is_shown() && Instant::now() < end && !*self.stopped.borrow() {
            tokio::time::sleep(ASK).await;
        }
        if *self.stopped.borrow() {
            return tracing::warn!("--on-change for {run}: not run, the mount ends");
        }
        match self.job.run(&run, |pid| self.runs.started(pid), self.stopped.clone()).await {
            Ok(()) => tracing::info!("--on-change was run for {run}"),
            Err(e) => tracing::error!("--on-change for {run}: {e}"),
        }
    }

    /// Waits for a command that a previous worker started, which is no child of this process.
    async fn go_on_with(self, Running { run, leader }: Running) {
        let Some(leader) = leader else { return };
        tracing::info!("--on-change for {run} continues after a takeover");
        match command::outlive(leader, self.job.limit, self.stopped).await {
            Ok(()) => {
                tracing::warn!("--on-change for {run}: it ended; the exit status is lost with its worker")
            }
            Err(e) => tracing::error!("--on-change for {run}: {e}"),
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn ended(running: &mut Option<JoinHandle<()>>) {
    match running {
        // A panic in there is in the log.
        Some(running) => drop(running.await),
        None => std::future::pending().await,
    }
}
