//! How a request begins and ends: [`Replay`](crate::fs::recovery::replay::Replay) knows the rules.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::recovery::replay::{RESENT_WITHIN, number_of};
use crate::fs::types::ctx::{Caller, RequestCtx};
use crate::fs::types::errno::Result;
use crate::fs::{FileSystem, Step, Work};
use crate::vault::Call;

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

    /// After a death: in a while these requests will not be resent, and a handle with an OPEN that
    /// nobody sent again counts as closed.
    pub(in crate::fs) fn expire_requests(self: &Arc<Self>, requests: Vec<u64>) {
        let opens = self.handles.unacknowledged();
        if requests.is_empty() && opens.is_empty() {
            return;
        }
        let (fs, env) = (self.clone(), self.env.clone());
        env.spawn(async move {
            tokio::time::sleep(RESENT_WITHIN).await;
            for handle in opens {
                let Some(file) = fs.handles.expire(&handle) else { continue };
                if fs.let_go(file, handle.fh) {
                    fs.store_closed(file, &Call::foreground(fs.env.deadline())).await;
                }
                if !fs.inodes.lock().is_held(file.ino) {
                    // Nor has the kernel.
                    fs.handles.close(handle.fh);
                }
            }
            requests.into_iter().for_each(|request| fs.completed(request));
        });
    }
}
