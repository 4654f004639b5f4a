//! `--prefix P`: only the names starting `P/`, shown without it, written with it.
//!
//! A wrapper like any other: ids pass through, names are translated on the way in and out. An
//! object outside the prefix does not exist here, by whatever way it is asked for; only ids that
//! came from here are ever asked for, so changes by id need no check of their own.

use async_trait::async_trait;

use super::{
    Call, Capabilities, Check, Content, DynVault, Error, ErrorKind, ListQuery, Meta, NameLimit, Object,
    ObjectId, ObjectName, Page, Result, Summary, Vault, VaultStatus, VersionInfo,
};

/// The part of a vault with names that start with a prefix.
#[derive(Debug)]
pub struct PrefixVault {
    inner: DynVault,
    /// With its slash.
    prefix: String,
}

impl PrefixVault {
    /// The names of `inner` that start with `prefix` and a slash.
    pub fn new(inner: DynVault, prefix: &str) -> Self {
        Self { inner, prefix: format!("{prefix}/") }
    }

    /// A page of the whole vault as this part shows it.
    pub fn page(&self, page: Page) -> Page {
        let items = page.items.into_iter();
        let items = items.filter_map(|s| Some(Summary { name: self.shorten(&s.name)?, ..s })).collect();
        Page { items, next: page.next }
    }

    fn shorten(&self, name: &ObjectName) -> Option<ObjectName> {
        name.as_str().strip_prefix(&self.prefix).and_then(ObjectName::new)
    }

    fn lengthen(&self, name: &ObjectName) -> Result<ObjectName> {
        let long = format!("{}{}", self.prefix, name.as_str());
        let fits = self.inner.capabilities().max_name.allows(&long);
        ObjectName::new(&long).filter(|_| fits).ok_or_else(|| {
            let sentence = format!("the name {name:?} is too long behind --prefix {:?}", self.prefix);
            Error::new(ErrorKind::NameTooLong, sentence)
        })
    }

    fn meta(&self, meta: Meta) -> Result<Meta> {
        match self.shorten(&meta.name) {
            Some(name) => Ok(Meta { name, ..meta }),
            None => {
                let sentence = format!("the object {} is outside --prefix {:?}", meta.id, self.prefix);
                Err(Error::new(ErrorKind::NotFound, sentence))
            }
        }
    }

    fn object(&self, object: Object) -> Result<Object> {
        Ok(Object { meta: self.meta(object.meta)?, content: object.content })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for PrefixVault {
    fn capabilities(&self) -> Capabilities {
        let inner = self.inner.capabilities();
        let max_name = match inner.max_name {
            NameLimit::Bytes(max) => NameLimit::Bytes(max.saturating_sub(self.prefix.len())),
            NameLimit::Chars(max) => NameLimit::Chars(max.saturating_sub(self.prefix.chars().count())),
        };
        Capabilities { max_name, ..inner }
    }

    fn status(&self) -> VaultStatus {
        self.inner.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        self.object(self.inner.get_by_name(call, &self.lengthen(name)?).await?)
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        self.object(self.inner.get(call, id).await?)
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        self.meta(self.inner.metadata(call, id).await?)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        self.meta(self.inner.create(call, &self.lengthen(name)?, content).await?)
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        self.meta(self.inner.update(call, id, content, check).await?)
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        self.inner.delete(call, id, check).await
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        Ok(self.page(self.inner.list(call, query).await?))
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        self.inner.versions(call, id, since).await
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        self.object(self.inner.version(call, id, version).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::vault::testing::memory::MemoryVault;

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    #[tokio::test]
    async fn names_are_translated_both_ways_and_nothing_else_is_there() {
        let memory: DynVault = Arc::new(MemoryVault::object());
        let vault = PrefixVault::new(memory.clone(), "app");
        let call = Call::foreground(Instant::now() + Duration::from_secs(30));
        let made = vault.create(&call, &name("db/password"), &Content::plain("x")).await.unwrap();
        assert_eq!(made.name, name("db/password"));
        let inside = memory.get(&call, &made.id).await.unwrap();
        assert_eq!(inside.meta.name, name("app/db/password"));
        let outside = memory.create(&call, &name("other"), &Content::plain("y")).await.unwrap();
        assert_eq!(vault.get(&call, &outside.id).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(vault.metadata(&call, &outside.id).await.unwrap_err().kind, ErrorKind::NotFound);
        let page = vault.list(&call, &ListQuery::first()).await.unwrap();
        assert_eq!(page.items.into_iter().map(|s| s.name).collect::<Vec<_>>(), [name("db/password")]);
    }
}
