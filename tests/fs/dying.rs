//! A worker that dies between two records, and its successor: the file system is dropped in the
//! middle of whatever it was doing, and another one goes on from what was written down.
//!
//! From the moment of its death the old one reaches neither journal nor vault, whatever its tasks
//! still try.

use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use vaultfs::fs::{FileSystem, Journal, MemoryJournal};
use vaultfs::vault::testing::faulty::FaultyVault;
use vaultfs::vault::{
    Call, Capabilities, Check, Content, Error, ErrorKind, ListQuery, Meta, Object, ObjectId, ObjectName,
    Page, Result, Vault, VaultStatus, VersionInfo,
};

/// The file system that lives now.
pub struct Live {
    now: AtomicPtr<Arc<FileSystem>>,
    /// All there were, so that references to them stay good.
    #[expect(clippy::vec_box, reason = "they may not move")]
    all: Mutex<Vec<Box<Arc<FileSystem>>>>,
}

impl Live {
    pub fn new(fs: Arc<FileSystem>) -> Self {
        let live = Self { now: AtomicPtr::default(), all: Mutex::default() };
        live.succeed(fs);
        live
    }

    /// From now on it is this one.
    pub fn succeed(&self, fs: Arc<FileSystem>) {
        let mut fs = Box::new(fs);
        self.now.store(&mut *fs, Ordering::SeqCst);
        self.all.lock().unwrap().push(fs);
    }
}

impl Deref for Live {
    type Target = Arc<FileSystem>;

    fn deref(&self) -> &Arc<FileSystem> {
        // SAFETY: it is in `all`, boxed, for as long as this lives.
        unsafe { &*self.now.load(Ordering::SeqCst) }
    }
}

/// The journal of a worker that may die.
pub trait Mortal: Journal {
    /// The worker dies after so many more steps; what a step is, is the journal's business.
    fn stop_after(&self, steps: u64);
    fn has_stopped(&self) -> bool;
    /// From now on chunks of values are lost.
    fn miss_values(&self);
    /// What the successor finds.
    fn successor(&self) -> Arc<dyn Mortal>;
}

/// A step is a commit.
impl Mortal for MemoryJournal {
    fn stop_after(&self, steps: u64) {
        self.stop_after(steps);
    }
    fn has_stopped(&self) -> bool {
        self.has_stopped()
    }
    fn miss_values(&self) {
        self.miss_values();
    }
    fn successor(&self) -> Arc<dyn Mortal> {
        Arc::new(self.successor())
    }
}

/// The way to the vault of a worker that may be dead.
#[derive(Debug)]
pub struct Gate {
    pub vault: Arc<FaultyVault>,
    pub journal: Arc<dyn Mortal>,
}

impl Gate {
    fn open(&self) -> Result<&FaultyVault> {
        match self.journal.has_stopped() {
            false => Ok(&self.vault),
            true => Err(Error::new(ErrorKind::Forbidden, "dead")),
        }
    }
}

#[async_trait]
impl Vault for Gate {
    fn capabilities(&self) -> Capabilities {
        self.vault.capabilities()
    }
    fn status(&self) -> VaultStatus {
        self.vault.status()
    }
    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        self.open()?.get_by_name(call, name).await
    }
    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        self.open()?.get(call, id).await
    }
    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        self.open()?.metadata(call, id).await
    }
    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        self.open()?.create(call, name, content).await
    }
    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        self.open()?.update(call, id, content, check).await
    }
    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        self.open()?.delete(call, id, check).await
    }
    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        self.open()?.list(call, query).await
    }
    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        self.open()?.versions(call, id, since).await
    }
    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        self.open()?.version(call, id, version).await
    }
}
