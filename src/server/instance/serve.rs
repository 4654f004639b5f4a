//! Opening a vault's directory and serving it: what `vaultfs serve` and the embedded vault have in
//! common.
//!
//! Order matters and is the same every time: lock, master key, database, API key, socket. The lock
//! comes first so that nothing is made twice, and is given up last so that the socket's file is
//! never removed from under a successor. A crash between any two steps leaves a directory that
//! opens again.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;

use crate::clock::{Clock, SystemClock};
use crate::secret::SecretString;
use crate::server::api;
use crate::server::api::App;
use crate::server::api::rate_limit::RateLimit;
use crate::server::crypto::seal::{MasterKey, Sealer, random};
use crate::server::error::ServeError;
use crate::server::instance::data_dir::{
    DataDir, DirLock, SecretFileError, has_vault, read_credential, read_secret,
};
use crate::server::instance::listen;
use crate::server::instance::listen::{Listeners, Tcp};
use crate::server::service::Service;
use crate::server::store::sqlite::SqliteStore;
use crate::server::store::{Permissions, StoreError, VaultId};
use crate::sys::files;

/// Name of the systemd credential that may hold the master key.
const MASTER_KEY_CREDENTIAL: &str = "vaultfs-master-key";

/// Of the key beside the database.
const OWN_IS_MISSING: &str = "is missing, and without it nothing in this vault can be opened: put it back from a backup \
                              (where it is kept elsewhere: --master-key-file of vaultfs serve, or the systemd \
                              credential vaultfs-master-key)";
/// Of a key that was said to be elsewhere.
const NAMED_IS_MISSING: &str = "is missing: put the key there that this vault was sealed with; for a new vault make \
                                one with `openssl rand -base64 32`";

/// How a vault is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Longest value, in bytes of the file view.
    pub max_value: usize,
    /// The master key's file, if not the one beside the database or systemd's credential.
    pub master_key_file: Option<PathBuf>,
    /// Makes a vault where there is none.
    pub make: bool,
    /// Requests a key may make in a minute; as many as it likes if `None`.
    pub rate_limit: Option<NonZeroU32>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_value: 1024 * 1024,
            master_key_file: None,
            make: true,
            rate_limit: None,
            clock: Arc::new(SystemClock),
        }
    }
}

/// A vault in a directory that this process has locked.
#[derive(Debug)]
pub struct Instance {
    dir: DataDir,
    service: Arc<Service>,
    limit: Option<Arc<RateLimit>>,
    // Declared last: dropped after everything that it protects.
    lock: DirLock,
}

impl Instance {
    /// Opens the vault in `dir`, making what a first start makes.
    pub async fn open(dir: DataDir, lock: DirLock, options: ServeOptions) -> Result<Self, ServeError> {
        let limit = options.rate_limit.map(|n| Arc::new(RateLimit::new(n, Arc::clone(&options.clock))));
        let service = open_service(&dir, options).await?;
        let instance = Self { dir, service: Arc::new(service), limit, lock };
        instance.first_key().await?;
        Ok(instance)
    }

    /// The vault itself, with no HTTP between.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Makes the socket; connections wait there until [`Listening::run`].
    pub fn listen(self, tcp: Option<Tcp>) -> Result<Listening, ServeError> {
        let path = self.dir.socket();
        // The lock is ours: whatever lies there belongs to a server that is gone.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(ServeError::io("cannot remove", path)(e));
            }
            _ => {}
        }
        let unix = UnixListener::bind(&path).map_err(ServeError::io("cannot listen on", &path))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).map_err(ServeError::io("cannot set the mode of", &path))?;
        Ok(Listening { instance: self, listeners: Listeners { unix, shared: None, tcp } })
    }

    /// Makes the API key of a vault that has none.
    async fn first_key(&self) -> Result<(), ServeError> {
        let database = self.dir.database();
        let failed = |problem: String| ServeError::Database { path: database.clone(), problem };
        if !self.service.keys().await.map_err(|e| failed(e.to_string()))?.is_empty() {
            return Ok(());
        }
        let path = self.dir.key_file();
        // A file without a key in the database: the last start ended between the two.
        let key = match first_key_in(&path)? {
            Some(key) => key,
            None => {
                let key = new_api_key()?;
                let line = SecretString::new([key.expose(), "\n"].concat());
                self.dir.write_secret(&path, &line)?;
                key
            }
        };
        let added = self.service.add_key(&key, "first key", Permissions::ALL).await;
        added.map(drop).map_err(|e| failed(e.to_string()))
    }
}

/// A vault that is about to answer.
#[derive(Debug)]
pub struct Listening {
    instance: Instance,
    listeners: Listeners,
}

impl Listening {
    /// Answers on a socket for other users, too.
    pub fn shared(mut self, socket: UnixListener) -> Self {
        self.listeners.shared = Some(socket);
        self
    }

    /// Answers until `stop` is done, drains, removes the socket and gives up the lock.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Instance { dir, service, limit, lock } = self.instance;
        let router = api::router(App::new(service.clone(), limit));
        listen::serve(self.listeners, router, stop).await;
        service.close().await;
        if let Err(e) = std::fs::remove_file(dir.socket()) {
            tracing::warn!(error = %e, "the socket's file could not be removed");
        }
        drop(lock);
    }
}

/// The vault in `data` for a command beside the server, if there is one: without the lock, and only
/// if the vault exists already, because only the holder of the lock makes one.
pub async fn open_beside(data: &Path, options: ServeOptions) -> Result<Service, ServeError> {
    files::check_way(data).map_err(ServeError::io("cannot open directory", data))?;
    let dir = data.join("vault.db");
    if !std::fs::metadata(&dir).is_ok_and(|meta| meta.len() > 0) {
        let problem = "there is no vault here: start vaultfs serve once, or check --data".to_owned();
        return Err(ServeError::Database { path: dir, problem });
    }
    open_service(&DataDir::prepare(data)?, options).await
}

async fn open_service(dir: &DataDir, options: ServeOptions) -> Result<Service, ServeError> {
    if !options.make && !has_vault(dir.path()) {
        return Err(ServeError::NoVault(dir.path().to_owned()));
    }
    let master = master_key(dir, options.master_key_file)?;
    let path = dir.database();
    let failed = |e: StoreError| ServeError::Database { path: path.clone(), problem: e.to_string() };
    let fresh = VaultId(random().map_err(|_| ServeError::NoRandomness)?);
    let store = SqliteStore::open(&path, fresh).map_err(failed)?;
    let sealer = Sealer::new(&master.key, store.vault_id());
    if !store.recognise(sealer.check()).await.map_err(failed)? {
        return Err(master.does_not_fit());
    }
    Ok(Service::new(Arc::new(store), Arc::new(sealer), options.clock, options.max_value))
}

/// The key that a vault without any gets, if its file is there.
pub(in crate::server) fn first_key_in(path: &Path) -> Result<Option<SecretString>, ServeError> {
    let key = match read_secret(path) {
        Ok(text) => SecretString::new(text.expose().trim().to_owned()),
        Err(SecretFileError::Missing) => return Ok(None),
        Err(e) => return Err(api_key_problem(path.to_owned(), e)),
    };
    if !key.expose().starts_with("sk_") || key.expose().len() < 20 {
        let problem = "does not hold an API key: remove the file, and the next start makes one";
        return Err(ServeError::ApiKey { path: path.to_owned(), problem });
    }
    Ok(Some(key))
}

/// A new API key: 32 random bytes behind `sk_`.
pub fn new_api_key() -> Result<SecretString, ServeError> {
    let bytes = zeroize::Zeroizing::new(random::<32>().map_err(|_| ServeError::NoRandomness)?);
    let mut text = String::with_capacity(3 + 2 * bytes.len());
    text.push_str("sk_");
    for byte in bytes.iter() {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or_default());
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or_default());
    }
    Ok(SecretString::new(text))
}

/// The master key and where it came from.
pub(in crate::server) struct Master {
    path: PathBuf,
    pub(in crate::server) key: MasterKey,
}

impl Master {
    /// It does not open this vault.
    pub(in crate::server) fn does_not_fit(self) -> ServeError {
        let problem = "is not the one this vault was sealed with: give the right one with --master-key-file";
        ServeError::MasterKey { path: self.path, problem }
    }
}

/// `--master-key-file`, else systemd's credential, else the file beside the database, which is made
/// for a vault that has no database yet, and never otherwise: a new key would open nothing.
fn master_key(dir: &DataDir, named: Option<PathBuf>) -> Result<Master, ServeError> {
    if let Some(master) = known_master_key(dir, named)? {
        return Ok(master);
    }
    let (path, key) = (dir.master_key_file(), MasterKey::generate().map_err(|_| ServeError::NoRandomness)?);
    dir.write_secret(&path, &key.to_text())?;
    Ok(Master { path, key })
}

/// The same, but none is made: `None` where one would be.
pub(in crate::server) fn known_master_key(
    dir: &DataDir,
    named: Option<PathBuf>,
) -> Result<Option<Master>, ServeError> {
    if let Some(path) = named {
        return master_in(&path, read_secret(&path), NAMED_IS_MISSING).map(Some);
    }
    if let Some(path) = credential() {
        return master_in(&path, read_credential(&path), NAMED_IS_MISSING).map(Some);
    }
    let path = dir.master_key_file();
    let begun = std::fs::metadata(dir.database()).is_ok_and(|meta| meta.len() > 0);
    if path.exists() || begun {
        return master_in(&path, read_secret(&path), OWN_IS_MISSING).map(Some);
    }
    Ok(None)
}

fn credential() -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(MASTER_KEY_CREDENTIAL);
    files::metadata(&path, None).is_ok().then_some(path)
}

fn master_in(
    path: &Path,
    text: Result<SecretString, SecretFileError>,
    missing: &'static str,
) -> Result<Master, ServeError> {
    let bad = |problem| ServeError::MasterKey { path: path.to_owned(), problem };
    let text = text.map_err(|e| match e {
        SecretFileError::Missing => bad(missing),
        SecretFileError::TooOpen => bad("can be read by others: make it 0600, and consider it known"),
        SecretFileError::NotText => {
            bad("is no file with 32 bytes in base64: name the one that holds the key")
        }
        SecretFileError::Io(e) => ServeError::io("cannot read", path)(e),
    })?;
    let key = MasterKey::parse(text.expose()).ok_or_else(|| bad("must hold 32 bytes in base64"))?;
    Ok(Master { path: path.to_owned(), key })
}

fn api_key_problem(path: PathBuf, e: SecretFileError) -> ServeError {
    match e {
        SecretFileError::Missing => ServeError::ApiKey { path, problem: "is missing" },
        SecretFileError::TooOpen => {
            ServeError::ApiKey { path, problem: "can be read by others: make it 0600, and consider it known" }
        }
        SecretFileError::NotText => ServeError::ApiKey { path, problem: "does not hold an API key" },
        SecretFileError::Io(e) => ServeError::io("cannot read", path)(e),
    }
}
