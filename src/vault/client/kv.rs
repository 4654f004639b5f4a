//! The kv dialect, `/vault/v1/kv*`: what api.workos.com serves and the official SDKs send.
//!
//! 1. Names and ids are path segments, with everything encoded that could be taken for something
//!    else. URL libraries fold the segments `.` and `..` even then: by these names nothing can be
//!    asked ([`crate::vault::client::checked`]).
//! 2. An answer may leave out the version's id. The time of the change stands in for it, marked so
//!    that it is never sent as a version check.
//! 3. No route reads the value of an old version: that is [`ErrorKind::Unsupported`], never other
//!    bytes.
//! 4. A create carries an Idempotency-Key, the same on each attempt, so that it may be repeated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use reqwest::Method;
use zeroize::Zeroizing;

use crate::clock::bounded;
use crate::vault::client::retry::Idempotency;
use crate::vault::client::status::{bad_answer, confirmed};
use crate::vault::client::transport::{Answer, Body, Request, Transport};
use crate::vault::client::wire::{
    WireKvMetadata, WireKvObject, WireKvVersion, WirePage, history, parse, parse_time,
};
use crate::vault::client::{check_name, check_size, quoted, segment, too_large};
use crate::vault::codec::{self, CodecError};
use crate::vault::testing::memory::KV_CAPABILITIES;
use crate::vault::{
    Call, Capabilities, Check, Content, Error, ErrorKind, IdempotencyKey, ListQuery, Meta, Object, ObjectId,
    ObjectName, Page, Result, Summary, Vault, VaultStatus, VersionInfo, VersionTag,
};

const KV: &str = "/vault/v1/kv";

/// A vault that speaks the kv dialect.
#[derive(Debug)]
pub struct KvVault {
    transport: Arc<Transport>,
    max_size: usize,
    /// For new objects; it cannot change later.
    key_context: BTreeMap<String, String>,
}

impl KvVault {
    /// A vault behind `transport`, with values of at most `max_size` bytes. New objects get
    /// `key_context`.
    pub fn new(transport: Arc<Transport>, max_size: usize, key_context: BTreeMap<String, String>) -> Self {
        Self { transport, max_size, key_context }
    }

    async fn read(&self, call: &Call, request: &Request, name: Option<&ObjectName>) -> Result<Object> {
        let answer = self.transport.send(call, request).await?;
        object(&answer, request, name, self.max_size)
    }

    fn creation(&self, call: &Call, name: &ObjectName, content: &Content, operation: String) -> Request {
        let context = serde_json::to_string(&self.key_context).expect("text always serialises");
        let name = serde_json::Value::from(name.as_str()).to_string();
        let value = codec::json_with_text("", &codec::encode_value(content.bytes.expose()), "");
        let body = body(&[("name", &name), ("key_context", &context), ("value", value.expose())]);
        let mut request =
            Request::write(Method::POST, KV, Some(body), ErrorKind::AlreadyExists, operation).of_no_object();
        request.idempotency_key =
            call.idempotency_key.or_else(|| IdempotencyKey::new(self.transport.clock().wall()));
        if request.idempotency_key.is_some() {
            request.idempotency = Idempotency::Keyed;
        }
        request
    }
}

/// `/vault/v1/kv/{id}` and what follows.
fn path(id: &ObjectId, tail: &str, operation: &str) -> Result<String> {
    match segment(id.as_str()) {
        Some(id) => Ok(format!("{KV}/{id}{tail}")),
        // Nothing that a vault gave out.
        None => Err(Error::new(ErrorKind::NotFound, format!("{operation}: the vault has no such object"))),
    }
}

/// A JSON object of members with values that are JSON already. Wiped when dropped.
fn body(members: &[(&str, &str)]) -> Body {
    let room = members.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>() + 2;
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    let mut push = |part: &str| body.extend_from_slice(part.as_bytes());
    for (i, (name, value)) in members.iter().enumerate() {
        push(if i == 0 { "{\"" } else { ",\"" });
        push(name);
        push("\":");
        push(value);
    }
    push("}");
    Body::new(body)
}

/// The version to check for, if the tag is one that the vault gave.
fn checkable(check: Check<'_>) -> Option<&str> {
    check.filter(|tag| tag.is_the_vaults()).map(VersionTag::as_str)
}

/// An object with its value; `asked` as in [`meta_of`].
fn object(answer: &Answer, request: &Request, asked: Option<&ObjectName>, max_size: usize) -> Result<Object> {
    let wire: WireKvObject = parse(answer, request)?;
    let meta = meta_of(&wire, asked, answer, request)?;
    let Some(value) = wire.value else {
        return Err(bad_answer("it holds no value", answer, request));
    };
    let content = codec::decode_value_within(value.get(), max_size).map_err(|e| match e {
        CodecError::TooLarge { max } => too_large(&request.operation, max),
        e => bad_answer(&e.to_string(), answer, request),
    })?;
    Ok(Object { meta, content })
}

/// What an answer to a create says.
fn created(answer: &Answer, request: &Request, name: &ObjectName) -> Result<Meta> {
    let wire: WireKvObject = parse(answer, request)?;
    if wire.metadata.is_some() {
        return meta_of(&wire, Some(name), answer, request);
    }
    // Creating answers with the metadata alone.
    let name = wire.name.as_deref().map_or_else(|| Some(name.clone()), ObjectName::new);
    let name = name.ok_or_else(|| bad_answer("it holds no valid name", answer, request))?;
    meta(&parse(answer, request)?, None, name, answer, request)
}

/// `asked` stands in for a name that the answer leaves out.
fn meta_of(
    wire: &WireKvObject,
    asked: Option<&ObjectName>,
    answer: &Answer,
    request: &Request,
) -> Result<Meta> {
    let name = match &wire.name {
        Some(name) => ObjectName::new(name),
        None => asked.cloned(),
    };
    let name = name.ok_or_else(|| bad_answer("it holds no valid name", answer, request))?;
    let Some(metadata) = &wire.metadata else {
        return Err(bad_answer("it holds no metadata", answer, request));
    };
    meta(metadata, wire.id.as_deref(), name, answer, request)
}

fn meta(
    wire: &WireKvMetadata,
    id: Option<&str>,
    name: ObjectName,
    answer: &Answer,
    request: &Request,
) -> Result<Meta> {
    let id = id.or(wire.id.as_deref()).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| bad_answer("it holds no id", answer, request))?;
    let version = wire.version_id.as_deref().filter(|v| !v.is_empty());
    let version = match (version, &wire.updated_at) {
        (Some(version), _) => VersionTag::new(version),
        (None, Some(time)) => VersionTag::of_time(time),
        (None, None) => return Err(bad_answer("it holds no version", answer, request)),
    };
    let updated_at = wire.updated_at.as_deref().and_then(parse_time).unwrap_or(UNIX_EPOCH);
    Ok(Meta { id: ObjectId::new(id), name, version, updated_at })
}

fn summary(wire: &WireKvObject) -> Option<Summary> {
    Some(Summary {
        id: ObjectId::new(wire.id.as_deref().filter(|id| !id.is_empty())?),
        name: ObjectName::new(wire.name.as_deref()?)?,
        updated_at: wire.updated_at.as_deref().and_then(parse_time),
        version: None,
    })
}

/// One page of the listing from an answer: also what asking for the dialect brings. The search is
/// checked: the service's may find more than was asked for.
pub(super) fn page(answer: &Answer, request: &Request, query: &ListQuery) -> Result<Page> {
    let wire: WirePage<WireKvObject> = parse(answer, request)?;
    let found = |s: &Summary| query.search.as_ref().is_none_or(|text| s.name.as_str().contains(text));
    Ok(Page {
        items: wire.data.iter().filter_map(summary).filter(found).collect(),
        next: wire.next(query.after.as_deref()),
    })
}

pub(super) fn list_request(query: &ListQuery) -> Request {
    let mut pairs = vec![("limit", query.limit.to_string()), ("order", "asc".to_owned())];
    pairs.extend(query.after.iter().map(|cursor| ("after", cursor.clone())));
    // The service takes JSON for a search by structure; such a text is looked for in the whole
    // listing.
    let text = query.search.iter().filter(|text| !text.trim_start().starts_with(['{', '[', '"']));
    pairs.extend(text.map(|text| ("search", text.clone())));
    pairs.extend(query.updated_after.map(|time| ("updatedAfter", written(time))));
    Request::get(KV, pairs, "listing the vault".to_owned()).of_no_object()
}

/// A time in whole milliseconds, as the vault has them; a part of one is cut off, so that no change
/// is missed.
fn written(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(bounded(time)).to_string()
}

/// The dialect does not say in which order versions come, nor does it number them.
fn numbered(mut wire: Vec<WireKvVersion>) -> Vec<VersionInfo> {
    wire.retain(|v| v.id.as_ref().is_some_and(|id| !id.is_empty()));
    let mut seen = std::collections::HashSet::new();
    wire.retain(|v| seen.insert(v.id.clone()));
    let current = |v: &WireKvVersion| v.current_version == Some(true);
    if wire.len() > 1 && wire.first().is_some_and(current) {
        wire.reverse();
    }
    let times: Vec<_> = wire.iter().map(|v| v.created_at.as_deref().and_then(parse_time)).collect();
    let mut dated: Vec<_> = wire.into_iter().zip(times).collect();
    if dated.iter().all(|(_, time)| time.is_some()) {
        // Stable: what was made in one millisecond stays as it came.
        dated.sort_by_key(|(_, time)| *time);
    }
    let last = dated.len().saturating_sub(1);
    let current = dated.iter().position(|(v, _)| current(v)).unwrap_or(last);
    let info = |(i, (v, time)): (usize, (WireKvVersion, Option<SystemTime>))| VersionInfo {
        number: i as u64 + 1,
        tag: VersionTag::new(v.id.unwrap_or_default()),
        created_at: time.unwrap_or(UNIX_EPOCH),
        size: v.size,
        current: i == current,
    };
    dated.into_iter().enumerate().map(info).collect()
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for KvVault {
    fn capabilities(&self) -> Capabilities {
        KV_CAPABILITIES
    }

    fn status(&self) -> VaultStatus {
        self.transport.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let operation = format!("reading {}", quoted(name.as_str()));
        let Some(encoded) = segment(name.as_str()) else {
            let sentence = format!("{operation}: no path can hold this name");
            return Err(Error::new(ErrorKind::Unsupported, sentence));
        };
        self.read(call, &Request::get(format!("{KV}/name/{encoded}"), Vec::new(), operation), Some(name))
            .await
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        let operation = format!("reading the object {}", quoted(id.as_str()));
        let path = path(id, "", &operation)?;
        self.read(call, &Request::get(path, Vec::new(), operation), None).await
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        let operation = format!("looking at the object {}", quoted(id.as_str()));
        let path = path(id, "/metadata", &operation)?;
        let request = Request::get(path, Vec::new(), operation);
        let answer = self.transport.send(call, &request).await?;
        meta_of(&parse(&answer, &request)?, None, &answer, &request)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let operation = format!("creating {}", quoted(name.as_str()));
        check_name(name, &self.capabilities(), &operation)?;
        check_size(content, self.max_size, &operation)?;
        let request = self.creation(call, name, content, operation);
        let answer = self.transport.send(call, &request).await.map_err(|mut e| {
            if e.kind == ErrorKind::Invalid && self.key_context.is_empty() {
                e.message.push_str("; if it wants a key context, give it with --key-context K=V");
            }
            e
        })?;
        created(&answer, &request, name)
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        let operation = format!("updating the object {}", quoted(id.as_str()));
        check_size(content, self.max_size, &operation)?;
        let path = path(id, "", &operation)?;
        let value = codec::json_with_text("", &codec::encode_value(content.bytes.expose()), "");
        let check = checkable(check).map(|tag| serde_json::Value::from(tag).to_string());
        let mut members = vec![("value", value.expose())];
        members.extend(check.as_deref().map(|check| ("version_check", check)));
        let mut request =
            Request::write(Method::PUT, path, Some(body(&members)), ErrorKind::VersionMismatch, operation);
        request.idempotency_key = call.idempotency_key;
        let answer = self.transport.send(call, &request).await?;
        meta_of(&parse(&answer, &request)?, None, &answer, &request)
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        let operation = format!("deleting the object {}", quoted(id.as_str()));
        let path = path(id, "", &operation)?;
        let mut request = Request::write(Method::DELETE, path, None, ErrorKind::VersionMismatch, operation);
        request.query.extend(checkable(check).map(|tag| ("version_check", tag.to_owned())));
        confirmed(&self.transport.send(call, &request).await?, &request, id)
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let request = list_request(query);
        page(&self.transport.send(call, &request).await?, &request, query)
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        let operation = format!("listing the versions of the object {}", quoted(id.as_str()));
        let request = Request::get(path(id, "/versions", &operation)?, Vec::new(), operation);
        history(&self.transport, call, request, since, numbered).await
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let unsupported = || {
            let sentence = format!(
                "the kv API gives no values of old versions (version {} of the object {})",
                version.number,
                quoted(id.as_str())
            );
            Error::new(ErrorKind::Unsupported, sentence)
        };
        if !version.current {
            return Err(unsupported());
        }
        let mut object = self.get(call, id).await?;
        if object.meta.version == version.tag {
            return Ok(object);
        }
        if !object.meta.version.is_the_vaults() && object.meta.updated_at == version.created_at {
            object.meta.version = version.tag.clone();
            return Ok(object);
        }
        let history = self.versions(call, id, None).await?;
        Err(match history.iter().any(|v| v.tag == version.tag) {
            true => unsupported(),
            false => {
                let sentence =
                    format!("the object {} has no version {}", quoted(id.as_str()), version.number);
                Error::new(ErrorKind::NotFound, sentence)
            }
        })
    }
}

/// Understands an answer in each way that it can be meant.
#[cfg(test)]
pub(super) fn fuzz(answer: &Answer, request: &Request) {
    let name = ObjectName::new("asked").unwrap();
    if let Ok(object) = object(answer, request, Some(&name), 100) {
        assert!(object.content.bytes.len() <= 100 && !object.meta.id.as_str().is_empty());
    }
    let _ = created(answer, request, &name);
    if let Ok(page) = parse::<WirePage<WireKvVersion>>(answer, request) {
        let history = numbered(page.data);
        assert!(history.iter().enumerate().all(|(i, v)| v.number == i as u64 + 1));
        assert_eq!(history.iter().filter(|v| v.current).count(), history.len().min(1));
    }
}
