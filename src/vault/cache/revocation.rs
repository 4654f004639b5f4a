//! Detects refusals: every request to the vault goes through here.
//!
//! 1. A 401, or a 403 to a listing, is a revocation: the key lost its right to read. All values are
//!    dropped, all names expire and serve as no fallback, and the listener is notified. A key that
//!    could never list names loses nothing by that 403: listing is not retried for a minute.
//! 2. A 403 to the read of a name concerns that name only. A 403 to a change says nothing about
//!    reads.
//! 3. An answer requested before a revocation goes to its caller, and is not cached.
//! 4. An answer to a read of an object that is older than a change made here
//!    ([`lag`](crate::vault::cache::lag)) is not passed on: it is requested again, or the known
//!    version replaces it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use crate::vault::cache::lag::{AGAIN, Changed, Verdict};
use crate::vault::cache::{Cache, CacheState, Knowledge, is_outage};
use crate::vault::{
    Call, Capabilities, Check, Content, DynVault, Error, ErrorKind, ListQuery, Meta, Object, ObjectId,
    ObjectName, Page, Result, Summary, Vault, VaultStatus, VersionInfo,
};

/// With less time left than this a request is not repeated.
const LEAST: Duration = Duration::from_millis(20);

const GONE: &str = "the object was deleted here a moment ago";

const LAGS: &str =
    "the vault gives an older version than was stored here a moment ago: try again in a few seconds";

/// Shows values that came from the cache.
pub trait RevocationListener: Send + Sync {
    /// They may not be shown any more: of this name, or none at all.
    fn refused(&self, name: Option<&ObjectName>);
}

/// How long listing is not retried with a key that may not list names.
pub(super) const NOT_ASKED: Duration = Duration::from_secs(60);

/// For how long nothing is asked for again to which something else than a vault answered.
pub(super) const FOREIGN: Duration = Duration::from_secs(5);

/// Whether the key may list names.
#[derive(Debug, Default)]
pub(super) enum ListingRight {
    /// It may: a refusal revokes it.
    #[default]
    Given,
    /// Unknown: no listing was tried yet.
    Untried,
    /// It never could; when that was last seen, and the refusal.
    Refused(Instant, Error),
}

impl ListingRight {
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(..))
    }
}

/// The subject of a request.
#[derive(Debug, Clone, Copy)]
enum About<'a> {
    Names,
    Name(&'a ObjectName),
    Other,
}

/// When a request was sent, and when its answer arrived.
#[derive(Debug, Clone, Copy)]
struct Times {
    asked: Instant,
    answered: Instant,
}

/// Wraps a vault and detects refusals.
#[derive(Debug)]
pub(super) struct RevocationDetector {
    inner: DynVault,
    cache: Weak<Cache>,
}

impl RevocationDetector {
    pub(super) fn new(inner: DynVault, cache: Weak<Cache>) -> Self {
        Self { inner, cache }
    }

    /// Repeats the request until the answer is accepted, or the known version can replace it.
    /// `check` gets the times of request and answer, and whether it was a repetition.
    async fn ask_until_accepted<'a, T>(
        &self,
        call: &Call,
        ask: impl Fn() -> BoxFuture<'a, Result<T>> + Send,
        check: impl Fn(&mut CacheState, &Result<T>, Times, bool) -> Verdict + Send,
        instead: impl Fn(&mut CacheState, Summary) -> Option<T> + Send,
    ) -> Result<T> {
        let Some(cache) = self.cache.upgrade() else { return ask().await };
        let mut is_retry = false;
        loop {
            let asked = cache.clock.now();
            let answer = ask().await;
            cache.compare_times();
            {
                let mut state = cache.state();
                let times = Times { asked, answered: cache.clock.now() };
                match check(&mut state, &answer, times, is_retry) {
                    Verdict::Accepted => return answer,
                    Verdict::Gone => return Err(Error::new(ErrorKind::NotFound, GONE)),
                    Verdict::Retry => {}
                    Verdict::Instead(newest) => {
                        if let Some(known) = instead(&mut state, newest) {
                            return Ok(known);
                        }
                    }
                }
            }
            let left = call.deadline.saturating_duration_since(cache.clock.now());
            if left < LEAST {
                return Err(Error::new(ErrorKind::Deadline, LAGS));
            }
            is_retry = true;
            tokio::time::sleep(AGAIN.min(left / 2)).await;
        }
    }

    /// Remembers a change that was made here, or may have been.
    fn changed<T>(
        &self,
        answer: Result<T>,
        of: Changed,
        remember: impl FnOnce(&mut CacheState, &T, Instant),
    ) -> Result<T> {
        let Some(cache) = self.cache.upgrade() else { return answer };
        let (mut state, now) = (cache.state(), cache.clock.now());
        match &answer {
            Ok(done) => {
                state.lag.resolve_unanswered(&of);
                remember(&mut state, done, now);
            }
            Err(e) if e.maybe_applied => state.lag.note_unanswered(of, now),
            Err(_) => {}
        }
        answer
    }

    fn observe<T>(&self, answer: Result<T>, about: About<'_>) -> Result<T> {
        let Some(cache) = self.cache.upgrade() else { return answer };
        if answer.as_ref().err().is_none_or(|e| e.kind != ErrorKind::Unauthorized && !is_outage(e.kind)) {
            cache.key_accepted();
        }
        match (answer.as_ref().err().map(|e| (e, e.kind)), about) {
            (Some((e, ErrorKind::Unauthorized)), _) => cache.revoked(e),
            (Some((e, ErrorKind::Forbidden)), About::Names) => cache.listing_refused(e),
            (Some((e, ErrorKind::BadAnswer)), About::Names) => {
                cache.state().foreign_listing = Some((cache.clock.now(), e.clone()));
            }
            (None, About::Names) => {
                let mut state = cache.state();
                (state.listing_right, state.foreign_listing) = (ListingRight::Given, None);
                drop(state);
                cache.shown.store(true, Ordering::Release);
            }
            (Some((_, ErrorKind::Forbidden)), About::Name(name)) => cache.refused(name),
            _ => {}
        }
        answer
    }
}

impl Cache {
    /// Registers the listener of refusals. Only the first call counts.
    pub fn set_revocation_listener(&self, revocation_listener: Weak<dyn RevocationListener>) {
        // A second one would be a second mount over the same cache: there is none.
        let _ = self.revocation_listener.set(revocation_listener);
    }

    /// Whether the key may not list names, and never could.
    pub fn is_unlisted(&self) -> bool {
        self.state().listing_right.is_refused()
    }

    /// No listing was tried: a refusal of the first one revokes nothing.
    pub fn listing_is_untried(&self) {
        self.state().listing_right = ListingRight::Untried;
    }

    /// The refusal of a listing, or what was no vault's answer to it, if it is too recent to retry.
    pub(super) fn listing_refused_before(&self) -> Option<Error> {
        let now = self.clock.now();
        let state = self.state();
        let (at, e, longest) = match (&state.listing_right, &state.foreign_listing) {
            (ListingRight::Refused(at, e), _) => (at, e, NOT_ASKED),
            (_, Some((at, e))) => (at, e, FOREIGN.min(self.config.refresh)),
            (_, None) => return None,
        };
        (now.saturating_duration_since(*at) < longest).then(|| e.clone())
    }

    /// The next listing is tried, whatever was answered before.
    pub(super) fn ask_for_names_again(&self) {
        let mut state = self.state();
        if state.listing_right.is_refused() {
            state.listing_right = ListingRight::Untried;
        }
    }

    fn listing_refused(&self, e: &Error) {
        let now = self.clock.now();
        let mut state = self.state();
        let was_given = matches!(state.listing_right, ListingRight::Given);
        if !was_given {
            if !state.listing_right.is_refused() {
                tracing::warn!(error = %e, "the key may not list names: they are looked up one by one");
            }
            state.listing_right = ListingRight::Refused(now, e.clone());
        }
        drop(state);
        if was_given {
            self.revoked(e);
        }
    }

    fn revoked(&self, e: &Error) {
        let news = {
            let mut state = self.state();
            state.index.clear_values();
            state.index.expire(self.config.max_stale + self.config.refresh);
            state.histories.clear();
            state.revoked = Some(self.clock.now());
            self.shown.swap(false, Ordering::AcqRel)
        };
        if news {
            tracing::warn!(error = %e, "the vault refuses the key: cached names and values are dropped");
            self.notify(None);
        }
    }

    fn refused(&self, name: &ObjectName) {
        let now = self.clock.now();
        let known = {
            let mut state = self.state();
            let known = state.index.knowledge(name);
            state.index.unknown(name, now);
            matches!(known, crate::vault::cache::Knowledge::Exists(_))
        };
        if known {
            self.notify(Some(name));
        }
    }

    fn notify(&self, name: Option<&ObjectName>) {
        if let Some(revocation_listener) = self.revocation_listener.get().and_then(Weak::upgrade) {
            revocation_listener.refused(name);
        }
    }
}

/// Checks the metadata in the answer to a read.
fn check_object(
    state: &mut CacheState,
    meta: Result<&Meta, &Error>,
    absence: impl FnOnce(&mut CacheState) -> Verdict,
    Times { asked, answered }: Times,
    is_retry: bool,
) -> Verdict {
    match meta {
        Ok(meta) => {
            let verdict = state.lag.presence(&summary(meta), asked, answered, is_retry);
            if state.lag.is_unanswered(&Changed::Id(meta.id.clone()), asked) && !is_news(state, meta) {
                return Verdict::Retry;
            }
            verdict
        }
        Err(e) if e.kind == ErrorKind::NotFound => absence(state),
        Err(_) => Verdict::Accepted,
    }
}

/// Whether it is newer than what is known, or another object.
fn is_news(state: &mut CacheState, meta: &Meta) -> bool {
    match state.index.knowledge(&meta.name) {
        Knowledge::Exists(known) => known.id != meta.id || known.updated_at < Some(meta.updated_at),
        Knowledge::Absent(_) | Knowledge::Unknown => true,
    }
}

fn summary(Meta { id, name, version, updated_at }: &Meta) -> Summary {
    Summary {
        id: id.clone(),
        name: name.clone(),
        updated_at: Some(*updated_at),
        version: Some(version.clone()),
    }
}

/// The remembered metadata; listings of kv name no version.
fn known_meta(_: &mut CacheState, newest: Summary) -> Option<Meta> {
    let Summary { id, name, updated_at, version } = newest;
    Some(Meta { id, name, version: version?, updated_at: updated_at? })
}

/// The remembered version, if its value is in memory.
fn known_object(state: &mut CacheState, newest: Summary) -> Option<Object> {
    let meta = known_meta(state, newest)?;
    let object = state.index.value(&meta.id, &meta.version)?;
    (object.meta == meta).then(|| (*object).clone())
}

/// Checks that a history has the newest remembered version.
fn check_history(
    state: &mut CacheState,
    id: &ObjectId,
    history: &Result<Vec<VersionInfo>>,
    asked: Instant,
    is_retry: bool,
) -> Verdict {
    let Ok(history) = history else {
        let is_absent = history.as_ref().is_err_and(|e| e.kind == ErrorKind::NotFound);
        return if is_absent { state.lag.absence_of(id, asked, is_retry) } else { Verdict::Accepted };
    };
    let Some(newest) = state.lag.newest(id, asked) else { return Verdict::Accepted };
    let has_it =
        |v: &VersionInfo| Some(&v.tag) == newest.version.as_ref() || Some(v.created_at) >= newest.updated_at;
    if history.iter().any(has_it) {
        return Verdict::Accepted;
    }
    state.lag.lacks_newest(id, asked);
    Verdict::Retry
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for RevocationDetector {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn status(&self) -> VaultStatus {
        self.inner.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let ask = || self.inner.get_by_name(call, name);
        let made = Changed::Name(name.clone());
        let check = |state: &mut CacheState, answer: &Result<Object>, times: Times, is_retry| {
            let absence = |state: &mut CacheState| match state.lag.is_unanswered(&made, times.asked) {
                true => Verdict::Retry,
                false => state.lag.absence(name, times.asked, is_retry),
            };
            check_object(state, answer.as_ref().map(|object| &object.meta), absence, times, is_retry)
        };
        self.observe(self.ask_until_accepted(call, ask, check, known_object).await, About::Name(name))
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        let ask = || self.inner.get(call, id);
        let check = |state: &mut CacheState, answer: &Result<Object>, times: Times, is_retry| {
            let absence = |state: &mut CacheState| state.lag.absence_of(id, times.asked, is_retry);
            check_object(state, answer.as_ref().map(|object| &object.meta), absence, times, is_retry)
        };
        self.observe(self.ask_until_accepted(call, ask, check, known_object).await, About::Other)
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        let ask = || self.inner.metadata(call, id);
        let check = |state: &mut CacheState, answer: &Result<Meta>, times: Times, is_retry| {
            let absence = |state: &mut CacheState| state.lag.absence_of(id, times.asked, is_retry);
            check_object(state, answer.as_ref(), absence, times, is_retry)
        };
        self.observe(self.ask_until_accepted(call, ask, check, known_meta).await, About::Other)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let made = self.observe(self.inner.create(call, name, content).await, About::Other);
        self.changed(made, Changed::Name(name.clone()), |state, meta, now| state.lag.stored(meta, true, now))
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        let made = self.observe(self.inner.update(call, id, content, check).await, About::Other);
        self.changed(made, Changed::Id(id.clone()), |state, meta, now| match call.is_repeated {
            true => state.lag.stored_again(meta, now),
            false => state.lag.stored(meta, false, now),
        })
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        let deleted = self.observe(self.inner.delete(call, id, check).await, About::Other);
        self.changed(deleted, Changed::Id(id.clone()), |state, (), now| state.lag.deleted(id, now))
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        if let Some(refused) = self.cache.upgrade().and_then(|cache| cache.listing_refused_before()) {
            return Err(refused);
        }
        let page = self.observe(self.inner.list(call, query).await, About::Names);
        if let Some(cache) = self.cache.upgrade() {
            cache.compare_times();
        }
        page
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        let ask = || self.inner.versions(call, id, since);
        let check = |state: &mut CacheState, answer: &Result<Vec<VersionInfo>>, times: Times, is_retry| {
            check_history(state, id, answer, times.asked, is_retry)
        };
        self.observe(self.ask_until_accepted(call, ask, check, |_, _| None).await, About::Other)
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let ask = || self.inner.version(call, id, version);
        // A version never changes, and may be missing in some answers at first.
        let check = |state: &mut CacheState, answer: &Result<Object>, times: Times, is_retry| match answer {
            Err(e) if e.kind == ErrorKind::NotFound => state.lag.absence_of(id, times.asked, is_retry),
            _ => Verdict::Accepted,
        };
        let instead = |state: &mut CacheState, newest: Summary| {
            known_object(state, newest).filter(|object| object.meta.version == version.tag)
        };
        self.observe(self.ask_until_accepted(call, ask, check, instead).await, About::Other)
    }
}

/// Wraps the vault of a cache.
pub(super) fn watched(inner: DynVault, cache: &Weak<Cache>) -> DynVault {
    Arc::new(RevocationDetector::new(inner, cache.clone()))
}
