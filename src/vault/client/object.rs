//! The object dialect: `/vault/object/*`.
//!
//! Each operation is one request. There is no optimistic locking in this dialect: a version check
//! is ignored.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use zeroize::Zeroizing;

use crate::vault::client::status::{bad_answer, confirmed};
use crate::vault::client::transport::{Answer, Body, Request, Transport};
use crate::vault::client::wire::{WireObject, WirePage, WireVersionInfo, history, parse, parse_time};
use crate::vault::client::{check_name, check_size, quoted, too_large};
use crate::vault::codec::{self, CodecError};
use crate::vault::testing::memory::OBJECT_CAPABILITIES;
use crate::vault::{
    Call, Capabilities, Check, Content, ErrorKind, ListQuery, Meta, Object, ObjectId, ObjectName, Page,
    Result, Summary, Vault, VaultStatus, VersionInfo, VersionTag,
};

/// A vault that speaks the object dialect.
#[derive(Debug)]
pub struct ObjectVault {
    transport: Arc<Transport>,
    max_size: usize,
}

impl ObjectVault {
    /// A vault behind `transport`, with values of at most `max_size` bytes.
    pub fn new(transport: Arc<Transport>, max_size: usize) -> Self {
        Self { transport, max_size }
    }

    async fn read(&self, call: &Call, request: &Request, name: Option<&ObjectName>) -> Result<Object> {
        let answer = self.transport.send(call, request).await?;
        object(&answer, request, name, self.max_size)
    }

    /// A write that answers with the object's metadata.
    async fn write(&self, call: &Call, request: &Request, name: Option<&ObjectName>) -> Result<Meta> {
        let answer = self.transport.send(call, request).await?;
        meta(&parse(&answer, request)?, name, &answer, request)
    }
}

/// `{"<field>":"<text>"}`, or with the object's data after it.
fn body(field: &str, text: &str, content: Option<&Content>) -> Body {
    let text = serde_json::Value::from(text).to_string();
    let data = content.map(codec::encode_data);
    let room = field.len() + text.len() + data.as_ref().map_or(0, |d| d.expose().len()) + 16;
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    let mut push = |part: &str| body.extend_from_slice(part.as_bytes());
    push("{\"");
    push(field);
    push("\":");
    push(&text);
    if let Some(data) = data {
        push(",\"data\":");
        push(data.expose());
    }
    push("}");
    Body::new(body)
}

/// An object with its data; `asked` as in [`meta`].
fn object(answer: &Answer, request: &Request, asked: Option<&ObjectName>, max_size: usize) -> Result<Object> {
    let wire: WireObject = parse(answer, request)?;
    let meta = meta(&wire, asked, answer, request)?;
    let Some(data) = wire.data else {
        return Err(bad_answer("it holds no data", answer, request));
    };
    let content = codec::decode_data_within(data.get(), max_size).map_err(|e| match e {
        CodecError::TooLarge { max } => too_large(&request.operation, max),
        e => bad_answer(&e.to_string(), answer, request),
    })?;
    Ok(Object { meta, content })
}

/// `asked` stands in for a name that the answer leaves out.
fn meta(wire: &WireObject, asked: Option<&ObjectName>, answer: &Answer, request: &Request) -> Result<Meta> {
    let id = wire.id.as_deref().filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| bad_answer("it holds no id", answer, request))?;
    let name = match &wire.name {
        Some(name) => ObjectName::new(name),
        None => asked.cloned(),
    };
    let name = name.ok_or_else(|| bad_answer("it holds no valid name", answer, request))?;
    let version = match (&wire.version, &wire.updated_at) {
        (Some(version), _) => version.tag(),
        // Any change makes another one, which is all that a tag is for.
        (None, Some(time)) => VersionTag::new(&**time),
        (None, None) => return Err(bad_answer("it holds no version", answer, request)),
    };
    Ok(Meta { id: ObjectId::new(id), name, version, updated_at: wire.updated_at() })
}

fn summary(wire: &WireObject) -> Option<Summary> {
    Some(Summary {
        id: ObjectId::new(wire.id.as_deref().filter(|id| !id.is_empty())?),
        name: ObjectName::new(wire.name.as_deref()?)?,
        updated_at: wire.updated_at.as_deref().and_then(parse_time),
        version: wire.version.as_ref().map(|v| v.tag()),
    })
}

/// One page of the listing from an answer: also what asking for the dialect brings.
pub(super) fn page(answer: &Answer, request: &Request, query: &ListQuery) -> Result<Page> {
    let wire: WirePage<WireObject> = parse(answer, request)?;
    Ok(Page {
        items: wire.data.iter().filter_map(summary).collect(),
        next: wire.next(query.after.as_deref()),
    })
}

pub(super) fn list_request(query: &ListQuery) -> Request {
    let mut pairs = vec![("limit", query.limit.to_string())];
    pairs.extend(query.after.iter().map(|cursor| ("after", cursor.clone())));
    Request::get("/vault/object/list", pairs, "listing the vault".to_owned()).of_no_object()
}

fn numbered(mut wire: Vec<WireVersionInfo>) -> Vec<VersionInfo> {
    // Newest first on the wire; a number that is missing follows from the place.
    let count = wire.len() as u64;
    let numbers: Vec<u64> = wire
        .iter()
        .enumerate()
        .map(|(i, v)| v.version.as_ref().and_then(|v| v.number()).unwrap_or(count - i as u64))
        .collect();
    let current = wire.iter().position(|v| v.current == Some(true)).map(|i| numbers[i]);
    let current = current.or(numbers.iter().copied().max());
    let mut infos: Vec<_> = wire
        .drain(..)
        .zip(numbers)
        .map(|(v, number)| VersionInfo {
            number,
            tag: v.version.map_or_else(|| VersionTag::new(number.to_string()), |v| v.tag()),
            created_at: v.created_at.as_deref().and_then(parse_time).unwrap_or(std::time::UNIX_EPOCH),
            size: v.size,
            current: Some(number) == current,
        })
        .collect();
    infos.sort_by_key(|v| v.number);
    infos.dedup_by_key(|v| v.number);
    infos
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for ObjectVault {
    fn capabilities(&self) -> Capabilities {
        OBJECT_CAPABILITIES
    }

    fn status(&self) -> VaultStatus {
        self.transport.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let query = vec![("name", name.as_str().to_owned())];
        let request =
            Request::get("/vault/object/get-by-name", query, format!("reading {}", quoted(name.as_str())));
        self.read(call, &request, Some(name)).await
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        let operation = format!("reading the object {}", quoted(id.as_str()));
        self.read(call, &Request::get("/vault/object/get", vec![("id", id.to_string())], operation), None)
            .await
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        let operation = format!("looking at the object {}", quoted(id.as_str()));
        let request = Request::get("/vault/object/metadata", vec![("id", id.to_string())], operation);
        let answer = self.transport.send(call, &request).await?;
        meta(&parse(&answer, &request)?, None, &answer, &request)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let operation = format!("creating {}", quoted(name.as_str()));
        check_name(name, &self.capabilities(), &operation)?;
        check_size(content, self.max_size, &operation)?;
        let body = body("name", name.as_str(), Some(content));
        let mut request = Request::write(
            Method::POST,
            "/vault/object/create",
            Some(body),
            ErrorKind::AlreadyExists,
            operation,
        )
        .of_no_object();
        request.idempotency_key = call.idempotency_key;
        self.write(call, &request, Some(name)).await
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, _check: Check<'_>) -> Result<Meta> {
        let operation = format!("updating the object {}", quoted(id.as_str()));
        check_size(content, self.max_size, &operation)?;
        let body = body("id", id.as_str(), Some(content));
        let mut request = Request::write(
            Method::PUT,
            "/vault/object/update",
            Some(body),
            ErrorKind::VersionMismatch,
            operation,
        );
        request.idempotency_key = call.idempotency_key;
        self.write(call, &request, None).await
    }

    async fn delete(&self, call: &Call, id: &ObjectId, _check: Check<'_>) -> Result<()> {
        let operation = format!("deleting the object {}", quoted(id.as_str()));
        let body = body("id", id.as_str(), None);
        let request = Request::write(
            Method::DELETE,
            "/vault/object/delete",
            Some(body),
            ErrorKind::VersionMismatch,
            operation,
        );
        confirmed(&self.transport.send(call, &request).await?, &request, id)
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let request = list_request(query);
        page(&self.transport.send(call, &request).await?, &request, query)
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        let operation = format!("listing the versions of the object {}", quoted(id.as_str()));
        let request = Request::get("/vault/object/versions", vec![("id", id.to_string())], operation);
        history(&self.transport, call, request, since, numbered).await
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let operation = format!("reading version {} of the object {}", version.tag, quoted(id.as_str()));
        let query = vec![("id", id.to_string()), ("version", version.tag.to_string())];
        self.read(call, &Request::get("/vault/object/version", query, operation), None).await
    }
}

/// Understands an answer in each way that it can be meant.
#[cfg(test)]
pub(super) fn fuzz(answer: &Answer, request: &Request) {
    let name = ObjectName::new("asked").unwrap();
    if let Ok(object) = object(answer, request, Some(&name), 100) {
        assert!(object.content.bytes.len() <= 100 && !object.meta.id.as_str().is_empty());
    }
    if let Ok(page) = parse::<WirePage<WireVersionInfo>>(answer, request) {
        let history = numbered(page.data);
        assert!(history.is_sorted_by(|a, b| a.number < b.number));
        assert_eq!(history.iter().filter(|v| v.current).count(), history.len().min(1));
    }
}
