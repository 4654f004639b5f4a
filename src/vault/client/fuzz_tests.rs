//! Whatever answers: no panic, no secret in an error, and what is taken in makes sense.

use proptest::prelude::*;
use reqwest::StatusCode;
use zeroize::Zeroizing;

use crate::vault::client::status;
use crate::vault::client::transport::{Answer, Request};
use crate::vault::client::wire::parse_time;
use crate::vault::client::{kv, object, segment};
use crate::vault::codec;
use crate::vault::model::object::{ListQuery, Page};
use crate::vault::testing::fuzz::for_ten_minutes;

fn answer(status: u16, body: Vec<u8>) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        body: Zeroizing::new(body),
        request_id: None,
        media_type: None,
        retry_after: None,
        attempts: 1,
        maybe_applied: false,
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
        match status::check(answer(code, body), &request(), None, "there") {
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

/// One answer, understood in each way that it can be meant.
fn is_understood_or_refused(
    (code, body, after): (u16, Vec<u8>, Option<String>),
    page: fn(&Answer, &Request, &ListQuery) -> crate::vault::Result<Page>,
    object: fn(&Answer, &Request),
) -> Result<(), TestCaseError> {
    let (answer, request) = (answer(code, body), request());
    object(&answer, &request);
    let query = ListQuery { after, ..ListQuery::first() };
    if let Ok(page) = page(&answer, &request, &query) {
        prop_assert!(page.next.is_none() || (page.next != query.after && page.next.as_deref() != Some("")));
    }
    match status::check(answer, &request, None, "there") {
        Ok(_) => prop_assert!((200..300).contains(&code)),
        Err(e) => prop_assert!(!e.message.is_empty()),
    }
    Ok(())
}

#[test]
#[ignore = "ten minutes of made-up answers: run by scripts/test --all"]
fn answers_of_the_object_dialect_for_ten_minutes() {
    let any = (100u16..1000, body(), any::<Option<String>>());
    for_ten_minutes("object dialect", &any, |made| {
        is_understood_or_refused(made, object::page, object::fuzz)
    });
}

#[test]
#[ignore = "ten minutes of made-up answers: run by scripts/test --all"]
fn answers_of_the_kv_dialect_for_ten_minutes() {
    let any = (100u16..1000, body(), any::<Option<String>>());
    for_ten_minutes("kv dialect", &any, |made| is_understood_or_refused(made, kv::page, kv::fuzz));
}

/// Pages with cursors that come again, lead nowhere or are none.
fn pages() -> impl Strategy<Value = Vec<String>> {
    let cursor = prop_oneof![
        3 => "[ab]".prop_map(|c| serde_json::Value::from(c).to_string()),
        1 => any::<String>().prop_map(|c| serde_json::Value::from(c).to_string()),
        1 => Just("null".to_owned()),
        1 => json().prop_map(|json| json.to_string()),
    ];
    let row = r#"{"id":"i","name":"n","version":1,"updated_at":"2024-06-15T10:30:00Z"}"#;
    let rows =
        prop_oneof![4 => Just(format!("[{row}]")), 1 => Just("[]".to_owned()), 1 => Just("[{}]".to_owned())];
    let page = (rows, cursor.clone(), cursor).prop_map(|(rows, before, after)| {
        format!(r#"{{"data":{rows},"list_metadata":{{"before":{before},"after":{after}}}}}"#)
    });
    prop::collection::vec(page, 1..8)
}

#[test]
#[ignore = "ten minutes of made-up pages: run by scripts/test --all"]
fn cursors_for_ten_minutes() {
    for_ten_minutes("cursors", &pages(), |pages| {
        for page in [object::page, kv::page] {
            let mut query = ListQuery::first();
            for text in &pages {
                let Ok(page) = page(&answer(200, text.clone().into_bytes()), &request(), &query) else {
                    break;
                };
                let Some(next) = page.next else { break };
                prop_assert!(
                    !next.is_empty() && Some(&next) != query.after.as_ref(),
                    "{next:?} goes nowhere"
                );
                query.after = Some(next);
                // What goes back to the vault is one parameter, whatever it is made of.
                let asked = [object::list_request(&query), kv::list_request(&query)];
                prop_assert!(
                    asked
                        .iter()
                        .all(|request| request.query.iter().filter(|(k, _)| *k == "after").count() == 1)
                );
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "ten minutes of made-up texts: run by scripts/test --all"]
fn times_and_segments_of_urls_for_ten_minutes() {
    let time = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{0,12})?(Z|[+-][0-9]{1,3}:?[0-9]{1,3})?";
    let text = prop_oneof![any::<String>(), time.prop_map(String::from), "[%./?#A-Fa-f0-9é\u{0}]{0,30}"];
    for_ten_minutes("times and segments", &text, |text| {
        if let Some(time) = parse_time(&text) {
            prop_assert_eq!(parse_time(&humantime::format_rfc3339_nanos(time).to_string()), Some(time));
        }
        if let Some(encoded) = segment(&text) {
            prop_assert!(
                encoded.bytes().all(|b| b.is_ascii_graphic() && !b"/?#\\".contains(&b)),
                "{encoded}"
            );
        }
        Ok(())
    });
}
