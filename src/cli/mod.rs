//! The command line: one file a command. Builds the stack of layers; nobody imports it.

pub mod completions;
pub mod connect;
pub mod daemon;
pub mod doctor;
pub mod exit;
pub mod format;
pub mod generate;
pub mod journal;
pub mod key;
pub mod log;
pub mod man;
pub mod mount;
pub mod mount8;
pub mod mount_options;
pub mod objects;
mod output;
pub mod parse;
pub mod pending;
pub mod progress;
pub mod serve;
pub mod serve_key;
pub mod service;
pub mod stack;
pub mod status;
pub mod unmount;
pub mod upgrade;
pub mod values;
pub mod volume_plugin;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Mount a secrets vault as a directory
///
/// Programs that can read a file can use a vault: reading a file gets the current value of an object, and saving it makes
/// a new version. The vault is a service that speaks the WorkOS vault API, or an encrypted one of your own (--embedded).
#[derive(Debug, Parser)]
#[command(name = "vaultfs", version, arg_required_else_help = true, after_help = examples())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vaultfs mount --embedded ~/secrets          a vault of your own, made at the first use
  vaultfs mount --api-url https://vault.example.com --api-key-file ~/.config/vault-key ~/secrets
  echo -n s3cret > ~/secrets/db/password      a new version; the old ones are in ~/secrets/.versions
  vaultfs status                              how the mounts are doing
  vaultfs unmount ~/secrets                   stores what is unsaved first
  vaultfs doctor                              what on this machine would get in the way

`vaultfs COMMAND --help` says more, and so does `man vaultfs-COMMAND`.";

/// What follows the commands in `vaultfs --help`.
fn examples() -> String {
    let codes = exit::Exit::ALL.map(|exit| format!("\n  {}  {}", exit as u8, exit.meaning()));
    format!("{EXAMPLES}\n\nExit codes:\n  0  done{}", codes.concat())
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::MountArgs>),
    Unmount(unmount::UnmountArgs),
    Status(status::StatusArgs),
    Pending(pending::PendingArgs),
    Upgrade(upgrade::UpgradeArgs),
    Doctor(doctor::DoctorArgs),
    Serve(serve::ServeArgs),
    VolumePlugin(volume_plugin::VolumePluginArgs),
    Key(key::KeyArgs),
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
    #[command(flatten)]
    Objects(objects::ObjectCommand),
}

/// The commands that our own processes are started with. Apart, so that no hint of the parser's names them.
#[derive(Debug, Parser)]
#[command(name = "vaultfs")]
struct Internal {
    #[command(subcommand)]
    command: daemon::DaemonCommand,
}

/// Parses the command line, runs it, and says how it ended.
pub fn main() -> ExitCode {
    log::quiet_panics();
    if let Some(code) = mount8::called_as(std::env::args_os().next().as_deref()) {
        return code;
    }
    let internal = std::env::args().nth(1).is_some_and(|name| daemon::DaemonCommand::has_subcommand(&name));
    if internal {
        return end(daemon::run(Internal::parse().command));
    }
    let cli = match Cli::try_parse_from(mount_options::expand_options(std::env::args_os())) {
        Ok(cli) => cli,
        Err(e) => return help(&parse::without_values(e)),
    };
    let result = match cli.command {
        Command::Mount(args) => mount::run(*args),
        Command::Unmount(args) => unmount::run(args),
        Command::Status(args) => status::run(args),
        Command::Pending(args) => pending::run(args),
        Command::Upgrade(args) => upgrade::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Serve(args) => serve::run(args),
        Command::VolumePlugin(args) => volume_plugin::run(args),
        Command::Key(args) => key::run(args),
        Command::Objects(command) => objects::run(command),
    };
    end(result)
}

/// What was asked for instead of a command, or what is wrong with the command line.
fn help(e: &clap::Error) -> ExitCode {
    match e.print() {
        Err(unwritten) if !e.use_stderr() => {
            end(output::heard(Err(unwritten)).map(|_| ExitCode::SUCCESS).map_err(Into::into))
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
