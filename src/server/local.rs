//! The vault with no HTTP between: [`Service`] as a [`Vault`], so that the contract suite runs on SQLite.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use super::service::{Service, ServiceError, Value, id_text, parse_id};
use super::store::{ListRequest, Lookup, Millis, ObjectRow, PageFrom, StoreError};
use crate::vault::codec;
use crate::vault::{
    Call, Capabilities, Content, Dialect, Error, ErrorKind, ListQuery, Meta, NameLimit, Object, ObjectId,
    ObjectName, Page, Result, Summary, Vault, VaultStatus, VersionInfo, VersionTag,
};

/// Who wrote, in the database's words.
const BY: &str = "local";

/// A vault in this process, speaking the object dialect without a wire.
#[derive(Debug, Clone)]
pub struct LocalVault {
    service: Arc<Service>,
}

impl LocalVault {
    /// Over this service.
    pub fn new(service: Arc<Service>) -> Self {
        Self { service }
    }
}

impl From<ServiceError> for Error {
    fn from(e: ServiceError) -> Self {
        let kind = match &e {
            ServiceError::BadValue(_) => ErrorKind::Invalid,
            ServiceError::TooLarge { .. } => ErrorKind::TooLarge,
            ServiceError::Store(e) => match e {
                StoreError::NotFound => ErrorKind::NotFound,
                StoreError::NameTaken => ErrorKind::AlreadyExists,
                StoreError::VersionMismatch => ErrorKind::VersionMismatch,
                StoreError::UnknownCursor => ErrorKind::Invalid,
                StoreError::Seal(_) | StoreError::Backend(_) => ErrorKind::Server,
            },
        };
        Error::new(kind, e.to_string())
    }
}

fn time(at: Millis) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(at.0.max(0).unsigned_abs())
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
        updated_at: time(row.updated_at),
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

/// Runs `work` until the call's deadline; a call without time left does not begin.
async fn within<T>(call: &Call, work: impl Future<Output = Result<T, ServiceError>>) -> Result<T> {
    if call.deadline <= std::time::Instant::now() {
        return Err(Error::new(ErrorKind::Deadline, "no time was left to ask the vault"));
    }
    match tokio::time::timeout_at(call.deadline.into(), work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Error::new(ErrorKind::Deadline, "the vault did not answer in time").maybe_applied()),
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
            max_name: NameLimit::Bytes(crate::vault::object::MAX_NAME_BYTES),
        }
    }

    fn status(&self) -> VaultStatus {
        VaultStatus { endpoint: "in this process".to_owned(), requests: 0, budget: None }
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let which = Lookup::Name(name.as_str().to_owned());
        let (row, value) = within(call, self.service.get(which)).await?;
        object(&row, &value)
    }

    async fn get(&self, call: &Call, which: &ObjectId) -> Result<Object> {
        let (row, value) = within(call, self.service.get(Lookup::Id(id(which)?))).await?;
        object(&row, &value)
    }

    async fn metadata(&self, call: &Call, which: &ObjectId) -> Result<Meta> {
        meta(&within(call, self.service.metadata(id(which)?)).await?)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let value = value(content);
        meta(&within(call, self.service.create(BY, name.clone(), &value)).await?)
    }

    async fn update(
        &self,
        call: &Call,
        which: &ObjectId,
        content: &Content,
        _check: Option<&VersionTag>,
    ) -> Result<Meta> {
        meta(&within(call, self.service.update(BY, id(which)?, None, value(content))).await?)
    }

    async fn delete(&self, call: &Call, which: &ObjectId, _check: Option<&VersionTag>) -> Result<()> {
        within(call, self.service.delete(id(which)?, None)).await.map(drop)
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let unknown = || Error::new(ErrorKind::Invalid, "after is not a cursor that this vault gave out");
        let from = match &query.after {
            Some(cursor) => PageFrom::After(parse_id(cursor).ok_or_else(unknown)?),
            None => PageFrom::Start,
        };
        let request =
            ListRequest { from, limit: query.limit.clamp(1, 100), search: None, updated_after: None };
        let page = within(call, self.service.list(request)).await?;
        let items = page.objects.iter().map(|row| {
            Ok(Summary {
                id: ObjectId::new(id_text(row.id)),
                name: name(row)?,
                updated_at: Some(time(row.updated_at)),
                version: Some(tag(row.version)),
            })
        });
        Ok(Page { items: items.collect::<Result<_>>()?, next: page.after.map(id_text) })
    }

    async fn versions(&self, call: &Call, which: &ObjectId) -> Result<Vec<VersionInfo>> {
        let rows = within(call, self.service.versions(id(which)?)).await?;
        let infos = rows.into_iter().rev().map(|row| VersionInfo {
            number: row.number,
            tag: tag(row.number),
            created_at: time(row.created_at),
            size: Some(row.size),
            current: row.current,
        });
        Ok(infos.collect())
    }

    async fn version(&self, call: &Call, which: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let (row, value) = within(call, self.service.version(id(which)?, version.number)).await?;
        object(&row, &value)
    }
}
