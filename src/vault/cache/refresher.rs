//! The refresher: polls the vault for changes on a tick, while the mount is in use.
//!
//! 1. **Query.** A vault that lists changes since a time (kv) costs one request a tick, whatever N
//!    is; otherwise all names are listed, ⌈N/100⌉ requests. Deletions show in listings only: where
//!    one page holds all names each tick is a listing, otherwise kv is listed after its ticks
//!    ([`deletion_scan`](crate::vault::cache::deletion_scan)), and a name's existence is trusted
//!    for [`EXISTS`] at most.
//! 2. **Start time.** By the vault's own times: a tick asks for changes since the latest time that
//!    an earlier tick saw, minus that tick's duration and an overlap; never since later than the
//!    previous tick by the vault's clock, which may be set back. Our clock counts only as far as
//!    the vault's answers show the difference.
//! 3. **Confirmation** holds as of the moment of the request, for all knowledge younger than the
//!    first tick of the chain: one field in the index, not a million entries.
//! 4. **Cost.** A tick and its follow-ups take at most a tenth of the budget, at background
//!    priority; pages are spread over time, and the moment varies. An unused mount is idle and
//!    sends nothing. Lookups, watchers (inotify) and subscribers keep it awake. What open files may
//!    show after an idle time: [`idle`](crate::vault::cache::idle).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock::bounded;
use crate::vault::cache::deletion_scan::DeletionScan;
use crate::vault::cache::lag::{AGAIN, LagMemory, WINDOW};
use crate::vault::cache::revocation::ListingRight;
use crate::vault::cache::{Cache, is_outage};
use crate::vault::model::object::Cursors;
use crate::vault::{Call, ErrorKind, ListQuery, Meta, Result};

/// The share of the budget for ticks: one in so many requests.
const SHARE: u32 = 10;

/// Lower bound of the interval, whatever `--refresh` is.
const SHORTEST: Duration = Duration::from_millis(100);

/// Pages that a tick may request at once.
const BURST: usize = 5;

/// Overlap of two queries: changes do not become visible in the order of their times.
const OVERLAP: Duration = Duration::from_secs(3);

/// How far the vault's clock may be from ours while it has not reported its time.
const UNKNOWN_SKEW: Duration = Duration::from_secs(600);

/// How long a name is trusted to exist after a tick that shows no deletions.
pub(super) const EXISTS: Duration = Duration::from_secs(300);

/// How often an otherwise unused mount is checked for watchers.
const WATCH_CHECK: Duration = Duration::from_secs(60);

/// Names that are asked for again after a tick; the next listing covers more.
const MOST_AGAIN: usize = 16;

/// The interval in parts of the refresh time: a little less, so that nothing expires before it is
/// confirmed, and varied, so that many mounts do not ask at once.
const BETWEEN: (f64, f64) = (0.8, 0.95);

/// The interval in parts of the time that the requests are worth: never less.
const PAID: (f64, f64) = (1.02, 1.07);

/// The refresher's state.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    /// Whether ticks run at all.
    runs: bool,
    /// The mount is in use until then.
    used_until: Option<Instant>,
    /// When the chain of ticks began: it does not confirm older knowledge.
    since: Option<Instant>,
    /// By the vault's clock: all earlier changes are known.
    covered: Option<SystemTime>,
    /// The names take more than one page.
    pub(super) many: bool,
    /// A deletion scan is running.
    pub(super) scan: Option<DeletionScan>,
    /// There were too many names for a deletion scan.
    pub(super) too_large: bool,
    /// Requests of the last tick and its follow-ups.
    pub(super) spent: usize,
    /// Start of the last tick that succeeded.
    last: Option<Instant>,
    /// When the vault last answered and accepted the key.
    pub(super) observed_at: Option<Instant>,
    ticks: u64,
    requests: u64,
    pub(super) scan_requests: u64,
    pub(super) failed: Option<String>,
}

/// The refresher, for `status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RefreshStatus {
    /// The mount is in use, so that changes are polled.
    pub awake: bool,
    /// Seconds between ticks, at present.
    pub tick_s: f64,
    /// Ticks so far.
    pub ticks: u64,
    /// Requests for them, and for changed values in use.
    pub requests: u64,
    /// Of these, the ones of deletion scans.
    pub deletion_requests: u64,
    /// Seconds within which a deletion made elsewhere shows; `None` while unknown.
    pub deletions_s: Option<f64>,
    /// Seconds since the last success.
    pub last_s: Option<u64>,
    /// Why the last tick failed.
    pub error: Option<String>,
}

/// The kind of query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Since(SystemTime),
    All,
    /// One page, which may be all.
    First,
}

impl Cache {
    pub(super) fn refresh_state(&self) -> parking_lot::MutexGuard<'_, Refresh> {
        self.refresh.lock()
    }

    /// A request was answered, and the kernel may use the answer for `ttl`: until then the mount is
    /// in use, and ticks go on.
    pub fn note_use(&self, ttl: Duration) {
        let until = self.clock.now() + ttl.max(self.config.refresh);
        let mut refresh = self.refresh_state();
        if !refresh.runs {
            return;
        }
        let slept = refresh.used_until.is_none_or(|before| before < self.clock.now());
        refresh.used_until = refresh.used_until.max(Some(until));
        if refresh.since.is_none() {
            refresh.since = Some(self.clock.now());
            refresh.covered = Some(self.vaults_time());
        }
        drop(refresh);
        if slept {
            self.woken.notify_one();
        }
    }

    /// Resumes after the death of the predecessor. The kernel still shows `shown`, for `ttl`
    /// without asking, so the mount is in use; all changes before `covered`, by the vault's clock,
    /// were known. None of it counts as recent, and any difference is a change.
    pub fn resume(&self, shown: &[Meta], covered: Option<SystemTime>, lag: Option<LagMemory>, ttl: Duration) {
        self.track_changes();
        let now = self.clock.now();
        self.compare_times();
        let mut state = self.state();
        if let Some(lag) = lag {
            state.lag.resume(lag, now, self.clock.wall());
        }
        for meta in shown {
            state.index.found(meta, now);
            // It may have been stored or made here just before.
            let is_new = state.lag.is_recent(meta.updated_at);
            state.lag.stored(meta, is_new, now);
        }
        if covered.is_none() {
            state.listing_right = ListingRight::Untried;
        }
        state.index.expire(self.config.refresh);
        drop(state);
        self.shown.store(true, Ordering::Release);
        let mut refresh = self.refresh_state();
        refresh.used_until = Some(now + ttl);
        if covered.is_some() {
            (refresh.since, refresh.covered) = (Some(now), covered);
        }
    }

    /// What is known of a vault that lags. For [`Cache::resume`].
    pub fn lag_memory(&self) -> Option<LagMemory> {
        self.state().lag.memory(self.clock.now(), self.clock.wall())
    }

    /// By the vault's clock: all earlier changes are known. For [`Cache::resume`].
    pub fn covered(&self) -> Option<SystemTime> {
        if self.is_unlisted() {
            // A successor must not take the refusal of a listing for a revocation either.
            return None;
        }
        self.refresh_state().covered
    }

    /// Whether changes arrive unasked, well within the refresh time.
    pub fn is_refreshed(&self) -> bool {
        let now = self.clock.now();
        let refresh = self.refresh_state();
        let recent =
            refresh.last.is_some_and(|last| now.saturating_duration_since(last) < self.config.refresh);
        refresh.runs && recent && refresh.failed.is_none()
    }

    /// Runs ticks forever. `wanted` returns whether a subscriber wants changes although nothing is
    /// looked up; `watched`, which is expensive, whether a watcher exists that did not register.
    /// `on_change` runs after each tick, `on_idle` when the mount becomes idle.
    pub async fn keep_fresh(
        self: Arc<Self>,
        wanted: impl Fn() -> bool,
        watched: impl Fn() -> bool,
        on_change: impl Fn(),
        on_idle: impl Fn(),
    ) {
        if self.config.refresh.is_zero() {
            return;
        }
        self.refresh_state().runs = true;
        let mut checked: Option<(Instant, bool)> = None;
        // Where not all names are known, as after a takeover, no name counts as changed: tracking
        // begins without a pause.
        let mut is_due = wanted() && self.state().index.complete_as_listed().is_none();
        loop {
            let now = self.clock.now();
            checked = match checked {
                _ if self.is_used() => None,
                // A new watcher looks names up first.
                Some((at, watches)) if !watches || now.saturating_duration_since(at) < WATCH_CHECK => checked,
                _ => Some((now, watched())),
            };
            let is_watched = checked.is_some_and(|(_, watches)| watches);
            if !self.is_used() && !is_watched && !wanted() {
                self.refresh_state().scan = None;
                if !self.was_idle.swap(true, Ordering::AcqRel) {
                    on_idle();
                }
                // Checked now and then: a subscriber does not announce itself.
                let while_asleep = self.config.refresh.max(Duration::from_secs(1));
                let _ = tokio::time::timeout(while_asleep, self.woken.notified()).await;
                continue;
            }
            if !std::mem::take(&mut is_due) {
                tokio::time::sleep(self.pause()).await;
            }
            if self.is_used() || is_watched || wanted() {
                self.tick().await;
                self.was_idle.store(false, Ordering::Release);
                on_change();
                if self.ask_again().await {
                    on_change();
                }
                if self.scan_for_deletions().await {
                    on_change();
                }
            }
        }
    }

    /// Repeats the query where a listing contradicted a change made here. True if it did.
    pub async fn ask_again(self: &Arc<Self>) -> bool {
        if self.state().lag.questions().is_empty() {
            return false;
        }
        tokio::time::sleep(AGAIN).await;
        let questions = self.state().lag.questions();
        for name in questions.iter().take(MOST_AGAIN) {
            // A failure is left to the next tick.
            let _ = self.fetch_in_background(name).await;
        }
        true
    }

    /// A value in use is fetched because of a tick.
    pub(super) fn count_request(&self) {
        self.refresh_state().requests += 1;
    }

    /// A page is requested, by a tick or its follow-up.
    pub(super) fn spend(&self) {
        let mut refresh = self.refresh_state();
        refresh.requests += 1;
        refresh.spent += 1;
    }

    fn is_used(&self) -> bool {
        let now = self.clock.now();
        self.refresh_state().used_until.is_some_and(|until| now < until)
    }

    /// The vault's time, or an earlier one if it is unknown.
    fn vaults_time(&self) -> SystemTime {
        self.vaults_time_if_known().unwrap_or_else(|| self.clock.wall() - UNKNOWN_SKEW)
    }

    /// Records the vault's clock: what it dates to a moment ago may be missing in some answers.
    /// What it dates to the future was made before the clock was set back.
    pub(super) fn compare_times(&self) {
        let now = self.vaults_time_if_known().map_or_else(|| self.clock.wall(), |early| early + OVERLAP);
        self.state().lag.set_recent(now - WINDOW - OVERLAP..now + OVERLAP);
    }

    /// The vault's time, by the last report of its clock.
    fn vaults_time_if_known(&self) -> Option<SystemTime> {
        let (ours, ahead) = (self.clock.wall(), self.vault.status().ahead_ms?);
        let off = Duration::from_millis(ahead.unsigned_abs());
        let theirs = if ahead >= 0 { ours.checked_add(off) } else { ours.checked_sub(off) };
        Some(bounded(bounded(theirs?) - OVERLAP))
    }

    /// The time that one request is worth, if a tenth of the budget is to last.
    pub(super) fn request_cost(&self) -> Duration {
        let budget = self.vault.status().budget;
        budget.map_or(Duration::ZERO, |budget| {
            Duration::from_secs_f64(budget.window_s) * SHARE / budget.limit.max(1)
        })
    }

    /// The refresh time, where requests are free.
    pub(super) fn wanted_period(&self) -> Duration {
        self.config.refresh.max(SHORTEST)
    }

    /// The worth of the requests between two ticks.
    fn cost(&self) -> Duration {
        let pages = match self.ask() {
            Ask::Since(_) | Ask::First => 1,
            Ask::All => self.state().index.complete().map_or(1, |(_, pages)| pages),
        };
        let requests = pages.max(self.refresh_state().spent);
        self.request_cost().saturating_mul(u32::try_from(requests).unwrap_or(u32::MAX))
    }

    /// The interval without variation.
    pub(super) fn period(&self) -> Duration {
        self.wanted_period().max(self.cost())
    }

    fn pause(&self) -> Duration {
        let varied = |(least, most): (f64, f64)| least + (most - least) * fraction();
        self.wanted_period().mul_f64(varied(BETWEEN)).max(self.cost().mul_f64(varied(PAID)))
    }

    /// How many requests there may be between two ticks without a longer interval; `None` if any
    /// number.
    pub(super) fn affordable(&self) -> Option<usize> {
        let request_cost = self.request_cost().mul_f64(PAID.1);
        let between = self.wanted_period().mul_f64(BETWEEN.0);
        (!request_cost.is_zero()).then(|| between.div_duration_f64(request_cost) as usize)
    }

    fn ask(&self) -> Ask {
        let (covered, many) = {
            let refresh = self.refresh_state();
            (refresh.covered, refresh.many)
        };
        let listed = self.state().index.complete_as_listed();
        let Some(covered) = covered.filter(|_| self.vault.capabilities().search) else { return Ask::All };
        match listed {
            Some((_, pages)) if pages <= 1 => Ask::All,
            None if !many => Ask::First,
            Some(_) | None => Ask::Since(covered - OVERLAP),
        }
    }

    /// One tick. Results are in the index and in [`Cache::take_changes`].
    pub async fn tick(self: &Arc<Self>) {
        let asked = self.clock.now();
        let began = {
            let mut refresh = self.refresh_state();
            refresh.ticks += 1;
            refresh.spent = 0;
            if refresh.since.is_none() {
                refresh.since = Some(asked);
                refresh.covered = Some(self.vaults_time());
            }
            refresh.since
        };
        let mut ask = self.ask();
        let mut answer = self.ask_pages(ask, asked).await;
        if ask == Ask::First && self.refresh_state().many && answer.is_ok() {
            ask = self.ask();
            answer = self.ask_pages(ask, asked).await;
        }
        // A tick that has to wait says nothing of the foreground, which may go before it.
        let is_left = || self.vault.status().budget.is_some_and(|budget| budget.remaining > 0);
        if !matches!(&answer, Err(e) if e.kind == ErrorKind::RateLimited && is_left()) {
            self.note(&answer);
        }
        match answer {
            Ok(latest) => {
                let took = self.clock.now().saturating_duration_since(asked);
                let now = self.vaults_time_if_known();
                let mut refresh = self.refresh_state();
                // The clock may have been set back since the last tick and repeat the same times.
                let since = refresh.last.map_or(took, |last| took + asked.saturating_duration_since(last));
                let again = now.map(|now| now - since);
                let put_back =
                    again.zip(refresh.covered).is_some_and(|(t, covered)| t < covered - 2 * OVERLAP);
                let seen = latest.map(|latest| latest - took);
                refresh.covered = refresh.covered.max(seen);
                refresh.covered = refresh.covered.min(again).or(refresh.covered);
                (refresh.last, refresh.failed) = (Some(asked), None);
                drop(refresh);
                if let (Ask::Since(_), Some(since), false) = (ask, began, put_back) {
                    self.state().index.confirm(since, asked);
                }
            }
            // Logged once, where it was detected.
            Err(_) if self.is_unlisted() => self.refresh_state().failed = None,
            Err(e) => {
                if !is_outage(e.kind) {
                    tracing::warn!(error = %e, "remote changes cannot be polled");
                }
                let mut refresh = self.refresh_state();
                if e.kind == ErrorKind::Unauthorized {
                    // Nothing is confirmed any more: a new chain begins.
                    (refresh.since, refresh.covered, refresh.scan) = (None, None, None);
                    refresh.last = None;
                }
                refresh.failed = Some(e.to_string());
            }
        }
    }

    /// Requests page after page; the latest time that it saw.
    async fn ask_pages(&self, ask: Ask, asked: Instant) -> Result<Option<SystemTime>> {
        let mut query = ListQuery::first();
        if let Ask::Since(time) = ask {
            query.updated_after = Some(time);
        }
        let mut cursors = Cursors::default();
        let (mut pages, mut latest) = (0, None);
        loop {
            if pages >= BURST {
                tokio::time::sleep(self.request_cost()).await;
            }
            let call = Call::background(self.clock.now() + self.config.timeout);
            if self.listing_refused_before().is_none() {
                self.spend();
            }
            let page = self.vault.list(&call, &query).await?;
            pages += 1;
            latest = page.items.iter().filter_map(|item| item.updated_at).max().max(latest);
            let next = cursors.advance(page.next)?;
            let mut state = self.state();
            state.ingest(&page.items, asked, self.clock.now());
            match (next, ask) {
                (Some(_), Ask::First) => {
                    drop(state);
                    self.refresh_state().many = true;
                    return Ok(None);
                }
                (Some(cursor), _) => query = query.next(cursor),
                (None, Ask::All | Ask::First) => {
                    state.end_listing(asked, pages);
                    return Ok(latest);
                }
                (None, Ask::Since(_)) => return Ok(latest),
            }
        }
    }

    /// What `status` says.
    pub fn refresh_status(&self) -> RefreshStatus {
        let (now, period) = (self.clock.now(), self.period());
        let deletions = self.deletions_show_within();
        let awake = self.is_used();
        let refresh = self.refresh_state();
        RefreshStatus {
            awake,
            tick_s: period.as_secs_f64(),
            ticks: refresh.ticks,
            requests: refresh.requests,
            deletion_requests: refresh.scan_requests,
            deletions_s: deletions.map(|within| within.as_secs_f64()),
            last_s: refresh.last.map(|last| now.saturating_duration_since(last).as_secs()),
            error: refresh.failed.clone(),
        }
    }
}

/// Somewhere in 0..1.
fn fraction() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}
