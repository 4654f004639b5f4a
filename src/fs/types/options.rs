//! What a mount was asked to do, as far as the file system is concerned.
//!
//! The command line fills it, the keeper hands it to each worker as JSON, the file system reads it.
//! It holds no secret and no address: where the vault is and with which key is the connection's
//! business. Defaults are those of the command line (docs/REFERENCE.md).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::vault::codec::Format;

/// The options of one mount. Fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Which vault, and which part of it: inode numbers are made from this.
    #[serde(default)]
    pub vault: String,
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// Refuse to delete objects (EPERM); overwriting works.
    pub no_delete: bool,
    /// A save fails with ESTALE when the object changed elsewhere since it was opened.
    pub strict: bool,
    /// How written bytes become an object.
    #[serde(with = "FormatName")]
    pub format: Format,
    /// How old an answer may be before the vault is asked again.
    pub refresh: Duration,
    /// A change made elsewhere changes the bytes of the same inode, instead of a new one taking its
    /// name.
    #[serde(default)]
    pub in_place: bool,
    /// How long what is cached is served while the vault does not answer.
    pub max_stale: Duration,
    /// The deadline of one kernel request, retries included.
    pub timeout: Duration,
    /// Largest value in bytes; more is EFBIG.
    pub max_size: u64,
    /// Bytes of values kept in memory.
    pub cache_size: u64,
    /// Names of which the directories are known, for a key that may not list names.
    #[serde(default)]
    pub names: Vec<String>,
    /// Further name patterns that are kept in memory and never stored.
    pub scratch: Vec<String>,
    /// Bytes of scratch files kept in memory.
    pub scratch_size: u64,
    /// Owner of everything in the mount.
    pub uid: u32,
    /// Group of everything in the mount.
    pub gid: u32,
    /// Ceiling for the mode of files.
    pub file_mode: u32,
    /// Ceiling for the mode of directories.
    pub dir_mode: u32,
    /// List `.versions` in the root.
    pub show_versions: bool,
    /// List `.vaultfs` in the root while nothing else is there: container engines copy an image's
    /// files into a volume that looks empty.
    pub never_empty: bool,
    /// Record each open (`audit`).
    pub audit: Option<PathBuf>,
}

impl Options {
    /// Whether the kernel opens files and directories without asking: on a read-only mount there is
    /// nothing that an open could decide, unless it is to be written down.
    pub fn reads_unopened(&self) -> bool {
        self.read_only && self.audit.is_none()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vault: String::new(),
            read_only: false,
            no_delete: false,
            strict: false,
            format: Format::Auto,
            refresh: Duration::from_secs(5),
            in_place: false,
            max_stale: Duration::from_secs(3600),
            timeout: Duration::from_secs(10),
            max_size: 1 << 20,
            cache_size: 64 << 20,
            names: Vec::new(),
            scratch: Vec::new(),
            scratch_size: 16 << 20,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            file_mode: 0o600,
            dir_mode: 0o700,
            show_versions: false,
            audit: None,
            never_empty: false,
        }
    }
}

/// The names of [`Format`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Format", rename_all = "lowercase")]
enum FormatName {
    Auto,
    Json,
    Raw,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survive_the_pipe_to_the_worker() {
        let options = Options {
            format: Format::Raw,
            refresh: Duration::from_millis(1500),
            scratch: vec!["*.part".into()],
            ..Options::default()
        };
        let json = serde_json::to_string(&options).expect("plain data");
        assert_eq!(serde_json::from_str::<Options>(&json).expect("own output"), options);
    }
}
