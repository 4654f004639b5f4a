//! Whatever is sent, the answer is a documented status with a sentence: never a 5xx, never a
//! dropped connection. Random bytes, random JSON, JSON that is nearly right, random queries, at
//! every endpoint.

use std::time::{Duration, Instant};

use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use crate::support::vault_server::{Server, id};

const BODY_ROUTES: [(&str, &str); 3] = [("POST", "create"), ("PUT", "update"), ("DELETE", "delete")];
const QUERY_ROUTES: [&str; 6] = ["get", "get-by-name", "list", "metadata", "versions", "version"];
/// Paths of the kv dialect, `ID` to be replaced; what a path does not take is 405.
const KV_ROUTES: [&str; 9] = [
    "/vault/v1/kv",
    "/vault/v1/kv/ID",
    "/vault/v1/kv/ID/metadata",
    "/vault/v1/kv/ID/versions",
    "/vault/v1/kv/name/ID",
    "/vault/v1/keys/data-key",
    "/vault/v1/keys/decrypt",
    "/vault/v1/keys/rekey",
    "/vault/v1/kv/name/known",
];
const KEY_ROUTES: [&str; 4] = ["create-data-key", "encrypt-data", "decrypt-data", "decrypt-data-key"];
const STATUSES: [u16; 8] = [200, 201, 400, 404, 405, 409, 413, 422];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            hash_map(key(), inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just("value".to_owned()), Just("encoding".to_owned()), Just("\u{0}".to_owned()), ".{0,6}",]
}

/// A body with the right fields and, now and then, right values, as text that may then be bent.
fn near_body(id: String) -> impl Strategy<Value = Vec<u8>> {
    let field = prop::sample::select(vec![
        "id",
        "name",
        "data",
        "version",
        "value",
        "key_context",
        "version_check",
        "context",
        "keys",
        "encrypted_keys",
        "encrypted_key",
        "plaintext",
        "data_key",
        "ciphertext",
    ]);
    let value = prop_oneof![
        any_json().prop_map(|json| json.to_string()),
        Just(format!("\"{id}\"")),
        Just(r#""\ud800""#.to_owned()),
        Just(r#"{"a":1,"a":2}"#.to_owned()),
        Just("{}".to_owned()),
        hash_map(".{0,4}", ".{0,600}", 0..12).prop_map(|map| serde_json::to_string(&map).unwrap()),
        "[A-Za-z0-9+/]{0,120}={0,2}".prop_map(|text| format!("\"{text}\"")),
        ".{0,300}".prop_map(|text| Value::from(text).to_string()),
        Just(r#"{"value":"aGk=","encoding":"base64"}"#.to_owned()),
        Just("1e999999".to_owned()),
        (1usize..3000).prop_map(|n| "[".repeat(n)),
        (1usize..300).prop_map(|n| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n))),
    ];
    let fields = vec((field, value), 0..5).prop_map(|fields| {
        let fields: Vec<_> = fields.iter().map(|(field, value)| format!("\"{field}\":{value}")).collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    });
    (fields, any::<Option<(prop::sample::Index, u8)>>()).prop_map(|(mut body, bend)| {
        if let Some((at, byte)) = bend {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body
    })
}

fn near_query(id: String) -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("id"),
        Just("name"),
        Just("limit"),
        Just("after"),
        Just("before"),
        Just("version"),
        Just("order"),
        Just("search"),
        Just("updatedAfter"),
        Just("version_check"),
        Just("%66oo"),
    ];
    let value = prop_oneof![
        Just(id),
        "[0-9]{0,25}",
        "(%[0-9a-fA-F]{2}){0,8}",
        "[!-~]{0,12}",
        "vault_obj_[0-9A-Z]{26}",
        Just("desc".to_owned()),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})",
    ];
    vec((name, value), 0..4).prop_map(|pairs| {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        // What would end the query is not part of it.
        pairs.join("&").replace('#', "%23")
    })
}

/// Method, path, body.
type Request = (&'static str, String, Vec<u8>);

fn any_body(id: String) -> impl Strategy<Value = Vec<u8>> + Clone {
    prop_oneof![
        1 => vec(any::<u8>(), 0..200),
        1 => any_json().prop_map(|json| json.to_string().into_bytes()),
        3 => near_body(id),
    ]
    .boxed()
}

fn object_request(id: String) -> impl Strategy<Value = Request> {
    let body = any_body(id.clone());
    let keys = (prop::sample::select(KEY_ROUTES.to_vec()), body.clone());
    prop_oneof![
        (prop::sample::select(BODY_ROUTES.to_vec()), body).prop_map(|((method, route), body)| (
            method,
            format!("/vault/object/{route}"),
            body
        )),
        keys.prop_map(|(route, body)| ("POST", format!("/vault/key/{route}"), body)),
        (prop::sample::select(QUERY_ROUTES.to_vec()), near_query(id)).prop_map(|(route, query)| (
            "GET",
            format!("/vault/object/{route}?{query}"),
            Vec::new()
        )),
        "/[!-~]{0,30}".prop_map(|path| ("GET", path.replace(['#', '\\'], "_"), Vec::new())),
    ]
}

fn kv_request(id: String) -> impl Strategy<Value = Request> {
    let method = prop::sample::select(vec!["GET", "GET", "POST", "PUT", "DELETE", "PATCH"]);
    let part = prop_oneof![
        3 => Just(id.clone()),
        1 => "(%[0-9a-fA-F]{2}|[!-~]|/){0,12}",
    ];
    let path = (prop::sample::select(KV_ROUTES.to_vec()), part, near_query(id.clone()));
    (method, path, any_body(id)).prop_map(|(method, (route, part, query), body)| {
        let path = route.replace("ID", &part.replace(['#', '\\', '?'], "_"));
        // The known object is to stay: no delete goes without a check.
        let check = if method == "DELETE" { "version_check=x&" } else { "" };
        (method, format!("{path}?{check}{query}"), body)
    })
}

#[test]
fn no_input_is_a_server_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let object = id(&runtime.block_on(server.create("known", "{}")).ok());
    let kv = id(&runtime.block_on(server.kv_create("known too", "v")).made());
    let request = prop_oneof![object_request(object), kv_request(kv.clone())];
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let check = |(method, path, body): Request| {
        let answer = runtime.block_on(server.send(method, &path, body));
        prop_assert!(STATUSES.contains(&answer.status.as_u16()), "{answer:?}");
        if !answer.status.is_success() {
            prop_assert!(answer.json["message"].as_str().is_some_and(|m| m.len() > 10), "{answer:?}");
        }
        Ok(())
    };
    // All tests together: ten minutes of it, other inputs each time.
    let all = std::env::var_os("VAULTFS_TEST_ALL").is_some();
    let until = Instant::now() + Duration::from_secs(if all { 600 } else { 0 });
    loop {
        TestRunner::new(config.clone()).run(&request, check).unwrap();
        if Instant::now() >= until {
            break;
        }
    }
    // What was aimed at is still there, so the aim was true to the end.
    runtime.block_on(server.kv_get(&kv)).ok();
}
