//! `vaultfs generate`: man pages and shell completions, from the definitions that parse the command
//! line.
//!
//! Hidden: `scripts/package` runs it, and other packaging may.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use clap_complete::Shell;

use crate::cli::docs::{completions, man};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;

use crate::display::Shown;

/// Write man pages or shell completions
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Man pages of all commands, into DIR
    Man {
        /// A directory that exists
        dir: PathBuf,
    },
    /// Completions for a shell, to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command.
pub fn run(args: GenerateArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Man { dir } => man::write(&dir).map_err(|e| {
            let sentence =
                format!("{}: {e}: name a directory that exists, and that you can write", dir.shown());
            Failure::new(Exit::Failed, sentence)
        })?,
        What::Completions { shell } => {
            output::data(&completions::script(shell))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
