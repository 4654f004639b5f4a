//! The shutdown of a mount: the worker drains, the mount is removed, the worker ends, unsaved
//! writes are reported.
//!
//! A worker that does not complete a step is killed once, and its successor repeats the step. The
//! connection's descriptor is closed before the unmount, so that each request fails at once and the
//! unmount waits for none.

use std::process::ExitStatus;
use std::time::Instant;

use crate::daemon::keeper::worker_process::ending;
use crate::daemon::keeper::{DRAIN_MARGIN, END_PATIENCE, GRACE, Goal, Keeper, Phase};
use crate::daemon::protocol::{EXIT_UNSAVED, ToWorker};
use crate::daemon::state_log;
use crate::daemon::worker::reason;
use crate::display::Shown;
use crate::fs::{Unsaved, unsaved_from_journal};

impl Keeper {
    /// Kills a worker that does not complete a step of the shutdown, for its successor to do. False
    /// if that was tried.
    pub(super) fn replace(&mut self, why: &str) -> bool {
        let Some(worker) = self.worker.as_mut().filter(|_| !self.replaced) else {
            tracing::error!("the worker is not replaced once more: {why}");
            return false;
        };
        worker.kill_for(why.to_owned());
        self.replaced = true;
        self.phase = Phase::Draining(Instant::now() + END_PATIENCE);
        true
    }

    pub(super) fn drain(&mut self) {
        self.goal = Goal::Drain;
        self.notify(&ToWorker::Drain);
        self.phase = Phase::Draining(Instant::now() + self.spawn_config.config.drain + DRAIN_MARGIN);
    }

    /// Unmounts on request; the worker then sees the end of its session.
    pub(super) fn leave(&mut self) {
        self.goal = Goal::Leave;
        let Some(mounted) = &self.mounted else { return self.end_worker() };
        let config = &self.spawn_config.config;
        let mountpoint = &config.mountpoint;
        match mounted.unmount_or_detach(mountpoint) {
            Ok(_) if self.is_mounted() => {
                tracing::error!("another mount covers {}: it is left in place", mountpoint.shown());
                self.end_worker();
            }
            Ok(gone) => {
                if !gone {
                    tracing::warn!("{} was in use: detached", mountpoint.shown());
                }
                self.phase = Phase::Unmounting(Instant::now() + GRACE);
            }
            Err(e) => {
                tracing::error!("{} cannot be unmounted: {e}", mountpoint.shown());
                self.end_worker();
            }
        }
    }

    pub(super) fn end_worker(&mut self) {
        self.goal = Goal::Leave;
        self.notify(&ToWorker::End);
        self.phase = Phase::Ending(Instant::now() + END_PATIENCE);
    }

    /// The worker has ended as requested: removes what is left of the mount.
    pub(super) fn finish(mut self, status: Option<ExitStatus>) -> u8 {
        tracing::info!("the worker ended: {}", ending(status));
        if !has_accounted(status) {
            return self.end_without_worker();
        }
        self.abandon();
        status.and_then(|s| s.code()).and_then(|c| u8::try_from(c).ok()).unwrap_or(1)
    }

    /// Without a report of a worker: reads the unsaved writes from the state.
    pub(super) fn end_without_worker(&mut self) -> u8 {
        let left = self.unsaved_in_state();
        for left in left.iter().flatten() {
            tracing::error!(name = left.name, "not stored when the mount ended: {}", reason(left));
        }
        self.abandon();
        match left {
            Some(left) if !left.is_empty() => EXIT_UNSAVED,
            _ => 1,
        }
    }

    /// The unsaved writes in the state; `None` if it cannot be read.
    pub(super) fn unsaved_in_state(&self) -> Option<Vec<Unsaved>> {
        match state_log::plain_records(&self.state) {
            Ok(records) => Some(unsaved_from_journal(records)),
            Err(e) => {
                tracing::error!("the unsaved writes cannot be named: {e}");
                None
            }
        }
    }

    /// Closes the connection and removes the mount, if it still exists.
    pub(super) fn abandon(&mut self) {
        let Some(mounted) = self.mounted.take() else { return };
        self.helper = None;
        let (mountpoint, dev) = (self.mountpoint(), mounted.dev);
        match mounted.abandon(mountpoint) {
            Ok(true) => tracing::info!("unmounted"),
            Ok(false) => tracing::error!("another mount covers {}: it is left in place", mountpoint.shown()),
            Err(e) => tracing::error!("{} cannot be unmounted: {e}", mountpoint.shown()),
        }
        self.directory.leave(dev, std::process::id());
    }

    /// Removes the mount's files from the runtime directory; existing connections stay.
    pub(super) fn withdraw(&self) {
        if let Some(mounted) = &self.mounted {
            self.directory.leave(mounted.dev, std::process::id());
        }
    }
}

/// Whether a worker with this exit has stored or reported its unsaved writes.
pub(super) fn has_accounted(status: Option<ExitStatus>) -> bool {
    matches!(status.and_then(|s| s.code()), Some(code) if code == 0 || code == i32::from(EXIT_UNSAVED))
}
