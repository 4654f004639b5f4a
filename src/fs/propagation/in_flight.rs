//! Requests in flight at the vault, by the directory that the kernel keeps locked meanwhile.
//!
//! In the kernel a rename waits for them and blocks what comes after it. A caller that is about to
//! order a rename waits here first, where it blocks nothing.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::fs::propagation::Propagator;

/// How many are out, by directory.
#[derive(Debug, Default)]
pub(in crate::fs) struct InFlight {
    dirs: Mutex<HashMap<u64, usize>>,
    less: Notify,
}

/// One that is out.
pub(in crate::fs) struct InFlightGuard(Arc<InFlight>, u64);

impl InFlight {
    /// One more, until what is returned is dropped.
    pub fn enter(self: &Arc<Self>, dir: u64) -> InFlightGuard {
        *self.dirs.lock().entry(dir).or_default() += 1;
        InFlightGuard(self.clone(), dir)
    }

    /// Waits until none of that directory is out.
    pub async fn quiet(&self, dir: u64) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            less.as_mut().enable();
            if !self.dirs.lock().contains_key(&dir) {
                return;
            }
            less.await;
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let mut dirs = self.0.dirs.lock();
        if let Some(count) = dirs.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                dirs.remove(&self.1);
            }
        }
        drop(dirs);
        self.0.less.notify_waiters();
    }
}

impl Propagator {
    /// Does `work`; while it waits, the kernel holds the lock of directory `parent`.
    pub(in crate::fs) async fn within<T>(&self, parent: u64, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut out = None;
        poll_fn(|cx| {
            let step = work.as_mut().poll(cx);
            if step.is_pending() {
                out.get_or_insert_with(|| self.in_flight.enter(parent));
            }
            step
        })
        .await
    }
}
