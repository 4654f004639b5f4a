//! `vaultfs unmount --force`: unmounts although writes cannot be stored, or nothing answers.
//!
//! A worker that does not answer is killed, and its successor is asked to store what is unsaved. If
//! the workers do not answer either, the keeper is killed, too; then the mount is detached here,
//! and what is lost is named as far as the keeper has written it down.

use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{ANSWER, END, FORCED_DRAIN, TAKEOVER, drain, drain_once, gone, not_stored, odd, silent};
use crate::cli::exit::{Exit, Failure};
use crate::daemon::control::{Answer, Request};
use crate::daemon::live_mounts::LiveMount;
use crate::daemon::{live_mounts, worker};
use crate::display::Shown;
use crate::fs::Unsaved;
use crate::sys::mount_table::Entry;
use crate::sys::process::Process;
use crate::sys::unmount::Mode;
use crate::sys::{mountpoint, stdio, unmount};

/// `--force`: the worker ends soon, its keeper takes the mount away.
pub(super) fn force(entry: Option<&Entry>, mount: &LiveMount) -> anyhow::Result<ExitCode> {
    let mut within = ANSWER;
    loop {
        let (lost, patience) = match drain(mount, within, Some(FORCED_DRAIN)).and_then(|_| end(mount)) {
            Ok(lost) => (Some(lost), END),
            // No worker will answer.
            Err(_) if mount.broken().is_some() => {
                mount.signal(Signal::SIGTERM);
                (mount.unsaved().cloned(), END)
            }
            Err(_) if within == ANSWER => {
                stdio::say(
                    "the worker does not answer: killing it, so that another one stores unsaved writes",
                );
                for worker in children(mount).iter().filter(|child| child.is_called(worker::NAME)) {
                    worker.signal(Signal::SIGKILL);
                }
                within = TAKEOVER;
                continue;
            }
            Err(_) => {
                (entry.and_then(live_mounts::of).and_then(|mount| mount.unsaved().cloned()), Duration::ZERO)
            }
        };
        take_from_keeper(mount, patience)?;
        return given_up(mount, lost);
    }
}

/// The same where its keeper is gone: its worker ends by itself, sooner or later.
pub(super) fn force_orphan(entry: &Entry, mount: &LiveMount) -> anyhow::Result<ExitCode> {
    let lost = match drain_once(mount, ANSWER, Some(FORCED_DRAIN), &mut None) {
        Ok(Answer::Drained(unsaved)) => Some(unsaved),
        _ => None,
    };
    mountpoint::remove_dead(&entry.mountpoint, entry)
        .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    given_up(mount, lost)
}

/// What `--force` ends with; `lost` is `None` if it is unknown.
fn given_up(mount: &LiveMount, lost: Option<Vec<Unsaved>>) -> anyhow::Result<ExitCode> {
    match lost {
        Some(lost) if lost.is_empty() => Ok(ExitCode::SUCCESS),
        Some(lost) => Err(not_stored(&lost, "they were given up, as --force says, and are lost").into()),
        None => Err(Failure::new(
            Exit::Unsaved,
            format!(
                "{}: neither its worker nor another one answered: unsaved writes are lost, and cannot be named",
                mount.mountpoint.shown()
            ),
        )
        .into()),
    }
}

/// Ends the worker; what the vault does not have then.
fn end(mount: &LiveMount) -> Result<Vec<Unsaved>, Failure> {
    let asked = mount.connect(ANSWER).and_then(|mut c| c.ask(&Request::End, Duration::from_secs(10)));
    match asked.map_err(|e| silent(mount, &e))? {
        Answer::Ended(lost) => Ok(lost),
        _ => Err(odd(mount)),
    }
}

/// Waits until the keeper has taken the mount away, or does so in its place.
fn take_from_keeper(mount: &LiveMount, patience: Duration) -> Result<(), Failure> {
    let path = mount.mountpoint.shown();
    if !mount.has_ended(patience) {
        // The keeper would start another worker: it goes first, and cannot clean up, which is for
        // us to do then.
        let children = children(mount);
        mount.signal(Signal::SIGKILL);
        children.iter().for_each(|child| child.signal(Signal::SIGKILL));
        mount.clear();
        if mount.has_ended(END) {
            unmount::unmount(&mount.mountpoint, mount.dev, Mode::Lazy)
                .map_err(|e| Failure::new(Exit::Failed, format!("{path} cannot be unmounted: {e}")))?;
        }
    }
    gone(mount, mount.has_ended(END))
}

/// The processes that a mount's keeper started.
fn children(mount: &LiveMount) -> Vec<Process> {
    mount.keeper().map_or_else(Vec::new, |keeper| keeper.children())
}
