//! What the file system reports: status, metrics, audit, control files.

pub(in crate::fs) mod audit;
pub(in crate::fs) mod control_files;
pub(in crate::fs) mod metrics;
pub(in crate::fs) mod status;

use std::sync::{Arc, OnceLock};

use audit::Audit;
use status::Processes;

/// What the file system reports and does not need itself.
pub(in crate::fs) struct Report {
    audit: Option<Arc<Audit>>,
    processes: OnceLock<Processes>,
}

impl Report {
    pub fn new(audit: Option<Arc<Audit>>) -> Self {
        Self { audit, processes: OnceLock::new() }
    }

    fn audit(&self) -> Option<&Arc<Audit>> {
        self.audit.as_ref()
    }
}
