//! Whether a vault's directory could be opened, for `vaultfs doctor`: the checks of opening it, and
//! none of its doings.
//!
//! Nothing is made, changed or locked, so that a server that runs, or starts at this moment,
//! notices nothing.

use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::secret::SecretString;
use crate::server::crypto::seal::Sealer;
use crate::server::error::ServeError;
use crate::server::instance::data_dir::DataDir;
use crate::server::instance::serve::{first_key_in, known_master_key};
use crate::server::store::sqlite::read_only::ReadOnlyDatabase;
use crate::server::store::{KeyHash, StoreError};

/// What a directory is, as far as can be seen from outside.
#[derive(Debug)]
pub enum Inspected {
    /// The first use makes a vault here, or finishes making one.
    New,
    /// A process serves it: that one can be asked.
    Served {
        /// Where.
        socket: PathBuf,
        /// The file with an API key.
        key_file: PathBuf,
    },
    /// It can be opened.
    Openable(Box<Openable>),
}

/// A vault that can be opened.
#[derive(Debug)]
pub struct Openable {
    /// The file with an API key.
    pub key_file: PathBuf,
    database: PathBuf,
    database_view: ReadOnlyDatabase,
    sealer: Sealer,
}

/// Looks at `dir`.
///
/// # Errors
/// What opening the vault would fail with.
pub async fn inspect(dir: &Path) -> Result<Inspected, ServeError> {
    let Some(dir) = DataDir::existing(dir)? else { return Ok(Inspected::New) };
    let key_file = dir.key_file();
    match UnixStream::connect(dir.socket()).await {
        Ok(_) => return Ok(Inspected::Served { socket: dir.socket(), key_file }),
        // More wait there than it has taken yet.
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            return Ok(Inspected::Served { socket: dir.socket(), key_file });
        }
        // Left by one that is gone, or not there.
        Err(_) => {}
    }
    let master = known_master_key(&dir, None)?;
    let database = dir.database();
    let begun = std::fs::metadata(&database).is_ok_and(|meta| meta.len() > 0);
    let database_view =
        if begun { ReadOnlyDatabase::at(&database).map_err(failed(&database))? } else { None };
    let (Some(database_view), Some(master)) = (database_view, master) else {
        first_key_in(&key_file)?;
        return Ok(Inspected::New);
    };
    let sealer = Sealer::new(&master.key, database_view.vault);
    if database_view.key_check.is_some_and(|check| check != sealer.check()) {
        return Err(master.does_not_fit());
    }
    if !database_view.has_keys().map_err(failed(&database))? {
        first_key_in(&key_file)?;
        return Ok(Inspected::New);
    }
    Ok(Inspected::Openable(Box::new(Openable { key_file, database, database_view, sealer })))
}

impl Openable {
    /// Whether the vault takes this API key.
    pub fn takes(&self, key: &SecretString) -> Result<bool, ServeError> {
        // Only a keyed hash of it is kept.
        let hash: KeyHash = self.sealer.hash_api_key(key.expose());
        self.database_view.knows(&hash).map_err(failed(&self.database))
    }
}

fn failed(database: &Path) -> impl Fn(StoreError) -> ServeError {
    let path = database.to_owned();
    move |e| ServeError::Database { path: path.clone(), problem: e.to_string() }
}
