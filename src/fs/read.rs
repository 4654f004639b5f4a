//! Reading: a slice of the bytes that an inode is.
//!
//! A reader never sees a mix: without a local writer an inode's bytes never change, and where they have to be
//! fetched again they are fetched by id and version, or the read fails with ESTALE.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::errno::{Errno, Result};
use super::file::File;
use super::open::Held;
use super::{FileSystem, Step};
use crate::secret::SecretBytes;
use crate::vault::{Call, ErrorKind, Object, ObjectName};

/// Bytes to answer a READ with; wiped when dropped.
pub type Slice = SecretBytes;

impl FileSystem {
    /// READ.
    pub fn read(self: &Arc<Self>, fh: u64, offset: u64, size: u32) -> Step<Slice> {
        let handle = match self.handle(fh) {
            Ok(handle) => handle,
            Err(e) => return Step::Ready(Err(e)),
        };
        match &handle.held {
            Held::Dir { .. } => Err(Errno::EISDIR).into(),
            Held::Version(version) if version.refused.load(Ordering::Acquire) => {
                let (fs, version) = (self.clone(), version.clone());
                Step::later(async move {
                    let object = fs.cache.old_value(&fs.call(), &version.id, &version.info).await;
                    let object = object.map_err(|e| fs.failed("read", version.name.as_str(), &e))?;
                    Ok(cut(object.content.bytes.expose(), offset, size))
                })
            }
            Held::Version(version) => match &version.object {
                Some(object) => Ok(cut(object.content.bytes.expose(), offset, size)).into(),
                None => Err(Errno::EOPNOTSUPP).into(),
            },
            Held::Control(text) => Ok(cut(text, offset, size)).into(),
            Held::File { file, .. } => match self.read_now(file, offset, size) {
                Some(slice) => Ok(slice).into(),
                None => {
                    let (fs, file) = (self.clone(), file.clone());
                    Step::later(async move {
                        let object = fs.load(&fs.call(), &file).await?;
                        let bytes = object.as_ref().map_or(&[][..], |o| o.content.bytes.expose());
                        Ok(fs.read_now(&file, offset, size).unwrap_or_else(|| cut(bytes, offset, size)))
                    })
                }
            },
        }
    }

    fn read_now(&self, file: &File, offset: u64, size: u32) -> Option<Slice> {
        let mut state = file.state();
        if let Some(buffer) = &state.buffer {
            return Some(cut(buffer.bytes.expose(), offset, size));
        }
        if state.pinned.is_none() {
            let Some(stored) = &state.stored else { return Some(Slice::default()) };
            let object = self.cache.value_in_memory(&stored.id, &stored.version);
            state.pinned = object.filter(|object| stored.is(&object.meta));
        }
        state.pinned.as_ref().map(|object| cut(object.content.bytes.expose(), offset, size))
    }

    /// Makes sure that the file's bytes are in memory and stay there while it is open; `None` if they are in its
    /// buffer.
    pub(super) async fn load(self: &Arc<Self>, call: &Call, file: &File) -> Result<Option<Arc<Object>>> {
        let (stored, name) = {
            let state = file.state();
            if let Some(object) = &state.pinned {
                return Ok(Some(object.clone()));
            }
            match &state.stored {
                _ if state.buffer.is_some() => return Ok(None),
                Some(stored) => (stored.clone(), state.name.clone()),
                None => return Ok(None),
            }
        };
        let object = match self.cache.value(call, &stored.id, &stored.version).await {
            Ok(object) if stored.is(&object.meta) => object,
            Ok(_) => return Err(self.lost_version(&name)),
            Err(e) if e.kind == ErrorKind::NotFound => {
                return Err(self.lost_version(&name));
            }
            Err(e) => return Err(self.failed("read", name.as_str(), &e)),
        };
        let mut state = file.state();
        if state.stored.as_ref().is_some_and(|s| s.version == stored.version && s.id == stored.id) {
            state.pinned = Some(object.clone());
        }
        Ok(Some(object))
    }
}

impl FileSystem {
    fn lost_version(&self, name: &ObjectName) -> Errno {
        let why = "the vault no longer has the version that was opened; open it again";
        self.refused("read", name.as_str(), Errno::ESTALE, why)
    }
}

fn cut(bytes: &[u8], offset: u64, size: u32) -> Slice {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let end = start.saturating_add(size as usize).min(bytes.len());
    Slice::from(&bytes[start..end])
}
