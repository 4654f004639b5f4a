//! Why a vault could not be opened or served: sentences for the person who started it.

use std::io;
use std::path::PathBuf;

use crate::display::Shown;

/// A vault that could not be opened, served or attached to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process serves this directory.
    #[error("{} is served by another process already: use that one, or stop it first", .0.shown())]
    AlreadyServed(PathBuf),
    /// Another process holds the lock but does not answer on the socket.
    #[error("{} is locked by another process, which does not answer on its socket: check that process, or stop it", .0.shown())]
    InstanceSilent(PathBuf),
    /// The directory, or a file in it, is someone else's.
    #[error("{} belongs to user {owner}: a vault's directory and its files must be your own", .path.shown())]
    ForeignDirectory {
        /// The directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Something else is in the place.
    #[error("{} is not a directory: name one for the vault, it is made if it does not exist", .0.shown())]
    NotADirectory(PathBuf),
    /// The directory is used for something else.
    #[error(
        "{} holds other things and no vault: choose an empty directory, or one that does not exist yet", .0.shown()
    )]
    NotAVault(PathBuf),
    /// A vault is needed, and none is there.
    #[error("there is no vault in {}: check the path; vaultfs mount and vaultfs put make a vault", .0.shown())]
    NoVault(PathBuf),
    /// A Unix socket's address holds at most 107 bytes.
    #[error("{} is too long a path for a Unix socket (at most 107 bytes): choose a shorter directory", .0.shown())]
    PathTooLong(PathBuf),
    /// The master key cannot be used.
    #[error("master key {} {problem}", .path.shown())]
    MasterKey {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// The certificate or its key cannot be used.
    #[error("{} {problem}", .path.shown())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A key file that cannot be used.
    #[error("API key {} {problem}", .path.shown())]
    ApiKey {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// The database cannot be used.
    #[error("{}: {problem}", .path.shown())]
    Database {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The operating system refused.
    #[error("{what} {}: {cause}", .path.shown())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The system's random numbers failed.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

impl ServeError {
    /// Names what was tried when the operating system refused.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { what, path, cause }
    }
}
