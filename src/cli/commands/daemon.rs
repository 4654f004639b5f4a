//! The hidden commands: what the processes of a mount are started as.
//!
//! Each is this same binary, run again by another of our processes, with its configuration on
//! standard input (`daemon::protocol`). They are no interface: names and arguments may change with
//! every version.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use crate::cli::docs::completions;
use crate::cli::exit::Failure;
use crate::cli::{assembly, log, output};
use crate::daemon::capabilities;
use crate::daemon::capabilities::Role;
use crate::daemon::protocol::ExitError;
use crate::daemon::{helper, keeper, runtime_dir, worker};
use crate::sys::mount_table::Dev;
use crate::sys::probe;
use crate::sys::{allocator, hardening};

/// Internal commands.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Keep a mount.
    #[command(name = keeper::COMMAND, hide = true)]
    Keeper {
        /// For `ps` only.
        mountpoint: PathBuf,
        /// Where its control socket is to be. Commands find it here.
        #[arg(long)]
        runtime_dir: Option<PathBuf>,
    },
    /// Serve a mount.
    #[command(name = keeper::WORKER_COMMAND, hide = true)]
    Worker {
        /// For `ps` only.
        mountpoint: PathBuf,
    },
    /// Make system calls on a mount for its worker.
    #[command(name = helper::COMMAND, hide = true)]
    Helper {
        /// The mount's device number.
        #[arg(value_parser = dev)]
        dev: Dev,
        /// Milliseconds to wait first.
        pause: u64,
        /// Where it is.
        mountpoint: PathBuf,
    },
    /// Look at a path that may hang.
    #[command(name = probe::COMMAND, hide = true)]
    Probe {
        /// Read it, instead of looking at it.
        #[arg(long)]
        read: bool,
        /// List it.
        #[arg(long)]
        list: bool,
        /// The path.
        path: PathBuf,
    },
    /// Say what may stand at the cursor of a command line.
    CompleteWords {
        /// Words are split as bash does it.
        #[arg(long)]
        bash: bool,
        /// The words up to the cursor.
        words: Vec<OsString>,
    },
}

fn dev(text: &str) -> Result<Dev, &'static str> {
    text.parse().map_err(|()| "not a device number")
}

/// Runs the command.
pub fn run(command: DaemonCommand) -> anyhow::Result<ExitCode> {
    match command {
        DaemonCommand::Keeper { runtime_dir, .. } => {
            runtime_dir.iter().for_each(|dir| runtime_dir::prefer(dir));
            keep()
        }
        DaemonCommand::Worker { .. } => work(),
        DaemonCommand::Helper { dev, pause, mountpoint } => {
            hardening::name_process(helper::NAME);
            helper::run(&mountpoint, dev, Duration::from_millis(pause))?;
            Ok(ExitCode::SUCCESS)
        }
        DaemonCommand::Probe { path, read, list } => {
            match (read, list) {
                (true, _) => probe::report(std::fs::read(&path))?,
                (_, true) => probe::report(probe::listing(&path))?,
                _ => probe::child(&path)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        DaemonCommand::CompleteWords { bash, words } => {
            let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            output::data(&completions::answer(&words, bash))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// How long threads may take to finish after a mount has ended.
const LAST_THREADS: Duration = Duration::from_secs(2);

fn keep() -> anyhow::Result<ExitCode> {
    hardening::name_process(keeper::NAME);
    let begun = keeper::begin()?;
    let memory = hardening::lock_memory();
    capabilities::limit(Role::Keeper);
    log::start(&serde_json::from_value(begun.config.log.clone())?, &begun.config.mountpoint);
    Ok(ExitCode::from(keeper::run(begun, memory)))
}

fn work() -> anyhow::Result<ExitCode> {
    hardening::name_process(worker::NAME);
    allocator::tune();
    let (config, key, seal, link) = worker::begin()?;
    let memory = hardening::lock_memory();
    capabilities::limit(Role::Worker { runs_commands: config.on_change.is_some() });
    log::start(&serde_json::from_value(config.log.clone())?, &config.mountpoint);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(log::RUNTIME_THREAD)
        .enable_all()
        .build()?;
    runtime.spawn(allocator::give_back());
    let takeover_state = match link.receive_state(&seal) {
        Ok(takeover_state) => takeover_state,
        Err(failed) => {
            tracing::error!("{failed}");
            return Ok(ExitCode::from(failed.exit));
        }
    };
    drop(seal);
    let state = takeover_state.state.clone();
    let stack = match runtime.block_on(assembly::build(&config, key, takeover_state)) {
        Ok(stack) => stack,
        Err(failure) => return Ok(give_up(&link, &failure)),
    };
    link.connected(stack.spec());
    let (filesystem, service, last) = stack.take_apart(runtime.handle());
    let body = worker::ProcessInfo { memory, state };
    let served = worker::serve(&link, &config, runtime.handle(), filesystem, service, body);
    runtime.block_on(last.stop());
    // Where there was no memory for them, there are threads that never begin, and that it would
    // wait for.
    runtime.shutdown_timeout(LAST_THREADS);
    match served {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(failed) => {
            tracing::error!("{failed}");
            link.failed(&failed);
            Ok(ExitCode::from(failed.exit))
        }
    }
}

fn give_up(link: &worker::KeeperLink, failure: &Failure) -> ExitCode {
    // The keeper says what it means: not mounted, or not taken over.
    tracing::debug!("{failure}");
    link.failed(&ExitError { exit: failure.exit as u8, message: failure.message.clone() });
    ExitCode::from(failure.exit as u8)
}
