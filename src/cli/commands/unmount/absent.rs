//! Unmounting where no mount of ours is, or one without processes.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::force::force;
use super::{UnmountArgs, detached, run};
use crate::cli::args::values::RuntimeDirArg;
use crate::cli::exit::{Exit, Failure};
use crate::cli::terminal;
use crate::daemon::live_mounts;
use crate::daemon::locate::{self, LocateError};
use crate::display::Shown;
use crate::sys::mount_table::Entry;
use crate::sys::{mountpoint, probe, stdio, trust};

/// Nothing is mounted there, or no longer in this mount namespace.
pub(super) fn not_mounted_here(args: &UnmountArgs, why: &LocateError) -> anyhow::Result<ExitCode> {
    let was_there = |path: &Path| live_mounts::detached().into_iter().rfind(|mount| mount.mountpoint == path);
    let LocateError::NotMounted(path) = why else {
        return Err(Failure::new(Exit::NotFound, why.to_string()).into());
    };
    match was_there(path) {
        Some(mount) if args.force => force(None, &mount),
        Some(mount) => Err(detached(&mount).into()),
        None => match locate::holding(path) {
            // A mount that was here before may have been meant: only a person can say so.
            Some((entry, _)) => {
                let at = entry.mountpoint.shown();
                let holds = format!("{why}, but {at} holds it");
                if !terminal::can_ask() || !terminal::confirms(format_args!("{holds}: unmount {at}?")) {
                    return Err(Failure::new(Exit::NotFound, format!("{holds}: vaultfs unmount {at}")).into());
                }
                run(UnmountArgs { mountpoint: entry.mountpoint, runtime: RuntimeDirArg::default(), ..*args })
            }
            None => Err(Failure::new(Exit::NotFound, why.to_string()).into()),
        },
    }
}

/// A mount in the table without a process of this user.
pub(super) fn without_processes(entry: &Entry, args: &UnmountArgs) -> anyhow::Result<ExitCode> {
    let path: &Path = &entry.mountpoint;
    if trust::may_ask(entry).is_none() {
        return Err(Failure::new(
            Exit::NotFound,
            format!("{} is the mount of another user: it is left alone", path.shown()),
        )
        .into());
    }
    let dead = probe::stat(path, Duration::from_secs(5))
        .is_ok_and(|seen| seen.is_ok_and(|(seen, _)| mountpoint::is_dead(entry, &seen)));
    if !dead && !args.force {
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "{}: its processes cannot be found, but it is not dead; --force detaches it",
                path.shown()
            ),
        )
        .into());
    }
    mountpoint::remove_dead(path, entry).map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    let was = if dead { "was a dead mount; it is removed" } else { "is detached; no process answers for it" };
    stdio::say(format_args!("{} {was}", path.shown()));
    Ok(ExitCode::SUCCESS)
}
