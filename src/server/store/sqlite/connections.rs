//! The connections to the database: one that writes, a few that read, and the write-ahead log
//! between them.
//!
//! 1. **Shared** is the usual state: readers see the last commit and never wait.
//! 2. **Alone**: on a full disk the index of the log finds no room. One connection with its index
//!    in memory then does all the work: everything can be read, changes are refused with
//!    [`StoreError::Full`]. The first change that succeeds ends it.
//! 3. **What was deleted leaves the files, too** ([`purge`](super::purge)). [`Connections::purge`]
//!    waits for no reader and is repeated each second until it succeeds. After a kill the log still
//!    has it: opening begins with a purge.
//!
//! 4. **Scans leave a reader.** What may scan many rows has [`SCANNERS`] of the readers at most:
//!    what finds its row by an index, the look-up of an API key first of all, does not wait for
//!    scans.
//!
//! Locks: the writer's is taken first, then that of the idle readers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::server::store::StoreError;
use crate::server::store::sqlite::Result;
use crate::server::store::sqlite::purge::{cut_log, holds, purge, write_anew};
use crate::server::store::sqlite::schema;

/// Two cores are served well by this; more only helps where there are more.
const READERS: usize = 4;
/// Readers that may be walking over many rows at a time.
const SCANNERS: usize = READERS - 1;
/// How long a statement waits for another process that holds the database.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// From one attempt to purge to the next.
const PURGE_PAUSE: Duration = Duration::from_secs(1);
/// How long the end waits for readers.
const LAST_READERS: Duration = Duration::from_secs(1);
/// After so many failures in a row a warning is logged.
const PURGES_BEFORE_WARNING: u32 = 5;

/// The connections of one process to one database.
#[derive(Debug)]
pub struct Connections {
    path: PathBuf,
    // Closed before the writer: SQLite puts the log into the database when the last one closes, and
    // only a writer can.
    idle: parking_lot::Mutex<Vec<Connection>>,
    /// One permit for each reading connection.
    permits: Arc<Semaphore>,
    /// One permit for each of these that may scan.
    scans: Arc<Semaphore>,
    /// `None` while the database could not be opened again, and once it is closed.
    writer: Arc<Mutex<Option<Connection>>>,
    alone: AtomicBool,
    /// The marks of what was deleted since the last purge.
    marks: parking_lot::Mutex<Vec<Vec<u8>>>,
    purge_owed: AtomicBool,
    purging: AtomicBool,
    closed: AtomicBool,
}

impl Connections {
    /// Opens the database at `path`, which is brought up to date. Blocks.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let (mut writer, alone) = match shared_writer(path) {
            Err(StoreError::Full) => {
                tracing::error!(
                    "the disk is full: the vault can be read, and nothing is stored until there is room"
                );
                (sole_connection(path)?, true)
            }
            writer => (writer?, false),
        };
        schema::migrate(&mut writer)?;
        let purged = cut_log(&writer).unwrap_or(false);
        let readers = if alone { Vec::new() } else { readers(path)? };
        let connections = Arc::new(Self {
            path: path.to_owned(),
            permits: Arc::new(Semaphore::new(readers.len())),
            scans: Arc::new(Semaphore::new(SCANNERS)),
            idle: parking_lot::Mutex::new(readers),
            writer: Arc::new(Mutex::new(Some(writer))),
            alone: AtomicBool::new(alone),
            marks: parking_lot::Mutex::default(),
            purge_owed: AtomicBool::new(false),
            purging: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        if !purged {
            connections.purge(Vec::new());
        }
        Ok(connections)
    }

    /// Waits for the writing connection.
    pub async fn writer(self: &Arc<Self>) -> Writer {
        Writer { connection: Arc::clone(&self.writer).lock_owned().await, of: Arc::clone(self) }
    }

    /// The writing connection, if it is free.
    pub fn try_writer(self: &Arc<Self>) -> Option<Writer> {
        let connection = Arc::clone(&self.writer).try_lock_owned().ok()?;
        Some(Writer { connection, of: Arc::clone(self) })
    }

    /// Waits for a connection to read with.
    pub async fn reader(self: &Arc<Self>) -> Result<Reader> {
        if self.alone.load(Ordering::Acquire) {
            return Ok(Reader::Sole(self.writer().await));
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|e| gone(&e))?;
        let connection = self.idle.lock().pop();
        Ok(Reader::Pooled { connection, of: Arc::clone(self), _permit: permit })
    }

    /// The same, to scan many rows.
    pub async fn scanner(self: &Arc<Self>) -> Result<(Reader, OwnedSemaphorePermit)> {
        let scan = Arc::clone(&self.scans).acquire_owned().await.map_err(|e| gone(&e))?;
        Ok((self.reader().await?, scan))
    }

    /// Takes what was deleted, and has these marks, out of the files: now, and again each second
    /// until that is done.
    pub fn purge(self: &Arc<Self>, marks: Vec<Vec<u8>>) {
        self.marks.lock().extend(marks);
        self.purge_owed.store(true, Ordering::Release);
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.purging.swap(true, Ordering::AcqRel) {
            // Not a strong reference: what is owed at the end is done at the end.
            runtime.spawn(purge_until_done(Arc::downgrade(self)));
        }
    }

    /// Purges what is owed and closes the database, which is one file then. A reader is waited for
    /// a moment only: what a request holds that outlived the drain stays open until the process
    /// ends.
    pub async fn close(self: &Arc<Self>) {
        let mut writer = self.writer().await;
        self.closed.store(true, Ordering::Release);
        if !self.alone.load(Ordering::Acquire) {
            let _ = timeout(LAST_READERS, self.permits.acquire_many(READERS as u32)).await;
        }
        self.permits.close();
        // One by one: SQLite puts the log into the database when the last one closes, and only a
        // writer can.
        self.idle.lock().clear();
        self.purge_last(writer.connection.take());
    }

    /// With the last connection, which is closed here.
    fn purge_last(&self, writer: Option<Connection>) {
        let marks = std::mem::take(&mut *self.marks.lock());
        if !marks.is_empty()
            && let Some(writer) = &writer
            && let Err(e) = purge(&self.path, writer, &marks)
        {
            tracing::warn!(error = %e, "the last deleted values may still be in the database's file");
        }
    }

    async fn purge_once(self: &Arc<Self>) -> Result<bool> {
        let (path, marks) = (self.path.clone(), self.marks.lock().clone());
        let done = marks.len();
        let Some(file) = self.still_file().await? else { return Ok(false) };
        // Others write meanwhile: a large file takes a while.
        let is_left = blocking(move || {
            let is_left = holds(&path, &marks);
            drop(file);
            is_left
        });
        if is_left.await? {
            let mut writer = self.writer().await;
            if !blocking(move || write_anew(writer.connection()?)).await? {
                return Ok(false);
            }
        }
        let mut marks = self.marks.lock();
        // The end may have taken them meanwhile.
        let done = done.min(marks.len());
        marks.drain(..done);
        Ok(true)
    }

    /// Puts the log into the database's file, to which no checkpoint writes then until the result
    /// is dropped; `None` if a reader of something older is in the way.
    async fn still_file(self: &Arc<Self>) -> Result<Option<StillFile>> {
        let (mut reader, scan) = self.scanner().await?;
        let mut writer = match &reader {
            Reader::Pooled { .. } => Some(self.writer().await),
            Reader::Sole(_) => None,
        };
        blocking(move || {
            let is_cut = match &mut writer {
                Some(writer) => cut_log(writer.connection()?)?,
                None => cut_log(reader.connection()?)?,
            };
            if writer.is_some() {
                reader.connection()?.execute_batch("BEGIN")?;
            }
            // From here on the read is ended in any case: the connection goes back to the pool.
            let mut file = StillFile { reader, _scan: scan };
            // A read that begins on an empty log reads the file alone, and keeps checkpoints out of
            // it. Nobody writes before it has begun.
            file.reader.connection()?.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
            drop(writer);
            Ok(is_cut.then_some(file))
        })
        .await
    }

    /// Ends the state of the sole connection, if there is room by now.
    fn share(&self, writer: &mut Option<Connection>) {
        // Closed first: it has the database to itself.
        drop(writer.take());
        let shared = shared_writer(&self.path).and_then(|w| Ok((w, readers(&self.path)?)));
        let Ok((shared, readers)) = shared else { return };
        *writer = Some(shared);
        let mut idle = self.idle.lock();
        self.permits.add_permits(readers.len());
        idle.extend(readers);
        self.alone.store(false, Ordering::Release);
        tracing::info!("there is room on the disk again");
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.idle.get_mut().clear();
        if let Ok(mut writer) = self.writer.try_lock() {
            self.purge_last(writer.take());
        }
    }
}

async fn purge_until_done(connections: Weak<Connections>) {
    let mut failures = 0;
    loop {
        let Some(strong) = connections.upgrade().filter(|strong| !strong.closed.load(Ordering::Acquire))
        else {
            return;
        };
        strong.purge_owed.store(false, Ordering::Release);
        let purged = strong.purge_once().await;
        failures = if matches!(purged, Ok(true)) { 0 } else { failures + 1 };
        if failures == PURGES_BEFORE_WARNING {
            let why = purged.err().map_or_else(|| "it is being read".to_owned(), |e| e.to_string());
            tracing::warn!("deleted values are still in the files: {why}; it is tried again each second");
        }
        drop(strong);
        tokio::time::sleep(PURGE_PAUSE).await;
        let Some(strong) = connections.upgrade() else { return };
        if failures > 0 || strong.purge_owed.load(Ordering::Acquire) {
            continue;
        }
        strong.purging.store(false, Ordering::Release);
        // A deletion in between saw a task that was about to end.
        if !strong.purge_owed.load(Ordering::Acquire) || strong.purging.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

/// The writing connection, for as long as this lives.
pub struct Writer {
    connection: OwnedMutexGuard<Option<Connection>>,
    of: Arc<Connections>,
}

impl Writer {
    /// The connection; opened again if that failed before.
    pub fn connection(&mut self) -> Result<&mut Connection> {
        if self.connection.is_none() && self.of.closed.load(Ordering::Acquire) {
            return Err(gone(&"the vault has ended"));
        }
        if self.connection.is_none() {
            *self.connection = Some(sole_connection(&self.of.path)?);
        }
        self.connection.as_mut().ok_or_else(|| gone(&"the writing connection was lost"))
    }

    /// Notes that a change succeeded: there is room on the disk.
    pub fn succeeded(&mut self) {
        if self.of.alone.load(Ordering::Acquire) {
            self.of.share(&mut self.connection);
        }
    }
}

/// A connection to read with, for as long as this lives.
pub enum Reader {
    /// One of several.
    Pooled {
        /// Given back when this is dropped.
        connection: Option<Connection>,
        /// The pool that it returns to.
        of: Arc<Connections>,
        /// The permit for it.
        _permit: OwnedSemaphorePermit,
    },
    /// The only one.
    Sole(Writer),
}

impl Reader {
    /// The connection.
    pub fn connection(&mut self) -> Result<&mut Connection> {
        match self {
            Reader::Pooled { connection, .. } => {
                connection.as_mut().ok_or_else(|| gone(&"a reading connection was lost"))
            }
            Reader::Sole(writer) => writer.connection(),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Before the permit is released: its next holder finds the connection.
        if let Reader::Pooled { connection, of, .. } = self
            && let Some(connection) = connection.take()
        {
            of.idle.lock().push(connection);
        }
    }
}

/// The database's file as it is.
struct StillFile {
    reader: Reader,
    _scan: OwnedSemaphorePermit,
}

impl Drop for StillFile {
    fn drop(&mut self) {
        // The sole connection has begun nothing: it is the writer.
        if let Reader::Pooled { connection: Some(reader), .. } = &self.reader
            && let Err(e) = reader.execute_batch("ROLLBACK")
        {
            tracing::debug!(error = %e, "a read had ended before");
        }
    }
}

/// Where the runtime has several threads, this one does the work and another one takes over what
/// else it had: the waiting caller does not also wait for two threads to wake.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    // Not the panic's own text, which could be anything.
    let ended = || gone(&"a task of the store ended without a result");
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => {
            // What the closure owns is a transaction that rolls back, and a connection that stays
            // good.
            let work = std::panic::AssertUnwindSafe(work);
            tokio::task::block_in_place(|| std::panic::catch_unwind(work)).map_err(|_| ended())?
        }
        _ => tokio::task::spawn_blocking(work).await.map_err(|_| ended())?,
    }
}

fn gone(e: &dyn std::fmt::Display) -> StoreError {
    StoreError::Backend(e.to_string())
}

fn shared_writer(path: &Path) -> Result<Connection> {
    let writer = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    set_up_writer(&writer)?;
    // The index of the log is made by the first look at the database.
    writer.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
    Ok(writer)
}

/// Set before the first look at the log, the exclusive mode keeps the log's index in memory.
fn sole_connection(path: &Path) -> Result<Connection> {
    let sole = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    sole.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    set_up_writer(&sole)?;
    Ok(sole)
}

fn set_up_writer(conn: &Connection) -> Result<()> {
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "secure_delete", "ON")?;
    conn.pragma_update(None, "foreign_keys", "ON")?;
    Ok(())
}

fn readers(path: &Path) -> Result<Vec<Connection>> {
    let reader = |_| {
        let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        // KiB. The system keeps the pages, too; what each reader has of its own stays for as long
        // as the vault is open.
        conn.pragma_update(None, "cache_size", -512)?;
        Ok(conn)
    };
    (0..READERS).map(reader).collect()
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    let conn = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        match e {
            rusqlite::Error::QueryReturnedNoRows => StoreError::NotFound,
            e if is_full(&e) => StoreError::Full,
            e if lacks_descriptors(&e) => {
                StoreError::Backend(format!("{e}: no descriptors are left for it (ulimit -n)"))
            }
            e => StoreError::Backend(e.to_string()),
        }
    }
}

/// SQLite does not say why a file cannot be opened. It takes several descriptors, and has let go of
/// them by now.
fn lacks_descriptors(e: &rusqlite::Error) -> bool {
    let few = || {
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        let used = std::fs::read_dir("/proc/self/fd").map_or(u64::MAX, |open| open.count() as u64);
        limit.is_ok_and(|(limit, _)| used.saturating_add(8) >= limit)
    };
    e.sqlite_error().is_some_and(|e| e.code == ErrorCode::CannotOpen) && few()
}

/// SQLite has no word of its own for a disk on which the index of its log finds no room.
fn is_full(e: &rusqlite::Error) -> bool {
    e.sqlite_error().is_some_and(|e| {
        e.code == ErrorCode::DiskFull || e.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn others_write_while_the_file_is_searched_and_it_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.db");
        std::fs::write(&path, "").unwrap();
        let connections = Connections::open(&path).unwrap();
        let write = |value: &str| {
            let mut writer = connections.try_writer().expect("nobody holds the writing connection");
            let db = writer.connection().unwrap();
            db.execute_batch("CREATE TABLE IF NOT EXISTS filling (bytes BLOB)").unwrap();
            db.execute("INSERT INTO filling VALUES (zeroblob(5000000))", []).unwrap();
            db.execute("INSERT INTO filling VALUES (?1)", [value]).unwrap();
        };
        let holds = |value: &str| holds(&path, &[value.as_bytes().to_vec()]).unwrap();
        let (before, meanwhile) = ("before.before.", "meanwhile.meanwhile.");
        write(before);
        let file = connections.still_file().await.unwrap().unwrap();
        // More than SQLite leaves in the log by itself.
        write(meanwhile);
        assert!(holds(before) && !holds(meanwhile));
        assert!(!cut_log(connections.try_writer().unwrap().connection().unwrap()).unwrap());
        assert!(!holds(meanwhile));
        drop(file);
        assert!(connections.still_file().await.unwrap().is_some());
        assert!(holds(meanwhile));
    }

    #[tokio::test]
    async fn walks_leave_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.db");
        std::fs::write(&path, "").unwrap();
        let connections = Connections::open(&path).unwrap();
        let scans: Vec<_> = std::iter::from_fn(|| connections.scanner().now_or_never()).collect();
        assert!(!scans.is_empty());
        assert!(connections.reader().now_or_never().is_some(), "a look-up by an index does not wait");
    }
}
