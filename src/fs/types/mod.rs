//! What all parts share: errors as errno and their log, the options of a mount, the environment, a
//! request as an argument.

pub(in crate::fs) mod attr;
pub(in crate::fs) mod ctx;
pub(in crate::fs) mod env;
pub mod errno;
pub(in crate::fs) mod error_log;
pub(in crate::fs) mod kernel;
pub(in crate::fs) mod options;
pub(in crate::fs) mod step;
pub(in crate::fs) mod unsaved;
