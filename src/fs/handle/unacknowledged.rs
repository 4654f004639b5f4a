//! Handles that no process may hold: a worker died between opening and answering, and OPEN does not
//! come again.
//!
//! 1. A process that waits for the answer to OPEN waits until it arrives, even when it is killed;
//!    the kernel sends OPEN again and the handle finds its owner. But if the process is killed
//!    before the next worker reads that OPEN, process and request are gone, and the handle is never
//!    closed. What was made through it would count as being written, and hold up every unmount.
//! 2. So a handle is *unacknowledged* until its OPEN has been answered, or until it is used. One
//!    that is still unacknowledged a minute after its worker's death counts as closed: its file
//!    releases its bytes, a file that was only created is stored.
//! 3. The answer may have been sent without a record of it. So the handle itself stays, and is open
//!    again when it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fs::handle::{Handle, Handles, Held};
use crate::fs::inode::file::File;
use crate::fs::types::ctx::RequestCtx;

/// The request that opened a handle, until its answer is known to have reached the kernel.
#[derive(Debug)]
pub(in crate::fs) struct Unacknowledged(AtomicU64);

const ACKNOWLEDGED: u64 = 0;
/// The handle counts as closed.
const CLOSED: u64 = u64::MAX;

impl Unacknowledged {
    pub fn new(request: Option<u64>) -> Self {
        Self(request.unwrap_or(ACKNOWLEDGED).into())
    }

    pub fn request(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|state| ![ACKNOWLEDGED, CLOSED].contains(state))
    }

    pub fn counts_as_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == CLOSED
    }
}

impl Handles {
    /// The handle that the request opened before the last worker died.
    pub fn opened_before(&self, ctx: &RequestCtx) -> Option<Arc<Handle>> {
        self.unacknowledged.lock().get(&ctx.id).cloned()
    }

    /// The request has been answered; what it opened is known to the kernel.
    pub fn acknowledge_open(&self, request: u64) {
        let handle = self.unacknowledged.lock().get(&request).cloned();
        handle.iter().for_each(|handle| self.acknowledge(handle));
    }

    pub(super) fn acknowledge(&self, handle: &Handle) {
        let state = &handle.unacknowledged.0;
        if state.load(Ordering::Relaxed) == ACKNOWLEDGED {
            return;
        }
        let request = state.swap(ACKNOWLEDGED, Ordering::Relaxed);
        self.unacknowledged.lock().remove(&request);
        if let (CLOSED, Held::File { file, writer }) = (request, &handle.held) {
            let mut state = file.change_alone();
            state.opens += 1;
            if writer.is_some() {
                state.add_writer(handle.fh);
            }
        }
        // Under the handles' lock: what is closed meanwhile is not written down again.
        let open = self.open.lock();
        if open.contains_key(&handle.fh) {
            self.note(handle);
        }
    }

    /// Handles with an OPEN that may not have been answered.
    pub fn unacknowledged(&self) -> Vec<Arc<Handle>> {
        self.unacknowledged.lock().values().cloned().collect()
    }

    /// The handle counts as closed, unless its OPEN has been acknowledged. Returns the file that is
    /// let go of; of anything else there is nothing to let go of.
    pub fn expire<'a>(&self, handle: &'a Handle) -> Option<&'a Arc<File>> {
        let request = handle.unacknowledged.request()?;
        self.unacknowledged.lock().remove(&request);
        let Held::File { file, .. } = &handle.held else { return None };
        let state = &handle.unacknowledged.0;
        state.compare_exchange(request, CLOSED, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        tracing::info!(fh = handle.fh, "an open was never acknowledged: the file counts as closed");
        Some(file)
    }
}
