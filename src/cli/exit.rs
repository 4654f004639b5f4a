//! Exit codes: documented, stable, and the only way a command ends in failure.

use std::process::ExitCode;

use crate::sys::stdio;
use crate::vault::{self, ErrorKind};

/// Why a command failed, as scripts see it (docs/REFERENCE.md, "Exit codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything without a code of its own.
    Failed = 1,
    /// The command line is wrong; clap uses the same.
    Usage = 2,
    /// The API key is missing or was refused.
    Key = 3,
    /// The vault cannot be reached, or what answers is not a vault.
    Unreachable = 4,
    /// No such object, version or mount.
    NotFound = 5,
    /// The rate limit is used up.
    RateLimited = 6,
    /// Writes are left that the vault does not have.
    Unsaved = 7,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Failed,
        Self::Usage,
        Self::Key,
        Self::Unreachable,
        Self::NotFound,
        Self::RateLimited,
        Self::Unsaved,
    ];

    /// What it says, for help, man pages and docs/REFERENCE.md.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Failed => "failed, or a mount is not well (status)",
            Self::Usage => "the command line is wrong",
            Self::Key => "the key is missing or was refused",
            Self::Unreachable => "the vault cannot be reached, or what answers is no vault",
            Self::NotFound => "no such object, version, vault or mount",
            Self::RateLimited => "the rate limit is used up",
            Self::Unsaved => "unsaved writes are left",
        }
    }
}

/// A failed command: a sentence with the next step, and a code.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// The sentence.
    pub message: String,
    /// Lines that follow it.
    pub lines: Vec<String>,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), lines: Vec::new() }
    }

    /// A command needs a mount, and there is none.
    pub fn no_mount() -> Self {
        Self::new(Exit::NotFound, "no vault is mounted")
    }

    /// The same with lines behind its sentence.
    pub fn with_lines(self, lines: Vec<String>) -> Self {
        Self { lines, ..self }
    }

    /// A failure that another process of ours reported with its exit code.
    pub fn with_code(code: u8, message: impl Into<String>) -> Self {
        let exit = Exit::ALL.into_iter().find(|e| *e as u8 == code).unwrap_or(Exit::Failed);
        Self::new(exit, message)
    }

    /// Says it on standard error, as this program.
    pub fn say(&self, program: &str) {
        stdio::line(format_args!("{program}: {}", self.message));
        self.lines.iter().for_each(stdio::line);
    }

    /// Says it on standard error and gives the code.
    pub fn report(&self) -> ExitCode {
        self.say("vaultfs");
        ExitCode::from(self.exit as u8)
    }
}

impl From<vault::Error> for Failure {
    fn from(e: vault::Error) -> Self {
        let exit = match e.kind {
            ErrorKind::Unauthorized | ErrorKind::Forbidden => Exit::Key,
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::RateLimited | ErrorKind::ShareSpent => Exit::RateLimited,
            ErrorKind::Deadline | ErrorKind::Unreachable | ErrorKind::Server | ErrorKind::BadAnswer => {
                Exit::Unreachable
            }
            ErrorKind::AlreadyExists
            | ErrorKind::NameNotFree
            | ErrorKind::VersionMismatch
            | ErrorKind::MadeAndDeleted
            | ErrorKind::Invalid
            | ErrorKind::TooLarge
            | ErrorKind::NameTooLong
            | ErrorKind::Full
            | ErrorKind::OtherObject
            | ErrorKind::Unsupported => Exit::Failed,
        };
        Self::new(exit, e.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        match e.downcast::<Failure>() {
            Ok(failure) => failure,
            Err(e) => match e.downcast::<vault::Error>() {
                Ok(e) => e.into(),
                Err(e) => Self::new(Exit::Failed, format!("{e:#}")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_the_same_table() {
        for exit in Exit::ALL {
            let row = format!("| {} | {} |\n", exit as u8, exit.meaning());
            assert!(include_str!("../../docs/REFERENCE.md").contains(&row), "{row}");
        }
    }
}
