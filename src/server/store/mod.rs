//! Where sealed objects are kept: the vault's transactions as a trait, SQLite as the first thing
//! behind it.
//!
//! A store sees names, times, sizes and ciphertext, never a value or a usable key. Each method is
//! one transaction: when it returns `Ok`, what it did is on disk. It decides everything that has to
//! be decided together with the write: whether a name is free, which number a version gets, whether
//! a version check holds, and the time (which never runs backwards within a vault, so that "changed
//! since" misses nothing when a clock is set back).

pub mod sqlite;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use ulid::Ulid;

use crate::server::crypto::seal::SealError;
use crate::vault::ObjectName;

/// Milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl From<Millis> for SystemTime {
    fn from(at: Millis) -> Self {
        UNIX_EPOCH + Duration::from_millis(at.0.max(0).unsigned_abs())
    }
}

/// RFC 3339 with milliseconds, UTC.
impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis((*self).into()).fmt(f)
    }
}

/// A vault's own random id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaultId(pub [u8; 16]);

/// A version's own random id: what the kv dialect calls its version by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionUid(pub [u8; 16]);

/// A keyed hash of a version's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Etag(pub [u8; 16]);

/// A keyed hash of an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyHash(pub [u8; 32]);

/// What a version's text is: each dialect's values are kept as that dialect wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredForm {
    /// The JSON text of `data`, verbatim.
    Object,
    /// The text of `value`, verbatim.
    Kv,
}

impl StoredForm {
    /// Its number in the database and in what is authenticated.
    pub fn code(self) -> u8 {
        match self {
            StoredForm::Object => 1,
            StoredForm::Kv => 2,
        }
    }

    /// The form with this number.
    pub fn from_code(code: i64) -> Option<Self> {
        [StoredForm::Object, StoredForm::Kv].into_iter().find(|form| i64::from(form.code()) == code)
    }
}

/// A value, ready for the disk.
#[derive(Debug, Clone)]
pub struct SealedValue {
    /// What the text is.
    pub form: StoredForm,
    /// Bytes of the file view.
    pub size: u64,
    /// Keyed hash of the text.
    pub etag: Etag,
    /// The ciphertext.
    pub sealed: Vec<u8>,
}

/// The writer, the time, and the random id that the version gets.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Id of the API key.
    pub api_key_id: String,
    /// The clock's time; the store may move it on.
    pub at: Millis,
    /// The new version's id.
    pub uid: VersionUid,
}

/// A request that is done once however often it is sent: what an `Idempotency-Key` comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// Keyed hash of the API key, the path and the header.
    pub scope: [u8; 32],
    /// Keyed hash of the body.
    pub request: [u8; 32],
}

/// An object to be made.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Its id.
    pub id: Ulid,
    /// Its name.
    pub name: ObjectName,
    /// Its key context, JSON text (kv dialect; `{}` elsewhere).
    pub key_context: String,
    /// Its data key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// Version 1, sealed.
    pub value: SealedValue,
    /// Makes a repeated request find the object that the first one made.
    pub idempotency: Option<IdempotencyRecord>,
}

/// The writer of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Id of the API key.
    pub id: String,
    /// What a person calls the key; `None` once it is revoked.
    pub name: Option<String>,
}

/// Everything of an object but its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRow {
    /// Its id.
    pub id: Ulid,
    /// Its name.
    pub name: String,
    /// Its key context, JSON text.
    pub key_context: String,
    /// Number of the current version.
    pub version: u64,
    /// Id of the current version.
    pub version_uid: VersionUid,
    /// When it was made.
    pub created_at: Millis,
    /// When the current version was made.
    pub updated_at: Millis,
    /// The writer of the current version.
    pub updated_by: Actor,
}

/// How long a store knows what a request with an idempotency key made.
pub const KEYS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// An object at one of its versions, value sealed: `object.version`, `updated_at` and so on are
/// that version's.
#[derive(Debug, Clone)]
pub struct SealedObject {
    /// The object.
    pub object: ObjectRow,
    /// Its data key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// What the text is.
    pub form: StoredForm,
    /// The ciphertext.
    pub sealed: Vec<u8>,
}

/// One version, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// 1 is the oldest.
    pub number: u64,
    /// Its own id.
    pub uid: VersionUid,
    /// When it was made.
    pub created_at: Millis,
    /// Bytes of the file view.
    pub size: u64,
    /// Keyed hash of the value.
    pub etag: Etag,
    /// Whether it is the current one.
    pub current: bool,
}

/// Which object is meant.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// The one with this id.
    Id(Ulid),
    /// The one with this name.
    Name(String),
}

/// Where a page of a listing lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFrom {
    /// At the first object.
    Start,
    /// Right after this one, which may have been deleted since.
    After(Ulid),
    /// Right before this one, which may have been deleted since.
    Before(Ulid),
}

/// Which way a listing runs along creation order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// What to list.
#[derive(Debug, Clone)]
pub struct ListRequest {
    /// Where the page lies.
    pub from: PageFrom,
    /// Which way the listing runs.
    pub order: Order,
    /// Objects a page at most.
    pub limit: u32,
    /// Only names that contain this.
    pub search: Option<String>,
    /// Only objects changed after this moment.
    pub updated_after: Option<Millis>,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// The objects.
    pub objects: Vec<ObjectRow>,
    /// Cursor to what lies before the page, if anything does.
    pub before: Option<Ulid>,
    /// Cursor to what lies after the page, if anything does.
    pub after: Option<Ulid>,
}

/// What an API key may do. Stored as a bit set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read values, names, history.
    Read = 1,
    /// Make and update objects.
    Write = 2,
    /// Delete objects.
    Delete = 4,
    /// Use the key endpoints.
    Keys = 8,
}

impl Permission {
    /// Each there is.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Delete, Self::Keys];

    /// Its word on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Permission::Read => "read",
            Permission::Write => "write",
            Permission::Delete => "delete",
            Permission::Keys => "keys",
        }
    }
}

/// A set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions(pub u8);

impl Permissions {
    /// All there are.
    pub const ALL: Self = Self(15);

    /// Those listed.
    pub fn of(list: &[Permission]) -> Self {
        Self(list.iter().fold(0, |set, &p| set | p as u8))
    }

    /// Whether `p` is among them.
    pub fn allow(self, p: Permission) -> bool {
        self.0 & p as u8 != 0
    }
}

/// As on the command line: `read,write`.
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Permission::ALL.into_iter().filter(|&p| self.allow(p)).map(Permission::name).collect();
        f.write_str(&names.join(","))
    }
}

/// An API key as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// `key_` and a ULID.
    pub id: String,
    /// What a person calls it.
    pub name: String,
    /// What it may do.
    pub permissions: Permissions,
    /// When it was made.
    pub created_at: Millis,
}

/// Seals a version for the object and number it turns out to get. Runs inside the store's
/// transaction.
pub type SealFn = Box<dyn FnOnce(Ulid, u64, &[u8]) -> Result<SealedValue, SealError> + Send>;

/// Why a transaction was not made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such object or version.
    #[error("no such object or version")]
    NotFound,
    /// The name is taken.
    #[error("the name is taken")]
    NameTaken,
    /// The version check failed.
    #[error("the current version is another one")]
    VersionMismatch,
    /// [`IdempotencyRecord`]: another request was sent with the same key.
    #[error("another request came with the same idempotency key")]
    IdempotencyMismatch,
    /// [`IdempotencyRecord`]: what the first request made is deleted.
    #[error("the object of this idempotency key is deleted")]
    IdempotencyGone,
    /// A cursor that names no object there ever was.
    #[error("unknown cursor")]
    UnknownCursor,
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// There is no room on the disk; nothing was changed.
    #[error("the disk is full")]
    Full,
    /// The database failed. Never holds a value.
    #[error("database: {0}")]
    Backend(String),
}

/// The vault's transactions.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Makes an object with version 1, or finds the one that the same [`IdempotencyRecord`] made,
    /// as it was then.
    async fn create(&self, new: NewObject, stamp: Stamp) -> Result<ObjectRow, StoreError>;
    /// The object with its current value.
    async fn get(&self, which: Lookup) -> Result<SealedObject, StoreError>;
    /// The object without its value.
    async fn metadata(&self, id: Ulid) -> Result<ObjectRow, StoreError>;
    /// One page of objects.
    async fn list(&self, request: ListRequest) -> Result<ListPage, StoreError>;
    /// Makes the next version; with `check`, only while that is the current one. Or finds the one
    /// that the same [`IdempotencyRecord`] made, as it was then.
    async fn update(
        &self,
        id: Ulid,
        check: Option<VersionUid>,
        stamp: Stamp,
        seal: SealFn,
        idempotency: Option<IdempotencyRecord>,
    ) -> Result<ObjectRow, StoreError>;
    /// Deletes the object with all its versions; with `check`, only while that is the current one.
    async fn delete(&self, id: Ulid, check: Option<VersionUid>) -> Result<ObjectRow, StoreError>;
    /// All versions, or so many, newest first.
    async fn versions(&self, id: Ulid, newest: Option<u32>) -> Result<Vec<VersionRow>, StoreError>;
    /// The object as it was at one version.
    async fn version(&self, id: Ulid, number: u64) -> Result<SealedObject, StoreError>;
    /// The API key with this hash.
    async fn find_key(&self, hash: KeyHash) -> Result<Option<KeyRow>, StoreError>;
    /// Adds an API key.
    async fn add_key(&self, key: KeyRow, hash: KeyHash) -> Result<(), StoreError>;
    /// All API keys, oldest first.
    async fn list_keys(&self) -> Result<Vec<KeyRow>, StoreError>;
    /// Forgets an API key; [`StoreError::NotFound`] if there is none with this id.
    async fn revoke_key(&self, id: &str) -> Result<(), StoreError>;
    /// Ends the work that goes on behind the answers, and lets go of what is on the disk. Nothing
    /// can be asked afterwards.
    async fn close(&self);
}
