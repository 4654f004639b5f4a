//! Reading directories: known names at once, others page by page, and how long the kernel may cache
//! them.
//!
//! 1. If the names are not fresh, those of each page of the vault's listing are shown as soon as
//!    the page arrives. A name that a reader was given as a file stays a file, although other names
//!    begin with it (`resolve`).
//! 2. The kernel caches the names. With OPENDIR each answer says whether its cache is valid.
//!    Without ([`crate::fs::Options::reads_unopened`]) it is notified when the names change or stop
//!    being fresh. No reader gets a listing older than the refresh time.
//! 3. While a reader is in the middle of a directory the kernel gets no newer names to cache: it
//!    would search them for the reader's position, and stop where that is gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::fs::handle::{Handle, Held};
use crate::fs::inode::{Dir, DirKind};
use crate::fs::journal::Key;
use crate::fs::name::{DirPrefix, Rest};
use crate::fs::namespace::listing::{DirEntry, Handed, Listing, Listings, Stamp};
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::{FileKind, FileSystem, Opened};
use crate::vault::cache::NameStream;
use crate::vault::{Call, Error, ErrorKind, ObjectId, ObjectName, attribution};

/// How often cached names are checked while they are fresh.
const WATCH: Duration = Duration::from_millis(250);

/// How often unused listings are dropped, where nothing else is to do.
const TIDY: Duration = Duration::from_secs(10);

impl FileSystem {
    /// OPENDIR.
    pub fn opendir(&self, ctx: &RequestCtx, ino: u64) -> Result<Opened> {
        self.env.cache().used(self.env.longest_ttl());
        if let Some(handle) = self.handles.opened_before(ctx) {
            return Ok(handle.opened());
        }
        let dir = self.directory(ino)?;
        let fresh = self.is_known(&dir);
        let stamp = self.stamp();
        let mut listings = self.listings();
        let opens = listings.opens.entry(ino).or_default();
        *opens += 1;
        let alone = *opens == 1;
        let keep_cache = fresh && listings.handed.get(&ino).is_some_and(|handed| handed.stamp == Some(stamp));
        let cache_dir = keep_cache || (alone && matches!(dir.kind, DirKind::Tree(_) | DirKind::Histories(_)));
        if !keep_cache {
            listings.handed.remove(&ino);
        }
        drop(listings);
        let held = Held::Dir { dir, listing: Mutex::default(), cached: cache_dir };
        Ok(Opened { keep_cache, cache_dir, ..self.handles.open(ctx, held) })
    }

    /// RELEASEDIR.
    pub fn releasedir(&self, fh: u64) {
        let handle = self.handles.close(fh);
        if let Some(Held::Dir { dir, .. }) = handle.as_ref().map(|handle| &handle.held) {
            self.listings().closed(dir.ino);
        }
    }

    /// READDIR after a position; from the beginning (0) with the present names. Without a handle
    /// (`fh` 0) the directory is read.
    pub async fn readdir(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        ino: u64,
        fh: u64,
        after: u64,
    ) -> Result<Arc<Listing>> {
        self.env.cache().used(self.env.longest_ttl());
        let (dir, known) = self.listing_to_read(ino, fh, after)?;
        match known {
            Some(listing) if listing.is_cut_off() => {
                Box::pin(self.complete(ctx.call().await, &dir, fh, &listing)).await
            }
            Some(listing) => match listing.ready(after) {
                Some(ready) => ready.map(|()| listing),
                None => {
                    let call = ctx.call().await;
                    Box::pin(self.wait_for_others(call, &dir, fh, listing, after)).await
                }
            },
            None => Box::pin(self.ask_anew(ctx.call().await, &dir, fh, after)).await,
        }
    }

    /// The directory, and the listing to answer from if it is known without a request.
    fn listing_to_read(
        self: &Arc<Self>,
        ino: u64,
        fh: u64,
        after: u64,
    ) -> Result<(Arc<Dir>, Option<Arc<Listing>>)> {
        let dir = match fh {
            0 => self.directory(ino)?,
            _ => match &self.handles.get(fh)?.held {
                Held::Dir { dir, .. } => dir.clone(),
                Held::File { .. } | Held::Version(_) | Held::Control(_) => return Err(Errno::ENOTDIR),
            },
        };
        let recent = self.listings().recent(dir.ino, self.env.now());
        let going_on = match (after, &recent) {
            (0, Some(recent)) => recent.is_growing().then(|| recent.clone()),
            (0, None) => None,
            (_, recent) => self.own_listing(fh).or_else(|| recent.clone()),
        };
        if let Some(listing) = going_on {
            if listing.is_growing() {
                self.env.cache().join_listing_out();
            }
            self.keep_for(fh, &listing);
            return Ok((dir, Some(listing)));
        }
        if !self.is_known(&dir) {
            return Ok((dir, None));
        }
        let stamp = self.stamp();
        let entries = self.entries_now(&dir);
        let listing = match recent {
            Some(recent) => recent.succeeded_by(entries),
            None => Listing::whole(entries),
        };
        self.put_listing(&dir, &listing);
        self.hand_out(&dir, fh, &listing, Some(stamp));
        Ok((dir, Some(listing)))
    }

    /// Readers of directories have to wait for a new request, at any position.
    pub(in crate::fs) fn take_listings_away(&self) {
        for handle in self.handles.all() {
            if let Held::Dir { listing, dir, .. } = &handle.held
                && !matches!(dir.kind, DirKind::Control)
                && let Some(listing) = &*listing.lock()
            {
                listing.take_away();
            }
        }
        self.listings().take_away();
        self.forget_kernel_listings();
    }

    fn own_listing(&self, fh: u64) -> Option<Arc<Listing>> {
        match &self.handles.get(fh).ok()?.held {
            Held::Dir { listing, .. } => listing.lock().clone(),
            Held::File { .. } | Held::Version(_) | Held::Control(_) => None,
        }
    }

    fn keep_for(&self, fh: u64, kept: &Arc<Listing>) {
        if let Ok(handle) = self.handles.get(fh)
            && let Handle { held: Held::Dir { listing, .. }, .. } = &*handle
        {
            *listing.lock() = Some(kept.clone());
        }
    }

    /// Resumes a listing that a death or a revocation cut off: its readers' positions stay.
    async fn complete(
        self: &Arc<Self>,
        call: &Call,
        dir: &Arc<Dir>,
        fh: u64,
        listing: &Listing,
    ) -> Result<Arc<Listing>> {
        let entries = match &dir.kind {
            DirKind::History(name, id) => self.numbers_in(dir, name, id, call).await?,
            DirKind::Tree(_) | DirKind::Histories(_) | DirKind::Control => {
                if !self.is_known(dir) {
                    let listed = self.env.cache().list_all(call).await;
                    listed.map_err(|e| self.env.failed("readdir", path(dir), &e))?;
                }
                self.entries_now(dir)
            }
        };
        let listing = listing.succeeded_by(entries);
        self.put_listing(dir, &listing);
        self.keep_for(fh, &listing);
        self.note_listing(dir.ino, &listing);
        Ok(listing)
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

    fn is_known(&self, dir: &Dir) -> bool {
        match dir.kind {
            DirKind::Control => true,
            DirKind::Tree(_) | DirKind::Histories(_) => self.env.cache().is_complete(),
            DirKind::History(..) => false,
        }
    }

    /// What changes when a name appears or disappears, here or in the vault.
    fn stamp(&self) -> Stamp {
        let here = self.inodes.lock().changes();
        (self.env.cache().generation(), here)
    }

    fn put_listing(self: &Arc<Self>, dir: &Dir, listing: &Arc<Listing>) {
        let mut listings = self.listings();
        listings.put(dir.ino, listing.clone(), self.env.now());
        self.watch_listings(&mut listings);
    }

    /// The reader has this listing from its beginning, and so has the kernel.
    fn hand_out(self: &Arc<Self>, dir: &Dir, fh: u64, listing: &Arc<Listing>, stamp: Option<Stamp>) {
        self.keep_for(fh, listing);
        let cached = match self.handles.get(fh).as_deref() {
            Ok(Handle { held: Held::Dir { cached, .. }, .. }) => *cached,
            _ => self.env.options().reads_unopened(),
        };
        let until = match dir.kind {
            DirKind::Control => return,
            DirKind::History(..) => Some(self.env.now() + self.env.options().refresh),
            DirKind::Tree(_) | DirKind::Histories(_) => None,
        };
        if cached {
            let mut listings = self.listings();
            listings.handed.insert(dir.ino, Handed { stamp, until });
            self.watch_listings(&mut listings);
        }
    }

    /// Waits for a listing that another reader began.
    async fn wait_for_others(
        self: &Arc<Self>,
        call: &Call,
        dir: &Arc<Dir>,
        fh: u64,
        listing: Arc<Listing>,
        after: u64,
    ) -> Result<Arc<Listing>> {
        let waited = self.wait_for(dir, &listing, after, call).await;
        if waited != Err(Errno::EBUSY) || after != 0 || attribution::current().payer().guest().is_some() {
            return waited.map(|()| listing);
        }
        // It may have failed because a guest's share was used up.
        self.ask_anew(call, dir, fh, after).await
    }

    async fn wait_for(&self, dir: &Dir, listing: &Listing, after: u64, call: &Call) -> Result<()> {
        listing.wait_for(after, self.env.left(call)).await.unwrap_or_else(|| {
            let late = Error::new(ErrorKind::Deadline, "the vault did not list its names in time");
            Err(self.env.failed("readdir", path(dir), &late))
        })
    }

    /// Requests the names, for the reader of this handle first, and waits for those that it reads.
    async fn ask_anew(
        self: &Arc<Self>,
        call: &Call,
        dir: &Arc<Dir>,
        fh: u64,
        after: u64,
    ) -> Result<Arc<Listing>> {
        let listing = self.begin_asking(dir, call).await?;
        self.hand_out(dir, fh, &listing, None);
        self.wait_for(dir, &listing, after, call).await.map(|()| listing)
    }

    /// Requests the names.
    async fn begin_asking(self: &Arc<Self>, dir: &Arc<Dir>, call: &Call) -> Result<Arc<Listing>> {
        match &dir.kind {
            DirKind::History(name, id) => Ok(Listing::whole(self.numbers_in(dir, name, id, call).await?)),
            DirKind::Tree(under) | DirKind::Histories(under) => Ok(self.follow_listing(dir, under)),
            DirKind::Control => Ok(Listing::whole(self.entries_now(dir))),
        }
    }

    /// The versions of an object, by their numbers.
    async fn numbers_in(
        self: &Arc<Self>,
        dir: &Dir,
        name: &ObjectName,
        id: &ObjectId,
        call: &Call,
    ) -> Result<Vec<DirEntry>> {
        let history = self.versions_of(call, name, id).await?;
        let numbers = history.iter().map(|v| v.number.to_string());
        Ok(with_dots(dir.ino, numbers.map(|name| DirEntry::new(name, FileKind::Regular, None))))
    }

    /// A listing that grows with the vault's pages, for all present readers of this directory.
    fn follow_listing(self: &Arc<Self>, dir: &Arc<Dir>, under: &DirPrefix) -> Arc<Listing> {
        let mut listings = self.listings();
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
        let (fs, dir, under, grown) = (self.clone(), dir.clone(), under.clone(), listing.clone());
        self.env.spawn(async move { fs.grow(&dir, &under, &grown, stream).await });
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
                    let hangs = "the vault does not go on listing its names";
                    break Err(Error::new(ErrorKind::Deadline, hangs));
                }
            }
        };
        drop(positions);
        if let Err(e) = ended
            && !self.env.cache().stale_names_suffice(&e)
        {
            self.listings().drop_listing(dir.ino, listing);
            listing.fail(Errno::from(&e), |is_news| {
                if is_news {
                    self.env.failed("readdir", path(dir), &e);
                } else {
                    tracing::debug!(error = %e, "a listing failed that no request waits for");
                }
            });
            return;
        }
        let stamp = self.stamp();
        let lost_some = listing.finish(self.entries_now(dir));
        let fresh = self.is_known(dir) && !lost_some;
        let mut listings = self.listings();
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
                table.keep_a_file(&owner, name);
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

    pub(in crate::fs) fn listings(&self) -> parking_lot::MutexGuard<'_, Listings> {
        self.listings.lock()
    }

    /// Maintains the listings, in a task that ends when there are none.
    fn watch_listings(self: &Arc<Self>, listings: &mut Listings) {
        if std::mem::replace(&mut listings.watched, true) {
            return;
        }
        let fs = Arc::downgrade(self);
        let tick = if self.env.options().reads_unopened() { WATCH } else { TIDY };
        self.env.spawn(async move {
            let mut wait = tick;
            loop {
                tokio::time::sleep(wait).await;
                let Some(fs) = fs.upgrade() else { return };
                match fs.observe_listings() {
                    true => wait = fs.env.cache().complete_for().clamp(Duration::from_millis(1), tick),
                    false => return,
                }
            }
        });
    }

    /// Invalidates names in the kernel that may be wrong. False when nothing is left to maintain.
    fn observe_listings(&self) -> bool {
        let (now, fresh, stamp) = (self.env.now(), self.env.cache().is_complete(), self.stamp());
        let mut listings = self.listings();
        let nothing_recent = listings.tidy(now);
        for (ino, parts) in std::mem::take(&mut listings.dropped) {
            self.unnote_listing(ino, parts);
        }
        if !self.env.options().reads_unopened() {
            listings.watched = !nothing_recent;
            return listings.watched;
        }
        let mut untrue = Vec::new();
        let growing: Vec<u64> = listings.growing();
        listings.handed.retain(|ino, handed| {
            let true_still = match (handed.stamp, handed.until) {
                (_, Some(until)) => now < until,
                (Some(then), None) => fresh && then == stamp,
                (None, None) => growing.contains(ino),
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

    /// The kernel has to ask before a reader continues, also in an open directory.
    pub(in crate::fs) fn forget_kernel_listings(&self) {
        let dirs: Vec<u64> = self.inodes.lock().all_dirs();
        dirs.into_iter().for_each(|ino| self.env.inval_inode(ino));
    }
}

/// The directory's name for the log.
fn path(dir: &Dir) -> &str {
    match &dir.kind {
        DirKind::Tree(under) | DirKind::Histories(under) => under.as_str(),
        DirKind::History(name, _) => name.as_str(),
        DirKind::Control => "",
    }
}

/// The entries, with `.` and `..` first.
pub(in crate::fs) fn with_dots(ino: u64, entries: impl Iterator<Item = DirEntry>) -> Vec<DirEntry> {
    let dot = |name: &str| DirEntry::new(name, FileKind::Directory, Some(ino));
    [dot("."), dot("..")].into_iter().chain(entries).collect()
}
