//! `vaultfs unmount`: stores what is unsaved, unmounts, and waits for the end of all processes.
//!
//! Exit 0: the vault has every write, the mount is gone, and so are its processes. Otherwise the
//! mount stays (exit 7: unsaved writes are left; exit 1: programs use it, and are named), unless
//! `--lazy` or `--force` is given. Exit 7 also when `--force` discarded writes (`force`).

mod absent;
mod force;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::args::values::RuntimeDirArg;
use crate::cli::commands::unmount::absent::{not_mounted_here, without_processes};
use crate::cli::commands::unmount::force::{force, force_orphan};
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::cli::terminal;
use crate::daemon::control::{Answer, Client, Request};
use crate::daemon::live_mounts;
use crate::daemon::live_mounts::LiveMount;
use crate::daemon::locate;
use crate::daemon::worker::reason;
use crate::display;
use crate::display::Shown;
use crate::fs::Unsaved;
use crate::sys::channel;
use crate::sys::mount_table;
use crate::sys::mount_table::Entry;
use crate::sys::process::Process;
use crate::sys::stdio;
use crate::sys::unmount;
use crate::sys::unmount::Mode;
use crate::sys::{mount_users, mountpoint};

/// Store unsaved writes, then unmount
///
/// Exit code 0 means that the vault has every write, and that the mount and its processes are gone.
/// If a write cannot be stored, or if programs use the mount, vaultfs names them and the mount
/// stays.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vaultfs unmount ~/secrets\n  vaultfs unmount --lazy ~/secrets     # programs keep it \
                        until they end\n\nExit code 1: programs use the mount, and it stays. Exit code 7: unsaved writes \
                        are left, the mount stays, and `vaultfs pending` lists them; with --force they are lost."
)]
pub struct UnmountArgs {
    /// The mount point
    mountpoint: PathBuf,

    /// Detach now, even if programs use it; the mount ends when the last of them closes it
    #[arg(short, long)]
    lazy: bool,

    /// Give up writes that cannot be stored, and take the mount away from programs that use it
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    runtime: RuntimeDirArg,
}

impl UnmountArgs {
    /// For umount(8)'s helper.
    pub fn new(mountpoint: PathBuf, lazy: bool, force: bool) -> Self {
        Self { mountpoint, lazy, force, runtime: RuntimeDirArg::default() }
    }
}

/// A worker that has not reported its state within this time hangs.
const ANSWER: Duration = Duration::from_secs(5);
/// The same where the keeper may be replacing its worker.
const REPLACED: Duration = Duration::from_secs(20);
/// The same after the worker was killed: the keeper may delay the restart.
const TAKEOVER: Duration = Duration::from_secs(45);
/// Time for the worker beyond its own `--drain`.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);
/// The default of `--drain`.
const USUAL_DRAIN: Duration = Duration::from_secs(60);
/// Upper bound of `--drain`.
const LONGEST_DRAIN: Duration = Duration::from_secs(7 * 24 * 3600);
/// Drain time with `--force`.
const FORCED_DRAIN: Duration = Duration::from_secs(10);
/// Timeout of the processes' end after the unmount.
const END: Duration = Duration::from_secs(30);
/// How long a mount may be busy without a known user.
const TRANSIENT: Duration = Duration::from_secs(2);

/// Timeout of the next worker's answer, after a death.
const NEXT_WORKER: Duration = Duration::from_secs(30);
/// An unmounted mount without users ends within that time. A container that is being made has a
/// copy of each mount for a moment.
const DETACHED_AFTER: Duration = Duration::from_secs(5);
/// How often a drain is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the command, and says on a terminal that it is done.
pub fn run_and_say(args: UnmountArgs) -> anyhow::Result<ExitCode> {
    let (path, lazy) = (args.mountpoint.clone(), args.lazy);
    let code = run(args)?;
    // One that is only detached is reported as that.
    if code == ExitCode::SUCCESS && !lazy {
        terminal::done(format_args!("unmounted {}", path.shown()));
    }
    Ok(code)
}

/// Runs the command.
pub fn run(args: UnmountArgs) -> anyhow::Result<ExitCode> {
    channel::close_inherited();
    args.runtime.apply();
    let entry = match locate::vaultfs_at(&args.mountpoint) {
        Ok(entry) => entry,
        Err(e) => return not_mounted_here(&args, &e),
    };
    // The shell's working directory must not keep the mount busy.
    std::env::set_current_dir("/")?;
    let Some(mount) = live_mounts::of(&entry) else {
        return match live_mounts::orphan(&entry) {
            Some(orphan) if args.force => force_orphan(&entry, &orphan),
            Some(orphan) => end_of_orphan(&entry, &orphan),
            None => without_processes(&entry, &args),
        };
    };
    if !args.lazy && !args.force {
        // Before draining: a file that is being written must not be stored half-written for
        // nothing.
        refuse_if_busy(&entry)?;
    }
    if args.force {
        return force(Some(&entry), &mount);
    }
    let is_here = || mount_table::is_mounted(&entry.mountpoint, entry.dev);
    let (unsaved, patience) = match drain(&mount, REPLACED, None) {
        Ok(drained) => drained,
        Err(_) if !is_here() => {
            let path = entry.mountpoint.shown();
            let message =
                format!("{path} was unmounted by another command meanwhile, which names unsaved writes");
            return Err(Failure::new(Exit::Failed, message).into());
        }
        Err(e) => return Err(e.into()),
    };
    if !unsaved.is_empty() {
        let next = format!(
            "{} stays mounted; repair the cause and try again, or give them up with --force",
            entry.mountpoint.shown()
        );
        return Err(not_stored(&unsaved, &next).into());
    }
    let watcher = match watch(&mount) {
        Ok(watcher) => Some(watcher),
        // Another command was first; everything was stored before.
        Err(_) if !is_here() => None,
        Err(e) => return Err(e.into()),
    };
    // Device numbers of file systems that ended go to others at once.
    let mut elsewhere = mount_table::table()?;
    elsewhere.retain(|other| other.dev == entry.dev && other.id != entry.id);
    if !take_away(&entry, args.lazy)? {
        return Ok(ExitCode::SUCCESS);
    }
    refuse_if_bound(&entry, &elsewhere)?;
    wait_for_end(&mount, watcher, patience)
}

/// The mount lives as long as it is mounted elsewhere, too.
fn refuse_if_bound(entry: &Entry, elsewhere: &[Entry]) -> anyhow::Result<()> {
    let others = mount_table::table()?.into_iter().filter(|other| elsewhere.contains(other));
    let others: Vec<_> = others.map(|other| other.mountpoint.shown().to_string()).collect();
    if others.is_empty() {
        return Ok(());
    }
    let (here, there) = (entry.mountpoint.shown(), others.join(", "));
    let message = format!("{here} is unmounted, but the same vault is still at {there}: unmount there, too");
    Err(Failure::new(Exit::Failed, message).into())
}

fn watch(mount: &LiveMount) -> std::io::Result<Client> {
    let mut watcher = mount.connect(ANSWER)?;
    watcher.send(&Request::Watch)?;
    Ok(watcher)
}

/// The drain time by the mount's `--drain`, and since when it is known.
type Own = Option<(Duration, Instant)>;

/// Drains, for the mount's `--drain` and at most `limit`; the worker has to answer `within` that
/// time at first. Returns the time for the drain and for its end. If the worker dies its successor
/// continues.
fn drain(
    mount: &LiveMount,
    within: Duration,
    limit: Option<Duration>,
) -> Result<(Vec<Unsaved>, Duration), Failure> {
    let begun = Instant::now();
    let mut own = None;
    loop {
        let patience = if own.is_some() { NEXT_WORKER } else { within.saturating_sub(begun.elapsed()) };
        let e = match drain_once(mount, patience, limit, &mut own) {
            Ok(Answer::Drained(unsaved)) => {
                return Ok((unsaved, own.map_or(Duration::ZERO, |(all, _)| all) + DRAIN_MARGIN));
            }
            Ok(Answer::Error(e)) => return Err(Failure::new(Exit::Failed, e)),
            Ok(Answer::Status(_) | Answer::Discarded(_) | Answer::Ended(_)) => return Err(odd(mount)),
            Err(e) => e,
        };
        let in_time = match own {
            Some((all, since)) => since.elapsed() < limit.map_or(all, |limit| all.min(limit)) + DRAIN_MARGIN,
            None => begun.elapsed() < within,
        };
        if !has_died(&e) || !in_time || mount.has_ended(Duration::ZERO) {
            return Err(silent(mount, &e));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn silent(mount: &LiveMount, e: &std::io::Error) -> Failure {
    let path = mount.mountpoint.shown();
    let message = format!("{path} does not answer ({e}); --force removes it and names unsaved writes");
    Failure::new(Exit::Failed, message)
}

fn odd(mount: &LiveMount) -> Failure {
    silent(mount, &std::io::ErrorKind::InvalidData.into())
}

/// Whether the error is a sign of a worker's death.
fn has_died(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// The mount's `--drain`, as far as it is trusted: another user's waits no longer than the default.
fn drain_time(mount: &LiveMount, status: &serde_json::Value) -> Duration {
    let longest = if mount.is_own() { LONGEST_DRAIN } else { USUAL_DRAIN };
    status["drain_s"].as_u64().map_or(USUAL_DRAIN, Duration::from_secs).min(longest)
}

/// One worker's answer to a drain.
fn drain_once(
    mount: &LiveMount,
    patience: Duration,
    limit: Option<Duration>,
    own: &mut Own,
) -> std::io::Result<Answer> {
    let mut client = mount.connect(ANSWER)?;
    let all = match client.ask(&Request::Status, patience)? {
        Answer::Status(status) => drain_time(mount, &status),
        other => return Ok(other),
    };
    let (_, since) = own.get_or_insert((all, Instant::now()));
    let time = limit.map_or(all, |limit| all.min(limit)).saturating_sub(since.elapsed());
    client.send(&Request::Drain { timeout_ms: Some(time.as_millis() as u64) })?;
    wait_for_drain(mount, &mut client, time)
}

/// Waits for the answer to a drain, and shows on a terminal how many writes are left.
///
/// Progress counts from `time`, the worker's limit; the wait is a little longer.
fn wait_for_drain(mount: &LiveMount, client: &mut Client, time: Duration) -> std::io::Result<Answer> {
    let mut progress = Progress::on_stderr();
    let asked_until = Instant::now() + time;
    let end = asked_until + DRAIN_MARGIN;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if client.has_answered(left.min(POLL_INTERVAL))? || left.is_zero() {
            return client.receive(left)?.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into());
        }
        let asked = mount.connect(ANSWER).and_then(|mut c| c.ask(&Request::Status, ANSWER));
        if let Ok(Answer::Status(status)) = asked {
            let unsaved = status["fs"]["unsaved"].as_array().map_or(0, Vec::len);
            let left = asked_until.saturating_duration_since(Instant::now());
            let seconds = left.as_millis().div_ceil(1000);
            progress.say(&format!("storing: {unsaved} left, for at most {seconds} s more"));
        }
    }
}

/// Unmounts; `Ok(false)` if it was only detached, because programs use it.
fn take_away(entry: &Entry, lazy: bool) -> Result<bool, Failure> {
    let path = entry.mountpoint.shown();
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, format!("{path} cannot be unmounted: {e}"));
    let end = Instant::now() + TRANSIENT;
    loop {
        match unmount::unmount(&entry.mountpoint, entry.dev, Mode::Plain) {
            Ok(true) => return Ok(true),
            // Another command was first.
            Ok(false) | Err(_) if !mount_table::is_mounted(&entry.mountpoint, entry.dev) => return Ok(true),
            Ok(false) => {
                return Err(Failure::new(Exit::Failed, format!("{path}: another mount covers it by now")));
            }
            Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(failed(e)),
            Err(_) => {}
        }
        let users = mount_users::users(entry);
        if lazy {
            unmount::unmount(&entry.mountpoint, entry.dev, Mode::Lazy).map_err(failed)?;
            stdio::say(format_args!("{path} is detached; it ends with these programs: {}", names(&users)));
            return Ok(false);
        }
        if !users.is_empty() || Instant::now() >= end {
            return Err(in_use(entry, &users));
        }
        // Busy without a known user: a program opened it for a moment.
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn refuse_if_busy(entry: &Entry) -> Result<(), Failure> {
    match mount_users::users(entry) {
        users if users.is_empty() => Ok(()),
        users => Err(in_use(entry, &users)),
    }
}

fn in_use(entry: &Entry, users: &[mount_users::User]) -> Failure {
    let shell = nix::unistd::getppid().as_raw();
    let next = match users {
        [one] if i64::from(one.pid) == i64::from(shell) => "cd out of it, or use --lazy",
        users if users.iter().any(|u| i64::from(u.pid) == i64::from(shell)) => {
            "cd out of it in this shell, and end the others, or use --lazy"
        }
        _ => "end them, or use --lazy",
    };
    Failure::new(Exit::Failed, format!("{} is in use by {}: {next}", entry.mountpoint.shown(), names(users)))
}

fn names(users: &[mount_users::User]) -> String {
    match users {
        [] => "processes that this user cannot see, or a mount inside it".into(),
        users => users
            .iter()
            .map(|u| format!("{} ({})", u.pid, display::text(&u.name)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn wait_for_end(mount: &LiveMount, watcher: Option<Client>, patience: Duration) -> anyhow::Result<ExitCode> {
    let path = mount.mountpoint.shown();
    let unsaved = match watcher
        .map_or(Ok(Ok(None)), |watcher| wait_for_last_answer(mount, watcher, patience))?
    {
        Ok(Some(Answer::Ended(unsaved))) => unsaved,
        Ok(_) => Vec::new(),
        // It ended before it read the request.
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Vec::new(),
        Err(e) => {
            return Err(Failure::new(
                Exit::Failed,
                format!(
                    "{path} is unmounted, but its worker goes on ({e}): another mount namespace (a container?) \
                     has it still, or it hangs"
                ),
            )
            .into());
        }
    };
    if !mount.has_ended(END) {
        return Err(Failure::new(
            Exit::Failed,
            format!("{path} is unmounted, but process {} has not ended", mount.keeper_pid()),
        )
        .into());
    }
    if unsaved.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(not_stored(&unsaved, "they were written while the mount ended, and are lost").into())
}

/// The worker's last answer, unless another mount namespace keeps it from ending.
fn wait_for_last_answer(
    mount: &LiveMount,
    mut watcher: Client,
    patience: Duration,
) -> Result<std::io::Result<Option<Answer>>, Failure> {
    let begun = Instant::now();
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        match watcher.has_answered(left.min(POLL_INTERVAL)) {
            Ok(false) if !left.is_zero() => {}
            Ok(_) => return Ok(watcher.receive(left)),
            Err(e) => return Ok(Err(e)),
        }
        if begun.elapsed() >= DETACHED_AFTER && !mount_users::namespaces_with(mount.dev).is_empty() {
            return Err(detached(mount));
        }
    }
}

/// It is unmounted here, and lives elsewhere.
fn detached(mount: &LiveMount) -> Failure {
    let path = mount.mountpoint.shown();
    let message = format!(
        "{path} is unmounted here, but {}; it ends with that, or now with `vaultfs unmount --force {path}` (its keeper is \
         process {})",
        holders(mount),
        mount.keeper_pid()
    );
    Failure::new(Exit::Failed, message)
}

/// The holders of a mount that is not mounted here.
pub(in crate::cli) fn holders(mount: &LiveMount) -> String {
    match mount_users::namespaces_with(mount.dev).as_slice() {
        [] => "programs have files of it open still, or a mount namespace that this user cannot see".into(),
        users => format!("another mount namespace has it still: that of {}", names(users)),
    }
}

/// The keeper is gone: the worker stores what is unsaved and ends by itself. The dead mount is
/// removed.
fn end_of_orphan(entry: &Entry, mount: &LiveMount) -> anyhow::Result<ExitCode> {
    let path = mount.mountpoint.shown();
    let silent = |e: std::io::Error| {
        let message =
            format!("{path}: its keeper is gone, and its worker does not answer ({e}); --force detaches it");
        Failure::new(Exit::Failed, message)
    };
    let mut client = mount.connect(ANSWER).map_err(silent)?;
    let Answer::Status(status) = client.ask(&Request::Status, ANSWER).map_err(silent)? else {
        return Err(silent(std::io::ErrorKind::InvalidData.into()).into());
    };
    let worker = status["worker_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let worker = worker.and_then(|pid| Process::open(pid, mount.owner()));
    let patience = drain_time(mount, &status) + DRAIN_MARGIN;
    client.send(&Request::Watch).map_err(silent)?;
    let unsaved = match client.receive(patience) {
        Ok(Some(Answer::Ended(unsaved))) => unsaved,
        Ok(_) => Vec::new(),
        Err(e) => return Err(silent(e).into()),
    };
    let has_ended = worker.is_none_or(|worker| worker.ended(END));
    if has_ended {
        mountpoint::remove_dead(&entry.mountpoint, entry)
            .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    }
    gone(mount, has_ended)?;
    if unsaved.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(not_stored(&unsaved, "the vault did not take them before the mount ended, and they are lost").into())
}

fn not_stored(unsaved: &[Unsaved], next: &str) -> Failure {
    let lost = unsaved.iter().map(|left| format!("  {}: {}", display::text(&left.name), reason(left)));
    let lines = lost.chain([next.to_owned()]).collect();
    Failure::new(Exit::Unsaved, "not stored:").with_lines(lines)
}

fn gone(mount: &LiveMount, has_ended: bool) -> Result<(), Failure> {
    if has_ended && !mount_table::is_mounted(&mount.mountpoint, mount.dev) {
        return Ok(());
    }
    let path = mount.mountpoint.shown();
    Err(Failure::new(Exit::Failed, format!("{path} is still there; {}", mount.see_log())))
}
