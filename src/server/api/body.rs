//! Request and response bodies: JSON taken apart without losing a byte of it, secrets wiped
//! afterwards.
//!
//! What this module holds is wiped; the copies that the HTTP library makes while it reads and
//! writes are not. A body is an object of fields; each field stays the text it was sent as until it
//! is asked for. That is how `data` is kept verbatim, and how an error can name the field it is
//! about.

use std::collections::BTreeMap;
use std::fmt;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::{ApiError, ErrorType};
use crate::secret::{SecretBytes, SecretString};
use crate::server::crypto::context::{KeyContext, MAX_CHARS, MAX_PAIRS};
use crate::vault::codec::parse_json_text;

/// Most fields that a body may have: each costs memory, and no route knows more than a few.
const MAX_FIELDS: usize = 64;

/// The fields of a JSON object, in the order sent, unparsed.
pub struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Takes a body apart; 400 if it is not a JSON object.
    pub fn parse(body: &'a SecretBytes) -> Result<Self, ApiError> {
        // The body may hold a value: of serde's errors only the place is repeated, never the text.
        serde_json::from_slice(body.expose()).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => {
                ApiError::invalid("the body is not a JSON object: send the documented fields in {…}")
            }
            _ if body.is_empty() => ApiError::invalid("the body is missing: send a JSON object"),
            _ => ApiError::invalid(format!(
                "the body is not valid JSON: line {}, column {}",
                e.line(),
                e.column()
            )),
        })
    }

    /// The text of a field that need not be there; 400 if it is there twice.
    pub fn optional(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        let mut given = self.0.iter().filter(|(field, _)| field == name);
        match (given.next(), given.next()) {
            (_, Some(_)) => Err(ApiError::invalid(format!("the field {name} is given more than once"))),
            (first, None) => Ok(first.map(|(_, text)| text.get())),
        }
    }

    /// The text of a field, which must be there exactly once.
    pub fn raw(&self, name: &str) -> Result<&'a str, ApiError> {
        let missing = || ApiError::invalid(format!("the field {name} is missing"));
        self.optional(name)?.ok_or_else(missing)
    }

    /// A field that must be a string.
    pub fn string(&self, name: &str) -> Result<String, ApiError> {
        // What is asked for here is a name or an id.
        Ok(self.secret(name)?.expose().to_owned())
    }

    /// A field that must be a string, and may be a secret.
    pub fn secret(&self, name: &str) -> Result<SecretString, ApiError> {
        let text = self.raw(name)?;
        parse_json_text(text).ok_or_else(|| not_a_string(name, text))
    }

    /// A field that may be a string, null or missing.
    pub fn optional_string(&self, name: &str) -> Result<Option<String>, ApiError> {
        match self.optional(name)? {
            None | Some("null") => Ok(None),
            Some(_) => self.string(name).map(Some),
        }
    }

    /// The key context in a field, which must be there; 400 if it is not pairs of text, 422 if it
    /// is over the limits.
    pub fn context(&self, name: &str) -> Result<KeyContext, ApiError> {
        let pairs: Pairs = serde_json::from_str(self.raw(name)?).map_err(|_| {
            let message = format!("the field {name} must be a JSON object of strings, each name once");
            ApiError::invalid(message)
        })?;
        KeyContext::new(pairs.0).ok_or_else(|| {
            let message = format!(
                "{name} is over its limits: at most {MAX_PAIRS} pairs, names and values of at most {MAX_CHARS} characters"
            );
            ApiError::new(ErrorType::UnprocessableEntity, message)
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CollectFields;
        impl<'de> Visitor<'de> for CollectFields {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    if fields.len() == MAX_FIELDS {
                        return Err(serde::de::Error::custom("too many fields"));
                    }
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(CollectFields).map(Fields)
    }
}

fn not_a_string(name: &str, text: &str) -> ApiError {
    let what = if text.starts_with('"') { "text without lone surrogates" } else { "a string" };
    ApiError::invalid(format!("the field {name} must be {what}"))
}

/// A JSON object of strings in which no name occurs twice.
struct Pairs(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CollectPairs;
        impl<'de> Visitor<'de> for CollectPairs {
            type Value = BTreeMap<String, String>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    if pairs.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a name occurs twice"));
                    }
                    if pairs.len() > MAX_PAIRS {
                        // Over the limit whatever follows.
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                    }
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(CollectPairs).map(Pairs)
    }
}

/// Bytes that are wiped when the connection has sent them.
struct Wiped(SecretBytes);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        // The answer to the client that asked for it.
        self.0.expose()
    }
}

/// An answer of JSON text that may hold a value.
pub fn secret_json(text: impl Into<SecretBytes>) -> Response {
    respond(StatusCode::OK, Bytes::from_owner(Wiped(text.into())))
}

/// An answer that holds no value.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    // Every body here is a plain struct of strings and numbers, which serde_json writes without
    // fail.
    respond(status, serde_json::to_vec(body).expect("plain structs serialise").into())
}

fn respond(status: StatusCode, bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str, check: impl FnOnce(Fields<'_>)) {
        check(Fields::parse(&SecretBytes::from(text.as_bytes())).unwrap());
    }

    #[test]
    fn a_field_stays_as_it_was_sent() {
        fields(r#" {"data" : {"b": 1.0,  "a":-0, "e":1E400,"s":"\u0041\ud800"} , "name":"x\u0000y"}"#, |f| {
            assert_eq!(f.raw("data").unwrap(), r#"{"b": 1.0,  "a":-0, "e":1E400,"s":"\u0041\ud800"}"#);
            assert_eq!(f.string("name").unwrap(), "x\0y");
        });
    }

    #[test]
    fn errors_name_the_field_and_repeat_nothing() {
        fields(r#"{"name":7,"twice":1,"twice":2,"half":"\ud800 hunter2"}"#, |f| {
            for (field, result) in [
                ("name", f.string("name")),
                ("half", f.string("half")),
                ("twice", f.string("twice")),
                ("gone", f.string("gone")),
            ] {
                let message = result.unwrap_err().message;
                assert!(message.contains(field) && !message.contains("hunter2"), "{message}");
            }
        });
    }

    #[test]
    fn a_body_and_a_context_cost_little_however_many_names_they_have() {
        let many = |field: &str, n| format!("{{{}}}", vec![field; n].join(","));
        let body = SecretBytes::from(many(r#""":1"#, MAX_FIELDS).as_bytes());
        assert!(Fields::parse(&body).is_ok());
        let body = SecretBytes::from(many(r#""":1"#, MAX_FIELDS + 1).as_bytes());
        assert_eq!(Fields::parse(&body).err().unwrap().kind, ErrorType::InvalidRequest);
        let pairs: Vec<_> = (0..1000).map(|n| format!(r#""{n}":"""#)).collect();
        let pairs: Pairs = serde_json::from_str(&format!("{{{}}}", pairs.join(","))).unwrap();
        assert_eq!(pairs.0.len(), MAX_PAIRS + 1);
        assert!(serde_json::from_str::<Pairs>(r#"{"a":"1","a":"2"}"#).is_err());
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for bad in [
            &b""[..],
            b"[]",
            b"7",
            b"\"hunter2\"",
            b"null",
            b"{",
            b"{\"a\":}",
            b"{} x",
            b"\xff",
            b"{\"\\ud800\":1}",
        ] {
            let body = SecretBytes::from(bad);
            let Err(e) = Fields::parse(&body) else { panic!("taken: {bad:?}") };
            assert_eq!(e.kind, ErrorType::InvalidRequest);
            assert!(!e.message.contains("hunter2"), "{}", e.message);
        }
    }
}
