//! From SQLite's rows to the store's words, in one place so that each query names the same columns.

use rusqlite::{Connection, Row};
use ulid::Ulid;

use crate::server::store::*;

/// Columns of `objects o`, in the order [`object_row`] reads them.
pub const OBJECT_COLUMNS: &str =
    "o.id, o.name, o.key_context, o.version, o.version_uid, o.created_at, o.updated_at, o.updated_by,
     (SELECT k.name FROM api_keys k WHERE k.id = o.updated_by)";
/// The first column behind [`OBJECT_COLUMNS`].
pub const NEXT_COLUMN: usize = 9;

/// An object with what only the store needs of it.
pub struct Found {
    /// Its place in creation order.
    pub seq: i64,
    /// Its data key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// The rest.
    pub row: ObjectRow,
}

/// The form ids have in the database.
pub fn uid(id: Ulid) -> [u8; 16] {
    id.to_bytes()
}

/// Reads [`OBJECT_COLUMNS`].
pub fn object_row(row: &Row<'_>) -> rusqlite::Result<ObjectRow> {
    Ok(ObjectRow {
        id: Ulid::from_bytes(row.get(0)?),
        name: row.get(1)?,
        key_context: row.get(2)?,
        version: unsigned(row.get(3)?),
        version_uid: VersionUid(row.get(4)?),
        created_at: Millis(row.get(5)?),
        updated_at: Millis(row.get(6)?),
        updated_by: Actor { id: row.get(7)?, name: row.get(8)? },
    })
}

/// Reads [`OBJECT_COLUMNS`] and wrapped key, form, sealed text after them.
pub fn sealed_object(row: &Row<'_>) -> rusqlite::Result<SealedObject> {
    let form: i64 = row.get(NEXT_COLUMN + 1)?;
    Ok(SealedObject {
        object: object_row(row)?,
        wrapped_key: row.get(NEXT_COLUMN)?,
        form: StoredForm::from_code(form)
            .ok_or(rusqlite::Error::IntegralValueOutOfRange(NEXT_COLUMN + 1, form))?,
        sealed: row.get(NEXT_COLUMN + 2)?,
    })
}

/// Reads number, uid, created_at, size, etag.
pub fn version_row(row: &Row<'_>, current: u64) -> rusqlite::Result<VersionRow> {
    let number = unsigned(row.get(0)?);
    Ok(VersionRow {
        number,
        uid: VersionUid(row.get(1)?),
        created_at: Millis(row.get(2)?),
        size: unsigned(row.get(3)?),
        etag: Etag(row.get(4)?),
        current: number == current,
    })
}

/// Reads id, name, permissions, created_at.
pub fn key_row(row: &Row<'_>) -> rusqlite::Result<KeyRow> {
    Ok(KeyRow {
        id: row.get(0)?,
        name: row.get(1)?,
        permissions: Permissions(row.get(2)?),
        created_at: Millis(row.get(3)?),
    })
}

/// The object with this id; no row is [`StoreError::NotFound`].
pub fn object_by_id(tx: &Connection, id: Ulid) -> Result<Found, StoreError> {
    let sql = format!("SELECT {OBJECT_COLUMNS}, o.seq, o.wrapped_key FROM objects o WHERE o.id = ?1");
    let read = |row: &Row<'_>| {
        Ok(Found {
            row: object_row(row)?,
            seq: row.get(NEXT_COLUMN)?,
            wrapped_key: row.get(NEXT_COLUMN + 1)?,
        })
    };
    Ok(tx.prepare_cached(&sql)?.query_row([uid(id)], read)?)
}

/// SQLite has no unsigned numbers; what is written from a `u64` never reaches the sign.
fn unsigned(n: i64) -> u64 {
    n.max(0) as u64
}
