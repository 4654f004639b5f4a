//! Deletions that the vault has not made: what the table keeps of each, by the object's name.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::fs::types::errno::Errno;
use crate::vault::save::Stored;

/// An object that is hidden, or replaced by another file under its name, while its file has a
/// provisional name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::fs) struct DeferredDelete {
    /// The object.
    pub stored: Stored,
    /// The file that has its bytes under another name; `None` if it was unlinked, and is deleted
    /// unless the name is reused.
    pub backup: Option<u64>,
    /// The name was reused, and the new file is not stored yet.
    pub reused: bool,
    /// When it was hidden.
    #[serde(skip, default = "Instant::now")]
    pub since: Instant,
}

/// A deletion that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::fs) struct FailedDeleteRecord {
    /// The version that was to go.
    pub stored: Stored,
    /// How it failed.
    pub errno: Errno,
    /// Why it is still there, for people.
    pub message: String,
}
