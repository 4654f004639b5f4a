//! (placeholder) `vaultfs unmount`.

use std::process::ExitCode;

/// Unmount.
#[derive(Debug, clap::Args)]
pub struct UnmountArgs {}

/// Runs the command.
pub fn run(_args: UnmountArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
