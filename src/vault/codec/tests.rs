use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;

fn canon(text: &str) -> Result<String, SyntaxError> {
    json::canonical(text.as_bytes()).map(|bytes| String::from_utf8(bytes.expose().to_vec()).unwrap())
}

fn structured_text(text: &str) -> Content {
    structured(SecretBytes::new(text.as_bytes().to_vec()))
}

#[test]
fn canonical_text_keeps_what_the_vault_stores() {
    let text = r#" {"z":1.0,"a" : [1E5,-0,1e400,{"k":[ ] , "o":{ }}],"s":"\/\u00e9\u0001\u0009\u007f\ud83d\ude00","l":"\uD83D\u0041\udE00","":null,"t":[true,false]}"#;
    let want = "{\n  \"z\": 1.0,\n  \"a\": [\n    1E5,\n    -0,\n    1e400,\n    {\n      \"k\": [],\n      \"o\": {}\n    }\n  ],\n  \"s\": \"/é\\u0001\\t\u{7f}😀\",\n  \"l\": \"\\ud83dA\\ude00\",\n  \"\": null,\n  \"t\": [\n    true,\n    false\n  ]\n}\n";
    assert_eq!(canon(text).unwrap(), want);
    assert_eq!(canon("{}").unwrap(), "{}\n");
}

#[test]
fn data_that_cannot_be_stored_is_refused_with_a_sentence_that_names_it() {
    let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
    assert!(decode_data(&deep(128)).is_ok());
    for (text, error) in [
        ("", SyntaxError::Syntax),
        ("{", SyntaxError::Syntax),
        ("{\"a\":1,}", SyntaxError::Syntax),
        ("{\"a\":01}", SyntaxError::Syntax),
        ("{\"a\":\"\n\"}", SyntaxError::Syntax),
        ("{\"a\":\"\\x\"}", SyntaxError::Syntax),
        ("{\"a\":\"\\ud800\\uzzzz\"}", SyntaxError::Syntax),
        ("{} {}", SyntaxError::Syntax),
        ("\u{feff}{}", SyntaxError::Syntax),
        ("[1]", SyntaxError::NotAnObject),
        (" \"x\"", SyntaxError::NotAnObject),
        ("null", SyntaxError::NotAnObject),
        ("{\"a\":1,\"a\":1}", SyntaxError::DuplicateKey),
        ("{\"x\":[{\"a\":1,\"b\":2,\"\\u0061\":1}]}", SyntaxError::DuplicateKey),
        ("{\"\\ud800\":1,\"\\uD800\":1}", SyntaxError::DuplicateKey),
        (&deep(129), SyntaxError::TooDeep),
    ] {
        assert_eq!(canon(text), Err(error), "{text}");
        let error = decode_data(text).unwrap_err();
        assert!(matches!(error, CodecError::BadData(sentence) if sentence.contains("data")), "{text}");
    }
    assert!(canon("{\"a\":{\"a\":1},\"b\":{\"a\":1}}").is_ok(), "the same key in different objects is fine");
}

#[test]
fn the_three_kinds_of_data() {
    for (data, bytes) in [
        (r#"{"value":"x\ny"}"#, &b"x\ny"[..]),
        (r#"{"value":""}"#, b""),
        (r#"{ "v\u0061lue" : "\u0000\ud83d\ude00\"\\\b" }"#, "\0😀\"\\\u{8}".as_bytes()),
        (r#"{"value":"AP8=","encoding":"base64"}"#, b"\0\xff"),
        (r#"{"encoding":"base64","value":"AP8\u003d"}"#, b"\0\xff"),
        (r#"{"encoding":"base64","value":""}"#, b""),
    ] {
        assert_eq!(decode_data(data).unwrap(), Content::plain(bytes), "{data}");
    }
    for data in [
        r#"{}"#,
        r#"{"value":1}"#,
        r#"{"value":null}"#,
        r#"{"value":{}}"#,
        r#"{"value":["x"]}"#,
        r#"{"value":"\ud800"}"#,
        r#"{"Value":"x"}"#,
        r#"{"value":"x","b":1}"#,
        r#"{"a":"x"}"#,
        r#"{"encoding":"base64"}"#,
        r#"{"value":"AP9=","encoding":"base64"}"#,
        r#"{"value":"AP8","encoding":"base64"}"#,
        r#"{"value":"AP8=\n","encoding":"base64"}"#,
        r#"{"value":"AP8=","encoding":"base32"}"#,
        r#"{"value":"AP8=","encoding":"base64","x":1}"#,
        r#"{"value":1,"encoding":"base64"}"#,
    ] {
        assert_eq!(decode_data(data).unwrap(), structured_text(&canon(data).unwrap()), "{data}");
    }
}

#[test]
fn what_is_written_stays_or_becomes_structured_only_as_promised() {
    let plain = |bytes: &str| Content::plain(bytes.as_bytes());
    let canonical = "{\n  \"a\": 1\n}\n";
    let auto = |base, bytes: &str| to_content(Format::Auto, base, bytes.as_bytes()).unwrap();
    assert_eq!(auto(None, canonical), structured_text(canonical));
    assert_eq!(auto(Some(Form::Plain), canonical), structured_text(canonical));
    assert_eq!(auto(None, "{\"a\":1}"), plain("{\"a\":1}"));
    assert_eq!(auto(Some(Form::Plain), "{\"a\":1}"), plain("{\"a\":1}"));
    assert_eq!(auto(Some(Form::Structured), "{\"a\":1}"), structured_text(canonical));
    assert_eq!(auto(Some(Form::Structured), "no"), plain("no"));
    for text in ["{\"a\":1,\"a\":1}", "{\n  \"value\": \"x\"\n}\n", "{\"value\":\"x\"}", "[1]"] {
        for base in [None, Some(Form::Plain), Some(Form::Structured)] {
            assert_eq!(auto(base, text), plain(text));
        }
    }
    let json = |bytes: &str| to_content(Format::Json, None, bytes.as_bytes());
    assert_eq!(json("{\"a\":1}").unwrap(), structured_text(canonical));
    assert_eq!(json("{\"value\":\"x\"}").unwrap(), plain("{\"value\":\"x\"}"));
    assert_eq!(json("[1]"), Err(CodecError::NotAnObject));
    assert_eq!(json(""), Err(CodecError::NotAnObject));
    assert!(matches!(json("{\"a\":1,\"a\":1}"), Err(CodecError::BadData(_))));
    assert_eq!(
        to_content(Format::Raw, Some(Form::Structured), canonical.as_bytes()).unwrap(),
        plain(canonical)
    );
}

#[test]
fn what_goes_over_the_wire() {
    let data = |bytes: &[u8]| encode_data(&Content::plain(bytes)).expose().to_owned();
    assert_eq!(data(b"a\n\"\x01\x7f"), "{\"value\":\"a\\n\\\"\\u0001\u{7f}\"}");
    assert_eq!(data(b"\0"), r#"{"value":"AA==","encoding":"base64"}"#);
    assert_eq!(data(b"\xff"), r#"{"value":"/w==","encoding":"base64"}"#);
    assert_eq!(encode_data(&structured_text("{\n  \"a\": 1.0\n}\n")).expose(), "{\n  \"a\": 1.0\n}");
    let prefixed = format!("{VALUE_PREFIX}AA==");
    assert_eq!(encode_value(b"text\n").expose(), "text\n");
    assert_eq!(encode_value(b"\0").expose(), prefixed);
    assert_eq!(decode_value(&prefixed), Content::plain(&b"\0"[..]));
    assert_eq!(decode_value(encode_value(prefixed.as_bytes()).expose()), Content::plain(prefixed.as_bytes()));
    for text in ["A", "AA=", "AB==", "AA==\n", "AA== "] {
        let text = format!("{VALUE_PREFIX}{text}");
        assert_eq!(decode_value(&text), Content::plain(text.as_bytes()));
    }
}

#[test]
fn size_limits_hold_before_memory_is_taken() {
    let unfolding = format!("{{\"a\":{}{}0{}}}", "[".repeat(120), "0,".repeat(4 << 20), "]".repeat(120));
    assert_eq!(decode_data_within(&unfolding, 1 << 20), Err(CodecError::TooLarge { max: 1 << 20 }));
    assert!(matches!(decode_data(&unfolding), Err(CodecError::BadData(_))));
    let controls = format!("{{\"value\":\"{}\"}}", "\\u0001".repeat(1000));
    assert_eq!(decode_data_within(&controls, 1000).unwrap().bytes.len(), 1000);
    assert_eq!(decode_data_within(&controls, 999), Err(CodecError::TooLarge { max: 999 }));
    assert_eq!(decode_data_within("{}", 3).unwrap().bytes.len(), 3);
    assert_eq!(decode_data_within("{}", 2), Err(CodecError::TooLarge { max: 2 }));
    assert!(matches!(decode_data_within("[]", 2), Err(CodecError::BadData(_))));
}

#[test]
fn large_and_hostile_input_is_fast_and_shallow() {
    let start = Instant::now();
    let n = 10 << 20;
    let keys: String = (0..n / 20).map(|i| format!("\"key number {i}\":1,")).collect();
    for text in [
        "[".repeat(n),
        "{\"a\":".repeat(n / 5),
        format!("{{\"a\":\"{}\"}}", "\\ud800".repeat(n / 6)),
        format!("{{\"a\":\"{}\"}}", "\\".repeat(n)),
        format!("{{\"a\":{}}}", "1".repeat(n)),
        format!("{{\"a\":1{}", " ".repeat(n)),
        format!("{{{keys}\"end\":1}}"),
        format!("{{{keys}\"key number 0\":1}}"),
    ] {
        let text = text.as_bytes();
        // A quarter of the stack that Rust gives threads is more than enough.
        std::thread::scope(|s| {
            let run = || drop(to_content(Format::Auto, Some(Form::Structured), text).unwrap());
            std::thread::Builder::new().stack_size(512 << 10).spawn_scoped(s, run).unwrap();
        });
    }
    assert!(start.elapsed() < Duration::from_secs(120), "took {:?}", start.elapsed());
}

/// JSON text with free white space, escapes and odd numbers.
fn json_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-cé😀/\u{7f}\u{2028} ]{0,4}",
        r#"\\(["\\/bfnrt]|u00[0-9a-fA-F]{2}|u[dD][89abCDEF][0-9a-f]{2}|ud83d\\ude0[0-9])"#,
    ];
    let string =
        prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat())).boxed();
    let leaf = prop_oneof![
        string.clone(),
        "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
        prop_oneof![Just("true"), Just("false"), Just("null")].prop_map(str::to_owned),
    ];
    let join = |items: Vec<String>, ws: String, open: &str, close: &str| {
        format!("{open}{ws}{}{ws}{close}", items.join(&format!("{ws},{ws}")))
    };
    leaf.prop_recursive(5, 40, 5, move |inner| {
        let member =
            (string.clone(), "[ \n\t]{0,2}", inner.clone()).prop_map(|(k, ws, v)| format!("{k}{ws}:{ws}{v}"));
        prop_oneof![
            (prop::collection::vec(inner, 0..5), "[ \r\n\t]{0,2}")
                .prop_map(move |(i, ws)| join(i, ws, "[", "]")),
            (prop::collection::vec(member, 0..5), "[ \r\n\t]{0,2}")
                .prop_map(move |(i, ws)| join(i, ws, "{", "}")),
        ]
    })
}

/// What serde_json makes of it; integers only, since it rewrites other numbers.
fn json_value() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-d\n\"\\\\é]{0,3}", inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Bytes that look like something: JSON, base64, prefixes, controls.
fn file_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        any::<String>().prop_map(String::into_bytes),
        json_text().prop_map(String::into_bytes),
        json_text().prop_map(|text| format!("{{\"value\":{text}}}").into_bytes()),
        json_text().prop_map(|text| canon(&format!("{{\"value\":{text}}}")).unwrap_or_default().into_bytes()),
        json_text().prop_map(|text| canon(&text).unwrap_or_default().into_bytes()),
        "[A-Za-z0-9+/=]{0,12}".prop_map(|tail| format!("{VALUE_PREFIX}{tail}").into_bytes()),
        "[{}\\[\\]\":,\\\\u0-9a-f \n\u{0}-\u{1f}-]{0,24}".prop_map(String::into_bytes),
    ]
}

fn base() -> impl Strategy<Value = Option<Form>> {
    prop_oneof![Just(None), Just(Some(Form::Plain)), Just(Some(Form::Structured))]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_in_bytes_out(bytes in file_bytes(), base in base()) {
        for format in [Format::Auto, Format::Json, Format::Raw] {
            let Ok(content) = to_content(format, base, &bytes) else { continue };
            let wire = encode_data(&content);
            prop_assert_eq!(decode_data(wire.expose()).unwrap(), content.clone());
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(wire.expose()).is_ok());
            if format == Format::Raw || (format == Format::Auto && base != Some(Form::Structured)) {
                prop_assert_eq!(content.bytes.expose(), &bytes[..]);
            }
            if content.form == Form::Structured {
                let canonical = json::canonical(&bytes).unwrap();
                prop_assert_eq!(canonical.expose(), content.bytes.expose());
                // Written again, from any base, it stays what it is.
                prop_assert_eq!(to_content(Format::Auto, None, content.bytes.expose()).unwrap(), content);
            } else {
                prop_assert_eq!(content.bytes.expose(), &bytes[..]);
            }
        }
        prop_assert_eq!(decode_value(encode_value(&bytes).expose()), Content::plain(bytes));
    }

    #[test]
    fn canonical_text_is_what_serde_json_prints(value in json_value()) {
        let ours = canon(&serde_json::to_string(&value).unwrap());
        if value.is_object() {
            prop_assert_eq!(ours.unwrap(), serde_json::to_string_pretty(&value).unwrap() + "\n");
        } else {
            prop_assert_eq!(ours, Err(SyntaxError::NotAnObject));
        }
    }

    #[test]
    fn the_grammar_is_serde_jsons(text in json_text(), cut in any::<prop::sample::Index>(), soup in "[{}\\[\\]\":,.\\\\ue0-9d-]{0,2}") {
        let at = text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(cut.index(text.chars().count() + 1)).unwrap();
        for text in [format!("{{\"k\":{text}}}"), format!("{{\"k\":{}{soup}{}}}", &text[..at], &text[at..])] {
            let known = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            match canon(&text) {
                Ok(once) => {
                    prop_assert!(known, "{}", text);
                    prop_assert_eq!(canon(&once).unwrap(), once.clone());
                    // The same value, where serde_json can hold it (no lone surrogate, no number
                    // too large).
                    if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
                        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&once).unwrap(), value);
                    }
                }
                Err(SyntaxError::Syntax) => prop_assert!(!known, "{}", text),
                Err(_) => prop_assert!(true),
            }
        }
    }

    #[test]
    fn soup_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), base in base()) {
        for format in [Format::Auto, Format::Json, Format::Raw] {
            let _ = to_content(format, base, &bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let _ = decode_data(&text);
        let _ = decode_data_within(&text, 10);
        let _ = decode_value(&text);
    }
}

#[test]
fn values_as_json_are_strings_and_nothing_else() {
    let max = 1000;
    let json_text = |bytes: &[u8]| json_with_text("", &encode_value(bytes), "");
    for bytes in [&b""[..], b"x", b"a\"\\\n", b"\0", b"\xff", "\u{1f}\u{7f}\u{2028}\u{1F511}".as_bytes()] {
        let json = json_text(bytes);
        assert_eq!(decode_value_within(json.expose(), max).unwrap().bytes.expose(), bytes);
    }
    assert_eq!(
        decode_value_within(r#""\u0041\/\ud83d\udd11""#, max).unwrap().bytes.expose(),
        "A/🔑".as_bytes()
    );
    for json in [
        "",
        "null",
        "1",
        "{}",
        "[]",
        r#"["x"]"#,
        r#"{"value":"x"}"#,
        r#""\ud800""#,
        r#""x","encoding":"base64""#,
        r#""x"} "#,
        r#""x"#,
        r#""eA==","encoding":"base64"}{"#,
    ] {
        assert!(matches!(decode_value_within(json, max), Err(CodecError::BadData(_))), "{json}");
    }
    let full = [&b"\x01"[..].repeat(max), &b"\xff"[..].repeat(max)];
    for bytes in full {
        assert_eq!(decode_value_within(json_text(bytes).expose(), max).unwrap().bytes.len(), max);
        let over = [bytes.as_slice(), b"x"].concat();
        let e = decode_value_within(json_text(&over).expose(), max).unwrap_err();
        assert_eq!(e, CodecError::TooLarge { max });
    }
}

/// Values as a vault could send them: right, nearly right, and not at all.
fn sent() -> impl Strategy<Value = String> {
    let base64 = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| STANDARD.encode(bytes)),
        "[A-Za-z0-9+/]{0,40}={0,3}",
        "[A-Za-z0-9+/=_ \n\\-é]{0,40}",
    ];
    prop_oneof![
        base64.clone().prop_map(|b| format!(r#"{{"value":"{b}","encoding":"base64"}}"#)),
        base64.clone().prop_map(|b| format!(r#"{{"encoding":"base64","value":"{b}"}}"#)),
        base64.prop_map(|b| format!("\"{VALUE_PREFIX}{b}\"")),
        json_text(),
        json_text().prop_map(|text| format!(r#"{{"value":{text},"encoding":"base64"}}"#)),
        file_bytes().prop_map(|bytes| encode_value(&bytes).expose().to_owned()),
        any::<String>(),
    ]
}

#[test]
#[ignore = "ten minutes of made-up values: run by scripts/test --all"]
fn base64_and_json_of_values_for_ten_minutes() {
    crate::vault::testing::fuzz::for_ten_minutes(
        "base64 and JSON of values",
        &(sent(), 0usize..60),
        |(text, max)| {
            for content in
                [decode_value_within(&text, max), decode_data_within(&text, max)].into_iter().flatten()
            {
                prop_assert!(content.bytes.len() <= max);
            }
            if let Ok(content) = decode_data(&text) {
                prop_assert_eq!(decode_data(encode_data(&content).expose()).unwrap(), content);
            }
            let content = decode_value(&text);
            prop_assert_eq!(decode_value(encode_value(content.bytes.expose()).expose()), content);
            Ok(())
        },
    );
}
