//! What the file system says, in fuser's words: numbers, attributes, and what to do with a reply.

use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyXattr, Request,
};

use crate::fs::{Attr, Caller, Entry, FileKind, Opened};

pub fn errno(e: crate::fs::Errno) -> Errno {
    Errno::from_i32(e.0)
}

pub fn caller(req: &Request) -> Caller {
    Caller { pid: req.pid(), uid: req.uid(), gid: req.gid() }
}

pub fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.mtime,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub fn fopen_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.cache_dir);
    flags
}

pub fn entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry(&entry.ttl, &file_attr(&entry.attr), Generation(0));
}

/// There is nothing of that name; the kernel need not ask again for so long. An entry with inode
/// number 0 says so.
pub fn absent(reply: ReplyEntry, ttl: Duration) {
    if ttl.is_zero() {
        return reply.error(Errno::ENOENT);
    }
    let nothing = FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    };
    reply.entry(&ttl, &nothing, Generation(0));
}

pub fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) + Send {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

pub fn opened(reply: ReplyOpen) -> impl FnOnce(Result<Opened, Errno>) + Send {
    move |result| match result {
        Ok(opened) => reply.opened(FileHandle(opened.fh), fopen_flags(&opened)),
        Err(e) => reply.error(e),
    }
}

pub fn xattr(result: crate::fs::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(data) if size == 0 => reply.size(data.len() as u32),
        Ok(data) if data.len() <= size as usize => reply.data(&data),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(e) => reply.error(errno(e)),
    }
}
