//! One run of the command.
//!
//! It inherits no descriptors, no ignored signals, no terminal, and only the environment of
//! [`Job::environment`]. Its standard output is dropped; the end of its standard error is logged if
//! it fails. At its timeout the worker kills its process group; without a worker timeout(1), which
//! leads the group, does.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::{FusedFuture, FutureExt};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};
use tokio::sync::watch;

use crate::daemon::hooks::debounce::Run;
use crate::daemon::hooks::runner::Leader;
use crate::display;

/// How long the command may run.
pub const LIMIT: Duration = Duration::from_secs(60);
/// timeout(1) ends it this much later than the worker, which also logs its output.
const GRACE: Duration = Duration::from_secs(2);
/// Part of every system but the smallest containers; looked for here alone, `PATH` is for the
/// command.
const TIMEOUT: &str = "/usr/bin/timeout";
/// What is logged of its standard error.
const SAID: usize = 1024;
/// How long to read standard error after the command has ended: its background processes may hold
/// it open.
const REST: Duration = Duration::from_millis(200);
/// Time between SIGTERM and SIGKILL when the mount ends.
pub const END: Duration = Duration::from_secs(2);
/// What is said of it then.
const WITH_THE_MOUNT: &str = "was ended with the mount";
/// Interval between checks of a command that is no child of this process.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Variables that a command may need and that hold no secret.
const PASSED_ON: [&str; 6] =
    ["HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];
/// Where programs are, if the mount's own environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command, and where it is run for.
#[derive(Debug, Clone)]
pub struct Job {
    /// For `/bin/sh -c`.
    pub command: String,
    /// The mount.
    pub mountpoint: PathBuf,
    /// How long it may run.
    pub limit: Duration,
}

impl Job {
    /// Runs the command until it or the mount ends; an error has its exit status and output.
    /// `started` gets the leader of its process group.
    pub async fn run(
        &self,
        run: &Run,
        started: impl FnOnce(u32) + Send,
        stopped: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let mut command = self.shell();
        command.arg("-c").arg(&self.command).current_dir("/").env_clear().envs(self.environment(run));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        // SAFETY: what `like_new` calls may be called between fork and exec.
        unsafe { command.pre_exec(like_new) };
        let mut child = command.spawn().map_err(|e| format!("/bin/sh cannot be started: {e}"))?;
        child.id().map(started);
        let group = child.id().map(|id| Pid::from_raw(id as i32));
        let mut said = Vec::new();
        let stderr = child.stderr.take();
        let waited = {
            let listening = listen(stderr, &mut said).fuse();
            tokio::pin!(listening);
            let waited = tokio::time::timeout(self.limit, async {
                tokio::select! {
                    status = child.wait() => status,
                    () = &mut listening => child.wait().await,
                }
            });
            let ended = tokio::select! {
                ended = waited => Some(ended),
                () = stop_requested(stopped) => None,
            };
            if !listening.is_terminated() {
                let _ = tokio::time::timeout(REST, listening).await;
            }
            ended
        };
        let how = match waited {
            None => {
                signal_group(group, Signal::SIGTERM);
                if tokio::time::timeout(END, child.wait()).await.is_err() {
                    signal_group(group, Signal::SIGKILL);
                    let _ = child.wait().await;
                }
                WITH_THE_MOUNT.to_owned()
            }
            Some(Ok(Ok(status))) if status.success() => return Ok(()),
            Some(Ok(Ok(status))) => ended(status),
            Some(Ok(Err(e))) => format!("cannot be waited for: {e}"),
            Some(Err(_)) => {
                signal_group(group, Signal::SIGKILL);
                let _ = child.wait().await;
                too_long(self.limit)
            }
        };
        let said = said.trim_ascii();
        Err(if said.is_empty() { how } else { format!("{how}: {}", display::bytes(said)) })
    }

    /// `/bin/sh`, which ends in time also if this process does not live to see to it.
    fn shell(&self) -> Command {
        if !Path::new(TIMEOUT).exists() {
            return Command::new("/bin/sh");
        }
        let mut command = Command::new(TIMEOUT);
        command.arg("--signal=KILL").arg((self.limit + GRACE).as_secs_f64().to_string()).arg("/bin/sh");
        command
    }

    fn environment(&self, run: &Run) -> Vec<(&'static str, OsString)> {
        let own = |name: &'static str| std::env::var_os(name).map(|value| (name, value));
        let mut all: Vec<_> = PASSED_ON.into_iter().filter_map(own).collect();
        all.push(own("PATH").unwrap_or_else(|| ("PATH", PATH.into())));
        let (name, version, event) = match run {
            Run::One(news) => {
                (news.name.as_str(), news.version.as_deref().unwrap_or(""), news.event.as_str())
            }
            Run::Many => ("", "", "many"),
        };
        // The one character that no variable can hold, as it is spelt in the file's name.
        all.push(("VAULTFS_NAME", name.replace('\0', "%00").into()));
        all.push(("VAULTFS_VERSION", version.replace('\0', "").into()));
        all.push(("VAULTFS_EVENT", event.into()));
        all.push(("VAULTFS_MOUNTPOINT", self.mountpoint.clone().into()));
        all
    }
}

/// To a group with a leader that is not reaped yet, so that the number is still its own.
fn signal_group(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        let _ = killpg(group, signal);
    }
}

fn too_long(limit: Duration) -> String {
    format!("was killed: it had not ended after {} s", limit.as_secs())
}

/// Waits for a command that another process started; an error says why it was ended from here.
pub async fn outlive(leader: Leader, limit: Duration, stopped: watch::Receiver<bool>) -> Result<(), String> {
    let group = Some(Pid::from_raw(leader.pid as i32));
    let gone = async || {
        while leader.lives() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    // Nearly always timeout(1) is faster.
    let late = tokio::select! {
        ended = tokio::time::timeout(limit + GRACE, gone()) => ended.is_err(),
        () = stop_requested(stopped) => {
            signal_group(group, Signal::SIGTERM);
            if tokio::time::timeout(END, gone()).await.is_err() {
                signal_group(group, Signal::SIGKILL);
            }
            return Err(WITH_THE_MOUNT.to_owned());
        }
    };
    if late {
        signal_group(group, Signal::SIGKILL);
        return Err(too_long(limit));
    }
    Ok(())
}

/// Completes at the signal, or when its sender is gone.
pub async fn stop_requested(mut stopped: watch::Receiver<bool>) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Keeps the end of the command's output.
async fn listen(stderr: Option<ChildStderr>, said: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut part = [0; SAID];
    while let Ok(n @ 1..) = stderr.read(&mut part).await {
        said.extend_from_slice(&part[..n]);
        let over = said.len().saturating_sub(SAID);
        said.drain(..over);
    }
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => format!("it ended ({status})"),
    }
}

/// Between fork and exec: signals as a program expects them (the worker ignores some), and no
/// descriptor but 0 to 2.
fn like_new() -> io::Result<()> {
    for signal in 1..=64 {
        // SAFETY: async-signal-safe; SIGKILL and SIGSTOP refuse, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // Closed by exec, not now: the standard library reports a failing exec through one of them.
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::hooks::debounce::{ChangeEvent, EventKind};

    fn job(command: &str, limit: Duration) -> Job {
        Job { command: command.into(), mountpoint: "/mnt/v".into(), limit }
    }

    fn changed() -> Run {
        Run::One(ChangeEvent { name: "tls/key".into(), version: Some("3".into()), event: EventKind::Changed })
    }

    fn never() -> watch::Receiver<bool> {
        watch::channel(false).1
    }

    #[tokio::test]
    async fn it_ends_with_the_mount_also_against_its_will() {
        for (command, least) in [("sleep 100", Duration::ZERO), ("trap '' TERM; sleep 100 & wait; wait", END)]
        {
            let (stop, stopped) = watch::channel(false);
            let mut pid = 0;
            let begun = std::time::Instant::now();
            let job = job(command, LIMIT);
            let change = changed();
            let run = job.run(&change, |leader| pid = leader, stopped);
            let stop = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                stop.send_replace(true);
            };
            let (how, ()) = tokio::join!(run, stop);
            assert_eq!(how.unwrap_err(), WITH_THE_MOUNT);
            assert!((least..LIMIT / 2).contains(&begun.elapsed()), "{command}: {:?}", begun.elapsed());
            assert!(pid != 0 && Leader::of(pid).is_none(), "{command}");
        }
    }

    #[tokio::test]
    async fn it_is_told_what_changed_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let command =
            format!("{{ env; ls /proc/self/fd; grep Sig /proc/self/status; }} > {}", file.path().display());
        job(&command, LIMIT).run(&changed(), drop, never()).await.expect("it ends well");
        let text = std::fs::read_to_string(file.path()).expect("written");
        for line in [
            "VAULTFS_NAME=tls/key",
            "VAULTFS_VERSION=3",
            "VAULTFS_EVENT=changed",
            "VAULTFS_MOUNTPOINT=/mnt/v",
        ] {
            assert!(text.lines().any(|l| l == line), "{text}");
        }
        for set in ["SigIgn:\t", "SigBlk:\t"] {
            let hex = text.lines().find_map(|line| line.strip_prefix(set)).expect("in the status");
            // The C library keeps 32 and 33 to itself.
            assert_eq!(u64::from_str_radix(hex, 16).expect("hexadecimal") & 0x7fff_ffff, 0, "{text}");
        }
        assert!(!text.contains("CARGO"), "a clean environment: {text}");
        let descriptors = text.lines().filter(|line| line.parse::<u32>().is_ok()).count();
        assert_eq!(descriptors, 4, "0 to 2 and the directory that ls reads: {text}");
    }

    #[tokio::test]
    async fn failures_say_how_and_what() {
        let failed =
            job("echo no such unit >&2; exit 3", LIMIT).run(&changed(), drop, never()).await.unwrap_err();
        assert_eq!(failed, "it ended with exit code 3: no such unit");
        let long = job("seq 100000 >&2; kill -9 $$", LIMIT).run(&changed(), drop, never()).await.unwrap_err();
        assert!(
            long.starts_with("it was killed by signal 9: ") && long.ends_with(r"99999\n100000"),
            "{long}"
        );
        // A line end is shown by two characters.
        assert!(long.len() < 2 * SAID + 100);
    }

    #[tokio::test]
    async fn its_time_is_limited_and_what_it_leaves_behind_holds_nothing_up() {
        let slow = job("sleep 1000 & wait", Duration::from_millis(200))
            .run(&changed(), drop, never())
            .await
            .unwrap_err();
        assert!(slow.contains("was killed"), "{slow}");
        job("sleep 5 >&2 &", LIMIT).run(&changed(), drop, never()).await.expect("its shell has ended");
    }

    /// As when the worker is killed: nothing waits for it any more.
    #[tokio::test]
    async fn what_nobody_waits_for_is_ended_all_the_same() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let command = format!("sleep 1000 & echo $! > {}; wait", file.path().display());
        let job = job(&command, Duration::from_secs(1));
        let started = changed();
        let mut run = Box::pin(job.run(&started, drop, never()));
        let child = loop {
            let ended = tokio::time::timeout(Duration::from_millis(10), &mut run).await;
            assert!(ended.is_err(), "it has not started within its time");
            if let Ok(pid) = std::fs::read_to_string(file.path()).expect("there").trim().parse::<u32>() {
                break pid;
            }
        };
        drop(run);
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|state| state.starts_with(['S', 'R']))
        };
        let end = tokio::time::Instant::now() + GRACE * 5;
        assert!(alive());
        while alive() {
            assert!(tokio::time::Instant::now() < end, "it goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
