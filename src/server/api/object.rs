//! The object dialect's nine operations on objects.

use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use ulid::Ulid;

use super::App;
use super::body::{Fields, json, secret_json};
use super::error::{ApiError, ApiResult, ErrorType};
use super::key_limits::Received;
use super::query::{Query, number};
use crate::secret::SecretBytes;
use crate::server::api::auth::{Caller, idempotency};
use crate::server::service::{Create, Value, id_text, parse_id};
use crate::server::store::{ListPage, ListRequest, Lookup, ObjectRow, Order, PageFrom};
use crate::vault::ObjectName;
use crate::vault::model::object::MAX_NAME_BYTES;

const DEFAULT_LIMIT: u32 = 10;
const MAX_LIMIT: u32 = 100;

/// An object without `data`, as the dialect shows it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    which: Which<'a>,
    #[serde(flatten)]
    as_of: AsOf,
}

/// The fields of an object in front of `data`.
#[derive(Serialize)]
struct Which<'a> {
    id: String,
    name: &'a str,
}

/// The fields of an object behind `data`.
#[derive(Serialize)]
struct AsOf {
    created_at: String,
    updated_at: String,
    version: u64,
}

impl<'a> Shown<'a> {
    fn new(row: &'a ObjectRow) -> Self {
        Self {
            which: Which { id: id_text(row.id), name: &row.name },
            as_of: AsOf {
                created_at: row.created_at.to_string(),
                updated_at: row.updated_at.to_string(),
                version: row.version,
            },
        }
    }
}

#[derive(Serialize)]
struct Deleted {
    id: String,
    deleted: bool,
}

/// A page.
#[derive(Serialize)]
pub(super) struct List<T> {
    /// What is on it.
    pub data: Vec<T>,
    /// How to go on.
    pub list_metadata: Ends,
}

/// Where the pages before and after begin.
#[derive(Serialize)]
pub(super) struct Ends {
    before: Option<String>,
    after: Option<String>,
}

impl Ends {
    pub(super) fn of(page: &ListPage) -> Self {
        Self { before: page.before.map(id_text), after: page.after.map(id_text) }
    }

    /// Of a list that is whole.
    pub(super) fn none() -> Self {
        Self { before: None, after: None }
    }
}

#[derive(Serialize)]
struct History {
    data: Vec<ShownVersion>,
    list_metadata: NoEnds,
}

#[derive(Serialize)]
struct NoEnds {}

#[derive(Serialize)]
struct ShownVersion {
    version: u64,
    created_at: String,
    size: u64,
    current: bool,
}

fn shown(row: &ObjectRow) -> ApiResult {
    Ok(json(StatusCode::OK, &Shown::new(row)))
}

/// The object with `data` among its other fields, the text of it untouched.
fn shown_with_data(row: &ObjectRow, value: &Value) -> ApiResult {
    let data = value.as_data();
    // Plain structs, which serde_json writes without fail: `{…}` each.
    let Shown { which, as_of } = Shown::new(row);
    let head = serde_json::to_vec(&which).expect("plain structs serialise");
    let tail = serde_json::to_vec(&as_of).expect("plain structs serialise");
    // One allocation: a buffer that grew would leave an unwiped copy behind.
    let mut text = Vec::with_capacity(head.len() + data.expose().len() + tail.len() + 16);
    text.extend_from_slice(&head[..head.len() - 1]);
    text.extend_from_slice(b",\"data\":");
    text.extend_from_slice(data.expose().as_bytes());
    text.push(b',');
    text.extend_from_slice(&tail[1..]);
    Ok(secret_json(SecretBytes::new(text)))
}

fn object_id(text: &str) -> Result<Ulid, ApiError> {
    parse_id(text).ok_or_else(|| ApiError::not_found("id"))
}

/// `data` as sent: its JSON must be an object, which is a matter of content (422), not of form
/// (400).
fn data(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let text = fields.raw("data")?;
    if !text.starts_with('{') {
        return Err(ApiError::new(
            ErrorType::UnprocessableEntity,
            "data must be a JSON object, like {\"value\": …}",
        ));
    }
    Ok(Value::data(text))
}

/// POST /vault/object/create
pub async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Received,
) -> ApiResult {
    let fields = Fields::parse(&body)?;
    let name = ObjectName::new(&fields.string("name")?)
        .ok_or_else(|| ApiError::invalid(format!("name must be 1 to {MAX_NAME_BYTES} bytes long")))?;
    let value = data(&fields)?;
    let idempotency = idempotency(&app, &caller, &headers, "object", body.expose());
    shown(&app.service.create(&caller.key.id, Create { idempotency, ..Create::new(name, &value) }).await?)
}

/// GET /vault/object/get?id=
pub async fn get(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult {
    let id = object_id(Query::parse(query.as_deref())?.required("id")?)?;
    let (row, value) = app.service.get(Lookup::Id(id)).await?;
    shown_with_data(&row, &value)
}

/// GET /vault/object/get-by-name?name=
pub async fn get_by_name(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref())?;
    let name = ObjectName::new(query.required("name")?).ok_or_else(|| ApiError::not_found("name"))?;
    let (row, value) = app.service.get(Lookup::Name(name.as_str().to_owned())).await?;
    shown_with_data(&row, &value)
}

/// The parameter `limit`.
fn optional_limit(query: &Query) -> Result<Option<u32>, ApiError> {
    let bad = || ApiError::invalid(format!("limit must be a whole number from 1 to {MAX_LIMIT}"));
    let limit =
        |text| number(text).and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=MAX_LIMIT).contains(n));
    query.optional("limit")?.map(|text| limit(text).ok_or_else(bad)).transpose()
}

/// GET /vault/object/list?limit=&after=&before=
pub async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref())?;
    let limit = optional_limit(&query)?.unwrap_or(DEFAULT_LIMIT);
    let from = page_from(&query)?;
    let order = Order::Ascending;
    let page =
        app.service.list(ListRequest { from, order, limit, search: None, updated_after: None }).await?;
    let ends = Ends::of(&page);
    let list = List { data: page.objects.iter().map(Shown::new).collect(), list_metadata: ends };
    Ok(json(StatusCode::OK, &list))
}

/// Where the page lies that `after` or `before` ask for.
pub(super) fn page_from(query: &Query) -> Result<PageFrom, ApiError> {
    let cursor = |name: &str, text: &str| {
        let unknown = || {
            ApiError::invalid(format!(
                "{name} is not a cursor that this vault gave out: take it from list_metadata"
            ))
        };
        parse_id(text).ok_or_else(unknown)
    };
    Ok(match (query.optional("after")?, query.optional("before")?) {
        (None, None) => PageFrom::Start,
        (Some(after), None) => PageFrom::After(cursor("after", after)?),
        (None, Some(before)) => PageFrom::Before(cursor("before", before)?),
        (Some(_), Some(_)) => return Err(ApiError::invalid("give after or before, not both")),
    })
}

/// PUT /vault/object/update
pub async fn update(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Received,
) -> ApiResult {
    let fields = Fields::parse(&body)?;
    let id = fields.string("id")?;
    let value = data(&fields)?;
    let (id, text) = (object_id(&id)?, value.text.expose().as_bytes());
    let idempotency = idempotency(&app, &caller, &headers, &format!("object {id}"), text);
    shown(&app.service.update(&caller.key.id, id, None, value, idempotency).await?)
}

/// DELETE /vault/object/delete
pub async fn delete(State(app): State<App>, body: Received) -> ApiResult {
    let id = object_id(&Fields::parse(&body)?.string("id")?)?;
    let row = app.service.delete(id, None).await?;
    Ok(json(StatusCode::OK, &Deleted { id: id_text(row.id), deleted: true }))
}

/// GET /vault/object/metadata?id=
pub async fn metadata(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult {
    let id = object_id(Query::parse(query.as_deref())?.required("id")?)?;
    shown(&app.service.metadata(id).await?)
}

/// GET /vault/object/versions?id=&limit
pub async fn versions(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref())?;
    let id = object_id(query.required("id")?)?;
    let rows = app.service.versions(id, optional_limit(&query)?).await?.into_iter();
    let data = rows.map(|row| ShownVersion {
        version: row.number,
        created_at: row.created_at.to_string(),
        size: row.size,
        current: row.current,
    });
    Ok(json(StatusCode::OK, &History { data: data.collect(), list_metadata: NoEnds {} }))
}

/// GET /vault/object/version?id=&version=N
pub async fn version(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref())?;
    let (id, version) = (query.required("id")?, query.required("version")?);
    let id = object_id(id)?;
    let version = number(version).ok_or_else(|| ApiError::not_found("version"))?;
    let (row, value) = app.service.version(id, version).await?;
    shown_with_data(&row, &value)
}
