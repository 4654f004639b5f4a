//! `vaultfs completion`: what makes a shell complete the command line.

use std::process::ExitCode;

use crate::cli::docs::completions::Shell;
use crate::cli::output;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  . <(vaultfs completion bash)                 # in ~/.bashrc\n  \
                  . <(vaultfs completion zsh)                  # in ~/.zshrc, after compinit\n  \
                  vaultfs completion fish | source             # in ~/.config/fish/config.fish")]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: CompletionArgs) -> anyhow::Result<ExitCode> {
    output::data(args.shell.script())?;
    Ok(ExitCode::SUCCESS)
}
