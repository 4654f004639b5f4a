//! Whatever answers: no panic, no secret in an error, and what is taken in makes sense.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use reqwest::StatusCode;
use zeroize::Zeroizing;

use super::status;
use super::transport::{Answer, Request};
use super::wire::parse_time;
use super::{kv, object, segment};
use crate::vault::codec;
use crate::vault::envelope::Envelope;
use crate::vault::object::ListQuery;

fn answer(status: u16, body: Vec<u8>) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        body: Zeroizing::new(body),
        request_id: None,
        retry_after: None,
        attempts: 1,
        doubt: false,
    }
}

fn request() -> Request {
    Request::get("/x", Vec::new(), "reading".to_owned())
}

/// A JSON value made of the words of both dialects.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let time = prop_oneof!["[0-9TZ:+.-]{0,30}", Just("2024-06-15T10:30:00Z".to_owned())];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        time.prop_map(Into::into),
    ];
    let word = prop_oneof![
        Just("id"),
        Just("name"),
        Just("data"),
        Just("value"),
        Just("metadata"),
        Just("version"),
        Just("version_id"),
        Just("updated_at"),
        Just("created_at"),
        Just("current"),
        Just("size"),
        Just("current_version"),
        Just("list_metadata"),
        Just("after"),
        Just("before"),
        Just("encoding"),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::vec((word.clone(), inner), 0..6)
                .prop_map(|members| members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

/// Bodies: bytes, JSON, and JSON with a piece of it broken.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let broken = (json(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(json, at, byte)| {
        let mut bytes = json.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        json().prop_map(|json| json.to_string().into_bytes()),
        broken,
    ]
}

proptest! {
    #[test]
    fn any_body_is_understood_or_refused(body in body(), after in any::<Option<String>>()) {
        let (answer, request) = (answer(200, body), request());
        let query = ListQuery { after, ..ListQuery::first() };
        let pages = [object::page(&answer, &request, &query), kv::page(&answer, &request, &query)];
        for page in pages.into_iter().flatten() {
            prop_assert!(page.next.is_none() || page.next != query.after, "a cursor that stays is no cursor");
            prop_assert!(page.next.is_none_or(|next| !next.is_empty()));
        }
        object::fuzz(&answer, &request);
        kv::fuzz(&answer, &request);
    }

    #[test]
    fn any_status_and_body_is_an_error_or_a_success(code in 100u16..1000, body in body()) {
        let success = (200..300).contains(&code);
        match status::check(answer(code, body), &request(), None) {
            Ok(_) => prop_assert!(success),
            Err(e) => {
                prop_assert!(!success && !e.message.is_empty());
                prop_assert!(!e.maybe_applied, "nothing was to be changed");
            }
        }
    }

    #[test]
    fn any_time_can_be_written_again(text in "[0-9]{0,5}-?[0-9]{0,2}-?[0-9]{0,2}T?[0-9:]{0,8}[.]?[0-9]{0,9}[Z+-]?[0-9:+-]{0,6}") {
        if let Some(time) = parse_time(&text) {
            let written = humantime::format_rfc3339_nanos(time).to_string();
            prop_assert_eq!(parse_time(&written), Some(time), "{}", text);
        }
    }

    #[test]
    fn any_text_is_one_segment_of_a_url(text in any::<String>()) {
        let Some(encoded) = segment(&text) else {
            prop_assert!(["", ".", ".."].contains(&text.as_str()));
            return Ok(());
        };
        let url = reqwest::Url::parse(&format!("http://h/kv/name/{encoded}/metadata?q")).unwrap();
        let segments: Vec<_> = url.path_segments().unwrap().collect();
        prop_assert_eq!(&segments, &["kv", "name", encoded.as_str(), "metadata"]);
        let mut bytes = Vec::new();
        let mut rest = encoded.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            } else {
                bytes.push(byte);
            }
        }
        prop_assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }

    #[test]
    fn values_of_any_shape_are_read_or_refused(json in any::<String>(), max in 0usize..100) {
        for text in [json.clone(), serde_json::Value::from(json.as_str()).to_string()] {
            if let Ok(content) = codec::decode_value_within(&text, max) {
                prop_assert!(content.bytes.len() <= max);
            }
        }
        let base64 = format!("\"data:application/octet-stream;base64,{}\"", json.replace(['"', '\\'], ""));
        let _ = codec::decode_value_within(&base64, max);
    }
}

/// The long run: all parsers beside each other, for VAULTFS_FUZZ_SECONDS or ten minutes.
#[test]
#[ignore = "ten minutes of made-up answers: run by scripts/test --all"]
fn no_answer_makes_a_parser_panic_in_ten_minutes() {
    let seconds = std::env::var("VAULTFS_FUZZ_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let end = Instant::now() + Duration::from_secs(seconds);
    // Each runner begins with a seed of its own.
    while Instant::now() < end {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(1000));
        let checked = runner.run(&(100u16..1000, body(), any::<String>()), |(code, body, text)| {
            let _ = Envelope::parse(&STANDARD.encode(&body));
            let _ = Envelope::parse(&text);
            let _ = (parse_time(&text), segment(&text));
            let (answer, request) = (answer(code, body), request());
            object::fuzz(&answer, &request);
            kv::fuzz(&answer, &request);
            let _ = object::page(&answer, &request, &ListQuery::first());
            let _ = kv::page(&answer, &request, &ListQuery::first());
            if let Ok(text) = std::str::from_utf8(&answer.body) {
                let _ = (codec::decode_value_within(text, 100), codec::decode_data_within(text, 100));
                let _ = codec::decode_value(text);
            }
            let _ = status::check(answer, &request, None);
            Ok(())
        });
        checked.unwrap();
    }
}
