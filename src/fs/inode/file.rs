//! A file's state: its version, the bytes being written, local attributes.
//!
//! A file is *clean* (it shows `stored`), or it has a [`Buffer`] that readers and writers share.
//! The generation of the buffer counts changes; a commit stores one generation and remembers which,
//! so that a write during a commit is never taken for stored.
//!
//! The state is accessed through a [`StateGuard`], which journals the changes when it is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::fs::inode::buffer::Buffer;
use crate::fs::inode::file_snapshot::JournalState;
use crate::fs::inode::guard::{InUse, StateGuard, StateRef};
use crate::fs::inode::retained::RetainedBytes;
use crate::fs::inode::writers::{WriteOrigin, Writers};
use crate::fs::journal::{JournalWriter, Part, Transaction};
use crate::fs::types::attr::{FileKind, SetAttr};
use crate::fs::types::errno::Errno;
use crate::secret::SecretBytes;
use crate::vault::save::{Attempt, Stored};
use crate::vault::{Meta, Object, ObjectName, VersionTag};

/// Attributes set by chmod, chown and utimens; they live as long as the mount.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LocalAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<SystemTime>,
    /// Modification time, and the version it was set on: a newer version has its own.
    pub mtime: Option<(SystemTime, Option<VersionTag>)>,
    /// Change of the above.
    pub ctime: Option<SystemTime>,
}

impl LocalAttr {
    /// chmod and chown. chown removes the set-id bits of a file.
    pub fn set(&mut self, set: &SetAttr, kind: FileKind) {
        let chown = set.uid.is_some() || set.gid.is_some();
        let kept = if chown && kind != FileKind::Directory { 0o1777 } else { 0o7777 };
        self.mode = set.mode.or(self.mode.map(|mode| mode & kept)).map(|mode| mode & 0o7777);
        self.uid = set.uid.or(self.uid);
        self.gid = set.gid.or(self.gid);
        self.atime = set.atime.or(self.atime);
    }

    /// The content changed: a time set before is void, and set-id bits are removed.
    pub fn written(&mut self) {
        self.mtime = None;
        self.mode = self.mode.map(|mode| mode & !0o6000);
    }
}

/// The relation between a file and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// The name shows this inode.
    Current,
    /// The name shows a newer version, or nothing; this inode lives for its holders.
    Replaced,
    /// The name was unlinked here; its bytes are not stored any more.
    Unlinked,
}

/// Whether a file's bytes go to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Persistence {
    /// They do.
    Vault,
    /// Not yet: it may be an editor's temporary (`provisional`).
    Provisional,
    /// Never: it is an editor's temporary (`scratch`).
    Scratch,
    /// Not yet: mknod(2) made it empty, and an open for writing stores it.
    Made,
}

/// An attempt to store a file that is in flight, or has lost its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The name that it stores under: a rename stores under another one than the file's.
    pub name: ObjectName,
    /// The buffer's generation.
    pub generation: u64,
    /// The attempt.
    pub attempt: Attempt,
}

/// Why the bytes are not in the vault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The errno for writers.
    pub errno: Errno,
    /// The sentence for people.
    pub message: String,
    /// The vault has a newer version, so that there is no automatic retry.
    pub conflict: bool,
    /// The key was refused, or lacks a permission: a retry may succeed, later or with another key.
    pub key_refused: bool,
    /// The buffer's generation that was not stored.
    pub generation: u64,
    /// Counts failures, so that each handle reports each one.
    pub number: u64,
}

impl Failure {
    /// Whether it is retried without a decision by a person.
    pub fn is_retried(&self) -> bool {
        !self.conflict
            && (self.key_refused
                || matches!(self.errno, Errno::ETIMEDOUT | Errno::EIO | Errno::EBUSY | Errno::ENOSPC))
    }
}

/// The mutable state of a file.
#[derive(Debug)]
pub struct FileState {
    /// The object's name.
    pub name: ObjectName,
    /// Its relation to its name.
    pub link: Link,
    /// Whether it is stored.
    pub persistence: Persistence,
    /// The name of the object that this file was, hidden since the file was moved away
    /// (`provisional`).
    pub origin: Option<ObjectName>,
    /// The version that the clean file shows, and the base of writes; `None` until it is stored.
    pub stored: Option<Stored>,
    /// A version found by a lookup before its change was propagated: watchers have not seen it yet.
    pub pending_notify: Option<VersionTag>,
    /// The kernel may have the size and pages of another version: that it was to forget them is not
    /// known to have arrived. An open waits until it has, also after a takeover.
    pub kernel_behind: bool,
    /// Its bytes, while it is open and they are known.
    pub pinned: Option<Arc<Object>>,
    /// Its bytes, once its name shows another version, where the kernel reports no opens (`read`).
    pub retained: Option<RetainedBytes>,
    /// Bytes being written.
    pub buffer: Option<Buffer>,
    /// Open handles.
    pub opens: usize,
    /// Open handles that may write.
    pub writers: BTreeSet<u64>,
    /// The writer that was opened last.
    pub last_writer: u64,
    /// What was set locally.
    pub local: LocalAttr,
    /// The last commit failed.
    pub failure: Option<Failure>,
    /// A write was refused (EFBIG, ENOSPC), or a takeover lost bytes (EIO): the buffer is partial,
    /// and is not stored. Reset by the next truncation, or with the buffer at the last writer's
    /// close.
    pub write_error: Option<Errno>,
    /// Created with O_EXCL: an existing name is an error, not an update.
    pub exclusive: bool,
    /// A background retry runs, or is due at this time.
    pub retrying: Option<Instant>,
    /// When the last handle of a provisional file was closed.
    pub idle: Option<Instant>,
    /// Bytes that count as held back from the vault (`scratch`).
    pub quota_bytes: u64,
    /// Commits in flight, or of unknown result: one for each name (`vault::save`).
    pub sent: Vec<Sent>,
    /// What is journaled of this file, if it is in the table.
    pub journaled: JournalState,
}

impl FileState {
    /// Whether it has bytes that the vault lacks and should have.
    pub fn is_dirty(&self) -> bool {
        let changed = self.buffer.as_ref().is_some_and(|b| b.generation != b.committed);
        changed && self.persistence == Persistence::Vault && self.link != Link::Unlinked
    }

    /// Whether its bytes are the vault's, and are lost with the right to read them.
    pub fn may_be_taken_away(&self) -> bool {
        !self.is_dirty() && !self.is_only_here() && self.stored.is_some()
    }

    /// Whether just these bytes failed to be stored, so that their writer knows.
    pub fn has_failed(&self) -> bool {
        let failed = self.failure.as_ref().map(|failure| failure.generation);
        failed.is_some() && failed == self.buffer.as_ref().map(|buffer| buffer.generation)
    }

    /// Whether an open handle has changed it since the failure, and will store it.
    pub fn is_being_written(&self) -> bool {
        let is_amid = self.buffer.as_ref().is_some_and(|b| !b.written || !b.writers.is_empty());
        is_amid && !self.writers.is_empty() && !self.has_failed()
    }

    /// The origin of a change through this handle.
    pub fn write_origin(&self, fh: u64) -> WriteOrigin {
        if self.writers.contains(&fh) { WriteOrigin::Handle(fh) } else { WriteOrigin::Unattributed }
    }

    /// Registers a handle that may write.
    pub fn add_writer(&mut self, fh: u64) {
        self.writers.insert(fh);
        self.last_writer = self.last_writer.max(fh);
    }

    /// Drops attribution to closed handles; they can no longer commit.
    pub fn forget_closed(&mut self) {
        let Self { buffer, writers, .. } = self;
        if let Some(buffer) = buffer {
            buffer.writers.retain(|fh| writers.contains(&fh));
        }
    }

    /// Whether a close of this handle has something to commit: written since the last commit, and
    /// not another handle's.
    pub fn has_uncommitted(&self, fh: u64) -> bool {
        self.is_dirty() && self.buffer.as_ref().is_some_and(|b| b.written && b.writers.has_uncommitted(fh))
    }

    /// A file that mknod(2) made gets its content, or is to be durable: a commit stores it from now
    /// on.
    pub fn mark_storable(&mut self) {
        if self.persistence == Persistence::Made {
            self.persistence = Persistence::Vault;
        }
    }

    /// The attempt to store these bytes under this name that may have been made.
    pub fn sent(&self, name: &ObjectName) -> Option<&Attempt> {
        let generation = self.buffer.as_ref()?.generation;
        let sent = self.sent.iter().find(|sent| sent.name == *name && sent.generation == generation);
        sent.map(|sent| &sent.attempt)
    }

    /// An attempt goes out.
    pub fn note_sent(&mut self, sent: Sent) {
        self.forget_sent(&sent.name);
        self.sent.push(sent);
    }

    /// The outcome of all attempts for that name is known.
    pub fn forget_sent(&mut self, name: &ObjectName) {
        self.sent.retain(|sent| sent.name != *name);
    }

    /// Whether the file is held back for now, and becomes an object by itself.
    pub fn is_held_back(&self) -> bool {
        matches!(self.persistence, Persistence::Provisional | Persistence::Made) && self.link == Link::Current
    }

    /// Whether its bytes stay here, for now or for good.
    pub fn is_only_here(&self) -> bool {
        self.persistence != Persistence::Vault
    }

    /// Whether the file exists although the vault may lack it.
    pub fn is_beyond_vault(&self) -> bool {
        self.is_only_here() || self.is_dirty() || (self.stored.is_none() && self.opens > 0)
    }

    /// The last handle is closed: records and returns the time.
    pub fn idle_since(&mut self, now: Instant) -> Instant {
        *self.idle.insert(now)
    }

    /// Whether the inode has to stay although the kernel has forgotten it: also a backup, until the
    /// object hidden behind it is deleted.
    pub fn is_needed(&self) -> bool {
        let is_only_here = self.is_only_here() && self.link == Link::Current;
        self.opens > 0 || self.is_dirty() || is_only_here || self.origin.is_some()
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match (&self.buffer, &self.stored) {
            (Some(buffer), _) => buffer.bytes.len() as u64,
            (None, Some(stored)) => stored.size,
            (None, None) => 0,
        }
    }

    /// The time that utimens set on this version.
    pub fn set_mtime(&self) -> Option<SystemTime> {
        let version = self.stored.as_ref().map(|s| &s.version);
        self.local.mtime.as_ref().filter(|(_, on)| on.as_ref() == version).map(|(at, _)| *at)
    }

    /// When the content last changed.
    pub fn mtime(&self) -> SystemTime {
        if let Some(at) = self.set_mtime() {
            return at;
        }
        match (&self.buffer, &self.stored) {
            (Some(buffer), Some(stored)) if buffer.generation == buffer.committed => stored.updated_at,
            (Some(buffer), _) => buffer.changed_at,
            (None, Some(stored)) => stored.updated_at,
            (None, None) => SystemTime::UNIX_EPOCH,
        }
    }

    /// The bytes are a version of the vault now. A time set by utimens holds for it, for the life
    /// of the mount. Otherwise it has the vault's time, set before close(2) returns, so that a
    /// program does not take its own save for another's. A version stored later keeps the times
    /// that the file had at its close (not `waited_for`).
    pub fn times_of_stored(&mut self, meta: &Meta, waited_for: bool) {
        let written = self.mtime();
        let set = self.set_mtime();
        if set.is_none() && waited_for {
            self.local.ctime = None;
        }
        // A vault may report no time.
        let keeps = !waited_for || meta.updated_at == SystemTime::UNIX_EPOCH;
        let at = set.or(keeps.then_some(written));
        self.local.mtime = at.map(|at| (at, Some(meta.version.clone())));
    }

    /// The buffer, made from the stored bytes if there is none; `None` if those are not in memory.
    /// Unknown bytes are never overwritten.
    pub fn buffer_of_stored(&mut self, now: SystemTime) -> Option<&mut Buffer> {
        if self.buffer.is_none() && self.pinned.is_none() && self.stored.is_some() {
            return None;
        }
        let pinned = self.pinned.clone();
        Some(self.buffer(pinned.as_ref().map_or(&[], |o| o.content.bytes.expose()), now))
    }

    /// The buffer, made from `base` if there is none.
    pub fn buffer(&mut self, base: &[u8], now: SystemTime) -> &mut Buffer {
        self.buffer.get_or_insert_with(|| Buffer {
            bytes: SecretBytes::from(base),
            generation: 0,
            committed: 0,
            written: false,
            writers: Writers::default(),
            changed_at: now,
            unjournaled: 0..base.len(),
        })
    }

    /// Drops what only open handles need.
    pub fn release(&mut self) {
        if self.opens > 0 {
            // Readers keep the buffer: the stored form may be spelt differently.
            return;
        }
        self.pinned = None;
        if self.link == Link::Unlinked || (!self.is_only_here() && !self.is_dirty()) {
            self.buffer = None;
        }
    }
}

/// A file: an immutable identity, and its state.
#[derive(Debug)]
pub struct File {
    /// Its number.
    pub ino: u64,
    /// A regular file, or a name of something the kernel handles by itself (`mknod`).
    pub kind: FileKind,
    /// The kernel was given some of its bytes since the last invalidation.
    kernel_cached: AtomicBool,
    state: Mutex<FileState>,
    /// Journals the state.
    pub(in crate::fs) journal: JournalWriter,
    /// Serializes changes of the object at the vault.
    pub commit_lock: Arc<Semaphore>,
}

impl File {
    /// A file that is this version of an object.
    pub fn of(ino: u64, object: &Arc<Object>, local: LocalAttr) -> Self {
        Self::with(ino, object.meta.name.clone(), Some(Stored::of(object)), local)
    }

    /// A file that no vault has yet.
    pub fn new(ino: u64, name: ObjectName, local: LocalAttr) -> Self {
        Self::with(ino, name, None, local)
    }

    /// A pipe or a socket, which no vault ever has.
    pub fn special(ino: u64, name: ObjectName, local: LocalAttr, kind: FileKind) -> Self {
        Self { kind, ..Self::with(ino, name, None, local) }
    }

    fn with(ino: u64, name: ObjectName, stored: Option<Stored>, local: LocalAttr) -> Self {
        let state = FileState {
            name,
            link: Link::Current,
            persistence: Persistence::Vault,
            origin: None,
            stored,
            pending_notify: None,
            kernel_behind: false,
            pinned: None,
            retained: None,
            buffer: None,
            opens: 0,
            writers: BTreeSet::new(),
            last_writer: 0,
            local,
            failure: None,
            write_error: None,
            exclusive: false,
            retrying: None,
            idle: None,
            quota_bytes: 0,
            sent: Vec::new(),
            journaled: JournalState::default(),
        };
        Self::from_state(ino, FileKind::Regular, state)
    }

    /// A file in this state.
    pub(in crate::fs) fn from_state(ino: u64, kind: FileKind, state: FileState) -> Self {
        let commit_lock = Arc::new(Semaphore::new(1));
        Self {
            ino,
            kind,
            kernel_cached: AtomicBool::new(false),
            state: Mutex::new(state),
            journal: JournalWriter::default(),
            commit_lock,
        }
    }

    /// The kernel gets bytes of it, and may cache them.
    pub fn mark_kernel_cached(&self) {
        self.kernel_cached.store(true, Ordering::Release);
    }

    /// Whether the kernel may have cached some; resets it.
    pub fn clear_kernel_cached(&self) -> bool {
        self.kernel_cached.swap(false, Ordering::AcqRel)
    }

    /// Keeps the bytes in memory for a longer operation.
    pub fn in_use(self: &Arc<Self>) -> InUse {
        self.change_alone().opens += 1;
        InUse(self.clone())
    }

    /// The state, locked. Lock order: the table first.
    pub fn state(&self) -> StateRef<'_> {
        StateRef(self.state.lock())
    }

    /// The state, locked, to change it as a part of `tx`.
    pub fn change<'a>(&'a self, tx: &'a Transaction) -> StateGuard<'a> {
        StateGuard { file: self, state: self.state.lock(), changed: false, tx: Part::Of(tx) }
    }

    /// The same, of nothing more: it is published before the lock is released. Where the table is
    /// locked, [`File::change`] with its transaction keeps the change whole.
    pub fn change_alone(&self) -> StateGuard<'_> {
        let tx = Part::Own(self.journal.begin());
        StateGuard { file: self, state: self.state.lock(), changed: false, tx }
    }
}
