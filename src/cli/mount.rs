//! (placeholder) `vaultfs mount`.

use std::process::ExitCode;

/// Mount a vault.
#[derive(Debug, clap::Args)]
pub struct MountArgs {}

/// Runs the command.
pub fn run(_args: MountArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
