//! A file's state as records, and back.
//!
//! One record holds all of a file but its bytes; those go in sealed chunks, and only the chunks
//! that changed. A record that would say what the last one said is not written: most guards change
//! nothing that lasts. What is only of this process is left out: open handles are counted again
//! from the handles, timers and retries are started again by the assembly.
//!
//! The bytes of a version that is open are written down too, as the vault may not have them any
//! more when they are asked for again.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::fs::inode::buffer::Buffer;
use crate::fs::inode::file::{Failure, File, FileState, Link, LocalAttr, Persistence, Sent};
use crate::fs::inode::writers::Writers;
use crate::fs::journal::{CHUNK, Key, MOST, Transaction};
use crate::fs::types::attr::FileKind;
use crate::fs::types::errno::Errno;
use crate::fs::types::unsaved::Unsaved;
use crate::secret::SecretBytes;
use crate::vault::save::Stored;
use crate::vault::{Content, Meta, Object, ObjectId, ObjectName, VersionTag};

/// What is written down of a file.
#[derive(Debug, Default)]
pub struct JournalState {
    /// Whether the file is in the table: only then there are records of it.
    pub registered: bool,
    /// Of the last record.
    fingerprint: Option<u64>,
    /// Pieces of the buffer.
    buffer: u32,
    /// The version of the bytes that are written down, and their chunks.
    pinned: Option<(ObjectId, VersionTag, u32)>,
    kernel_behind: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) struct BufferSnapshot {
    len: usize,
    generation: u64,
    committed: u64,
    written: bool,
    changed_at: SystemTime,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) struct FileSnapshot {
    kind: FileKind,
    name: ObjectName,
    link: Link,
    persistence: Persistence,
    origin: Option<ObjectName>,
    stored: Option<Stored>,
    pending_notify: Option<VersionTag>,
    buffer: Option<BufferSnapshot>,
    /// Length of the pinned bytes.
    pinned: Option<usize>,
    local: LocalAttr,
    failure: Option<Failure>,
    write_error: Option<Errno>,
    exclusive: bool,
    sent: Vec<Sent>,
    /// Of the buffer.
    writers: Option<Writers>,
}

/// Pieces that so many bytes take.
fn chunks(len: usize) -> u32 {
    len.div_ceil(CHUNK) as u32
}

impl File {
    /// Writes down what is new. Called with the state locked.
    pub(in crate::fs) fn write_down(&self, state: &mut FileState, tx: &Transaction) {
        if !state.journaled.registered {
            return;
        }
        self.record_buffer(state, tx);
        self.record_pinned(state, tx);
        if state.kernel_behind != state.journaled.kernel_behind {
            state.journaled.kernel_behind = state.kernel_behind;
            match state.kernel_behind {
                true => tx.record(&Key::KernelBehind(self.ino), &()),
                false => tx.delete(&Key::KernelBehind(self.ino)),
            }
        }
        let record = FileSnapshot::of(self.kind, state);
        let bytes = record.encode();
        let mut hasher = DefaultHasher::new();
        bytes.as_ref().ok().hash(&mut hasher);
        let fingerprint = Some(hasher.finish());
        if state.journaled.fingerprint != fingerprint {
            state.journaled.fingerprint = fingerprint;
            tx.record_encoded(&Key::File(self.ino), bytes);
        }
    }

    fn record_buffer(&self, state: &mut FileState, tx: &Transaction) {
        let before = state.journaled.buffer;
        let mut now = 0;
        if let Some(buffer) = &mut state.buffer {
            now = chunks(buffer.bytes.len());
            let mut unjournaled = std::mem::take(&mut buffer.unjournaled);
            if before == 0 {
                unjournaled = 0..buffer.bytes.len();
            }
            // The chunk that was the last one may have been cut.
            let first = unjournaled.start / CHUNK;
            let last = chunks(unjournaled.end.min(buffer.bytes.len())) as usize;
            for chunk in first..last {
                let end = buffer.bytes.len().min((chunk + 1) * CHUNK);
                let part = &buffer.bytes.expose()[chunk * CHUNK..end];
                tx.record_secret(&Key::Buffer(self.ino, chunk as u32), part);
            }
        }
        (now..before).for_each(|chunk| tx.delete(&Key::Buffer(self.ino, chunk)));
        state.journaled.buffer = now;
    }

    fn record_pinned(&self, state: &mut FileState, tx: &Transaction) {
        let wanted = match &state.retained {
            _ if state.buffer.is_some() => None,
            Some(retained) => Some(retained.object().clone()),
            None => pinned_of(state).filter(|_| state.opens > 0),
        };
        let same = match (&state.journaled.pinned, &wanted) {
            (None, None) => true,
            (Some((id, version, _)), Some(object)) => {
                *id == object.meta.id && *version == object.meta.version
            }
            _ => false,
        };
        if same {
            return;
        }
        let before = state.journaled.pinned.take().map_or(0, |(_, _, chunks)| chunks);
        let mut now = 0;
        if let Some(object) = wanted {
            now = record_chunks(tx, self.ino, object.content.bytes.expose());
            state.journaled.pinned = Some((object.meta.id.clone(), object.meta.version.clone(), now));
        }
        (now..before).for_each(|chunk| tx.delete(&Key::Pinned(self.ino, chunk)));
    }

    /// The file is in the table: it is written down.
    pub(in crate::fs) fn register(&self, tx: &Transaction) {
        self.change(tx).journaled.registered = true;
    }

    /// The file has left the table: nothing is left of it.
    pub(in crate::fs) fn unregister(&self, tx: &Transaction) {
        if !self.journal.is_enabled() {
            return;
        }
        let mut state = self.change(tx);
        let JournalState { buffer, pinned, kernel_behind, .. } = std::mem::take(&mut state.journaled);
        tx.delete(&Key::File(self.ino));
        if kernel_behind {
            tx.delete(&Key::KernelBehind(self.ino));
        }
        (0..buffer).for_each(|chunk| tx.delete(&Key::Buffer(self.ino, chunk)));
        let pinned = pinned.map_or(0, |(_, _, chunks)| chunks);
        (0..pinned).for_each(|chunk| tx.delete(&Key::Pinned(self.ino, chunk)));
        if let Some(buffer) = &mut state.buffer {
            // Should it enter again.
            buffer.unjournaled = 0..buffer.bytes.len();
        }
    }
}

/// Writes bytes down as the version that an inode is; returns the number of chunks.
pub(in crate::fs) fn record_chunks(tx: &Transaction, ino: u64, bytes: &[u8]) -> u32 {
    for (chunk, part) in bytes.chunks(CHUNK).enumerate() {
        tx.record_secret(&Key::Pinned(ino, chunk as u32), part);
    }
    chunks(bytes.len())
}

/// The pinned object, if it is the version that the file is.
fn pinned_of(state: &FileState) -> Option<Arc<Object>> {
    let stored = state.stored.as_ref()?;
    let object = state.pinned.as_ref()?;
    (object.meta.id == stored.id && object.meta.version == stored.version).then(|| object.clone())
}

impl FileSnapshot {
    fn of(kind: FileKind, state: &FileState) -> Self {
        // An addition to the state decides here whether it outlives the process.
        let FileState {
            name,
            link,
            persistence,
            origin,
            stored,
            pending_notify,
            kernel_behind: _,
            pinned: _,
            retained: _,
            buffer,
            opens: _,
            writers: _,
            last_writer: _,
            local,
            failure,
            write_error,
            exclusive,
            retrying: _,
            idle: _,
            quota_bytes: _,
            sent,
            journaled,
        } = state;
        let buffer = buffer.as_ref().map(|buffer| BufferSnapshot {
            len: buffer.bytes.len(),
            generation: buffer.generation,
            committed: buffer.committed,
            written: buffer.written,
            changed_at: buffer.changed_at,
        });
        let writers = state.buffer.as_ref().map(|buffer| buffer.writers.clone());
        let retained = state.retained.as_ref().map(|retained| retained.object());
        let pinned = journaled.pinned.as_ref().and(retained.or(state.pinned.as_ref()));
        Self {
            kind,
            name: name.clone(),
            link: *link,
            persistence: *persistence,
            origin: origin.clone(),
            stored: stored.clone(),
            pending_notify: pending_notify.clone(),
            buffer,
            pinned: pinned.map(|object| object.content.bytes.len()),
            local: local.clone(),
            failure: failure.clone(),
            write_error: *write_error,
            exclusive: *exclusive,
            sent: sent.clone(),
            writers,
        }
    }

    fn encode(&self) -> postcard::Result<Vec<u8>> {
        postcard::to_allocvec(self)
    }

    /// `None` for what is no record of a file.
    pub(in crate::fs) fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// Whether a file of at most `max_size` bytes can be made of it.
    pub(in crate::fs) fn makes_sense(&self, max_size: u64) -> bool {
        let fits = |len: usize| len as u64 <= max_size;
        self.pinned.is_none_or(fits)
            && self.buffer.as_ref().is_none_or(|buffer| fits(buffer.len) && buffer.generation <= MOST)
            && self.failure.as_ref().is_none_or(|failure| failure.number <= MOST)
    }

    /// The write that the vault does not have, if this is one.
    pub(in crate::fs) fn unsaved(&self) -> Option<Unsaved> {
        let buffer = self.buffer.as_ref()?;
        // As `FileState::is_dirty`.
        let changed = buffer.generation != buffer.committed;
        (changed && self.persistence == Persistence::Vault && self.link != Link::Unlinked).then(|| Unsaved {
            name: self.name.as_str().to_owned(),
            path: self.name.as_str().to_owned(),
            size: buffer.len as u64,
            error: self.failure.as_ref().map(|failure| failure.message.clone()),
            conflict: self.failure.as_ref().is_some_and(|failure| failure.conflict),
            retry_s: None,
        })
    }

    /// The file again; it is not open yet. `chunk` gives the chunks that were written down.
    pub(in crate::fs) fn restore(
        self,
        ino: u64,
        kernel_behind: bool,
        chunk: &mut dyn FnMut(Key) -> Option<SecretBytes>,
    ) -> File {
        let mut journaled = JournalState { registered: true, kernel_behind, ..JournalState::default() };
        let buffer = self.buffer.map(|record| {
            journaled.buffer = chunks(record.len);
            let mut bytes = join(journaled.buffer, |at| chunk(Key::Buffer(ino, at)));
            bytes.resize(record.len);
            let writers = self.writers.unwrap_or_default();
            Buffer {
                bytes,
                generation: record.generation,
                committed: record.committed,
                written: record.written,
                writers,
                changed_at: record.changed_at,
                unjournaled: 0..0,
            }
        });
        let pinned = self.pinned.zip(self.stored.as_ref()).map(|(len, stored)| {
            let count = chunks(len);
            journaled.pinned = Some((stored.id.clone(), stored.version.clone(), count));
            let bytes = join(count, |at| chunk(Key::Pinned(ino, at)));
            Arc::new(object(&self.name, stored, bytes))
        });
        let state = FileState {
            name: self.name,
            link: self.link,
            persistence: self.persistence,
            origin: self.origin,
            stored: self.stored,
            pending_notify: self.pending_notify,
            kernel_behind,
            pinned,
            retained: None,
            buffer,
            opens: 0,
            writers: BTreeSet::new(),
            last_writer: 0,
            local: self.local,
            failure: self.failure,
            write_error: self.write_error,
            exclusive: self.exclusive,
            retrying: None,
            idle: None,
            quota_bytes: 0,
            sent: self.sent,
            journaled,
        };
        let file = File::from_state(ino, self.kind, state);
        file.mark_kernel_cached();
        file
    }
}

/// The version that a file is, with its bytes.
fn object(name: &ObjectName, stored: &Stored, bytes: SecretBytes) -> Object {
    Object {
        meta: Meta {
            id: stored.id.clone(),
            name: name.clone(),
            version: stored.version.clone(),
            updated_at: stored.updated_at,
        },
        content: Content { bytes: Arc::new(bytes), form: stored.form },
    }
}

/// Bytes from their chunks.
pub(in crate::fs) fn join(count: u32, mut chunk: impl FnMut(u32) -> Option<SecretBytes>) -> SecretBytes {
    let mut bytes = SecretBytes::default();
    for at in 0..count {
        if let Some(part) = chunk(at) {
            bytes.write_at(at as usize * CHUNK, part.expose());
        }
    }
    bytes
}
