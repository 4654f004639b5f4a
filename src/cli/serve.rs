//! (placeholder) `vaultfs serve`.

use std::process::ExitCode;

/// Run the embedded vault on its own.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {}

/// Runs the command.
pub fn run(_args: ServeArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
