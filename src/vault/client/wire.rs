//! What the vault sends as JSON, read leniently: unknown fields are ignored, missing ones tolerated
//! where the answer still makes sense. Nothing in here repeats what it read.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde_json::value::RawValue;

use crate::clock::bounded;
use crate::vault::client::MAX_PAGES;
use crate::vault::client::status::bad_answer;
use crate::vault::client::transport::{Answer, Request, Transport};
use crate::vault::{Call, Check, ErrorKind, Result, VersionInfo, VersionTag};

/// Reads an answer. A sentence of serde's may repeat what it read, so none is passed on.
pub fn parse<'a, T: Deserialize<'a>>(answer: &'a Answer, request: &Request) -> Result<T> {
    serde_json::from_slice(&answer.body).map_err(|_| {
        let why = match serde_json::from_slice::<serde::de::IgnoredAny>(&answer.body) {
            Ok(_) => "a field is missing or of another type",
            Err(_) => "it is not JSON",
        };
        bad_answer(why, answer, request)
    })
}

/// Text of an answer, which it is a part of where nothing is escaped: pages of names are long.
pub struct Text<'a>(Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// An object, with or without its data.
#[derive(Deserialize)]
pub struct WireObject<'a> {
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    pub version: Option<WireVersion>,
    #[serde(borrow)]
    pub created_at: Option<Text<'a>>,
    #[serde(borrow)]
    pub updated_at: Option<Text<'a>>,
}

impl WireObject<'_> {
    /// When its version was made; the beginning of time if the answer does not say.
    pub fn updated_at(&self) -> SystemTime {
        let text = self.updated_at.as_deref().or(self.created_at.as_deref());
        text.and_then(parse_time).unwrap_or(UNIX_EPOCH)
    }
}

/// A version number, as number or as text.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum WireVersion {
    Number(u64),
    Text(String),
}

impl WireVersion {
    pub fn tag(&self) -> VersionTag {
        match self {
            WireVersion::Number(n) => VersionTag::new(n.to_string()),
            WireVersion::Text(text) => VersionTag::new(text.as_str()),
        }
    }

    pub fn number(&self) -> Option<u64> {
        match self {
            WireVersion::Number(n) => Some(*n),
            WireVersion::Text(text) => text.parse().ok(),
        }
    }
}

/// One version in a history of the object dialect.
#[derive(Deserialize)]
pub struct WireVersionInfo {
    pub version: Option<WireVersion>,
    pub created_at: Option<String>,
    pub size: Option<u64>,
    pub current: Option<bool>,
}

/// An object of the kv dialect: whole, without its value, or as a line of a listing.
#[derive(Deserialize)]
pub struct WireKvObject<'a> {
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub value: Option<&'a RawValue>,
    pub metadata: Option<WireKvMetadata>,
    /// In listings alone; elsewhere it is in the metadata.
    #[serde(borrow)]
    pub updated_at: Option<Text<'a>>,
}

/// What the kv dialect says of an object beside its name and value.
#[derive(Deserialize)]
pub struct WireKvMetadata {
    pub id: Option<String>,
    pub version_id: Option<String>,
    pub updated_at: Option<String>,
}

/// One version in a history of the kv dialect.
#[derive(Deserialize)]
pub struct WireKvVersion {
    pub id: Option<String>,
    pub created_at: Option<String>,
    pub current_version: Option<bool>,
    pub size: Option<u64>,
}

/// A page of anything.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub struct WirePage<T> {
    pub data: Vec<T>,
    pub list_metadata: Option<WireCursors>,
}

/// The cursors of a page.
#[derive(Deserialize)]
pub struct WireCursors {
    pub after: Option<String>,
}

impl<T> WirePage<T> {
    /// Where the next page starts, by the rules of the API: the end is reached when the metadata is
    /// empty, `after` is null or absent, `data` is empty, or the cursor does not advance.
    pub fn next(&self, after: Option<&str>) -> Option<String> {
        let next = self.list_metadata.as_ref()?.after.as_deref()?;
        let advances = !next.is_empty() && Some(next) != after;
        (advances && !self.data.is_empty()).then(|| next.to_owned())
    }
}

/// How many of the newest versions are asked for first where a base is looked for.
const RECENT: usize = 64;

/// The versions of an object; `read` brings them in order. With `since` those from that one on are
/// enough: a vault that knows no `limit` sends all of them.
pub async fn history<T: DeserializeOwned>(
    transport: &Transport,
    call: &Call,
    mut request: Request,
    since: Check<'_>,
    read: fn(Vec<T>) -> Vec<VersionInfo>,
) -> Result<Vec<VersionInfo>> {
    if let Some(since) = since {
        request.query.push(("limit", RECENT.to_string()));
        match transport.send(call, &request).await {
            Ok(answer) => {
                let versions = read(parse::<WirePage<T>>(&answer, &request)?.data);
                if versions.iter().any(|version| version.tag == *since) {
                    return Ok(versions);
                }
            }
            // It refuses what it does not know.
            Err(e) if e.kind == ErrorKind::Invalid => {}
            Err(e) => return Err(e),
        }
        request.query.pop();
    }
    Ok(read(all_pages(transport, call, request).await?))
}

/// The items of all pages of a listing, of [`MAX_PAGES`] at the most.
async fn all_pages<T: DeserializeOwned>(
    transport: &Transport,
    call: &Call,
    mut request: Request,
) -> Result<Vec<T>> {
    let (query, mut found, mut after) = (request.query.clone(), Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let answer = transport.send(call, &request).await?;
        let page: WirePage<T> = parse(&answer, &request)?;
        after = page.next(after.as_deref());
        found.extend(page.data);
        let Some(cursor) = &after else { break };
        request.query.clone_from(&query);
        request.query.push(("after", cursor.clone()));
    }
    Ok(found)
}

/// RFC 3339, with `Z` or an offset, from 1970 to 9999: what can be written again.
pub fn parse_time(text: &str) -> Option<SystemTime> {
    parse_any_time(text).filter(|time| bounded(*time) == *time)
}

fn parse_any_time(text: &str) -> Option<SystemTime> {
    if let Ok(time) = humantime::parse_rfc3339(text) {
        return Some(time);
    }
    let (stamp, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, offset) = offset.split_at_checked(1)?;
    let (hours, minutes) = offset.split_once(':')?;
    let minutes = hours.parse::<u64>().ok()? * 60 + minutes.parse::<u64>().ok()?;
    let time = humantime::parse_rfc3339(&format!("{stamp}Z")).ok()?;
    let offset = Duration::from_secs(minutes * 60);
    match sign {
        "+" => time.checked_sub(offset),
        "-" => time.checked_add(offset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_and_without_offset() {
        let time = parse_time("2024-01-15T10:30:00.250Z").unwrap();
        assert_eq!(time.duration_since(UNIX_EPOCH).unwrap(), Duration::from_millis(1_705_314_600_250));
        assert_eq!(parse_time("2024-01-15T12:30:00.250+02:00"), Some(time));
        assert_eq!(parse_time("2024-01-15T05:00:00.250-05:30"), Some(time));
        for garbage in [
            "",
            "now",
            "2024-01-15",
            "2024-01-15T10:30:00",
            "ü2024+02:00",
            "é:00:0",
            "9999-12-31T23:59:59-00:01",
            "1970-01-01T00:00:00+00:01",
        ] {
            assert_eq!(parse_time(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn paging_ends_where_the_interface_says() {
        let next = |json: &str| serde_json::from_str::<WirePage<u8>>(json).unwrap().next(Some("c1"));
        assert_eq!(next(r#"{"data":[1],"list_metadata":{"after":"c2","before":null}}"#), Some("c2".into()));
        for end in [
            r#"{"data":[1]}"#,
            r#"{"data":[1],"list_metadata":null}"#,
            r#"{"data":[1],"list_metadata":{}}"#,
            r#"{"data":[1],"list_metadata":{"after":null}}"#,
            r#"{"data":[1],"list_metadata":{"after":""}}"#,
            r#"{"data":[],"list_metadata":{"after":"c2"}}"#,
            r#"{"data":[1],"list_metadata":{"after":"c1"}}"#,
        ] {
            assert_eq!(next(end), None, "{end}");
        }
    }
}
