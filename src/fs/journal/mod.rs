//! The journal: every change of the state that the kernel refers to, for a successor.
//!
//! 1. A [`Journal`] takes records and returns the live ones. Where it keeps them, and how it seals
//!    secrets, is the caller's business; without one nothing is kept.
//! 2. Records are made under the lock of their subject, and published before the reply that depends
//!    on them. All of a change are in one [`Transaction`], which is passed to what takes part in
//!    it: after a crash it is there as a whole, or not at all.
//! 3. A file's lock may be released inside a transaction, and its next change be published first.
//!    Each record therefore has an order, taken under the lock, and a journal drops late ones.
//!
//! The journal's own lock is a leaf. Nothing in here fails: a full journal says so in its status.

pub(in crate::fs) mod tracked;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::fs::name::{DirKind, DirPrefix};
use crate::secret::SecretBytes;
use crate::vault::ObjectName;

/// The value of a record.
#[derive(Debug, Clone)]
pub enum Value {
    /// No secret; the first byte is its version.
    Plain(Vec<u8>),
    /// A chunk of a secret value, to be sealed.
    Secret(SecretBytes),
}

/// One record: from now on `slot` has this value, or none.
#[derive(Debug, Clone)]
pub struct Record {
    /// The encoded key.
    pub slot: Vec<u8>,
    /// Of two records of one slot the one with the higher order is the later one.
    pub order: u64,
    /// `None` empties the slot.
    pub value: Option<Value>,
}

/// Keeps records for a successor.
pub trait Journal: Send + Sync + fmt::Debug {
    /// Takes all of these records; none if the process dies meanwhile.
    fn append(&self, records: Vec<Record>);
    /// The live records. Called once, before the first [`Journal::append`].
    fn read(&self) -> Vec<(Vec<u8>, Value)>;
    /// For `status`. After [`Journal::read`] it is incomplete if the predecessor's was.
    fn status(&self) -> JournalStatus;
    /// The predecessor's losses are accounted for: from now on only new ones count.
    fn accept(&self);
    /// The slot changed, and its value cannot be recorded.
    fn missed(&self, slot: Vec<u8>, why: String);
    /// So many records of the predecessor were refused.
    fn refused(&self, records: usize);
}

/// The state of a journal, for `status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Whether a crash would lose nothing.
    pub complete: bool,
    /// Bytes in use.
    pub bytes: u64,
    /// Live records.
    pub records: usize,
    /// Why it is not complete.
    pub problem: Option<String>,
    /// Unreadable records of the predecessor, which are not used.
    #[serde(default)]
    pub refused: usize,
}

/// The key of a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Key {
    /// The salt of the inode numbers.
    Salt,
    /// The same for handles.
    NextHandle,
    /// The kind of an inode.
    Node(u64),
    /// Its lookup count.
    Lookups(u64),
    /// The inode of a directory.
    Dir(DirKind),
    /// The inode that a name shows.
    Name(ObjectName),
    /// A directory made here.
    Made(DirPrefix),
    /// See `provisional`.
    DeferredDelete(ObjectName),
    /// A name pinned as a file.
    KindPin(ObjectName),
    /// A former directory; its place is free.
    Vacated(DirPrefix),
    /// Local attributes of a name.
    Local(ObjectName),
    /// The same for a directory.
    DirLocal(DirKind),
    /// When a directory's names changed.
    DirMtime(DirKind),
    /// The state of a file.
    File(u64),
    /// A chunk of an inode's buffer.
    Buffer(u64, u32),
    /// A chunk of an inode's version.
    Pinned(u64, u32),
    /// An open file or directory.
    Handle(u64),
    /// The listing of a directory, for readers that resume.
    Listing(u64),
    /// A part of it.
    ListingPart(u64, u32),
    /// The intent of a request.
    Intent(u64),
    /// The crash record of an unanswered request.
    CrashRecord(u64),
    /// See `failed_deletes`.
    FailedDelete(ObjectName),
    /// By the vault's clock: all earlier changes are known.
    Covered,
    /// The kernel does not know the inode of this name yet.
    Repoint(ObjectName),
    /// Waiting commands (`hooks`).
    Commands,
    /// What is known of a vault that lags.
    Lag,
    /// The kernel may have the size and pages of another version of this inode.
    KernelBehind(u64),
}

impl Key {
    /// `None` for a kind that this release does not know. Its record stays where it is.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// The version of this kind's values, their first byte. Whoever changes what a kind's value
    /// says counts it up here, and brings the value before into the new form in [`Key::value`].
    fn version(&self) -> u8 {
        1
    }

    /// A value without its version; `None` for a version that this release does not know.
    pub fn value<'v>(&self, value: &'v [u8]) -> Option<&'v [u8]> {
        value.split_first().filter(|(version, _)| **version == self.version()).map(|(_, value)| value)
    }
}

/// Chunk size of values, so that a small write seals a small record.
pub(super) const CHUNK: usize = 64 << 10;

/// Upper bound of valid counters in records.
pub(super) const MOST: u64 = u64::MAX >> 2;

/// Writes records; cheap to clone. Without a journal it does nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct JournalWriter(Option<Arc<WriterInner>>);

#[derive(Debug)]
struct WriterInner {
    journal: Arc<dyn Journal>,
    order: AtomicU64,
}

impl JournalWriter {
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self(Some(Arc::new(WriterInner { journal, order: AtomicU64::new(1) })))
    }

    /// Whether there is a journal.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    pub fn status(&self) -> Option<JournalStatus> {
        self.0.as_ref().map(|inner| inner.journal.status())
    }

    /// A change of one record.
    pub fn record(&self, key: &Key, value: &impl Serialize) {
        self.begin().record(key, value);
    }

    /// The same: the slot is empty from now on.
    pub fn delete(&self, key: &Key) {
        self.begin().delete(key);
    }

    /// A change of several records.
    pub fn begin(&self) -> Transaction {
        Transaction { journal: self.clone(), records: RefCell::default(), _thread: PhantomData }
    }
}

/// The records of one change. They are published together: by the guard of the table's lock, if the
/// change takes that; else at its end. It stays on its thread, so that it cannot be held across an
/// await. A panic publishes nothing of it.
#[derive(Debug)]
pub struct Transaction {
    journal: JournalWriter,
    records: RefCell<Vec<Record>>,
    _thread: PhantomData<*const ()>,
}

impl Transaction {
    pub(super) fn record(&self, key: &Key, value: &impl Serialize) {
        if self.journal.is_enabled() {
            self.record_encoded(key, postcard::to_allocvec(value));
        }
    }

    /// The same for an encoded value, which gets its version. If encoding failed the slot is
    /// missed, which status reports: a request must not end the worker.
    pub(super) fn record_encoded(&self, key: &Key, bytes: postcard::Result<Vec<u8>>) {
        match bytes {
            Ok(bytes) => self.write(key, Some(Value::Plain([&[key.version()][..], &bytes].concat()))),
            Err(e) => self.miss(key, &e),
        }
    }

    /// A chunk of a value.
    pub(super) fn record_secret(&self, key: &Key, bytes: &[u8]) {
        if self.journal.is_enabled() {
            self.write(key, Some(Value::Secret(SecretBytes::from(bytes))));
        }
    }

    pub(super) fn delete(&self, key: &Key) {
        self.write(key, None);
    }

    fn write(&self, key: &Key, value: Option<Value>) {
        let Some(inner) = &self.journal.0 else { return };
        match postcard::to_allocvec(key) {
            Ok(slot) => {
                let order = inner.order.fetch_add(1, Ordering::Relaxed);
                self.records.borrow_mut().push(Record { slot, order, value });
            }
            Err(e) => self.miss(key, &e),
        }
    }

    fn miss(&self, key: &Key, e: &postcard::Error) {
        tracing::error!(?key, "a part of the mount's state cannot be written down: {e}");
        if let Some(inner) = &self.journal.0 {
            inner.journal.missed(postcard::to_allocvec(key).unwrap_or_default(), e.to_string());
        }
    }

    /// Publishes what there is until now.
    pub(super) fn publish(&self) {
        let records = self.records.take();
        if let Some(inner) = self.journal.0.as_ref().filter(|_| !records.is_empty()) {
            inner.journal.append(records);
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.publish();
        }
    }
}

/// The transaction of a lock's guard: its own, or one that other locks take part in.
#[derive(Debug)]
pub(super) enum Part<'t> {
    Own(Transaction),
    Of(&'t Transaction),
}

impl Deref for Part<'_> {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        match self {
            Self::Own(tx) => tx,
            Self::Of(tx) => tx,
        }
    }
}

/// A journal in memory, for tests: it outlives a file system, not the process. It can stop after
/// any number of appends, like a killed process.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<MemoryState>);

#[derive(Debug, Default)]
struct MemoryState {
    live: HashMap<Vec<u8>, (u64, Option<Value>)>,
    appends: u64,
    stops_after: Option<u64>,
    misses: bool,
    refused: usize,
}

impl MemoryJournal {
    fn memory(&self) -> parking_lot::MutexGuard<'_, MemoryState> {
        self.0.lock()
    }

    /// Takes so many more appends, and nothing after them.
    pub fn stop_after(&self, appends: u64) {
        let mut memory = self.memory();
        memory.stops_after = Some(memory.appends + appends);
    }

    /// From now on chunks of values are lost.
    pub fn miss_values(&self) {
        self.memory().misses = true;
    }

    /// Whether an append was lost.
    pub fn has_stopped(&self) -> bool {
        let memory = self.memory();
        memory.stops_after.is_some_and(|last| memory.appends > last)
    }

    /// A copy for a successor.
    pub fn successor(&self) -> Self {
        let memory = self.memory();
        let live = memory.live.iter().map(|(key, (_, value))| (key.clone(), (0, value.clone()))).collect();
        Self(Mutex::new(MemoryState { live, misses: memory.misses, ..MemoryState::default() }))
    }
}

impl Journal for MemoryJournal {
    fn append(&self, records: Vec<Record>) {
        let mut memory = self.memory();
        memory.appends += 1;
        if memory.stops_after.is_some_and(|last| memory.appends > last) {
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

    fn read(&self) -> Vec<(Vec<u8>, Value)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_append_and_a_panic_publishes_nothing_of_it() {
        let journal = Arc::new(MemoryJournal::default());
        let writer = JournalWriter::new(journal.clone());
        let change = |panics: bool| {
            let tx = writer.begin();
            tx.record(&Key::Salt, &1_u64);
            tx.record_secret(&Key::Buffer(2, 0), b"secret");
            assert!(!panics, "in the middle of it");
            tx.delete(&Key::Salt);
        };
        let appends = || journal.memory().appends;
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(true))).unwrap_err();
        assert_eq!((appends(), journal.read().len()), (0, 0));
        change(false);
        assert_eq!((appends(), journal.read().len()), (1, 1));
    }
}
