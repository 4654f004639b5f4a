//! Extended attributes: what the vault knows of an object, read-only, as `user.vault.*`. They
//! answer to their names and are not listed: a program that copies what is listed could not set
//! them where it copies to.

use std::ffi::OsStr;
use std::time::Duration;

use crate::fs::FileSystem;
use crate::fs::inode::Node;
use crate::fs::inode::file::{File, Link};
use crate::fs::types::errno::{Errno, Result};
use crate::vault::cache::Peek;

/// Attributes a file can have.
const NAMES: [&str; 5] =
    ["user.vault.id", "user.vault.version", "user.vault.updated_at", "user.vault.stale", "user.vault.error"];

impl FileSystem {
    /// GETXATTR.
    pub fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.inodes.node(ino)?;
        let name = name.to_str().filter(|name| NAMES.contains(name)).ok_or(Errno::ENODATA)?;
        self.xattr(&node, name).map(String::into_bytes).ok_or(Errno::ENODATA)
    }

    /// LISTXATTR: none is listed.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        self.inodes.node(ino).map(|_| Vec::new())
    }

    /// SETXATTR: to the value that it has, which changes nothing. Others are not supported, also of
    /// `user.vault.*`: EPERM would make mv(1), which copies attributes where it can, complain of
    /// each.
    pub fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8]) -> Result<()> {
        match self.getxattr(ino, name) {
            Ok(known) if known == value => Ok(()),
            Ok(_) | Err(Errno::ENODATA) => Err(Errno::EOPNOTSUPP),
            Err(e) => Err(e),
        }
    }

    fn xattr(&self, node: &Node, name: &str) -> Option<String> {
        match node {
            Node::File(file) if name == "user.vault.error" => self.error_of(file),
            Node::File(file) => {
                let state = file.state();
                let stored = state.stored.as_ref();
                match name {
                    "user.vault.id" => stored.map(|s| s.id.to_string()),
                    "user.vault.version" => stored.map(|s| s.version.to_string()),
                    "user.vault.updated_at" => stored.map(|s| rfc3339(s.updated_at)),
                    "user.vault.stale" => {
                        let name = state.name.clone();
                        let stored = stored.is_some();
                        drop(state);
                        stored.then(|| if self.is_stale(&name) { "1" } else { "0" }.to_owned())
                    }
                    _ => None,
                }
            }
            Node::Version(version) => match name {
                "user.vault.id" => Some(version.id.to_string()),
                "user.vault.version" => Some(version.info.tag.to_string()),
                "user.vault.updated_at" => Some(rfc3339(version.info.created_at)),
                _ => None,
            },
            Node::Dir(_) | Node::Control(..) => None,
        }
    }

    /// Why the vault has not what was written, or still has what was to be deleted.
    fn error_of(&self, file: &File) -> Option<String> {
        let table = self.inodes.lock();
        let state = file.state();
        let failed = state.failure.as_ref().map(|failure| failure.message.clone());
        let shown = state.link == Link::Current;
        failed.or_else(|| table.failed_delete(&state.name).filter(|_| shown).map(|kept| kept.message.clone()))
    }

    /// Whether what is shown of `name` is past its time because the vault does not answer.
    fn is_stale(&self, name: &crate::vault::ObjectName) -> bool {
        let fresh = matches!(self.env.cache().peek(name), Peek::Value(found) if found.ttl > Duration::ZERO);
        !fresh && self.env.cache().status().outage.is_some()
    }
}

fn rfc3339(at: std::time::SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
