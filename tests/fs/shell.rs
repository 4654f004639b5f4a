//! A pretend program on a pretend kernel: each call sends the requests that Linux sends for the
//! system call.
//!
//! Nothing is cached here, so every walk is one LOOKUP a component: the dearest case. Sizes are
//! asserted on every read, lookups are counted as the kernel counts them. Time is tokio's paused
//! time, for vault and file system alike; each look at the clock is a nanosecond later than the one
//! before, as on a machine. A worker that dies ([`Shell::die_after`]) has a successor at once,
//! which gets the request in flight again.

#[path = "elsewhere.rs"]
mod elsewhere;
#[path = "helper.rs"]
pub mod helper;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::dying::{Gate, Live, Mortal};
use vaultfs::clock::Clock;
use vaultfs::fs::{
    Attr, Builder, Caller, Create, DirEntry, Entry, Errno, FileKind, FileSystem, HelperCall, Journal, Kernel,
    MemoryJournal, Options, ROOT, Remover, RequestCtx, Result, SetAttr, Step, Work,
};
use vaultfs::vault::testing::faulty::FaultyVault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, MemoryVault, OBJECT_CAPABILITIES};
use vaultfs::vault::{Capabilities, DynVault};

use helper::Helper;

/// O_WRONLY | O_CREAT | O_TRUNC, as a shell's `>` opens.
pub const CREATE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
/// A new file that must not exist yet.
pub const EXCL: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
pub const READ: i32 = libc::O_RDONLY;
pub const WRITE: i32 = libc::O_WRONLY;

/// Tokio's time, which tests move; no two looks at it are alike.
#[derive(Debug)]
struct PausedClock {
    start: tokio::time::Instant,
    wall: SystemTime,
    looks: AtomicU64,
}

impl Clock for PausedClock {
    fn now(&self) -> Instant {
        let look = Duration::from_nanos(self.looks.fetch_add(1, Ordering::Relaxed));
        tokio::time::Instant::now().into_std() + look
    }
    fn wall(&self) -> SystemTime {
        let look = Duration::from_nanos(self.looks.fetch_add(1, Ordering::Relaxed));
        self.wall + self.start.elapsed() + look
    }
    fn since_boot(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The kernel as far as the file system asks something of it.
#[derive(Default)]
pub struct FakeKernel {
    /// Entries that it was notified to forget.
    entries: Mutex<Vec<(u64, String)>>,
    /// Inodes whose pages and attributes it was told to forget.
    pub inodes: Mutex<Vec<u64>>,
    pub helper: Helper,
    /// Somebody watches something.
    pub watched: std::sync::atomic::AtomicBool,
    /// What it is notified to forget it forgets later.
    pub is_slow: std::sync::atomic::AtomicBool,
    then: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl FakeKernel {
    /// All is forgotten that was to be.
    pub fn forget(&self) {
        std::mem::take(&mut *self.then.lock().unwrap()).into_iter().for_each(|then| then());
    }
}

impl Kernel for FakeKernel {
    fn inval_entry(&self, parent: u64, name: &OsStr) {
        self.entries.lock().unwrap().push((parent, name.to_string_lossy().into_owned()));
    }
    fn inval_inode(&self, ino: u64) {
        self.inodes.lock().unwrap().push(ino);
    }
    fn after_notices(&self, then: Box<dyn FnOnce() + Send>) {
        self.then.lock().unwrap().push(then);
        if !self.is_slow.load(Ordering::Relaxed) {
            self.forget();
        }
    }
    fn order(&self, number: u64, to: u32, call: &HelperCall) -> bool {
        self.helper.order(number, to, call)
    }
    fn has_mount(&self, _pid: u32, _mount: u64) -> bool {
        true
    }
    fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }
}

/// A mounted file system, and the program that uses it.
pub struct Shell {
    pub fs: Live,
    /// Everything the file system asks goes through here.
    pub vault: Arc<FaultyVault>,
    /// The vault itself: what is done to it here is done elsewhere.
    pub memory: Arc<MemoryVault>,
    pub clock: Arc<dyn Clock>,
    pub kernel: Arc<FakeKernel>,
    /// Who sends the requests; 0 is a process that cannot be seen.
    pub pid: u32,
    /// What the worker writes down.
    journal: Mutex<Arc<dyn Mortal>>,
    /// The number of the next request.
    unique: AtomicU64,
    pub deaths: AtomicU64,
    /// The program dies with the worker: its request is not sent again.
    pub is_killed: AtomicBool,
    lookups: Mutex<HashMap<u64, u64>>,
}

/// An open file.
#[derive(Debug, Clone, Copy)]
pub struct Fd {
    pub ino: u64,
    pub fh: u64,
    no_flush: bool,
}

/// A file system over `vault` that goes on with the state of `journal`.
pub fn file_system(
    vault: DynVault,
    options: Options,
    clock: Arc<dyn Clock>,
    journal: Arc<dyn Journal>,
) -> Arc<FileSystem> {
    Builder { vault, first_page: None, options, clock, journal, fresh_mount: false, audit: None }.build()
}

#[cfg(debug_assertions)]
impl Fd {
    /// One that another worker's program has open.
    pub fn new(ino: u64, fh: u64) -> Self {
        Self { ino, fh, no_flush: false }
    }
}

impl Shell {
    /// A cold mount of an empty vault in the object dialect.
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        Self::of(OBJECT_CAPABILITIES, options)
    }

    pub fn kv() -> Self {
        Self::of(KV_CAPABILITIES, Options::default())
    }

    pub fn of(capabilities: Capabilities, options: Options) -> Self {
        let clock = Self::paused();
        let memory = Arc::new(MemoryVault::new(capabilities, clock.clone()));
        Self::mounted(memory, clock, options)
    }

    /// Tokio's time.
    pub fn paused() -> Arc<dyn Clock> {
        let (start, wall) = (tokio::time::Instant::now(), SystemTime::now());
        Arc::new(PausedClock { start, wall, looks: AtomicU64::new(0) })
    }

    /// Another mount of the same vault, cold.
    pub fn remount(&self) -> Self {
        self.remount_with(self.fs.options().clone())
    }

    pub fn remount_with(&self, options: Options) -> Self {
        Self::mounted(self.memory.clone(), self.clock.clone(), options)
    }

    /// A mount of a vault that is not in memory: `memory` stays empty.
    #[allow(dead_code, reason = "of the test binaries with this module, `faults` uses it")]
    pub fn over(vault: DynVault, clock: Arc<dyn Clock>, options: Options) -> Self {
        let memory = Arc::new(MemoryVault::new(vault.capabilities(), clock.clone()));
        Self::of_vault(vault, memory, clock, options)
    }

    /// A cold mount of this vault, whose clock may be another.
    pub fn mounted(memory: Arc<MemoryVault>, clock: Arc<dyn Clock>, options: Options) -> Self {
        Self::of_vault(memory.clone(), memory, clock, options)
    }

    /// A mount of `vault`, through which `memory` is reached.
    pub fn of_vault(
        vault: DynVault,
        memory: Arc<MemoryVault>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Self {
        Self::with_journal(vault, memory, clock, options, Arc::new(MemoryJournal::default()))
    }

    /// The same, with this journal.
    pub fn with_journal(
        vault: DynVault,
        memory: Arc<MemoryVault>,
        clock: Arc<dyn Clock>,
        options: Options,
        journal: Arc<dyn Mortal>,
    ) -> Self {
        let vault = Arc::new(FaultyVault::with_clock(vault, clock.clone()));
        let gate = Arc::new(Gate { vault: vault.clone(), journal: journal.clone() });
        let fs = file_system(gate, options, clock.clone(), journal.clone());
        let kernel = Arc::new(FakeKernel::default());
        fs.attach_kernel(kernel.clone());
        Self {
            fs: Live::new(fs),
            vault,
            memory,
            clock,
            kernel,
            pid: 0,
            journal: Mutex::new(journal),
            unique: AtomicU64::new(2),
            deaths: AtomicU64::new(0),
            is_killed: AtomicBool::new(false),
            lookups: Mutex::default(),
        }
    }

    /// The worker dies after so many more steps of its journal: commits, where a test does not say
    /// otherwise.
    pub fn die_after(&self, records: u64) {
        self.journal.lock().unwrap().stop_after(records);
    }

    /// There is no memory for bytes of values from now on, as far as this worker is concerned.
    pub fn miss_values(&self) {
        self.journal.lock().unwrap().miss_values();
    }

    /// Another worker goes on, if this one has died.
    pub fn bury(&self) -> bool {
        let mut journal = self.journal.lock().unwrap();
        if !journal.has_stopped() {
            return false;
        }
        self.deaths.fetch_add(1, Ordering::Relaxed);
        let successor = journal.successor();
        let gate = Arc::new(Gate { vault: self.vault.clone(), journal: successor.clone() });
        let options = self.fs.options().clone();
        let fs = file_system(gate, options, self.clock.clone(), successor.clone());
        fs.attach_kernel(self.kernel.clone());
        self.fs.succeed(fs);
        *journal = successor;
        drop(journal);
        Helper::goes_on(self);
        true
    }

    /// Sends a request, and again to the successor if the worker dies of it.
    async fn request<'a, T: 'a, W: Work<T> + 'a>(
        &self,
        work: impl Fn(Arc<FileSystem>, RequestCtx) -> W,
    ) -> Result<T> {
        self.request_of(self.caller(), work).await
    }

    async fn request_of<'a, T: 'a, W: Work<T> + 'a>(
        &self,
        caller: Caller,
        work: impl Fn(Arc<FileSystem>, RequestCtx) -> W,
    ) -> Result<T> {
        // Number and all, as the kernel does.
        let mut unique = self.unique.fetch_add(2, Ordering::Relaxed);
        loop {
            let fs = self.fs.clone();
            let result = self.step(fs.run(unique, caller, &work)).await;
            if !self.bury() {
                fs.completed(unique);
                return result;
            }
            if self.is_killed.load(Ordering::Relaxed) {
                return Err(Errno::EIO);
            }
            unique |= 1 << 63;
        }
    }

    /// Begins a request, which has its answer at once or waits for the vault.
    pub fn begin<'a, T: 'a, W: Work<T> + 'a>(
        &self,
        work: impl FnOnce(Arc<FileSystem>, RequestCtx) -> W,
    ) -> Step<'a, T> {
        self.fs.run(self.unique.fetch_add(2, Ordering::Relaxed), self.caller(), work)
    }

    /// Sends a request that is not sent again.
    pub async fn once<'a, T: 'a, W: Work<T> + 'a>(
        &self,
        work: impl FnOnce(Arc<FileSystem>, RequestCtx) -> W,
    ) -> Result<T> {
        self.once_of(self.caller(), work).await
    }

    pub async fn once_of<'a, T: 'a, W: Work<T> + 'a>(
        &self,
        caller: Caller,
        work: impl FnOnce(Arc<FileSystem>, RequestCtx) -> W,
    ) -> Result<T> {
        let (fs, unique) = (self.fs.clone(), self.unique.fetch_add(2, Ordering::Relaxed));
        let result = self.step(fs.run(unique, caller, work)).await;
        fs.completed(unique);
        result
    }

    pub fn caller(&self) -> Caller {
        Caller { pid: self.pid, uid: 0, gid: 0 }
    }

    /// Time goes by, and with it timers.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
        while self.bury() {
            // The successor's timers begin anew.
            tokio::time::sleep(time).await;
        }
    }

    /// Everything that is cached is past its time.
    pub async fn refresh(&self) {
        self.pass(self.fs.options().refresh + Duration::from_millis(1)).await;
    }

    /// What `work` gives, and how many requests it cost.
    pub async fn cost<T>(&self, work: impl Future<Output = T>) -> (T, u64) {
        let before = self.vault.total();
        let result = work.await;
        (result, self.vault.total() - before)
    }

    // Requests.

    pub async fn step<T>(&self, step: Step<'_, T>) -> Result<T> {
        match step {
            Step::Ready(result) => result,
            Step::Pending(work) => work.await,
        }
    }

    fn hold(&self, entry: Entry) -> Entry {
        *self.lookups.lock().unwrap().entry(entry.attr.ino).or_default() += 1;
        entry
    }

    pub async fn lookup(&self, parent: u64, name: &str) -> Result<Option<Entry>> {
        let found =
            self.request(|fs, ctx| async move { fs.lookup(&ctx, parent, OsStr::new(name)).await }).await?;
        Ok(found.map(|entry| self.hold(entry)))
    }

    /// The kernel drops what it holds, as under memory pressure.
    pub fn forget_all(&self) {
        let mut held = std::mem::take(&mut *self.lookups.lock().unwrap());
        for (ino, count) in self.kernel.helper.let_go() {
            *held.entry(ino).or_default() += count;
        }
        held.into_iter().for_each(|(ino, count)| self.fs.forget(ino, count));
        self.bury();
    }

    /// Entries that the kernel was notified to forget since the last call.
    pub fn invalidated(&self) -> Vec<(u64, String)> {
        std::mem::take(&mut *self.kernel.entries.lock().unwrap())
    }

    /// The directory of the last component, and that component.
    async fn parent<'p>(&self, path: &'p str) -> Result<(u64, &'p str)> {
        match path.rsplit_once('/') {
            None => Ok((ROOT, path)),
            Some((dir, name)) => Ok((self.stat(dir).await?.ino, name)),
        }
    }

    async fn find(&self, path: &str) -> Result<Option<Attr>> {
        let mut attr = self.fs.getattr(ROOT)?.0;
        for component in path.split('/').filter(|c| !c.is_empty()) {
            if attr.kind != FileKind::Directory {
                return Err(Errno::ENOTDIR);
            }
            match self.lookup(attr.ino, component).await? {
                Some(entry) => attr = entry.attr,
                None => return Ok(None),
            }
        }
        Ok(Some(attr))
    }

    // System calls.

    pub async fn stat(&self, path: &str) -> Result<Attr> {
        self.find(path).await?.ok_or(Errno::ENOENT)
    }

    pub fn fstat(&self, fd: &Fd) -> Attr {
        self.fs.getattr(fd.ino).unwrap().0
    }

    pub async fn open(&self, path: &str, flags: i32) -> Result<Fd> {
        self.open_mode(path, flags, 0o666).await
    }

    pub async fn open_mode(&self, path: &str, flags: i32, mode: u32) -> Result<Fd> {
        let (dir, name) = self.parent(path).await?;
        let Some(entry) = self.lookup(dir, name).await? else {
            if flags & libc::O_CREAT == 0 {
                return Err(Errno::ENOENT);
            }
            return self.create(dir, name, flags, mode).await;
        };
        if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 {
            return Err(Errno::EEXIST);
        }
        let ino = entry.attr.ino;
        let sent = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
        let opened = self.request(|fs, ctx| async move { fs.open(&ctx, ino, sent).await }).await?;
        let fd = Fd { ino, fh: opened.fh, no_flush: opened.no_flush };
        if flags & libc::O_TRUNC != 0 {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            if let Err(e) =
                self.request(|fs, ctx| async move { fs.setattr(&ctx, ino, None, set).await }).await
            {
                self.close(fd).await?;
                return Err(e);
            }
        }
        Ok(fd)
    }

    /// CREATE, whatever a lookup would say.
    pub async fn create(&self, dir: u64, name: &str, flags: i32, mode: u32) -> Result<Fd> {
        let create = Create { mode, umask: 0o022, flags };
        let made = self
            .request(|fs, ctx| async move { fs.create(&ctx, dir, OsStr::new(name), create).await })
            .await?;
        let ino = self.hold(made.0).attr.ino;
        Ok(Fd { ino, fh: made.1.fh, no_flush: made.1.no_flush })
    }

    pub fn pwrite(&self, fd: &Fd, offset: u64, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.written(bytes.as_ref(), |fs, bytes| fs.write(fd.fh, offset, bytes))
    }

    /// The kernel writes pages of a mapping back.
    #[allow(dead_code, reason = "of the test binaries with this module, `fs` uses it")]
    pub fn pwrite_mapped(&self, fd: &Fd, offset: u64, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.written(bytes.as_ref(), |fs, bytes| fs.write_mapped(fd.fh, offset, bytes))
    }

    fn written(&self, bytes: &[u8], write: impl Fn(&FileSystem, &[u8]) -> Result<u32>) -> Result<()> {
        // Sent again, it writes the same bytes at the same place.
        let mut written = write(&self.fs, bytes);
        while self.bury() {
            written = write(&self.fs, bytes);
        }
        assert_eq!(written? as usize, bytes.len());
        Ok(())
    }

    /// All bytes; their number is what stat says.
    pub async fn read_all(&self, fd: &Fd) -> Result<Vec<u8>> {
        let size = self.fs.getattr(fd.ino)?.0.size;
        let slice =
            self.request(|fs, ctx| async move { fs.read(&ctx, fd.ino, fd.fh, 0, 1 << 21).await }).await?;
        assert_eq!(slice.len() as u64, size, "stat and read differ");
        Ok(slice.expose().to_vec())
    }

    /// One FLUSH: a descriptor of several is closed.
    pub async fn flush(&self, fd: &Fd) -> Result<()> {
        self.request(|fs, ctx| async move { fs.flush(&ctx, fd.fh).await }).await
    }

    pub async fn flush_from(&self, fd: &Fd, pid: u32) -> Result<()> {
        let caller = Caller { pid, uid: 0, gid: 0 };
        self.request_of(caller, |fs, ctx| async move { fs.flush(&ctx, fd.fh).await }).await
    }

    pub async fn fsync(&self, fd: &Fd) -> Result<()> {
        self.request(|fs, ctx| async move { fs.fsync(&ctx, fd.fh).await }).await
    }

    /// The last close of a file: what close(2) says is what FLUSH says.
    pub async fn close(&self, fd: Fd) -> Result<()> {
        let flushed = if fd.no_flush { Ok(()) } else { self.flush(&fd).await };
        self.release(fd).await;
        flushed
    }

    pub async fn release(&self, fd: Fd) {
        self.request(|fs, ctx| async move { fs.release(&ctx, fd.fh).await }).await.unwrap();
    }

    pub async fn ftruncate(&self, fd: &Fd, size: u64) -> Result<()> {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let (attr, _) =
            self.request(|fs, ctx| async move { fs.setattr(&ctx, fd.ino, Some(fd.fh), set).await }).await?;
        assert_eq!(attr.size, size);
        Ok(())
    }

    /// truncate(2): the kernel sends the time as well.
    pub async fn truncate(&self, path: &str, size: u64) -> Result<()> {
        let ino = self.stat(path).await?.ino;
        let set = SetAttr { size: Some(size), mtime: Some(self.fs.now()), ..SetAttr::default() };
        let (attr, _) = self.request(|fs, ctx| async move { fs.setattr(&ctx, ino, None, set).await }).await?;
        assert_eq!(attr.size, size);
        Ok(())
    }

    pub async fn set(&self, path: &str, set: SetAttr) -> Result<Attr> {
        let ino = self.stat(path).await?.ino;
        Ok(self.request(|fs, ctx| async move { fs.setattr(&ctx, ino, None, set).await }).await?.0)
    }

    pub async fn chmod(&self, path: &str, mode: u32) -> Result<Attr> {
        self.set(path, SetAttr { mode: Some(mode), ..SetAttr::default() }).await
    }

    pub async fn utimens(&self, path: &str, mtime: SystemTime) -> Result<Attr> {
        self.set(path, SetAttr { mtime: Some(mtime), ..SetAttr::default() }).await
    }

    pub async fn rm(&self, path: &str) -> Result<()> {
        self.unlink(path, Remover::Removes).await
    }

    pub async fn unlink(&self, path: &str, by: Remover) -> Result<()> {
        let (dir, name) = self.parent(path).await?;
        self.lookup(dir, name).await?.ok_or(Errno::ENOENT)?;
        self.request(
            |fs, ctx| async move { fs.unlink(&ctx, dir, OsStr::new(name), std::future::ready(by)).await },
        )
        .await
    }

    #[allow(dead_code, reason = "of the test binaries with this module, `fs` uses it")]
    pub async fn fsync_dir(&self, path: &str) -> Result<()> {
        let ino = self.stat(path).await?.ino;
        self.request(|fs, ctx| async move { fs.fsync_dir(&ctx, ino).await }).await
    }

    /// mknod(2) of a regular file.
    #[allow(dead_code, reason = "of the test binaries with this module, `fs` uses it")]
    pub async fn mknod(&self, path: &str) -> Result<Attr> {
        let (dir, name) = self.parent(path).await?;
        if self.lookup(dir, name).await?.is_some() {
            return Err(Errno::EEXIST);
        }
        let mode = libc::S_IFREG | 0o644;
        let made = self
            .request(|fs, ctx| async move { fs.mknod(&ctx, dir, OsStr::new(name), mode, 0o022).await })
            .await?;
        Ok(self.hold(made).attr)
    }

    #[allow(dead_code, reason = "of the test binaries with this module, `fs` uses it")]
    pub async fn link(&self, from: &str, to: &str) -> Result<Attr> {
        let ino = self.stat(from).await?.ino;
        let (dir, name) = self.parent(to).await?;
        if self.lookup(dir, name).await?.is_some() {
            return Err(Errno::EEXIST);
        }
        let made =
            self.request(|fs, ctx| async move { fs.link(&ctx, ino, dir, OsStr::new(name)).await }).await?;
        Ok(self.hold(made).attr)
    }

    pub async fn mkdir(&self, path: &str) -> Result<Attr> {
        let (dir, name) = self.parent(path).await?;
        if self.lookup(dir, name).await?.is_some() {
            return Err(Errno::EEXIST);
        }
        let made =
            self.request(|fs, ctx| async move { fs.mkdir(&ctx, dir, OsStr::new(name), 0o755).await }).await?;
        Ok(self.hold(made).attr)
    }

    pub async fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path).await?;
        let entry = self.lookup(dir, name).await?.ok_or(Errno::ENOENT)?;
        if entry.attr.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        self.request(|fs, ctx| async move { fs.rmdir(&ctx, dir, OsStr::new(name)).await }).await
    }

    pub async fn mv(&self, from: &str, to: &str) -> Result<()> {
        self.mv_flags(from, to, 0).await
    }

    pub async fn mv_flags(&self, from: &str, to: &str, flags: u32) -> Result<()> {
        let (from_dir, from_name) = self.parent(from).await?;
        self.lookup(from_dir, from_name).await?.ok_or(Errno::ENOENT)?;
        let (to_dir, to_name) = self.parent(to).await?;
        self.lookup(to_dir, to_name).await?;
        let (from, to) = ((from_dir, OsStr::new(from_name)), (to_dir, OsStr::new(to_name)));
        self.request(|fs, ctx| async move { fs.rename(&ctx, from, to, flags).await }).await
    }

    /// The entries of a directory from its beginning; `fh` 0 where there is no handle.
    pub async fn getdents(&self, ino: u64, fh: u64) -> Result<Vec<DirEntry>> {
        self.getdents_after(ino, fh, Vec::new()).await
    }

    /// The same, going on behind what has been read.
    pub async fn getdents_after(
        &self,
        ino: u64,
        fh: u64,
        mut entries: Vec<DirEntry>,
    ) -> Result<Vec<DirEntry>> {
        loop {
            let after = entries.last().map_or(0, |last| last.cookie);
            let listing =
                self.request(|fs, ctx| async move { fs.readdir(&ctx, ino, fh, after).await }).await?;
            self.fs.note_listing(ino, &listing);
            let more = listing.after(after);
            if more.is_empty() {
                return Ok(entries);
            }
            entries.extend(more);
        }
    }

    /// Names in a directory, directories with a slash behind.
    pub async fn ls(&self, path: &str) -> Result<Vec<String>> {
        let ino = self.stat(path).await?.ino;
        let dir = self.request(|fs, ctx| async move { fs.opendir(&ctx, ino) }).await?;
        let listed = self.getdents(ino, dir.fh).await;
        self.fs.releasedir(dir.fh);
        self.bury();
        let mut names = Vec::new();
        for entry in listed?.iter().filter(|e| e.name != "." && e.name != "..") {
            let slash = if entry.kind == FileKind::Directory { "/" } else { "" };
            names.push(format!("{}{slash}", entry.name));
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "a name is listed twice in {path:?}: {names:?}");
        Ok(names)
    }

    // Programs.

    /// `printf … > path` of a shell: the descriptor is copied and the first one closed before
    /// anything is written.
    pub async fn write_file(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let fd = self.open(path, CREATE).await?;
        self.flush(&fd).await?;
        if let Err(e) = self.pwrite(&fd, 0, bytes) {
            // The error of the write is what the program sees.
            let _ = self.close(fd).await;
            return Err(e);
        }
        self.close(fd).await
    }

    /// `cat path`.
    pub async fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let size = self.stat(path).await?.size;
        let fd = self.open(path, READ).await?;
        let bytes = self.read_all(&fd).await;
        self.close(fd).await?;
        let bytes = bytes?;
        assert_eq!(bytes.len() as u64, size, "lookup and read of {path:?} differ");
        Ok(bytes)
    }

    /// `cat path` as text.
    pub async fn cat(&self, path: &str) -> String {
        let bytes = self.read_file(path).await.unwrap_or_else(|e| panic!("cat {path:?}: {e:?}"));
        String::from_utf8(bytes).unwrap()
    }

    /// The files below `path` with their bytes, found by listing.
    pub async fn walk(&self, path: &str) -> Result<std::collections::BTreeMap<String, Vec<u8>>> {
        let mut files = std::collections::BTreeMap::new();
        let mut dirs = vec![path.to_owned()];
        while let Some(dir) = dirs.pop() {
            for name in self.ls(&dir).await? {
                let at = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                match at.strip_suffix('/') {
                    Some(below) => dirs.push(below.to_owned()),
                    None => drop(files.insert(at.clone(), self.read_file(&at).await?)),
                }
            }
        }
        Ok(files)
    }
}
