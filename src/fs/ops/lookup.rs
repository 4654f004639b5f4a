//! What the kernel asks of names and inodes: LOOKUP, how long an absence is true, GETATTR, STATFS.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use crate::fs::inode::{ControlFile, DirKind};
use crate::fs::name;
use crate::fs::name::{CONTROL, Decoded, DirPrefix, VERSIONS};
use crate::fs::report::control_files;
use crate::fs::types::attr::{Attr, StatFs};
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::Result;
use crate::fs::{Entry, FileSystem};
use crate::vault::cache::Peek;

const BLOCK_SIZE: u32 = 4096;

/// 1 GiB.
const NOMINAL_BLOCKS: u64 = 1 << 18;

const NOMINAL_FILES: u64 = 1 << 20;

impl FileSystem {
    /// LOOKUP.
    pub async fn lookup(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        parent: u64,
        component: &OsStr,
    ) -> Result<Option<Entry>> {
        let dir = self.namespace.directory(parent)?;
        self.env.cache().note_use(self.env.longest_ttl());
        match &dir.kind {
            DirKind::Tree(under) if under.is_root() && component == VERSIONS => {
                Ok(Some(self.namespace.dir_entry(&DirKind::Histories(DirPrefix::root()))))
            }
            DirKind::Tree(under) if under.is_root() && component == CONTROL => {
                Ok(Some(self.namespace.dir_entry(&DirKind::Control)))
            }
            DirKind::Tree(under) => {
                let place =
                    self.propagator.within(parent, self.namespace.find(ctx, under, component)).await?;
                Ok(self.namespace.tree_entry(place))
            }
            DirKind::Histories(under) => {
                Ok(self.namespace.history_entry(self.namespace.find(ctx, under, component).await?))
            }
            DirKind::History(name, id) => Box::pin(self.lookup_version(ctx, (name, id), component)).await,
            DirKind::Control => Ok(ControlFile::named(component).map(|which| {
                let text = control_files::text(self, which);
                let node = self.inodes.lock().control(text, self.env.wall());
                self.namespace.entry(&node, Duration::ZERO)
            })),
        }
    }

    /// For how long the kernel may take it for true that a lookup found nothing: as long as the
    /// vault's answer is fresh. Nothing but a look in here brings such a name about: what is made
    /// here is made through the kernel, and what reappears without a request is announced
    /// (`inval_name`).
    pub fn absent_for(&self, parent: u64, component: &OsStr) -> Duration {
        let Ok(dir) = self.namespace.directory(parent) else { return Duration::ZERO };
        let DirKind::Tree(under) = &dir.kind else { return Duration::ZERO };
        let (as_file, as_dir) = match name::decode(component.as_bytes(), under) {
            Ok(Decoded::Entry { as_file, as_dir }) => (as_file, as_dir),
            Ok(Decoded::SelfFile(_) | Decoded::Beside { .. }) | Err(_) => return Duration::ZERO,
        };
        let as_file = as_file.filter(|name| self.namespace.is_allowed(name));
        if self.propagator.may_come_back(as_file.as_ref(), as_dir.as_ref()) {
            return Duration::ZERO;
        }
        let mut absent = Duration::MAX;
        if let Some(name) = as_file {
            let table = self.inodes.lock();
            if table.deferred(&name).is_some() || table.file(&name).is_some() {
                return Duration::ZERO;
            }
            drop(table);
            match self.env.cache().peek(&name) {
                Peek::Absent(ttl) => absent = ttl,
                Peek::Value(_) | Peek::Exists | Peek::AbsentBefore | Peek::Unknown => return Duration::ZERO,
            }
        }
        match as_dir {
            Some(dir) => absent.min(self.env.cache().not_implied_for(dir.as_str())),
            None => absent.min(self.env.options().refresh),
        }
    }

    /// GETATTR. Never asks the vault.
    pub fn getattr(&self, ino: u64) -> Result<(Attr, Duration)> {
        let node = self.inodes.node(ino)?;
        Ok((self.namespace.attr(&node), self.namespace.attr_ttl(&node)))
    }

    /// STATFS: the vault has no size. Never asks it.
    pub fn statfs(&self) -> StatFs {
        let cache = self.env.cache().status();
        StatFs {
            blocks: NOMINAL_BLOCKS,
            free: NOMINAL_BLOCKS.saturating_sub(cache.bytes.div_ceil(u64::from(BLOCK_SIZE))),
            files: cache.names as u64 + NOMINAL_FILES,
            free_files: NOMINAL_FILES,
            block_size: BLOCK_SIZE,
            name_max: 255,
        }
    }
}
