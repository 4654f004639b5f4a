//! An answer about another object than was asked for is no answer.
//!
//! Proxies decode and fold paths (`%2F`, `//`, `./`, `../`) or refuse them, and a vault may take
//! two names for one (case, Unicode normalisation, blanks at the end). This wrapper of both
//! dialects checks every answer against its request.
//!
//! 1. A name, id or version in an answer is the one that was asked for, else
//!    [`ErrorKind::OtherObject`].
//! 2. An object that cannot be read by its name is looked up in the listing and read by its id.
//!    What the listing does not have is absent.
//! 3. A change goes by an id, which was learnt with its name. An id that a path could fold is read
//!    before it is used.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use crate::vault::client::quoted;
use crate::vault::model::object::Cursors;
use crate::vault::{
    Call, Capabilities, Check, Content, Dialect, DynVault, Error, ErrorKind, ListQuery, Meta, Object,
    ObjectId, ObjectName, Page, Result, Vault, VaultStatus, VersionInfo, VersionTag,
};

/// A vault with answers that are about what was asked.
#[derive(Debug)]
pub struct CheckedVault {
    inner: DynVault,
    /// A name with an encoded character has come through: what is said of the next one is the
    /// vault's word.
    encoded_passes: AtomicBool,
}

impl CheckedVault {
    /// `inner` speaks a dialect.
    pub fn new(inner: DynVault) -> Self {
        Self { inner, encoded_passes: AtomicBool::new(false) }
    }

    /// Whether a failed read by name may come from a proxy between here and the vault.
    fn may_be_the_path(&self, name: &ObjectName, e: &Error) -> bool {
        if is_plain(name.as_str()) {
            return e.kind == ErrorKind::Invalid;
        }
        let is_trusted = self.encoded_passes.load(Ordering::Relaxed) && !is_odd(name.as_str());
        match e.kind {
            // The dialect has no request for this name.
            ErrorKind::Unsupported => true,
            ErrorKind::NotFound => !is_trusted && self.inner.capabilities().dialect == Dialect::Kv,
            ErrorKind::Invalid | ErrorKind::Forbidden | ErrorKind::BadAnswer => !is_trusted,
            _ => false,
        }
    }

    /// The object of that name, found in the listing and read by its id.
    async fn find(&self, call: &Call, name: &ObjectName) -> Result<Option<Object>> {
        let searches = self.inner.capabilities().search;
        let search = searches.then(|| name.as_str().to_owned());
        let found = match self.find_id(call, name, search).await {
            // The text of a search may be refused where the name is.
            Err(e) if searches && matches!(e.kind, ErrorKind::Invalid | ErrorKind::BadAnswer) => {
                self.find_id(call, name, None).await?
            }
            found => found?,
        };
        let Some(id) = found else { return Ok(None) };
        match self.get(call, &id).await {
            Ok(object) if object.meta.name == *name => Ok(Some(object)),
            Ok(other) => Err(other_object(&reading(name), other.meta.name.as_str())),
            Err(e) if e.kind == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn find_id(
        &self,
        call: &Call,
        name: &ObjectName,
        search: Option<String>,
    ) -> Result<Option<ObjectId>> {
        let mut query = ListQuery { search, ..ListQuery::first() };
        let mut cursors = Cursors::default();
        loop {
            let page = self.inner.list(call, &query).await?;
            if let Some(found) = page.items.into_iter().find(|item| item.name == *name) {
                return Ok(Some(found.id));
            }
            match cursors.advance(page.next)? {
                Some(cursor) => query = query.next(cursor),
                None => return Ok(None),
            }
        }
    }

    /// Before a change: a path may fold this id into another object's.
    async fn check_id(&self, call: &Call, id: &ObjectId) -> Result<()> {
        let in_path = self.inner.capabilities().dialect == Dialect::Kv;
        match in_path && !is_plain(id.as_str()) {
            true => self.metadata(call, id).await.map(drop),
            false => Ok(()),
        }
    }
}

/// Names and ids that no URL encodes or folds.
fn is_plain(text: &str) -> bool {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    !text.is_empty() && text.bytes().all(unreserved) && !is_dots(text)
}

fn is_dots(text: &str) -> bool {
    matches!(text, "." | "..")
}

/// Names that are folded or refused where ordinary paths of several components pass.
fn is_odd(name: &str) -> bool {
    name.split('/').any(|part| part.is_empty() || is_dots(part))
        || name.trim() != name
        || name.contains(['%', '\\', ';', '?', '#', '+'])
        || name.contains(char::is_control)
}

fn reading(name: &ObjectName) -> String {
    format!("reading {}", quoted(name.as_str()))
}

/// The error of an answer about another object than `operation` names.
pub(super) fn other_object(operation: &str, answered: &str) -> Error {
    let sentence = format!(
        "{operation}: the answer is about another object ({}): something between here and the vault rewrites paths, or the \
         vault takes the two for one",
        quoted(answered)
    );
    Error::new(ErrorKind::OtherObject, sentence)
}

/// The answer, if it is about this object.
fn of_id(id: &ObjectId, meta: &Meta, operation: &str) -> Result<()> {
    match meta.id == *id {
        true => Ok(()),
        false => {
            Err(other_object(&format!("{operation} the object {}", quoted(id.as_str())), meta.id.as_str()))
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for CheckedVault {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn status(&self) -> VaultStatus {
        self.inner.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let failed = match self.inner.get_by_name(call, name).await {
            Ok(object) if object.meta.name == *name => {
                if !is_plain(name.as_str()) {
                    self.encoded_passes.store(true, Ordering::Relaxed);
                }
                return Ok(object);
            }
            Ok(other) => other_object(&reading(name), other.meta.name.as_str()),
            Err(e) if self.may_be_the_path(name, &e) => e,
            Err(e) => return Err(e),
        };
        match self.find(call, name).await {
            Ok(Some(object)) => Ok(object),
            // A key may be shown a part of the names.
            Ok(None) if failed.kind == ErrorKind::Forbidden => Err(failed),
            Ok(None) => {
                let sentence = format!("{}: the vault has no such object", reading(name));
                Err(Error::new(ErrorKind::NotFound, sentence))
            }
            Err(e) if e.kind == ErrorKind::Forbidden && failed.kind != ErrorKind::Unsupported => Err(failed),
            Err(e) => Err(e),
        }
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        let object = self.inner.get(call, id).await?;
        of_id(id, &object.meta, "reading").map(|()| object)
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        let meta = self.inner.metadata(call, id).await?;
        of_id(id, &meta, "looking at").map(|()| meta)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let meta = self.inner.create(call, name, content).await?;
        match meta.name == *name {
            true => Ok(meta),
            false => Err(other_object(&format!("creating {}", quoted(name.as_str())), meta.name.as_str())),
        }
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        self.check_id(call, id).await?;
        let meta = self.inner.update(call, id, content, check).await?;
        of_id(id, &meta, "updating").map(|()| meta)
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        self.check_id(call, id).await?;
        self.inner.delete(call, id, check).await
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        self.inner.list(call, query).await
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        self.inner.versions(call, id, since).await
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let object = self.inner.version(call, id, version).await?;
        of_id(id, &object.meta, "reading a version of")?;
        // A time stands in for a number that the answer leaves out.
        let number = |tag: &VersionTag| tag.as_str().parse::<u64>().ok();
        match (number(&object.meta.version), number(&version.tag)) {
            (Some(answered), Some(asked)) if answered != asked => {
                let operation =
                    format!("reading version {} of the object {}", version.tag, quoted(id.as_str()));
                Err(other_object(&operation, &format!("version {answered}")))
            }
            _ => Ok(object),
        }
    }
}
