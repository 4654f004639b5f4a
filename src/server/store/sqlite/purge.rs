//! Taking what was deleted out of the files, too.
//!
//! 1. `secure_delete` overwrites pages of the database, not those of the write-ahead log: the log
//!    is put into the database and cut off.
//! 2. As pages fill and empty, SQLite moves rows between them, and what a move leaves in the unused
//!    part of a page is not overwritten. So a copy of a row can outlive the row. The file is
//!    searched for the marks of what was deleted: wrapped data keys, beginnings and ends of sealed
//!    values. Where one is found, VACUUM writes all pages anew.
//! 3. The search takes a while in a large file, which is as the log was put into it: others write
//!    meanwhile.
//! 4. Names are not searched for: one may be a part of another.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction};

use crate::server::store::StoreError;
use crate::server::store::sqlite::Result;
use crate::server::store::sqlite::connections::BUSY;

/// A database that is larger is not written anew: VACUUM takes as much memory.
const LARGEST: u64 = 64 << 20;
/// Marks are searched for in pieces of this length: a copy may have been overwritten in part.
const PIECE: usize = 8;
/// Bytes of the file that are looked at in one go.
const BLOCK: usize = 256 << 10;

/// The marks of an object with these versions.
pub fn marks_of(tx: &Transaction<'_>, seq: i64, wrapped_key: Vec<u8>) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut ends = tx.prepare_cached(
        "SELECT substr(sealed, 1, 32), substr(sealed, -16) FROM versions WHERE object = ?1 LIMIT 1000",
    )?;
    let ends = ends.query_map([seq], |row| Ok([row.get::<_, Vec<u8>>(0)?, row.get(1)?].concat()))?;
    std::iter::once(Ok(wrapped_key)).chain(ends).collect()
}

/// Takes what was deleted out of the log, and what has one of `marks` out of the database at
/// `path`; false if a reader of something older is in the way.
pub fn purge(path: &Path, writer: &Connection, marks: &[Vec<u8>]) -> Result<bool> {
    Ok(cut_log(writer)? && (!holds(path, marks)? || write_anew(writer)?))
}

/// Whether the file of the database at `path` has a piece of any of `marks`, and is to be written
/// anew.
pub fn holds(path: &Path, marks: &[Vec<u8>]) -> Result<bool> {
    let search = || {
        let mut file = File::open(path)?;
        Ok(file.metadata()?.len() <= LARGEST && holds_any(&mut file, marks)?)
    };
    search().map_err(|e: io::Error| StoreError::Backend(e.to_string()))
}

/// Writes all pages anew; false if a reader of something older is in the way.
pub fn write_anew(writer: &Connection) -> Result<bool> {
    writer.execute_batch("VACUUM")?;
    cut_log(writer)
}

/// Copies the log into the database and cuts it off; false if a reader of something older is in the
/// way.
pub fn cut_log(writer: &Connection) -> Result<bool> {
    let checkpoint = |mode: &str| {
        writer.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
            let (busy, in_log, copied): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(busy == 0 && in_log == copied)
        })
    };
    // With a wait, others could not write meanwhile.
    writer.busy_timeout(Duration::ZERO)?;
    // Once all is copied, reads that begin need no log: the second one is blocked by older ones
    // only.
    let cut = checkpoint("PASSIVE").and_then(|copied| Ok(copied && checkpoint("TRUNCATE")?));
    writer.busy_timeout(BUSY)?;
    match cut {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
        cut => Ok(cut?),
    }
}

/// Whether there is a piece of any of these marks.
fn holds_any(file: &mut impl Read, marks: &[Vec<u8>]) -> io::Result<bool> {
    let pieces: HashSet<&[u8]> = marks.iter().flat_map(|mark| mark.chunks_exact(PIECE)).collect();
    // By the first two bytes: a set is too slow to be asked at each byte.
    let mut begins = vec![false; 1 << 16];
    pieces.iter().for_each(|piece| begins[beginning(piece)] = true);
    let mut block = Vec::with_capacity(BLOCK + PIECE);
    while !pieces.is_empty() && file.take(BLOCK as u64).read_to_end(&mut block)? > 0 {
        if block.windows(PIECE).any(|window| begins[beginning(window)] && pieces.contains(window)) {
            return Ok(true);
        }
        // A piece may lie across the end.
        block.drain(..block.len().saturating_sub(PIECE - 1));
    }
    Ok(false)
}

fn beginning(piece: &[u8]) -> usize {
    usize::from(piece[0]) << 8 | usize::from(piece[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_a_mark_is_found_wherever_it_is() {
        let mark: Vec<u8> = (100..160).collect();
        let holds = |bytes: &[u8]| holds_any(&mut &bytes[..], std::slice::from_ref(&mark)).unwrap();
        let file = |at: usize, piece: &[u8]| {
            let mut bytes = vec![0; 3 * BLOCK];
            bytes[at..at + piece.len()].copy_from_slice(piece);
            bytes
        };
        for at in [0, BLOCK - 4, BLOCK, 2 * BLOCK - 1, 3 * BLOCK - PIECE] {
            assert!(holds(&file(at, &mark[16..24])), "{at}");
            assert!(!holds(&file(at, &mark[17..24])), "{at}");
        }
        assert!(!holds(b"") && !holds_any(&mut &mark[..], &[]).unwrap());
    }

    /// A database with pages that were filled and emptied, and the marks of what was deleted.
    fn used(path: &Path, step: usize) -> (Connection, Vec<Vec<u8>>) {
        let db = Connection::open(path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA secure_delete = ON;
             CREATE TABLE t (object INTEGER, number INTEGER, sealed BLOB, PRIMARY KEY (object, number)) WITHOUT ROWID",
        )
        .unwrap();
        let word = |n: usize| (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let (mut versions, mut next) = (vec![Vec::new(); 600], 0);
        let tx = db.unchecked_transaction().unwrap();
        for n in 0..versions.len() {
            for object in std::iter::once(n).chain(vec![n * step % (n + 1); n % 3]) {
                let mark = word(next).repeat(4);
                let sealed = [&mark[..], &vec![0; next * step % 800]].concat();
                tx.execute("INSERT INTO t VALUES (?1, ?2, ?3)", (object as i64, next as i64, sealed))
                    .unwrap();
                versions[object].push(mark);
                next += 1;
            }
        }
        let gone: Vec<_> = (0..400).map(|n| n * 271 % versions.len()).collect();
        for object in &gone {
            tx.execute("DELETE FROM t WHERE object = ?1", [*object as i64]).unwrap();
        }
        tx.commit().unwrap();
        (db, gone.iter().flat_map(|object| versions[*object].clone()).collect())
    }

    #[test]
    fn what_sqlite_leaves_of_a_deleted_row_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        for step in 31..61 {
            let path = dir.path().join(step.to_string());
            let (db, marks) = used(&path, step);
            let left = || holds_any(&mut File::open(&path).unwrap(), &marks).unwrap();
            assert!(cut_log(&db).unwrap());
            if left() {
                assert!(purge(&path, &db, &marks).unwrap());
                assert!(!left());
                return;
            }
        }
        panic!("SQLite leaves nothing by now: nothing has to be searched for");
    }
}
