//! Names to inodes: what a directory shows, and what an entry looks like.

pub mod attr;
mod entry;
mod kind;
pub(in crate::fs) mod listing;
pub(in crate::fs) mod resolve;
mod shown;
