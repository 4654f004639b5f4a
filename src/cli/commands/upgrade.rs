//! `vaultfs upgrade`: the program that is called takes a mount over from the one that serves it.
//!
//! The keeper starts it as the next worker; where it cannot read the mount's state, the old one
//! goes on. Programs that use the mount only wait. The keeper itself stays what it was until the
//! mount ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::VERSION;
use crate::cli::args::values::RuntimeDirArg;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::daemon::control::{Answer, Client, Request};
use crate::daemon::keeper::{NOT_UPGRADED, UPGRADED};
use crate::daemon::live_mounts;
use crate::daemon::live_mounts::LiveMount;
use crate::daemon::locate;
use crate::display::Shown;
use crate::sys::process;
use crate::sys::stdio;

/// Let this version of vaultfs take over a mount while programs use it
///
/// Open files and unsaved writes are kept. Needs Linux 6.9.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  vaultfs upgrade      # after a new package was installed: all of your mounts"
)]
pub struct UpgradeArgs {
    /// The mount point; without it, all mounts of this user
    mountpoint: Option<PathBuf>,

    /// Print JSON: an array of the mounts that this version serves now
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    runtime: RuntimeDirArg,
}

/// Status never waits for the network.
const ANSWER: Duration = Duration::from_secs(5);
/// For the refusal, or for the new worker to serve: a little more than its keeper gives it.
const TAKEOVER: Duration = Duration::from_secs(35);
/// A keeper that is stopped for so long will not go on by itself.
const STOPPED: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(args: UpgradeArgs) -> anyhow::Result<ExitCode> {
    args.runtime.apply();
    let program = std::fs::read_link("/proc/self/exe")?;
    let mounts = match &args.mountpoint {
        None => live_mounts::live(),
        Some(path) => {
            let entry = locate::vaultfs_of(path).map_err(|e| Failure::new(Exit::NotFound, e.to_string()))?;
            let none = || format!("{}: no process of this user's serves it", path.shown());
            vec![live_mounts::of(&entry).ok_or_else(|| Failure::new(Exit::NotFound, none()))?]
        }
    };
    let mut served = Vec::new();
    let upgraded = mounts.iter().try_for_each(|mount| {
        upgrade(mount, &program)?;
        served.push(json!({ "mountpoint": mount.mountpoint.to_string_lossy(), "version": VERSION }));
        if !args.json {
            stdio::say(format_args!("{} is served by {VERSION} now", mount.mountpoint.shown()));
        }
        Ok::<_, Failure>(())
    });
    if args.json {
        output::print_json(&served)?;
    }
    upgraded?;
    if mounts.is_empty() {
        return Err(Failure::no_mount().into());
    }
    Ok(ExitCode::SUCCESS)
}

/// What became of one request for an upgrade.
enum Asked {
    Done,
    /// The worker died of something else meanwhile, or before it could pass the request on.
    Died(String),
    Refused(String),
}

fn upgrade(mount: &LiveMount, program: &std::path::Path) -> Result<(), Failure> {
    let path = mount.mountpoint.shown();
    let end = Instant::now() + TAKEOVER;
    loop {
        match ask(mount, program, end)? {
            Asked::Done => return Ok(()),
            Asked::Refused(why) => {
                return Err(Failure::new(Exit::Failed, format!("{path} is not upgraded: {why}")));
            }
            Asked::Died(how) if Instant::now() < end => {
                stdio::say(format_args!("{path}: its worker died meanwhile ({how}): asking the next one"));
            }
            Asked::Died(how) => {
                let why = format!("its workers die before they can be upgraded ({how}); {}", mount.see_log());
                return Err(Failure::new(Exit::Failed, format!("{path} is not upgraded: {why}")));
            }
        }
    }
}

fn ask(mount: &LiveMount, program: &std::path::Path, end: Instant) -> Result<Asked, Failure> {
    // Another user's is waited for no longer than for any answer of that user's.
    let before = worker(mount, if mount.is_own() { end } else { Instant::now() + ANSWER })?;
    let asked = mount.connect(ANSWER).and_then(|mut client| {
        client.send(&Request::Upgrade { program: program.to_owned() }).map(|()| client)
    });
    if let Ok(mut client) = asked {
        // The old worker says why not; one that is relieved, or dies, says nothing more.
        wait_for_answer(mount, &client)?;
        match client.receive(ANSWER) {
            Ok(Some(Answer::Error(why))) => return Ok(Asked::Refused(why)),
            Ok(Some(_)) => return Ok(Asked::Refused("an odd answer".to_owned())),
            Ok(None) | Err(_) => {}
        }
    }
    loop {
        let now = worker(mount, end)?;
        if now.pid == before.pid {
            if Instant::now() >= end {
                return Ok(Asked::Refused(format!("the same worker continues; {}", mount.see_log())));
            }
            std::thread::sleep(Duration::from_millis(20));
        } else if now.last_end == UPGRADED && now.version == VERSION {
            return Ok(Asked::Done);
        } else if now.last_end == UPGRADED || now.last_end.starts_with(NOT_UPGRADED) {
            let why = "the new version could not take over, and the old one continues";
            return Ok(Asked::Refused(format!("{why}; {}", mount.see_log())));
        } else {
            return Ok(Asked::Died(now.last_end));
        }
    }
}

/// Waits until the old worker says something, or ends. The keeper decides about both.
fn wait_for_answer(mount: &LiveMount, client: &Client) -> Result<(), Failure> {
    let (path, keeper) = (mount.mountpoint.shown(), mount.keeper_pid());
    let end = Instant::now() + TAKEOVER;
    let mut moved = Instant::now();
    // A connection that breaks is the end, too.
    while !client.has_answered(Duration::from_millis(200)).unwrap_or(true) {
        if !process::is_stopped(keeper) {
            moved = Instant::now();
        } else if moved.elapsed() >= STOPPED {
            let why = format!(
                "its keeper, process {keeper}, is stopped: `kill -CONT {keeper}` lets it go on, with the upgrade"
            );
            return Err(Failure::new(Exit::Failed, format!("{path} is not upgraded: {why}")));
        }
        if Instant::now() >= end {
            let why = format!(
                "its keeper, process {keeper}, does not answer within {} s; {}",
                TAKEOVER.as_secs(),
                mount.see_log()
            );
            return Err(Failure::new(Exit::Failed, format!("{path} is not upgraded: {why}")));
        }
    }
    Ok(())
}

/// The worker as it describes itself.
struct Worker {
    pid: u64,
    version: String,
    /// How the one before it ended.
    last_end: String,
}

/// Asks the worker, or the one after it where it dies meanwhile.
fn worker(mount: &LiveMount, end: Instant) -> Result<Worker, Failure> {
    loop {
        let answer = mount.connect(ANSWER).and_then(|mut client| client.ask(&Request::Status, ANSWER));
        let why = match answer {
            Ok(Answer::Status(Value::Object(status))) => {
                let text =
                    |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                let pid = status.get("worker_pid").and_then(Value::as_u64).unwrap_or(0);
                return Ok(Worker { pid, version: text("version"), last_end: text("last_end") });
            }
            Ok(_) => "an odd answer".to_owned(),
            Err(e) => e.to_string(),
        };
        let gone = mount.has_ended(Duration::ZERO);
        if gone || Instant::now() >= end {
            let path = mount.mountpoint.shown();
            let what = if gone { "its keeper is gone" } else { "no worker answers" };
            return Err(Failure::new(Exit::Failed, format!("{path} is not upgraded: {what} ({why})")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
