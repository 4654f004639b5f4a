//! Prefetch: a program that has listed a directory and asks for the third size in it will ask for
//! the others, too.
//!
//! `ls -l` and its kin go through a listing in its order and need each value for its size. From the
//! third on, the values of the names that follow are fetched beside, at most [`WINDOW`] in front of
//! the reader, a few at a time, in the background, and with no more than a quarter of the requests
//! that are left. What is fetched in vain costs requests and nothing else. In a long listing only
//! requests in its order count: finding any other name in it would take longer than asking for the
//! value.

use std::sync::{Arc, Weak};

use futures_util::StreamExt;

use crate::fs::inode::DirKind;
use crate::fs::name;
use crate::fs::name::{Decoded, DirPrefix};
use crate::fs::namespace::Namespace;
use crate::fs::namespace::listing::{DirEntry, Listing};
use crate::vault::cache::Peek;
use crate::vault::{ObjectName, attribution};

/// The look that shows that more will follow.
const PREFETCH_AFTER: u32 = 3;

/// No value is fetched that is further behind the last one that was asked for.
const WINDOW: usize = 100;

/// Longer listings are not searched for a name.
const SEARCHED: usize = 10_000;

/// Requests that are out at once.
const MAX_IN_FLIGHT: usize = 8;

/// How a directory is being gone through.
#[derive(Debug)]
pub struct ScanTracker {
    /// Of which listing.
    listing: Weak<Listing>,
    lookups: u32,
    /// The position of the last one.
    at: u64,
    /// The position up to which values are here or on their way.
    fetched: u64,
    /// Something is on its way.
    out: bool,
}

/// Scans that are remembered; the others begin again.
const MAX_SCANS: usize = 64;

impl Namespace {
    /// The value of `name`, which shows in `under`, has to be fetched for its size.
    pub fn prefetch(self: &Arc<Self>, under: &DirPrefix, name: &ObjectName) {
        let Some(dir) = self.inodes.lock().dir_ino(&DirKind::Tree(under.clone())) else { return };
        let Some(listing) = self.recent_listing(dir) else { return };
        self.looked_up(dir, &listing, under, name);
    }

    /// The value of `name` in the listing of directory `dir` has to be fetched for its size.
    fn looked_up(self: &Arc<Self>, dir: u64, listing: &Arc<Listing>, under: &DirPrefix, name: &ObjectName) {
        let mut scans = self.scans.lock();
        if scans.len() >= MAX_SCANS && !scans.contains_key(&dir) {
            scans.retain(|_, scan| scan.out);
        }
        let fresh =
            || ScanTracker { listing: Arc::downgrade(listing), lookups: 0, at: 0, fetched: 0, out: false };
        let scan = scans.entry(dir).or_insert_with(fresh);
        if scan.listing.as_ptr() != Arc::as_ptr(listing) {
            *scan = ScanTracker { out: scan.out, ..fresh() };
        }
        let Some((text, _)) = name::split(name.as_str(), under) else { return };
        let Some(here) = listing.position(&text, scan.at, WINDOW, SEARCHED) else { return };
        scan.at = here;
        scan.lookups += 1;
        if scan.lookups < PREFETCH_AFTER || scan.out {
            return;
        }
        let fetched = scan.fetched;
        drop(scans);
        let Some((wanted, last)) = self.names_to_prefetch(listing, under, here, fetched) else { return };
        if wanted.is_empty() {
            return;
        }
        if let Some(scan) = self.scans.lock().get_mut(&dir) {
            (scan.fetched, scan.out) = (last, true);
        }
        let namespace = self.clone();
        self.env.spawn(attribution::on_behalf_of(attribution::current(), async move {
            let fetch = |name: ObjectName| {
                let cache = namespace.env.cache().clone();
                async move { cache.fetch_ahead(&name).await }
            };
            futures_util::stream::iter(wanted).for_each_concurrent(MAX_IN_FLIGHT, fetch).await;
            if let Some(scan) = namespace.scans.lock().get_mut(&dir) {
                scan.out = false;
            }
        }));
    }

    /// The objects to fetch behind `here` in the listing, and the position of the last; `None`
    /// while there are enough on this side of `fetched`.
    fn names_to_prefetch(
        &self,
        listing: &Listing,
        under: &DirPrefix,
        here: u64,
        fetched: u64,
    ) -> Option<(Vec<ObjectName>, u64)> {
        let mut entries: Vec<DirEntry> = Vec::new();
        listing.peek(here, |entry| {
            entries.push(entry.clone());
            entries.len() == WINDOW
        });
        if entries.iter().filter(|entry| entry.cookie <= fetched).count() > WINDOW / 2 {
            return None;
        }
        let last = entries.last()?.cookie;
        let objects = entries.iter().filter(|entry| entry.cookie > fetched);
        let objects = objects.filter_map(|entry| match name::decode(entry.name.as_bytes(), under) {
            Ok(Decoded::Entry { as_file, .. } | Decoded::Beside { as_file, .. }) => as_file,
            Ok(Decoded::SelfFile(name)) => Some(name),
            Err(_) => None,
        });
        let missing = objects.filter(|name| matches!(self.env.cache().peek(name), Peek::Exists));
        Some((missing.take(self.may_fetch_ahead()).collect(), last))
    }

    /// A quarter of what is left, and nothing of what the foreground is kept free for.
    fn may_fetch_ahead(&self) -> usize {
        match self.env.cache().vault().status().budget {
            None => WINDOW,
            Some(budget) if budget.remaining <= budget.limit.div_ceil(4) => 0,
            Some(budget) => (budget.remaining / 4) as usize,
        }
    }
}
