//! Operations: one file a family. They return values and never block.

mod close;
mod control;
pub(in crate::fs) mod create;
mod lookup;
pub(in crate::fs) mod mkdir;
pub(in crate::fs) mod mknod;
pub(in crate::fs) mod open;
pub(in crate::fs) mod read;
pub(in crate::fs) mod readdir;
pub(in crate::fs) mod rename;
pub(in crate::fs) mod rename_dir;
pub(in crate::fs) mod unlink;
pub(in crate::fs) mod versions;
pub(in crate::fs) mod write;
pub(in crate::fs) mod xattr;
