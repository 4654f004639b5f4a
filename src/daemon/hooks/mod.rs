//! `--on-change CMD`: a command that is run when a secret was changed elsewhere, so that nginx reloads its new key.
//!
//! 1. [`queue`] decides when: news about one name within a short time is one run, one command runs at a time, and of
//!    very many names there is one run for all.
//! 2. [`command`] runs it: through `/bin/sh -c`, as the mount's user, with a clean environment that names what changed and
//!    never holds a value, in a process group of its own, with a time limit.
//! 3. The command will read the mount. So it is a process of its own, nothing that answers requests waits for it, and it
//!    begins only when the mount shows what it is told about (`is_shown`), or has had time to.
//! 4. What is saved on this mount is no news: only changes made elsewhere are. A command may therefore write to the mount. A
//!    change may be heard of before the answer to it: whether all that was heard of a name is our own (`is_own`) is asked
//!    when the run is due.
//! 5. A command outlives the worker that started it, should that be killed, and what waits does, too ([`runs`]): the
//!    successor waits for the one that runs before it runs the next. Its time is limited all the same, by timeout(1).
//! 6. When the mount ends, what waits is not run, and what runs is ended: SIGTERM to its process group, and SIGKILL
//!    [`command::END`] later.

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

/// How long the mount may take to show a change before the command is run all the same.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// How often it is asked.
const ASK: Duration = Duration::from_millis(20);

/// What there is between workers.
pub struct Memory {
    /// What the worker before this one kept.
    pub kept: Option<Vec<u8>>,
    /// Keeps for the next one.
    pub save_state: SaveState,
}

/// Tells the commands that the mount ends.
#[derive(Debug)]
pub struct Following {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Following {
    /// Ends the command that runs, and runs no other.
    pub async fn end(self) {
        self.stop.send_replace(true);
        if let Err(e) = self.task.await {
            tracing::error!("--on-change did not end well: {e}");
        }
    }
}

/// What is asked of the mount about the changes `C` that it tells.
pub trait Source<C>: Clone + Send + Sync + 'static {
    /// What the command is told.
    fn news(&self, change: &C) -> ChangeEvent;
    /// Whether the mount shows every change that it told.
    fn is_shown(&self) -> bool;
    /// Whether it made the change itself.
    fn is_own(&self, change: &C) -> bool;
}

/// Runs the job for what `changes` brings, in a task of `runtime`.
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

/// What was heard of a name that waits.
struct Received<C> {
    /// What nobody knows to be our own yet.
    open: Vec<C>,
    /// Some of it is surely not.
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

/// Whether all that was heard of what a run is for was made by the mount itself. It is forgotten with that.
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

    /// Waits for what a worker before this one started, which is no child of ours.
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
