//! (placeholder) `vaultfs ls|get|put|rm|log|restore`.

use std::process::ExitCode;

/// Objects without a mount.
#[derive(Debug, clap::Subcommand)]
pub enum ObjectCommand {
    /// List names.
    Ls {},
}

/// Runs the command.
pub fn run(_command: ObjectCommand) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
