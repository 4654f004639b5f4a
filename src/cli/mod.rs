//! The command line: `commands` has one file a command, `args` the options they share, `docs` the
//! man pages and completions. Builds the stack of layers ([`assembly`]); nothing imports it.

pub mod args;
pub mod assembly;
pub mod commands;
pub mod docs;
pub mod exit;
pub mod log;
mod output;
pub mod progress;
pub mod service;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cli::args::mount_options;

/// Mount a secrets vault as a directory
///
/// Each object of the vault is a file: reading it returns the current value, saving it stores a new
/// version. The vault is a service with the WorkOS vault API, or a local encrypted one
/// (--embedded).
#[derive(Debug, Parser)]
#[command(name = "vaultfs", version, arg_required_else_help = true, after_help = examples())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mkdir -p ~/secrets                          # the directory to mount on
  vaultfs mount --embedded ~/secrets          # a local vault, created by the first mount
  printf %s s3cret > ~/secrets/password       # store a value; old versions are in ~/secrets/.versions
  vaultfs status                              # the state of each mount
  vaultfs unmount ~/secrets                   # store unsaved writes, then unmount
  vaultfs mount --api-url https://vault.example.com --api-key-file ~/.config/vault-key ~/secrets
  vaultfs doctor                              # check this machine for problems

Details: `vaultfs COMMAND --help`, or `man vaultfs-COMMAND` where the man pages are installed.";

/// What follows the commands in `vaultfs --help`.
fn examples() -> String {
    let codes = exit::Exit::ALL.map(|exit| format!("\n  {}  {}", exit as u8, exit.meaning()));
    format!("{EXAMPLES}\n\nExit codes:\n  0  done{}", codes.concat())
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<crate::cli::commands::mount::MountArgs>),
    #[command(visible_alias = "umount")]
    Unmount(crate::cli::commands::unmount::UnmountArgs),
    Status(crate::cli::commands::status::StatusArgs),
    Pending(crate::cli::commands::pending::PendingArgs),
    Upgrade(crate::cli::commands::upgrade::UpgradeArgs),
    Doctor(crate::cli::commands::doctor::DoctorArgs),
    Serve(crate::cli::commands::serve::ServeArgs),
    VolumePlugin(crate::cli::commands::volume_plugin::VolumePluginArgs),
    Key(crate::cli::commands::key::KeyArgs),
    #[command(alias = "completions")]
    Completion(crate::cli::commands::completion::CompletionArgs),
    #[command(hide = true)]
    Generate(crate::cli::commands::generate::GenerateArgs),
    #[command(flatten)]
    Objects(crate::cli::commands::objects::ObjectCommand),
}

/// The commands that our own processes are started with. Apart, so that no hint of the parser's
/// names them.
#[derive(Debug, Parser)]
#[command(name = "vaultfs")]
struct Internal {
    #[command(subcommand)]
    command: crate::cli::commands::daemon::DaemonCommand,
}

/// Parses the command line, runs it, and says how it ended.
pub fn main() -> ExitCode {
    log::quiet_panics();
    if let Some(code) = crate::cli::commands::mount8::called_as(std::env::args_os().next().as_deref()) {
        return code;
    }
    let internal = std::env::args()
        .nth(1)
        .is_some_and(|name| crate::cli::commands::daemon::DaemonCommand::has_subcommand(&name));
    if internal {
        return end(crate::cli::commands::daemon::run(Internal::parse().command));
    }
    let args = command_line(std::env::args_os());
    if mount_options::asks_for_help(&args) {
        return end(output::data(&(mount_options::help() + "\n"))
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into));
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return help(&crate::cli::args::parse::explained(e, &args)),
    };
    let result = match cli.command {
        Command::Mount(args) => crate::cli::commands::mount::run(*args),
        Command::Unmount(args) => crate::cli::commands::unmount::run_and_say(args),
        Command::Status(args) => crate::cli::commands::status::run(args),
        Command::Pending(args) => crate::cli::commands::pending::run(args),
        Command::Upgrade(args) => crate::cli::commands::upgrade::run(args),
        Command::Doctor(args) => crate::cli::commands::doctor::run(args),
        Command::Completion(args) => crate::cli::commands::completion::run(args),
        Command::Generate(args) => crate::cli::commands::generate::run(args),
        Command::Serve(args) => crate::cli::commands::serve::run(args),
        Command::VolumePlugin(args) => crate::cli::commands::volume_plugin::run(args),
        Command::Key(args) => crate::cli::commands::key::run(args),
        Command::Objects(command) => crate::cli::commands::objects::run(command),
    };
    end(result)
}

/// The command line as it is parsed: -o lists as long options, and `vaultfs version` as an option.
fn command_line(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args = mount_options::expand_options(args);
    if matches!(args.as_slice(), [_, only] if only == "version") {
        args[1] = "--version".into();
    }
    args
}

/// What was asked for instead of a command, or what is wrong with the command line.
fn help(e: &clap::Error) -> ExitCode {
    match e.print() {
        Err(unwritten) if !e.use_stderr() => {
            end(output::is_read(Err(unwritten)).map(|_| ExitCode::SUCCESS).map_err(Into::into))
        }
        _ => ExitCode::from(e.exit_code() as u8),
    }
}

fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(e) => exit::Failure::from(e).report(),
    }
}
