//! What all parts share: errors as errno and their log, the options of a mount, the environment.

pub(in crate::fs) mod env;
pub mod errno;
pub(in crate::fs) mod error_log;
pub(in crate::fs) mod options;
