//! Changes made elsewhere, brought to the kernel. The queue of names and the subscribers of changes
//! are here; `rotation` empties the queue, `helper_calls` registers what the helper is to do,
//! `apply` does it in the inode table, `repoint` has the names that show another inode.

mod apply;
pub(in crate::fs) mod helper_calls;
pub(in crate::fs) mod in_flight;
pub(in crate::fs) mod repoint;
pub(in crate::fs) mod revocation;
mod rotation;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast};

use crate::fs::handle::Handles;
use crate::fs::inode::InodeTable;
use crate::fs::inode::file::File;
use crate::fs::journal::Key;
use crate::fs::namespace::Namespace;
use crate::fs::propagation::helper_calls::Register;
use crate::fs::propagation::in_flight::InFlight;
use crate::fs::propagation::repoint::Repoints;
use crate::fs::types::env::Env;
use crate::fs::{HelperReport, HelperStatus};
use crate::vault::ObjectName;
use crate::vault::cache::{Change, RefreshStatus};

/// Changes that a slow subscriber may be behind.
const BEHIND: usize = 4096;

/// Why a name is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::fs) enum Why {
    /// It changed elsewhere.
    Changed,
    /// It shows another inode now than the kernel knows.
    Repoint,
    /// The same, but the kernel knows by now, from a lookup: watchers had no event.
    Known,
}

/// Rotations, for `status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RotationStatus {
    /// The refresher.
    pub refresh: RefreshStatus,
    /// The helper.
    pub helper: HelperStatus,
    /// Names that were made to show something else.
    pub done: u64,
    /// Names that wait for it.
    pub waiting: usize,
}

/// See the module.
pub struct Propagator {
    env: Arc<Env>,
    inodes: Arc<InodeTable>,
    namespace: Arc<Namespace>,
    handles: Arc<Handles>,
    queue: Mutex<BTreeMap<ObjectName, Why>>,
    wake: Notify,
    in_flight: Arc<InFlight>,
    done: AtomicU64,
    /// Rotations are being carried out.
    working: AtomicBool,
    events: broadcast::Sender<Change>,
    helper: Register,
    repoints: Arc<Repoints>,
    /// What the last worker kept of `--on-change`: bytes that only the command runner understands.
    kept_commands: Mutex<Option<Vec<u8>>>,
}

impl Propagator {
    pub(in crate::fs) fn new(
        env: Arc<Env>,
        inodes: Arc<InodeTable>,
        namespace: Arc<Namespace>,
        handles: Arc<Handles>,
    ) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            wake: Notify::new(),
            in_flight: Arc::default(),
            done: AtomicU64::new(0),
            working: AtomicBool::new(false),
            events: broadcast::channel(BEHIND).0,
            helper: Register::new(),
            repoints: Repoints::new(env.journal().clone()),
            kept_commands: Mutex::default(),
            env,
            inodes,
            namespace,
            handles,
        })
    }

    /// The changes made elsewhere, as they are seen from now on. While there is a subscriber the
    /// mount is in use.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.events.subscribe()
    }

    /// Whether the mount shows every change that subscribers received.
    pub fn is_propagated(&self) -> bool {
        // In this order: what is taken out of the queue is being worked on before it is gone from
        // there.
        self.queue.lock().is_empty() && !self.working.load(Ordering::Acquire)
    }

    /// Whether a change that subscribers received was made here.
    pub fn is_own_change(&self, change: &Change) -> bool {
        self.env.cache().is_own(change)
    }

    /// What the dead worker before this one had kept of `--on-change`. Once.
    pub fn kept_commands(&self) -> Option<Vec<u8>> {
        self.kept_commands.lock().take()
    }

    /// Keeps this for a successor, in place of what was kept before.
    pub fn keep_commands(&self, what: Option<Vec<u8>>) {
        match what {
            Some(bytes) => self.env.journal().record(&Key::Commands, &bytes),
            None => self.env.journal().delete(&Key::Commands),
        }
    }

    /// Whether the thread `pid` is the helper: unregistered requests of it are EPERM.
    pub fn is_helper(&self, pid: u32) -> bool {
        self.helper.is(pid)
    }

    /// Handles a message of the helper.
    pub fn helper_reports(&self, report: HelperReport) {
        self.helper.note_report(report);
        self.wake.notify_one();
    }

    /// The last worker kept this.
    pub(in crate::fs) fn restore_commands(&self, commands: Option<Vec<u8>>) {
        *self.kept_commands.lock() = commands;
    }

    /// The name shows another inode than the kernel knows, which the helper is to tell it.
    pub(in crate::fs) fn begin_repoint(&self, name: &ObjectName) {
        self.repoints.begin(name);
        self.add(name.clone(), Why::Repoint);
    }

    fn add(&self, name: ObjectName, why: Why) {
        let mut queue = self.queue.lock();
        let before = queue.entry(name).or_insert(why);
        *before = why.max(*before);
        drop(queue);
        self.wake.notify_one();
    }

    /// All that waits, to be carried out now; none if nothing does.
    fn take_batch(&self) -> Option<BTreeMap<ObjectName, Why>> {
        self.working.store(true, Ordering::Release);
        let batch = std::mem::take(&mut *self.queue.lock());
        self.working.store(!batch.is_empty(), Ordering::Release);
        Some(batch).filter(|batch| !batch.is_empty())
    }

    /// Queues what the cache has seen change, and tells subscribers.
    fn ingest_changes(&self) {
        for change in self.env.cache().take_changes() {
            self.add(change.name.clone(), Why::Changed);
            // There may be no subscriber.
            let _ = self.events.send(change);
        }
        if self.env.journal().is_enabled()
            && let Some(covered) = self.env.cache().covered()
        {
            self.env.journal().record(&Key::Covered, &covered);
        }
        self.env.note_lag();
    }

    /// Waits until no request of the directory and no commit of the file is out at the vault.
    pub(super) async fn quiet(&self, parent: u64, file: Option<&File>) {
        loop {
            self.in_flight.quiet(parent).await;
            match file {
                Some(file) if file.commit_lock.available_permits() == 0 => {
                    drop(file.commit_lock.acquire().await)
                }
                _ => return,
            }
        }
    }

    /// What `status` says.
    pub(in crate::fs) fn status(&self) -> RotationStatus {
        RotationStatus {
            refresh: self.env.cache().refresh_status(),
            helper: self.helper.status(),
            done: self.done.load(Ordering::Relaxed),
            waiting: self.queue.lock().len(),
        }
    }
}
