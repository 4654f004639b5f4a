//! What all parts share: errors as errno, and the options of a mount.

pub mod errno;
pub(in crate::fs) mod options;
