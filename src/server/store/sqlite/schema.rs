//! The database's tables and how an older database becomes a newer one.
//!
//! `PRAGMA user_version` counts the steps of [`STEPS`] that were taken. A step, once released, is
//! never edited: a change is a new step at the end. Ids are stored as 16 bytes, times as
//! milliseconds UTC.

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// `PRAGMA application_id` of a vault: "vltf".
pub const APPLICATION_ID: i32 = 0x766c_7466;

/// The steps, oldest first.
const STEPS: &[&str] = &[
    "
CREATE TABLE vault (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    id         BLOB NOT NULL,
    -- derived from the master key: tells that the right one was given
    key_check  BLOB
) STRICT;

-- seq is creation order and is never used again, so that a cursor keeps its place when its row goes.
CREATE TABLE objects (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          BLOB NOT NULL UNIQUE,
    name        TEXT NOT NULL UNIQUE,
    key_context TEXT NOT NULL,
    wrapped_key BLOB NOT NULL,
    version     INTEGER NOT NULL,
    version_uid BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    updated_by  TEXT NOT NULL
) STRICT;
CREATE INDEX objects_by_change ON objects (updated_at, seq);

CREATE TABLE versions (
    object      INTEGER NOT NULL REFERENCES objects (seq) ON DELETE CASCADE,
    number      INTEGER NOT NULL,
    uid         BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    form        INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    etag        BLOB NOT NULL,
    sealed      BLOB NOT NULL,
    PRIMARY KEY (object, number)
) STRICT;

-- The places of deleted objects, for cursors that still point there. No name, no value.
CREATE TABLE tombstones (
    id   BLOB PRIMARY KEY,
    seq  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
    id          TEXT PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE,
    name        TEXT NOT NULL,
    permissions INTEGER NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
",
    "
-- What requests with an Idempotency-Key made: keyed hashes and an id, nothing of the request itself.
CREATE TABLE idempotency (
    scope    BLOB PRIMARY KEY,
    request  BLOB NOT NULL,
    object   BLOB NOT NULL,
    made_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_time ON idempotency (made_at);
",
];

/// Brings the database up to date, all steps or none.
pub fn migrate(conn: &mut Connection) -> Result<(), MigrateError> {
    // A database that is up to date is not written to: on a full disk it can still be opened.
    if steps_done(conn)? == STEPS.len() && is_marked(conn)? {
        return Ok(());
    }
    let tx = Transaction::new(conn, TransactionBehavior::Immediate)?;
    let done = steps_done(&tx)?;
    for step in &STEPS[done..] {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", STEPS.len() as i64)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.commit()?;
    Ok(())
}

fn is_marked(conn: &Connection) -> rusqlite::Result<bool> {
    let id: i32 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    Ok(id == APPLICATION_ID)
}

/// How many steps were taken; an error if this is no vault's database, or that of a newer program.
/// Changes nothing.
pub fn steps_done(conn: &Connection) -> Result<usize, MigrateError> {
    let id: i32 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    // The first vaults had no id: they are known by their table.
    let empty_or_vault = "SELECT count(*) = 0 OR total(name = 'vault') > 0 FROM sqlite_master";
    if id != APPLICATION_ID
        && (id != 0 || !conn.query_row(empty_or_vault, [], |row| row.get::<_, bool>(0))?)
    {
        return Err(MigrateError::NotAVault);
    }
    let done: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(done).map_err(|_| MigrateError::Newer)?;
    if done > STEPS.len() { Err(MigrateError::Newer) } else { Ok(done) }
}

/// Why a database cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Some other program's.
    #[error("this database is not a vault: choose another directory")]
    NotAVault,
    /// It has steps that this program does not know.
    #[error("made by a newer vaultfs: use that one")]
    Newer,
    /// SQLite failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}
