//! What has to outlive the process: each change of the state that the kernel refers to, written down as it is made.
//!
//! 1. The file system knows of a [`Journal`] only that it takes records and gives the live ones back. Where it
//!    keeps them, and that it seals what is secret, is the caller's business; without one nothing is kept.
//! 2. Records are written under the lock of what they describe, and before the reply that tells of it. A *batch*
//!    is all that one lock covers, the table's with the files in it: after a crash all of it is there or nothing.
//! 3. A file's lock may be let go of inside a batch, and its next change be written first. So each record has an
//!    order, taken while the lock is held, and a journal drops what comes late.
//!
//! The journal's own lock is a leaf. Nothing in here fails: a journal that is full says so in its status.

pub(in crate::fs) mod tracked;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::inode::DirKind;
use super::name::DirPrefix;
use crate::secret::SecretBytes;
use crate::vault::ObjectName;

/// What a record says.
#[derive(Debug, Clone)]
pub enum Value {
    /// No secret is in it.
    Plain(Vec<u8>),
    /// A part of a value: to be sealed where it is kept.
    Secret(SecretBytes),
}

/// One record: from now on `slot` has this value, or none.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it is about.
    pub slot: Vec<u8>,
    /// Of two records of one slot the one with the higher order is the later one.
    pub order: u64,
    /// `None` empties the slot.
    pub value: Option<Value>,
}

/// Keeps records for a successor.
pub trait Journal: Send + Sync + fmt::Debug {
    /// Takes all of these records or, should the process die meanwhile, none.
    fn commit(&self, records: Vec<Record>);
    /// What there is. Called once, before the first [`Journal::commit`].
    fn load(&self) -> Vec<(Vec<u8>, Value)>;
    /// For `status`. Right after [`Journal::load`] it is not complete where the predecessor's was not.
    fn status(&self) -> JournalStatus;
    /// What the predecessor missed is made up for: from now on this one's own counts.
    fn accept(&self);
    /// The slot has changed, and its value cannot be written down.
    fn missed(&self, slot: Vec<u8>, why: String);
    /// So many records of the predecessor were refused.
    fn refused(&self, records: usize);
}

/// How a journal is doing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Whether a crash would lose nothing.
    pub complete: bool,
    /// Bytes in use.
    pub bytes: u64,
    /// Records that count.
    pub records: usize,
    /// Why it is not complete.
    pub problem: Option<String>,
    /// So many records of the predecessor made no sense, and are not used.
    #[serde(default)]
    pub refused: usize,
}

/// What a record is about, in the file system's own words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Key {
    /// Which inode numbers are given out (`inode`).
    Salt,
    /// The same for handles.
    NextHandle,
    /// What an inode is.
    Node(u64),
    /// How often the kernel holds it.
    Lookups(u64),
    /// The inode of a directory.
    Dir(DirKind),
    /// The inode that a name shows.
    Name(ObjectName),
    /// A directory made here.
    Made(DirPrefix),
    /// See `provisional`.
    DeferredDelete(ObjectName),
    /// A name that stays a file.
    KindPin(ObjectName),
    /// A directory whose place is free again.
    Vacated(DirPrefix),
    /// What was set here for a name.
    Local(ObjectName),
    /// The same for a directory.
    DirLocal(DirKind),
    /// When a directory's names changed.
    DirMtime(DirKind),
    /// The state of a file.
    File(u64),
    /// A piece of what is being written to an inode.
    Buffer(u64, u32),
    /// A piece of the version that an inode is.
    Pinned(u64, u32),
    /// An open file or directory.
    Handle(u64),
    /// The names that a directory's readers are being told; how far.
    Listing(u64),
    /// A part of these names.
    ListingPart(u64, u32),
    /// What a request has begun to do.
    Intent(u64),
    /// What is known of a request that has no answer yet.
    CrashRecord(u64),
    /// See `failed_deletes`.
    FailedDelete(ObjectName),
    /// By the vault's clock: changes before that are known.
    Covered,
    /// A name that shows another inode than the kernel knows.
    Repoint(ObjectName),
    /// See `commands`.
    Commands,
}

impl Key {
    /// `None` for what another version of this program wrote.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

/// Bytes of a value go in pieces, so that a small write seals a small piece.
pub(super) const CHUNK: usize = 64 << 10;

thread_local! {
    /// The batch that this thread is in: how deep, and what it has so far.
    static BATCH: RefCell<(usize, Vec<Record>)> = const { RefCell::new((0, Vec::new())) };
}

/// Writes records; cheap to clone. Without a journal it does nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct JournalWriter(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    journal: Arc<dyn Journal>,
    order: AtomicU64,
}

impl JournalWriter {
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self(Some(Arc::new(Inner { journal, order: AtomicU64::new(1) })))
    }

    /// Whether anything is written at all.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    pub fn status(&self) -> Option<JournalStatus> {
        self.0.as_ref().map(|inner| inner.journal.status())
    }

    pub fn record(&self, key: &Key, value: &impl Serialize) {
        if self.is_enabled() {
            self.record_encoded(key, postcard::to_allocvec(value));
        }
    }

    /// The same for what is encoded already. What cannot be is missed, and said in status: a request must not end the
    /// worker by what it brings.
    pub fn record_encoded(&self, key: &Key, bytes: postcard::Result<Vec<u8>>) {
        match bytes {
            Ok(bytes) => self.write(key, Some(Value::Plain(bytes))),
            Err(e) => self.miss(key, &e),
        }
    }

    /// A piece of a value.
    pub fn record_secret(&self, key: &Key, bytes: &[u8]) {
        if self.is_enabled() {
            self.write(key, Some(Value::Secret(SecretBytes::from(bytes))));
        }
    }

    pub fn delete(&self, key: &Key) {
        self.write(key, None);
    }

    fn write(&self, key: &Key, value: Option<Value>) {
        let Some(inner) = &self.0 else { return };
        let slot = match postcard::to_allocvec(key) {
            Ok(slot) => slot,
            Err(e) => return self.miss(key, &e),
        };
        let order = inner.order.fetch_add(1, Ordering::Relaxed);
        let record = Record { slot, order, value };
        let now = BATCH.with_borrow_mut(|(depth, records)| {
            if *depth == 0 {
                return Some(record);
            }
            records.push(record);
            None
        });
        if let Some(record) = now {
            inner.journal.commit(vec![record]);
        }
    }

    fn miss(&self, key: &Key, e: &postcard::Error) {
        tracing::error!(?key, "a part of the mount's state cannot be written down: {e}");
        if let Some(inner) = &self.0 {
            inner.journal.missed(postcard::to_allocvec(key).unwrap_or_default(), e.to_string());
        }
    }

    /// What this thread writes from now on goes together, when the last of the nested batches ends.
    pub fn batch(&self) -> Batch {
        if self.is_enabled() {
            BATCH.with_borrow_mut(|(depth, _)| *depth += 1);
        }
        Batch { writer: self.clone(), _thread: std::marker::PhantomData }
    }
}

/// See [`JournalWriter::batch`]. Stays in its thread.
#[derive(Debug)]
pub(super) struct Batch {
    writer: JournalWriter,
    _thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        let Some(inner) = &self.writer.0 else { return };
        let records = BATCH.with_borrow_mut(|(depth, records)| {
            *depth -= 1;
            if *depth == 0 { std::mem::take(records) } else { Vec::new() }
        });
        if !records.is_empty() {
            inner.journal.commit(records);
        }
    }
}

/// A journal in memory, for tests: it outlives a file system, not the process. It can stop listening after any
/// number of commits, as if the process had been killed there.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<MemoryState>);

#[derive(Debug, Default)]
struct MemoryState {
    live: HashMap<Vec<u8>, (u64, Option<Value>)>,
    commits: u64,
    stops_after: Option<u64>,
    misses: bool,
    refused: usize,
}

impl MemoryJournal {
    fn memory(&self) -> std::sync::MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes in so many more commits, and nothing after them.
    pub fn stop_after(&self, commits: u64) {
        let mut memory = self.memory();
        memory.stops_after = Some(memory.commits + commits);
    }

    /// From now on there is no room for pieces of values.
    pub fn miss_values(&self) {
        self.memory().misses = true;
    }

    /// Whether it has missed something.
    pub fn has_stopped(&self) -> bool {
        let memory = self.memory();
        memory.stops_after.is_some_and(|last| memory.commits > last)
    }

    /// What was written until it stopped, for a successor.
    pub fn successor(&self) -> Self {
        let memory = self.memory();
        let live = memory.live.iter().map(|(key, (_, value))| (key.clone(), (0, value.clone()))).collect();
        Self(Mutex::new(MemoryState { live, misses: memory.misses, ..MemoryState::default() }))
    }
}

impl Journal for MemoryJournal {
    fn commit(&self, records: Vec<Record>) {
        let mut memory = self.memory();
        memory.commits += 1;
        if memory.stops_after.is_some_and(|last| memory.commits > last) {
            return;
        }
        let misses = memory.misses;
        for record in records {
            if misses && matches!(record.value, Some(Value::Secret(_))) {
                continue;
            }
            if memory.live.get(&record.slot).is_none_or(|(order, _)| *order <= record.order) {
                memory.live.insert(record.slot, (record.order, record.value));
            }
        }
    }

    fn load(&self) -> Vec<(Vec<u8>, Value)> {
        let memory = self.memory();
        memory.live.iter().filter_map(|(key, (_, value))| Some((key.clone(), value.clone()?))).collect()
    }

    fn status(&self) -> JournalStatus {
        let memory = self.memory();
        let records = memory.live.values().filter(|(_, value)| value.is_some()).count();
        let (complete, refused) = (!memory.misses, memory.refused);
        JournalStatus { complete, records, refused, ..JournalStatus::default() }
    }

    fn accept(&self) {
        self.memory().misses = false;
    }

    fn missed(&self, _slot: Vec<u8>, _why: String) {
        self.memory().misses = true;
    }

    fn refused(&self, records: usize) {
        self.memory().refused = records;
    }
}
