//! The file system's logic, without a kernel: names become inodes, inodes become bytes, bytes
//! become versions.
//!
//! Operations return values, never hold a reply, and never block. Those that may wait are futures.
//! [`FileSystem::run`] polls them once: what is known is answered at once ([`Step::Ready`]); the
//! rest ([`Step::Pending`]) the adapter runs on the runtime. The request is their first argument
//! ([`RequestCtx`]). No fuser, no HTTP in here; time comes from [`crate::clock`].
//!
//! `ops`: a file for each family of operations. `namespace`: interprets names. `inode`: state and
//! lock order. `handle`: open handles and the close policy. `writeback`: commits. `temporary`:
//! names while an editor juggles them. `propagation`: remote changes to the kernel. `journal`,
//! `recovery`: state over a takeover. `report`: status, metrics, audit. `types`: what all parts
//! share, such as errno, options, [`RequestCtx`], [`Kernel`] and [`Step`].

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

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use crate::fs::assembly::Builder;
pub use crate::fs::handle::Opened;
pub use crate::fs::namespace::listing::{DirEntry, Listing};
pub use crate::fs::ops::create::Create;
pub use crate::fs::propagation::helper_calls::HelperStatus;
pub use crate::fs::propagation::{Propagator, RotationStatus};
pub use crate::fs::recovery::quarantine::Ending;
pub use crate::fs::report::audit::{Audit, AuditStatus};
pub use crate::fs::report::status::{Processes, Status};
pub use crate::fs::temporary::remover::Remover;
pub use crate::fs::types::attr::{Attr, Entry, FileKind, SetAttr};
pub use crate::fs::types::ctx::{Caller, RequestCtx};
pub use crate::fs::types::errno::{Errno, Result};
pub use crate::fs::types::kernel::{HelperCall, HelperReport, Kernel};
pub use crate::fs::types::options::Options;
pub use crate::fs::types::step::{Step, Work};
pub use crate::fs::types::unsaved::Unsaved;
pub use crate::fs::writeback::drain::Drain;
pub use crate::fs::writeback::failed_deletes::FailedDelete;
pub use crate::fs::writeback::unsaved_from_journal::unsaved_from_journal;
pub use inode::ROOT;
pub use journal::{Journal, JournalStatus, MemoryJournal, Record, Value};

use crate::fs::handle::Handles;
use crate::fs::namespace::Namespace;
use crate::fs::recovery::replay::{Replay, number_of};
use crate::fs::report::Report;
use crate::fs::temporary::Temporaries;
use crate::fs::types::env::Env;
use crate::fs::writeback::Writeback;
use inode::InodeTable;

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

    /// Does `work`, which never waits, for the request `unique`.
    pub fn run_now<T>(
        &self,
        unique: u64,
        caller: Caller,
        work: impl FnOnce(&RequestCtx) -> Result<T>,
    ) -> Result<T> {
        work(&self.replay.begin(unique, caller)?.ctx)
    }

    /// Begins `work` for the request `unique`: polled once, it is done if nothing has to be asked
    /// of the vault. [`FileSystem::completed`] ends a request that changed something, waited, or
    /// was resent.
    pub fn run<'a, T: 'a, W: Work<T> + 'a>(
        self: &Arc<Self>,
        unique: u64,
        caller: Caller,
        work: impl FnOnce(Arc<Self>, RequestCtx) -> W,
    ) -> Step<'a, T> {
        self.replay.run(unique, caller, |ctx| work(self.clone(), ctx))
    }

    /// The time left for the request.
    pub fn time_left(&self, unique: u64) -> Duration {
        self.replay.time_left(unique)
    }

    /// The request `unique` has been answered: it will not be resent.
    pub fn completed(&self, unique: u64) {
        let id = number_of(unique);
        self.handles.acknowledge_open(id);
        self.replay.completed(id);
    }

    /// The options it was made with.
    pub fn options(&self) -> &Options {
        self.env.options()
    }

    /// Wall-clock time, for attributes.
    pub fn now(&self) -> SystemTime {
        self.env.wall()
    }

    /// FORGET: the kernel released `count` lookups of an inode.
    pub fn forget(&self, ino: u64, count: u64) {
        self.inodes.lock().forget(ino, count);
    }
}
