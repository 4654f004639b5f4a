//! Which vault, with which key: the options every command shares.
//!
//! Two steps, because `vaultfs mount` takes them in different processes. [`ConnectArgs::resolve`]
//! runs where the command line and the environment are: it determines the URL or directory, checks
//! the options, reads the key, and makes every path absolute. Its results travel: [`ConnectSpec`]
//! is serialisable and holds no secret, [`ApiKeyInput`] is the secret alone. [`connect`] runs where
//! the vault is used: it starts or joins the embedded vault, determines the dialect, and returns a
//! vault. No key is kept here.

pub mod key_file;
mod open;
mod validate;
mod which;

pub use open::{connect, connect_keys, say_made, survey};
pub use which::VaultArgs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::cli::args::values;
use crate::cli::exit::{Exit, Failure};
use crate::display::Shown;
use crate::secret::SecretString;
use crate::server::instance::embedded::Embedded;
use crate::sys::files;
use crate::sys::hardening;
use crate::sys::stdio;
use crate::vault::client;
use crate::vault::client::api_key;
use crate::vault::client::api_key::ApiKey;
use crate::vault::client::tls::TlsFiles;
use crate::vault::{Dialect, DynVault, Page};

/// Where the service is by default.
const DEFAULT_URL: &str = "https://api.workos.com";

/// Where root's embedded vault is where there is no HOME, as at boot and in units.
pub const SYSTEM_VAULT: &str = "/var/lib/vaultfs";

const NO_KEY: &str = "no API key: set WORKOS_API_KEY, or give --api-key-file FILE, or use --embedded for a vault on \
                      this machine, which needs none";

/// Options that name a vault. Flattened by `mount` and by the object commands.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which vault")]
pub struct ConnectArgs {
    /// Use the local vault in DIR instead of a service (write --embedded=DIR)
    ///
    /// The first mount or put creates it, with an API key of its own in DIR/api-key. Without DIR it
    /// is in the first of $STATE_DIRECTORY (in a unit), $XDG_DATA_HOME/vaultfs and
    /// ~/.local/share/vaultfs; for root without HOME in /var/lib/vaultfs.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true)]
    pub embedded: Option<Option<PathBuf>>,

    /// Address of the vault [env WORKOS_API_URL; default https://api.workos.com]
    ///
    /// Plain http is for loopback addresses only. unix:PATH is the socket of `vaultfs serve
    /// --socket PATH`.
    #[arg(long, value_name = "URL")]
    pub api_url: Option<String>,

    /// API of the vault; auto asks the vault
    #[arg(long, value_enum, default_value_t, value_name = "API")]
    pub api: Api,

    /// File with the API key, readable by its owner only
    ///
    /// Without it: $CREDENTIALS_DIRECTORY/workos-api-key, then the environment variable
    /// WORKOS_API_KEY. There is no option for the key itself, because every user of the machine can
    /// read the arguments of a process.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Also send the key to a vault that USER runs on this machine (plain http or unix:)
    ///
    /// Without it, the key goes only to a listener of root, of your own, or of the key file's
    /// owner, because any user can take a port while the vault is down.
    #[arg(long, value_name = "USER", value_parser = values::user)]
    pub api_uid: Option<u32>,

    /// Trust the certificates in FILE (PEM) besides the system's
    ///
    /// A mount reads FILE again on SIGHUP to its keeper, and when FILE has changed after a
    /// connection failed because of its certificate.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Key context for new objects, kv API only (repeatable)
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    pub key_context: Vec<(String, String)>,

    /// Show only names that start with P/, without that prefix
    #[arg(long, value_name = "P")]
    pub prefix: Option<String>,

    /// Time limit for each request, including retries; a command such as cp may need several
    #[arg(help_heading = "Limits", long, value_name = "TIME", default_value = "10s", value_parser = values::time)]
    pub timeout: Duration,

    /// Size limit of a value
    #[arg(help_heading = "Limits", long, value_name = "SIZE", default_value = "1MiB", value_parser = values::value_size)]
    pub max_size: ByteSize,

    /// Where mounts are found.
    #[command(flatten)]
    pub runtime: values::RuntimeDirArg,

    /// The user of the mount, with the same trust as one's own.
    #[arg(skip)]
    pub also: Option<u32>,
}

/// `--api`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Ask the service
    #[default]
    Auto,
    /// /vault/object/*
    Object,
    /// /vault/v1/kv*
    Kv,
}

/// Where the vault is. Shown as the first field of /etc/fstab has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// The embedded vault of this directory (absolute).
    Embedded(PathBuf),
    /// A service. No trailing slash.
    Url(String),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded(dir) => write!(f, "embedded={}", dir.shown()),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Everything that [`connect`] needs but the key. Holds no secret; paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectSpec {
    /// Where the vault is.
    pub endpoint: Endpoint,
    /// Which dialect to speak.
    pub api: Api,
    /// Where the key was read from, to be read again after a 401 or SIGHUP. `None`: environment, or
    /// embedded.
    pub key_file: Option<PathBuf>,
    /// More certificates to trust.
    pub ca_file: Option<PathBuf>,
    /// A worker goes on for another one: a file that cannot be used at this moment is no reason to
    /// end the mount, and the vault is asked nothing before it is needed.
    #[serde(skip)]
    pub takes_over: bool,
    /// An embedded vault that does not exist is made.
    #[serde(skip)]
    pub makes: bool,
    /// The vault has listed names for the key: should it refuse that once, the key has lost its
    /// right to read.
    #[serde(default)]
    pub lists: bool,
    /// For new objects in the kv dialect.
    pub key_context: BTreeMap<String, String>,
    /// Shown and written names start with this and a slash.
    pub prefix: Option<String>,
    /// Longest wait for any one operation.
    pub timeout: Duration,
    /// Largest value in bytes.
    pub max_size: u64,
    /// The user of a mount (`--uid`): the key and certificates may be this user's.
    #[serde(default)]
    pub also: Option<u32>,
    /// Another user with a listener that may get the key.
    #[serde(default)]
    pub api_uid: Option<u32>,
}

impl ConnectSpec {
    /// Users with listeners on this machine that may get the key.
    fn listeners(&self) -> Vec<u32> {
        use std::os::unix::fs::MetadataExt;
        let owner = self
            .key_file
            .as_deref()
            .and_then(|file| files::metadata(file, self.also).ok())
            .map(|meta| meta.uid());
        let own = nix::unistd::geteuid().as_raw();
        [Some(0), Some(own), owner, self.also, self.api_uid].into_iter().flatten().collect()
    }

    /// The dialect to speak; `None` to ask the service. The embedded vault speaks both, and is not
    /// asked.
    pub fn dialect(&self) -> Option<Dialect> {
        match (self.api, &self.endpoint) {
            (Api::Auto, Endpoint::Url(_)) => None,
            (Api::Object, _) | (Api::Auto, Endpoint::Embedded(_)) => Some(Dialect::Object),
            (Api::Kv, _) => Some(Dialect::Kv),
        }
    }
}

/// The API key on its way from [`ConnectArgs::resolve`] to [`connect`].
#[derive(Debug, Clone, Default)]
pub struct ApiKeyInput {
    /// `None` for the embedded vault, which has the key in its directory.
    pub secret: Option<SecretString>,
}

/// A vault that answered.
#[derive(Debug)]
pub struct Connected {
    /// The vault, `--prefix` applied.
    pub vault: DynVault,
    /// The first page of the listing, if asking for the dialect brought one (with
    /// [`ListQuery::first`]).
    ///
    /// [`ListQuery::first`]: crate::vault::ListQuery::first
    pub first_page: Option<Page>,
    /// The embedded vault, if this process runs or joined it; to be shut down last.
    pub embedded: Option<Embedded>,
    /// The key in use; `reload` it on SIGHUP.
    pub key: Arc<ApiKey>,
    /// What connections are secured with; `reload` it, too.
    pub tls: Arc<TlsFiles>,
}

impl ConnectArgs {
    /// Whether the command line or the environment says which vault is meant.
    pub fn names_a_vault(&self) -> bool {
        self.embedded.is_some()
            || self.api_url.is_some()
            || self.api_key_file.is_some()
            || env("WORKOS_API_URL").is_some()
            || hardening::has_env("WORKOS_API_KEY")
            || credential().is_some()
    }

    /// Determines which vault and which key are meant. Starts and contacts nothing.
    pub fn resolve(&self) -> Result<(ConnectSpec, ApiKeyInput), Failure> {
        let mut spec = self.spec()?;
        if matches!(spec.endpoint, Endpoint::Embedded(_)) {
            return Ok((spec, ApiKeyInput::default()));
        }
        let (secret, file) = self.find_key()?;
        if !secret.expose().starts_with("sk_") {
            stdio::say("hint: API keys usually start with sk_, and this one does not");
        }
        spec.key_file = file;
        Ok((spec, ApiKeyInput { secret: Some(secret) }))
    }

    /// Everything but the key.
    fn spec(&self) -> Result<ConnectSpec, Failure> {
        let spec = ConnectSpec {
            endpoint: self.endpoint()?,
            api: self.api,
            key_file: None,
            ca_file: self.ca_file.as_deref().map(absolute).transpose()?,
            takes_over: false,
            makes: false,
            lists: false,
            key_context: self.key_context.iter().cloned().collect(),
            prefix: self.prefix.as_deref().map(clean_prefix).transpose()?.flatten(),
            timeout: self.timeout,
            max_size: self.max_size.as_u64(),
            also: self.also,
            api_uid: self.api_uid,
        };
        if spec.timeout.is_zero() {
            return Err(usage("--timeout 0 leaves no time for any answer: give a longer one"));
        }
        if let Some(dialect) = spec.dialect() {
            has_contexts(&spec, dialect)?;
        }
        if matches!(spec.endpoint, Endpoint::Embedded(_)) && self.api_key_file.is_some() {
            return Err(usage("--embedded has a key of its own: leave --api-key-file away"));
        }
        Ok(spec)
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        match (&self.embedded, &self.api_url) {
            (Some(_), Some(_)) => Err(usage(
                "--embedded and --api-url name two vaults: give one of them (--embedded ignores WORKOS_API_URL)",
            )),
            (Some(dir), None) => {
                let dir = match dir {
                    Some(dir) => dir.clone(),
                    None => default_dir()?,
                };
                Ok(Endpoint::Embedded(absolute(&dir)?))
            }
            (None, Some(url)) => Ok(Endpoint::Url(clean_url(url, "--api-url")?)),
            (None, None) => match env("WORKOS_API_URL") {
                Some(url) => Ok(Endpoint::Url(clean_url(&url, "WORKOS_API_URL")?)),
                None => Ok(Endpoint::Url(DEFAULT_URL.to_owned())),
            },
        }
    }

    fn find_key(&self) -> Result<(SecretString, Option<PathBuf>), Failure> {
        let file = match &self.api_key_file {
            Some(path) => Some(absolute(path)?),
            None => credential(),
        };
        if let Some(path) = file {
            return Ok((key_file::read(&path, self.also)?, Some(path)));
        }
        match hardening::take_env("WORKOS_API_KEY") {
            Some(text) => api_key::clean_key(text.expose().to_owned())
                .map(|secret| (secret, None))
                .map_err(|e| Failure::new(Exit::Key, format!("WORKOS_API_KEY: {e}"))),
            None => Err(Failure::new(Exit::Key, NO_KEY)),
        }
    }
}

/// Refuses `--key-context` where it would be ignored.
fn has_contexts(spec: &ConnectSpec, dialect: Dialect) -> Result<(), Failure> {
    if spec.key_context.is_empty() || dialect == Dialect::Kv {
        return Ok(());
    }
    Err(usage(match (&spec.endpoint, spec.api) {
        (Endpoint::Embedded(_), Api::Auto) => "--key-context is for the kv API: give --api kv with it",
        _ => "--key-context: the object API, which this vault speaks, knows no key contexts: leave it away",
    }))
}

/// A key's problem with the file it is in; some say it themselves.
fn bad_key(path: &Path, e: api_key::KeyError) -> Failure {
    let (mut exit, mut next) = (Exit::Key, "");
    if let api_key::KeyError::Unreadable { source, .. } = &e {
        match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => {
                (exit, next) =
                    (Exit::Failed, "; the limit of this process or machine is reached, see ulimit -a");
            }
            Some(libc::ENOENT) => next = "; put the key there, readable by you alone, or name its file",
            _ => next = "; it must be a file that only you can read",
        }
    }
    let sentence = match &e {
        api_key::KeyError::Empty | api_key::KeyError::Malformed => format!("{}: {e}", path.shown()),
        api_key::KeyError::Unreadable { .. }
        | api_key::KeyError::Exposed { .. }
        | api_key::KeyError::NotAFile(_) => e.to_string(),
    };
    Failure::new(exit, sentence + next)
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

/// An environment variable that is set to something.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The key that systemd's LoadCredential handed over, if it did.
pub fn credential() -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join("workos-api-key");
    // A unit that is also for vaults without a key hands over an empty one.
    files::metadata(&path, None).is_ok_and(|meta| meta.len() > 1).then_some(path)
}

fn default_dir() -> Result<PathBuf, Failure> {
    let absolute_dir = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    // StateDirectory= of a unit; several are separated by colons.
    let of_unit = || {
        let dirs = std::env::var("STATE_DIRECTORY").ok()?;
        dirs.split(':').next().map(PathBuf::from).filter(|dir| dir.is_absolute())
    };
    of_unit()
        .or_else(|| absolute_dir("XDG_DATA_HOME").map(|data| data.join("vaultfs")))
        .or_else(|| values::home().map(|home| home.join(".local/share/vaultfs")))
        .or_else(|| nix::unistd::geteuid().is_root().then(|| PathBuf::from(SYSTEM_VAULT)))
        .ok_or_else(|| usage("--embedded needs a directory here, because HOME is not set: --embedded=DIR"))
}

/// The other processes of a mount have another working directory, and get paths as JSON.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path).map_err(|e| usage(format!("{}: {e}", path.shown())))?;
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(usage(format!("{}: only UTF-8 paths can be used here", path.shown()))),
    }
}

/// `--prefix a/` and `--prefix a` are the same; an empty one is none.
fn clean_prefix(prefix: &str) -> Result<Option<String>, Failure> {
    let clean = prefix.trim_end_matches('/');
    if clean.is_empty() && !prefix.is_empty() {
        return Err(usage(format!(
            "--prefix {prefix}: names do not start with a slash; for all names leave --prefix away, for those below \
             a/ give --prefix a"
        )));
    }
    // There may be such names, so it is no mistake for certain.
    if clean.starts_with('/') {
        stdio::say(format_args!(
            "hint: --prefix {prefix} means names that start with a slash; for those below {0}/ give --prefix {0}",
            clean.trim_start_matches('/')
        ));
    }
    Ok((!clean.is_empty()).then(|| clean.to_owned()))
}

pub(in crate::cli) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

fn clean_url(text: &str, origin: &str) -> Result<String, Failure> {
    client::check_url(text).map_err(|why| usage(format!("{origin}: {why} (example: {DEFAULT_URL})")))
}

#[cfg(test)]
mod tests;
