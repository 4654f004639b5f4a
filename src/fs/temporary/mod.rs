//! Names that an editor or a script juggles: scratch, provisional files, deferred deletes.

pub(in crate::fs) mod deferred_delete;
pub(in crate::fs) mod provisional;
pub(in crate::fs) mod remover;
pub(in crate::fs) mod scratch;
