//! Reading: a slice of the bytes that an inode is.
//!
//! A reader never sees a mix: without a local writer an inode's bytes never change, and where they
//! have to be fetched again they are fetched by id and version, or the read fails with ESTALE.
//! An open of a file without open handles then opens the current version.
//!
//! Where the kernel opens files by itself ([`crate::fs::Options::reads_unopened`]) no handle pins
//! the bytes. Those of the version that the name shows are in the cache or can be had again. Those
//! of a replaced or deleted version may be lost to the vault: the inode keeps them until it is
//! forgotten, up to `--cache-size` in all.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::fs::FileSystem;
use crate::fs::handle::Held;
use crate::fs::inode::file::{File, Link};
use crate::fs::inode::{ControlText, Node, VersionFile};
use crate::fs::propagation::repoint::Repoints;
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::secret::SecretBytes;
use crate::vault::cache::Peek;
use crate::vault::save::Stored;
use crate::vault::{Call, ErrorKind, Meta, Object, ObjectName};

/// Bytes to answer a READ with: of a value that stays as it is, not a copy of it.
#[derive(Debug, Clone)]
pub struct Slice {
    of: Source,
    range: Range<usize>,
}

#[derive(Debug, Clone)]
enum Source {
    Value(Arc<SecretBytes>),
    Control(Arc<ControlText>),
}

impl Slice {
    fn cut(of: Source, offset: u64, size: u32) -> Self {
        let range = range(of.expose().len(), offset, size);
        Self { of, range }
    }

    fn of_object(object: &Object, offset: u64, size: u32) -> Self {
        Self::cut(Source::Value(object.content.bytes.clone()), offset, size)
    }

    /// A copy, of bytes that may change.
    fn copied(bytes: &[u8], offset: u64, size: u32) -> Self {
        let part = &bytes[range(bytes.len(), offset, size)];
        Self { range: 0..part.len(), of: Source::Value(Arc::new(SecretBytes::from(part))) }
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.of.expose()[self.range.clone()]
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl Source {
    fn expose(&self) -> &[u8] {
        match self {
            Source::Value(bytes) => bytes.expose(),
            Source::Control(control) => &control.text,
        }
    }
}

fn range(len: usize, offset: u64, size: u32) -> Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    start..start.saturating_add(size as usize).min(len)
}

impl FileSystem {
    /// READ. Without a handle (`fh` 0) it is the inode that is read. Of a mount that slept the
    /// vault is asked first, whatever is at hand (`propagation::revocation`).
    pub async fn read(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        ino: u64,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Result<Slice> {
        if self.env.cache().was_idle() && self.propagator.may_be_taken_away(ino) {
            self.env.cache().note_use(self.env.longest_ttl());
            if self.env.cache().is_key_unverified() {
                Box::pin(self.env.cache().verify_key(ctx.call().await)).await;
            }
        }
        if fh == 0 {
            return match self.inodes.node(ino)? {
                Node::Dir(_) => Err(Errno::EISDIR),
                Node::Version(version) => self.read_version(ctx, &version, offset, size).await,
                Node::Control(text) => Ok(Slice::cut(Source::Control(text), offset, size)),
                Node::File(file) => self.read_unopened(ctx, &file, offset, size).await,
            };
        }
        match &self.handles.get(fh)?.held {
            Held::Dir { .. } => Err(Errno::EISDIR),
            Held::Version(version) => self.read_version(ctx, version, offset, size).await,
            Held::Control(text) => Ok(Slice::cut(Source::Control(text.clone()), offset, size)),
            Held::File { file, .. } => self.read_opened(ctx, file, offset, size).await,
        }
    }

    async fn read_opened(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        file: &File,
        offset: u64,
        size: u32,
    ) -> Result<Slice> {
        if let Some(slice) = self.read_now(file, offset, size) {
            return Ok(slice);
        }
        let object = Box::pin(self.load(ctx.call().await, file)).await?;
        let now = self.read_now(file, offset, size);
        Ok(now.unwrap_or_else(|| match &object {
            Some(object) => Slice::of_object(object, offset, size),
            None => Slice::copied(&[], offset, size),
        }))
    }

    async fn read_unopened(&self, ctx: &RequestCtx, file: &File, offset: u64, size: u32) -> Result<Slice> {
        let (stored, name) = match self.unopened_now(file, offset, size) {
            Ok(slice) => return Ok(slice),
            Err(missing) => missing,
        };
        let object = Box::pin(self.version_again(ctx.call().await, &name, &stored)).await?;
        Ok(Slice::of_object(&object, offset, size))
    }

    /// What the inode is, if its bytes are in memory, else what to ask for.
    fn unopened_now(&self, file: &File, offset: u64, size: u32) -> Result<Slice, (Stored, ObjectName)> {
        file.mark_kernel_cached();
        let state = file.state();
        if let Some(buffer) = &state.buffer {
            return Ok(Slice::copied(buffer.bytes.expose(), offset, size));
        }
        if let Some(retained) = &state.retained {
            return Ok(Slice::of_object(retained.object(), offset, size));
        }
        let Some(stored) = &state.stored else { return Ok(Slice::copied(&[], offset, size)) };
        match self.env.bytes_in_memory(stored) {
            Some(object) => Ok(Slice::of_object(&object, offset, size)),
            None => Err((stored.clone(), state.name.clone())),
        }
    }

    async fn read_version(
        &self,
        ctx: &RequestCtx,
        version: &VersionFile,
        offset: u64,
        size: u32,
    ) -> Result<Slice> {
        if !version.refused.load(Ordering::Acquire) {
            let object = version.object.as_ref().ok_or(Errno::EOPNOTSUPP)?;
            return Ok(Slice::of_object(object, offset, size));
        }
        let call = ctx.call().await;
        let object = Box::pin(self.env.cache().old_value(call, &version.id, &version.info)).await;
        let object = object.map_err(|e| self.env.failed("read", version.name.as_str(), &e))?;
        Ok(Slice::of_object(&object, offset, size))
    }

    fn read_now(&self, file: &File, offset: u64, size: u32) -> Option<Slice> {
        file.mark_kernel_cached();
        let mut state = file.change_alone();
        if let Some(buffer) = &state.buffer {
            return Some(Slice::copied(buffer.bytes.expose(), offset, size));
        }
        if state.pinned.is_none() {
            let Some(stored) = &state.stored else { return Some(Slice::copied(&[], offset, size)) };
            state.pinned = self.env.bytes_in_memory(stored);
        }
        state.pinned.as_ref().map(|object| Slice::of_object(object, offset, size))
    }

    /// Makes sure that the file's bytes are in memory and stay there while it is open; `None` if
    /// they are in its buffer.
    pub(in crate::fs) async fn load(
        self: &Arc<Self>,
        call: &Call,
        file: &File,
    ) -> Result<Option<Arc<Object>>> {
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
        let Some(object) = self.version_if_kept(call, &name, &stored).await? else {
            return match self.open_current_version(file, &stored).await {
                true => Ok(file.state().pinned.clone()),
                false => Err(self.version_is_gone(&name)),
            };
        };
        let mut state = file.change_alone();
        if state.stored.as_ref().is_some_and(|s| s.version == stored.version && s.id == stored.id) {
            state.pinned = Some(object.clone());
        }
        Ok(Some(object))
    }

    /// The bytes of this version and of no other; ESTALE where they are not to be had.
    async fn version_again(&self, call: &Call, name: &ObjectName, stored: &Stored) -> Result<Arc<Object>> {
        let object = self.version_if_kept(call, name, stored).await?;
        object.ok_or_else(|| self.version_is_gone(name))
    }

    async fn version_if_kept(
        &self,
        call: &Call,
        name: &ObjectName,
        stored: &Stored,
    ) -> Result<Option<Arc<Object>>> {
        match self.env.cache().value(call, &stored.id, &stored.version).await {
            Ok(object) => Ok(stored.is(&object.meta).then_some(object)),
            Err(e) if e.kind == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.env.failed("read", name.as_str(), &e)),
        }
    }

    fn version_is_gone(&self, name: &ObjectName) -> Errno {
        let gone = "the vault no longer has the version that was opened; open it again";
        self.env.refused("read", name.as_str(), Errno::ESTALE, gone)
    }

    /// Makes a file without open handles the current version of its object: the bytes of the
    /// version that it was are gone with the worker that looked it up. After ESTALE the kernel
    /// looks the name up again, but only once: a second death would fail the program's open. False
    /// where that cannot be done.
    async fn open_current_version(&self, file: &File, was: &Stored) -> bool {
        let name = file.state().name.clone();
        let Peek::Value(found) = self.env.cache().peek(&name) else { return false };
        if !self.namespace.is_newest(file)
            && (found.object.meta.id != was.id || !self.become_version_unopened(file, &found.object))
        {
            return false;
        }
        self.let_kernel_forget(file).await;
        true
    }

    /// Returns when the kernel has no size and no page of another version than the file is: what it
    /// reads would be cut, or padded.
    pub(in crate::fs) async fn let_kernel_forget(&self, file: &File) {
        loop {
            let version = {
                let state = file.state();
                if !state.kernel_behind {
                    return;
                }
                state.stored.as_ref().map(|stored| stored.version.clone())
            };
            let (forgot, forgotten) = tokio::sync::oneshot::channel();
            if let Some(kernel) = self.env.kernel() {
                kernel.inval_inode(file.ino);
                kernel.after_notices(Box::new(move || forgot.send(()).unwrap_or_default()));
                // An error: there is no kernel any more.
                let _ = forgotten.await;
            }
            let mut state = file.change_alone();
            // It may have become another version meanwhile.
            if state.stored.as_ref().map(|stored| &stored.version) == version.as_ref() {
                state.kernel_behind = false;
            }
        }
    }

    fn become_version_unopened(&self, file: &File, object: &Arc<Object>) -> bool {
        let is_on_it = |held: &Held| matches!(held, Held::File { file: open, .. } if open.ino == file.ino);
        if self.handles.all().iter().any(|handle| is_on_it(&handle.held)) {
            return false;
        }
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        // The version of another lookup, which came before this one. Reads do not go back: the name
        // shows from now on what is opened here.
        let Meta { id, name, version, updated_at } = &object.meta;
        let older = table.file(name).filter(|shown| {
            let is_it = shown.state().stored.as_ref().is_some_and(|stored| stored.is(&object.meta));
            shown.ino != file.ino && !is_it
        });
        if let Some(older) = &older {
            if self.namespace.is_behind((id, version, *updated_at), older)
                || self.namespace.replace(&tx, older).is_err()
            {
                return false;
            }
            table.unpoint(name, older.ino);
        }
        if !self.namespace.become_version(&tx, file, object) {
            drop(table);
            drop(tx);
            self.namespace.inval_name(name);
            return false;
        }
        let mut state = file.change(&tx);
        // Watchers have not seen it yet.
        state.pending_notify = Some(version.clone());
        if let Some(older) = older {
            state.link = Link::Current;
            drop(state);
            table.point(name, file.ino);
            table.drop_unheld(older.ino);
            Repoints::note_in(&tx, name);
            drop(table);
            drop(tx);
            self.propagator.repoint(name);
        }
        true
    }
}
