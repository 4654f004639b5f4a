//! After a death: requests replayed, requests quarantined.

pub(in crate::fs) mod quarantine;
pub(in crate::fs) mod replay;
