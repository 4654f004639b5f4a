//! What the file system reports: status, metrics, audit, control files. It reads all parts, and
//! none of them asks it.

pub(in crate::fs) mod audit;
pub(in crate::fs) mod control_files;
pub(in crate::fs) mod metrics;
pub(in crate::fs) mod status;

use std::sync::{Arc, OnceLock};

use crate::fs::inode::InodeTable;
use crate::fs::report::audit::Audit;
use crate::fs::report::status::Processes;
use crate::fs::types::ctx::Caller;
use crate::fs::types::env::Env;

/// What the file system reports and does not need itself.
pub(in crate::fs) struct Report {
    env: Arc<Env>,
    inodes: Arc<InodeTable>,
    audit: Option<Arc<Audit>>,
    processes: OnceLock<Processes>,
}

impl Report {
    pub fn new(env: Arc<Env>, inodes: Arc<InodeTable>, audit: Option<Arc<Audit>>) -> Self {
        Self { env, inodes, audit, processes: OnceLock::new() }
    }

    /// What serves the file system. False if that is known already: a worker takes over once.
    pub fn set_processes(&self, processes: Processes) -> bool {
        self.processes.set(processes).is_ok()
    }

    /// Opens the audit file again, if there is one.
    pub fn reopen_audit(&self) {
        self.audit.iter().for_each(|audit| audit.reopen());
    }

    /// Writes down that an inode was opened, where that is asked for.
    pub fn record_open(&self, ino: u64, op: &'static str, caller: Caller) {
        let Some(audit) = &self.audit else { return };
        // The lock is let go of first: the line says which program it was, from /proc.
        let node = self.inodes.lock().node(ino);
        node.iter().for_each(|node| audit.record_open(self.env.wall(), node, op, caller));
    }
}
