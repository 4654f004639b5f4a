//! The object dialect on the wire: each operation, each row of the error table,
//! paging both ways, hostile names and bodies.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vaultfs::clock::ManualClock;
use vaultfs::secret::SecretString;
use vaultfs::server::instance::serve::ServeOptions;
use vaultfs::server::service::{Create, Value as Stored};
use vaultfs::server::store::{Permission, StoredForm};
use vaultfs::vault::ObjectName;

use crate::support::vault_server::{MAX_VALUE, Server, id};

const GHOST: &str = "vault_obj_01H1EXAMP1E000000000000000";

fn is_timestamp(value: &Value) -> bool {
    let text = value.as_str().unwrap();
    text.len() == 24 && text.ends_with('Z') && humantime::parse_rfc3339(text).is_ok()
}

#[tokio::test]
async fn an_object_lives_and_leaves_nothing() {
    let s = Server::start().await;
    let made = s.create("db/password", r#"{"ssn": "123-45-6789", "n": 1.0}"#).await.ok();
    assert!(id(&made).starts_with("vault_obj_") && id(&made).len() == 36);
    assert_eq!((&made["name"], &made["version"]), (&json!("db/password"), &json!(1)));
    assert!(is_timestamp(&made["created_at"]) && made["created_at"] == made["updated_at"]);
    assert!(made.get("data").is_none());

    let id = id(&made);
    let by_name = s.get("/vault/object/get-by-name?name=db%2Fpassword").await.ok();
    assert_eq!(by_name["data"], json!({"ssn": "123-45-6789", "n": 1.0}));
    assert_eq!(s.get(&format!("/vault/object/get?id={id}")).await.ok(), by_name);

    let updated = s.update(&id, r#"{"value":"two"}"#).await.ok();
    assert_eq!((&updated["version"], &updated["created_at"]), (&json!(2), &made["created_at"]));
    assert!(updated.get("data").is_none());
    assert_eq!(s.get(&format!("/vault/object/metadata?id={id}")).await.ok(), updated);

    let versions = s.get(&format!("/vault/object/versions?id={id}")).await.ok();
    assert_eq!(versions["list_metadata"], json!({}));
    let history: Vec<_> = versions["data"].as_array().unwrap().clone();
    assert_eq!(history.len(), 2);
    assert_eq!((&history[0]["version"], &history[0]["current"]), (&json!(2), &json!(true)));
    assert_eq!((&history[0]["size"], &history[1]["current"]), (&json!(3), &json!(false)));
    // The file view of version 1 is its canonical text.
    assert_eq!(history[1]["size"], json!("{\n  \"ssn\": \"123-45-6789\",\n  \"n\": 1.0\n}\n".len()));
    assert!(is_timestamp(&history[1]["created_at"]));

    let first = s.get(&format!("/vault/object/version?id={id}&version=1")).await.ok();
    assert_eq!((&first["data"]["ssn"], &first["version"]), (&json!("123-45-6789"), &json!(1)));
    let second = s.get(&format!("/vault/object/version?id={id}&version=2")).await.ok();
    assert_eq!(second["data"], json!({"value": "two"}));

    assert_eq!(s.delete(&id).await.ok(), json!({"id": id, "deleted": true}));
    for path in ["get", "metadata", "versions", "version"] {
        let answer = s.get(&format!("/vault/object/{path}?id={id}&version=1")).await;
        answer.is_error(404, "not_found", "check the spelling");
    }
    s.update(&id, r#"{"value":"x"}"#).await.is_error(404, "not_found", "id");
    s.delete(&id).await.is_error(404, "not_found", "id");
    // The name is free again; the history is not the old one's.
    assert_eq!(s.create("db/password", "{}").await.ok()["version"], 1);
}

#[tokio::test]
async fn data_comes_back_as_it_was_written() {
    let s = Server::start().await;
    for (n, data) in [
        r#"{"b":1.0,"a":-0,"c":1E400,"d":123456789012345678901234567890}"#,
        r#"{ "z" : [ 1 , {} ] ,  "é\u00e9\/":"\ud800 \u0041" }"#,
        "{}",
        r#"{"value":"line\n"}"#,
        r#"{"value":"AAA=","encoding":"base64"}"#,
    ]
    .into_iter()
    .enumerate()
    {
        s.create(&format!("n{n}"), data).await.ok();
        let text = s.get(&format!("/vault/object/get-by-name?name=n{n}")).await.text;
        assert!(text.contains(&format!("\"data\":{data},")), "{text}");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
async fn every_row_of_the_error_table() {
    let s = Server::start().await;
    let create = "/vault/object/create";
    let bad = "invalid_request";
    // 400: not JSON, a field missing or of the wrong type, limit, cursor
    for (body, word) in [
        ("", "body"),
        ("{", "JSON"),
        ("[]", "body"),
        ("null", "body"),
        (r#"{"data":{}}"#, "name"),
        (r#"{"name":"a"}"#, "data"),
        (r#"{"name":7,"data":{}}"#, "name"),
        (r#"{"name":null,"data":{}}"#, "name"),
        (r#"{"name":"","data":{}}"#, "name"),
        (r#"{"name":"\ud800","data":{}}"#, "name"),
        (r#"{"name":"a","name":"b","data":{}}"#, "name"),
        (r#"{"name":"a","data":{},"data":{}}"#, "data"),
        (r#"{"name":"a","data":{}} x"#, "JSON"),
    ] {
        s.send("POST", create, body).await.is_error(400, bad, word);
    }
    s.send("POST", create, b"{\"name\":\"\xff\",\"data\":{}}".to_vec()).await.is_error(400, bad, "JSON");
    s.create(&"n".repeat(1025), "{}").await.is_error(400, bad, "name");
    s.send("PUT", "/vault/object/update", r#"{"data":{}}"#).await.is_error(400, bad, "id");
    s.send("PUT", "/vault/object/update", r#"{"id":[],"data":{}}"#).await.is_error(400, bad, "id");
    s.send("PUT", "/vault/object/update", format!(r#"{{"id":"{GHOST}"}}"#)).await.is_error(400, bad, "data");
    s.send("DELETE", "/vault/object/delete", "{}").await.is_error(400, bad, "id");
    s.send("DELETE", "/vault/object/delete", "").await.is_error(400, bad, "body");
    for (path, word) in [
        ("get", "id"),
        ("get?id=%zz", "id"),
        ("get?id=%ff", "id"),
        ("get?id=a&id=b", "id"),
        ("get-by-name", "name"),
        ("metadata", "id"),
        ("versions", "id"),
        ("version?version=1", "id"),
        (&format!("version?id={GHOST}"), "version"),
        ("list?limit=0", "limit"),
        ("list?limit=101", "limit"),
        ("list?limit=ten", "limit"),
        ("list?limit=", "limit"),
        ("list?after=", "after"),
        ("list?before=nonsense", "before"),
        (&format!("list?after={GHOST}"), "after"),
        (&format!("list?after={GHOST}&before={GHOST}"), "after"),
    ] {
        s.get(&format!("/vault/object/{path}")).await.is_error(400, bad, word);
    }
    // 404: no such, or malformed
    for path in [
        format!("get?id={GHOST}"),
        "get?id=nonsense".to_owned(),
        "get?id=".to_owned(),
        "get-by-name?name=".to_owned(),
        "get-by-name?name=nobody".to_owned(),
        format!("get-by-name?name={}", "n".repeat(2000)),
        format!("metadata?id={}", GHOST.to_lowercase()),
        format!("version?id={GHOST}&version=1"),
    ] {
        s.get(&format!("/vault/object/{path}")).await.is_error(404, "not_found", "list the objects");
    }
    let made = id(&s.create("a", "{}").await.ok());
    for version in ["0", "2", "-1", "x", "99999999999999999999999"] {
        let path = format!("/vault/object/version?id={made}&version={version}");
        s.get(&path).await.is_error(404, "not_found", "version");
    }
    // 409
    s.create("a", "{}").await.is_error(409, "conflict", "update it instead");
    // 413
    let long = format!(r#"{{"value":"{}"}}"#, "v".repeat(MAX_VALUE + 1));
    s.create("b", &long).await.is_error(413, "payload_too_large", "data");
    let limit = 8 * MAX_VALUE + 64 * 1024;
    s.send("POST", create, vec![b' '; limit + 1]).await.is_error(413, "payload_too_large", "body");
    // 422: data is there, but cannot be stored
    for data in ["null", "7", "\"text\"", "[]", r#"{"a":1,"a":2}"#, r#"{"a":{"b":1,"\u0062":2}}"#] {
        s.create("b", data).await.is_error(422, "unprocessable_entity", "data");
        s.update(&made, data).await.is_error(422, "unprocessable_entity", "data");
    }
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(2000), "]".repeat(2000));
    s.create("b", &deep).await.is_error(422, "unprocessable_entity", "data");
    // routes
    s.get("/vault/object/nothing").await.is_error(404, "not_found", "route");
    s.get("/").await.is_error(404, "not_found", "route");
    s.get("/vault/object/create").await.is_error(405, "method_not_allowed", "Allow");
    s.send("BREW", "/vault/object/list", "").await.is_error(405, "method_not_allowed", "Allow");
}

#[tokio::test]
async fn keys_are_asked_for_and_weighed() {
    let s = Server::start().await;
    let made = id(&s.create("a", "{}").await.ok());
    let routes: [(&str, String, String, Permission); 9] = [
        ("POST", "create".into(), r#"{"name":"new","data":{}}"#.into(), Permission::Write),
        ("PUT", "update".into(), format!(r#"{{"id":"{made}","data":{{}}}}"#), Permission::Write),
        ("GET", format!("get?id={made}"), String::new(), Permission::Read),
        ("GET", "get-by-name?name=a".into(), String::new(), Permission::Read),
        ("GET", "list".into(), String::new(), Permission::Read),
        ("GET", format!("metadata?id={made}"), String::new(), Permission::Read),
        ("GET", format!("versions?id={made}"), String::new(), Permission::Read),
        ("GET", format!("version?id={made}&version=1"), String::new(), Permission::Read),
        ("DELETE", "delete".into(), format!(r#"{{"id":"{made}"}}"#), Permission::Delete),
    ];
    let all = [Permission::Read, Permission::Write, Permission::Delete, Permission::Keys];
    for (method, path, body, needed) in &routes {
        let path = format!("/vault/object/{path}");
        let send = |key: Option<String>| {
            let (s, path, body) = (&s, path.clone(), body.clone().into_bytes());
            async move { s.send_as(key.as_deref(), method, &path, body).await }
        };
        send(None).await.is_error(401, "unauthorized", "WORKOS_API_KEY");
        send(Some("sk_unknown".into())).await.is_error(401, "unauthorized", "sk_");
        send(Some(String::new())).await.is_error(401, "unauthorized", "sk_");
        let others: Vec<_> = all.into_iter().filter(|p| p != needed).collect();
        send(Some(s.key_with(&others).await)).await.is_error(403, "forbidden", needed.name());
        send(Some(s.key_with(&[*needed]).await)).await.ok();
    }
    // What needs no key: to hear that there is no such route or method.
    s.send_as(None, "GET", "/nowhere", vec![]).await.is_error(404, "not_found", "route");
    s.send_as(None, "PUT", "/vault/object/list", vec![]).await.is_error(405, "method_not_allowed", "");
}

#[tokio::test]
async fn pages_forward_and_back() {
    let s = Server::start().await;
    assert_eq!(
        s.get("/vault/object/list").await.ok(),
        json!({"data": [], "list_metadata": {"before": null, "after": null}})
    );
    let mut ids = Vec::new();
    for n in 0..25 {
        ids.push(id(&s.create(&format!("n{:02}", 24 - n), "{}").await.ok()));
    }
    let page = |path: String| {
        let s = &s;
        async move {
            let page = s.get(&format!("/vault/object/list?{path}")).await.ok();
            let ids: Vec<String> = page["data"].as_array().unwrap().iter().map(id).collect();
            let end = |end: &str| page["list_metadata"][end].as_str().map(str::to_owned);
            (ids, end("before"), end("after"))
        }
    };
    // Default 10, creation order, ends null.
    let (first, before, after) = page(String::new()).await;
    assert_eq!((first.as_slice(), before), (&ids[..10], None));
    let (second, before, after2) = page(format!("after={}", after.clone().unwrap())).await;
    assert_eq!(second, ids[10..20]);
    let (third, before3, end) = page(format!("after={}&limit=10", after2.clone().unwrap())).await;
    assert_eq!((third.as_slice(), end), (&ids[20..], None));
    // Back again, in the same order.
    let (back, before2, after_back) = page(format!("before={}", before3.unwrap())).await;
    assert_eq!((back.as_slice(), &after_back), (&ids[10..20], &after2));
    let (start, none, after_start) = page(format!("before={}", before2.clone().unwrap())).await;
    assert_eq!((start.as_slice(), none, &after_start), (&ids[..10], None, &after));
    assert_eq!(before, before2);
    // A short page before: right before the cursor, not from the start.
    assert_eq!(page(format!("before={}&limit=3", ids[20])).await.0, ids[17..20]);
    assert_eq!(page("limit=100".into()).await.0, ids);
    // A cursor keeps its place when its object goes, both ways.
    s.delete(&ids[9]).await.ok();
    s.delete(&ids[20]).await.ok();
    assert_eq!(page(format!("after={}", ids[9])).await.0, ids[10..20]);
    assert_eq!(page(format!("before={}", ids[20])).await.0, ids[10..20]);
    // Past the end there is nothing, and no way on.
    assert_eq!(page(format!("after={}", ids[24])).await, (vec![], None, None));
    // What comes new comes last.
    let new = id(&s.create("aaa", "{}").await.ok());
    assert_eq!(page(format!("after={}", ids[24])).await.0, [new]);
}

#[tokio::test]
async fn hostile_names_are_names() {
    let s = Server::start().await;
    let long = "n".repeat(1024);
    let names = [
        "..",
        ".",
        "/",
        "/etc/passwd",
        "a//b",
        "//",
        "\0",
        "a\0b",
        "\u{1}\u{1f}\u{7f}",
        "%41",
        "%",
        "a+b",
        "a b",
        ".versions",
        "é",
        "e\u{301}",
        "E",
        "e",
        "'; DROP TABLE objects; --",
        "\"",
        "\\",
        "&name=x",
        "?#",
        "\u{10ffff}",
        "名",
        &long,
    ];
    for name in names {
        s.create(name, &format!(r#"{{"value":{}}}"#, serde_json::to_string(name).unwrap())).await.ok();
    }
    for name in names {
        let encoded: String = name.bytes().map(|b| format!("%{b:02X}")).collect();
        let got = s.get(&format!("/vault/object/get-by-name?name={encoded}")).await.ok();
        assert_eq!((&got["name"], &got["data"]["value"]), (&json!(name), &json!(name)));
    }
    let listed = s.get("/vault/object/list?limit=100").await.ok();
    let listed: Vec<_> = listed["data"].as_array().unwrap().iter().map(|o| o["name"].clone()).collect();
    assert_eq!(listed, names.map(Value::from));
}

#[tokio::test]
async fn what_the_other_dialect_wrote_is_shown_as_data() {
    let s = Server::start().await;
    for (name, value, data) in [
        ("text", "{\"a\": 1}", json!({"value": "{\"a\": 1}"})),
        (
            "bytes",
            "data:application/octet-stream;base64,AP8=",
            json!({"value": "AP8=", "encoding": "base64"}),
        ),
    ] {
        let value = Stored { form: StoredForm::Kv, text: SecretString::new(value.to_owned()) };
        s.service.create("test", Create::new(ObjectName::new(name).unwrap(), &value)).await.unwrap();
        let object = s.get(&format!("/vault/object/get-by-name?name={name}")).await.ok();
        assert_eq!(object["data"], data);
    }
    let id = id(&s.get("/vault/object/get-by-name?name=bytes").await.ok());
    assert_eq!(s.get(&format!("/vault/object/versions?id={id}")).await.ok()["data"][0]["size"], 2);
}

#[tokio::test]
async fn the_largest_value_fits_however_it_is_escaped() {
    let s = Server::start().await;
    let escaped = "\\u0001".repeat(MAX_VALUE);
    s.create("a", &format!(r#"{{"value":"{escaped}"}}"#)).await.ok();
    let object = s.get("/vault/object/get-by-name?name=a").await.ok();
    assert_eq!(object["data"]["value"].as_str().unwrap().len(), MAX_VALUE);
}

#[tokio::test]
async fn any_content_type_or_none_is_taken() {
    let s = Server::start().await;
    let address = s.url.strip_prefix("http://").unwrap();
    for (n, kind) in
        ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"]
            .iter()
            .enumerate()
    {
        let body = format!(r#"{{"name":"n{n}","data":{{}}}}"#);
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST /vault/object/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nauthorization: bearer {}\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            s.key,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}

/// The head of the next answer on this connection, its body read and forgotten.
async fn head_of_answer(stream: &mut tokio::net::TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let byte = stream.read_u8().await.unwrap_or_else(|e| panic!("{e} after {head:?}"));
        head.push(byte.into());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    head
}

#[tokio::test]
async fn a_request_that_is_refused_is_read_to_its_end() {
    let s = Server::start().await;
    let mut stream = tokio::net::TcpStream::connect(s.url.strip_prefix("http://").unwrap()).await.unwrap();
    // "Go on" is what a server says that is going to read the body, which is sent only then.
    for (path, key, status) in [
        ("/vault/object/create", "unknown", "401"),
        ("/vault/v1/keys/rekey", "unknown", "401"),
        ("/nowhere", s.key.as_str(), "404"),
        ("/vault/object/list", s.key.as_str(), "405"),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let go_on = head_of_answer(&mut stream).await;
        assert!(go_on.starts_with("HTTP/1.1 100 "), "{path}: {go_on}");
        stream.write_all(b"{}").await.unwrap();
        let answer = head_of_answer(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
    // The connection is still good.
    let next =
        format!("GET /vault/object/list HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", s.key);
    stream.write_all(next.as_bytes()).await.unwrap();
    assert!(head_of_answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_body_of_more_fields_than_any_route_knows_is_refused() {
    let s = Server::start().await;
    let with = |fields: usize| {
        let fields: Vec<_> = (0..fields).map(|n| format!(r#""unknown-{n}":{n},"#)).collect();
        format!(r#"{{{}"name":"n{}","data":{{"value":"v"}}}}"#, fields.concat(), fields.len())
    };
    s.send("POST", "/vault/object/create", with(20)).await.ok();
    for many in [63, 2000] {
        s.send("POST", "/vault/object/create", with(many)).await.is_error(400, "invalid_request", "fields");
    }
}

#[tokio::test]
async fn many_writers_make_one_history() {
    let s = Server::start().await;
    let made = id(&s.create("a", r#"{"value":"0"}"#).await.ok());
    let updates = (0..40).map(|n| {
        let (s, made) = (&s, &made);
        async move { s.update(made, &format!(r#"{{"value":"{n}"}}"#)).await.ok()["version"].as_u64().unwrap() }
    });
    let mut versions = futures_util::future::join_all(updates).await;
    versions.sort_unstable();
    assert_eq!(versions, (2..=41).collect::<Vec<_>>());
    // Of creates with one name, one succeeds.
    let creates = (0..10).map(|_| s.create("same", "{}"));
    let answers = futures_util::future::join_all(creates).await;
    assert_eq!(answers.iter().filter(|a| a.status == 200).count(), 1);
    assert_eq!(answers.iter().filter(|a| a.status == 409).count(), 9);
}

#[tokio::test]
async fn the_rate_limit_is_hit_announced_and_recovered_from() {
    let clock = ManualClock::new();
    let options = ServeOptions {
        rate_limit: NonZeroU32::new(3),
        clock: Arc::new(clock.clone()),
        ..ServeOptions::default()
    };
    let s = Server::start_with(tempfile::tempdir().unwrap(), options).await;
    for left in [2, 1, 0] {
        let answer = s.get("/vault/object/get-by-name?name=a").await;
        assert_eq!(answer.limits, [Some(3), Some(left), Some(60), None]);
        answer.is_error(404, "not_found", "name");
    }
    clock.advance(Duration::from_secs(17));
    let answer = s.create("a", "{}").await;
    assert_eq!(answer.limits, [Some(3), Some(0), Some(43), Some(43)]);
    answer.is_error(429, "rate_limit_exceeded", "wait 43 s");
    // What is refused for its permission counts; what has no key has no limit, and another key its
    // own.
    let reader = s.key_with(&[Permission::Read]).await;
    let answer = s.send_as(Some(&reader), "POST", "/vault/object/create", vec![]).await;
    assert_eq!(answer.limits, [Some(3), Some(2), Some(60), None]);
    answer.is_error(403, "forbidden", "write");
    assert_eq!(s.send_as(None, "GET", "/vault/object/list", vec![]).await.limits, [None; 4]);
    clock.advance(Duration::from_secs(43));
    let made = s.create("a", "{}").await;
    assert_eq!(made.limits, [Some(3), Some(2), Some(60), None]);
    made.ok();
}

#[tokio::test]
async fn a_server_without_a_rate_limit_says_so() {
    let s = Server::start().await;
    assert_eq!(s.get("/vault/object/list").await.limits, [Some(0), None, None, None]);
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let s = Server::start().await;
    let key = s.key.clone();
    s.create("a", r#"{"value":"kept"}"#).await.ok();
    let before = s.get("/vault/object/get-by-name?name=a").await.ok();
    let s = Server::start_in(s.stop().await, MAX_VALUE).await;
    assert_eq!(s.key, key);
    assert_eq!(s.get("/vault/object/get-by-name?name=a").await.ok(), before);
}

#[tokio::test]
async fn a_client_that_is_still_sending_hears_the_refusal() {
    let s = Server::start().await;
    let big = || vec![b'x'; 8 << 20];
    for _ in 0..5 {
        let unknown = s.send_as(Some("sk_unknown"), "POST", "/vault/object/create", big()).await;
        unknown.is_error(401, "unauthorized", "sk_");
        s.send("POST", "/nowhere", big()).await.is_error(404, "not_found", "route");
        s.send("POST", "/vault/object/list", big()).await.is_error(405, "method_not_allowed", "Allow");
    }
}
