//! Requests in flight: each is sent once, for all waiters.
//!
//! A flight runs in a task of its own with the full timeout: a waiter that gives up does not end
//! it, and its answer is cached. With a stale value at hand the wait for a new one is short.
//!
//! A reader may join a request that was sent before its own begin. What is known by a later request
//! or by a change made here then takes the answer's place: reads never go back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{mpsc, oneshot};

use crate::vault::attribution;
use crate::vault::attribution::{Attribution, Payer};
use crate::vault::cache::failure::is_refusal;
use crate::vault::cache::revocation::{FOREIGN, NOT_ASKED};
use crate::vault::cache::{Cache, CacheState, Found, Knowledge, Peek, Read, is_outage};
use crate::vault::model::object::Cursors;
use crate::vault::{Call, Error, ErrorKind, ListQuery, Object, ObjectName, Page, Priority, Result};

/// With a stale value at hand, the longest wait for a new one.
pub(super) const STALE_WAIT: Duration = Duration::from_secs(2);

/// Pages of a listing that are here and wait to be taken in.
const PAGES_WAITING: usize = 4;

/// How often a read is repeated after something that is not in memory overtook its answer.
const OVERTAKEN: usize = 3;

/// The answer to a read.
#[derive(Debug, Clone)]
pub(super) struct ReadAnswer {
    object: Option<Arc<Object>>,
    /// When it was requested: it shows the vault as of then or later.
    asked: Instant,
}

/// An answer that is on its way.
pub(super) type Flight<T> = Shared<BoxFuture<'static, Result<T>>>;

/// The names under a prefix, as the pages of a listing arrive.
#[derive(Debug)]
pub struct NameStream {
    known: Vec<ObjectName>,
    pages: mpsc::UnboundedReceiver<Vec<ObjectName>>,
    flight: Flight<()>,
}

impl NameStream {
    /// The next names; `None` when there are no more.
    pub async fn names(&mut self) -> Option<Vec<ObjectName>> {
        match std::mem::take(&mut self.known) {
            known if known.is_empty() => self.pages.recv().await,
            known => Some(known),
        }
    }

    /// How the listing ended.
    pub async fn ended(self) -> Result<()> {
        self.flight.await
    }
}

impl Cache {
    /// Reads `name` from the vault, whatever is in memory; stale values are the fallback while the
    /// vault is down.
    pub async fn fetch(self: &Arc<Self>, call: &Call, name: &ObjectName) -> Result<Option<Found>> {
        let old = self.stale_fallback(name);
        match (self.refused_before(name), &old) {
            (Some(e), Some(old)) if is_outage(e.kind) => return Ok(Some(self.serve_stale(old, e.kind))),
            (Some(e), _) => return Err(e),
            (None, _) => {}
        }
        if let Some(old) = &old
            && let Some(why) = self.recent_outage()
        {
            // Not awaited; the answer will be cached.
            drop(self.read_flight(name, Priority::Foreground));
            return Ok(Some(self.serve_stale(old, why)));
        }
        let mut patience = call.deadline.saturating_duration_since(self.clock.now());
        if old.is_some() {
            patience = patience.min(STALE_WAIT);
        }
        let read = tokio::time::timeout(patience, self.read_newest(name, Priority::Foreground)).await;
        let answer = read.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Deadline, format!("the vault did not answer for {name:?} in time")))
        });
        match (answer, old) {
            (Err(e), Some(old)) if is_outage(e.kind) => {
                if !self.served_stale.load(Ordering::Relaxed) && e.kind != ErrorKind::ShareSpent {
                    tracing::warn!(name = name.as_str(), error = %e, "the vault does not answer: a stale value is served");
                }
                Ok(Some(self.serve_stale(&old, e.kind)))
            }
            (answer, _) => answer,
        }
    }

    /// Reads `name` from the vault. An answer that was overtaken is replaced.
    async fn read_newest(self: &Arc<Self>, name: &ObjectName, priority: Priority) -> Result<Option<Found>> {
        for _ in 0..OVERTAKEN {
            let answer = self.answer(name, priority).await?;
            if let Some(found) = self.unless_overtaken(name, &answer) {
                return Ok(found);
            }
        }
        let object = self.answer(name, priority).await?.object;
        Ok(object.map(|object| Found { object, ttl: Duration::ZERO, stale: None }))
    }

    async fn answer(self: &Arc<Self>, name: &ObjectName, priority: Priority) -> Result<ReadAnswer> {
        let (flight, sent_with, _) = self.read_flight(name, priority);
        match flight.await {
            // It was prefetched, with less of the budget than a waiting caller may use.
            Err(e) if e.kind == ErrorKind::RateLimited && sent_with != priority => {
                self.read_flight(name, priority).0.await
            }
            answer => answer,
        }
    }

    /// What an answer shows, or what is known since it was requested; `None` if that has to be
    /// read.
    fn unless_overtaken(&self, name: &ObjectName, answer: &ReadAnswer) -> Option<Option<Found>> {
        let now = self.clock.now();
        let mut state = self.state();
        let found = |object, as_of| Some(Found { object, ttl: self.ttl(as_of, now), stale: None });
        match state.index.knowledge(name) {
            Knowledge::Exists(known) if known.as_of >= answer.asked => {
                let is_known = |object: &&Arc<Object>| {
                    object.meta.id == known.id && Some(&object.meta.version) == known.version.as_ref()
                };
                let answered = answer.object.as_ref().filter(is_known).cloned();
                let object = answered.or_else(|| self.value_of(&mut state, &known))?;
                Some(found(object, known.as_of))
            }
            Knowledge::Absent(at) if at >= answer.asked => Some(None),
            Knowledge::Exists(_) | Knowledge::Absent(_) | Knowledge::Unknown => {
                Some(answer.object.clone().and_then(|object| found(object, answer.asked)))
            }
        }
    }

    /// The refusal of a name, trusted as long as an absence, and a minute at most: permissions
    /// change.
    fn refused_before(&self, name: &ObjectName) -> Option<Error> {
        let now = self.clock.now();
        let refused = self.state().refused.peek(name).cloned();
        let believed = |at: Instant, kind| {
            let longest = if kind == ErrorKind::BadAnswer { FOREIGN } else { NOT_ASKED };
            self.ttl(at, now) > Duration::ZERO && now.saturating_duration_since(at) < longest
        };
        refused.filter(|(at, e)| believed(*at, e.kind)).map(|(_, e)| e)
    }

    /// [`Cache::fetch`], but an answer younger than `age` will do.
    pub async fn fetch_within(
        self: &Arc<Self>,
        call: &Call,
        name: &ObjectName,
        age: Duration,
    ) -> Result<Option<Found>> {
        let now = self.clock.now();
        let is_young = |at: Instant| now.saturating_duration_since(at) < age;
        let known = {
            let mut state = self.state();
            match state.index.knowledge(name) {
                Knowledge::Exists(known) if is_young(known.as_of) => {
                    self.value_of(&mut state, &known).map(Some)
                }
                Knowledge::Absent(at) if is_young(at) => Some(None),
                Knowledge::Exists(_) | Knowledge::Absent(_) | Knowledge::Unknown => None,
            }
        };
        match known {
            Some(known) => Ok(known.map(|object| Found { object, ttl: Duration::ZERO, stale: None })),
            None => self.fetch(call, name).await,
        }
    }

    /// Prefetches a value. A failure is reported to the later reader.
    pub async fn fetch_ahead(self: &Arc<Self>, name: &ObjectName) {
        if matches!(self.peek(name), Peek::Exists) && self.refused_before(name).is_none() {
            let (flight, ..) = self.read_flight(name, Priority::Background);
            drop(flight.await);
        }
    }

    /// Makes sure that all names are known and fresh.
    pub async fn list_all(self: &Arc<Self>, call: &Call) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        let patience = call.deadline.saturating_duration_since(self.clock.now());
        let flight = self.listing_flight();
        let answer = match tokio::time::timeout(patience, flight).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::new(ErrorKind::Deadline, "the vault did not list its names in time")),
        };
        match answer {
            Err(e) if self.stale_names_suffice(&e) => Ok(()),
            other => other,
        }
    }

    /// The last known value of `name`, if it may serve as the fallback.
    pub(super) fn stale_fallback(&self, name: &ObjectName) -> Option<Arc<Object>> {
        let now = self.clock.now();
        let mut state = self.state();
        match state.index.knowledge(name) {
            Knowledge::Exists(known)
                if now.saturating_duration_since(known.as_of) <= self.config.max_stale =>
            {
                self.value_of(&mut state, &known)
            }
            Knowledge::Exists(_) | Knowledge::Absent(_) | Knowledge::Unknown => None,
        }
    }

    pub(super) fn stale_listing_suffices(&self) -> bool {
        let now = self.clock.now();
        let complete = self.state().index.complete();
        complete.is_some_and(|(at, _)| now.saturating_duration_since(at) <= self.config.max_stale)
    }

    fn serve_stale(&self, object: &Arc<Object>, why: ErrorKind) -> Found {
        if why != ErrorKind::ShareSpent {
            self.served_stale.store(true, Ordering::Relaxed);
        }
        Found { object: object.clone(), ttl: Duration::ZERO, stale: Some(why) }
    }

    /// Why the vault failed to answer a moment ago, if it did.
    pub(super) fn recent_outage(&self) -> Option<ErrorKind> {
        let now = self.clock.now();
        let state = self.state();
        let outage = state.outage.as_ref()?;
        (now.saturating_duration_since(outage.last) < STALE_WAIT).then_some(outage.error.kind)
    }

    /// Reads `name` for the mount itself: no program waits.
    pub async fn fetch_in_background(self: &Arc<Self>, name: &ObjectName) -> Result<Option<Arc<Object>>> {
        self.count_request();
        Ok(self.read_newest(name, Priority::Background).await?.map(|found| found.object))
    }

    /// Joins the read of `name` in flight, or sends one; and its priority.
    fn read_flight(self: &Arc<Self>, name: &ObjectName, priority: Priority) -> Read {
        // The task cannot end before it is entered here: it needs this lock to leave.
        let mut state = self.state();
        if let Some(out) = state.reads.get(name) {
            out.2.join();
            return out.clone();
        }
        let (cache, wanted) = (self.clone(), name.clone());
        let (flight, payer) = spawn_shared_with_payer(move |payer| async move {
            loop {
                let (paid_by, asked) = (payer.guest(), cache.clock.now());
                let answer = cache.read_once(&wanted, priority).await;
                let mut state = cache.state();
                if payer.is_another(paid_by, &answer) {
                    continue;
                }
                match &answer {
                    Err(e) if is_refusal(e.kind) => {
                        drop(state.refused.put(wanted.clone(), (asked, e.clone())))
                    }
                    _ => drop(state.refused.pop(&wanted)),
                }
                state.reads.remove(&wanted);
                return answer;
            }
        });
        let read = (flight, priority, payer);
        state.reads.insert(name.clone(), read.clone());
        read
    }

    async fn read_once(&self, wanted: &ObjectName, priority: Priority) -> Result<ReadAnswer> {
        let asked = self.clock.now();
        let call = Call {
            deadline: asked + self.config.timeout,
            priority,
            idempotency_key: None,
            is_repeated: false,
        };
        let answer = self.vault.get_by_name(&call, wanted).await;
        // A background request that has to wait says nothing of the foreground.
        let counts = priority == Priority::Foreground
            || !matches!(&answer, Err(e) if e.kind == ErrorKind::RateLimited);
        if counts {
            self.note(&answer);
        }
        let object = match answer {
            Ok(object) => Some(self.ingest_object(object, asked)),
            Err(e) if e.kind == ErrorKind::NotFound => {
                self.state().ingest_absence(wanted, asked);
                None
            }
            Err(e) => return Err(e),
        };
        Ok(ReadAnswer { object, asked })
    }

    /// Joins the listing in flight, or begins one.
    fn listing_flight(self: &Arc<Self>) -> Flight<()> {
        let mut state = self.state();
        self.join_listing(&mut state)
    }

    fn join_listing(self: &Arc<Self>, state: &mut CacheState) -> Flight<()> {
        if let Some((flight, _, payer)) = &state.listing {
            payer.join();
            return flight.clone();
        }
        let (cache, asked) = (self.clone(), self.clock.now());
        let (flight, payer) = spawn_shared_with_payer(move |payer| async move {
            loop {
                let paid_by = payer.guest();
                let answer = cache.list_pages(asked).await;
                cache.note(&answer);
                let mut state = cache.state();
                if !payer.is_another(paid_by, &answer) {
                    state.listing = None;
                    state.streams = Vec::new();
                    return answer;
                }
            }
        });
        state.listing = Some((flight.clone(), asked, payer));
        flight
    }

    /// The present task waits for the listing in flight, too.
    pub fn join_listing_out(&self) {
        if let Some((.., payer)) = &self.state().listing {
            payer.join();
        }
    }

    /// The names under `prefix` as they arrive: joins the listing in flight, or begins one.
    pub fn stream(self: &Arc<Self>, prefix: &str) -> NameStream {
        let mut state = self.state();
        let flight = self.join_listing(&mut state);
        // What was received before, and what was found or made since.
        let since = state.listing.as_ref().map_or_else(|| self.clock.now(), |(_, asked, _)| *asked);
        // Names made here a moment ago, which the vault does not list yet, follow at the end of the
        // listing.
        let known = state.index.names_since(prefix, since);
        let (sender, pages) = mpsc::unbounded_channel();
        state.streams.push((prefix.to_owned(), sender));
        NameStream { known, pages, flight }
    }

    /// How long to wait for a listing while stale names could replace it; `None` if none could.
    pub fn patience_with_listing(&self) -> Option<Duration> {
        self.stale_listing_suffices().then_some(STALE_WAIT)
    }

    /// Whether stale names may replace a listing that failed so.
    pub fn stale_names_suffice(&self, e: &Error) -> bool {
        let may = is_outage(e.kind) && self.stale_listing_suffices();
        if may && e.kind != ErrorKind::ShareSpent {
            self.served_stale.store(true, Ordering::Relaxed);
        }
        may
    }

    /// Each page has the full timeout, and counts when it arrives. It is ingested while the next
    /// one is on its way; only the first one before the second is requested, as some readers want
    /// no more.
    async fn list_pages(self: &Arc<Self>, asked: Instant) -> Result<()> {
        let mut query = ListQuery::first();
        let mut cursors = Cursors::default();
        let mut page = self.page(&query).await?;
        let mut next = cursors.advance(page.next.take())?;
        self.ingest_page(&page, asked);
        let mut pages = 1;
        let (sender, mut coming) = mpsc::channel::<Page>(PAGES_WAITING);
        let cache = self.clone();
        let beside = spawn_shared(attribution::current(), async move {
            while let Some(page) = coming.recv().await {
                cache.ingest_page(&page, asked);
            }
            Ok(())
        });
        let listed = async {
            while let Some(cursor) = next {
                query = query.next(cursor);
                let mut page = self.page(&query).await?;
                next = cursors.advance(page.next.take())?;
                pages += 1;
                // Closed at shutdown, which ends this task, too.
                let _ = sender.send(page).await;
            }
            Ok::<_, Error>(())
        };
        let listed = listed.await;
        drop(sender);
        // Pages before an error count, too.
        beside.await?;
        listed?;
        self.state().end_listing(asked, pages);
        Ok(())
    }

    async fn page(&self, query: &ListQuery) -> Result<Page> {
        let call = Call::foreground(self.clock.now() + self.config.timeout);
        self.vault.list(&call, query).await
    }

    fn ingest_page(&self, page: &Page, asked: Instant) {
        let mut state = self.state();
        state.ingest(&page.items, asked, self.clock.now());
        let gone = state.lag.gone();
        state.streams.retain(|(prefix, stream)| {
            let names = page.items.iter().map(|item| &item.name);
            let names = names.filter(|name| name.as_str().starts_with(prefix) && !gone.contains(*name));
            let names: Vec<_> = names.cloned().collect();
            names.is_empty() || stream.send(names).is_ok()
        });
    }
}

/// Runs `work` once, in a task of its own, for all waiters; it gets the payer.
pub(super) fn spawn_shared_with_payer<T: Clone + Send + Sync + 'static, W>(
    work: impl FnOnce(Payer) -> W,
) -> (Flight<T>, Payer)
where
    W: std::future::Future<Output = Result<T>> + Send + 'static,
{
    let attribution = attribution::current().of_flight();
    let payer = attribution.payer().clone();
    (spawn_shared(attribution, work(payer.clone())), payer)
}

/// Runs `work` once, in a task of its own, for all waiters, attributed to the first one.
pub(super) fn spawn_shared<T: Clone + Send + Sync + 'static>(
    attribution: Attribution,
    work: impl std::future::Future<Output = Result<T>> + Send + 'static,
) -> Flight<T> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(attribution::on_behalf_of(attribution, async move {
        // Without waiters the answer is cached all the same.
        let _ = sender.send(work.await);
    }));
    receiver
        .map(|answer| {
            answer.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Server, "the request was given up at shutdown"))
            })
        })
        .boxed()
        .shared()
}
