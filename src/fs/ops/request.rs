//! How a request begins and ends: [`Replay`](crate::fs::recovery::replay::Replay) knows the rules.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::recovery::replay::number_of;
use crate::fs::types::ctx::{Caller, RequestCtx};
use crate::fs::types::errno::Result;
use crate::fs::{FileSystem, Step, Work};

impl FileSystem {
    /// Does `work`, which never waits, for the request `unique`.
    pub fn run_now<T>(
        &self,
        unique: u64,
        caller: Caller,
        work: impl FnOnce(&RequestCtx) -> Result<T>,
    ) -> Result<T> {
        work(&self.replay.begin(unique, caller)?.ctx)
    }

    /// Begins `work` for the request `unique`: polled once, it is done if nothing has to be asked
    /// of the vault. [`FileSystem::completed`] ends a request that changed something, waited, or
    /// was resent.
    pub fn run<'a, T: 'a, W: Work<T> + 'a>(
        self: &Arc<Self>,
        unique: u64,
        caller: Caller,
        work: impl FnOnce(Arc<Self>, RequestCtx) -> W,
    ) -> Step<'a, T> {
        self.replay.run(unique, caller, |ctx| work(self.clone(), ctx))
    }

    /// The time left for the request.
    pub fn time_left(&self, unique: u64) -> Duration {
        self.replay.time_left(unique)
    }

    /// The request `unique` has been answered: it will not be resent.
    pub fn completed(&self, unique: u64) {
        let id = number_of(unique);
        self.handles.acknowledge_open(id);
        self.replay.completed(id);
    }
}
