//! `vaultfs generate man`: man pages, from the definitions that parse the command line.
//!
//! Hidden: `scripts/package` and `scripts/run` use it, and other packaging may.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::docs::man;
use crate::cli::exit::{Exit, Failure};
use crate::display::Shown;

/// Write man pages
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
}

/// Runs the command.
pub fn run(args: GenerateArgs) -> anyhow::Result<ExitCode> {
    let What::Man { dir } = args.what;
    man::write(&dir).map_err(|e| {
        let sentence = format!("{}: {e}: name a directory that exists, and that you can write", dir.shown());
        Failure::new(Exit::Failed, sentence)
    })?;
    Ok(ExitCode::SUCCESS)
}
