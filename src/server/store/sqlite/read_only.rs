//! Inspects a database that is not served, and leaves everything as it is: no file is made, none is
//! changed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::server::store::sqlite::schema;
use crate::server::store::{KeyHash, StoreError, VaultId};

/// What a database says of its vault.
#[derive(Debug)]
pub struct ReadOnlyDatabase {
    conn: Connection,
    /// The vault's id.
    pub vault: VaultId,
    /// What its master key is recognised by, if that was ever written down.
    pub key_check: Option<[u8; 32]>,
}

impl ReadOnlyDatabase {
    /// `Ok(None)` if there is nothing to be seen yet: a start that did not get far, or a log
    /// without its index, which only a process that opens the database for writing can take in.
    pub fn at(path: &Path) -> Result<Option<Self>, StoreError> {
        let beside = |suffix: &str| {
            let mut name = OsString::from(path);
            name.push(suffix);
            PathBuf::from(name)
        };
        let has_log = fs::metadata(beside("-wal")).is_ok_and(|meta| meta.len() > 0);
        let access = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = match has_log {
            true if !beside("-shm").exists() => return Ok(None),
            true => Connection::open_with_flags(path, access)?,
            // Without that SQLite would make an index for a log that is not there.
            false => Connection::open_with_flags(unchanging(path), access | OpenFlags::SQLITE_OPEN_URI)?,
        };
        conn.busy_timeout(std::time::Duration::from_secs(5))?;
        if schema::steps_done(&conn)? == 0 {
            return Ok(None);
        }
        let row = conn.query_row("SELECT id, key_check FROM vault", [], |row| Ok((row.get(0)?, row.get(1)?)));
        let Some((id, key_check)) = row.optional()? else { return Ok(None) };
        Ok(Some(Self { conn, vault: VaultId(id), key_check }))
    }

    /// Whether there is any API key.
    pub fn has_keys(&self) -> Result<bool, StoreError> {
        Ok(self.conn.query_row("SELECT count(*) > 0 FROM api_keys", [], |row| row.get(0))?)
    }

    /// Whether there is this one.
    pub fn knows(&self, key: &KeyHash) -> Result<bool, StoreError> {
        let of = "SELECT count(*) > 0 FROM api_keys WHERE hash = ?1";
        Ok(self.conn.query_row(of, [key.0], |row| row.get(0))?)
    }
}

/// The path as a URI that declares the file immutable.
fn unchanging(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?immutable=1"
}
