//! `vaultfs status`: how each mount is doing, for people and (`--json`) for scripts.
//!
//! Mounts are found in the mount table, which answers whatever state they are in; what they say about
//! themselves comes over their control sockets. A mount that does not answer is shown as such.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use crate::fuse::control::{Answer, Client, Request};
use crate::fuse::locate;
use crate::fuse::mounts::{self, Entry};

/// Say how mounts are doing
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Only this mount
    mountpoint: Option<PathBuf>,

    /// As JSON: an array of mounts
    #[arg(long)]
    json: bool,
}

/// Status never waits for the network, so a worker that takes longer hangs.
const ANSWER: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let entries = match &args.mountpoint {
        Some(path) => {
            vec![locate::vaultfs_at(path).map_err(|e| Failure::new(Exit::NotFound, e.to_string()))?]
        }
        None => all()?,
    };
    let found: Vec<Value> = entries.iter().map(ask).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else if found.is_empty() {
        eprintln!("vaultfs: no vault is mounted");
    } else {
        for mount in &found {
            show(&mut out, mount)?;
        }
    }
    let all_answer = found.iter().all(|mount| mount.get("problem").is_none());
    Ok(if all_answer { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failed as u8) })
}

/// Each vaultfs file system once, also where it is bound to several places.
fn all() -> std::io::Result<Vec<Entry>> {
    let mut found: Vec<Entry> = Vec::new();
    for entry in mounts::table()? {
        if entry.is_vaultfs() && !found.iter().any(|f| f.dev == entry.dev) {
            found.push(entry);
        }
    }
    Ok(found)
}

fn ask(entry: &Entry) -> Value {
    let problem = |text: String| json!({ "mountpoint": entry.mountpoint, "dev": entry.dev, "problem": text });
    let Some(mount) = mounts::of(entry) else {
        return problem("no process of this user's answers for it: it is dead, or somebody else's".into());
    };
    let answer = Client::connect(&mount.socket).and_then(|mut c| c.ask(&Request::Status, ANSWER));
    match answer {
        Ok(Answer::Status(status)) => status,
        Ok(Answer::Error(e)) => problem(e),
        Ok(_) => problem("its worker gave another answer".into()),
        Err(e) => problem(format!("its worker does not answer: {e}")),
    }
}

fn show(out: &mut impl Write, mount: &Value) -> std::io::Result<()> {
    writeln!(out, "{}", mount["mountpoint"].as_str().unwrap_or("?"))?;
    if let Some(problem) = mount["problem"].as_str() {
        return writeln!(out, "  {problem}");
    }
    let mut line = |name: &str, text: String| writeln!(out, "  {name:<12}{text}");
    line("vault", vault(&mount["spec"]))?;
    line("processes", format!("keeper {}, worker {}", mount["keeper_pid"], mount["worker_pid"]))?;
    line("kernel", kernel(&mount["kernel"]))?;
    line("memory", memory(&mount["memory"]))?;
    line(
        "up",
        humantime::format_duration(Duration::from_secs(mount["uptime_s"].as_u64().unwrap_or(0))).to_string(),
    )?;
    let mut rest = Vec::new();
    flatten("", &mount["fs"], &mut rest);
    for (name, value) in rest {
        line(&name, value)?;
    }
    Ok(())
}

fn vault(spec: &Value) -> String {
    let endpoint = &spec["endpoint"];
    let place = endpoint["url"]
        .as_str()
        .map(str::to_owned)
        .or_else(|| endpoint["embedded"].as_str().map(|dir| format!("embedded, in {dir}")));
    let place = place.unwrap_or_else(|| endpoint.to_string());
    match spec["prefix"].as_str() {
        Some(prefix) => format!("{place}, names below {prefix}/"),
        None => place,
    }
}

fn kernel(kernel: &Value) -> String {
    let after_crash = if kernel["resend"] == true {
        "requests in flight survive a crash of the worker"
    } else {
        "too old to send requests again (Linux 6.9): those in flight fail when the worker crashes"
    };
    format!("FUSE {}; {after_crash}", kernel["fuse_abi"].as_str().unwrap_or("?"))
}

fn memory(memory: &Value) -> String {
    let why = |process: &str| memory[process]["not_locked"].as_str().map(str::to_owned);
    match (why("worker"), why("keeper")) {
        (None, None) => "locked: secrets do not reach the swap".into(),
        (Some(why), _) | (None, Some(why)) => format!("NOT locked, secrets may reach the swap: {why}"),
    }
}

/// Nested values as `outer.inner`; empty ones are left out.
fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(map) => {
            for (key, inner) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, inner, out);
            }
        }
        Value::Array(items) if items.is_empty() => {}
        Value::String(text) => out.push((prefix.to_owned(), text.clone())),
        other => out.push((prefix.to_owned(), other.to_string())),
    }
}
