//! What the vault does, before any dialect: seals, stores, opens, checks limits and keys.
//!
//! Both dialects and the in-process vault call this and nothing below it. Text goes in and comes
//! out as the dialect wrote it ([`Value`]); here it meets the codec only to learn the size of its
//! file view.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use ulid::Ulid;

use super::store::*;
use crate::clock::Clock;
use crate::secret::SecretString;
use crate::server::crypto::context::KeyContext;
use crate::server::crypto::data_keys;
use crate::server::crypto::data_keys::{DataKeys, KeyError, as_uuid};
use crate::server::crypto::seal::{Place, SealError, Sealer, random};
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

    /// `value` of the kv dialect, kept verbatim.
    pub fn kv(text: SecretString) -> Self {
        Self { form: StoredForm::Kv, text }
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

    /// What the kv dialect shows.
    pub fn as_kv(&self) -> Result<SecretString, CodecError> {
        match self.form {
            StoredForm::Object => Ok(codec::encode_value(self.content()?.bytes.expose())),
            StoredForm::Kv => Ok(self.text.clone()),
        }
    }
}

/// An object to be made.
#[derive(Debug)]
pub struct Create<'a> {
    /// Its name.
    pub name: ObjectName,
    /// Its first value.
    pub value: &'a Value,
    /// Its key context (kv dialect; empty elsewhere).
    pub context: KeyContext,
    /// See [`Service::idempotency`].
    pub idempotency: Option<IdempotencyRecord>,
}

impl<'a> Create<'a> {
    /// With the empty context, and made as often as it is asked for.
    pub fn new(name: ObjectName, value: &'a Value) -> Self {
        Self { name, value, context: KeyContext::default(), idempotency: None }
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
    /// A data key, or what was encrypted with one, is of no use.
    #[error(transparent)]
    BadKey(#[from] KeyError),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SealError> for ServiceError {
    fn from(e: SealError) -> Self {
        Self::Store(StoreError::Seal(e))
    }
}

type ServiceResult<T> = Result<T, ServiceError>;

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

    /// The vault ends.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// Longest request body that is read: a value may be escaped at worst eightfold, and there is
    /// more than the value.
    pub fn max_body(&self) -> usize {
        8 * self.max_value + 64 * 1024
    }

    /// Makes an object; or finds the one that the same request made before, as it was then.
    pub async fn create(&self, api_key_id: &str, create: Create<'_>) -> ServiceResult<ObjectRow> {
        let Create { name, value, context, idempotency } = create;
        let size = self.measure(value)?;
        let stamp = self.stamp(api_key_id)?;
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
        let new = NewObject { id, name, key_context: context.text(), wrapped_key, value, idempotency };
        Ok(self.store.create(new, stamp).await?)
    }

    /// Reads an object with its current value.
    pub async fn get(&self, which: Lookup) -> ServiceResult<(ObjectRow, Value)> {
        self.open(self.store.get(which).await?)
    }

    /// Reads an object as it was at one version.
    pub async fn version(&self, id: Ulid, number: u64) -> ServiceResult<(ObjectRow, Value)> {
        self.open(self.store.version(id, number).await?)
    }

    /// Reads an object without its value.
    pub async fn metadata(&self, id: Ulid) -> ServiceResult<ObjectRow> {
        Ok(self.store.metadata(id).await?)
    }

    /// All versions, or so many, newest first.
    pub async fn versions(&self, id: Ulid, newest: Option<u32>) -> ServiceResult<Vec<VersionRow>> {
        Ok(self.store.versions(id, newest).await?)
    }

    /// One page of objects.
    pub async fn list(&self, request: ListRequest) -> ServiceResult<ListPage> {
        Ok(self.store.list(request).await?)
    }

    /// Makes the next version; or finds the one that the same request made before, as it was then.
    pub async fn update(
        &self,
        api_key_id: &str,
        id: Ulid,
        check: Option<VersionUid>,
        value: Value,
        idempotency: Option<IdempotencyRecord>,
    ) -> ServiceResult<ObjectRow> {
        let size = self.measure(&value)?;
        let stamp = self.stamp(api_key_id)?;
        let sealer = Arc::clone(&self.sealer);
        let seal: SealFn = Box::new(move |object, version, wrapped_key| {
            let key = sealer.unwrap_data_key(object, wrapped_key)?;
            let place = Place { object, version, form: value.form };
            let text = value.text.expose().as_bytes();
            let sealed = sealer.seal(&key, place, text)?;
            Ok(SealedValue { form: value.form, size, etag: sealer.etag(object, text), sealed })
        });
        Ok(self.store.update(id, check, stamp, seal, idempotency).await?)
    }

    /// Deletes an object with its history.
    pub async fn delete(&self, id: Ulid, check: Option<VersionUid>) -> ServiceResult<ObjectRow> {
        Ok(self.store.delete(id, check).await?)
    }

    /// What makes a request with this `Idempotency-Key`, from this API key to this route, one that
    /// is done once.
    pub fn idempotency(
        &self,
        api_key_id: &str,
        route: &str,
        header: &[u8],
        body: &[u8],
    ) -> IdempotencyRecord {
        // Only a keyed hash of it is kept.
        self.sealer.idempotency([api_key_id.as_bytes(), route.as_bytes(), header], body)
    }

    /// The vault's id.
    pub fn vault(&self) -> VaultId {
        self.sealer.vault()
    }

    /// The keys that the vault makes for its clients.
    pub fn data_keys(&self) -> &DataKeys {
        self.sealer.data_keys()
    }

    /// Encrypts a text under a client's own data key. Bytes that are no text come in as kv stores
    /// them, which is longer: the limit is on what they stand for, as for values.
    pub fn encrypt(&self, data_key: &SecretString, text: &SecretString) -> ServiceResult<String> {
        if codec::decode_value(text.expose()).bytes.len() > self.max_value {
            return Err(ServiceError::TooLarge { limit: self.max_value });
        }
        // On its way into the ciphertext.
        Ok(data_keys::encrypt(data_key, text.expose())?)
    }

    /// Decrypts what [`Service::encrypt`] made.
    pub fn decrypt(&self, data_key: &SecretString, ciphertext: &str) -> ServiceResult<SecretString> {
        Ok(data_keys::decrypt(data_key, ciphertext)?)
    }

    /// What an API key is found by.
    pub fn hash_api_key(&self, text: &SecretString) -> KeyHash {
        self.sealer.hash_api_key(text.expose())
    }

    /// The API key with this hash, if there is one.
    pub async fn authenticate(&self, hash: KeyHash) -> ServiceResult<Option<KeyRow>> {
        Ok(self.store.find_key(hash).await?)
    }

    /// All API keys, oldest first.
    pub async fn keys(&self) -> ServiceResult<Vec<KeyRow>> {
        Ok(self.store.list_keys().await?)
    }

    /// Makes `text` an API key.
    pub async fn add_key(
        &self,
        text: &SecretString,
        name: &str,
        permissions: Permissions,
    ) -> ServiceResult<KeyRow> {
        let id = format!("key_{}", self.new_ulid()?);
        let key = KeyRow { id, name: name.to_owned(), permissions, created_at: self.now() };
        self.store.add_key(key.clone(), self.sealer.hash_api_key(text.expose())).await?;
        Ok(key)
    }

    /// Refuses the API key with this id from now on.
    pub async fn revoke_key(&self, id: &str) -> ServiceResult<()> {
        Ok(self.store.revoke_key(id).await?)
    }

    fn measure(&self, value: &Value) -> ServiceResult<u64> {
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

    fn open(&self, found: SealedObject) -> ServiceResult<(ObjectRow, Value)> {
        let SealedObject { object, wrapped_key, form, sealed } = found;
        let key = self.sealer.unwrap_data_key(object.id, &wrapped_key)?;
        let place = Place { object: object.id, version: object.version, form };
        let bytes = self.sealer.open(&key, place, &sealed)?;
        // Only text is ever sealed; anything else did not come from here.
        let text = std::str::from_utf8(bytes.expose()).map_err(|_| SealError::NotAuthentic)?;
        Ok((object, Value { form, text: SecretString::new(text.to_owned()) }))
    }

    fn stamp(&self, api_key_id: &str) -> ServiceResult<Stamp> {
        Ok(Stamp { api_key_id: api_key_id.to_owned(), at: self.now(), uid: VersionUid(as_uuid(random()?)) })
    }

    fn now(&self) -> Millis {
        let since = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn new_ulid(&self) -> ServiceResult<Ulid> {
        let noise = u128::from_be_bytes(random::<16>()?);
        Ok(Ulid::from_parts(self.now().0.unsigned_abs(), noise))
    }
}
