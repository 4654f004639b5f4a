//! Waiting changes and the running command, stored at each change: a dead worker must lose no run,
//! and its successor must not start a second command while the first one runs.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::daemon::hooks::debounce::{ChangeEvent, Debouncer, Run};
use crate::sys::process;

/// Stores the state for a successor, or deletes it.
pub type SaveState = Arc<dyn Fn(Option<Vec<u8>>) + Send + Sync>;

/// The leader of a command's process group, with its start time: the number may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Also the process group.
    pub pid: u32,
    started: u64,
}

impl Leader {
    /// Of a living process.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: process::started(pid)? })
    }

    /// Whether it still lives.
    pub fn lives(self) -> bool {
        process::started(self.pid) == Some(self.started) && !process::is_zombie(self.pid)
    }
}

/// A started run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its names.
    pub run: Run,
    /// `None` before its process exists.
    pub leader: Option<Leader>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedRuns {
    waiting: Vec<ChangeEvent>,
    many: bool,
    running: Option<Running>,
}

struct RunnerState {
    debouncer: Debouncer,
    running: Option<Running>,
}

/// The waiting changes and the running command; cheap to clone.
#[derive(Clone)]
pub struct Runs {
    state: Arc<Mutex<RunnerState>>,
    save_state: SaveState,
}

impl Runs {
    /// Restores the state of a dead worker. The caller waits for a command that still runs.
    pub fn restore(kept: Option<&[u8]>, save_state: SaveState, now: Instant) -> (Self, Option<Running>) {
        let mut debouncer = Debouncer::default();
        let mut alive = None;
        let kept: Option<SavedRuns> = kept.and_then(|bytes| {
            let read = postcard::from_bytes(bytes);
            read.inspect_err(|e| tracing::error!("the waiting commands cannot be read: {e}")).ok()
        });
        if let Some(kept) = kept {
            kept.waiting.into_iter().for_each(|news| debouncer.note(news, now));
            if kept.many {
                debouncer.note_many(now);
            }
            match kept.running {
                Some(running) if running.leader.is_some_and(Leader::lives) => {
                    debouncer.begin();
                    alive = Some(running);
                }
                Some(Running { run, leader: Some(_) }) => {
                    tracing::warn!(
                        "--on-change for {run}: it ended while no worker ran; the exit status is lost"
                    );
                }
                // It was not there yet.
                Some(Running { run: Run::One(news), leader: None }) => debouncer.note(news, now),
                Some(Running { run: Run::Many, leader: None }) => debouncer.note_many(now),
                None => {}
            }
        }
        let runs = Self {
            state: Arc::new(Mutex::new(RunnerState { debouncer, running: alive.clone() })),
            save_state,
        };
        runs.change(|_| ());
        (runs, alive)
    }

    fn state(&self) -> MutexGuard<'_, RunnerState> {
        self.state.lock()
    }

    fn change<T>(&self, work: impl FnOnce(&mut RunnerState) -> T) -> T {
        let mut state = self.state();
        let done = work(&mut state);
        let (waiting, many) = state.debouncer.waiting();
        let idle = waiting.is_empty() && !many && state.running.is_none();
        let kept = SavedRuns { waiting, many, running: state.running.clone() };
        // Under the lock, so that the last write has the latest state.
        let lost = |e: &postcard::Error| tracing::error!("the waiting commands cannot be recorded: {e}");
        (self.save_state)(
            (!idle).then(|| postcard::to_allocvec(&kept).inspect_err(lost)).and_then(Result::ok),
        );
        done
    }

    /// The waiting names.
    pub fn waiting(&self) -> Vec<String> {
        self.state().debouncer.waiting().0.into_iter().map(|news| news.name).collect()
    }

    /// Adds a change.
    pub fn note(&self, news: ChangeEvent) {
        self.change(|state| state.debouncer.note(news, Instant::now()));
    }

    /// Adds a change of too many names to list.
    pub fn note_many(&self) {
        self.change(|state| state.debouncer.note_many(Instant::now()));
    }

    /// When the next run is due.
    pub fn due(&self) -> Option<Instant> {
        self.state().debouncer.due()
    }

    /// Starts the run that is due.
    pub fn take(&self) -> Option<Run> {
        self.change(|state| {
            let run = state.debouncer.take(Instant::now())?;
            state.running = Some(Running { run: run.clone(), leader: None });
            Some(run)
        })
    }

    /// The started command has a process.
    pub fn started(&self, pid: u32) {
        self.change(|state| {
            if let Some(running) = &mut state.running {
                running.leader = Leader::of(pid);
            }
        });
    }

    /// It has ended.
    pub fn ended(&self) {
        self.change(|state| {
            state.debouncer.ended();
            state.running = None;
        });
    }

    /// Drops and returns the waiting runs: no run starts any more.
    pub fn close(&self) -> Vec<Run> {
        self.change(|state| {
            let (waiting, many) = std::mem::take(&mut state.debouncer).waiting();
            waiting.into_iter().map(Run::One).chain(many.then_some(Run::Many)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::hooks::debounce::{EventKind, QUIET};

    fn news(name: &str) -> ChangeEvent {
        ChangeEvent { name: name.into(), version: Some("2".into()), event: EventKind::Changed }
    }

    #[test]
    fn a_successor_has_what_waited_and_knows_what_runs() {
        let kept: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
        let save_state: SaveState = {
            let kept = kept.clone();
            Arc::new(move |bytes| *kept.lock() = bytes)
        };
        let after_death = || Runs::restore(kept.lock().clone().as_deref(), Arc::new(drop), Instant::now());
        let (runs, _) = Runs::restore(None, save_state, Instant::now() - 2 * QUIET);
        assert!(kept.lock().is_none(), "nothing is kept of nothing");
        runs.state().debouncer.note(news("a"), Instant::now() - QUIET);
        assert_eq!(runs.take(), Some(Run::One(news("a"))));
        runs.note(news("b"));

        let (next, alive) = after_death();
        assert_eq!(alive, None);
        assert_eq!(next.close(), [Run::One(news("a")), Run::One(news("b"))], "a had not begun");

        runs.started(std::process::id());
        let (next, alive) = after_death();
        assert!(alive.is_some_and(|running| running.run == Run::One(news("a"))));
        assert_eq!(next.due(), None, "one runs");
        next.ended();
        assert!(next.due().is_some());
        assert_eq!(next.close(), [Run::One(news("b"))]);

        runs.state().running.as_mut().unwrap().leader.as_mut().unwrap().started += 1;
        runs.note(news("b"));
        let (next, alive) = after_death();
        assert!(alive.is_none() && next.due().is_some(), "another process has its number");

        runs.ended();
        runs.close();
        assert!(kept.lock().is_none());
    }
}
