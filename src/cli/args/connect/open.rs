//! Connects to the vault that a [`ConnectSpec`] names: starts or joins the embedded one, asks which
//! dialect answers.

use std::path::Path;
use std::sync::Arc;

use super::{ApiKeyInput, ConnectSpec, Connected, Endpoint, NO_KEY, bad_key, has_contexts, validate};
use crate::cli::exit::{Exit, Failure};
use crate::clock::Clock;
use crate::display::Shown;
use crate::server::error::ServeError;
use crate::server::instance::data_dir::has_vault;
use crate::server::instance::embedded::Embedded;
use crate::server::instance::serve::ServeOptions;
use crate::sys::stdio;
use crate::vault::client::api_key::ApiKey;
use crate::vault::client::data_keys::KeyService;
use crate::vault::client::{Connector, HttpConfig, Target, api_key};
use crate::vault::lazy::Start;
use crate::vault::prefix::PrefixVault;
use crate::vault::{Call, DynVault, Page, client, lazy};

/// What there is before the vault is asked anything.
struct Prepared {
    config: HttpConfig,
    key: Arc<ApiKey>,
    embedded: Option<Embedded>,
}

/// Connects to the vault that `spec` names, and makes sure that it is one and takes the key;
/// `start` says what to do while it does not answer. A takeover asks nothing.
pub async fn connect(
    spec: &ConnectSpec,
    key: ApiKeyInput,
    clock: Arc<dyn Clock>,
    start: Start,
) -> Result<Connected, Failure> {
    let connected = open(spec, key, clock, async |connector| match spec.takes_over {
        true => Ok((lazy::take_over(connector), None)),
        false => lazy::start(connector, start, spec.timeout).await,
    });
    let connected = connected.await?;
    // A mount that goes on without a vault has said yes to what it finds later: there the log says
    // it.
    if start != Start::Lazy {
        has_contexts(spec, connected.vault.capabilities().dialect)?;
    }
    Ok(connected)
}

/// Reaches the vault and has it opened, `--prefix` applied.
async fn open(
    spec: &ConnectSpec,
    key: ApiKeyInput,
    clock: Arc<dyn Clock>,
    how: impl AsyncFnOnce(Connector) -> crate::vault::Result<(DynVault, Option<Page>)>,
) -> Result<Connected, Failure> {
    let Prepared { config, key, embedded } = prepare(spec, key, clock).await?;
    let tls = config.tls.clone();
    let opened = async { how(Connector::new(config, spec.dialect())?).await };
    let ((vault, first_page), embedded) = keep(opened.await, embedded).await?;
    let (vault, first_page) = match &spec.prefix {
        None => (vault, first_page),
        Some(prefix) => {
            let part = PrefixVault::new(vault, prefix);
            let page = first_page.map(|page| part.page(page));
            (Arc::new(part) as DynVault, page)
        }
    };
    Ok(Connected { vault, first_page, embedded, key, tls })
}

/// Looks at the service that `spec` names, for `vaultfs doctor`.
pub async fn survey(
    spec: &ConnectSpec,
    key: ApiKeyInput,
    clock: Arc<dyn Clock>,
) -> Result<client::Survey, Failure> {
    let Prepared { config, .. } = prepare(spec, key, clock).await?;
    let call = Call::foreground(config.clock.now() + spec.timeout);
    Ok(client::survey(config, &call, spec.dialect()).await?)
}

/// Connects to the key endpoints of the vault that `spec` names. The embedded vault is to be shut
/// down last.
pub async fn connect_keys(
    spec: &ConnectSpec,
    key: ApiKeyInput,
    clock: Arc<dyn Clock>,
) -> Result<(KeyService, Option<Embedded>), Failure> {
    let Prepared { config, embedded, .. } = prepare(spec, key, clock).await?;
    let call = Call::foreground(config.clock.now() + spec.timeout);
    let (keys, embedded) = keep(KeyService::open(config, &call, spec.dialect()).await, embedded).await?;
    has_contexts(spec, keys.dialect())?;
    Ok((keys, embedded))
}

/// Lets the embedded vault go if there is nothing to do with it.
async fn keep<T>(
    opened: crate::vault::Result<T>,
    embedded: Option<Embedded>,
) -> Result<(T, Option<Embedded>), Failure> {
    match (opened, embedded) {
        (Ok(opened), embedded) => Ok((opened, embedded)),
        (Err(e), None) => Err(e.into()),
        (Err(e), Some(embedded)) => {
            embedded.shutdown().await;
            Err(e.into())
        }
    }
}

/// Starts or joins the embedded vault, if it is that, and makes ready to ask.
async fn prepare(spec: &ConnectSpec, key: ApiKeyInput, clock: Arc<dyn Clock>) -> Result<Prepared, Failure> {
    let tls = Arc::new(validate::tls_files(spec)?);
    let max_size = usize::try_from(spec.max_size).unwrap_or(usize::MAX);
    let (target, embedded) = match &spec.endpoint {
        Endpoint::Url(url) => (Target::of_url(url), None),
        Endpoint::Embedded(dir) => {
            let options = ServeOptions { max_value: max_size, make: spec.makes, ..ServeOptions::default() };
            let embedded = Embedded::start_with(dir, options).await.map_err(not_served)?;
            (Target::Socket(embedded.socket().to_owned()), Some(embedded))
        }
    };
    let listeners = embedded.is_none().then(|| spec.listeners());
    let key = match usable_key(spec, key, embedded.as_ref()) {
        Ok(key) => key,
        Err(e) => {
            if let Some(embedded) = embedded {
                embedded.shutdown().await;
            }
            return Err(e);
        }
    };
    let config = HttpConfig {
        target,
        tls,
        key: key.clone(),
        clock,
        max_size,
        policy: client::retry::Policy::default(),
        listeners,
        key_context: spec.key_context.clone(),
    };
    Ok(Prepared { config, key, embedded })
}

/// The key that was handed over, or that of the embedded vault.
fn usable_key(
    spec: &ConnectSpec,
    key: ApiKeyInput,
    embedded: Option<&Embedded>,
) -> Result<Arc<ApiKey>, Failure> {
    let (secret, file) = match (embedded, key.secret) {
        (Some(embedded), _) => {
            let path = embedded.key_file();
            (api_key::read_key_file(path, spec.also).map_err(|e| bad_key(path, e))?, Some(path.to_owned()))
        }
        (None, Some(secret)) => (secret, spec.key_file.clone()),
        (None, None) => return Err(Failure::new(Exit::Key, NO_KEY)),
    };
    Ok(Arc::new(ApiKey::new(secret, file, spec.also)))
}

impl ConnectSpec {
    /// The directory of the embedded vault, if the next use makes it.
    pub fn new_vault(&self) -> Option<&Path> {
        match &self.endpoint {
            Endpoint::Embedded(dir) => (!has_vault(dir)).then_some(dir),
            Endpoint::Url(_) => None,
        }
    }
}

/// Says that a vault was made, and what is to be kept.
pub fn say_made(dir: &Path) {
    let key = dir.join("master-key");
    let keep = if key.exists() { format!(": back up {}", key.shown()) } else { String::new() };
    stdio::say(format_args!("made a new vault in {}{keep}", dir.shown()));
}

fn not_served(e: ServeError) -> Failure {
    let exit = match e {
        ServeError::InstanceSilent(_) => Exit::Unreachable,
        ServeError::ApiKey { .. } => Exit::Key,
        ServeError::NoVault(_) => return Failure::new(Exit::NotFound, e.to_string()),
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("the embedded vault cannot be used: {e}"))
}
