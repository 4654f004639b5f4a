//! What a vault is, for every backend: objects with names, versions and values.
//!
//! [`Vault`] is the one interface of everything above. The HTTP client, the memory and the faulty
//! vault and the wrappers (prefix) implement it, and all of them pass the contract in
//! `tests/conformance/vault_contract`. A value crosses it as *file bytes* ([`Content`]): what those
//! bytes look like on the wire is decided by `codec` at the edge. Nothing in here knows of inodes,
//! FUSE or the server.

pub mod attribution;
pub mod cache;
pub mod client;
pub mod codec;
pub mod envelope;
pub mod idempotency_key;
pub mod lazy;
pub mod model;
pub mod prefix;
pub mod save;
pub mod testing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use crate::vault::model::error::{Error, ErrorKind, Result};
pub use crate::vault::model::object::{
    Content, Form, ListQuery, Meta, Object, ObjectId, ObjectName, Page, Summary, VersionInfo, VersionTag,
};
pub use idempotency_key::IdempotencyKey;

/// The urgency of a request; background work yields the request budget to the foreground.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// A program waits for the answer.
    Foreground,
    /// Refresh, prefetch, retries of failed writes.
    Background,
}

/// What bounds one operation on the vault, retries included, and what the vault is to know it by.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The answer is worthless after this moment: the operation ends with [`ErrorKind::Deadline`].
    pub deadline: Instant,
    /// Whether a program waits for it.
    pub priority: Priority,
    /// What a vault that honours such keys knows a creation by that comes again; other operations
    /// ignore it.
    pub idempotency_key: Option<IdempotencyKey>,
    /// It was sent before, and its answer may be an older one.
    pub is_repeated: bool,
}

impl Call {
    /// A foreground call.
    pub fn foreground(deadline: Instant) -> Self {
        Self { deadline, priority: Priority::Foreground, idempotency_key: None, is_repeated: false }
    }

    /// A background call.
    pub fn background(deadline: Instant) -> Self {
        Self { deadline, priority: Priority::Background, idempotency_key: None, is_repeated: false }
    }
}

/// The two dialects of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/vault/object/*`: numbered versions, old values readable.
    Object,
    /// `/vault/v1/kv*`: version ids, optimistic locking, search, changes since.
    Kv,
}

/// What a vault can do beyond the common operations. The file system asks this, never the dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The dialect, for status output only.
    pub dialect: Dialect,
    /// Values of old versions can be read.
    pub old_values: bool,
    /// `update` and `delete` honour a version check.
    pub version_check: bool,
    /// `list` honours `search` and `updated_after`.
    pub search: bool,
    /// Longest name, in the dialect's own unit: see [`Dialect`]. Object: 1024 bytes; kv: 200
    /// characters.
    pub max_name: NameLimit,
}

/// How long a name may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameLimit {
    /// At most so many bytes of UTF-8.
    Bytes(usize),
    /// At most so many Unicode scalar values.
    Chars(usize),
}

impl NameLimit {
    /// Whether `name` may be stored.
    pub fn allows(self, name: &str) -> bool {
        match self {
            NameLimit::Bytes(max) => name.len() <= max,
            NameLimit::Chars(max) => name.chars().count() <= max,
        }
    }
}

/// The request budget, as last learnt from the vault's headers or as assumed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// Requests allowed in a window.
    pub limit: u32,
    /// Requests left in this window.
    pub remaining: u32,
    /// Seconds until the window ends; 0 while none has begun.
    pub reset_s: u64,
    /// Seconds that a window lasts, as far as is known.
    #[serde(default)]
    pub window_s: f64,
    /// The vault has reported no limit: this one is assumed.
    #[serde(default)]
    pub assumed: bool,
}

/// What `status` says about the connection to a vault.
#[derive(Debug, Clone)]
pub struct VaultStatus {
    /// URL or socket path.
    pub endpoint: String,
    /// Requests sent since the start, retries included.
    pub requests: u64,
    /// The requests by program, the largest number first.
    pub spent_by: Vec<crate::vault::attribution::RequestCount>,
    /// The budget; `None` where there is no limit.
    pub budget: Option<BudgetStatus>,
    /// By how many milliseconds its clock is ahead of ours, within a second; `None` while it has
    /// not reported its time.
    pub ahead_ms: Option<i64>,
    /// Whether the key may make and update objects, where the vault says so.
    pub may_write: Option<bool>,
    /// For how long the vault knows what an idempotency key made, where it says so.
    pub remembers: Option<Duration>,
    /// How often another key has come into use.
    pub key_changes: u64,
}

/// The version that a change expects to be the current one; `None` takes any.
pub type Check<'a> = Option<&'a VersionTag>;

/// A secrets vault. Errors are typed so that one table can turn them into errno values.
///
/// Names that are too long for the dialect are refused locally with [`ErrorKind::NameTooLong`]. An
/// error with `maybe_applied` leaves open whether the change was made: the caller looks before it
/// tries again.
#[async_trait]
pub trait Vault: Send + Sync + std::fmt::Debug + 'static {
    /// What this vault can do.
    fn capabilities(&self) -> Capabilities;
    /// Where it is and what was sent to it.
    fn status(&self) -> VaultStatus;
    /// Reads an object by its name.
    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object>;
    /// Reads an object by its id.
    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object>;
    /// Reads everything of an object but its value.
    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta>;
    /// Makes a new object; [`ErrorKind::AlreadyExists`] if the name is taken. A creation that comes
    /// again with its [`Call::idempotency_key`] has the first one's answer, or
    /// [`ErrorKind::MadeAndDeleted`] if its object was deleted since.
    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta>;
    /// Makes a new version. With `check`, only while that is the current version, else
    /// [`ErrorKind::VersionMismatch`]; ignored where [`Capabilities::version_check`] is false.
    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta>;
    /// Deletes an object with its history. `check` as for `update`.
    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()>;
    /// One page of names, creation order ascending.
    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page>;
    /// The versions of an object, oldest first, numbered from 1. With `since` those before it may
    /// be left out, and the numbers may be others.
    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>>;
    /// Reads one version; [`ErrorKind::Unsupported`] where [`Capabilities::old_values`] is false
    /// and it is not the current one.
    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object>;
}

/// A shared vault.
pub type DynVault = Arc<dyn Vault>;
