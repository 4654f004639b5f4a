//! How a mount ends: its worker drains, the mount goes, the worker ends, and what is not stored is named.
//!
//! A worker that does not do its part is killed once, for another one to do it. The descriptor of the connection is
//! closed before anything is unmounted: from then on each request fails at once, and unmounting waits for none.

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
    /// A worker that does not do what the end needs is killed, for another one to do it. False if that was tried.
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

    /// The worker is gone, as it was to be: nothing may be left of the mount.
    pub(super) fn finish(mut self, status: Option<ExitStatus>) -> u8 {
        tracing::info!("the worker ended: {}", ending(status));
        if !has_accounted(status) {
            return self.end_without_worker();
        }
        self.abandon();
        status.and_then(|s| s.code()).and_then(|c| u8::try_from(c).ok()).unwrap_or(1)
    }

    /// No worker has said what the vault does not have: this is read from what the last one wrote down.
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

    /// What the vault does not have, by what the last worker wrote down; `None` if that cannot be read.
    pub(super) fn unsaved_in_state(&self) -> Option<Vec<Unsaved>> {
        match state_log::plain_records(&self.state) {
            Ok(records) => Some(unsaved_from_journal(records)),
            Err(e) => {
                tracing::error!("what is not stored cannot be named: {e}");
                None
            }
        }
    }

    /// Lets go of the connection and removes the mount, if it is still there and still ours.
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

    /// Nobody shall find this mount any more; who is connected already stays so.
    pub(super) fn withdraw(&self) {
        if let Some(mounted) = &self.mounted {
            self.directory.leave(mounted.dev, std::process::id());
        }
    }
}

/// Whether a worker that ended so has stored, or named, what was unsaved.
pub(super) fn has_accounted(status: Option<ExitStatus>) -> bool {
    matches!(status.and_then(|s| s.code()), Some(code) if code == 0 || code == i32::from(EXIT_UNSAVED))
}
