//! Handles that no process may hold: a worker died between opening and answering, and OPEN does not
//! come again.
//!
//! 1. A process that waits for the answer to OPEN waits until it arrives, even when it is killed;
//!    the kernel sends OPEN again and the handle finds its owner. But if the process is killed
//!    before the next worker reads that OPEN, process and request are gone, and the handle is never
//!    closed.
//! 2. So a handle is *unacknowledged* until its OPEN has been answered, or until it is used. One
//!    that is still unacknowledged a minute after its worker's death counts as closed: its file
//!    releases its bytes, a file that was only created is stored.
//! 3. The answer may have been sent without a record of it. So the handle itself stays, and is open
//!    again when it is used.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::fs::FileSystem;
use crate::fs::journal::Key;
use crate::fs::ops::open::{Handle, Held};
use crate::fs::recovery::restore::REQUESTS;
use crate::fs::types::errno::{Errno, Result};

/// The request that opened a handle, until its answer is known to have reached the kernel.
#[derive(Debug, Default)]
pub(in crate::fs) struct Unacknowledged(AtomicU64);

impl Unacknowledged {
    pub fn new(request: Option<u64>) -> Self {
        Self(request.unwrap_or(0).into())
    }

    pub fn request(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|request| *request != 0)
    }
}

/// Unacknowledged handles by the request that opened them, and those that count as closed by their
/// number.
#[derive(Debug, Default)]
pub(in crate::fs) struct UnacknowledgedOpens {
    by: Mutex<HashMap<u64, u64>>,
    closed: Mutex<HashMap<u64, Arc<Handle>>>,
}

impl UnacknowledgedOpens {
    fn by(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.by.lock()
    }

    fn closed(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.closed.lock()
    }

    /// A handle was opened by `request`.
    pub fn add(&self, request: u64, fh: u64) {
        self.by().insert(request, fh);
    }

    /// The handle that `request` has opened.
    pub fn handle_of(&self, request: u64) -> Option<u64> {
        self.by().get(&request).copied()
    }
}

impl FileSystem {
    /// An open handle. What is asked of it shows that the kernel has it.
    pub(in crate::fs) fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        let handle = self.handles().get(&fh).cloned();
        match handle {
            Some(handle) => {
                self.acknowledge(&handle);
                Ok(handle)
            }
            None => self.reopen(fh).ok_or(Errno::EBADF),
        }
    }

    /// The request has been answered; what it opened is known to the kernel.
    pub(in crate::fs) fn acknowledge_open(&self, request: u64) {
        let Some(fh) = self.unacknowledged.handle_of(request) else { return };
        let handle = self.handles().get(&fh).cloned();
        match handle {
            Some(handle) => self.acknowledge(&handle),
            // It is closed already.
            None => drop(self.unacknowledged.by().remove(&request)),
        }
    }

    fn acknowledge(&self, handle: &Handle) {
        let Some(request) = handle.unacknowledged.request() else { return };
        handle.unacknowledged.0.store(0, Ordering::Relaxed);
        self.unacknowledged.by().remove(&request);
        // Under the handles' lock: what is closed meanwhile is not written down again.
        let handles = self.handles();
        if handles.contains_key(&handle.fh) {
            self.note_handle(handle);
        }
    }

    /// After a death: handles that are not used in time count as closed.
    pub(in crate::fs) fn close_unacknowledged_later(self: &Arc<Self>) {
        if self.unacknowledged.by().is_empty() {
            return;
        }
        let old: Vec<u64> = self.unacknowledged.by().values().copied().collect();
        let fs = self.clone();
        self.env.spawn(async move {
            tokio::time::sleep(REQUESTS).await;
            for fh in old {
                fs.close_unacknowledged(fh).await;
            }
        });
    }

    async fn close_unacknowledged(self: &Arc<Self>, fh: u64) {
        let handle = {
            let mut handles = self.handles();
            let Some(handle) = handles.get(&fh).filter(|handle| handle.unacknowledged.request().is_some())
            else {
                return;
            };
            let is_file = matches!(handle.held, Held::File { .. });
            let handle = handle.clone();
            // Of anything else there is nothing to let go of.
            if is_file {
                handles.remove(&fh);
                self.unacknowledged.closed().insert(fh, handle.clone());
            }
            handle
        };
        if let Some(request) = handle.unacknowledged.request() {
            self.unacknowledged.by().remove(&request);
        }
        if let Held::File { file, .. } = &handle.held {
            tracing::info!(fh, "an open was never acknowledged: the file counts as closed");
            if let crate::fs::Step::Pending(stored) = self.let_go(file, fh) {
                let _ = stored.await;
            }
            if !self.table().is_held(file.ino) {
                // Nor has the kernel.
                self.was_closed(fh);
            }
        }
    }

    /// It counted as closed and was not.
    fn reopen(&self, fh: u64) -> Option<Arc<Handle>> {
        let handle = self.unacknowledged.closed().remove(&fh)?;
        if let Held::File { file, writer } = &handle.held {
            let mut state = file.change_alone();
            state.opens += 1;
            if writer.is_some() {
                state.add_writer(fh);
            }
        }
        self.handles().insert(fh, handle.clone());
        self.acknowledge(&handle);
        Some(handle)
    }

    /// A handle is closed; whether it counted as closed before.
    pub(in crate::fs) fn was_closed(&self, fh: u64) -> bool {
        let was = self.unacknowledged.closed().remove(&fh).is_some();
        if was {
            self.env.journal().delete(&Key::Handle(fh));
        }
        was
    }
}
