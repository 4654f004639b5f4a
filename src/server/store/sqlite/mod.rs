//! The store over SQLite: every commit is on disk before it returns.
//!
//! Writers wait for the one writing connection in the order they came ([`Connections`]). What
//! writes, or may scan many rows, runs as blocking work, and waiting for a connection happens
//! before that begins, so that many requests never exhaust tokio's threads. What finds a few rows
//! by an index is done where it is asked for: waking another thread takes several times as long as
//! the query itself. A request that is dropped while it waits does nothing; one that has begun is
//! finished.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use ulid::Ulid;

use crate::server::store::sqlite::connections::{Connections, blocking};
use crate::server::store::sqlite::rows::{
    OBJECT_COLUMNS, key_row, object_by_id, sealed_object, uid, version_row,
};
use crate::server::store::sqlite::schema::MigrateError;
use crate::server::store::*;

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A vault in one SQLite database.
#[derive(Debug)]
pub struct SqliteStore {
    vault: VaultId,
    connections: Arc<Connections>,
}

impl From<MigrateError> for StoreError {
    fn from(e: MigrateError) -> Self {
        match e {
            MigrateError::Newer | MigrateError::NotAVault => StoreError::Backend(e.to_string()),
            MigrateError::Sqlite(e) => e.into(),
        }
    }
}

impl SqliteStore {
    /// Opens or makes the database at `path`; a new one gets `fresh` as its vault's id. Blocks.
    pub fn open(path: &Path, fresh: VaultId) -> Result<Self> {
        // SQLite gives the log and its index the database's own mode.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| StoreError::Backend(e.to_string()))?;
        let connections = Connections::open(path)?;
        let mut writer =
            connections.try_writer().ok_or_else(|| StoreError::Backend("it is in use".into()))?;
        let db = writer.connection()?;
        db.execute("INSERT OR IGNORE INTO vault (one, id) VALUES (1, ?1)", [fresh.0])?;
        let vault = VaultId(db.query_row("SELECT id FROM vault", [], |row| row.get(0))?);
        drop(writer);
        Ok(Self { vault, connections })
    }

    /// The vault's id.
    pub fn vault_id(&self) -> VaultId {
        self.vault
    }

    /// Remembers what the master key is recognised by, or says whether it is the one remembered.
    pub async fn recognise(&self, check: [u8; 32]) -> Result<bool> {
        self.write(move |tx| {
            tx.execute("UPDATE vault SET key_check = ?1 WHERE key_check IS NULL", [check])?;
            let known: [u8; 32] = tx.query_row("SELECT key_check FROM vault", [], |row| row.get(0))?;
            Ok(known == check)
        })
        .await
    }

    /// As if the disk were full.
    #[cfg(test)]
    pub(super) async fn allow_no_more_pages(&self) {
        let mut writer = self.connections.writer().await;
        // No less than there are is what it takes for a limit below that.
        writer.connection().unwrap().pragma_update(None, "max_page_count", 1).unwrap();
    }

    async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    {
        let mut writer = self.connections.writer().await;
        blocking(move || {
            let tx = writer.connection()?.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let out = work(&tx)?;
            tx.commit()?;
            writer.succeeded();
            Ok(out)
        })
        .await
    }

    /// A change that removes something: it leaves the files, too. `work` returns the marks of it,
    /// too.
    async fn remove<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<(T, Vec<Vec<u8>>)> + Send + 'static,
    {
        let (removed, marks) = self.write(work).await?;
        self.connections.purge(marks);
        Ok(removed)
    }

    /// For what may take long: a page of a listing, a history.
    async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    {
        let (mut reader, scan) = self.connections.scanner().await?;
        blocking(move || {
            let _scan = scan;
            // One transaction: several statements see one state of the vault.
            let tx = reader.connection()?.transaction()?;
            work(&tx)
        })
        .await
    }

    /// For one statement that finds its row by an index.
    async fn read_indexed<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        work(self.connections.reader().await?.connection()?)
    }
}

/// A change that took its time later may be written earlier, by this many milliseconds.
const QUEUE: i64 = 500;

/// The time of a change: the clock's, but never before a change that was made already.
fn not_before_last(tx: &Transaction<'_>, at: Millis) -> Result<Millis> {
    let last: Option<i64> =
        tx.prepare_cached("SELECT max(updated_at) FROM objects")?.query_row([], |row| row.get(0))?;
    Ok(match last {
        Some(last) if at.0 < last - QUEUE => {
            // A clock set back: go on in steps, so that "changed after T" still finds each change.
            Millis(last + 1)
        }
        // In steps, more than a thousand changes a second would run ahead of the clock.
        Some(last) => at.max(Millis(last)),
        None => at,
    })
}

fn insert_version(
    tx: &Transaction<'_>,
    seq: i64,
    number: u64,
    stamp: &Stamp,
    value: &SealedValue,
) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO versions (object, number, uid, created_at, created_by, form, size, etag, sealed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        seq,
        number as i64,
        stamp.uid.0,
        stamp.at.0,
        stamp.api_key_id,
        value.form.code(),
        value.size as i64,
        value.etag.0,
        value.sealed
    ])?;
    Ok(())
}

fn create(tx: &Transaction<'_>, new: &NewObject, mut stamp: Stamp) -> Result<ObjectRow> {
    let now = stamp.at;
    if let Some(idempotency) = &new.idempotency
        && let Some(made) = idempotency::made_by(tx, idempotency, now)?
    {
        return Ok(version(tx, Ulid::from_bytes(made), 1).map_err(idempotency::gone)?.object);
    }
    stamp.at = not_before_last(tx, stamp.at)?;
    let inserted = tx
        .prepare_cached(
            "INSERT INTO objects (id, name, key_context, wrapped_key, version, version_uid,
                                  created_at, updated_at, updated_by)
             VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?6, ?7)",
        )?
        .execute(params![
            uid(new.id),
            new.name.as_str(),
            new.key_context,
            new.wrapped_key,
            stamp.uid.0,
            stamp.at.0,
            stamp.api_key_id
        ]);
    match inserted {
        // The id is random: of the two unique columns only the name can meet itself again.
        Err(rusqlite::Error::SqliteFailure(e, _)) if e.code == ErrorCode::ConstraintViolation => {
            return Err(StoreError::NameTaken);
        }
        other => other?,
    };
    insert_version(tx, tx.last_insert_rowid(), 1, &stamp, &new.value)?;
    if let Some(idempotency) = &new.idempotency {
        idempotency::remember(tx, idempotency, uid(new.id), now)?;
    }
    Ok(object_by_id(tx, new.id)?.row)
}

fn update(
    tx: &Transaction<'_>,
    id: Ulid,
    check: Option<VersionUid>,
    mut stamp: Stamp,
    seal: SealFn,
    idempotency: Option<IdempotencyRecord>,
) -> Result<ObjectRow> {
    let (now, found) = (stamp.at, object_by_id(tx, id)?);
    if let Some(idempotency) = &idempotency
        && let Some(made) = idempotency::made_by(tx, idempotency, now)?
    {
        return Ok(version(tx, id, u128::from_be_bytes(made) as u64)?.object);
    }
    if check.is_some_and(|check| check != found.row.version_uid) {
        return Err(StoreError::VersionMismatch);
    }
    stamp.at = not_before_last(tx, stamp.at)?;
    let number = found.row.version + 1;
    let value = seal(id, number, &found.wrapped_key)?;
    insert_version(tx, found.seq, number, &stamp, &value)?;
    tx.prepare_cached(
        "UPDATE objects SET version = ?2, version_uid = ?3, updated_at = ?4, updated_by = ?5 WHERE seq = ?1",
    )?
    .execute(params![found.seq, number as i64, stamp.uid.0, stamp.at.0, stamp.api_key_id])?;
    if let Some(idempotency) = &idempotency {
        idempotency::remember(tx, idempotency, u128::from(number).to_be_bytes(), now)?;
    }
    Ok(object_by_id(tx, id)?.row)
}

fn delete(tx: &Transaction<'_>, id: Ulid, check: Option<VersionUid>) -> Result<(ObjectRow, Vec<Vec<u8>>)> {
    let found = object_by_id(tx, id)?;
    if check.is_some_and(|check| check != found.row.version_uid) {
        return Err(StoreError::VersionMismatch);
    }
    tx.execute("INSERT INTO tombstones (id, seq) VALUES (?1, ?2)", params![uid(id), found.seq])?;
    let marks = purge::marks_of(tx, found.seq, found.wrapped_key)?;
    // The versions go with it: ON DELETE CASCADE.
    tx.execute("DELETE FROM objects WHERE seq = ?1", [found.seq])?;
    Ok((found.row, marks))
}

fn get(tx: &Connection, which: &Lookup) -> Result<SealedObject> {
    let sql = |column: &str| {
        format!(
            "SELECT {OBJECT_COLUMNS}, o.wrapped_key, v.form, v.sealed
             FROM objects o JOIN versions v ON v.object = o.seq AND v.number = o.version
             WHERE o.{column} = ?1"
        )
    };
    match which {
        Lookup::Id(id) => Ok(tx.prepare_cached(&sql("id"))?.query_row([uid(*id)], sealed_object)?),
        Lookup::Name(name) => Ok(tx.prepare_cached(&sql("name"))?.query_row([name], sealed_object)?),
    }
}

fn version(tx: &Connection, id: Ulid, number: u64) -> Result<SealedObject> {
    let number = i64::try_from(number).map_err(|_| StoreError::NotFound)?;
    let found = tx
        .prepare_cached(
            "SELECT o.id, o.name, o.key_context, v.number, v.uid, o.created_at, v.created_at, v.created_by,
                    (SELECT k.name FROM api_keys k WHERE k.id = v.created_by), o.wrapped_key, v.form, v.sealed
             FROM objects o JOIN versions v ON v.object = o.seq WHERE o.id = ?1 AND v.number = ?2",
        )?
        .query_row(params![uid(id), number], sealed_object)?;
    Ok(found)
}

fn versions(tx: &Transaction<'_>, id: Ulid, newest: Option<u32>) -> Result<Vec<VersionRow>> {
    let found = object_by_id(tx, id)?;
    let current = found.row.version;
    let mut statement = tx.prepare_cached(
        "SELECT number, uid, created_at, size, etag FROM versions WHERE object = ?1 ORDER BY number DESC LIMIT ?2",
    )?;
    let rows = statement
        .query_map(params![found.seq, newest.map_or(-1, i64::from)], |row| version_row(row, current))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

#[async_trait]
impl Store for SqliteStore {
    async fn create(&self, new: NewObject, stamp: Stamp) -> Result<ObjectRow> {
        self.write(move |tx| create(tx, &new, stamp)).await
    }

    async fn get(&self, which: Lookup) -> Result<SealedObject> {
        self.read_indexed(|db| get(db, &which)).await
    }

    async fn metadata(&self, id: Ulid) -> Result<ObjectRow> {
        self.read_indexed(|db| Ok(object_by_id(db, id)?.row)).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        self.read(move |tx| crate::server::store::sqlite::list::list(tx, &request)).await
    }

    async fn update(
        &self,
        id: Ulid,
        check: Option<VersionUid>,
        stamp: Stamp,
        seal: SealFn,
        idempotency: Option<IdempotencyRecord>,
    ) -> Result<ObjectRow> {
        self.write(move |tx| update(tx, id, check, stamp, seal, idempotency)).await
    }

    async fn delete(&self, id: Ulid, check: Option<VersionUid>) -> Result<ObjectRow> {
        self.remove(move |tx| delete(tx, id, check)).await
    }

    async fn versions(&self, id: Ulid, newest: Option<u32>) -> Result<Vec<VersionRow>> {
        self.read(move |tx| versions(tx, id, newest)).await
    }

    async fn version(&self, id: Ulid, number: u64) -> Result<SealedObject> {
        self.read_indexed(|db| version(db, id, number)).await
    }

    async fn find_key(&self, hash: KeyHash) -> Result<Option<KeyRow>> {
        self.read_indexed(|db| {
            let sql = "SELECT id, name, permissions, created_at FROM api_keys WHERE hash = ?1";
            Ok(db.prepare_cached(sql)?.query_row([hash.0], key_row).optional()?)
        })
        .await
    }

    async fn add_key(&self, key: KeyRow, hash: KeyHash) -> Result<()> {
        self.write(move |tx| {
            tx.execute(
                "INSERT INTO api_keys (id, hash, name, permissions, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![key.id, hash.0, key.name, key.permissions.0, key.created_at.0],
            )?;
            Ok(())
        })
        .await
    }

    async fn list_keys(&self) -> Result<Vec<KeyRow>> {
        self.read(|tx| {
            let mut statement =
                tx.prepare("SELECT id, name, permissions, created_at FROM api_keys ORDER BY id")?;
            let rows = statement.query_map([], key_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    async fn revoke_key(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.remove(move |tx| match tx.execute("DELETE FROM api_keys WHERE id = ?1", [id])? {
            0 => Err(StoreError::NotFound),
            _ => Ok(((), Vec::new())),
        })
        .await
    }

    async fn close(&self) {
        self.connections.close().await;
    }
}

pub(in crate::server::store) mod connections;
pub(in crate::server::store) mod idempotency;
pub(in crate::server::store) mod list;
pub(in crate::server::store) mod purge;
pub mod read_only;
pub(in crate::server::store) mod rows;
pub mod schema;
#[cfg(test)]
mod work;
