//! What the vault does, before any dialect: seals, stores, opens, checks limits and keys.
//!
//! Both dialects and the in-process vault call this and nothing below it. Text goes in and comes out as
//! the dialect wrote it ([`Value`]); here it meets the codec only to learn the size of its file view.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use ulid::Ulid;

use super::seal::{Place, SealError, Sealer, random};
use super::store::*;
use crate::clock::Clock;
use crate::secret::SecretString;
use crate::vault::codec::{self, CodecError};
use crate::vault::{Content, ObjectName};

/// What an id of the vault begins with.
const ID_PREFIX: &str = "vault_obj_";

/// The text of an object's id.
pub fn id_text(id: Ulid) -> String {
    format!("{ID_PREFIX}{id}")
}

/// The id with this text, if it has the form of one.
pub fn parse_id(text: &str) -> Option<Ulid> {
    let digits = text.strip_prefix(ID_PREFIX)?;
    // Other spellings that decode to the same number are not ids that were handed out.
    Ulid::from_string(digits).ok().filter(|id| id.to_string() == digits)
}

/// A value as a dialect wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// What the text is.
    pub form: StoredForm,
    /// The text.
    pub text: SecretString,
}

impl Value {
    /// `data` of the object dialect: the JSON text of an object, kept verbatim.
    pub fn data(text: &str) -> Self {
        Self { form: StoredForm::Object, text: SecretString::new(text.to_owned()) }
    }

    /// The bytes that a file shows.
    pub fn content(&self) -> Result<Content, CodecError> {
        match self.form {
            StoredForm::Object => codec::decode_data(self.text.expose()),
            StoredForm::Kv => Ok(codec::decode_value(self.text.expose())),
        }
    }

    /// What the object dialect shows.
    pub fn as_data(&self) -> SecretString {
        match self.form {
            StoredForm::Object => self.text.clone(),
            StoredForm::Kv => codec::encode_data(&codec::decode_value(self.text.expose())),
        }
    }
}

/// Why the vault did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The value cannot be stored.
    #[error(transparent)]
    BadValue(#[from] CodecError),
    /// The value's file view is over the limit.
    #[error("a value holds at most {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SealError> for ServiceError {
    fn from(e: SealError) -> Self {
        Self::Store(StoreError::Seal(e))
    }
}

type Result<T, E = ServiceError> = std::result::Result<T, E>;

/// One vault: everything a front needs.
#[derive(Debug)]
pub struct Service {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    clock: Arc<dyn Clock>,
    max_value: usize,
}

impl Service {
    /// Puts the parts together; `max_value` is in bytes of the file view.
    pub fn new(store: Arc<dyn Store>, sealer: Arc<Sealer>, clock: Arc<dyn Clock>, max_value: usize) -> Self {
        Self { store, sealer, clock, max_value }
    }

    /// Longest request body that is read: a value may be escaped at worst eightfold, and there is more than the value.
    pub fn max_body(&self) -> usize {
        8 * self.max_value + 64 * 1024
    }

    /// Makes an object.
    pub async fn create(&self, by: &str, name: ObjectName, value: &Value) -> Result<ObjectRow> {
        let size = self.measure(value)?;
        let stamp = self.stamp(by)?;
        let id = self.new_ulid()?;
        let (key, wrapped_key) = self.sealer.new_data_key(id)?;
        let place = Place { object: id, version: 1, form: value.form };
        let text = value.text.expose().as_bytes();
        let value = SealedValue {
            form: value.form,
            size,
            etag: self.sealer.etag(id, text),
            sealed: self.sealer.seal(&key, place, text)?,
        };
        let new = NewObject { id, name, key_context: "{}".to_owned(), wrapped_key, value };
        Ok(self.store.create(new, stamp).await?)
    }

    /// Reads an object with its current value.
    pub async fn get(&self, which: Lookup) -> Result<(ObjectRow, Value)> {
        self.open(self.store.get(which).await?)
    }

    /// Reads an object as it was at one version.
    pub async fn version(&self, id: Ulid, number: u64) -> Result<(ObjectRow, Value)> {
        self.open(self.store.version(id, number).await?)
    }

    /// Reads an object without its value.
    pub async fn metadata(&self, id: Ulid) -> Result<ObjectRow> {
        Ok(self.store.metadata(id).await?)
    }

    /// All versions, newest first.
    pub async fn versions(&self, id: Ulid) -> Result<Vec<VersionRow>> {
        Ok(self.store.versions(id).await?)
    }

    /// One page of objects.
    pub async fn list(&self, request: ListRequest) -> Result<ListPage> {
        Ok(self.store.list(request).await?)
    }

    /// Makes the next version.
    pub async fn update(
        &self,
        by: &str,
        id: Ulid,
        check: Option<VersionUid>,
        value: Value,
    ) -> Result<ObjectRow> {
        let size = self.measure(&value)?;
        let stamp = self.stamp(by)?;
        let sealer = Arc::clone(&self.sealer);
        let seal: SealFn = Box::new(move |object, version, wrapped_key| {
            let key = sealer.unwrap_data_key(object, wrapped_key)?;
            let place = Place { object, version, form: value.form };
            let text = value.text.expose().as_bytes();
            let sealed = sealer.seal(&key, place, text)?;
            Ok(SealedValue { form: value.form, size, etag: sealer.etag(object, text), sealed })
        });
        Ok(self.store.update(id, check, stamp, seal).await?)
    }

    /// Deletes an object with its history.
    pub async fn delete(&self, id: Ulid, check: Option<VersionUid>) -> Result<ObjectRow> {
        Ok(self.store.delete(id, check).await?)
    }

    /// The API key that `text` is, if it is one.
    pub async fn authenticate(&self, text: &SecretString) -> Result<Option<KeyRow>> {
        Ok(self.store.find_key(self.sealer.hash_api_key(text.expose())).await?)
    }

    /// All API keys, oldest first.
    pub async fn keys(&self) -> Result<Vec<KeyRow>> {
        Ok(self.store.list_keys().await?)
    }

    /// Makes `text` an API key.
    pub async fn add_key(&self, text: &SecretString, name: &str, permissions: Permissions) -> Result<KeyRow> {
        let id = format!("key_{}", self.new_ulid()?);
        let key = KeyRow { id, name: name.to_owned(), permissions, created_at: self.now() };
        self.store.add_key(key.clone(), self.sealer.hash_api_key(text.expose())).await?;
        Ok(key)
    }

    /// Refuses the API key with this id from now on.
    pub async fn revoke_key(&self, id: &str) -> Result<()> {
        Ok(self.store.revoke_key(id).await?)
    }

    fn measure(&self, value: &Value) -> Result<u64> {
        let limit = self.max_value;
        let content = match value.form {
            StoredForm::Object => codec::decode_data_within(value.text.expose(), limit),
            StoredForm::Kv => Ok(codec::decode_value(value.text.expose())),
        };
        let len = match content {
            Ok(content) => content.bytes.len(),
            Err(CodecError::TooLarge { .. }) => return Err(ServiceError::TooLarge { limit }),
            Err(e) => return Err(e.into()),
        };
        if len > limit {
            return Err(ServiceError::TooLarge { limit });
        }
        Ok(len as u64)
    }

    fn open(&self, found: SealedObject) -> Result<(ObjectRow, Value)> {
        let SealedObject { object, wrapped_key, form, sealed } = found;
        let key = self.sealer.unwrap_data_key(object.id, &wrapped_key)?;
        let place = Place { object: object.id, version: object.version, form };
        let bytes = self.sealer.open(&key, place, &sealed)?;
        // Only text is ever sealed; anything else did not come from here.
        let text = std::str::from_utf8(bytes.expose()).map_err(|_| SealError::NotAuthentic)?;
        Ok((object, Value { form, text: SecretString::new(text.to_owned()) }))
    }

    fn stamp(&self, by: &str) -> Result<Stamp> {
        let mut uid = random::<16>()?;
        // A UUID of version 4, as kv shows it.
        uid[6] = uid[6] & 0x0f | 0x40;
        uid[8] = uid[8] & 0x3f | 0x80;
        Ok(Stamp { by: by.to_owned(), at: self.now(), uid: VersionUid(uid) })
    }

    fn now(&self) -> Millis {
        let since = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn new_ulid(&self) -> Result<Ulid> {
        let noise = u128::from_be_bytes(random::<16>()?);
        Ok(Ulid::from_parts(self.now().0.unsigned_abs(), noise))
    }
}
