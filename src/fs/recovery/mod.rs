//! After a death: requests replayed, requests quarantined, state restored.

pub(in crate::fs) mod quarantine;
pub(in crate::fs) mod replay;
pub(in crate::fs) mod restore;
