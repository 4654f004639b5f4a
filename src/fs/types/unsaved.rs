//! What is lost if the mount ends now, as commands list it.

use serde::{Deserialize, Serialize};

/// A write that the vault does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsaved {
    /// The object's name.
    pub name: String,
    /// Where the bytes can be read, below the mount point.
    pub path: String,
    /// Bytes waiting.
    pub size: u64,
    /// Why it failed; absent while the file is merely open.
    pub error: Option<String>,
    /// The vault has a newer version: no retry is sent by itself.
    pub conflict: bool,
    /// Seconds until it is tried again by itself; absent if it is not.
    #[serde(default)]
    pub retry_s: Option<u64>,
}

impl Unsaved {
    /// A deletion that the vault has not made.
    pub fn deletion(name: String, path: String, error: String) -> Self {
        Self { name, path, size: 0, error: Some(error), conflict: false, retry_s: None }
    }
}
