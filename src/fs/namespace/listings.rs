//! The listings that readers and the kernel have, by directory.
//!
//! A task watches them while there are any: it drops what is not used, and makes the kernel forget
//! names that changed or are no longer fresh.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::inode::{Dir, DirKind};
use crate::fs::journal::Key;
use crate::fs::name::{DirPrefix, Rest};
use crate::fs::namespace::Namespace;
use crate::fs::namespace::dir::with_dots;
use crate::fs::namespace::listing::{DirEntry, Listing};
use crate::fs::types::attr::FileKind;
use crate::fs::types::errno::Errno;
use crate::vault::cache::NameStream;
use crate::vault::{Error, ErrorKind, ObjectName};

/// How long a listing is kept for readers that resume.
const KEPT: Duration = Duration::from_secs(30);

/// How often cached names are checked while they are fresh.
const WATCH: Duration = Duration::from_millis(250);

/// How often unused listings are dropped, where nothing else is to do.
const TIDY: Duration = Duration::from_secs(10);

/// The change counters of the vault's names and of the names made here, at the time of a listing:
/// while both are unchanged the listing is valid.
pub type Stamp = (u64, u64);

/// A listing that the kernel keeps.
#[derive(Debug, Clone, Copy)]
pub struct Handed {
    /// Valid as long as this is; `None` where that is unknown.
    pub stamp: Option<Stamp>,
    /// And as long as this.
    pub until: Option<Instant>,
}

/// The listings that are in use, by directory.
#[derive(Debug, Default)]
pub struct Listings {
    recent: HashMap<u64, (Arc<Listing>, Instant)>,
    /// Directories with dropped listings, and their journaled parts.
    dropped: Vec<(u64, u32)>,
    /// What the kernel may have.
    handed: HashMap<u64, Handed>,
    /// Open handles.
    opens: HashMap<u64, usize>,
    /// A task maintains them.
    watched: bool,
}

impl Listings {
    /// The last listing of a directory, if it was not dropped.
    fn recent(&mut self, ino: u64, now: Instant) -> Option<Arc<Listing>> {
        let (listing, used) = self.recent.get_mut(&ino)?;
        *used = now;
        Some(listing.clone())
    }

    /// The listing from now on.
    fn put(&mut self, ino: u64, listing: Arc<Listing>, now: Instant) {
        if let Some((before, _)) = self.recent.insert(ino, (listing.clone(), now)) {
            listing.take_the_place_of(&before);
        }
    }

    /// The listing is withdrawn.
    fn drop_listing(&mut self, ino: u64, listing: &Arc<Listing>) {
        if self.recent.get(&ino).is_some_and(|(recent, _)| Arc::ptr_eq(recent, listing)) {
            self.recent.remove(&ino);
            self.dropped.push((ino, listing.noted_parts()));
        }
    }

    /// Drops what was not used lately. Whether nothing is left to maintain.
    fn tidy(&mut self, now: Instant) -> bool {
        self.recent.retain(|ino, (listing, used)| {
            let stays = listing.is_growing() || now.saturating_duration_since(*used) < KEPT;
            if !stays {
                self.dropped.push((*ino, listing.noted_parts()));
            }
            stays
        });
        if self.recent.is_empty() {
            self.recent.shrink_to_fit();
        }
        self.recent.is_empty()
    }
}

impl Namespace {
    /// A handle of the directory was opened: whether what the kernel has cached of it is true, and
    /// whether it may cache what it is given.
    pub fn dir_opened(&self, dir: &Dir) -> (bool, bool) {
        let fresh = self.is_known(dir);
        let stamp = self.stamp();
        let mut listings = self.listings.lock();
        let opens = listings.opens.entry(dir.ino).or_default();
        *opens += 1;
        let alone = *opens == 1;
        let keep_cache =
            fresh && listings.handed.get(&dir.ino).is_some_and(|handed| handed.stamp == Some(stamp));
        if !keep_cache {
            listings.handed.remove(&dir.ino);
        }
        let may_cache = alone && matches!(dir.kind, DirKind::Tree(_) | DirKind::Histories(_));
        (keep_cache, keep_cache || may_cache)
    }

    /// A handle that the last worker had opened.
    pub fn restore_open_dir(&self, ino: u64) {
        *self.listings.lock().opens.entry(ino).or_default() += 1;
    }

    /// A handle was closed.
    pub fn dir_closed(&self, ino: u64) {
        let mut listings = self.listings.lock();
        if let Some(count) = listings.opens.get_mut(&ino) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                listings.opens.remove(&ino);
            }
        }
    }

    /// The directory was removed; another one may get its number later.
    pub fn dir_removed(&self, ino: u64) {
        let mut listings = self.listings.lock();
        listings.handed.remove(&ino);
        if let Some((listing, _)) = listings.recent.remove(&ino) {
            listings.dropped.push((ino, listing.noted_parts()));
        }
    }

    /// The last listing of a directory, if it was not dropped.
    pub fn recent_listing(&self, ino: u64) -> Option<Arc<Listing>> {
        self.listings.lock().recent(ino, self.env.now())
    }

    /// A listing of the last worker.
    pub fn restore_listing(&self, ino: u64, listing: Arc<Listing>) {
        self.listings.lock().put(ino, listing, self.env.now());
    }

    /// The kernel caches a listing that is true as long as `handed` says.
    pub fn kernel_caches(self: &Arc<Self>, dir: &Dir, handed: Handed) {
        let mut listings = self.listings.lock();
        listings.handed.insert(dir.ino, handed);
        self.watch_listings(&mut listings);
    }

    /// See [`Listing::take_away`]; the kernel forgets what it has cached.
    pub fn take_listings_away(&self) {
        self.listings.lock().recent.values().for_each(|(listing, _)| listing.take_away());
        self.forget_kernel_listings();
    }

    /// The kernel has to ask before a reader continues, also in an open directory.
    pub fn forget_kernel_listings(&self) {
        let dirs: Vec<u64> = self.inodes.lock().all_dirs();
        dirs.into_iter().for_each(|ino| self.env.inval_inode(ino));
    }

    /// Whether all names of the directory are known, and fresh.
    pub fn is_known(&self, dir: &Dir) -> bool {
        match dir.kind {
            DirKind::Control => true,
            DirKind::Tree(_) | DirKind::Histories(_) => self.env.cache().is_complete(),
            DirKind::History(..) => false,
        }
    }

    /// What changes when a name appears or disappears, here or in the vault.
    pub fn stamp(&self) -> Stamp {
        let here = self.inodes.lock().changes();
        (self.env.cache().generation(), here)
    }

    /// The listing of the directory from now on.
    pub fn put_listing(self: &Arc<Self>, dir: &Dir, listing: &Arc<Listing>) {
        let mut listings = self.listings.lock();
        listings.put(dir.ino, listing.clone(), self.env.now());
        self.watch_listings(&mut listings);
    }

    /// Journals what readers were given, for a successor.
    pub fn note_listing(&self, ino: u64, listing: &Listing) {
        if self.env.journal().is_enabled() {
            listing.note(|note| {
                let tx = self.env.journal().begin();
                note.obsolete.for_each(|part| tx.delete(&Key::ListingPart(ino, part)));
                tx.record(&Key::ListingPart(ino, note.part), &note.entries);
                tx.record(&Key::Listing(ino), &note.head);
            });
        }
    }

    /// No reader resumes this listing.
    fn unnote_listing(&self, ino: u64, parts: u32) {
        let tx = self.env.journal().begin();
        (0..parts).for_each(|part| tx.delete(&Key::ListingPart(ino, part)));
        tx.delete(&Key::Listing(ino));
    }

    /// A listing that grows with the vault's pages, for all present readers of this directory.
    pub fn follow_listing(self: &Arc<Self>, dir: &Arc<Dir>, under: &DirPrefix) -> Arc<Listing> {
        let mut listings = self.listings.lock();
        if let Some(recent) = listings.recent(dir.ino, self.env.now())
            && recent.is_growing()
        {
            return recent;
        }
        let listing = Listing::growing(with_dots(dir.ino, std::iter::empty()));
        listings.put(dir.ino, listing.clone(), self.env.now());
        self.watch_listings(&mut listings);
        drop(listings);
        let stream = self.env.cache().stream(under.as_str());
        let (namespace, dir, under, grown) = (self.clone(), dir.clone(), under.clone(), listing.clone());
        self.env.spawn(async move { namespace.grow(&dir, &under, &grown, stream).await });
        listing
    }

    async fn grow(
        self: &Arc<Self>,
        dir: &Dir,
        under: &DirPrefix,
        listing: &Arc<Listing>,
        mut stream: NameStream,
    ) {
        let mut positions = HashMap::from([(".".to_owned(), 0), ("..".to_owned(), 1)]);
        // With stale names at hand the wait for a hanging vault is short.
        let patience = self.env.cache().patience_with_listing().unwrap_or(Duration::MAX);
        let ended = loop {
            match tokio::time::timeout(patience, stream.names()).await {
                Ok(Some(names)) => {
                    let found = self.entries_of(dir, under, &names, listing, &positions);
                    listing.grow(found, &mut positions);
                }
                Ok(None) => break stream.ended().await,
                Err(_) => {
                    let hangs = "the vault stopped listing its names";
                    break Err(Error::new(ErrorKind::Deadline, hangs));
                }
            }
        };
        drop(positions);
        if let Err(e) = ended
            && !self.env.cache().stale_names_suffice(&e)
        {
            self.listings.lock().drop_listing(dir.ino, listing);
            listing.fail(Errno::from(&e), |is_news| {
                if is_news {
                    self.env.failed("readdir", dir.log_name(), &e);
                } else {
                    tracing::debug!(error = %e, "a listing failed that no request waits for");
                }
            });
            return;
        }
        let stamp = self.stamp();
        let lost_some = listing.finish(self.entries_now(dir));
        let fresh = self.is_known(dir) && !lost_some;
        let mut listings = self.listings.lock();
        if let Some(handed) = listings.handed.get_mut(&dir.ino) {
            handed.stamp = fresh.then_some(stamp);
            if !fresh {
                handed.until = Some(self.env.now());
            }
        }
    }

    /// How new names show in `under`.
    fn entries_of(
        &self,
        dir: &Dir,
        under: &DirPrefix,
        names: &[ObjectName],
        listing: &Listing,
        positions: &HashMap<String, usize>,
    ) -> Vec<DirEntry> {
        let histories = matches!(dir.kind, DirKind::Histories(_));
        let mut table = self.inodes.lock();
        let mut found: Vec<DirEntry> = Vec::new();
        let mut dirs = HashSet::new();
        for name in names {
            let mut shown = table.shown(name, under);
            if let Some((text, Rest::Dir(below))) = &shown
                && positions.get(text).is_some_and(|at| listing.is_shown_file(*at))
                && let Some(owner) = below.self_name()
            {
                table.pin_beside(&owner, name);
                shown = table.shown(name, under);
            }
            let Some((text, rest)) = shown else { continue };
            let own = matches!(&rest, Rest::Dir(dir) if !name.as_str().starts_with(dir.as_str()));
            if (own || rest == Rest::File) && table.is_hidden(name) {
                continue;
            }
            let (kind, ino) = match &rest {
                Rest::Dir(below) => (FileKind::Directory, Some(table.listed_dir(below))),
                Rest::File => (FileKind::Regular, Some(table.listed_file(name))),
            };
            if kind == FileKind::Directory {
                dirs.insert(text.clone());
            } else if dirs.contains(&text) || positions.contains_key(&text) {
                // The directory exists; this is `.self` in it.
                continue;
            }
            let (kind, ino) = if histories { (FileKind::Directory, None) } else { (kind, ino) };
            found.push(DirEntry::new(text, kind, ino));
        }
        found
    }

    /// Maintains the listings, in a task that ends when there are none.
    fn watch_listings(self: &Arc<Self>, listings: &mut Listings) {
        if std::mem::replace(&mut listings.watched, true) {
            return;
        }
        let namespace = Arc::downgrade(self);
        let tick = if self.env.options().reads_unopened() { WATCH } else { TIDY };
        self.env.spawn(async move {
            let mut wait = tick;
            loop {
                tokio::time::sleep(wait).await;
                let Some(namespace) = namespace.upgrade() else { return };
                if !namespace.observe_listings() {
                    return;
                }
                wait = namespace.env.cache().complete_for().clamp(Duration::from_millis(1), tick);
            }
        });
    }

    /// Invalidates names in the kernel that may be wrong. False when nothing is left to maintain.
    fn observe_listings(&self) -> bool {
        let (now, fresh, stamp) = (self.env.now(), self.env.cache().is_complete(), self.stamp());
        let mut listings = self.listings.lock();
        let nothing_recent = listings.tidy(now);
        for (ino, parts) in std::mem::take(&mut listings.dropped) {
            self.unnote_listing(ino, parts);
        }
        if !self.env.options().reads_unopened() {
            listings.watched = !nothing_recent;
            return listings.watched;
        }
        let mut untrue = Vec::new();
        let Listings { recent, handed, .. } = &mut *listings;
        handed.retain(|ino, handed| {
            let true_still = match (handed.stamp, handed.until) {
                (_, Some(until)) => now < until,
                (Some(then), None) => fresh && then == stamp,
                (None, None) => recent.get(ino).is_some_and(|(listing, _)| listing.is_growing()),
            };
            if !true_still {
                untrue.push(*ino);
            }
            true_still
        });
        let over = nothing_recent && listings.handed.is_empty();
        listings.watched = !over;
        drop(listings);
        untrue.into_iter().for_each(|ino| self.env.inval_inode(ino));
        !over
    }
}
