//! What the processes of a mount tell the file system, and ask it beside the kernel's requests.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::fs::report::status::{Processes, Status};
use crate::fs::report::{metrics, status};
use crate::fs::{Drain, FailedDelete, FileSystem, Unsaved};

impl FileSystem {
    /// Liveness probe: acquires the inode and handle locks; blocks if either is stuck.
    pub fn check_liveness(&self) {
        let table = self.inodes.lock();
        crate::failpoint::point("liveness");
        drop(table);
        self.handles.count();
    }

    /// Tells the file system what serves it. Only the first call counts.
    pub fn attach_processes(&self, processes: Processes) {
        let ending = processes.ending;
        if self.report.set_processes(processes) {
            self.replay.charge_last_death(ending);
        }
    }

    /// How things are. Never asks the vault.
    pub fn status(&self) -> Status {
        status::status(self)
    }

    /// The status as Prometheus scrapes it. Never asks the vault.
    pub fn metrics(&self) -> String {
        metrics::metrics(self)
    }

    /// Opens the audit file again, if there is one.
    pub fn reopen_audit(&self) {
        self.report.reopen_audit();
    }

    /// Stores what is unsaved, deletes what should be gone, and names what is left of both when
    /// nothing is on its way any more.
    pub async fn drain(&self, what: Drain, patience: Duration) -> Vec<Unsaved> {
        self.temporaries.drain(what, patience).await
    }

    /// Writes that the vault does not have, open files included.
    pub fn unsaved(&self) -> Vec<Unsaved> {
        self.writeback.unsaved()
    }

    /// What is lost if the mount ends now: unsaved writes, and deletions that were not made.
    pub fn left_over(&self) -> Vec<Unsaved> {
        self.writeback.left_over()
    }

    /// Objects that should be gone, by name.
    pub fn failed_deletes(&self) -> Vec<FailedDelete> {
        self.writeback.failed_deletes()
    }

    /// Stores unsaved writes (all, or that of one name), also over a newer version: the user who
    /// asks has seen the conflict. Deletes what should be gone. Returns what is unsaved afterwards.
    pub async fn retry_unsaved(&self, name: Option<&str>, patience: Duration) -> Vec<Unsaved> {
        self.writeback.retry_unsaved(name, patience).await
    }

    /// Gives the unsaved write of a name up, or its deletion: the name shows what the vault has.
    /// False if there is neither.
    pub fn discard_unsaved(&self, name: &str) -> bool {
        self.writeback.discard_unsaved(name)
    }

    /// Waits until the commits in flight are recorded; no other begins until the result is dropped.
    pub async fn hold_stores(&self, within: Duration) -> Option<OwnedSemaphorePermit> {
        self.writeback.hold_stores(within).await
    }

    /// The start-up check brought no names: the vault was away, or the key may not list.
    pub fn listing_is_untried(&self) {
        self.env.cache().listing_is_untried();
    }

    /// Makes the kernel read an inode anew.
    pub fn inval_pages(&self, ino: u64) {
        self.env.inval_inode(ino);
    }

    /// Whether this user is a guest: neither the owner of the mount or of its files, nor root.
    pub fn is_guest(&self, uid: u32) -> bool {
        uid != 0 && uid != self.env.options().uid && uid != nix::unistd::geteuid().as_raw()
    }
}
