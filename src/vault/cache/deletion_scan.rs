//! Deletions in the kv dialect, which reports changes and no deletions: a scan lists all names.
//!
//! 1. **After a tick**, and with what that leaves of its tenth of the budget: of few names all
//!    pages at once, of more a few each time, so that no tick has to wait. Where the vault has no
//!    limit, it takes a small part of the time.
//! 2. Where not all names were listed yet, they are listed up to [`FEW`] pages: a vault of a
//!    million names is not taken into memory because one of them is used.
//! 3. A listing that another caller began later and completed replaces this one.

use std::time::{Duration, Instant};

use crate::vault::cache::{Cache, is_outage};
use crate::vault::model::object::Cursors;
use crate::vault::{Call, ErrorKind, ListQuery, Result};

/// Pages that are listed although no caller has asked for all names.
const FEW: usize = 20;

/// Without a limit a listing is begun when so much time for each page has passed since the last.
const REST: Duration = Duration::from_millis(20);

/// Without a limit there is one page after a tick for so much of the time between ticks.
const SLICE: Duration = Duration::from_millis(2);

/// A listing that is not at its end.
#[derive(Debug)]
pub(super) struct DeletionScan {
    asked: Instant,
    query: ListQuery,
    cursors: Cursors,
    pages: usize,
}

/// How a page left it.
enum ScanStep {
    On,
    Ended,
}

impl Cache {
    /// Lists on after a tick. True if a listing has come to its end.
    pub async fn scan_for_deletions(&self) -> bool {
        let Some(mut scan) = self.scan() else { return false };
        for _ in 0..self.pages_after_tick() {
            match self.scan_page(&mut scan).await {
                Ok(ScanStep::Ended) => return true,
                Ok(ScanStep::On) => {}
                // Goes on when the vault does.
                Err(e) if is_outage(e.kind) && e.kind != ErrorKind::BadAnswer => break,
                Err(e) => {
                    tracing::warn!(error = %e, "remote deletions cannot be scanned for");
                    return false;
                }
            }
            if scan.pages >= FEW && self.state().index.complete_as_listed().is_none() {
                self.refresh_state().too_large = true;
                return false;
            }
        }
        self.refresh_state().scan = Some(scan);
        false
    }

    /// Within what time a deletion shows, if nothing fails.
    pub(super) fn deletions_show_within(&self) -> Option<Duration> {
        let period = self.period();
        let (_, pages) = self.state().index.complete_as_listed()?;
        if !self.needs_scan() {
            return Some(period);
        }
        let ticks = pages.div_ceil(self.pages_after_tick());
        Some(period.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX)).max(self.rest(pages)))
    }

    /// The vault reports its changes, and no tick lists all names.
    fn needs_scan(&self) -> bool {
        let pages = self.state().index.complete_as_listed().map(|(_, pages)| pages);
        let many = pages.map_or_else(|| self.refresh_state().many, |pages| pages > 1);
        self.vault.capabilities().search && many
    }

    /// The listing that is under way, or one that is due.
    fn scan(&self) -> Option<DeletionScan> {
        let now = self.clock.now();
        let listed = self.state().index.complete_as_listed();
        let (begun, too_large) = {
            let mut refresh = self.refresh_state();
            if refresh.failed.is_some() {
                return None;
            }
            (refresh.scan.take(), refresh.too_large)
        };
        let overtaken = |scan: &DeletionScan| listed.is_some_and(|(at, _)| at >= scan.asked);
        if let Some(scan) = begun.filter(|scan| !overtaken(scan)) {
            return Some(scan);
        }
        let due = match listed {
            Some((at, pages)) => now.saturating_duration_since(at) >= self.rest(pages),
            None => !too_large,
        };
        (due && self.needs_scan()).then(|| DeletionScan {
            asked: now,
            query: ListQuery::first(),
            cursors: Cursors::default(),
            pages: 0,
        })
    }

    /// From one listing to the next, at the least.
    fn rest(&self, pages: usize) -> Duration {
        let page = if self.request_cost().is_zero() { REST } else { Duration::ZERO };
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        (self.wanted_period() / 2).max(page.saturating_mul(pages))
    }

    fn pages_after_tick(&self) -> usize {
        let left = match self.affordable() {
            Some(requests) => requests.saturating_sub(1),
            None => self.wanted_period().div_duration_f64(SLICE) as usize,
        };
        left.max(1)
    }

    async fn scan_page(&self, scan: &mut DeletionScan) -> Result<ScanStep> {
        let call = Call::background(self.clock.now() + self.config.timeout);
        self.spend();
        self.refresh_state().scan_requests += 1;
        let page = self.vault.list(&call, &scan.query).await?;
        scan.pages += 1;
        let next = scan.cursors.advance(page.next)?;
        let mut state = self.state();
        state.ingest(&page.items, scan.asked, self.clock.now());
        match next {
            Some(cursor) => {
                scan.query = scan.query.next(cursor);
                Ok(ScanStep::On)
            }
            None => {
                state.end_listing(scan.asked, scan.pages);
                Ok(ScanStep::Ended)
            }
        }
    }
}
