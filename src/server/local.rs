//! The vault with no HTTP between: [`Service`] as a [`Vault`], so that the contract suite runs on SQLite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;

use super::service::{Create, Service, ServiceError, Value, id_text, parse_id};
use super::store::{ListRequest, Lookup, ObjectRow, Order, PageFrom, StoreError};
use crate::vault::codec;
use crate::vault::{
    Call, Capabilities, Content, Dialect, Error, ErrorKind, IdempotencyKey, ListQuery, Meta, NameLimit,
    Object, ObjectId, ObjectName, Page, Result, Summary, Vault, VaultStatus, VersionInfo, VersionTag,
};

/// Who wrote, in the database's words.
const BY: &str = "local";

/// A vault in this process, speaking the object dialect without a wire.
#[derive(Debug)]
pub struct LocalVault {
    service: Arc<Service>,
    requests: AtomicU64,
}

impl LocalVault {
    /// Over this service.
    pub fn new(service: Arc<Service>) -> Self {
        Self { service, requests: AtomicU64::new(0) }
    }
}

impl From<ServiceError> for Error {
    fn from(e: ServiceError) -> Self {
        let kind = match &e {
            ServiceError::BadValue(_) => ErrorKind::Invalid,
            ServiceError::TooLarge { .. } => ErrorKind::TooLarge,
            ServiceError::BadKey(_) => ErrorKind::Invalid,
            ServiceError::Store(e) => match e {
                StoreError::NotFound => ErrorKind::NotFound,
                StoreError::NameTaken => ErrorKind::AlreadyExists,
                StoreError::VersionMismatch => ErrorKind::VersionMismatch,
                StoreError::IdempotencyGone => ErrorKind::MadeAndDeleted,
                StoreError::UnknownCursor | StoreError::IdempotencyMismatch => ErrorKind::Invalid,
                StoreError::Full => ErrorKind::Full,
                StoreError::Seal(_) | StoreError::Backend(_) => ErrorKind::Server,
            },
        };
        Error::new(kind, e.to_string())
    }
}

fn tag(version: u64) -> VersionTag {
    VersionTag::new(version.to_string())
}

fn name(row: &ObjectRow) -> Result<ObjectName> {
    ObjectName::new(&row.name).ok_or_else(|| Error::new(ErrorKind::BadAnswer, "a name that cannot be"))
}

fn meta(row: &ObjectRow) -> Result<Meta> {
    Ok(Meta {
        id: ObjectId::new(id_text(row.id)),
        name: name(row)?,
        version: tag(row.version),
        updated_at: row.updated_at.into(),
    })
}

fn object(row: &ObjectRow, value: &Value) -> Result<Object> {
    let content = value.content().map_err(|e| Error::new(ErrorKind::BadAnswer, e.to_string()))?;
    Ok(Object { meta: meta(row)?, content })
}

fn id(id: &ObjectId) -> Result<ulid::Ulid> {
    parse_id(id.as_str()).ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no object with this id"))
}

fn value(content: &Content) -> Value {
    Value::data(codec::encode_data(content).expose())
}

impl LocalVault {
    /// Reads until the call's deadline.
    async fn read<T>(&self, call: &Call, work: impl Future<Output = Result<T, ServiceError>>) -> Result<T> {
        self.bounded(call, work).await
    }

    /// Changes something until the call's deadline; what is cut off may have been done.
    async fn change<T>(&self, call: &Call, work: impl Future<Output = Result<T, ServiceError>>) -> Result<T> {
        let begun = call.deadline > Instant::now();
        let done = self.bounded(call, work).await;
        done.map_err(|e| if begun && e.kind == ErrorKind::Deadline { e.maybe_applied() } else { e })
    }

    async fn bounded<T>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T> {
        let late = || Error::new(ErrorKind::Deadline, "the vault did not answer in time");
        if call.deadline <= Instant::now() {
            return Err(late());
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let done = tokio::time::timeout_at(call.deadline.into(), work).await;
        done.map_err(|_| late())?.map_err(Error::from)
    }
}

#[async_trait]
impl Vault for LocalVault {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            dialect: Dialect::Object,
            old_values: true,
            version_check: false,
            search: false,
            max_name: NameLimit::Bytes(crate::vault::model::object::MAX_NAME_BYTES),
        }
    }

    fn status(&self) -> VaultStatus {
        let requests = self.requests.load(Ordering::Relaxed);
        let (endpoint, spent_by) = ("in this process".to_owned(), Vec::new());
        let (budget, ahead_ms, may_write) = (None, Some(0), None);
        VaultStatus { endpoint, requests, spent_by, budget, ahead_ms, may_write, key_changes: 0 }
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let which = Lookup::Name(name.as_str().to_owned());
        let (row, value) = self.read(call, self.service.get(which)).await?;
        object(&row, &value)
    }

    async fn get(&self, call: &Call, which: &ObjectId) -> Result<Object> {
        let (row, value) = self.read(call, self.service.get(Lookup::Id(id(which)?))).await?;
        object(&row, &value)
    }

    async fn metadata(&self, call: &Call, which: &ObjectId) -> Result<Meta> {
        meta(&self.read(call, self.service.metadata(id(which)?)).await?)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let value = value(content);
        let once = |key: IdempotencyKey| {
            self.service.idempotency(BY, "local", key.to_string().as_bytes(), &content.bytes)
        };
        let create =
            Create { idempotency: call.idempotency_key.map(once), ..Create::new(name.clone(), &value) };
        meta(&self.change(call, self.service.create(BY, create)).await?)
    }

    async fn update(
        &self,
        call: &Call,
        which: &ObjectId,
        content: &Content,
        _check: Option<&VersionTag>,
    ) -> Result<Meta> {
        meta(&self.change(call, self.service.update(BY, id(which)?, None, value(content))).await?)
    }

    async fn delete(&self, call: &Call, which: &ObjectId, _check: Option<&VersionTag>) -> Result<()> {
        self.change(call, self.service.delete(id(which)?, None)).await.map(drop)
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let unknown = || Error::new(ErrorKind::Invalid, "after is not a cursor that this vault gave out");
        let from = match &query.after {
            Some(cursor) => PageFrom::After(parse_id(cursor).ok_or_else(unknown)?),
            None => PageFrom::Start,
        };
        let request = ListRequest {
            from,
            order: Order::Ascending,
            limit: query.limit.clamp(1, 100),
            search: None,
            updated_after: None,
        };
        let page = self.read(call, self.service.list(request)).await?;
        let items = page.objects.iter().map(|row| {
            Ok(Summary {
                id: ObjectId::new(id_text(row.id)),
                name: name(row)?,
                updated_at: Some(row.updated_at.into()),
                version: Some(tag(row.version)),
            })
        });
        Ok(Page { items: items.collect::<Result<_>>()?, next: page.after.map(id_text) })
    }

    async fn versions(&self, call: &Call, which: &ObjectId) -> Result<Vec<VersionInfo>> {
        let rows = self.read(call, self.service.versions(id(which)?)).await?;
        let infos = rows.into_iter().rev().map(|row| VersionInfo {
            number: row.number,
            tag: tag(row.number),
            created_at: row.created_at.into(),
            size: Some(row.size),
            current: row.current,
        });
        Ok(infos.collect())
    }

    async fn version(&self, call: &Call, which: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let (row, value) = self.read(call, self.service.version(id(which)?, version.number)).await?;
        object(&row, &value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::instance::data_dir::DataDir;
    use crate::server::instance::serve::{Instance, ServeOptions};
    use crate::vault::testing::contract;

    #[tokio::test]
    async fn sqlite_passes_the_contract() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::prepare(temp.path()).unwrap();
        let lock = dir.try_lock().unwrap().unwrap();
        let instance = Instance::open(dir, lock, ServeOptions::default()).await.unwrap();
        contract::run(Arc::new(LocalVault::new(Arc::clone(instance.service())))).await;
    }
}
