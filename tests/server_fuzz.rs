//! Whatever is sent, the answer is a documented status with a sentence: never a 5xx, never a dropped
//! connection. Random bytes, random JSON, JSON that is nearly right, random queries, at every endpoint.

mod vault_server;

use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use vault_server::{Server, id};

const BODY_ROUTES: [(&str, &str); 3] = [("POST", "create"), ("PUT", "update"), ("DELETE", "delete")];
const QUERY_ROUTES: [&str; 6] = ["get", "get-by-name", "list", "metadata", "versions", "version"];
const STATUSES: [u16; 7] = [200, 400, 404, 405, 409, 413, 422];

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
    let field = prop_oneof![Just("id"), Just("name"), Just("data"), Just("version")];
    let value = prop_oneof![
        any_json().prop_map(|json| json.to_string()),
        Just(format!("\"{id}\"")),
        Just(r#""\ud800""#.to_owned()),
        Just(r#"{"a":1,"a":2}"#.to_owned()),
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
        Just("%66oo"),
    ];
    let value = prop_oneof![
        Just(id),
        "[0-9]{0,25}",
        "(%[0-9a-fA-F]{2}){0,8}",
        "[!-~]{0,12}",
        "vault_obj_[0-9A-Z]{26}"
    ];
    vec((name, value), 0..4).prop_map(|pairs| {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        // What would end the query is not part of it.
        pairs.join("&").replace('#', "%23")
    })
}

#[test]
fn no_input_is_a_server_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let object = id(&runtime.block_on(server.create("known", "{}")).ok());
    let body = prop_oneof![
        1 => vec(any::<u8>(), 0..200),
        1 => any_json().prop_map(|json| json.to_string().into_bytes()),
        3 => near_body(object.clone()),
    ];
    let request = prop_oneof![
        (prop::sample::select(BODY_ROUTES.to_vec()), body).prop_map(|((method, route), body)| (
            method,
            format!("/vault/object/{route}"),
            body
        )),
        (prop::sample::select(QUERY_ROUTES.to_vec()), near_query(object)).prop_map(|(route, query)| (
            "GET",
            format!("/vault/object/{route}?{query}"),
            Vec::new()
        )),
        "/[!-~]{0,30}".prop_map(|path| ("GET", path.replace(['#', '\\'], "_"), Vec::new())),
    ];
    let config = Config { cases: 1500, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&request, |(method, path, body)| {
        let answer = runtime.block_on(server.send(method, &path, body));
        prop_assert!(STATUSES.contains(&answer.status.as_u16()), "{answer:?}");
        if answer.status != 200 {
            prop_assert!(answer.json["message"].as_str().is_some_and(|m| m.len() > 10), "{answer:?}");
        }
        Ok(())
    });
    result.unwrap();
}
