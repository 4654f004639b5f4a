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

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::handle::{Handle, Held};
use crate::fs::inode::{Dir, DirKind};
use crate::fs::namespace::dir::with_dots;
use crate::fs::namespace::listing::{DirEntry, Listing};
use crate::fs::namespace::listings::{Handed, Stamp};
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::{FileKind, FileSystem, Opened};
use crate::vault::{Call, Error, ErrorKind, ObjectId, ObjectName, attribution};

impl FileSystem {
    /// OPENDIR.
    pub fn opendir(&self, ctx: &RequestCtx, ino: u64) -> Result<Opened> {
        self.env.cache().note_use(self.env.longest_ttl());
        if let Some(handle) = self.handles.opened_before(ctx) {
            return Ok(handle.opened());
        }
        let dir = self.namespace.directory(ino)?;
        let (keep_cache, cache_dir) = self.namespace.dir_opened(&dir);
        let held = Held::Dir { dir, listing: Mutex::default(), cached: cache_dir };
        Ok(Opened { keep_cache, cache_dir, ..self.handles.open(ctx, held) })
    }

    /// RELEASEDIR.
    pub fn releasedir(&self, fh: u64) {
        let handle = self.handles.close(fh);
        if let Some(Held::Dir { dir, .. }) = handle.as_ref().map(|handle| &handle.held) {
            self.namespace.dir_closed(dir.ino);
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
        self.env.cache().note_use(self.env.longest_ttl());
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

    /// Journals what readers were given, for a successor.
    pub fn note_listing(&self, ino: u64, listing: &Listing) {
        self.namespace.note_listing(ino, listing);
    }

    /// The directory, and the listing to answer from if it is known without a request.
    fn listing_to_read(
        self: &Arc<Self>,
        ino: u64,
        fh: u64,
        after: u64,
    ) -> Result<(Arc<Dir>, Option<Arc<Listing>>)> {
        let dir = match fh {
            0 => self.namespace.directory(ino)?,
            _ => match &self.handles.get(fh)?.held {
                Held::Dir { dir, .. } => dir.clone(),
                Held::File { .. } | Held::Version(_) | Held::Control(_) => return Err(Errno::ENOTDIR),
            },
        };
        let recent = self.namespace.recent_listing(dir.ino);
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
        if !self.namespace.is_known(&dir) {
            return Ok((dir, None));
        }
        let stamp = self.namespace.stamp();
        let entries = self.namespace.entries_now(&dir);
        let listing = match recent {
            Some(recent) => recent.succeeded_by(entries),
            None => Listing::whole(entries),
        };
        self.namespace.put_listing(&dir, &listing);
        self.hand_out(&dir, fh, &listing, Some(stamp));
        Ok((dir, Some(listing)))
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
                if !self.namespace.is_known(dir) {
                    let listed = self.env.cache().list_all(call).await;
                    listed.map_err(|e| self.env.failed("readdir", dir.log_name(), &e))?;
                }
                self.namespace.entries_now(dir)
            }
        };
        let listing = listing.succeeded_by(entries);
        self.namespace.put_listing(dir, &listing);
        self.keep_for(fh, &listing);
        self.namespace.note_listing(dir.ino, &listing);
        Ok(listing)
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
            self.namespace.kernel_caches(dir, Handed { stamp, until });
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
            Err(self.env.failed("readdir", dir.log_name(), &late))
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
            DirKind::Tree(under) | DirKind::Histories(under) => Ok(self.namespace.follow_listing(dir, under)),
            DirKind::Control => Ok(Listing::whole(self.namespace.entries_now(dir))),
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
}
