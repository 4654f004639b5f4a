//! Whatever a client sends: each parser of requests takes it or refuses it. `tests/server/fuzz.rs`
//! does the same from outside, which is slower.

use proptest::prelude::*;

use super::body::Fields;
use super::query::{Query, decode_path, number};
use super::time::parse_moment;
use crate::secret::{SecretBytes, SecretString};
use crate::server::crypto::context::KeyContext;
use crate::server::crypto::data_keys;
use crate::server::crypto::data_keys::DataKeys;
use crate::server::service::{id_text, parse_id};
use crate::server::store::VaultId;
use crate::vault::ObjectName;
use crate::vault::testing::fuzz::for_ten_minutes;

/// Percent-encoded text, much of it wrongly.
fn encoded() -> impl Strategy<Value = String> {
    let piece = prop_oneof!["%[0-9a-fA-F]{2}", "%[!-~]{0,2}", "[!-~+]{0,3}", "[é\u{0}%+&=]{0,3}"];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

#[test]
#[ignore = "ten minutes of made-up requests: run by scripts/test --all"]
fn names_cursors_and_queries_for_ten_minutes() {
    let id = prop_oneof![
        any::<u128>().prop_map(|n| id_text(n.into())),
        "vault_obj_[0-9A-Za-z]{0,30}",
        "(vault_obj_)?[!-~é]{0,30}",
    ];
    let made = (encoded(), prop::collection::vec((encoded(), encoded()), 0..4), id);
    for_ten_minutes("names, cursors, queries", &made, |(text, pairs, id)| {
        if let Some(name) = decode_path(&text) {
            prop_assert!(name.len() <= text.len());
            let _ = ObjectName::new(&name);
        }
        let raw: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if let Ok(query) = Query::parse(Some(&raw.join("&"))) {
            for name in ["id", "name", "limit", "after", &text] {
                let _ = (query.optional(name), query.required(name), query.all(name).count());
            }
        }
        if let Some(known) = parse_id(&id) {
            prop_assert_eq!(parse_id(&id_text(known)), Some(known));
        }
        let _ = (number(&text), parse_moment(&text), parse_id(&text));
        Ok(())
    });
}

#[test]
#[ignore = "ten minutes of made-up requests: run by scripts/test --all"]
fn bodies_and_key_blobs_for_ten_minutes() {
    let keys = DataKeys::new(&[7; 32], VaultId([1; 16]));
    let issued = keys.issue(&KeyContext::default()).unwrap();
    let field = prop_oneof![Just("name"), Just("data"), Just("key_context"), Just("x")];
    let value = prop_oneof![
        "\"[ -~é]{0,20}\"",
        r#""(\\\\u[0-9a-f]{4}|\\\\.|[a-z]){0,6}""#,
        "[{}\\[\\]\":,0-9a-z\\\\]{0,20}",
        Just(r#"{"a":"b"}"#.to_owned()),
        prop::collection::vec("\"[a-c]{0,2}\":\"[a-z]{0,3}\"", 0..13)
            .prop_map(|p| format!("{{{}}}", p.join(","))),
    ];
    let body = prop::collection::vec((field, value), 0..5).prop_map(|fields| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    });
    let body = prop_oneof![3 => body, 1 => prop::collection::vec(any::<u8>(), 0..100)];
    let blob = (any::<prop::sample::Index>(), any::<Option<u8>>(), "[A-Za-z0-9+/=é]{0,99}");
    for_ten_minutes("bodies and key blobs", &(body, blob), |(body, (at, byte, text))| {
        let body = SecretBytes::new(body);
        if let Ok(fields) = Fields::parse(&body) {
            for name in ["name", "data", "key_context"] {
                let _ = (fields.optional(name), fields.raw(name), fields.string(name));
                let _ = (fields.optional_string(name), fields.context(name));
            }
        }
        let mut blob = issued.blob.clone().into_bytes();
        let at = at.index(blob.len());
        match byte {
            Some(byte) => blob[at] = byte,
            None => blob.truncate(at),
        }
        let bent = String::from_utf8_lossy(&blob);
        for blob in [&*bent, &text] {
            prop_assert!(keys.open(blob).is_err() || *blob == issued.blob, "opened a blob that is not ours");
            let _ = (data_keys::decrypt(&issued.key, blob), keys.rekey(blob, &KeyContext::default()));
            let _ = data_keys::encrypt(&SecretString::new(blob.to_owned()), "text");
        }
        Ok(())
    });
}
