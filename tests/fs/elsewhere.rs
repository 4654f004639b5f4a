//! The vault of a [`Shell`], as it is seen and changed from elsewhere.

use std::future::Future;
use std::time::Duration;

use vaultfs::vault::testing::memory::Lagging;
use vaultfs::vault::{Call, Content, ListQuery, Meta, ObjectName, Vault};

use super::Shell;

impl Shell {
    pub fn elsewhere(&self) -> Call {
        Call::foreground(self.clock.now() + Duration::from_secs(60))
    }

    /// Whatever is seen of the vault otherwise, this sees it as it is.
    async fn as_it_is<T>(&self, look: impl Future<Output = T>) -> T {
        let lagging = self.memory.lag(Lagging::Never);
        let seen = look.await;
        self.memory.lag(lagging);
        seen
    }

    /// Makes or changes an object from elsewhere.
    pub async fn put(&self, name: &str, bytes: impl Into<Vec<u8>>) -> Meta {
        self.put_content(name, Content::plain(bytes)).await
    }

    pub async fn put_content(&self, name: &str, content: Content) -> Meta {
        let (call, object_name) = (self.elsewhere(), ObjectName::new(name).unwrap());
        match self.as_it_is(self.memory.get_by_name(&call, &object_name)).await {
            Ok(object) => self.memory.update(&call, &object.meta.id, &content, None).await.unwrap(),
            Err(_) => self.memory.create(&call, &object_name, &content).await.unwrap(),
        }
    }

    /// Deletes an object from elsewhere.
    pub async fn delete(&self, name: &str) {
        let id = self.meta(name).await.unwrap_or_else(|| panic!("no object {name:?}")).id;
        self.memory.delete(&self.elsewhere(), &id, None).await.unwrap();
    }

    pub async fn meta(&self, name: &str) -> Option<Meta> {
        let name = ObjectName::new(name).unwrap();
        self.as_it_is(self.memory.get_by_name(&self.elsewhere(), &name)).await.ok().map(|object| object.meta)
    }

    /// All versions of an object's bytes, oldest first; empty if there is none. Of kv's old
    /// versions, empty bytes.
    pub async fn history(&self, name: &str) -> Vec<String> {
        let Some(meta) = self.meta(name).await else { return Vec::new() };
        let mut all = Vec::new();
        for info in self.as_it_is(self.memory.versions(&self.elsewhere(), &meta.id, None)).await.unwrap() {
            let object = self.as_it_is(self.memory.version(&self.elsewhere(), &meta.id, &info)).await;
            let bytes = object.map(|object| object.content.bytes.expose().to_vec()).unwrap_or_default();
            all.push(String::from_utf8(bytes).unwrap());
        }
        all
    }

    /// All names in the vault, sorted.
    pub async fn names(&self) -> Vec<String> {
        let (mut names, mut query) = (Vec::new(), ListQuery::first());
        loop {
            let page = self.as_it_is(self.memory.list(&self.elsewhere(), &query)).await.unwrap();
            names.extend(page.items.iter().map(|item| item.name.as_str().to_owned()));
            match page.next {
                Some(cursor) => query = query.next(cursor),
                None => break,
            }
        }
        names.sort();
        names
    }
}
