//! What requests with an `Idempotency-Key` made, for a day: a repeated request finds the object, or
//! the version, again.
//!
//! The row is written in the transaction that makes it, so that either both are on disk or neither:
//! a client that did not receive the answer asks again and gets it, whatever happened in between.
//! The row holds keyed hashes and an id, never anything of the request itself.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::server::store::{IdempotencyRecord, KEYS_KEPT, Millis, StoreError};

/// What was made: the id of an object, or the number of a version of the object that the request
/// names.
pub type Made = [u8; 16];

/// How long a request is remembered.
const KEPT_MS: i64 = KEYS_KEPT.as_millis() as i64;
/// Rows that are forgotten with each one that is written: they go faster than they come.
const SWEPT: i64 = 100;

/// What this request made before, if it did.
pub fn made_by(
    tx: &Transaction<'_>,
    idempotency: &IdempotencyRecord,
    now: Millis,
) -> Result<Option<Made>, StoreError> {
    let known: Option<([u8; 32], Made)> = tx
        .prepare_cached("SELECT request, object FROM idempotency WHERE scope = ?1 AND made_at > ?2")?
        .query_row(params![idempotency.scope, now.0 - KEPT_MS], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match known {
        Some((request, _)) if request != idempotency.request => Err(StoreError::IdempotencyMismatch),
        known => Ok(known.map(|(_, made)| made)),
    }
}

/// Remembers what this request made, and forgets what is older than a day.
pub fn remember(
    tx: &Transaction<'_>,
    idempotency: &IdempotencyRecord,
    made: Made,
    now: Millis,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "DELETE FROM idempotency WHERE scope IN
             (SELECT scope FROM idempotency WHERE made_at <= ?1 ORDER BY made_at LIMIT ?2)",
    )?
    .execute(params![now.0 - KEPT_MS, SWEPT])?;
    // One that is too old to count may still have the place.
    tx.prepare_cached(
        "INSERT OR REPLACE INTO idempotency (scope, request, object, made_at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![idempotency.scope, idempotency.request, made, now.0])?;
    Ok(())
}

/// An object that was made and is not there was deleted.
pub fn gone(e: StoreError) -> StoreError {
    match e {
        StoreError::NotFound => StoreError::IdempotencyGone,
        e => e,
    }
}
