//! The details of one mount, for people.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use serde_json::Value;

use crate::cli::output::{GREEN, Lines, RED};
use crate::daemon::worker::reason;
use crate::display;
use crate::fs::{AuditStatus, Status};
use crate::vault::cache::RATE_LIMITED;

/// The details of a mount; `all` its failures, however old.
pub(super) fn show(out: &mut Lines, mount: &Value, all: bool) {
    let at = display::text(mount["mountpoint"].as_str().unwrap_or("?"));
    let log = mount["log"].as_str().filter(|log| !log.is_empty());
    if let Some(problem) = mount["problem"].as_str() {
        out.marked(format_args!("{at}  "), RED, NOT_WELL, "");
        out.line(format_args!("  {problem}"));
        return log.into_iter().for_each(|log| out.line(format_args!("  log        {log}")));
    }
    let verdict = verdict_of(mount);
    let colour = if verdict == WELL { GREEN } else { RED };
    out.marked(format_args!("{at}  "), colour, verdict, "");
    if let Some(user) = mount["user"].as_u64() {
        out.line(format_args!("  what follows is what user {user} says of it"));
    }
    if let Some(holders) = mount["detached"].as_str() {
        out.line(format_args!("  DETACHED: it is not mounted here any more, but {holders}"));
    }
    let mut line = |name: &str, text: String| out.line(format_args!("  {name:<11}{text}"));
    line("vault", vault(&mount["spec"]));
    if let Some(fs) = status_of(mount) {
        line("state", state(&fs));
        failures(&mut line, mount, &fs, all);
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
    if let Some(log) = log {
        line("log", log.to_owned());
    }
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

/// Unsaved writes and failures, each cause once.
fn failures(line: &mut impl FnMut(&str, String), mount: &Value, fs: &Status, all: bool) {
    let mut causes = Causes::default();
    let above = fs.vault.outage.iter().chain(&fs.changes.refresh.error);
    above.for_each(|message| drop(causes.tell(message)));
    let omitted = mount["omitted"].as_u64();
    let omitted = omitted.map_or_else(String::new, |n| format!(", and {n} that are left out here"));
    let unsaved = if fs.unsaved.is_empty() { "nothing".into() } else { fs.unsaved.len().to_string() };
    line("unsaved", unsaved + &omitted);
    for left in &fs.unsaved {
        let (name, size) = (display::text(&left.name), counted(left.size, "byte"));
        let why = left.error.as_deref().map_or_else(|| reason(left).to_owned(), |error| causes.tell(error));
        line("", format!("{name}: {size}, {why}"));
    }
    if fs.owners_set > 0 {
        line("owners", format!("{} set by chown, forgotten at unmount", fs.owners_set));
    }
    for one in &fs.failed_deletes {
        line("undeleted", format!("{}: {}", display::text(&one.name), causes.tell(&one.error)));
    }
    let now = SystemTime::now();
    let shown = fs.last_errors.iter().rev().filter(|error| all || is_recent(&error.at, now));
    for error in shown.take(if all { usize::MAX } else { SHOWN_ERRORS }) {
        let (name, why) = (display::text(&error.name), causes.tell(&error.message));
        line("failed", format!("{} {} {name}: {why}", error.at, error.operation));
    }
}

/// The causes that were shown.
#[derive(Debug, Default)]
struct Causes(HashSet<String>);

impl Causes {
    /// What a message says went wrong, if it was not said before.
    fn tell(&mut self, message: &str) -> String {
        let cause = cause(message);
        // How often it was tried, and the request's id.
        let key = cause.split(" [request ").next().unwrap_or_default();
        let key = key.split(" (after ").next().unwrap_or_default();
        match self.0.insert(key.to_owned()) {
            true => cause.to_owned(),
            false => "see above".to_owned(),
        }
    }
}

/// A message without what was asked of which object: its line names that, where the message may
/// have an id (`reading "a": …`).
fn cause(message: &str) -> &str {
    if let Some(cause) = message.strip_prefix("listing the vault: ") {
        return cause;
    }
    let mut chars = message.char_indices().skip_while(|(_, c)| *c != '"').skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '"' => return message[at + 1..].strip_prefix(": ").unwrap_or(message),
            _ => {}
        }
    }
    message
}

/// Whether a failure was within the last ten minutes.
fn is_recent(at: &str, now: SystemTime) -> bool {
    let at = humantime::parse_rfc3339(at).ok();
    at.and_then(|at| now.duration_since(at).ok()).is_none_or(|age| age < RECENT)
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

/// The latest failures, in the list for people; `--verbose` and `--json` have all that are kept.
const SHOWN_ERRORS: usize = 5;
const RECENT: Duration = Duration::from_secs(600);

/// All is well.
pub(super) const WELL: &str = "ok";
/// Something is not.
pub(super) const NOT_WELL: &str = "NOT WELL";

/// What a mount says of its file system; none if it is of a version too different.
pub(super) fn status_of(mount: &Value) -> Option<Status> {
    serde_json::from_value(mount["fs"].clone()).ok()
}

/// What matters first: ok, or what needs attention.
pub(super) fn verdict_of(mount: &Value) -> String {
    match mount["problem"].as_str() {
        Some(problem) => format!("{NOT_WELL}: {problem}"),
        None => status_of(mount).map_or_else(|| "?".into(), |fs| verdict(&fs)),
    }
}

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
    let followed = followed.map(|error| format!("changes elsewhere cannot be asked for ({})", cause(error)));
    let audited =
        fs.audit.as_ref().filter(|audit| audit.lost > 0).map(|audit| {
            format!("{} of the audit file {} lost", counted(audit.lost, "line"), was(audit.lost))
        });
    match [stored, deleted, reached, followed, audited].into_iter().flatten().collect::<Vec<_>>().as_slice() {
        [] => WELL.into(),
        troubles => format!("{NOT_WELL}: {}", troubles.join("; ")),
    }
}

/// URL, or directory of an embedded vault.
pub(super) fn place(spec: &Value) -> String {
    let endpoint = &spec["endpoint"];
    let embedded = || endpoint["embedded"].as_str().map(|dir| format!("embedded={dir}"));
    endpoint["url"].as_str().map(str::to_owned).or_else(embedded).unwrap_or_else(|| "?".into())
}

fn vault(spec: &Value) -> String {
    let place = place(spec);
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
            format!("DOES NOT ANSWER for {}{served}: {}", seconds(since.unwrap_or(0)), cause(why))
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

pub(super) fn seconds(count: u64) -> String {
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
    use serde_json::json;

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

    #[test]
    fn a_cause_is_shown_once_and_without_the_id_of_an_object() {
        let mut causes = Causes::default();
        let down = "no connection to the vault at http://v (refused): start it";
        assert_eq!(
            causes.tell(&format!("listing the vault: {down} (after 3 tries)")),
            format!("{down} (after 3 tries)")
        );
        assert_eq!(
            causes.tell(&format!("looking at the object \"vault_obj_1\": {down} (after 2 tries)")),
            "see above"
        );
        assert_eq!(causes.tell(&format!("{:?}: {down}", "a\"b: c\\")), "see above");
        let conflict = "the object was changed elsewhere: `vaultfs pending` decides";
        assert_eq!(causes.tell(conflict), conflict);
        assert_eq!(causes.tell("\"a\" exists: no"), "\"a\" exists: no", "that is no operation");
        assert_eq!(causes.tell("a \"quote that does not end: x"), "a \"quote that does not end: x");
    }

    #[test]
    fn failures_age() {
        let now = humantime::parse_rfc3339("2026-12-01T12:00:00Z").unwrap();
        assert!(is_recent("2026-12-01T11:50:01Z", now) && !is_recent("2026-12-01T11:50:00Z", now));
        assert!(is_recent("2026-12-01T12:00:01Z", now) && is_recent("no time", now));
    }

    #[test]
    fn old_failures_are_shown_to_those_who_ask_for_all() {
        let mut mount = json!({ "mountpoint": "/m", "fs": status(Value::Null, None) });
        let failure = |name: &str, at: SystemTime| {
            json!({
                "at": humantime::format_rfc3339_seconds(at).to_string(), "operation": "symlink", "name": name, "errno": "EPERM",
                "message": "a vault holds no links"
            })
        };
        let now = SystemTime::now();
        mount["fs"]["last_errors"] = json!([failure("old", now - RECENT), failure("new", now)]);
        let shown = |all: bool| {
            let mut lines = Lines::default();
            show(&mut lines, &mount, all);
            lines.to_string()
        };
        assert!(shown(false).starts_with("/m  ok\n"), "{}", shown(false));
        assert!(
            shown(false).contains(" symlink new: ") && !shown(false).contains(" old: "),
            "{}",
            shown(false)
        );
        assert!(
            shown(true).contains(" symlink new: ") && shown(true).contains(" old: see above"),
            "{}",
            shown(true)
        );
    }
}
