//! The kv dialect's eight operations on objects.
//!
//! Ids are the object dialect's; versions are known by ids of their own. Paths are taken apart
//! here, from the text that was sent: a name may hold anything, slashes encoded or not.

use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use serde::Serialize;
use ulid::Ulid;

use super::App;
use super::body::{Fields, json, secret_json};
use super::error::{ApiError, ApiResult, ErrorType};
use super::key_limits::Received;
use super::object::{Ends, List, page_from};
use super::query::{Query, decode_path};
use super::time::parse_moment;
use crate::server::api::auth::{Caller, idempotency};
use crate::server::crypto::context::KeyContext;
use crate::server::service::{Create, Service, ServiceError, Value, id_text, parse_id};
use crate::server::store::{Actor, ListRequest, Lookup, ObjectRow, Order, StoreError, VersionUid};
use crate::vault::ObjectName;
use crate::vault::codec::json_with_text;

const ROOT: &str = "/vault/v1/kv/";
const BY_NAME: &str = "/vault/v1/kv/name/";
/// Longest name, in characters.
const MAX_NAME_CHARS: usize = 200;
const DEFAULT_LIMIT: u32 = 10;
/// What asks for more gets this.
const MAX_LIMIT: u32 = 100;
/// A version that no object has: it is not a UUID of version 4.
const NO_VERSION: VersionUid = VersionUid([0; 16]);

#[derive(Serialize)]
struct Metadata<'a> {
    id: String,
    environment_id: String,
    key_id: String,
    updated_by: By<'a>,
    updated_at: String,
    context: KeyContext,
    version_id: String,
}

#[derive(Serialize)]
struct By<'a> {
    id: &'a str,
    name: &'a str,
}

/// An object without its value.
#[derive(Serialize)]
struct Described<'a> {
    id: String,
    name: &'a str,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Summary {
    id: String,
    name: String,
    updated_at: String,
}

#[derive(Serialize)]
struct KvVersion {
    id: String,
    created_at: String,
    current_version: bool,
    size: u64,
    etag: String,
}

#[derive(Serialize)]
struct KvDeleted {
    name: String,
    success: bool,
}

/// Sixteen bytes as a UUID's text.
pub(super) fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = hex_text(bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn hex_text(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}

/// The version that a client names. Text that is no version's id is one that no object has.
fn version_uid(text: &str) -> VersionUid {
    let digits = text.replace('-', "");
    let number = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    let number = number.and_then(|digits| u128::from_str_radix(&digits, 16).ok()).unwrap_or_default();
    let bytes = number.to_be_bytes();
    if uuid_text(bytes).eq_ignore_ascii_case(text) { VersionUid(bytes) } else { NO_VERSION }
}

fn metadata_of<'a>(service: &Service, row: &'a ObjectRow) -> Result<Metadata<'a>, ApiError> {
    let unreadable = || ServiceError::Store(StoreError::Backend("a key context is not JSON".to_owned()));
    let context = KeyContext::from_text(&row.key_context).ok_or_else(unreadable)?;
    let Actor { id, name } = &row.updated_by;
    Ok(Metadata {
        id: id_text(row.id),
        environment_id: format!("environment_{}", Ulid::from_bytes(service.vault().0)),
        key_id: uuid_text(service.data_keys().context_id(&context)),
        // A revoked key has no name any more, and keeps its id.
        updated_by: By { id, name: name.as_deref().unwrap_or(id) },
        updated_at: row.updated_at.to_string(),
        context,
        version_id: uuid_text(row.version_uid.0),
    })
}

fn described(service: &Service, status: StatusCode, row: &ObjectRow) -> ApiResult {
    let metadata = metadata_of(service, row)?;
    Ok(json(status, &Described { id: id_text(row.id), name: &row.name, metadata }))
}

/// The object with its value.
fn shown(service: &Service, row: &ObjectRow, value: &Value) -> ApiResult {
    let value = value.as_kv().map_err(ServiceError::from)?;
    let described = Described { id: id_text(row.id), name: &row.name, metadata: metadata_of(service, row)? };
    // A plain struct of strings, which serde_json writes without fail.
    let text = serde_json::to_string(&described).expect("plain structs serialise");
    Ok(secret_json(json_with_text("{\"value\":", &value, &format!(",{}", &text[1..]))))
}

/// The id in the path, right behind `/vault/v1/kv/`.
fn id(uri: &Uri) -> Result<Ulid, ApiError> {
    let rest = uri.path().strip_prefix(ROOT).unwrap_or_default();
    let text = decode_path(rest.split('/').next().unwrap_or_default());
    text.and_then(|text| parse_id(&text)).ok_or_else(|| ApiError::not_found("id"))
}

fn unprocessable(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorType::UnprocessableEntity, message)
}

/// A value that is too large, named as this dialect names it.
fn value_error(e: ServiceError) -> ApiError {
    match e {
        ServiceError::TooLarge { limit } => ApiError::new(
            ErrorType::PayloadTooLarge,
            format!("value is too large: it holds at most {limit} bytes"),
        ),
        e => e.into(),
    }
}

/// POST /vault/v1/kv
pub async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Received,
) -> ApiResult {
    let fields = Fields::parse(&body)?;
    let (name, value) = (fields.string("name")?, Value::kv(fields.secret("value")?));
    let context = fields.context("key_context")?;
    let name = ObjectName::new(&name).filter(|name| name.as_str().chars().count() <= MAX_NAME_CHARS);
    let name =
        name.ok_or_else(|| unprocessable(format!("name must be 1 to {MAX_NAME_CHARS} characters long")))?;
    let idempotency = idempotency(&app, &caller, &headers, "kv", body.expose());
    let create = Create { name, value: &value, context, idempotency };
    let row = app.service.create(&caller.key.id, create).await.map_err(value_error)?;
    Ok(json(StatusCode::CREATED, &metadata_of(&app.service, &row)?))
}

/// GET /vault/v1/kv/name/{name}
pub async fn get_by_name(State(app): State<App>, uri: Uri) -> ApiResult {
    let name = uri.path().strip_prefix(BY_NAME).unwrap_or_default();
    let name = decode_path(name)
        .ok_or_else(|| ApiError::invalid("the name in the path is not valid percent-encoded UTF-8"))?;
    let name = ObjectName::new(&name).ok_or_else(|| ApiError::not_found("name"))?;
    let (row, value) = app.service.get(Lookup::Name(name.as_str().to_owned())).await?;
    shown(&app.service, &row, &value)
}

/// GET /vault/v1/kv/{id}
pub async fn get(State(app): State<App>, uri: Uri) -> ApiResult {
    let (row, value) = app.service.get(Lookup::Id(id(&uri)?)).await?;
    shown(&app.service, &row, &value)
}

/// PUT /vault/v1/kv/{id}
pub async fn update(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    body: Received,
) -> ApiResult {
    let fields = Fields::parse(&body)?;
    let value = Value::kv(fields.secret("value")?);
    let check = fields.optional_string("version_check")?.map(|text| version_uid(&text));
    let (id, text) = (id(&uri)?, value.text.expose().as_bytes());
    let idempotency = idempotency(&app, &caller, &headers, &format!("kv {id}"), text);
    let made = app.service.update(&caller.key.id, id, check, value, idempotency).await;
    let row = made.map_err(value_error)?;
    described(&app.service, StatusCode::CREATED, &row)
}

/// DELETE /vault/v1/kv/{id}?version_check=
pub async fn delete(State(app): State<App>, uri: Uri, RawQuery(query): RawQuery) -> ApiResult {
    let query = Query::parse(query.as_deref())?;
    let mut checks = query.all("version_check").map(version_uid);
    // No object is at two versions at once.
    let check = checks.next().map(|first| if checks.all(|next| next == first) { first } else { NO_VERSION });
    let row = app.service.delete(id(&uri)?, check).await?;
    Ok(json(StatusCode::OK, &KvDeleted { name: row.name, success: true }))
}

/// GET /vault/v1/kv/{id}/metadata
pub async fn metadata(State(app): State<App>, uri: Uri) -> ApiResult {
    described(&app.service, StatusCode::OK, &app.service.metadata(id(&uri)?).await?)
}

/// GET /vault/v1/kv/{id}/versions?limit
pub async fn versions(State(app): State<App>, uri: Uri, RawQuery(query): RawQuery) -> ApiResult {
    let newest = optional_limit(&Query::parse(query.as_deref())?)?;
    let rows = app.service.versions(id(&uri)?, newest).await?.into_iter();
    let data = rows.map(|row| KvVersion {
        id: uuid_text(row.uid.0),
        created_at: row.created_at.to_string(),
        current_version: row.current,
        size: row.size,
        etag: hex_text(row.etag.0),
    });
    Ok(json(StatusCode::OK, &List { data: data.collect(), list_metadata: Ends::none() }))
}

/// GET /vault/v1/kv?limit&before&after&order&search&updatedAfter
pub async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> ApiResult {
    let request = list_request(&Query::parse(query.as_deref())?)?;
    let page = app.service.list(request).await?;
    let ends = Ends::of(&page);
    let data = page.objects.into_iter().map(|row| Summary {
        id: id_text(row.id),
        name: row.name,
        updated_at: row.updated_at.to_string(),
    });
    Ok(json(StatusCode::OK, &List { data: data.collect(), list_metadata: ends }))
}

fn list_request(query: &Query) -> Result<ListRequest, ApiError> {
    let limit = optional_limit(query)?.unwrap_or(DEFAULT_LIMIT);
    let order = match query.optional("order")? {
        None | Some("asc") => Order::Ascending,
        Some("desc") => Order::Descending,
        Some(_) => return Err(ApiError::invalid("order must be asc or desc")),
    };
    let bad_date =
        || ApiError::invalid("updatedAfter must be a date and time like 2024-01-01T00:00:00Z (RFC 3339)");
    // The official Node SDK spells it the second way for the first page and the first way for those
    // after it: a filter that is not seen would be a listing of everything.
    let after = query.optional("updatedAfter")?.or(query.optional("updated_after")?);
    let updated_after = after.map(|text| parse_moment(text).ok_or_else(bad_date)).transpose()?;
    let search = query.optional("search")?.map(str::to_owned);
    Ok(ListRequest { from: page_from(query)?, order, limit, search, updated_after })
}

/// The parameter `limit`.
fn optional_limit(query: &Query) -> Result<Option<u32>, ApiError> {
    let bad = || ApiError::invalid("limit must be a whole number, 1 or more");
    query.optional("limit")?.map(|text| limit(text).ok_or_else(bad)).transpose()
}

/// A page's size; more than there can be is as many as there can be.
fn limit(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse::<u32>().unwrap_or(u32::MAX).min(MAX_LIMIT)).filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_uuids_and_nothing_else_is_one() {
        let bytes =
            [0xc3, 0xd4, 0xe5, 0xf6, 0x78, 0x90, 0x4b, 0xcd, 0xaf, 0x12, 0x34, 0x56, 0x78, 0x90, 0xab, 0xcd];
        let text = "c3d4e5f6-7890-4bcd-af12-34567890abcd";
        assert_eq!(uuid_text(bytes), text);
        assert_eq!(version_uid(text), VersionUid(bytes));
        assert_eq!(version_uid(&text.to_uppercase()), VersionUid(bytes));
        for bad in [
            "",
            "1",
            &text.replace('-', ""),
            &text[1..],
            &format!("{text}0"),
            "é",
            "+3d4e5f6-7890-4bcd-af12-34567890abcd",
        ] {
            assert_eq!(version_uid(bad), NO_VERSION, "{bad}");
        }
    }

    #[test]
    fn limits_are_clamped() {
        let cases =
            [("1", Some(1)), ("100", Some(100)), ("101", Some(100)), ("99999999999999999999", Some(100))];
        for (text, expected) in cases {
            assert_eq!(limit(text), expected);
        }
        for bad in ["", "0", "00", "-1", "+1", "ten", "1.0", " 1"] {
            assert_eq!(limit(bad), None, "{bad}");
        }
    }
}
