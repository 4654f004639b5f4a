//! Open handles: what open(2) and opendir(2) return, and which close stores.
//!
//! A handle pins the bytes of the version it opened, so that a rotation or a full cache never takes
//! them away from a reader. The handle of a writer records the process that opened it, which
//! decides the FLUSH that stores (`close_policy`). A handle may have no owner after a death
//! (`unacknowledged`).
//!
//! The locks in here are leaves.

mod close_policy;
mod record;
mod unacknowledged;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::fs::handle::close_policy::Opener;
pub(in crate::fs) use crate::fs::handle::record::{HandleRecord, HeldRecord};
use crate::fs::handle::unacknowledged::Unacknowledged;
use crate::fs::inode::file::File;
use crate::fs::inode::{ControlText, Dir, VersionFile};
use crate::fs::journal::{Key, Transaction};
use crate::fs::namespace::listing::Listing;
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::env::Env;
use crate::fs::types::errno::{Errno, Result};

/// So many handle numbers are written down as in use ahead of their use.
const NUMBERS: u64 = 4096;

/// What a handle is open on.
#[derive(Debug)]
pub(in crate::fs) enum Held {
    /// A directory, its names as of the last read from the beginning, and whether the kernel keeps
    /// them.
    Dir { dir: Arc<Dir>, listing: Mutex<Option<Arc<Listing>>>, cached: bool },
    /// A file.
    File { file: Arc<File>, writer: Option<Writer> },
    /// An old version.
    Version(Arc<VersionFile>),
    /// A control file, as it was when looked up.
    Control(Arc<ControlText>),
}

/// The writing side of a handle.
#[derive(Debug)]
pub(in crate::fs) struct Writer {
    /// The process that opened it.
    opener: Opener,
    /// A write through this handle was refused: what its user meant is not in the buffer. Nothing
    /// is stored at its close, which says so, until the user cuts the file. 0, or the errno.
    refused: AtomicI32,
}

impl Writer {
    /// Of a process that opens a file for writing.
    pub fn of(pid: u32) -> Self {
        Self { opener: Opener::of(pid), refused: AtomicI32::new(0) }
    }

    fn refusal(&self) -> Option<Errno> {
        Some(self.refused.load(Ordering::Relaxed)).filter(|code| *code != 0).map(Errno)
    }
}

/// An open file or directory.
#[derive(Debug)]
pub(in crate::fs) struct Handle {
    pub fh: u64,
    pub held: Held,
    /// The request that opened it, until that is known to be answered.
    unacknowledged: Unacknowledged,
}

/// What OPEN, OPENDIR and CREATE answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub fh: u64,
    /// Pages the kernel has of this inode are still its bytes.
    pub keep_cache: bool,
    /// The kernel need not send FLUSH.
    pub no_flush: bool,
    /// The kernel may keep the names that it reads.
    pub cache_dir: bool,
}

impl Handle {
    /// The file, if the handle may write to it.
    pub fn written_file(&self) -> Option<&File> {
        match &self.held {
            Held::File { file, writer: Some(_) } if !self.unacknowledged.counts_as_closed() => Some(file),
            _ => None,
        }
    }

    /// Why nothing is stored at its close.
    pub fn refusal(&self) -> Option<Errno> {
        match &self.held {
            Held::File { writer: Some(writer), .. } => writer.refusal(),
            _ => None,
        }
    }

    /// The answer to the kernel.
    pub fn opened(&self) -> Opened {
        let no_flush = match &self.held {
            Held::File { writer, .. } => writer.is_none(),
            Held::Control(_) | Held::Version(_) => true,
            Held::Dir { .. } => false,
        };
        Opened { fh: self.fh, keep_cache: true, no_flush, cache_dir: false }
    }
}

/// All open handles.
pub(in crate::fs) struct Handles {
    env: Arc<Env>,
    open: Mutex<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
    /// Those with an OPEN that may not have been answered, by its request.
    unacknowledged: Mutex<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    pub fn new(env: Arc<Env>) -> Self {
        Self { env, open: Mutex::default(), next: AtomicU64::new(1), unacknowledged: Mutex::default() }
    }

    /// A new handle.
    pub fn open(&self, ctx: &RequestCtx, held: Held) -> Opened {
        self.open_in(&self.env.journal().begin(), ctx, self.next_number(), held)
    }

    /// The number of a handle that is about to be opened.
    pub fn next_number(&self) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        if fh % NUMBERS == 1 {
            self.env.journal().record(&Key::NextHandle, &(fh + NUMBERS));
        }
        fh
    }

    /// A new handle with this number, as a part of a change.
    pub fn open_in(&self, tx: &Transaction, ctx: &RequestCtx, fh: u64, held: Held) -> Opened {
        let by = self.env.journal().is_enabled().then_some(ctx.id);
        let handle = Handle { fh, held, unacknowledged: Unacknowledged::new(by) };
        let opened = handle.opened();
        self.note_in(tx, &handle);
        self.add(handle);
        opened
    }

    fn add(&self, handle: Handle) {
        let handle = Arc::new(handle);
        self.open.lock().insert(handle.fh, handle.clone());
        if let Some(request) = handle.unacknowledged.request() {
            self.unacknowledged.lock().insert(request, handle);
        }
    }

    /// Puts the handles of a dead worker back; `by` is the request that opened it.
    pub fn restore(&self, next: u64, open: impl Iterator<Item = (u64, Held, Option<u64>)>) {
        self.next.store(next, Ordering::Relaxed);
        for (fh, held, by) in open {
            self.add(Handle { fh, held, unacknowledged: Unacknowledged::new(by) });
        }
    }

    /// Journals a handle.
    fn note(&self, handle: &Handle) {
        self.note_in(&self.env.journal().begin(), handle);
    }

    fn note_in(&self, tx: &Transaction, handle: &Handle) {
        tx.record(&Key::Handle(handle.fh), &HandleRecord::of(handle));
    }

    /// A write through this handle was refused with that; [`None`](Option::None) once its user
    /// begins anew.
    pub fn note_refused(&self, handle: &Handle, why: impl Into<Option<Errno>>) {
        let Held::File { writer: Some(writer), .. } = &handle.held else { return };
        let code = why.into().map_or(0, |errno| errno.0);
        if writer.refused.swap(code, Ordering::Relaxed) != code {
            self.note(handle);
        }
    }

    /// The handle is closed: nothing is left of it. `None` if its file was let go of before.
    pub fn close(&self, fh: u64) -> Option<Arc<Handle>> {
        let handle = self.open.lock().remove(&fh)?;
        self.env.journal().delete(&Key::Handle(fh));
        (!handle.unacknowledged.counts_as_closed()).then_some(handle)
    }

    /// An open handle. What is asked of it shows that the kernel has it.
    pub fn get(&self, fh: u64) -> Result<Arc<Handle>> {
        let handle = self.open.lock().get(&fh).cloned().ok_or(Errno::EBADF)?;
        self.acknowledge(&handle);
        Ok(handle)
    }

    /// The handles at this moment; those that count as closed are among them.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        self.open.lock().values().cloned().collect()
    }

    /// How many there are that do not count as closed.
    pub fn count(&self) -> usize {
        self.open.lock().values().filter(|handle| !handle.unacknowledged.counts_as_closed()).count()
    }
}
