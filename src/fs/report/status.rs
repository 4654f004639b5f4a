//! What the file system says of itself: to `vaultfs status`, to `/.vaultfs/status.json`. Never a
//! value.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fs::journal::JournalStatus;
use crate::fs::report::audit::AuditStatus;
use crate::fs::types::error_log::LastError;
use crate::fs::types::unsaved::Unsaved;
use crate::fs::writeback::failed_deletes::FailedDelete;
use crate::fs::{Ending, FileSystem, RotationStatus};
use crate::vault::BudgetStatus;
use crate::vault::attribution::RequestCount;

/// The state of a mounted vault. Times in seconds, sizes in bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Seconds since the worker started.
    pub uptime_s: u64,
    /// The vault.
    pub vault: Vault,
    /// The cache.
    pub cache: CacheUse,
    /// How changes made elsewhere are followed.
    #[serde(default)]
    pub changes: RotationStatus,
    /// Inodes held.
    pub inodes: usize,
    /// Open files and directories.
    pub handles: usize,
    /// Bytes in scratch files, which are never stored.
    pub scratch_bytes: u64,
    /// Files and directories with an owner set here: that is forgotten at unmount.
    #[serde(default)]
    pub owners_set: usize,
    /// The file that openings are written to, if they are.
    #[serde(default)]
    pub audit: Option<AuditStatus>,
    /// Writes that the vault does not have.
    pub unsaved: Vec<Unsaved>,
    /// Objects that should be gone, and that the vault did not delete.
    #[serde(default)]
    #[serde(rename = "undeleted")]
    pub failed_deletes: Vec<FailedDelete>,
    /// The latest failures, oldest first.
    pub last_errors: Vec<LastError>,
    /// The processes that serve it.
    #[serde(default)]
    pub processes: Option<Processes>,
    /// What a successor of this worker would find.
    #[serde(default)]
    pub journal: Option<JournalStatus>,
}

/// What the keeper and the worker know of themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// How many workers there were before this one.
    pub restarts: u32,
    /// How the last one ended.
    pub last_end: Option<String>,
    /// What that says of the requests it was at.
    #[serde(default)]
    pub ending: Ending,
    /// Whether the worker's memory, which holds values, stays out of the swap.
    pub worker_memory_locked: bool,
    /// The same of the keeper's, which holds the key.
    pub keeper_memory_locked: bool,
}

/// The connection to the vault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vault {
    /// URL or socket.
    pub endpoint: String,
    /// `object` or `kv`.
    pub dialect: String,
    /// Requests sent, retries included.
    pub requests: u64,
    /// The requests by origin, the largest number first.
    #[serde(default)]
    pub spent_by: Vec<RequestCount>,
    /// Requests left in this window, where a limit is known.
    pub budget: Option<BudgetStatus>,
    /// Why it does not answer, if it does not.
    pub outage: Option<String>,
    /// Seconds since that was last seen.
    pub outage_s: Option<u64>,
    /// Its reads lag behind its writes, as an answer showed so many seconds ago.
    #[serde(default)]
    pub lagged_s: Option<u64>,
    /// The key may not list names.
    #[serde(default)]
    pub unlisted: bool,
    /// Whether the key may store, where the vault says so.
    #[serde(default)]
    pub may_write: Option<bool>,
}

/// The cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CacheUse {
    /// Names known.
    pub names: usize,
    /// Seconds since the last complete listing.
    pub listed_s: Option<u64>,
    /// Values held.
    pub values: usize,
    /// Bytes they take.
    pub bytes: u64,
    /// Bytes allowed.
    pub capacity: u64,
    /// Memory that values of up to 4 KiB are kept in.
    #[serde(default)]
    pub value_memory: u64,
    /// How much of it cannot be swapped out.
    #[serde(default)]
    pub value_memory_locked: u64,
    /// For how many seconds an answer is fresh.
    pub refresh_s: f64,
    /// Values past their time are being served because the vault does not answer.
    pub serving_stale: bool,
}

/// How things are. Never asks the vault.
pub(in crate::fs) fn status(fs: &FileSystem) -> Status {
    let vault = fs.env.cache().vault().status();
    let cache = fs.env.cache().status();
    let (outage, outage_s) = cache.outage.unzip();
    let inodes = fs.inodes.lock().len();
    // Each lock is let go of before the next is taken: within one expression they would all be
    // held.
    let scratch_bytes = fs.temporaries.bytes();
    Status {
        uptime_s: fs.env.wall().duration_since(fs.env.started()).unwrap_or(Duration::ZERO).as_secs(),
        vault: Vault {
            endpoint: vault.endpoint,
            dialect: format!("{:?}", fs.env.cache().vault().capabilities().dialect).to_lowercase(),
            requests: vault.requests,
            spent_by: vault.spent_by,
            budget: vault.budget,
            outage,
            outage_s,
            lagged_s: cache.lagged_s,
            unlisted: cache.unlisted,
            may_write: vault.may_write,
        },
        cache: CacheUse {
            names: cache.names,
            listed_s: cache.listed_s,
            values: cache.values,
            bytes: cache.bytes,
            capacity: cache.capacity,
            value_memory: cache.arena.mapped,
            value_memory_locked: cache.arena.locked,
            refresh_s: fs.env.options().refresh.as_secs_f64(),
            serving_stale: cache.serving_stale,
        },
        changes: fs.propagator.status(),
        inodes,
        handles: fs.handles.count(),
        scratch_bytes,
        owners_set: fs.namespace.owners_set(),
        audit: fs.report.audit.as_ref().map(|audit| audit.status()),
        processes: fs.report.processes.get().cloned(),
        unsaved: fs.writeback.unsaved(),
        failed_deletes: fs.writeback.failed_deletes(),
        last_errors: fs.env.errors().latest(),
        journal: fs.env.journal().status(),
    }
}
