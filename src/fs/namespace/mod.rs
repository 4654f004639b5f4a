//! Names to inodes: what a directory shows, and what an entry looks like.

pub mod attr;
pub(in crate::fs) mod listing;
pub(in crate::fs) mod resolve;
