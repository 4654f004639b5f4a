//! The mounts of this machine that have running processes, with their files in the runtime
//! directory.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::daemon::control::Client;
use crate::daemon::protocol::see_log;
use crate::daemon::runtime_dir;
use crate::daemon::runtime_dir::Found;
use crate::fs::Unsaved;
use crate::sys::mount_table::{Dev, Entry, table};
use crate::sys::process::Process;
use crate::sys::trust;

/// A vaultfs mount and what its processes left in the runtime directory.
#[derive(Debug, Clone)]
pub struct LiveMount {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Its device number.
    pub dev: Dev,
    found: Found,
}

/// This user's mounts that have a running keeper.
pub fn live() -> Vec<LiveMount> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for entry in table().unwrap_or_default() {
        if !entry.is_vaultfs() || !trust::is_own(&entry) || seen.contains(&entry.dev) {
            continue;
        }
        seen.push(entry.dev);
        if let Some(mount) = of(&entry) {
            found.push(mount);
        }
    }
    found
}

/// The running processes of one mount, if there are any that this user may ask.
pub fn of(entry: &Entry) -> Option<LiveMount> {
    let found = runtime_dir::find(trust::may_ask(entry)?, Some(entry.dev));
    let found = found.into_iter().rfind(|found| found.keeper.is_some())?;
    Some(LiveMount { mountpoint: entry.mountpoint.clone(), dev: entry.dev, found })
}

impl LiveMount {
    /// Whether it is this user's. Another user's files are not trusted.
    pub fn is_own(&self) -> bool {
        self.found.owner() == trust::own()
    }

    /// Its owner.
    pub fn owner(&self) -> u32 {
        self.found.owner()
    }

    /// Which vault: the connection's description, without any secret. Another user's is none.
    pub fn spec(&self) -> serde_json::Value {
        if self.is_own() { self.found.record.spec.clone() } else { serde_json::Value::Null }
    }

    /// Where its log is, for people. Another user's is not known.
    pub fn log(&self) -> &str {
        if self.is_own() { &self.found.record.log } else { "" }
    }

    /// Sends the reader of a message to its log.
    pub fn see_log(&self) -> String {
        see_log(self.log())
    }

    /// Connects to its worker.
    pub fn connect(&self, within: Duration) -> io::Result<Client> {
        self.found.connect(within)
    }

    /// Its keeper's process id, also of a dead one.
    pub fn keeper_pid(&self) -> u32 {
        self.found.record.keeper_pid
    }

    /// Its keeper, if it lived when it was looked for.
    pub fn keeper(&self) -> Option<Arc<Process>> {
        self.found.keeper.clone()
    }

    /// Waits for the end of the keeper.
    pub fn has_ended(&self, within: Duration) -> bool {
        self.found.keeper.as_ref().is_none_or(|keeper| keeper.ended(within))
    }

    /// Signals its keeper.
    pub fn signal(&self, signal: Signal) {
        if let Some(keeper) = &self.found.keeper {
            keeper.signal(signal);
        }
    }

    /// Why everything on it fails, if it does.
    pub fn broken(&self) -> Option<&str> {
        self.found.record.broken.as_deref()
    }

    /// Unsaved writes, as its keeper recorded them without a worker.
    pub fn unsaved(&self) -> Option<&Vec<Unsaved>> {
        self.found.record.unsaved.as_ref()
    }

    /// Removes the files of its killed keeper.
    pub fn clear(&self) {
        if self.is_own() {
            self.found.dir.leave(self.dev, self.keeper_pid());
        }
    }
}

impl From<Found> for LiveMount {
    fn from(found: Found) -> Self {
        Self { mountpoint: found.record.mountpoint.clone(), dev: found.dev, found }
    }
}

/// Mounts of this user with a live keeper that are not (any more) in this mount namespace.
pub fn detached() -> Vec<LiveMount> {
    let here = table().unwrap_or_default();
    let elsewhere = |dev: Dev| !here.iter().any(|entry| entry.dev == dev && entry.is_vaultfs());
    let found = runtime_dir::find(trust::own(), None).into_iter();
    found.filter(|found| found.keeper.is_some() && elsewhere(found.dev)).map(LiveMount::from).collect()
}

/// Where the log is of a mount without processes.
pub fn log_of_dead(entry: &Entry) -> String {
    let mut found =
        runtime_dir::find(trust::own(), Some(entry.dev)).into_iter().filter(|_| trust::is_own(entry));
    found
        .rfind(|found| found.record.mountpoint == entry.mountpoint)
        .map_or_else(String::new, |found| found.record.log)
}

/// The worker of a mount without a keeper, if it has not ended yet: it stores what is unsaved,
/// unmounts and ends.
pub fn orphan(entry: &Entry) -> Option<LiveMount> {
    let found = runtime_dir::find(trust::may_ask(entry)?, Some(entry.dev)).into_iter().rev();
    let mut left = found.filter(|found| found.keeper.is_none());
    // A listener that accepts no connection also counts.
    let listens = |found: &Found| match found.connect(LISTENS) {
        Ok(_) => true,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    };
    let found = left.find(listens)?;
    Some(LiveMount { mountpoint: entry.mountpoint.clone(), dev: entry.dev, found })
}

/// Timeout for finding out whether a listener exists.
const LISTENS: Duration = Duration::from_secs(1);
