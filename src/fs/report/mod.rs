//! What the file system reports: status, metrics, audit, control files.

pub(in crate::fs) mod audit;
pub(in crate::fs) mod control_files;
pub(in crate::fs) mod metrics;
pub(in crate::fs) mod status;
