//! Between fuser and the file system: decodes a request, makes one call, sends one reply
//! (`dispatch`). It decides only what needs no file system: EROFS on a read-only mount, EPERM for
//! what the helper was not ordered to do, ENOSYS where the kernel opens files by itself. Its state
//! is what INIT has negotiated, and the counts of requests.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::reply::{absent, empty, entry, errno, file_attr, fopen_flags, kind, opened, xattr};
use crate::clock::bounded;
use crate::fs::{Create, FileSystem, Remover, RequestCtx, SetAttr, Step};
use crate::fuse::request_counts::{Operation, Requests};

/// Inode number of a listed entry that the kernel has not looked up (libfuse uses the same).
const UNKNOWN_INO: u64 = 0xffff_ffff;

/// Largest WRITE the kernel sends at once, bytes.
const MAX_WRITE: u32 = 1 << 20;

/// What a task gets beyond its deadline before it is answered for: every vault call ends by itself
/// in time.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// The file system as fuser wants it.
#[derive(Debug)]
pub struct Adapter {
    pub(super) fs: Arc<FileSystem>,
    pub(super) runtime: Handle,
    pub(super) requests: Arc<Requests>,
    /// OPEN and FLUSH are answered ENOSYS, for good: the kernel then opens, reads and closes by
    /// itself.
    no_open: bool,
    /// The same for OPENDIR.
    no_opendir: bool,
}

impl Adapter {
    /// Answers requests from `fs`, and runs on `runtime` what takes time.
    pub fn new(fs: Arc<FileSystem>, runtime: Handle) -> Self {
        Self { fs, runtime, requests: Arc::default(), no_open: false, no_opendir: false }
    }

    /// The counts of requests.
    pub fn requests(&self) -> Arc<Requests> {
        self.requests.clone()
    }

    /// On a read-only mount, EROFS for what would change something. Not for names: ours are changed
    /// in such a mount, too, and the file system refuses those of others.
    fn refused(&self) -> Option<Errno> {
        self.fs.options().read_only.then_some(Errno::EROFS)
    }
}

/// What the helper asks beyond what is registered is EPERM.
macro_rules! refuse_helper {
    ($adapter:ident, $req:ident, $reply:ident) => {
        if $adapter.fs.propagator().is_helper($req.pid()) {
            return $reply.error(Errno::EPERM);
        }
    };
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
        ];
        for flag in wanted {
            // An older kernel does without; nothing depends on it for correctness.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(MAX_WRITE);
        // Every kernel since 5.1 has both; without them there are opens to answer.
        let offered = config.capabilities();
        if self.fs.options().reads_unopened() {
            self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
            self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.requests.count(Operation::Lookup, req, parent, Some(name));
        if let Some(found) = self.fs.propagator().helper_lookup(req.pid(), parent.0, name) {
            return self.answer(req, Step::Ready(found), move |found| match found {
                Ok(Some(found)) => entry(reply, &found),
                Ok(None) => reply.error(Errno::ENOENT),
                Err(e) => reply.error(e),
            });
        }
        let name = name.to_owned();
        let work = move |fs: Arc<FileSystem>, ctx| async move {
            let found = fs.lookup(&ctx, parent.0, &name).await?;
            Ok(found.ok_or_else(|| fs.absent_for(parent.0, &name)))
        };
        self.query(req, work, move |found| match found {
            Ok(Ok(found)) => entry(reply, &found),
            Ok(Err(ttl)) => absent(reply, ttl),
            Err(e) => reply.error(e),
        });
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        self.requests.count(Operation::Forget, req, ino, None);
        self.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.requests.count(Operation::Getattr, req, ino, None);
        match self.fs.getattr(ino.0) {
            Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.requests.count(Operation::Setattr, req, ino, None);
        let time = |t: Option<TimeOrNow>| {
            t.map(|t| match t {
                TimeOrNow::SpecificTime(t) => bounded(t),
                TimeOrNow::Now => self.fs.now(),
            })
        };
        let set = SetAttr { mode, uid, gid, atime: time(atime), mtime: time(mtime), size };
        let answer = move |result| match result {
            Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
            Err(e) => reply.error(e),
        };
        let fh = fh.map(|fh| fh.0);
        match (self.fs.propagator().helper_setattr(req.pid(), ino.0), self.refused()) {
            (Some(registered), _) => self.end(req, Step::Ready(registered), answer),
            (None, Some(e)) => answer(Err(e)),
            (None, None) => {
                self.run(req, |fs, ctx| async move { fs.setattr(&ctx, ino.0, fh, set).await }, answer);
            }
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.requests.count(Operation::Mknod, req, parent, Some(name));
        if let Some(e) = self.refused() {
            return reply.error(e);
        }
        refuse_helper!(self, req, reply);
        let name = name.to_owned();
        self.run(
            req,
            move |fs, ctx| async move { fs.mknod(&ctx, parent.0, &name, mode, umask).await },
            move |made| match made {
                Ok(made) => entry(reply, &made),
                Err(e) => reply.error(e),
            },
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        self.requests.count(Operation::Symlink, req, parent, Some(name));
        if let Some(e) = self.refused() {
            return reply.error(e);
        }
        reply.error(errno(self.attribution(req).scope(|| self.fs.refuse_special("symlink", name))));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.requests.count(Operation::Link, req, ino, Some(name));
        if let Some(e) = self.refused() {
            return reply.error(e);
        }
        refuse_helper!(self, req, reply);
        let name = name.to_owned();
        self.run(
            req,
            move |fs, ctx| async move { fs.link(&ctx, ino.0, newparent.0, &name).await },
            move |made| match made {
                Ok(made) => entry(reply, &made),
                Err(e) => reply.error(e),
            },
        );
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.requests.count(Operation::Mkdir, req, parent, Some(name));
        if let Some(e) = self.refused() {
            return reply.error(e);
        }
        refuse_helper!(self, req, reply);
        let name = name.to_owned();
        self.run(
            req,
            move |fs, ctx| async move { fs.mkdir(&ctx, parent.0, &name, mode & !umask).await },
            move |made| match made {
                Ok(made) => entry(reply, &made),
                Err(e) => reply.error(e),
            },
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Operation::Unlink, req, parent, Some(name));
        let registered = self.fs.propagator().helper_unlink(req.pid(), parent.0, name);
        let (name, pid) = (name.to_owned(), req.pid());
        let work = move |fs: Arc<FileSystem>, ctx| async move {
            match registered {
                Some(registered) => registered,
                None => fs.unlink(&ctx, parent.0, &name, Remover::of(pid)).await,
            }
        };
        self.run(req, work, empty(reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Operation::Rmdir, req, parent, Some(name));
        refuse_helper!(self, req, reply);
        let name = name.to_owned();
        let work = move |fs: Arc<FileSystem>, ctx| async move { fs.rmdir(&ctx, parent.0, &name).await };
        self.run(req, work, empty(reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Operation::Rename, req, parent, Some(name));
        let registered =
            self.fs.propagator().helper_rename(req.pid(), (parent.0, name), (newparent.0, newname));
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let work = move |fs: Arc<FileSystem>, ctx| async move {
            let (from, to) = ((parent.0, &*name), (newparent.0, &*newname));
            match registered {
                Some(registered) => registered,
                None => fs.rename(&ctx, from, to, flags.bits()).await,
            }
        };
        self.run(req, work, empty(reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.requests.count(Operation::Open, req, ino, None);
        if self.no_open {
            return reply.error(Errno::ENOSYS);
        }
        refuse_helper!(self, req, reply);
        self.run(req, |fs, ctx| async move { fs.open(&ctx, ino.0, flags.0).await }, opened(reply));
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.requests.count(Operation::Read, req, ino, None);
        self.query(
            req,
            |fs, ctx| async move { fs.read(&ctx, ino.0, fh.0, offset, size).await },
            move |slice| match slice {
                Ok(slice) => reply.data(slice.expose()),
                Err(e) => reply.error(e),
            },
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.requests.count(Operation::Write, req, ino, None);
        if let Some(e) = self.refused() {
            // What was written through a mapping is in the kernel's pages, for all to read.
            self.fs.inval_pages(ino.0);
            return reply.error(e);
        }
        self.run_now(
            req,
            |_| match write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                true => self.fs.write_mapped(fh.0, offset, data),
                false => self.fs.write(fh.0, offset, data),
            },
            move |written| match written {
                Ok(written) => reply.written(written),
                Err(e) => reply.error(e),
            },
        );
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.requests.count(Operation::Flush, req, ino, None);
        if self.no_open {
            return reply.error(Errno::ENOSYS);
        }
        self.run(req, |fs, ctx| async move { fs.flush(&ctx, fh.0).await }, empty(reply));
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Operation::Release, req, ino, None);
        self.run(req, |fs, ctx| async move { fs.release(&ctx, fh.0).await }, empty(reply));
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.requests.count(Operation::Fsync, req, ino, None);
        self.run(req, |fs, ctx| async move { fs.fsync(&ctx, fh.0).await }, empty(reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.requests.count(Operation::Create, req, parent, Some(name));
        if let Some(e) = self.refused() {
            return reply.error(e);
        }
        refuse_helper!(self, req, reply);
        let create = Create { mode, umask, flags };
        let name = name.to_owned();
        self.run(
            req,
            move |fs, ctx| async move { fs.create(&ctx, parent.0, &name, create).await },
            move |made| match made {
                Ok((entry, opened)) => {
                    let flags = fopen_flags(&opened);
                    reply.created(
                        &entry.ttl,
                        &file_attr(&entry.attr),
                        Generation(0),
                        FileHandle(opened.fh),
                        flags,
                    );
                }
                Err(e) => reply.error(e),
            },
        );
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.requests.count(Operation::Opendir, req, ino, None);
        if self.no_opendir {
            return reply.error(Errno::ENOSYS);
        }
        refuse_helper!(self, req, reply);
        self.run_now(req, |ctx| self.fs.opendir(ctx, ino.0), opened(reply));
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.requests.count(Operation::Readdir, req, ino, None);
        let (fs, dir) = (self.fs.clone(), ino.0);
        self.query(
            req,
            move |fs, ctx| async move { fs.readdir(&ctx, dir, fh.0, offset).await },
            move |listing| match listing {
                Ok(listing) => {
                    fs.note_listing(dir, &listing);
                    listing.visit(offset, |item| {
                        let ino = INodeNo(item.ino.unwrap_or(UNKNOWN_INO));
                        reply.add(ino, item.cookie, kind(item.kind), &item.name)
                    });
                    reply.ok();
                }
                Err(e) => reply.error(e),
            },
        );
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.requests.count(Operation::Releasedir, req, ino, None);
        let work = |_: &RequestCtx| {
            self.fs.releasedir(fh.0);
            Ok(())
        };
        self.run_now(req, work, empty(reply));
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.requests.count(Operation::Fsyncdir, req, ino, None);
        refuse_helper!(self, req, reply);
        self.run(req, |fs, ctx| async move { fs.fsync_dir(&ctx, ino.0).await }, empty(reply));
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.requests.count(Operation::Statfs, req, ino, None);
        let s = self.fs.statfs();
        reply.statfs(s.blocks, s.free, s.free, s.files, s.free_files, s.block_size, s.name_max, s.block_size);
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Operation::Setxattr, req, ino, Some(name));
        if let Some(e) = self.refused() {
            return reply.error(e);
        }
        let set = self.attribution(req).scope(|| self.fs.setxattr(ino.0, name, value));
        empty(reply)(set.map_err(errno));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.requests.count(Operation::Getxattr, req, ino, Some(name));
        xattr(self.fs.getxattr(ino.0, name), size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.requests.count(Operation::Listxattr, req, ino, None);
        xattr(self.fs.listxattr(ino.0), size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Operation::Removexattr, req, ino, Some(name));
        if let Some(e) = self.refused() {
            return reply.error(e);
        }
        reply.error(Errno::EOPNOTSUPP);
    }
}
