//! A vault behind HTTP: TLS to a service, plain to loopback, a Unix socket to the embedded one.
//!
//! [`open`] asks which dialect answers and returns a vault that speaks it. A dialect is one file
//! (`object`, `kv`) that turns operations into requests; [`transport`] does for each request what
//! does not depend on the dialect: key, budget, deadline, retries, limits, errors. Redirects are
//! never followed, since they would carry the key elsewhere; loopback and sockets are never reached
//! through a proxy.

mod advice;
mod announced;
pub mod api_key;
mod attempt_error;
pub mod budget;
pub mod checked;
pub mod data_keys;
pub mod kv;
mod listener;
pub mod object;
mod rate_limit_headers;
mod request;
mod restart;
pub mod retry;
mod status;
pub mod tls;
pub mod transport;
mod wire;

#[cfg(test)]
mod fuzz_tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::display::Shown;
use crate::sys::files::check_way;
use crate::vault::client::api_key::ApiKey;
use crate::vault::client::budget::{ASSUMED_LIMIT, Budget};
use crate::vault::client::checked::CheckedVault;
use crate::vault::client::kv::KvVault;
use crate::vault::client::listener::{CheckLayer, Listener};
use crate::vault::client::object::ObjectVault;
use crate::vault::client::retry::Policy;
use crate::vault::client::tls::{Connections, TlsFiles};
use crate::vault::client::transport::{Answer, Parts, Request, Transport};
use crate::vault::{
    Call, Capabilities, Content, Dialect, DynVault, Error, ErrorKind, ListQuery, ObjectName, Page, Result,
    VaultStatus,
};

/// A connection that was idle for longer is not used again: servers and middleboxes close them
/// silently.
const IDLE: Duration = Duration::from_secs(50);

/// Connections that are kept while idle: each holds on to the room that its largest answer took,
/// for a minute or two.
const IDLE_CONNECTIONS: usize = 8;

/// Names and ids in sentences are cut after so many characters.
const MAX_QUOTED: usize = 80;

/// A history longer than this many pages is not followed to its end: cursors may go in circles.
const MAX_PAGES: usize = 1000;

/// What the address of a Unix socket begins with.
const SOCKET_SCHEME: &str = "unix:";

/// Where a vault listens.
#[derive(Debug, Clone)]
pub enum Target {
    /// A service's address, without a trailing slash.
    Url(String),
    /// A Unix socket.
    Socket(PathBuf),
}

impl Target {
    /// Of an address that [`check_url`] has taken.
    pub fn of_url(url: &str) -> Self {
        match url.strip_prefix(SOCKET_SCHEME) {
            Some(path) => Self::Socket(path.into()),
            None => Self::Url(url.to_owned()),
        }
    }
}

/// How to reach a vault.
#[derive(Debug)]
pub struct HttpConfig {
    /// Where it listens.
    pub target: Target,
    /// What connections are secured with.
    pub tls: Arc<TlsFiles>,
    /// The key.
    pub key: Arc<ApiKey>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Largest value in bytes.
    pub max_size: usize,
    /// When to try again.
    pub policy: Policy,
    /// Users with listeners on this machine that may get the key; all users if `None`: the place is
    /// out of reach for others.
    pub listeners: Option<Vec<u32>>,
    /// The key context of new objects, kv dialect only.
    pub key_context: BTreeMap<String, String>,
}

impl HttpConfig {
    /// The transport of such a vault. Connects to nothing yet.
    pub fn transport(self) -> Result<Transport> {
        // The vault in this process has no limit of its own.
        let limit = self.listeners.is_some().then_some(ASSUMED_LIMIT);
        let connections = Connections::new(self.target.clone(), self.tls, self.listeners)?;
        let (base, endpoint, limit) = match self.target {
            Target::Url(url) => (url.clone(), url, Some(ASSUMED_LIMIT)),
            Target::Socket(path) => ("http://localhost".to_owned(), path.shown().to_string(), limit),
        };
        let proxy = proxy_before(&base);
        Ok(Transport::new(Parts {
            connections,
            proxy,
            base,
            endpoint,
            key: self.key,
            budget: Budget::new(limit, self.clock.clone()),
            policy: self.policy,
            clock: self.clock,
            max_body: self.max_size.saturating_mul(8).saturating_add(64 * 1024),
        }))
    }
}

/// A client for `target` that trusts these certificates.
fn client(
    target: &Target,
    more_roots: Option<&[u8]>,
    listeners: Option<&Vec<u32>>,
) -> Result<reqwest::Client> {
    let broken =
        |what: &str, e: &dyn std::fmt::Display| Error::new(ErrorKind::Invalid, format!("{what}: {e}"));
    // The first of several vaults in a process has installed it; the result says nothing more.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("vaultfs/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS);
    let (direct, tls) = match target {
        Target::Socket(path) => {
            check_way(path).map_err(|e| broken(&path.shown().to_string(), &e))?;
            builder = builder.unix_socket(path.as_path());
            (true, false)
        }
        Target::Url(url) => {
            let host = reqwest::Url::parse(url).ok().and_then(|u| u.host_str().map(is_loopback));
            (host == Some(true), url.starts_with("https:"))
        }
    };
    if direct {
        builder = builder.no_proxy();
        let listener = listeners.cloned().and_then(|trusted| match target {
            Target::Socket(path) => Some(Listener::of_socket(path.clone(), trusted)),
            Target::Url(url) => Listener::of_url(url, trusted),
        });
        if let Some(listener) = listener {
            builder = builder.connector_layer(CheckLayer(Arc::new(listener)));
        }
    }
    if !tls {
        // Reading the system's certificates takes time and memory that nothing here needs.
        builder = builder.tls_certs_only([]);
    } else if let Some(pem) = more_roots {
        builder = builder.tls_certs_merge(tls::certificates(pem)?);
    }
    builder.build().map_err(|e| broken("TLS cannot be set up", &e.without_url()))
}

/// The proxy that the environment has requests to `base` go through, as it may be shown: without
/// user and password.
fn proxy_before(base: &str) -> Option<String> {
    let url = reqwest::Url::parse(base).ok()?;
    if is_loopback(url.host_str()?) {
        return None;
    }
    let found = hyper_util::client::proxy::matcher::Matcher::from_env().intercept(&base.parse().ok()?)?;
    let (uri, authority) = (found.uri(), found.uri().authority()?.as_str());
    let place = authority.rsplit('@').next().unwrap_or_default();
    Some(format!("{}://{place}", uri.scheme_str().unwrap_or("http")))
}

/// Whether a URL's host is this machine: plain http is taken, and no proxy is asked.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// A service's address as it is used, without a trailing slash; or why it cannot be used.
pub fn check_url(text: &str) -> Result<String, &'static str> {
    if let Some(path) = text.strip_prefix(SOCKET_SCHEME) {
        let is_path = path.starts_with('/') && path.len() > 1;
        return if is_path { Ok(text.to_owned()) } else { Err("unix: wants the absolute path of a socket") };
    }
    let url = reqwest::Url::parse(text).map_err(|_| "this is not a URL")?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("the URL names no host")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("no user or password belongs into the URL");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the URL must end before any ? or #");
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(host) => {}
        "http" => return Err("plain http would show key and values to the network, it is for loopback only"),
        _ => return Err("only https, http and unix can be used"),
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A vault that answered.
#[derive(Debug)]
pub struct Opened {
    /// The vault.
    pub vault: DynVault,
    /// The page that came with the question, of [`ListQuery::first`]; `None` for a key that may not
    /// list names.
    pub first_page: Option<Page>,
}

/// Everything that is needed to connect to a vault. Connects to nothing yet.
#[derive(Debug)]
pub struct Connector {
    transport: Arc<Transport>,
    max_size: usize,
    key_context: BTreeMap<String, String>,
    want: Option<Dialect>,
}

impl Connector {
    /// `want`: the dialect to speak, if it is not to be asked for.
    pub fn new(mut config: HttpConfig, want: Option<Dialect>) -> Result<Self> {
        let (max_size, key_context) = (config.max_size, std::mem::take(&mut config.key_context));
        Ok(Self { transport: Arc::new(config.transport()?), max_size, key_context, want })
    }

    /// Asks which dialect answers, and whether the key is taken. At most two requests. A key that
    /// may not list names may do all else.
    pub async fn open(&self, call: &Call) -> Result<Opened> {
        let transport = &self.transport;
        let query = ListQuery::first();
        let (dialect, request, answer) = probe(transport, call, self.want, &query).await?;
        let no_vault = |e: Error| match e.kind {
            ErrorKind::BadAnswer | ErrorKind::NotFound => no_vault(transport.endpoint(), &e.message),
            _ => e,
        };
        let first_page = match transport.check_status(answer, &request) {
            Err(e) if e.kind == ErrorKind::Forbidden => None,
            Err(e) => return Err(no_vault(e)),
            Ok(answer) => Some(match dialect {
                Dialect::Object => object::page(&answer, &request, &query).map_err(no_vault)?,
                Dialect::Kv => kv::page(&answer, &request, &query).map_err(no_vault)?,
            }),
        };
        Ok(Opened { vault: self.vault(dialect), first_page })
    }

    /// The vault, unasked, where it is said which dialect it speaks.
    pub fn known(&self) -> Option<DynVault> {
        self.want.map(|dialect| self.vault(dialect))
    }

    fn vault(&self, dialect: Dialect) -> DynVault {
        let spoken: DynVault = match dialect {
            Dialect::Object => {
                if !self.key_context.is_empty() {
                    tracing::warn!(
                        "the vault speaks the object API, which knows no key contexts: --key-context is ignored"
                    );
                }
                Arc::new(ObjectVault::new(self.transport.clone(), self.max_size))
            }
            Dialect::Kv => {
                let context = self.key_context.clone();
                Arc::new(KvVault::new(self.transport.clone(), self.max_size, context))
            }
        };
        Arc::new(CheckedVault::new(spoken))
    }

    /// The dialect that is to be spoken, if it is not asked for.
    pub fn dialect(&self) -> Option<Dialect> {
        self.want
    }

    /// Where the vault is and what was sent to it.
    pub fn status(&self) -> VaultStatus {
        self.transport.status()
    }

    /// The clock of deadlines.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        self.transport.clock()
    }
}

/// Asks which dialect answers, `want` if given, and whether the key is taken. At most two requests.
pub async fn open(config: HttpConfig, call: &Call, want: Option<Dialect>) -> Result<Opened> {
    Connector::new(config, want)?.open(call).await
}

/// What a look at a vault shows.
#[derive(Debug)]
pub struct Survey {
    /// The dialect that answered.
    pub dialect: Dialect,
    /// How long the answer took.
    pub took: Duration,
    /// Whether the key may list names.
    pub may_list: bool,
    /// What the answer says of the clock and the budget.
    pub status: VaultStatus,
}

/// Asks for the dialect and whether the key is accepted, and returns what else the answer has.
///
/// # Errors
/// As [`open`].
pub async fn survey(config: HttpConfig, call: &Call, want: Option<Dialect>) -> Result<Survey> {
    let clock = config.clock.clone();
    let transport = config.transport()?;
    let asked = clock.now();
    let (dialect, request, answer) = probe(&transport, call, want, &ListQuery::first()).await?;
    let took = clock.now().saturating_duration_since(asked);
    let may_list = match transport.check_status(answer, &request) {
        Ok(_) => true,
        Err(e) if e.kind == ErrorKind::Forbidden => false,
        Err(e) => return Err(e),
    };
    Ok(Survey { dialect, took, may_list, status: transport.status() })
}

/// The answer to a first page of the dialect that is spoken: `want`, or object, or kv where the
/// answer to that is 404. What it says is for the caller to judge.
async fn probe(
    transport: &Transport,
    call: &Call,
    want: Option<Dialect>,
    query: &ListQuery,
) -> Result<(Dialect, Request, Answer)> {
    if want != Some(Dialect::Kv) {
        let request = object::list_request(query);
        let answer = transport.send_with_retries(call, &request).await?;
        if answer.status != reqwest::StatusCode::NOT_FOUND || want.is_some() {
            return Ok((Dialect::Object, request, answer));
        }
    }
    let request = kv::list_request(query);
    let answer = transport.send_with_retries(call, &request).await?;
    Ok((Dialect::Kv, request, answer))
}

/// A text as one segment of a path; `None` for what URL libraries would fold away.
fn segment(text: &str) -> Option<String> {
    if matches!(text, "" | "." | "..") {
        return None;
    }
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    Some(encoded)
}

fn no_vault(endpoint: &str, why: &str) -> Error {
    let sentence = format!("not a vault at {endpoint} ({why}): check --api-url or WORKOS_API_URL");
    Error::new(ErrorKind::BadAnswer, sentence)
}

/// A name or id for a sentence: control characters escaped, cut if it is long.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

fn too_long(operation: &str) -> Error {
    Error::new(ErrorKind::NameTooLong, format!("{operation}: the name is longer than the vault takes"))
}

/// Refuses a creation that the vault would not take.
fn check_name(name: &ObjectName, capabilities: &Capabilities, operation: &str) -> Result<()> {
    if capabilities.max_name.allows(name.as_str()) { Ok(()) } else { Err(too_long(operation)) }
}

fn check_size(content: &Content, max: usize, operation: &str) -> Result<()> {
    if content.bytes.len() > max { Err(too_large(operation, max)) } else { Ok(()) }
}

fn too_large(operation: &str, max: usize) -> Error {
    let sentence = format!("{operation}: the value is larger than {max} bytes, see --max-size");
    Error::new(ErrorKind::TooLarge, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_sentences_are_escaped_and_cut() {
        assert_eq!(quoted("a\n\"b"), "\"a\\n\\\"b\"");
        let long = quoted(&"é".repeat(200));
        assert!(long.ends_with("é\"…") && long.chars().count() == 83, "{long}");
    }
}
