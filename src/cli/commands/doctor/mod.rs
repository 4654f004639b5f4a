//! `vaultfs doctor`: what on this machine, and on the way to the vault, will get in the way, each
//! with its fix.
//!
//! It changes nothing and mounts nothing. What it finds about the machine it reads from files,
//! below `--root` where that is given, so that a disk image can be examined, and a test can show it
//! a machine. What it finds about a vault costs one or two requests, and only if a vault is named.
//! Exit code 1 if something has to be mended.

mod containers;
mod machine;
mod vault;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::args::connect::ConnectArgs;
use crate::cli::commands::status::counted;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::cli::output::{GREEN, Lines, PLAIN, RED, YELLOW};

use crate::display::Shown;
use crate::sys::files;

/// Check this machine for problems that affect mounts, and say how to fix them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vaultfs doctor\n  vaultfs doctor --api-url https://vault.example.com \
                        --api-key-file /etc/vaultfs/key\n\nExit code 1 if there is a PROBLEM, else 0.")]
pub struct DoctorArgs {
    /// Print JSON: an array of findings
    #[arg(long)]
    json: bool,

    /// Check the machine that has its files below DIR
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    root: PathBuf,

    #[command(flatten)]
    connect: ConnectArgs,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// It works, with less protection or comfort than it could.
    Warning,
    /// It does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at, one word.
    check: &'static str,
    level: Level,
    /// What was found.
    says: String,
    /// What to do about it.
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, says: says.into(), fix: None }
    }

    fn note(check: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Note, says: says.into(), fix: Some(fix.into()) }
    }

    fn warning(check: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::note(check, says, fix) }
    }

    fn problem(check: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Problem, ..Self::note(check, says, fix) }
    }
}

/// Runs the command.
pub fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    if files::check_way(&args.root).is_err() || !args.root.is_dir() {
        let sentence = format!("--root {}: there is no such directory", args.root.shown());
        return Err(Failure::new(Exit::Usage, sentence).into());
    }
    args.connect.runtime.apply();
    let mut found = machine::check(&machine::Machine::new(&args.root));
    found.extend(vault::check(&args.connect)?);
    match args.json {
        true => output::print_json(&found)?,
        false => output::print(|out| print(out, &found))?,
    }
    let worst = found.iter().map(|finding| finding.level).max();
    Ok(if worst == Some(Level::Problem) { ExitCode::from(Exit::Failed as u8) } else { ExitCode::SUCCESS })
}

fn print(out: &mut Lines, found: &[Finding]) {
    for finding in found {
        let (mark, colour) = match finding.level {
            Level::Ok => ("ok", GREEN),
            Level::Note => ("note", PLAIN),
            Level::Warning => ("WARNING", YELLOW),
            Level::Problem => ("PROBLEM", RED),
        };
        out.marked(
            "",
            colour,
            mark,
            format_args!("{:gap$} {:<12} {}", "", finding.check, finding.says, gap = 8 - mark.len()),
        );
        if let Some(fix) = &finding.fix {
            out.line(format_args!("{:21} → {fix}", ""));
        }
    }
    let count = |level| found.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    let (problems, warnings) = (counted(problems as u64, "problem"), counted(warnings as u64, "warning"));
    out.line(format_args!("{problems}, {warnings}"));
}
