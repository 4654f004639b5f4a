//! What the processes of a mount tell the file system, and ask it beside the kernel's requests.

use crate::fs::FileSystem;
use crate::fs::report::status::{Processes, Status};
use crate::fs::report::{metrics, status};

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
}
