//! `--on-change CMD`: a command that is run when a secret was changed elsewhere, so that nginx reloads its new key.
//!
//! 1. [`queue`] decides when: news about one name within a short time is one run, one command runs at a time, and of
//!    very many names there is one run for all.
//! 2. [`command`] runs it: through `/bin/sh -c`, as the mount's user, with a clean environment that names what changed and
//!    never holds a value, in a process group of its own, with a time limit.
//! 3. The command will read the mount. So it is a process of its own, nothing that answers requests waits for it, and it
//!    begins only when the mount shows what it is told about (`is_shown`), or has had time to.
//! 4. What is saved on this mount is no news: only changes made elsewhere are. A command may therefore write to the mount.
//! 5. A command outlives the worker that started it, should that be killed. Its time is limited all the same, by
//!    timeout(1), which ends it a little later than the worker would.

pub mod command;
pub mod queue;

use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use command::Job;
use queue::{Queue, Run};

pub use queue::{Event, News};

/// How long the mount may take to show a change before the command is run all the same.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// How often it is asked.
const ASK: Duration = Duration::from_millis(20);

/// Runs the job for what `changes` brings, until they end.
pub async fn follow<C>(
    mut changes: broadcast::Receiver<C>,
    news: impl Fn(C) -> News,
    is_shown: impl Fn() -> bool + Clone + Send + Sync + 'static,
    job: Job,
) where
    C: Clone,
{
    let mut queue = Queue::default();
    let mut running: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        let due = queue.due().map(Instant::from_std);
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => queue.note(news(change), Instant::now().into_std()),
                Err(RecvError::Lagged(_)) => queue.note_many(Instant::now().into_std()),
                Err(RecvError::Closed) => return,
            },
            () = until(due) => {
                if let Some(run) = queue.take(Instant::now().into_std()) {
                    running = Some(tokio::spawn(one(job.clone(), run, is_shown.clone())));
                }
            }
            () = ended(&mut running) => {
                running = None;
                queue.ended();
            }
        }
    }
}

async fn one(job: Job, run: Run, is_shown: impl Fn() -> bool + Send + Sync) {
    let end = Instant::now() + SHOWN_WITHIN;
    while !is_shown() && Instant::now() < end {
        tokio::time::sleep(ASK).await;
    }
    match job.run(&run).await {
        Ok(()) => tracing::info!("--on-change was run for {run}"),
        Err(e) => tracing::error!("--on-change for {run}: {e}"),
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn ended(running: &mut Option<tokio::task::JoinHandle<()>>) {
    match running {
        // A panic in there is in the log.
        Some(running) => drop(running.await),
        None => std::future::pending().await,
    }
}
