//! Commands for tests: a home of their own, a vault in it, input and output as bytes.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory for a vault, and commands that know nothing of the machine they run on.
pub struct Home(pub TempDir);

impl Home {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The same with an empty vault.
    pub fn with_vault() -> Self {
        let home = Self::new();
        home.ok(&["put", "first"], b"x");
        home.ok(&["rm", "first"], b"");
        home
    }

    pub fn vault(&self) -> PathBuf {
        self.0.path().join("vault")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
        command.env_clear().env("HOME", self.0.path()).env("RUST_LOG", "trace").args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command on the embedded vault.
    pub fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let embedded = format!("--embedded={}", self.vault().display());
        feed(self.command(args).arg(embedded), input)
    }

    /// Runs a command that must succeed; its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run(args, input);
        assert!(output.status.success(), "{args:?}: {output:?}");
        output.stdout
    }

    #[track_caller]
    pub fn text(&self, args: &[&str]) -> String {
        String::from_utf8(self.ok(args, b"")).unwrap()
    }
}

pub fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // A command that fails early does not read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
pub fn assert_fails(output: &Output, code: i32, word: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(error.starts_with("vaultfs: ") && error.contains(word), "{error}");
    assert!(output.stdout.is_empty(), "standard output is data");
}
