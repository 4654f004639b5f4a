//! `vaultfs status`: the state of each mount, in one line for each, in detail, and (`--json`) for
//! scripts.
//!
//! Mounts are found in the mount table, which answers whatever state they are in; what they say
//! about themselves comes over their control sockets. A mount that does not answer is shown as
//! such.

mod details;
mod table;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub(in crate::cli) use details::{counted, state};
use serde_json::{Value, json};

use crate::cli::args::values::RuntimeDirArg;
use crate::cli::commands::unmount::holders;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::daemon::control::{Answer, Request};
use crate::daemon::live_mounts;
use crate::daemon::live_mounts::LiveMount;
use crate::daemon::locate;
use crate::daemon::locate::LocateError;
use crate::display::Shown;
use crate::sys::mount_table;
use crate::sys::mount_table::{Dev, Entry};
use crate::sys::{mountpoint, probe, trust};

/// Show the state of mounts
///
/// One line for each mount; with a mount point its details: whether all is well, then the vault,
/// its log, unsaved writes, failures of the last ten minutes, the requests left and the cache. It
/// sends no request to the vault.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vaultfs status\n  vaultfs status ~/secrets\n  vaultfs status --json ~/secrets | jq \
                        '.[0].fs.unsaved'\n\nExit code 1 if a mount is not well, 5 if there is none."
)]
pub struct StatusArgs {
    /// Show the details of this mount
    mountpoint: Option<PathBuf>,

    /// Print JSON: an array of mounts with their details
    #[arg(long)]
    json: bool,

    /// Show details of each mount, and older failures
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    runtime: RuntimeDirArg,
}

/// Of a mount without a process here; it may be well.
pub(in crate::cli) const NOT_OURS: &str = "not your mount: it belongs to another user or container";
/// Status never waits for the network, so a worker that takes longer hangs.
const ANSWER: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    args.runtime.apply();
    let found: Vec<Value> = match &args.mountpoint {
        Some(path) => match locate::vaultfs_of(path) {
            Ok(entry) => vec![ask(&entry, ANSWER)],
            Err(e) => {
                let was_there = match &e {
                    LocateError::NotMounted(path) => detached(Some(path)).pop(),
                    LocateError::Foreign(..) | LocateError::Link(_) | LocateError::Table(_) => None,
                };
                vec![was_there.ok_or_else(|| Failure::new(Exit::NotFound, e.to_string()))?]
            }
        },
        None => each(&all()?).into_iter().chain(detached(None)).collect(),
    };
    match args.json {
        true => output::print_json(&found)?,
        false if args.verbose || args.mountpoint.is_some() => {
            output::print(|out| found.iter().for_each(|mount| details::show(out, mount, args.verbose)))?;
        }
        false => output::print(|out| table::show(out, &found))?,
    }
    if found.is_empty() {
        return Err(Failure::no_mount().into());
    }
    let all_well = found.iter().all(|mount| details::verdict_of(mount) == details::WELL);
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failed as u8) })
}

/// A mount that [`run`] would show.
pub(in crate::cli) struct Seen {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
    /// Where its log is, if that is known.
    pub log: String,
}

/// The mounts that [`run`] would show.
pub(in crate::cli) fn problems() -> std::io::Result<Vec<Seen>> {
    let all = all()?;
    let text = |status: &Value, name: &str| status[name].as_str().map(str::to_owned);
    let seen = |(entry, status): (&Entry, Value)| Seen {
        mountpoint: entry.mountpoint.clone(),
        problem: text(&status, "problem"),
        log: text(&status, "log").unwrap_or_default(),
    };
    Ok(all.iter().zip(each(&all)).map(seen).collect())
}

/// The status of each mount. All mounts of one other user together get the time of one, and little
/// memory: there may be a thousand that do not answer, or answer much.
fn each(mounts: &[Entry]) -> Vec<Value> {
    let mut left: HashMap<Option<u32>, (Duration, usize)> = HashMap::new();
    let status = |entry: &Entry| {
        if trust::is_own(entry) {
            return ask(entry, ANSWER);
        }
        let (time, bytes) = left.entry(entry.owner).or_insert((ANSWER, 4 * trust::LONGEST_OF_OTHERS));
        if time.is_zero() || *bytes == 0 {
            let why = "it is not asked: other mounts of its user take too long; name it to have it asked";
            return unwell(&entry.mountpoint, entry.dev, why, "");
        }
        let begun = Instant::now();
        let status = ask(entry, *time);
        *time = time.saturating_sub(begun.elapsed());
        *bytes = bytes.saturating_sub(status.to_string().len());
        status
    };
    mounts.iter().map(status).collect()
}

/// Each vaultfs file system once, also where it is bound to several places. Those of others are
/// root's to see.
fn all() -> std::io::Result<Vec<Entry>> {
    let mut found: Vec<Entry> = Vec::new();
    for entry in mount_table::table()? {
        let ours = entry.is_vaultfs() && trust::may_ask(&entry).is_some();
        if ours && !found.iter().any(|f| f.dev == entry.dev) {
            found.push(entry);
        }
    }
    Ok(found)
}

/// The mounts (that of `path`) which go on without being mounted here.
fn detached(path: Option<&Path>) -> Vec<Value> {
    let mut found = live_mounts::detached();
    found.retain(|mount| path.is_none_or(|path| path == mount.mountpoint));
    let mut shown = Vec::new();
    for mount in found {
        let mut status = answer(&mount, ANSWER);
        // One that has ended meanwhile could not answer.
        if !mount.has_ended(Duration::ZERO) {
            status["detached"] = holders(&mount).into();
            shown.push(status);
        }
    }
    shown
}

fn ask(entry: &Entry, within: Duration) -> Value {
    if let Some(mount) = live_mounts::of(entry) {
        return answer(&mount, within);
    }
    match live_mounts::orphan(entry) {
        Some(orphan) => orphaned(answer(&orphan, within)),
        None => without_processes(entry, within),
    }
}

/// What is shown of a mount that does not answer. Its path need not be UTF-8.
fn unwell(mountpoint: &Path, dev: Dev, problem: &str, log: &str) -> Value {
    json!({ "mountpoint": mountpoint.to_string_lossy(), "dev": dev, "problem": problem, "log": log })
}

/// What an orphaned worker says, as a problem.
fn orphaned(mut status: Value) -> Value {
    if status.get("problem").is_none() {
        let unsaved = status["fs"]["unsaved"].as_array().map_or(0, Vec::len);
        status["problem"] = format!(
            "ENDING: its keeper is gone; its worker, process {}, stores unsaved writes ({}) and ends; then the mount is \
             dead until `vaultfs mount` replaces it or `vaultfs unmount` removes it",
            status["worker_pid"],
            counted(unsaved as u64, "write")
        )
        .into();
    }
    status
}

fn answer(mount: &LiveMount, within: Duration) -> Value {
    let problem = |text: String| unwell(&mount.mountpoint, mount.dev, &text, mount.log());
    if let Some(why) = mount.broken() {
        return problem(format!("BROKEN: {why}"));
    }
    let answer = mount.connect(within).and_then(|mut c| c.ask(&Request::Status, within));
    match answer {
        Ok(Answer::Status(mut status)) if status.is_object() => {
            // The kernel knows better than another user.
            if !mount.is_own() {
                status["mountpoint"] = mount.mountpoint.to_string_lossy().into();
                status["dev"] = json!(mount.dev);
                status["user"] = mount.owner().into();
            }
            status
        }
        Ok(Answer::Error(e)) => problem(e),
        Ok(_) => problem("its worker gave another answer".into()),
        Err(e) => problem(format!("its worker does not answer: {e}")),
    }
}

fn without_processes(entry: &Entry, within: Duration) -> Value {
    let path = entry.mountpoint.shown();
    match probe::stat(&entry.mountpoint, within) {
        Ok(Ok((seen, _))) if mountpoint::is_dead(entry, &seen) => {
            let problem = format!(
                "DEAD: its processes died, nothing can be read or written there; `vaultfs mount` with the same options \
                 replaces it, `vaultfs unmount {path}` removes it"
            );
            unwell(&entry.mountpoint, entry.dev, &problem, &live_mounts::log_of_dead(entry))
        }
        _ => unwell(&entry.mountpoint, entry.dev, NOT_OURS, ""),
    }
}
