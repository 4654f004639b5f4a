//! A file's state as records, and back.
//!
//! One record tells all of a file but its bytes; those go in sealed pieces, and only the pieces that changed. A
//! record that would say what the last one said is not written: most guards change nothing that lasts. What is
//! only of this process is left out: open handles are counted again from the handles, timers and retries are
//! started again by whoever restores ([`restore`](crate::fs::recovery::restore)).
//!
//! The bytes of a version that somebody has open are written down too, as the vault may not have them any more
//! when they are asked for again.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::fs::inode::file::{Buffer, Failure, File, FileState, Keep, Link, LocalAttr, Stored};
use crate::fs::inode::writers::Wrote;
use crate::fs::journal::{Key, PIECE, Pen};
use crate::fs::namespace::attr::FileKind;
use crate::fs::recovery::restore::MOST;
use crate::fs::report::status::Unsaved;
use crate::fs::types::errno::Errno;
use crate::fs::writeback::doubt::Sent;
use crate::secret::SecretBytes;
use crate::vault::{Content, Meta, Object, ObjectId, ObjectName, VersionTag};

/// What is written down of a file.
#[derive(Debug, Default)]
pub struct Written {
    /// Whether the file is in the table: only then there are records of it.
    pub listed: bool,
    /// Of the last record.
    fingerprint: Option<u64>,
    /// Pieces of the buffer.
    buffer: u32,
    /// The version whose bytes are written down, and their pieces.
    pinned: Option<(ObjectId, VersionTag, u32)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) struct BufferRecord {
    len: usize,
    generation: u64,
    committed: u64,
    written: bool,
    changed_at: SystemTime,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) struct FileRecord {
    kind: FileKind,
    name: ObjectName,
    link: Link,
    keep: Keep,
    origin: Option<ObjectName>,
    stored: Option<Stored>,
    unannounced: Option<VersionTag>,
    buffer: Option<BufferRecord>,
    /// Length of the pinned bytes.
    pinned: Option<usize>,
    local: LocalAttr,
    failure: Option<Failure>,
    cut_short: Option<Errno>,
    exclusive: bool,
    sent: Vec<Sent>,
    /// Of the buffer.
    wrote: Option<Wrote>,
}

/// Pieces that so many bytes take.
fn pieces(len: usize) -> u32 {
    len.div_ceil(PIECE) as u32
}

impl File {
    /// Writes down what is new. Called with the state locked.
    pub(in crate::fs) fn write_down(&self, state: &mut FileState) {
        if !state.written.listed {
            return;
        }
        let _batch = self.pen.batch();
        self.write_buffer(state);
        self.write_pinned(state);
        let record = FileRecord::of(self.kind, state);
        let bytes = record.encode();
        let mut hasher = DefaultHasher::new();
        bytes.as_ref().ok().hash(&mut hasher);
        let fingerprint = Some(hasher.finish());
        if state.written.fingerprint != fingerprint {
            state.written.fingerprint = fingerprint;
            self.pen.put_encoded(&Key::File(self.ino), bytes);
        }
    }

    fn write_buffer(&self, state: &mut FileState) {
        let before = state.written.buffer;
        let mut now = 0;
        if let Some(buffer) = &mut state.buffer {
            now = pieces(buffer.bytes.len());
            let mut fresh = std::mem::take(&mut buffer.fresh);
            if before == 0 {
                fresh = 0..buffer.bytes.len();
            }
            // The piece that was the last one may have been cut.
            let first = fresh.start / PIECE;
            let last = pieces(fresh.end.min(buffer.bytes.len())) as usize;
            for piece in first..last {
                let end = buffer.bytes.len().min((piece + 1) * PIECE);
                let part = &buffer.bytes.expose()[piece * PIECE..end];
                self.pen.put_secret(&Key::Buffer(self.ino, piece as u32), part);
            }
        }
        (now..before).for_each(|piece| self.pen.delete(&Key::Buffer(self.ino, piece)));
        state.written.buffer = now;
    }

    fn write_pinned(&self, state: &mut FileState) {
        let wanted = match &state.kept {
            _ if state.buffer.is_some() => None,
            Some(kept) => Some(kept.object().clone()),
            None => pinned_of(state).filter(|_| state.opens > 0),
        };
        let same = match (&state.written.pinned, &wanted) {
            (None, None) => true,
            (Some((id, version, _)), Some(object)) => {
                *id == object.meta.id && *version == object.meta.version
            }
            _ => false,
        };
        if same {
            return;
        }
        let before = state.written.pinned.take().map_or(0, |(_, _, pieces)| pieces);
        let mut now = 0;
        if let Some(object) = wanted {
            now = put_pieces(&self.pen, self.ino, object.content.bytes.expose());
            state.written.pinned = Some((object.meta.id.clone(), object.meta.version.clone(), now));
        }
        (now..before).for_each(|piece| self.pen.delete(&Key::Pinned(self.ino, piece)));
    }

    /// The file is in the table from now on: it is written down.
    pub(in crate::fs) fn list(&self) {
        let mut state = self.state();
        state.written.listed = true;
    }

    /// The file has left the table: nothing is left of it.
    pub(in crate::fs) fn unlist(&self) {
        if !self.pen.writes() {
            return;
        }
        let mut state = self.state();
        let Written { buffer, pinned, .. } = std::mem::take(&mut state.written);
        let _batch = self.pen.batch();
        self.pen.delete(&Key::File(self.ino));
        (0..buffer).for_each(|piece| self.pen.delete(&Key::Buffer(self.ino, piece)));
        let pinned = pinned.map_or(0, |(_, _, pieces)| pieces);
        (0..pinned).for_each(|piece| self.pen.delete(&Key::Pinned(self.ino, piece)));
        if let Some(buffer) = &mut state.buffer {
            // Should it enter again.
            buffer.fresh = 0..buffer.bytes.len();
        }
    }
}

/// Writes bytes down as the version that an inode is; returns in how many pieces.
pub(in crate::fs) fn put_pieces(pen: &Pen, ino: u64, bytes: &[u8]) -> u32 {
    for (piece, part) in bytes.chunks(PIECE).enumerate() {
        pen.put_secret(&Key::Pinned(ino, piece as u32), part);
    }
    pieces(bytes.len())
}

/// The pinned object, if it is the version that the file is.
fn pinned_of(state: &FileState) -> Option<Arc<Object>> {
    let stored = state.stored.as_ref()?;
    let object = state.pinned.as_ref()?;
    (object.meta.id == stored.id && object.meta.version == stored.version).then(|| object.clone())
}

impl FileRecord {
    fn of(kind: FileKind, state: &FileState) -> Self {
        // Whoever adds to the state decides here whether it has to outlive the process.
        let FileState {
            name,
            link,
            keep,
            origin,
            stored,
            unannounced,
            pinned: _,
            kept: _,
            buffer,
            opens: _,
            writers: _,
            last_writer: _,
            local,
            failure,
            cut_short,
            exclusive,
            retrying: _,
            idle: _,
            room: _,
            sent,
            written,
        } = state;
        let buffer = buffer.as_ref().map(|buffer| BufferRecord {
            len: buffer.bytes.len(),
            generation: buffer.generation,
            committed: buffer.committed,
            written: buffer.written,
            changed_at: buffer.changed_at,
        });
        let wrote = state.buffer.as_ref().map(|buffer| buffer.wrote.clone());
        let kept = state.kept.as_ref().map(|kept| kept.object());
        let pinned = written.pinned.as_ref().and(kept.or(state.pinned.as_ref()));
        Self {
            kind,
            name: name.clone(),
            link: *link,
            keep: *keep,
            origin: origin.clone(),
            stored: stored.clone(),
            unannounced: unannounced.clone(),
            buffer,
            pinned: pinned.map(|object| object.content.bytes.len()),
            local: local.clone(),
            failure: failure.clone(),
            cut_short: *cut_short,
            exclusive: *exclusive,
            sent: sent.clone(),
            wrote,
        }
    }

    fn encode(&self) -> postcard::Result<Vec<u8>> {
        postcard::to_allocvec(self)
    }

    /// `None` for what is no record of a file.
    pub(in crate::fs) fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// Whether a file can be made of it, whose bytes are at most `max_size`.
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
        (changed && self.keep == Keep::Store && self.link != Link::Unlinked).then(|| Unsaved {
            name: self.name.as_str().to_owned(),
            path: self.name.as_str().to_owned(),
            size: buffer.len as u64,
            error: self.failure.as_ref().map(|failure| failure.message.clone()),
            conflict: self.failure.as_ref().is_some_and(|failure| failure.conflict),
            retry_s: None,
        })
    }

    /// The file again; nobody has it open yet. `piece` gives the pieces that were written down.
    pub(in crate::fs) fn restore(self, ino: u64, piece: &mut dyn FnMut(Key) -> Option<SecretBytes>) -> File {
        let mut written = Written { listed: true, ..Written::default() };
        let buffer = self.buffer.map(|record| {
            written.buffer = pieces(record.len);
            let mut bytes = join(written.buffer, |at| piece(Key::Buffer(ino, at)));
            bytes.resize(record.len);
            let wrote = self.wrote.unwrap_or_default();
            Buffer {
                bytes,
                generation: record.generation,
                committed: record.committed,
                written: record.written,
                wrote,
                changed_at: record.changed_at,
                fresh: 0..0,
            }
        });
        let pinned = self.pinned.zip(self.stored.as_ref()).map(|(len, stored)| {
            let count = pieces(len);
            written.pinned = Some((stored.id.clone(), stored.version.clone(), count));
            let bytes = join(count, |at| piece(Key::Pinned(ino, at)));
            Arc::new(object(&self.name, stored, bytes))
        });
        let state = FileState {
            name: self.name,
            link: self.link,
            keep: self.keep,
            origin: self.origin,
            stored: self.stored,
            unannounced: self.unannounced,
            pinned,
            kept: None,
            buffer,
            opens: 0,
            writers: BTreeSet::new(),
            last_writer: 0,
            local: self.local,
            failure: self.failure,
            cut_short: self.cut_short,
            exclusive: self.exclusive,
            retrying: None,
            idle: None,
            room: 0,
            sent: self.sent,
            written,
        };
        let file = File::from_state(ino, self.kind, state);
        file.give();
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

/// Bytes from their pieces.
pub(in crate::fs) fn join(count: u32, mut piece: impl FnMut(u32) -> Option<SecretBytes>) -> SecretBytes {
    let mut bytes = SecretBytes::default();
    for at in 0..count {
        if let Some(part) = piece(at) {
            bytes.write_at(at as usize * PIECE, part.expose());
        }
    }
    bytes
}
