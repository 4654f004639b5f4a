//! `vaultfs status`: how each mount is doing, for people and (`--json`) for scripts.
//!
//! Mounts are found in the mount table, which answers whatever state they are in; what they say
//! about themselves comes over their control sockets. A mount that does not answer is shown as
//! such.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde_json::{Value, json};

use crate::cli::args::values::RuntimeDirArg;
use crate::cli::commands::unmount::holders;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::cli::output::{GREEN, Lines, RED};
use crate::daemon::control::{Answer, Request};
use crate::daemon::live_mounts;
use crate::daemon::live_mounts::LiveMount;
use crate::daemon::locate;
use crate::daemon::locate::LocateError;
use crate::daemon::worker::reason;
use crate::display;
use crate::display::Shown;
use crate::fs::{AuditStatus, Status};
use crate::sys::mount_table;
use crate::sys::mount_table::{Dev, Entry};
use crate::sys::stdio;
use crate::sys::{mountpoint, probe, trust};
use crate::vault::cache::RATE_LIMITED;

/// Show the state of mounts
///
/// First comes whether all is well, then the vault, unsaved writes, the latest failures, the
/// requests left and the cache. It sends no request to the vault.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vaultfs status\n  vaultfs status --json ~/secrets | jq .[0].unsaved\n\nExit code 1 if a \
                        mount does not answer."
)]
pub struct StatusArgs {
    /// Show this mount only
    mountpoint: Option<PathBuf>,

    /// Print JSON: an array of mounts
    #[arg(long)]
    json: bool,

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
        Some(path) => match locate::vaultfs_at(path) {
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
        false => output::print(|out| found.iter().for_each(|mount| show(out, mount)))?,
    }
    if found.is_empty() && !args.json {
        stdio::say("no vault is mounted");
    }
    let all_answer = found.iter().all(|mount| mount.get("problem").is_none());
    Ok(if all_answer { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failed as u8) })
}

/// The mounts that [`run`] would show, each with what is wrong with it.
pub(in crate::cli) fn problems() -> std::io::Result<Vec<(PathBuf, Option<String>)>> {
    let all = all()?;
    let problems = each(&all).into_iter().map(|status| status["problem"].as_str().map(str::to_owned));
    Ok(all.iter().map(|entry| entry.mountpoint.clone()).zip(problems).collect())
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
            return unwell(&entry.mountpoint, entry.dev, why);
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
        None => unwell(&entry.mountpoint, entry.dev, &without_processes(entry, within)),
    }
}

/// What is shown of a mount that does not answer. Its path need not be UTF-8.
fn unwell(mountpoint: &Path, dev: Dev, problem: &str) -> Value {
    json!({ "mountpoint": mountpoint.to_string_lossy(), "dev": dev, "problem": problem })
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
    let problem = |text: String| unwell(&mount.mountpoint, mount.dev, &text);
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

fn without_processes(entry: &Entry, within: Duration) -> String {
    let path = entry.mountpoint.shown();
    match probe::stat(&entry.mountpoint, within) {
        Ok(Ok((seen, _))) if mountpoint::is_dead(entry, &seen) => format!(
            "DEAD: its processes died, nothing can be read or written there; `vaultfs mount` with the same options \
             replaces it, `vaultfs unmount {path}` removes it; the log says what happened"
        ),
        _ => NOT_OURS.into(),
    }
}

fn show(out: &mut Lines, mount: &Value) {
    let at = display::text(mount["mountpoint"].as_str().unwrap_or("?"));
    if let Some(problem) = mount["problem"].as_str() {
        out.marked(format_args!("{at}  "), RED, "NOT WELL", "");
        return out.line(format_args!("  {problem}"));
    }
    let fs = serde_json::from_value::<Status>(mount["fs"].clone()).ok();
    let verdict = fs.as_ref().map_or_else(|| "?".into(), verdict);
    let colour = if verdict == "ok" { GREEN } else { RED };
    out.marked(format_args!("{at}  "), colour, verdict, "");
    if let Some(user) = mount["user"].as_u64() {
        out.line(format_args!("  what follows is what user {user} says of it"));
    }
    if let Some(holders) = mount["detached"].as_str() {
        out.line(format_args!("  DETACHED: it is not mounted here any more, but {holders}"));
    }
    let mut line = |name: &str, text: String| out.line(format_args!("  {name:<11}{text}"));
    line("vault", vault(&mount["spec"]));
    if let Some(fs) = fs {
        line("state", state(&fs));
        let omitted = mount["omitted"].as_u64();
        let omitted = omitted.map_or_else(String::new, |n| format!(", and {n} that are left out here"));
        let unsaved = if fs.unsaved.is_empty() { "nothing".into() } else { fs.unsaved.len().to_string() };
        line("unsaved", unsaved + &omitted);
        for left in &fs.unsaved {
            line(
                "",
                format!("{}: {}, {}", display::text(&left.name), counted(left.size, "byte"), reason(left)),
            );
        }
        if fs.owners_set > 0 {
            line("owners", format!("{} set by chown, forgotten at unmount", fs.owners_set));
        }
        for one in &fs.failed_deletes {
            line("undeleted", format!("{}: {}", display::text(&one.name), one.error));
        }
        for error in fs.last_errors.iter().rev().take(SHOWN_ERRORS) {
            let name = display::text(&error.name);
            line("failed", format!("{} {} {name}: {}", error.at, error.operation, error.message));
        }
        line("budget", budget(&fs));
        if !fs.vault.spent_by.is_empty() {
            line("spent by", spent_by(&fs));
        }
        line("cache", cache(&fs));
        if let Some(audit) = &fs.audit {
            line("audit", audited(audit));
        }
    }
    line("memory", memory(&mount["memory"], &mount["fs"]["cache"]));
    line("processes", processes(mount));
    if let Some(problem) = mount["fs"]["journal"]["problem"].as_str() {
        line("a crash", format!("WOULD LOSE open and unsaved files: {problem}"));
    }
    if let Some(refused @ 1..) = mount["fs"]["journal"]["refused"].as_u64() {
        let lost = "what they said of open or unsaved files is lost";
        line("taken over", format!("{refused} records of the last worker made no sense: {lost}"));
    }
    line("kernel", kernel(&mount["kernel"]));
    line("up", seconds(mount["uptime_s"].as_u64().unwrap_or(0)));
}

fn processes(mount: &Value) -> String {
    let pids = format!("keeper {}, worker {}", mount["keeper_pid"], mount["worker_pid"]);
    match mount["restarts"].as_u64().unwrap_or(0) {
        0 => pids,
        n => {
            let why = mount["last_end"].as_str().unwrap_or("?");
            format!("{pids}; the worker was replaced {}, the last time because {why}", counted(n, "time"))
        }
    }
}

/// The latest failures, in the list for people; `--json` has all that are kept.
const SHOWN_ERRORS: usize = 5;

/// What matters first: ok, or what needs attention.
fn verdict(fs: &Status) -> String {
    let failed = fs.unsaved.iter().filter(|write| write.error.is_some()).count();
    let stored = match failed {
        0 => None,
        1 => Some("a save failed, its bytes are kept".to_owned()),
        n => Some(format!("{n} saves failed, their bytes are kept")),
    };
    let deleted = match fs.failed_deletes.len() {
        0 => None,
        1 => Some("an object that should be gone was not deleted".to_owned()),
        n => Some(format!("{n} objects that should be gone were not deleted")),
    };
    let reached = fs.vault.outage.as_ref().map(|why| match why.starts_with(RATE_LIMITED) {
        true => spent(fs).unwrap_or_else(|| RATE_LIMITED.to_owned()),
        false => "the vault does not answer".to_owned(),
    });
    // Of what does not answer that is no news.
    let followed = fs.changes.refresh.error.as_ref().filter(|_| reached.is_none());
    let followed = followed.map(|error| format!("changes elsewhere cannot be asked for ({error})"));
    let audited =
        fs.audit.as_ref().filter(|audit| audit.lost > 0).map(|audit| {
            format!("{} of the audit file {} lost", counted(audit.lost, "line"), was(audit.lost))
        });
    match [stored, deleted, reached, followed, audited].into_iter().flatten().collect::<Vec<_>>().as_slice() {
        [] => "ok".into(),
        troubles => format!("NOT WELL: {}", troubles.join("; ")),
    }
}

fn vault(spec: &Value) -> String {
    let endpoint = &spec["endpoint"];
    let embedded = || endpoint["embedded"].as_str().map(|dir| format!("embedded, in {dir}"));
    let place = endpoint["url"].as_str().map(str::to_owned).or_else(embedded);
    let place = place.unwrap_or_else(|| endpoint.to_string());
    match spec["prefix"].as_str() {
        Some(prefix) => format!("{place}, names below {prefix}/"),
        None => place,
    }
}

/// Whether the vault answers, in words.
pub(in crate::cli) fn state(fs: &Status) -> String {
    let vault = &fs.vault;
    let served = if fs.cache.serving_stale { ", serving cached values" } else { "" };
    match (&vault.outage, vault.outage_s) {
        (Some(why), _) if why.starts_with(RATE_LIMITED) => {
            format!("{}{served}", spent(fs).unwrap_or_else(|| why.clone()))
        }
        (Some(why), since) => {
            format!("DOES NOT ANSWER for {}{served}: {why}", seconds(since.unwrap_or(0)))
        }
        (None, _) => {
            let lags = vault.lagged_s.map_or("", |_| "; its reads lag behind its writes");
            let unlisted =
                if vault.unlisted { "; the key may not list names (mount --name NAME)" } else { "" };
            let only_reads = if vault.may_write == Some(false) { "; the key may not write" } else { "" };
            let requests = counted(vault.requests, "request");
            format!("answers, {} dialect, {requests} sent{lags}{unlisted}{only_reads}", vault.dialect)
        }
    }
}

/// That the rate limit is used up, and when it is back, where that is known.
fn spent(fs: &Status) -> Option<String> {
    let reset = fs.vault.budget.as_ref().map(|budget| budget.reset_s).filter(|reset| *reset > 0)?;
    Some(format!("{RATE_LIMITED}, renewed in {}", seconds(reset)))
}

fn was(count: u64) -> &'static str {
    if count == 1 { "was" } else { "were" }
}

fn budget(fs: &Status) -> String {
    let Some(b) = &fs.vault.budget else { return "no limit".into() };
    let time = match b.reset_s {
        0 if b.window_s == 0.0 || b.window_s == 60.0 => "this minute".into(),
        0 => format!("in a window of {}", seconds(b.window_s as u64)),
        left => format!("for {}", seconds(left)),
    };
    let why = if b.assumed { "; assumed, because the service does not tell its limit" } else { "" };
    format!("{} of {} requests left {time}{why}", b.remaining, b.limit)
}

/// The requests by program, the largest number first.
fn spent_by(fs: &Status) -> String {
    let spent = fs.vault.spent_by.iter().take(5);
    spent
        .map(|spent| format!("{} {}", display::text(&spent.program), spent.requests))
        .collect::<Vec<_>>()
        .join(", ")
}

fn audited(audit: &AuditStatus) -> String {
    let lost = match audit.lost {
        0 => String::new(),
        lost => format!(", {lost} LOST"),
    };
    let error = audit.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    format!("{} written{lost}{error}", counted(audit.written, "line"))
}

fn cache(fs: &Status) -> String {
    let cache = &fs.cache;
    let listed = match cache.listed_s {
        Some(ago) => format!("listed {} ago", seconds(ago)),
        None => "not listed yet".into(),
    };
    format!(
        "{}, {listed}; {} in {} of {}; fresh for {}",
        counted(cache.names as u64, "name"),
        counted(cache.values as u64, "value"),
        ByteSize(cache.bytes),
        ByteSize(cache.capacity),
        humantime::format_duration(Duration::from_secs_f64(cache.refresh_s.clamp(0.0, 1e9)))
    )
}

/// "1 name", "2 names".
pub(in crate::cli) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn seconds(count: u64) -> String {
    humantime::format_duration(Duration::from_secs(count)).to_string()
}

fn kernel(kernel: &Value) -> String {
    let after_crash = if kernel["resend"] == true {
        "crash recovery: supported (requests in flight are resent)"
    } else {
        "crash recovery: requests in flight fail (Linux 6.9 resends them)"
    };
    format!("FUSE {}; {after_crash}", kernel["fuse_abi"].as_str().unwrap_or("?"))
}

fn memory(memory: &Value, cache: &Value) -> String {
    let why = |process: &str| memory[process]["not_locked"].as_str().map(str::to_owned);
    match (why("worker"), why("keeper")) {
        (None, None) => "locked: secrets do not reach the swap".into(),
        (Some(why), _) | (None, Some(why)) => {
            let bytes = |of: &str| ByteSize(cache[of].as_u64().unwrap_or(0));
            let (locked, all) = (bytes("value_memory_locked"), bytes("value_memory"));
            format!(
                "NOT locked, secrets may reach the swap (of the cache's {all} for small values {locked} are locked): {why}"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(budget: Value, outage: Option<&str>) -> Status {
        serde_json::from_value(json!({
            "uptime_s": 1, "inodes": 1, "handles": 0, "scratch_bytes": 0, "unsaved": [], "last_errors": [],
            "vault": {
                "endpoint": "x", "dialect": "kv", "requests": 7, "budget": budget, "outage": outage, "outage_s": 3
            },
            "cache": {
                "names": 0, "listed_s": null, "values": 0, "bytes": 0, "capacity": 1, "refresh_s": 5.0,
                "serving_stale": true
            },
        }))
        .unwrap()
    }

    #[test]
    fn an_assumed_limit_is_called_so() {
        let fs = status(json!({"limit": 1000, "remaining": 998, "reset_s": 50, "assumed": true}), None);
        let said = budget(&fs);
        assert!(said.starts_with("998 of 1000 requests left for 50s; assumed"), "{said}");
        let fs = status(json!({"limit": 60, "remaining": 60, "reset_s": 0, "assumed": false}), None);
        assert_eq!(budget(&fs), "60 of 60 requests left this minute");
        let fs = status(Value::Null, None);
        assert_eq!(budget(&fs), "no limit");
    }

    #[test]
    fn the_first_line_says_whether_all_is_well() {
        let mut fs = status(Value::Null, None);
        assert_eq!(verdict(&fs), "ok");
        let left = json!({"name": "a", "path": "a", "size": 1, "error": "no", "conflict": false});
        fs.unsaved.push(serde_json::from_value(left).unwrap());
        fs.vault.outage = Some("no connection".into());
        assert_eq!(verdict(&fs), "NOT WELL: a save failed, its bytes are kept; the vault does not answer");
        (fs.unsaved, fs.vault.outage) = (Vec::new(), None);
        fs.changes.refresh.error = Some("refused".into());
        assert_eq!(verdict(&fs), "NOT WELL: changes elsewhere cannot be asked for (refused)");
        fs.changes.refresh.error = None;
        let left = json!({"name": "a", "path": "a", "error": "no", "retried": false});
        fs.failed_deletes.push(serde_json::from_value(left).unwrap());
        assert_eq!(verdict(&fs), "NOT WELL: an object that should be gone was not deleted");
        fs.failed_deletes.clear();
        fs.audit = Some(AuditStatus { written: 7, lost: 0, error: None });
        assert_eq!(verdict(&fs), "ok");
        fs.audit = Some(AuditStatus { written: 7, lost: 2, error: None });
        assert_eq!(verdict(&fs), "NOT WELL: 2 lines of the audit file were lost");
    }

    #[test]
    fn a_spent_budget_is_no_outage() {
        let spent = format!("{RATE_LIMITED}: it is renewed in 50 s");
        let fs = status(json!({"limit": 3, "remaining": 0, "reset_s": 42}), Some(&spent));
        assert_eq!(state(&fs), "rate limit used up, renewed in 42s, serving cached values");
        assert_eq!(verdict(&fs), "NOT WELL: rate limit used up, renewed in 42s");
        let fs = status(Value::Null, Some("no connection"));
        assert!(state(&fs).starts_with("DOES NOT ANSWER for 3s"));
    }
}
