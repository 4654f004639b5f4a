//! The attributes of an inode that the kernel gets, and those that it may ask to set.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A file.
    Regular,
    /// A pipe with a name (`special`).
    Fifo,
    /// A socket with a name (`special`).
    Socket,
}

/// Attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: FileKind,
    /// Names it has: one, or none once it is unlinked.
    pub nlink: u32,
    /// Permission bits.
    pub perm: u16,
    /// Access time.
    pub atime: SystemTime,
    /// Modification time.
    pub mtime: SystemTime,
    /// Change time.
    pub ctime: SystemTime,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// An inode on its way to the kernel; its lookup is counted already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its attributes.
    pub attr: Attr,
    /// For how long the kernel may use entry and attributes without asking.
    pub ttl: Duration,
}

/// What statfs(2) says. There is no real figure for a vault; programs that check for room find
/// some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub free: u64,
    /// Files in all.
    pub files: u64,
    /// Files free.
    pub free_files: u64,
    /// Bytes a block.
    pub block_size: u32,
    /// Longest file name, bytes.
    pub name_max: u32,
}

/// What SETATTR asks for beside a size.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// chmod
    pub mode: Option<u32>,
    /// chown
    pub uid: Option<u32>,
    /// chgrp
    pub gid: Option<u32>,
    /// utimens
    pub atime: Option<SystemTime>,
    /// utimens
    pub mtime: Option<SystemTime>,
    /// truncate, ftruncate, open with O_TRUNC
    pub size: Option<u64>,
}
