//! Refusals, heard wherever they come: whoever asks the vault, for whatever, asks through here.
//!
//! 1. A 401, or a 403 to a listing, is a revocation: what this key once could read it may not read any more. Every
//!    value is dropped, every name is past its time and stands in for nothing, and whoever shows values is told.
//! 2. A 403 to the read of a name is that name's only. A 403 to a change says nothing of what may be read.
//! 3. An answer that was asked for before a revocation is given to who asked, and not kept.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use async_trait::async_trait;

use super::{Cache, is_outage};
use crate::vault::{
    Call, Capabilities, Content, DynVault, Error, ErrorKind, ListQuery, Meta, Object, ObjectId, ObjectName,
    Page, Result, Vault, VaultStatus, VersionInfo, VersionTag,
};

/// Who shows values that came from the cache.
pub trait Audience: Send + Sync {
    /// They may not be shown any more: of this name, or at all.
    fn refused(&self, name: Option<&ObjectName>);
}

/// What a request was about.
#[derive(Debug, Clone, Copy)]
enum About<'a> {
    Names,
    Name(&'a ObjectName),
    Other,
}

/// A vault whose refusals are heard.
#[derive(Debug)]
pub(super) struct Watch {
    inner: DynVault,
    cache: Weak<Cache>,
}

impl Watch {
    pub(super) fn new(inner: DynVault, cache: Weak<Cache>) -> Self {
        Self { inner, cache }
    }

    fn heard<T>(&self, answer: Result<T>, about: About<'_>) -> Result<T> {
        let Some(cache) = self.cache.upgrade() else { return answer };
        if answer.as_ref().err().is_none_or(|e| e.kind != ErrorKind::Unauthorized && !is_outage(e.kind)) {
            cache.key_was_taken();
        }
        match (answer.as_ref().err().map(|e| (e, e.kind)), about) {
            (Some((e, ErrorKind::Unauthorized)), _) | (Some((e, ErrorKind::Forbidden)), About::Names) => {
                cache.revoked(e);
            }
            (Some((_, ErrorKind::Forbidden)), About::Name(name)) => cache.refused(name),
            _ => {}
        }
        answer
    }
}

impl Cache {
    /// Who is told of refusals. Only the first call counts.
    pub fn set_audience(&self, audience: Weak<dyn Audience>) {
        // A second one would be a second mount over the same cache: there is none.
        let _ = self.audience.set(audience);
    }

    fn revoked(&self, e: &Error) {
        let news = {
            let mut state = self.state();
            state.index.clear_values();
            state.index.expire(self.config.max_stale + self.config.refresh);
            state.histories.clear();
            state.revoked = Some(self.clock.now());
            self.shown.swap(false, Ordering::AcqRel)
        };
        if news {
            tracing::warn!(error = %e, "the vault refuses the key: what it gave before is shown no more");
            self.tell(None);
        }
    }

    fn refused(&self, name: &ObjectName) {
        let now = self.clock.now();
        let known = {
            let mut state = self.state();
            let known = state.index.belief(name);
            state.index.unknown(name, now);
            matches!(known, super::Belief::Exists(_))
        };
        if known {
            self.tell(Some(name));
        }
    }

    fn tell(&self, name: Option<&ObjectName>) {
        if let Some(audience) = self.audience.get().and_then(Weak::upgrade) {
            audience.refused(name);
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for Watch {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn status(&self) -> VaultStatus {
        self.inner.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        self.heard(self.inner.get_by_name(call, name).await, About::Name(name))
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        self.heard(self.inner.get(call, id).await, About::Other)
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        self.heard(self.inner.metadata(call, id).await, About::Other)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        self.heard(self.inner.create(call, name, content).await, About::Other)
    }

    async fn update(
        &self,
        call: &Call,
        id: &ObjectId,
        content: &Content,
        check: Option<&VersionTag>,
    ) -> Result<Meta> {
        self.heard(self.inner.update(call, id, content, check).await, About::Other)
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Option<&VersionTag>) -> Result<()> {
        self.heard(self.inner.delete(call, id, check).await, About::Other)
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        self.heard(self.inner.list(call, query).await, About::Names)
    }

    async fn versions(&self, call: &Call, id: &ObjectId) -> Result<Vec<VersionInfo>> {
        self.heard(self.inner.versions(call, id).await, About::Other)
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        self.heard(self.inner.version(call, id, version).await, About::Other)
    }
}

/// The vault of a cache, its refusals heard.
pub(super) fn watched(inner: DynVault, cache: &Weak<Cache>) -> DynVault {
    Arc::new(Watch::new(inner, cache.clone()))
}
