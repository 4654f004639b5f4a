//! `vaultfs pending`: writes that the vault does not have, and what becomes of them.
//!
//! The list and the decisions go over the control socket; bytes never do: `--save` reads the file
//! in the mount, which shows what was written.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::args::values::RuntimeDirArg;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::cli::output::{Lines, Output};
use crate::daemon::control::{Answer, Request};
use crate::daemon::live_mounts;
use crate::daemon::live_mounts::LiveMount;
use crate::daemon::locate;
use crate::daemon::worker::reason;
use crate::display;
use crate::display::Shown;
use crate::fs::{FailedDelete, Unsaved};
use crate::sys::files;
use crate::sys::mount_table::Dev;
use crate::sys::stdio;

/// List writes that the vault does not have, and store or drop them
///
/// A failed save stays in the mount and is retried automatically. Two kinds are not: a conflict
/// (the object has changed in the vault since), and a value that the vault refuses (invalid, too
/// large). Decide about these with --retry, --save and --discard. Deletions that the vault refused
/// (after a rename to a backup name) are listed too.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vaultfs pending\n  vaultfs pending --retry ~/secrets\n  vaultfs pending --save \
                        db/password > mine\n\nExit code 7 while anything is left."
)]
pub struct PendingArgs {
    /// The mount point; optional while there is only one mount
    mountpoint: Option<PathBuf>,

    /// Store the writes now, also over a newer version (which stays in .versions), and retry
    /// refused deletions
    #[arg(long)]
    retry: bool,

    /// Write the unsaved bytes of this object to standard output
    #[arg(long, value_name = "NAME", conflicts_with_all = ["retry", "discard", "json"])]
    save: Option<String>,

    /// Drop the unsaved bytes of this object, or its refused deletion; the file then shows what
    /// the vault has
    #[arg(long, value_name = "NAME", conflicts_with = "retry")]
    discard: Option<String>,

    /// Print JSON: an array of writes
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    runtime: RuntimeDirArg,
}

/// A retry is bounded by the mount's --timeout, which is not known here.
const ANSWER: Duration = Duration::from_secs(60);
/// What asks no vault is answered by then, and another user's worker is not waited for while it is
/// replaced.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(args: PendingArgs) -> anyhow::Result<ExitCode> {
    args.runtime.apply();
    let mount = the_mount(args.mountpoint.as_ref())?;
    if let Some(name) = &args.save {
        return save(&mount, name);
    }
    let mut left = match &args.discard {
        Some(name) => match ask(&mount, &Request::Discard { name: name.clone() })? {
            Answer::Discarded(true) => list(&mount)?,
            Answer::Discarded(false) => return Err(not_pending(name).into()),
            _ => return Err(odd(&mount).into()),
        },
        None => list(&mount)?,
    };
    if args.retry && !left.is_empty() {
        left = match ask(&mount, &Request::Retry { name: None })? {
            Answer::Drained(_) => list(&mount)?,
            _ => return Err(odd(&mount).into()),
        };
    }
    match args.json {
        true => output::print_json(&as_json(&left))?,
        false => output::print(|out| show(out, &left))?,
    }
    if left.is_empty() && !args.json {
        stdio::say("the vault has everything");
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(Exit::Unsaved as u8) })
}

fn the_mount(path: Option<&PathBuf>) -> Result<LiveMount, Failure> {
    if let Some(path) = path {
        let entry = locate::vaultfs_of(path).map_err(|e| Failure::new(Exit::NotFound, e.to_string()))?;
        let none = || Failure::new(Exit::Failed, format!("{}: its processes are gone", path.shown()));
        // The worker of a keeper that is gone still has what is unsaved.
        return live_mounts::of(&entry).or_else(|| live_mounts::orphan(&entry)).ok_or_else(none);
    }
    let mut live = live_mounts::live();
    match (live.pop(), live.len()) {
        (Some(mount), 0) => Ok(mount),
        (None, _) => Err(Failure::no_mount()),
        (Some(_), _) => Err(Failure::new(Exit::Usage, "several vaults are mounted: name the mount point")),
    }
}

fn ask(mount: &LiveMount, request: &Request) -> Result<Answer, Failure> {
    let silent = |e: std::io::Error| {
        Failure::new(Exit::Failed, format!("{} does not answer: {e}", mount.mountpoint.shown()))
    };
    let at_once = !mount.is_own() && !matches!(request, Request::Retry { .. });
    let within = if at_once { AT_ONCE } else { ANSWER };
    match mount.connect(within).and_then(|mut client| client.ask(request, within)) {
        Ok(Answer::Error(e)) => Err(Failure::new(Exit::Failed, e)),
        Ok(answer) => Ok(answer),
        Err(e) => Err(silent(e)),
    }
}

/// What the vault does not have, and what it still has.
struct Left {
    unsaved: Vec<Unsaved>,
    failed_deletes: Vec<FailedDelete>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.unsaved.is_empty() && self.failed_deletes.is_empty()
    }
}

fn list(mount: &LiveMount) -> Result<Left, Failure> {
    let Answer::Status(mut status) = ask(mount, &Request::Status)? else { return Err(odd(mount)) };
    let mut list = |name: &str| status.pointer_mut(name).map(Value::take).unwrap_or_default();
    let unsaved = serde_json::from_value(list("/fs/unsaved")).map_err(|_| odd(mount))?;
    // A worker of an older version knows of none.
    let failed_deletes = serde_json::from_value(list("/fs/undeleted")).unwrap_or_default();
    if let Some(omitted) = status.get("omitted").and_then(Value::as_u64) {
        stdio::say(format_args!("{omitted} more are not listed here"));
    }
    Ok(Left { unsaved, failed_deletes })
}

fn odd(mount: &LiveMount) -> Failure {
    let path = mount.mountpoint.shown();
    Failure::new(Exit::Failed, format!("{path} is served by another version of vaultfs: mount it anew"))
}

fn not_pending(name: &str) -> Failure {
    Failure::new(
        Exit::NotFound,
        format!("{name:?} has no unsaved write; `vaultfs pending` lists those there are"),
    )
}

fn save(mount: &LiveMount, name: &str) -> anyhow::Result<ExitCode> {
    if !mount.is_own() {
        let sentence =
            format!("{} is the mount of another user: only that user can do this", mount.mountpoint.shown());
        return Err(Failure::new(Exit::Usage, sentence).into());
    }
    let write =
        list(mount)?.unsaved.into_iter().find(|write| write.name == name).ok_or_else(|| not_pending(name))?;
    let mut file = open_in(mount, Path::new(&write.path))?;
    let mut out = Output::new();
    let mut part = Zeroizing::new(vec![0; 64 * 1024]);
    loop {
        let n = file.read(&mut part)?;
        if n == 0 || !out.bytes(&part[..n])? {
            return Ok(out.finish()?);
        }
    }
}

/// Opens a file of the mount. Its path comes from the worker: it leads nowhere else.
fn open_in(mount: &LiveMount, path: &Path) -> std::io::Result<File> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let root = File::options().read(true).custom_flags(flags).open(&mount.mountpoint)?;
    if Dev::from_raw(root.metadata()?.dev()) != mount.dev {
        return Err(std::io::Error::other("another mount covers it, or it is gone"));
    }
    files::open_below(root.as_fd(), path)
}

/// What becomes of a write that failed, if nothing is done.
fn next(write: &Unsaved) -> String {
    match (&write.error, write.retry_s) {
        (None, _) => String::new(),
        (Some(_), Some(0)) => "; it is tried again now".into(),
        (Some(_), Some(s)) => format!("; it is tried again in {s} s"),
        (Some(_), None) => "; it is not tried again by itself (--retry, --save, --discard)".into(),
    }
}

fn as_json(left: &Left) -> Vec<Value> {
    let failed_deletes = left.failed_deletes.iter().map(|one| {
        json!({ "name": one.name, "path": one.path, "error": one.error, "retried": one.retried, "undeleted": true })
    });
    left.unsaved.iter().map(|write| json!(write)).chain(failed_deletes).collect()
}

fn show(out: &mut Lines, left: &Left) {
    for write in &left.unsaved {
        let what = if write.conflict { "conflict" } else { "unsaved" };
        let (name, next) = (display::text(&write.name), next(write));
        out.line(format_args!("{what}  {:>8}  {name}  {}{next}", write.size, reason(write)));
    }
    for one in &left.failed_deletes {
        out.line(format_args!("undeleted  {:>6}  {}  {}", "-", display::text(&one.name), one.error));
    }
}
