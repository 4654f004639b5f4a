//! `.versions/`: an object's history as read-only files, 1 the oldest.
//!
//! A version's bytes are fetched when it is looked up, because its size has to be true and only the
//! bytes show it; listing the numbers fetches nothing. A version never changes, so all its opens
//! share one inode. Where the vault gives no bytes of old versions (kv), those that this mount has
//! not seen itself are shown with the size that the vault lists, and cannot be opened: EOPNOTSUPP,
//! never other bytes.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::inode::{Node, VersionFile};
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::{Entry, FileSystem};
use crate::vault::{Call, ErrorKind, ObjectId, ObjectName, VersionInfo};

impl FileSystem {
    /// LOOKUP of a version by its number.
    pub(in crate::fs) async fn lookup_version(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        (name, id): (&ObjectName, &ObjectId),
        component: &OsStr,
    ) -> Result<Option<Entry>> {
        let Some(number) = number(component) else { return Ok(None) };
        let call = ctx.call().await;
        let history = self.versions_of(call, name, id).await?;
        let Some(info) = history.iter().find(|v| v.number == number) else { return Ok(None) };
        let object = match self.env.cache().old_value(call, id, info).await {
            Ok(object) => Some(object),
            Err(e) if e.kind == ErrorKind::Unsupported => None,
            Err(e) => return Err(self.env.failed("lookup of a version", name.as_str(), &e)),
        };
        let version = self.inodes.lock().version((id, info), object.is_some(), |ino| VersionFile {
            ino,
            name: name.clone(),
            id: id.clone(),
            info: info.clone(),
            object,
            refused: Default::default(),
        });
        let node = Node::Version(version);
        let ttl = self.namespace.attr_ttl(&node);
        Ok(Some(self.namespace.entry(&node, ttl)))
    }

    /// The versions of an object, oldest first.
    pub(in crate::fs) async fn versions_of(
        self: &Arc<Self>,
        call: &Call,
        name: &ObjectName,
        id: &ObjectId,
    ) -> Result<Arc<Vec<VersionInfo>>> {
        let failed = |e| self.env.failed("history", name.as_str(), &e);
        let current = self.env.cache().read(call, name).await.map_err(failed)?;
        let current = current.filter(|found| found.object.meta.id == *id).ok_or(Errno::ENOENT)?;
        self.env.cache().history(call, &current.object.meta).await.map_err(failed)
    }
}

/// A version's number as its file name spells it: decimal, no sign, no leading zero.
fn number(component: &OsStr) -> Option<u64> {
    let text = component.to_str()?;
    let number: u64 = text.parse().ok()?;
    (number > 0 && number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_spelling() {
        assert_eq!(number(OsStr::new("12")), Some(12));
        for wrong in ["0", "01", "+1", "-1", "1 ", "", "x", "18446744073709551616"] {
            assert_eq!(number(OsStr::new(wrong)), None, "{wrong:?}");
        }
    }
}
