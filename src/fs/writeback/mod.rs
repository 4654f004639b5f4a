//! Written bytes become versions: commits, retries, and what the vault does not have.

pub(in crate::fs) mod commit;
pub(in crate::fs) mod drain;
pub(in crate::fs) mod may_write;
pub(in crate::fs) mod permits;
pub(in crate::fs) mod retry;
pub(in crate::fs) mod unsaved;
pub(in crate::fs) mod unsaved_from_journal;
