//! Handles: what open(2) and opendir(2) return, and which close stores.
//!
//! A handle pins the bytes of the version it opened, so that a rotation or a full cache never takes
//! them away from a reader. The handle of a writer records the process that opened it, which
//! decides the FLUSH that stores (`close_policy`).

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::fs::handle::close_policy::Opener;
use crate::fs::handle::unacknowledged::Unacknowledged;
use crate::fs::inode::file::File;
use crate::fs::inode::{ControlText, Dir, Node, VersionFile};
use crate::fs::journal::Key;
use crate::fs::namespace::listing::Listing;
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::may_write::Change;
use crate::fs::{Caller, FileSystem, Kernel};
use crate::vault::cache::Found;

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
    pub opener: Opener,
    /// A write through this handle was refused: what its user meant is not in the buffer. Nothing
    /// is stored at its close, which says so, until the user cuts the file. 0, or the errno.
    pub refused: AtomicI32,
}

impl Writer {
    pub(super) fn refusal(&self) -> Option<Errno> {
        Some(self.refused.load(Ordering::Relaxed)).filter(|code| *code != 0).map(Errno)
    }
}

/// An open file or directory.
#[derive(Debug)]
pub(in crate::fs) struct Handle {
    pub fh: u64,
    pub held: Held,
    /// The request that opened it, until that is known to be answered.
    pub unacknowledged: Unacknowledged,
}

/// A handle as it is written down.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) struct HandleRecord {
    pub held: HeldRecord,
    pub by: Option<u64>,
}

/// See [`Held`].
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) enum HeldRecord {
    Dir(u64),
    File(u64, Option<(Opener, i32)>),
    Version(u64),
    Control(u64, SystemTime, Vec<u8>),
}

impl HandleRecord {
    fn of(handle: &Handle) -> Self {
        let held = match &handle.held {
            Held::Dir { dir, .. } => HeldRecord::Dir(dir.ino),
            Held::File { file, writer } => {
                let writer = writer.as_ref().map(|w| (w.opener, w.refused.load(Ordering::Relaxed)));
                HeldRecord::File(file.ino, writer)
            }
            Held::Version(version) => HeldRecord::Version(version.ino),
            Held::Control(text) => HeldRecord::Control(text.ino, text.taken, text.text.clone()),
        };
        Self { held, by: handle.unacknowledged.request() }
    }
}

/// How old an answer may be that O_DIRECT of a guest is content with.
const GUEST_FRESH: Duration = Duration::from_secs(1);

/// So many handle numbers are written down as in use ahead of their use.
const NUMBERS: u64 = 4096;

/// Whether a FLUSH of this handle stores, as far as copies of its descriptor are concerned.
pub(super) fn commits_on_close(
    file: &File,
    opener: &Opener,
    caller: Caller,
    kernel: Option<&dyn Kernel>,
) -> bool {
    let is_ours = |pid, mount| kernel.is_none_or(|kernel| kernel.has_mount(pid, mount));
    loop {
        let (only, seen) = {
            let state = file.state();
            // Of several handles the process may have another one's descriptors, too, by
            // inheritance.
            (state.writers.len() == 1, state.last_writer)
        };
        if opener.commits_on_close(caller.pid, file.ino, only, is_ours) {
            return true;
        }
        // The copy that was seen may be the descriptor of a handle that was opened meanwhile.
        if file.state().last_writer == seen {
            return false;
        }
    }
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

impl FileSystem {
    pub(in crate::fs) fn new_handle(&self, ctx: &RequestCtx, held: Held) -> Opened {
        self.number_handle(ctx, self.next_handle(), held)
    }

    fn next_handle(&self) -> u64 {
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        if fh % NUMBERS == 1 {
            self.env.journal().record(&Key::NextHandle, &(fh + NUMBERS));
        }
        fh
    }

    fn number_handle(&self, ctx: &RequestCtx, fh: u64, held: Held) -> Opened {
        let by = self.env.journal().is_enabled().then_some(ctx.id);
        let handle = Handle { fh, held, unacknowledged: Unacknowledged::new(by) };
        let opened = handle.opened();
        self.note_handle(&handle);
        self.add_handle(handle);
        opened
    }

    pub(in crate::fs) fn add_handle(&self, handle: Handle) {
        let handle = Arc::new(handle);
        self.handles().insert(handle.fh, handle.clone());
        if let Some(request) = handle.unacknowledged.request() {
            self.unacknowledged.lock().insert(request, handle);
        }
    }

    /// Writes a handle down.
    pub(in crate::fs) fn note_handle(&self, handle: &Handle) {
        if self.env.journal().is_enabled() {
            self.env.journal().record(&Key::Handle(handle.fh), &HandleRecord::of(handle));
        }
    }

    /// A write through this handle was refused with that; [`None`](Option::None) once its user
    /// begins anew.
    pub(in crate::fs) fn note_refused(&self, handle: &Handle, why: impl Into<Option<Errno>>) {
        let Held::File { writer: Some(writer), .. } = &handle.held else { return };
        let code = why.into().map_or(0, |errno| errno.0);
        if writer.refused.swap(code, Ordering::Relaxed) != code {
            self.note_handle(handle);
        }
    }

    /// The handle is closed: nothing is left of it. `None` if its file was let go of before.
    pub(in crate::fs) fn drop_handle(&self, fh: u64) -> Option<Arc<Handle>> {
        let handle = self.handles().remove(&fh)?;
        self.env.journal().delete(&Key::Handle(fh));
        (!handle.unacknowledged.counts_as_closed()).then_some(handle)
    }

    /// OPEN, written down where that is asked for.
    pub async fn open(self: &Arc<Self>, ctx: &RequestCtx, ino: u64, flags: i32) -> Result<Opened> {
        if let Some(handle) = self.opened_before(ctx) {
            return Ok(handle.opened());
        }
        let opened = self.open_node(ctx, ino, flags).await?;
        if self.env.options().audit.is_some() {
            let op = if flags & libc::O_ACCMODE == libc::O_RDONLY { "read" } else { "write" };
            self.write_down(ino, op, ctx.caller);
        }
        Ok(opened)
    }

    async fn open_node(self: &Arc<Self>, ctx: &RequestCtx, ino: u64, flags: i32) -> Result<Opened> {
        let node = self.inodes.node(ino)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        self.env.cache().used(self.env.longest_ttl());
        if writes
            && !self.env.options().read_only
            && let Node::File(file) = &node
        {
            self.may_save(file)?;
        }
        if let Node::File(file) = &node {
            self.is_at_its_name(file, ctx.caller)?;
        }
        match node {
            Node::Dir(_) => Err(Errno::EISDIR),
            Node::Version(_) | Node::Control(..) if writes => Err(Errno::EPERM),
            Node::Version(version) if version.object.is_none() => Err(self.env.refused(
                "open of a version",
                version.name.as_str(),
                Errno::EOPNOTSUPP,
                "the kv API gives no bytes of old versions, and this mount has not read this one itself",
            )),
            Node::Version(version) => Ok(self.new_handle(ctx, Held::Version(version))),
            Node::Control(control) => Ok(self.new_handle(ctx, Held::Control(control))),
            Node::File(_) if writes && self.env.options().read_only => Err(Errno::EROFS),
            Node::File(file) => {
                if flags & libc::O_DIRECT != 0 {
                    Box::pin(self.is_still_current(ctx, &file)).await?;
                }
                self.open_loaded(ctx, &file, writes).await
            }
        }
    }

    /// Refuses what is known to fail at close(2).
    fn may_save(&self, file: &File) -> Result<()> {
        let (name, change) = {
            let state = file.state();
            if state.is_only_here() {
                return Ok(());
            }
            let change = if state.stored.is_some() { Change::Version } else { Change::Object };
            (state.name.clone(), change)
        };
        self.writeback.may_write(&name, change)
    }

    /// O_DIRECT asks the vault, whatever is cached; for a guest what was asked a moment ago will
    /// do. ESTALE makes the kernel look the name up again and open what it finds then.
    async fn is_still_current(self: &Arc<Self>, ctx: &RequestCtx, file: &File) -> Result<()> {
        let (name, stored) = {
            let state = file.state();
            match &state.stored {
                Some(stored) if !state.is_dirty() && !state.is_only_here() => {
                    (state.name.clone(), stored.clone())
                }
                _ => return Ok(()),
            }
        };
        let age = if self.is_guest(ctx.caller.uid) { GUEST_FRESH } else { Duration::ZERO };
        let found = self.env.cache().fetch_within(ctx.call().await, &name, age).await;
        let found = found.map_err(|e| self.env.failed("open", name.as_str(), &e))?;
        match found {
            Some(Found { stale: Some(why), .. }) => {
                let (errno, why) = match Errno::from(why) {
                    Errno::EBUSY => (
                        Errno::EBUSY,
                        "the request budget is used up, and O_DIRECT asks for what the vault has now",
                    ),
                    _ => {
                        (Errno::ETIMEDOUT, "the vault does not answer, and O_DIRECT asks for what it has now")
                    }
                };
                Err(self.env.refused("open", name.as_str(), errno, why))
            }
            Some(found) if stored.is(&found.object.meta) => Ok(()),
            Some(_) | None => Err(Errno::ESTALE),
        }
    }

    /// A handle, if the file's bytes are in memory. Looking at them and counting the handle is one
    /// step: the RELEASE of another handle comes at any time, and frees bytes that no handle has
    /// open.
    pub(super) fn open_now(&self, ctx: &RequestCtx, file: &Arc<File>, writes: bool) -> Option<Opened> {
        let mut state = file.change_alone();
        if state.buffer.is_none()
            && state.pinned.is_none()
            && let Some(stored) = &state.stored
        {
            state.pinned = Some(self.env.bytes_in_memory(stored)?);
        }
        if writes && state.failure.as_ref().is_some_and(|failure| failure.errno == Errno::EEXIST) {
            // This open comes after the name was seen to be taken: it means to change what it
            // shows.
            state.exclusive = false;
            state.failure = None;
        }
        if writes {
            state.store_made();
        }
        state.opens += 1;
        let fh = self.next_handle();
        let writer = writes.then(|| {
            state.add_writer(fh);
            Writer { opener: Opener::of(ctx.caller.pid), refused: AtomicI32::new(0) }
        });
        drop(state);
        Some(self.number_handle(ctx, fh, Held::File { file: file.clone(), writer }))
    }

    /// The same, fetching the bytes if need be.
    pub(super) async fn open_loaded(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        file: &Arc<File>,
        writes: bool,
    ) -> Result<Opened> {
        if let Some(opened) = self.open_now(ctx, file, writes) {
            return Ok(opened);
        }
        let call = ctx.call().await;
        let _in_use = file.in_use();
        Box::pin(self.load(call, file)).await?;
        self.open_now(ctx, file, writes).ok_or(Errno::EIO)
    }
}
