//! Open handles, and which close stores.

pub(in crate::fs) mod close_policy;
pub(in crate::fs) mod unacknowledged;
