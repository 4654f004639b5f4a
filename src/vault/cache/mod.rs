//! A cache in front of the vault.
//!
//! 1. **Freshness.** Knowledge carries the moment as of which it is true. It is *fresh* for the
//!    refresh time; then it is *stale* and requested again; up to `max_stale` it is the fallback
//!    while the vault is down.
//! 2. **Single flight.** Reads of one name share a request, searches for one prefix too, and there
//!    is one listing at a time (`single_flight`, `search`). Requests by id (`value`, `history`,
//!    `old_value`) are not shared.
//! 3. **Refusals are answers.** 401, 403 and 404 are never hidden by old values; a revocation drops
//!    all of them (`revocation`).
//! 4. **Local changes win** over answers requested earlier (`index`), and over those of a vault
//!    with reads that lag behind its writes (`lag`).
//!
//! The lock is a leaf: nothing else is locked or awaited while it is held.

mod changes;
mod deletion_scan;
mod failure;
mod idle;
mod index;
mod lag;
mod refresher;
mod revocation;
mod search;
mod single_flight;
mod status;
mod table;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

use super::{
    Call, Content, DynVault, Error, ErrorKind, Meta, Object, ObjectId, ObjectName, Page, Priority, Result,
    VersionInfo, VersionTag,
};
use crate::clock::Clock;
use crate::vault::attribution::Payer;
pub use crate::vault::cache::failure::{RATE_LIMITED, is_outage};
pub use crate::vault::cache::refresher::RefreshStatus;
pub use crate::vault::cache::revocation::RevocationListener;
pub use crate::vault::cache::single_flight::NameStream;
use crate::vault::cache::single_flight::{Flight, ReadAnswer};
pub use crate::vault::cache::status::CacheStatus;
pub use changes::{Change, ChangeKind};
use index::Index;
pub use index::{Knowledge, Known, PrefixState};
pub use lag::LagMemory;
pub use table::Usage;

/// Histories in memory; each takes a few dozen bytes a version.
const HISTORIES: usize = 1024;

/// Times and sizes of the cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// How long an answer is fresh.
    pub refresh: Duration,
    /// How old an answer may be while the vault is down.
    pub max_stale: Duration,
    /// Timeout of one read or page, retries included.
    pub timeout: Duration,
    /// Bytes for values.
    pub capacity: u64,
}

/// A value, and how far it may be trusted.
#[derive(Debug, Clone)]
pub struct Found {
    /// The object.
    pub object: Arc<Object>,
    /// How long it stays fresh.
    pub ttl: Duration,
    /// Why it is stale and serves as the fallback.
    pub stale: Option<ErrorKind>,
}

/// What is known of a name without a request.
#[derive(Debug, Clone)]
pub enum Peek {
    /// It exists, and the fresh value is in memory.
    Value(Found),
    /// It exists; the value has to be fetched.
    Exists,
    /// It does not exist, and for how long that stays fresh.
    Absent(Duration),
    /// The last complete listing lacks it, which is stale.
    AbsentBefore,
    /// Nothing is known.
    Unknown,
}

/// A read in flight, its priority, and the users it is charged to.
type Read = (Flight<ReadAnswer>, Priority, Payer);

struct CacheState {
    index: Index,
    lag: lag::Lag,
    reads: HashMap<ObjectName, Read>,
    /// The listing in flight, its start, and the users it is charged to.
    listing: Option<(Flight<()>, Instant, Payer)>,
    /// Receivers of its names, by prefix.
    streams: Vec<(String, mpsc::UnboundedSender<Vec<ObjectName>>)>,
    searches: HashMap<String, (Flight<()>, Payer)>,
    /// Whether the key may list names.
    listing_right: crate::vault::cache::revocation::ListingRight,
    /// When something else than a vault last answered to a listing, and how.
    foreign_listing: Option<(Instant, Error)>,
    /// Names with a read that was refused, by the vault or a proxy.
    refused: lru::LruCache<ObjectName, (Instant, Error)>,
    /// The check in flight whether the key is still accepted.
    key_check: Option<Flight<()>>,
    /// `None` once the vault has answered.
    outage: Option<Outage>,
    histories: lru::LruCache<(ObjectId, VersionTag, SystemTime), Arc<Vec<VersionInfo>>>,
    /// Answers requested before that moment are not cached.
    revoked: Option<Instant>,
    /// Changes made elsewhere that were not taken yet; `None` while they are not tracked.
    changes: Option<Vec<Change>>,
}

/// The vault does not answer.
struct Outage {
    /// Its begin.
    since: Instant,
    /// The last failure.
    last: Instant,
    /// The reason of the last failure.
    error: Error,
}

/// The cache in front of a vault.
pub struct Cache {
    vault: DynVault,
    clock: Arc<dyn Clock>,
    config: CacheConfig,
    state: Mutex<CacheState>,
    /// A leaf lock, too.
    refresh: Mutex<crate::vault::cache::refresher::Refresh>,
    /// Wakes the refresher.
    woken: tokio::sync::Notify,
    /// It was idle, and has not ticked since.
    was_idle: AtomicBool,
    /// A stale value was served since the vault last answered.
    served_stale: AtomicBool,
    /// Names or values were cached since the last revocation.
    shown: AtomicBool,
    revocation_listener: OnceLock<Weak<dyn RevocationListener>>,
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
            state: Mutex::new(CacheState {
                index: Index::new(now, config.capacity),
                lag: lag::Lag::default(),
                reads: HashMap::new(),
                listing: None,
                streams: Vec::new(),
                searches: HashMap::new(),
                listing_right: crate::vault::cache::revocation::ListingRight::default(),
                foreign_listing: None,
                refused: lru::LruCache::new(histories),
                key_check: None,
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

    fn state(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock()
    }

    /// The vault behind the cache, for requests that are not cached: changes.
    pub fn vault(&self) -> &DynVault {
        &self.vault
    }

    /// The moment of a request that is asked beside the cache.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The time of day.
    pub fn wall(&self) -> SystemTime {
        self.clock.wall()
    }

    /// Ingests the page of the start-up probe, which was requested at `asked`.
    pub fn seed(&self, page: &Page, asked: Instant) {
        let mut state = self.state();
        state.listing_right = crate::vault::cache::revocation::ListingRight::Given;
        self.shown.store(true, Ordering::Release);
        state.ingest(&page.items, asked, self.clock.now());
        if page.next.is_none() {
            state.end_listing(asked, 1);
        }
    }

    /// What is known of `name` without a request.
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

    /// Whether a name starts with `prefix`; `No` only while that is fresh.
    pub fn prefix_state(&self, prefix: &str) -> PrefixState {
        let now = self.clock.now();
        match self.state().index.prefix_state(prefix) {
            PrefixState::No(at) if self.ttl(at, now) == Duration::ZERO => PrefixState::Unknown,
            implied => implied,
        }
    }

    /// How long the absence of names under `prefix` stays fresh.
    pub fn not_implied_for(&self, prefix: &str) -> Duration {
        let now = self.clock.now();
        match self.state().index.prefix_state(prefix) {
            PrefixState::No(at) => self.ttl(at, now),
            PrefixState::Yes | PrefixState::Unknown => Duration::ZERO,
        }
    }

    /// Whether one page holds all names, so that a listing costs one request.
    pub fn listing_is_one_page(&self) -> bool {
        self.state().index.complete().is_some_and(|(_, pages)| pages <= 1)
    }

    /// Whether the set of all names is fresh.
    pub fn is_complete(&self) -> bool {
        self.complete_for() > Duration::ZERO
    }

    /// How long the set of all names stays fresh.
    pub fn complete_for(&self) -> Duration {
        let now = self.clock.now();
        self.state().index.complete().map_or(Duration::ZERO, |(at, _)| self.ttl(at, now))
    }

    /// Changes whenever the set of names does.
    pub fn generation(&self) -> u64 {
        self.state().index.generation()
    }

    /// Calls `visit` with each name under `prefix`, in order; its result says where to continue:
    /// `None` for the next name, or the first string not to skip.
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

    /// Reads `name`, from memory while fresh; `None` if there is no such object.
    pub async fn read(self: &Arc<Self>, call: &Call, name: &ObjectName) -> Result<Option<Found>> {
        match self.peek(name) {
            Peek::Value(found) => Ok(Some(found)),
            Peek::Absent(_) => Ok(None),
            Peek::Exists | Peek::AbsentBefore | Peek::Unknown => self.fetch(call, name).await,
        }
    }

    /// Whether this is the newest version that is known of its name, however long ago.
    pub fn is_newest(&self, name: &ObjectName, id: &ObjectId, version: &VersionTag, at: SystemTime) -> bool {
        match self.state().index.knowledge(name) {
            Knowledge::Exists(known) => {
                known.id == *id
                    && known.version.as_ref() == Some(version)
                    && known.updated_at.is_none_or(|known| known == at)
            }
            Knowledge::Absent(_) | Knowledge::Unknown => false,
        }
    }

    /// The bytes of one version: from memory, or by id while it is current, or as an old version.
    /// [`ErrorKind::NotFound`] where they are not available any more.
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
        if !self.vault.capabilities().old_values || !version.is_the_vaults() {
            return Err(Error::new(ErrorKind::NotFound, "the vault gives no value of this old version"));
        }
        // The vault's word for it is all that it takes, however long the history is.
        let (number, created_at) = (version.as_str().parse().unwrap_or_default(), SystemTime::UNIX_EPOCH);
        let info = VersionInfo { number, tag: version.clone(), created_at, size: None, current: false };
        self.old_value(call, id, &info).await
    }

    /// The bytes of one version, if they are in memory.
    pub fn value_in_memory(&self, id: &ObjectId, version: &VersionTag) -> Option<Arc<Object>> {
        self.state().index.value(id, version)
    }

    /// The history of the object with the current version `current`; requested once a version.
    pub async fn history(&self, call: &Call, current: &Meta) -> Result<Arc<Vec<VersionInfo>>> {
        let id = &current.id;
        let key = (id.clone(), current.version.clone(), current.updated_at);
        if let Some(history) = self.state().histories.get(&key).cloned() {
            return Ok(history);
        }
        let history = Arc::new(self.vault.versions(call, id, None).await?);
        if history.iter().any(|v| v.current && v.tag == current.version) {
            self.state().histories.put(key, history.clone());
        }
        Ok(history)
    }

    /// The value of an old version, cached like any other: it never changes.
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

    /// Stored here: the current version as of now.
    pub fn stored(&self, meta: Meta, content: Content) -> Arc<Object> {
        let (object, now) = (Arc::new(Object { meta, content }), self.clock.now());
        self.shown.store(true, Ordering::Release);
        let mut state = self.state();
        state.refused.pop(&object.meta.name);
        state.index.found(&object.meta, now);
        state.index.put_value(&object);
        object
    }

    /// Stored here; another version has followed.
    pub fn stored_before(&self, meta: Meta, content: Content) -> Arc<Object> {
        let object = Arc::new(Object { meta, content });
        self.shown.store(true, Ordering::Release);
        self.state().index.put_value(&object);
        object
    }

    /// Deleted here, or known to be gone as of now.
    pub fn deleted(&self, name: &ObjectName) {
        let now = self.clock.now();
        let mut state = self.state();
        if let Knowledge::Exists(known) = state.index.knowledge(name) {
            state.lag.deleted_name(name, &known.id);
        }
        state.lag.removed(name, now);
        state.index.missing(name, now);
    }

    /// This object was deleted here; the name may belong to another one by now.
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

    fn ttl(&self, as_of: Instant, now: Instant) -> Duration {
        self.config.refresh.saturating_sub(now.saturating_duration_since(as_of))
    }

    fn value_of(&self, state: &mut CacheState, known: &Known) -> Option<Arc<Object>> {
        let version = known.version.as_ref()?;
        let object = state.index.value(&known.id, version)?;
        // A vault restored from a backup gives a version's number to other bytes.
        known.updated_at.is_none_or(|at| at == object.meta.updated_at).then_some(object)
    }

    /// Ingests an answer that was requested at `asked`.
    pub fn ingest_object(&self, object: Object, asked: Instant) -> Arc<Object> {
        let object = Arc::new(object);
        let mut state = self.state();
        if state.revoked.is_some_and(|at| asked <= at) {
            return object;
        }
        self.shown.store(true, Ordering::Release);
        state.ingest_read(&object.meta, asked);
        state.index.put_value(&object);
        object
    }

    /// A save of this mount was superseded: the current version is requested again.
    pub fn superseded(&self, name: &ObjectName) {
        let now = self.clock.now();
        self.state().index.unknown(name, now);
    }

    /// Records whether the vault answers at all.
    fn note<T>(&self, answer: &Result<T>) {
        let mut state = self.state();
        match answer {
            // A local limit of one user: nothing was sent.
            Err(e) if e.kind == ErrorKind::ShareSpent => {}
            Err(e) if is_outage(e.kind) => {
                let now = self.clock.now();
                let since = state.outage.as_ref().map_or(now, |outage| outage.since);
                state.outage = Some(Outage { since, last: now, error: e.clone() });
            }
            // Handled by `revocation`.
            Err(e) if e.kind == ErrorKind::Unauthorized => {}
            Ok(_) | Err(_) => {
                state.outage = None;
                self.served_stale.store(false, Ordering::Relaxed);
            }
        }
    }
}
