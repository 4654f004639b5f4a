//! The file system's logic, without a kernel: names become inodes, inodes become bytes, bytes
//! become versions.
//!
//! Operations return values, never hold a reply, and never block. Those that may wait are futures.
//! [`FileSystem::run`] polls them once: what is known is answered at once ([`Step::Ready`]); the
//! rest ([`Step::Pending`]) the adapter runs on the runtime. The request is their first argument
//! ([`RequestCtx`]). No fuser, no HTTP in here; time comes from a [`Clock`].
//!
//! `ops`: a file for each family of operations. `namespace`: interprets names. `inode`: state and
//! lock order. `handle`: open handles and the close policy. `writeback`: commits. `temporary`:
//! names while an editor juggles them. `propagation`: remote changes to the kernel. `journal`,
//! `recovery`: state over a takeover. `report`: status, metrics, audit. `types`: the table of
//! errors.

mod assembly;
mod handle;
mod inode;
mod journal;
pub mod name;
pub mod namespace;
mod ops;
mod propagation;
mod recovery;
mod report;
mod temporary;
pub mod types;
mod writeback;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

pub use crate::fs::assembly::Builder;
pub use crate::fs::handle::Opened;
pub use crate::fs::namespace::listing::{DirEntry, Listing};
pub use crate::fs::ops::create::Create;
pub use crate::fs::propagation::helper_calls::{HelperCall, HelperReport, HelperStatus};
pub use crate::fs::propagation::{Propagator, RotationStatus};
pub use crate::fs::recovery::quarantine::Ending;
pub use crate::fs::report::audit::{Audit, AuditStatus};
pub use crate::fs::report::status::{Processes, Status};
pub use crate::fs::temporary::remover::Remover;
pub use crate::fs::types::attr::{Attr, Entry, FileKind, SetAttr};
pub use crate::fs::types::ctx::{Caller, RequestCtx};
pub use crate::fs::types::errno::{Errno, Result};
pub use crate::fs::types::options::Options;
pub use crate::fs::types::unsaved::Unsaved;
pub use crate::fs::writeback::drain::Drain;
pub use crate::fs::writeback::failed_deletes::FailedDelete;
pub use crate::fs::writeback::unsaved_from_journal::unsaved_from_journal;
pub use inode::ROOT;
pub use journal::{Journal, JournalStatus, MemoryJournal, Record, Value};

use crate::fs::handle::Handles;
use crate::fs::namespace::Namespace;
use crate::fs::recovery::replay::Replay;
use crate::fs::report::Report;
use crate::fs::temporary::Temporaries;
use crate::fs::types::env::Env;
use crate::fs::writeback::Writeback;
use inode::InodeTable;

/// An operation on its way: it may wait.
pub trait Work<T>: Future<Output = Result<T>> + Send {}

impl<T, W: Future<Output = Result<T>> + Send> Work<T> for W {}

/// An answer, or what is left of the work that gives it.
pub enum Step<'a, T> {
    /// Known without a request.
    Ready(Result<T>),
    /// Needs requests to the vault.
    Pending(BoxFuture<'a, Result<T>>),
}

/// The kernel's side. Implementations never block the caller.
pub trait Kernel: Send + Sync {
    /// Invalidates the entry `name` of directory `parent`, so that its next use is a lookup.
    fn inval_entry(&self, parent: u64, name: &OsStr);
    /// Invalidates attributes and pages of an inode.
    fn inval_inode(&self, ino: u64);
    /// Calls `then` after all previous invalidations.
    fn after_notices(&self, then: Box<dyn FnOnce() + Send>);
    /// Orders a helper call; `to` is the helper's process id, 0 for any. The answer comes with
    /// [`Propagator::helper_reports`]. False without a channel.
    fn order(&self, number: u64, to: u32, call: &HelperCall) -> bool;
    /// Whether a program watches something of the mount (inotify), as far as that is visible.
    fn is_watched(&self) -> bool;
    /// Whether the mount with this id, in the mount namespace of the process `pid`, is of this file
    /// system. True if unknown.
    fn has_mount(&self, pid: u32, mount: u64) -> bool;
}

/// A mounted vault.
pub struct FileSystem {
    env: Arc<Env>,
    inodes: Arc<InodeTable>,
    handles: Arc<Handles>,
    namespace: Arc<Namespace>,
    replay: Arc<Replay>,
    temporaries: Arc<Temporaries>,
    writeback: Arc<Writeback>,
    report: Report,
    propagator: Arc<Propagator>,
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystem").field("cache", self.env.cache()).finish_non_exhaustive()
    }
}

impl FileSystem {
    /// Attaches the kernel, before the first request.
    pub fn attach_kernel(&self, kernel: Arc<dyn Kernel>) {
        self.env.attach_kernel(kernel);
        if self.env.options().reads_unopened() {
            // After a takeover the kernel may have names that are unknown here.
            self.namespace.forget_kernel_listings();
        }
    }

    /// What is on its way to the kernel, and the helper.
    pub fn propagator(&self) -> &Arc<Propagator> {
        &self.propagator
    }

    /// Stores what is unsaved, deletes what should be gone, and names what is left of both when
    /// nothing is on its way any more.
    pub async fn drain(&self, what: Drain, patience: Duration) -> Vec<Unsaved> {
        self.temporaries.drain(what, patience).await
    }

    /// Writes that the vault does not have, open files included.
    pub fn unsaved(&self) -> Vec<Unsaved> {
        self.writeback.unsaved()
    }

    /// What is lost if the mount ends now: unsaved writes, and deletions that were not made.
    pub fn left_over(&self) -> Vec<Unsaved> {
        self.writeback.left_over()
    }

    /// Objects that should be gone, by name.
    pub fn failed_deletes(&self) -> Vec<FailedDelete> {
        self.writeback.failed_deletes()
    }

    /// Stores unsaved writes (all, or that of one name), also over a newer version: the user who
    /// asks has seen the conflict. Deletes what should be gone. Returns what is unsaved afterwards.
    pub async fn retry_unsaved(&self, name: Option<&str>, patience: Duration) -> Vec<Unsaved> {
        self.writeback.retry_unsaved(name, patience).await
    }

    /// Gives the unsaved write of a name up, or its deletion: the name shows what the vault has.
    /// False if there is neither.
    pub fn discard_unsaved(&self, name: &str) -> bool {
        self.writeback.discard_unsaved(name)
    }

    /// Waits until the commits in flight are recorded; no other begins until the result is dropped.
    pub async fn hold_stores(&self, within: Duration) -> Option<OwnedSemaphorePermit> {
        self.writeback.hold_stores(within).await
    }

    /// The start-up check brought no names: the vault was away, or the key may not list.
    pub fn listing_is_untried(&self) {
        self.env.cache().listing_is_untried();
    }

    /// The options it was made with.
    pub fn options(&self) -> &Options {
        self.env.options()
    }

    /// Wall-clock time, for attributes.
    pub fn now(&self) -> SystemTime {
        self.env.wall()
    }

    /// Makes the kernel read an inode anew.
    pub fn inval_pages(&self, ino: u64) {
        self.env.inval_inode(ino);
    }

    /// FORGET: the kernel released `count` lookups of an inode.
    pub fn forget(&self, ino: u64, count: u64) {
        self.inodes.lock().forget(ino, count);
    }

    /// Whether this user is a guest: neither the owner of the mount or of its files, nor root.
    pub fn is_guest(&self, uid: u32) -> bool {
        uid != 0 && uid != self.env.options().uid && uid != nix::unistd::geteuid().as_raw()
    }
}
