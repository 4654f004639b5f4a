//! `/.vaultfs/`: what the mount says of itself, as files. Never asks the vault.

use std::ffi::OsStr;

use crate::display;
use crate::fs::FileSystem;
use crate::fs::inode::ControlFile;
use crate::fs::report::metrics::metrics;
use crate::fs::report::status::status;

impl ControlFile {
    /// All of them, for listings.
    pub const ALL: [ControlFile; 2] = [ControlFile::Status, ControlFile::Metrics];

    /// Its file name.
    pub fn name(self) -> &'static str {
        match self {
            ControlFile::Status => "status.json",
            ControlFile::Metrics => "metrics",
        }
    }

    /// The control file of that name.
    pub fn named(component: &OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|which| component == which.name())
    }
}

/// What the file holds at this moment.
pub(in crate::fs) fn text(fs: &FileSystem, which: ControlFile) -> Vec<u8> {
    match which {
        ControlFile::Status => {
            let text = serde_json::to_string_pretty(&status(fs)).unwrap_or_default() + "\n";
            display::json(&text).into_owned().into_bytes()
        }
        ControlFile::Metrics => metrics(fs).into_bytes(),
    }
}
