//! What we know of the vault without asking, and how we ask only once.
//!
//! 1. **Freshness.** Every belief carries the moment as of which it is true. It is *fresh* for the refresh
//!    time; after that it is asked for again; up to `max_stale` it may stand in while the vault is down.
//! 2. **One request for all who wait.** Reads of one name share a flight, searches for one prefix too, and there
//!    is one listing at a time (`flights`, `search`).
//! 3. **Refusals are answers.** 401, 403 and 404 are never papered over with old values; a revocation, wherever it is
//!    heard, drops all of them (`watch`).
//! 4. **Our own changes win** over answers that were asked for earlier (see `index`), and over those of a vault whose
//!    reads lag behind its writes (see `lag`).
//!
//! The one lock here is a leaf: nothing else is locked and nothing awaited while it is held.

mod changes;
mod deletion_scan;
mod idle;
mod index;
mod lag;
mod refresher;
mod revocation;
mod search;
mod single_flight;
mod table;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::{
    Call, Content, DynVault, Error, ErrorKind, Meta, Object, ObjectId, ObjectName, Page, Priority, Result,
    VersionInfo, VersionTag,
};
use crate::clock::Clock;
use crate::vault::attribution::Payer;
pub use crate::vault::cache::refresher::RefreshStatus;
pub use crate::vault::cache::revocation::RevocationListener;
use crate::vault::cache::single_flight::Flight;
pub use crate::vault::cache::single_flight::NameStream;
pub use changes::{Change, ChangeKind};
use index::Index;
pub use index::{Knowledge, Known, PrefixState};
use lag::Lag;
pub use table::Usage;

/// Histories kept; each is a few dozen bytes a version.
const HISTORIES: usize = 1024;

/// The times and sizes of the cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// For how long an answer is fresh.
    pub refresh: Duration,
    /// How old an answer may be while the vault is down.
    pub max_stale: Duration,
    /// How long one read or one page may take, retries included.
    pub timeout: Duration,
    /// Bytes of values kept.
    pub capacity: u64,
}

/// A value, and how far it may be trusted.
#[derive(Debug, Clone)]
pub struct Found {
    /// The object.
    pub object: Arc<Object>,
    /// For how long it stays fresh.
    pub ttl: Duration,
    /// Why it is past its time and stands in for an answer the vault could not give.
    pub stale: Option<ErrorKind>,
}

/// What is known of a name without asking the vault.
#[derive(Debug, Clone)]
pub enum Peek {
    /// It exists and the fresh value is here.
    Value(Found),
    /// It exists, but a value has to be fetched.
    Exists,
    /// It freshly does not exist; for how long that holds.
    Absent(Duration),
    /// It was not there in the last complete listing, which is no longer fresh.
    AbsentBefore,
    /// Nothing is known.
    Unknown,
}

/// A read that is out, as what it was sent, and who pays for it.
type Read = (Flight<Option<Arc<Object>>>, Priority, Payer);

struct State {
    index: Index,
    lag: Lag,
    reads: HashMap<ObjectName, Read>,
    /// The listing that is out, when it was begun, and who pays for it.
    listing: Option<(Flight<()>, Instant, Payer)>,
    /// Who wants to hear of its names, by prefix.
    streams: Vec<(String, mpsc::UnboundedSender<Vec<ObjectName>>)>,
    searches: HashMap<String, (Flight<()>, Payer)>,
    /// Whether the key may list names.
    listing_right: crate::vault::cache::revocation::ListingRight,
    /// Names that the vault, or what is before it, refused to read.
    refused: lru::LruCache<ObjectName, (Instant, Error)>,
    /// The question that is out whether the key is still taken.
    doubt: Option<Flight<()>>,
    /// `None` once the vault has answered.
    outage: Option<Outage>,
    histories: lru::LruCache<(ObjectId, VersionTag, SystemTime), Arc<Vec<VersionInfo>>>,
    /// What was asked for before that moment is not kept.
    revoked: Option<Instant>,
    /// Changes made elsewhere that nobody has taken yet; `None` while nobody wants them.
    changes: Option<Vec<Change>>,
}

/// The vault does not answer.
struct Outage {
    /// Since when.
    since: Instant,
    /// The last time it failed to.
    last: Instant,
    /// Why, that last time.
    error: Error,
}

/// The cache in front of a vault.
pub struct Cache {
    vault: DynVault,
    clock: Arc<dyn Clock>,
    config: CacheConfig,
    state: Mutex<State>,
    /// A leaf as well.
    refresh: Mutex<crate::vault::cache::refresher::Refresh>,
    /// The refresher may have to get up.
    woken: tokio::sync::Notify,
    /// It has slept, and not ticked since.
    was_idle: AtomicBool,
    /// A value past its time was served since the vault last answered.
    served_stale: AtomicBool,
    /// Names or values were taken in since the last revocation.
    shown: AtomicBool,
    revocation_listener: OnceLock<Weak<dyn RevocationListener>>,
}

/// What `status` says of the cache.
#[derive(Debug, Clone)]
pub struct CacheStatus {
    /// Names known to exist.
    pub names: usize,
    /// Seconds since the last complete listing was begun.
    pub listed_s: Option<u64>,
    /// Values held.
    pub values: usize,
    /// Bytes they take, overhead included.
    pub bytes: u64,
    /// Bytes allowed.
    pub capacity: u64,
    /// Memory mapped for values of up to 4 KiB, and how much of it cannot be swapped out.
    pub arena: Usage,
    /// Why the vault is not asked or does not answer, and for how many seconds that has been known. Starts with
    /// [`RATE_LIMITED`] if that is all.
    pub outage: Option<(String, u64)>,
    /// Old values are being served because of it.
    pub serving_stale: bool,
    /// Its reads lag behind its writes, as an answer showed so many seconds ago.
    pub lagged_s: Option<u64>,
    /// The key may not list names.
    pub unlisted: bool,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache in front of `vault`.
    pub fn new(vault: DynVault, clock: Arc<dyn Clock>, config: CacheConfig) -> Arc<Self> {
        let histories = std::num::NonZeroUsize::new(HISTORIES).expect("the constant is not zero");
        let now = clock.now();
        Arc::new_cyclic(|cache| Self {
            vault: crate::vault::cache::revocation::watched(vault, cache),
            clock,
            config,
            state: Mutex::new(State {
                index: Index::new(now, config.capacity),
                lag: Lag::default(),
                reads: HashMap::new(),
                listing: None,
                streams: Vec::new(),
                searches: HashMap::new(),
                listing_right: crate::vault::cache::revocation::ListingRight::default(),
                refused: lru::LruCache::new(histories),
                doubt: None,
                outage: None,
                histories: lru::LruCache::new(histories),
                revoked: None,
                changes: None,
            }),
            refresh: Mutex::default(),
            woken: tokio::sync::Notify::new(),
            was_idle: AtomicBool::new(false),
            served_stale: AtomicBool::new(false),
            shown: AtomicBool::new(false),
            revocation_listener: OnceLock::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The vault behind the cache, for what is not cached: changes.
    pub fn vault(&self) -> &DynVault {
        &self.vault
    }

    /// Takes in the page that the start-up probe read anyway; `asked` is when it was asked for.
    pub fn seed(&self, page: &Page, asked: Instant) {
        let mut state = self.state();
        state.listing_right = crate::vault::cache::revocation::ListingRight::Given;
        self.shown.store(true, Ordering::Release);
        state.ingest(&page.items, asked);
        if page.next.is_none() {
            state.end_listing(asked, 1);
        }
    }

    /// What is known of `name` without asking.
    pub fn peek(&self, name: &ObjectName) -> Peek {
        let now = self.clock.now();
        let mut state = self.state();
        match state.index.knowledge(name) {
            Knowledge::Exists(known) => match self.value_of(&mut state, &known) {
                Some(object) if self.ttl(known.as_of, now) > Duration::ZERO => {
                    Peek::Value(Found { object, ttl: self.ttl(known.as_of, now), stale: None })
                }
                _ => Peek::Exists,
            },
            Knowledge::Absent(at) => match self.ttl(at, now) {
                Duration::ZERO => Peek::AbsentBefore,
                ttl => Peek::Absent(ttl),
            },
            Knowledge::Unknown => Peek::Unknown,
        }
    }

    /// Whether some name starts with `prefix`; `No` only while that is fresh.
    pub fn prefix_state(&self, prefix: &str) -> PrefixState {
        let now = self.clock.now();
        match self.state().index.prefix_state(prefix) {
            PrefixState::No(at) if self.ttl(at, now) == Duration::ZERO => PrefixState::Unknown,
            implied => implied,
        }
    }

    /// For how long it stays freshly known that no name starts with `prefix`.
    pub fn not_implied_for(&self, prefix: &str) -> Duration {
        let now = self.clock.now();
        match self.state().index.prefix_state(prefix) {
            PrefixState::No(at) => self.ttl(at, now),
            PrefixState::Yes | PrefixState::Unknown => Duration::ZERO,
        }
    }

    /// Whether one page holds all names, so that listing costs no more than asking for one name.
    pub fn listing_is_one_page(&self) -> bool {
        self.state().index.complete().is_some_and(|(_, pages)| pages <= 1)
    }

    /// Whether all names are freshly known.
    pub fn is_complete(&self) -> bool {
        self.complete_for() > Duration::ZERO
    }

    /// For how long all names stay freshly known.
    pub fn complete_for(&self) -> Duration {
        let now = self.clock.now();
        self.state().index.complete().map_or(Duration::ZERO, |(at, _)| self.ttl(at, now))
    }

    /// Moves on whenever the set of names changes.
    pub fn generation(&self) -> u64 {
        self.state().index.generation()
    }

    /// Calls `visit` with each name under `prefix`, in order; it answers where to go on: `None` for the next
    /// name, or the first string not to skip.
    pub fn visit_names(&self, prefix: &str, mut visit: impl FnMut(&ObjectName) -> Option<String>) {
        let state = self.state();
        let mut start = prefix.to_owned();
        loop {
            let mut jump = None;
            for name in state.index.names_from(&start) {
                if !name.as_str().starts_with(prefix) {
                    return;
                }
                jump = visit(&name);
                if jump.is_some() {
                    break;
                }
            }
            match jump {
                Some(next) if next > start => start = next,
                _ => return,
            }
        }
    }

    /// Reads `name`, from memory while that is fresh; `None` if there is no such object.
    pub async fn read(self: &Arc<Self>, call: &Call, name: &ObjectName) -> Result<Option<Found>> {
        match self.peek(name) {
            Peek::Value(found) => Ok(Some(found)),
            Peek::Absent(_) => Ok(None),
            Peek::Exists | Peek::AbsentBefore | Peek::Unknown => self.fetch(call, name).await,
        }
    }

    /// The bytes of one version: from memory, or asked for by id while it is still the current one, or as an
    /// old version. [`ErrorKind::NotFound`] where they cannot be had again.
    pub async fn value(
        self: &Arc<Self>,
        call: &Call,
        id: &ObjectId,
        version: &VersionTag,
    ) -> Result<Arc<Object>> {
        if let Some(object) = self.value_in_memory(id, version) {
            return Ok(object);
        }
        let asked = self.clock.now();
        let current = self.vault.get(call, id).await?;
        let current = self.ingest_object(current, asked);
        if current.meta.version == *version {
            return Ok(current);
        }
        if !self.vault.capabilities().old_values {
            return Err(Error::new(ErrorKind::NotFound, "the vault gives no values of old versions"));
        }
        let history = self.history(call, &current.meta).await?;
        match history.iter().find(|v| v.tag == *version) {
            Some(info) => self.old_value(call, id, info).await,
            None => Err(Error::new(ErrorKind::NotFound, "the vault no longer has this version")),
        }
    }

    /// The bytes of one version, if they are in memory.
    pub fn value_in_memory(&self, id: &ObjectId, version: &VersionTag) -> Option<Arc<Object>> {
        self.state().index.value(id, version)
    }

    /// The history of an object that is now `current`; asked for once a version.
    pub async fn history(&self, call: &Call, current: &Meta) -> Result<Arc<Vec<VersionInfo>>> {
        let id = &current.id;
        let key = (id.clone(), current.version.clone(), current.updated_at);
        if let Some(history) = self.state().histories.get(&key).cloned() {
            return Ok(history);
        }
        let history = Arc::new(self.vault.versions(call, id).await?);
        if history.iter().any(|v| v.current && v.tag == current.version) {
            self.state().histories.put(key, history.clone());
        }
        Ok(history)
    }

    /// The value of an old version, kept like any other: it never changes.
    pub async fn old_value(&self, call: &Call, id: &ObjectId, info: &VersionInfo) -> Result<Arc<Object>> {
        if let Some(object) = self.value_in_memory(id, &info.tag)
            && object.meta.updated_at == info.created_at
        {
            return Ok(object);
        }
        let asked = self.clock.now();
        let object = Arc::new(self.vault.version(call, id, info).await?);
        let mut state = self.state();
        if state.revoked.is_none_or(|at| at < asked) {
            self.shown.store(true, Ordering::Release);
            state.index.put_value(&object);
        }
        Ok(object)
    }

    /// We stored this ourselves; it is the current version as of now.
    pub fn stored(&self, meta: Meta, content: Content) -> Arc<Object> {
        let (object, now) = (Arc::new(Object { meta, content }), self.clock.now());
        self.shown.store(true, Ordering::Release);
        let mut state = self.state();
        state.refused.pop(&object.meta.name);
        state.index.found(&object.meta, now);
        state.index.put_value(&object);
        object
    }

    /// We deleted this ourselves, or know otherwise that it is gone as of now.
    pub fn deleted(&self, name: &ObjectName) {
        let now = self.clock.now();
        let mut state = self.state();
        if let Knowledge::Exists(known) = state.index.knowledge(name) {
            state.lag.deleted_name(name, &known.id);
        }
        state.lag.removed(name, now);
        state.index.missing(name, now);
    }

    /// We deleted this object, which may not be the one that has the name by now.
    pub fn deleted_object(&self, name: &ObjectName, id: &ObjectId) {
        let now = self.clock.now();
        let mut state = self.state();
        state.lag.removed(name, now);
        if matches!(state.index.knowledge(name), Knowledge::Exists(known) if known.id == *id) {
            state.lag.deleted_name(name, id);
            state.index.missing(name, now);
        }
    }

    /// The next read of anything asks the vault.
    pub fn expire(&self) {
        let beyond = self.config.refresh;
        self.state().index.expire(beyond);
    }

    /// What `status` says.
    pub fn status(&self) -> CacheStatus {
        let now = self.clock.now();
        let state = self.state();
        let (values, bytes) = state.index.usage();
        CacheStatus {
            names: state.index.len(),
            listed_s: state.index.complete().map(|(at, _)| now.saturating_duration_since(at).as_secs()),
            values,
            bytes,
            capacity: self.config.capacity,
            arena: state.index.arena(),
            outage: state
                .outage
                .as_ref()
                .map(|o| (why(&o.error), now.saturating_duration_since(o.since).as_secs())),
            serving_stale: self.served_stale.load(Ordering::Relaxed),
            lagged_s: state.lag.last_seen(now).map(|seen| now.saturating_duration_since(seen).as_secs()),
            unlisted: state.listing_right.is_refused(),
        }
    }

    fn ttl(&self, as_of: Instant, now: Instant) -> Duration {
        self.config.refresh.saturating_sub(now.saturating_duration_since(as_of))
    }

    fn value_of(&self, state: &mut State, known: &Known) -> Option<Arc<Object>> {
        let version = known.version.as_ref()?;
        let object = state.index.value(&known.id, version)?;
        // A vault that was restored from a backup gives a version's number to other bytes.
        known.updated_at.is_none_or(|at| at == object.meta.updated_at).then_some(object)
    }

    /// Takes in an answer that was asked for at `asked`.
    pub fn ingest_object(&self, object: Object, asked: Instant) -> Arc<Object> {
        let object = Arc::new(object);
        let mut state = self.state();
        if state.revoked.is_some_and(|at| asked <= at) {
            return object;
        }
        self.shown.store(true, Ordering::Release);
        state.take_in_read(&object.meta, asked);
        state.index.put_value(&object);
        object
    }

    /// Remembers whether the vault answers at all.
    fn note<T>(&self, answer: &Result<T>) {
        let mut state = self.state();
        match answer {
            // Of one user: nothing was asked.
            Err(e) if e.kind == ErrorKind::ShareSpent => {}
            Err(e) if is_outage(e.kind) => {
                let now = self.clock.now();
                let since = state.outage.as_ref().map_or(now, |outage| outage.since);
                state.outage = Some(Outage { since, last: now, error: e.clone() });
            }
            // Heard already (`watch`).
            Err(e) if e.kind == ErrorKind::Unauthorized => {}
            Ok(_) | Err(_) => {
                state.outage = None;
                self.served_stale.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// How an outage begins that is none: the vault answers, but may not be asked now.
pub const RATE_LIMITED: &str = "rate limit used up";

fn why(e: &Error) -> String {
    match e.kind {
        ErrorKind::RateLimited => format!("{RATE_LIMITED}: {e}"),
        _ => e.to_string(),
    }
}

/// Whether a name that was refused so would be refused again at once.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Invalid
            | ErrorKind::Forbidden
            | ErrorKind::TooLarge
            | ErrorKind::OtherObject
            | ErrorKind::BadAnswer
    )
}

/// Whether an older answer may stand in for this failure.
pub fn is_outage(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::RateLimited
        | ErrorKind::ShareSpent
        | ErrorKind::Deadline
        | ErrorKind::Unreachable
        | ErrorKind::Server
        | ErrorKind::BadAnswer => true,
        ErrorKind::Unauthorized
        | ErrorKind::Forbidden
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::NameNotFree
        | ErrorKind::VersionMismatch
        | ErrorKind::MadeAndDeleted
        | ErrorKind::Invalid
        | ErrorKind::TooLarge
        | ErrorKind::NameTooLong
        | ErrorKind::Full
        | ErrorKind::OtherObject
        | ErrorKind::Unsupported => false,
    }
}
