//! The kv dialect on the wire: each operation, each error, paging, hostile names,
//! and what each dialect shows of the other's writes.

use serde_json::{Value, json};
use vaultfs::server::store::Permission;

use crate::support::vault_server::{MAX_VALUE, Server, id};

const KV: &str = "/vault/v1/kv";
const GHOST: &str = "vault_obj_01H1EXAMP1E000000000000000";

fn is_timestamp(value: &Value) -> bool {
    let text = value.as_str().unwrap();
    text.len() == 24 && text.ends_with('Z') && humantime::parse_rfc3339(text).is_ok()
}

fn is_uuid(value: &Value) -> bool {
    let text = value.as_str().unwrap();
    let groups: Vec<_> = text.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

fn encoded(name: &str) -> String {
    name.bytes().map(|b| format!("%{b:02X}")).collect()
}

fn version(object: &Value) -> String {
    object["version_id"].as_str().or(object["metadata"]["version_id"].as_str()).unwrap().to_owned()
}

#[tokio::test]
async fn an_object_lives_and_leaves_nothing() {
    let s = Server::start().await;
    let body = json!({"name": "db/password", "value": "one\n", "key_context": {"org": "o", "env": "é"}});
    let made = s.send("POST", KV, body.to_string()).await.made();
    let object = id(&made);
    assert_eq!(made["context"], json!({"env": "é", "org": "o"}));
    assert!(is_uuid(&made["key_id"]) && is_uuid(&made["version_id"]) && is_timestamp(&made["updated_at"]));
    let environment = made["environment_id"].as_str().unwrap();
    assert!(environment.starts_with("environment_") && environment.len() == 38, "{environment}");
    assert!(made["updated_by"]["id"].as_str().unwrap().starts_with("key_"));
    assert_eq!(made["updated_by"]["name"], "first key");
    assert_eq!(made.as_object().unwrap().len(), 7);

    let by_name = s.get(&format!("{KV}/name/db%2Fpassword")).await.ok();
    assert_eq!(by_name, json!({"id": object, "name": "db/password", "value": "one\n", "metadata": made}));
    assert_eq!(s.get(&format!("{KV}/name/db/password")).await.ok(), by_name, "raw slashes");
    assert_eq!(s.kv_get(&object).await.ok(), by_name);

    let updated = s.kv_update(&object, "two").await.made();
    assert_eq!((id(&updated), &updated["name"]), (object.clone(), &json!("db/password")));
    assert_eq!(updated.as_object().unwrap().len(), 3, "no value: {updated}");
    assert_ne!(version(&updated), version(&made));
    assert_eq!(updated["metadata"]["context"], made["context"]);
    assert_eq!(updated["metadata"]["key_id"], made["key_id"]);
    assert_eq!(s.get(&format!("{KV}/{object}/metadata")).await.ok(), updated);

    let versions = s.get(&format!("{KV}/{object}/versions")).await.ok();
    assert_eq!(versions["list_metadata"], json!({"before": null, "after": null}));
    let rows = versions["data"].as_array().unwrap();
    assert_eq!((&rows[0]["id"], &rows[1]["id"]), (&json!(version(&updated)), &json!(version(&made))));
    assert_eq!((&rows[0]["current_version"], &rows[1]["current_version"]), (&json!(true), &json!(false)));
    assert_eq!((&rows[0]["size"], &rows[1]["size"]), (&json!(3), &json!(4)));
    assert!(rows.iter().all(|row| is_timestamp(&row["created_at"]) && row.as_object().unwrap().len() == 5));
    assert_ne!(rows[0]["etag"], rows[1]["etag"]);

    let deleted = s.send("DELETE", &format!("{KV}/{object}"), "").await.ok();
    assert_eq!(deleted, json!({"name": "db/password", "success": true}));
    for path in [object.clone(), format!("{object}/metadata"), format!("{object}/versions")] {
        s.get(&format!("{KV}/{path}")).await.is_kv_error(404, "not_found", "check the spelling");
    }
    s.get(&format!("{KV}/name/db%2Fpassword")).await.is_kv_error(404, "not_found", "name");
    s.kv_update(&object, "x").await.is_kv_error(404, "not_found", "id");
    s.send("DELETE", &format!("{KV}/{object}"), "").await.is_kv_error(404, "not_found", "id");
    assert_ne!(id(&s.kv_create("db/password", "again").await.made()), object);
}

#[tokio::test]
async fn equal_values_have_equal_etags_in_one_object_only() {
    let s = Server::start().await;
    let (a, b) = (id(&s.kv_create("a", "same").await.made()), id(&s.kv_create("b", "same").await.made()));
    s.kv_update(&a, "same").await.made();
    let etags = async |object: &str| -> Vec<Value> {
        let versions = s.get(&format!("{KV}/{object}/versions")).await.ok();
        versions["data"].as_array().unwrap().iter().map(|row| row["etag"].clone()).collect()
    };
    let (of_a, of_b) = (etags(&a).await, etags(&b).await);
    assert_eq!(of_a[0], of_a[1]);
    assert_ne!(of_a[0], of_b[0]);
    // A plain hash would let anybody test guesses.
    assert_ne!(of_b[0], "51037a4a37730f52c8732586d3aaa316", "not MD5");
}

#[tokio::test]
async fn version_checks_hold() {
    let s = Server::start().await;
    let made = s.kv_create("a", "one").await.made();
    let object = id(&made);
    let put = async |check: Value| {
        let body = json!({"value": "next", "version_check": check}).to_string();
        s.send("PUT", &format!("{KV}/{object}"), body).await
    };
    let second = put(json!(version(&made))).await.made();
    for bad in [version(&made), String::new(), "1".into(), GHOST.into(), "é".into()] {
        put(json!(bad)).await.is_kv_error(409, "conflict", "has changed");
        let path = format!("{KV}/{object}?version_check={}", encoded(&bad));
        s.send("DELETE", &path, "").await.is_kv_error(409, "conflict", "has changed");
    }
    put(json!(7)).await.is_kv_error(400, "invalid_request", "version_check");
    let third = put(Value::Null).await.made();
    let two = format!("{KV}/{object}?version_check={}&version_check={}", version(&second), version(&third));
    s.send("DELETE", &two, "").await.is_kv_error(409, "conflict", "has changed");
    let ghost = format!("{KV}/{GHOST}?version_check={}", version(&third));
    s.send("DELETE", &ghost, "").await.is_kv_error(404, "not_found", "id");
    assert_eq!(s.kv_get(&object).await.ok()["metadata"], third["metadata"]);
    s.send("DELETE", &format!("{KV}/{object}?version_check={}", version(&third)), "").await.ok();
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
async fn every_refusal_is_a_sentence() {
    let s = Server::start().await;
    let made = id(&s.kv_create("a", "v").await.made());
    let bad = "invalid_request";
    for (body, word) in [
        ("", "body"),
        ("{", "JSON"),
        ("[]", "object"),
        (r#"{"value":"v","key_context":{}}"#, "name"),
        (r#"{"name":"b","key_context":{}}"#, "value"),
        (r#"{"name":"b","value":"v"}"#, "key_context"),
        (r#"{"name":7,"value":"v","key_context":{}}"#, "name"),
        (r#"{"name":null,"value":"v","key_context":{}}"#, "name"),
        (r#"{"name":"b","value":{},"key_context":{}}"#, "value"),
        (r#"{"name":"b","value":"\ud800","key_context":{}}"#, "value"),
        (r#"{"name":"b","value":"v","key_context":null}"#, "key_context"),
        (r#"{"name":"b","value":"v","key_context":[]}"#, "key_context"),
        (r#"{"name":"b","value":"v","key_context":{"a":1}}"#, "key_context"),
        (r#"{"name":"b","value":"v","key_context":{"a":"1","a":"2"}}"#, "key_context"),
        (r#"{"name":"b","value":"v","value":"w","key_context":{}}"#, "value"),
    ] {
        s.send("POST", KV, body).await.is_kv_error(400, bad, word);
    }
    for (body, word) in [("", "body"), ("{}", "value"), (r#"{"value":7}"#, "value")] {
        s.send("PUT", &format!("{KV}/{made}"), body).await.is_kv_error(400, bad, word);
    }
    for (query, word) in [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("order=up", "order"),
        ("updatedAfter=yesterday", "updatedAfter"),
        ("updatedAfter=", "updatedAfter"),
        ("updatedAfter=2023-02-29T00:00:00Z", "updatedAfter"),
        ("after=nonsense", "after"),
        ("before=", "before"),
        (&format!("after={GHOST}"), "after"),
        (&format!("after={GHOST}&before={GHOST}"), "after"),
        ("search=%ff", "search"),
    ] {
        s.get(&format!("{KV}?{query}")).await.is_kv_error(400, bad, word);
    }
    s.get(&format!("{KV}/name/%ff")).await.is_kv_error(400, bad, "name");
    s.get(&format!("{KV}/name/%zz")).await.is_kv_error(400, bad, "name");
    for path in [GHOST, "nonsense", "name", "%ff", "name/nobody", "%2F"] {
        s.get(&format!("{KV}/{path}")).await.is_kv_error(404, "not_found", "list the objects");
    }
    s.kv_create("a", "w").await.is_kv_error(409, "conflict", "update it instead");
    for name in [String::new(), "n".repeat(201), "é".repeat(201)] {
        s.kv_create(&name, "v").await.is_kv_error(422, "unprocessable_entity", "name");
    }
    s.kv_create(&"é".repeat(200), "v").await.made();
    let context = |pairs: usize, len: usize| -> Value {
        (0..pairs)
            .map(|n| (format!("k{n}"), Value::from("é".repeat(len))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    for (pairs, len) in [(11, 1), (1, 501)] {
        let body = json!({"name": "c", "value": "v", "key_context": context(pairs, len)});
        s.send("POST", KV, body.to_string()).await.is_kv_error(422, "unprocessable_entity", "key_context");
    }
    let body = json!({"name": "c", "value": "v", "key_context": context(10, 500)});
    assert_eq!(s.send("POST", KV, body.to_string()).await.made()["context"], context(10, 500));
    let long = "v".repeat(MAX_VALUE + 1);
    s.kv_create("d", &long).await.is_kv_error(413, "payload_too_large", "value");
    s.kv_update(&made, &long).await.is_kv_error(413, "payload_too_large", "value");
    let limit = 8 * MAX_VALUE + 64 * 1024;
    s.send("POST", KV, vec![b' '; limit + 1]).await.is_kv_error(413, "payload_too_large", "body");
    for path in ["/vault/v1/nothing", "/vault/v1/kv/", "/vault/v1/kv/name/", "/vault/v1/kv/a/b"] {
        s.get(path).await.is_kv_error(404, "not_found", "route");
    }
}

#[tokio::test]
async fn methods_that_a_path_does_not_take() {
    let s = Server::start().await;
    for (path, allow) in [
        (KV.to_owned(), vec!["GET", "POST"]),
        (format!("{KV}/{GHOST}"), vec!["DELETE", "GET", "PUT"]),
        (format!("{KV}/name/a"), vec!["GET"]),
        ("/vault/v1/keys/rekey".to_owned(), vec!["POST"]),
    ] {
        for method in ["OPTIONS", "PATCH", "TRACE", "BREW"] {
            let answer = s.send_as(None, method, &path, vec![]).await;
            answer.is_kv_error(405, "method_not_allowed", "Allow");
            let mut allowed: Vec<_> = answer.allow.split(", ").flat_map(|m| m.split(',')).collect();
            allowed.sort_unstable();
            assert_eq!(allowed, allow, "{path}");
        }
        let head = s.send("HEAD", &path, "").await;
        assert_eq!((head.status.as_u16(), head.text.as_str()), (405, ""), "{path}");
        assert!(head.allow.contains(allow[0]) && !head.allow.contains("HEAD"), "{path}: {}", head.allow);
    }
    let head = s.send("HEAD", "/vault/object/list", "").await;
    assert_eq!((head.status.as_u16(), head.allow.as_str()), (405, "GET"));
    s.send("OPTIONS", "/vault/object/list", "").await.is_error(405, "method_not_allowed", "Allow");
    assert_eq!(s.send("HEAD", "/nowhere", "").await.status.as_u16(), 404);
}

#[tokio::test]
async fn keys_are_asked_for_and_weighed() {
    let s = Server::start().await;
    let made = id(&s.kv_create("a", "v").await.made());
    let all = [Permission::Read, Permission::Write, Permission::Delete, Permission::Keys];
    let object = format!("{KV}/{made}");
    let blob =
        s.send("POST", "/vault/v1/keys/data-key", r#"{"context":{}}"#).await.ok()["encrypted_keys"].clone();
    let context = json!({"context": {}}).to_string();
    for (method, path, body, needed) in [
        ("POST", KV, r#"{"name":"b","value":"","key_context":{}}"#, Permission::Write),
        ("PUT", &object, r#"{"value":"w"}"#, Permission::Write),
        ("GET", KV, "", Permission::Read),
        ("GET", &object, "", Permission::Read),
        ("GET", &format!("{KV}/name/a"), "", Permission::Read),
        ("GET", &format!("{object}/metadata"), "", Permission::Read),
        ("GET", &format!("{object}/versions"), "", Permission::Read),
        ("POST", "/vault/v1/keys/data-key", &context, Permission::Keys),
        ("POST", "/vault/v1/keys/decrypt", &json!({"keys": blob}).to_string(), Permission::Keys),
        (
            "POST",
            "/vault/v1/keys/rekey",
            &json!({"encrypted_keys": blob, "context": {}}).to_string(),
            Permission::Keys,
        ),
        ("DELETE", &object, "", Permission::Delete),
    ] {
        let send = async |key: Option<&str>| s.send_as(key, method, path, body.into()).await;
        send(None).await.is_kv_error(401, "unauthorized", "WORKOS_API_KEY");
        send(Some("sk_unknown")).await.is_kv_error(401, "unauthorized", "sk_");
        let others: Vec<_> = all.into_iter().filter(|p| *p != needed).collect();
        send(Some(&s.key_with(&others).await)).await.is_kv_error(403, "forbidden", needed.name());
        let answer = send(Some(&s.key_with(&[needed]).await)).await;
        assert!(answer.status.is_success(), "{method} {path}: {answer:?}");
    }
}

#[tokio::test]
async fn who_wrote_is_named_also_when_revoked() {
    let s = Server::start().await;
    let object = id(&s.kv_create("a", "v").await.made());
    let key = s.key_with(&[Permission::Write]).await;
    let path = format!("{KV}/{object}");
    let updated = s.send_as(Some(&key), "PUT", &path, r#"{"value":"w"}"#.into()).await.made();
    let by = &updated["metadata"]["updated_by"];
    assert_eq!(by["name"], "test");
    s.service.revoke_key(by["id"].as_str().unwrap()).await.unwrap();
    let after = s.kv_get(&object).await.ok()["metadata"]["updated_by"].clone();
    assert_eq!(after, json!({"id": by["id"], "name": by["id"]}));
}

#[tokio::test]
async fn pages_both_ways_in_both_orders() {
    let s = Server::start().await;
    assert_eq!(s.get(KV).await.ok(), json!({"data": [], "list_metadata": {"before": null, "after": null}}));
    let mut ids = Vec::new();
    for n in 0..25 {
        ids.push(id(&s.kv_create(&format!("n{:02}", 24 - n), "v").await.made()));
    }
    let page = async |query: String| {
        let page = s.get(&format!("{KV}?{query}")).await.ok();
        let ids: Vec<String> = page["data"].as_array().unwrap().iter().map(id).collect();
        let end = |end: &str| page["list_metadata"][end].as_str().map(str::to_owned);
        (ids, end("before"), end("after"))
    };
    assert_eq!(page(String::new()).await.0, ids[..10]);
    assert_eq!(page("limit=1000".into()).await.0, ids);
    for order in ["asc", "desc"] {
        let mut all = ids.clone();
        if order == "desc" {
            all.reverse();
        }
        let (first, before, after) = page(format!("order={order}")).await;
        assert_eq!((first.as_slice(), before), (&all[..10], None));
        let (second, _, after) = page(format!("order={order}&after={}", after.unwrap())).await;
        assert_eq!(second, all[10..20]);
        let (third, before, end) = page(format!("order={order}&after={}", after.unwrap())).await;
        assert_eq!((third.as_slice(), end), (&all[20..], None));
        let (back, before, after) = page(format!("order={order}&before={}", before.unwrap())).await;
        assert_eq!((back.as_slice(), after.as_ref()), (&all[10..20], Some(&all[19])));
        let (start, none, _) = page(format!("order={order}&before={}", before.unwrap())).await;
        assert_eq!((start.as_slice(), none), (&all[..10], None));
        assert_eq!(page(format!("order={order}&before={}&limit=3", all[20])).await.0, all[17..20]);
    }
    let rows = s.get(&format!("{KV}?limit=2")).await.ok()["data"].clone();
    let row = rows[0].as_object().unwrap();
    assert!(row.len() == 3 && row["name"] == "n24" && is_timestamp(&row["updated_at"]), "{row:?}");
}

#[tokio::test]
async fn listings_are_searched_and_narrowed_to_changes() {
    let s = Server::start().await;
    for name in ["app/a", "app/b", "100%", "web/app"] {
        s.kv_create(name, "v").await.made();
    }
    let names = async |query: &str| -> Vec<String> {
        let page = s.get(&format!("{KV}?{query}")).await.ok();
        page["data"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("search=app").await, ["app/a", "app/b", "web/app"]);
    assert_eq!(names("search=app%2F&order=desc").await, ["app/b", "app/a"]);
    assert_eq!(names("search=%25").await, ["100%"]);
    assert_eq!(names("search=App").await, [""; 0]);
    assert_eq!(names("search=").await.len(), 4);

    let all = s.get(KV).await.ok();
    let last =
        all["data"].as_array().unwrap().iter().map(|row| row["updated_at"].as_str().unwrap()).max().unwrap();
    let since = format!("updatedAfter={}", encoded(last));
    assert_eq!(names(&since).await, [""; 0], "after means after");
    // The next write may fall into the same millisecond; one of those that follow does not.
    let object = id(&all["data"][1]);
    let changed = async || loop {
        let updated = s.kv_update(&object, "w").await.made();
        if updated["metadata"]["updated_at"].as_str().unwrap() > last {
            return updated;
        }
    };
    changed().await;
    assert_eq!(names(&since).await, ["app/b"]);
    assert_eq!(names(&format!("{since}&search=web")).await, [""; 0]);
    assert_eq!(names("updatedAfter=2000-01-01T00:00:00%2B02:00").await.len(), 4);
    assert_eq!(names("updatedAfter=2000-01-01T00:00:00.123456+02:00").await.len(), 4);
    assert_eq!(names("updatedAfter=9999-01-01T00:00:00Z").await.len(), 0);
    // As the official Node SDK puts it.
    assert_eq!(names(&since.replacen("updatedAfter", "updated_after", 1)).await, ["app/b"]);
    let date = "Fri+Jan+01+9999+00%3A00%3A00+GMT%2B0000+%28Coordinated+Universal+Time%29";
    for name in ["updatedAfter", "updated_after"] {
        assert_eq!(names(&format!("{name}={date}")).await.len(), 0);
        s.get(&format!("{KV}?{name}=yesterday")).await.is_kv_error(400, "invalid_request", "updatedAfter");
    }
}

#[tokio::test]
async fn hostile_names_are_names() {
    let s = Server::start().await;
    let long = "n".repeat(200);
    let names = [
        "/",
        "/etc/passwd",
        "a//b",
        "//",
        "\0",
        "a\0b",
        "\u{1}\u{1f}\u{7f}",
        "%41",
        "%",
        "%2F",
        "a+b",
        "a b",
        "dir/a b#1?ü",
        "name",
        "name/name",
        "metadata",
        "x/metadata",
        "x/versions",
        "kv",
        ".hidden",
        "a/../b%2f",
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
        s.kv_create(name, name).await.made();
    }
    for name in names {
        // URL libraries fold dot segments, encoded or not; in one segment with others they stay.
        let got = s.get(&format!("{KV}/name/{}", encoded(name))).await.ok();
        assert_eq!((&got["name"], &got["value"]), (&json!(name), &json!(name)));
    }
    // As the older SDKs send them: the slashes raw, the rest encoded.
    for (path, name) in [
        ("/etc/passwd", "/etc/passwd"),
        ("a//b", "a//b"),
        ("dir/a%20b%231%3F%C3%BC", "dir/a b#1?ü"),
        ("x/versions", "x/versions"),
        ("a+b", "a+b"),
    ] {
        assert_eq!(s.get(&format!("{KV}/name/{path}")).await.ok()["name"], name);
    }
    // The two names that no path carries are found by listing, and read by id.
    for name in [".", ".."] {
        s.kv_create(name, "dots").await.made();
        let page = s.get(&format!("{KV}?limit=100&order=desc")).await.ok();
        assert_eq!(page["data"][0]["name"], name);
        assert_eq!(s.kv_get(&id(&page["data"][0])).await.ok()["value"], "dots");
    }
}

#[tokio::test]
async fn each_dialect_shows_what_the_other_wrote() {
    let s = Server::start().await;
    let b64 = "data:application/octet-stream;base64,";
    for (n, (value, data, size)) in [
        ("plain\n".to_owned(), json!({"value": "plain\n"}), 6),
        (r#"{"a": 1}"#.to_owned(), json!({"value": "{\"a\": 1}"}), 8),
        (String::new(), json!({"value": ""}), 0),
        ("a\0b".to_owned(), json!({"value": "YQBi", "encoding": "base64"}), 3),
        (format!("{b64}AP8="), json!({"value": "AP8=", "encoding": "base64"}), 2),
        (format!("{b64}not base64"), json!({"value": format!("{b64}not base64")}), 47),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("kv{n}");
        let made = id(&s.kv_create(&name, &value).await.made());
        let object = s.get(&format!("/vault/object/get?id={made}")).await.ok();
        assert_eq!((&object["data"], &object["name"]), (&data, &json!(name)));
        assert_eq!(s.kv_get(&made).await.ok()["value"], value, "its own view is verbatim");
        for versions in [format!("{KV}/{made}/versions"), format!("/vault/object/versions?id={made}")] {
            assert_eq!(s.get(&versions).await.ok()["data"][0]["size"], size);
        }
    }
    for (n, (data, value)) in [
        (r#"{"value":"line\n"}"#, "line\n".to_owned()),
        (r#"{"encoding":"base64","value":"AP8="}"#, format!("{b64}AP8=")),
        (
            &format!(r#"{{"value":"{b64}AP8="}}"#),
            format!("{b64}ZGF0YTphcHBsaWNhdGlvbi9vY3RldC1zdHJlYW07YmFzZTY0LEFQOD0="),
        ),
        (r#"{"b":1.0,"a":[]}"#, "{\n  \"b\": 1.0,\n  \"a\": []\n}\n".to_owned()),
        ("{}", "{}\n".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let made = s.create(&format!("object{n}"), data).await.ok();
        let shown = s.kv_get(&id(&made)).await.ok();
        assert_eq!(shown["value"], value);
        assert_eq!(shown["metadata"]["context"], json!({}));
        // Writing it in kv makes it text; the history keeps what was.
        s.kv_update(&id(&made), &value).await.made();
        let old = s.get(&format!("/vault/object/version?id={}&version=1", id(&made))).await.text;
        assert!(old.contains(&format!("\"data\":{data},")), "{old}");
        let now = s.get(&format!("/vault/object/get?id={}", id(&made))).await.ok();
        assert_eq!(now["version"], 2);
        let text = json!({"value": value});
        let expected = if n == 0 || n > 2 { text } else { now["data"].clone() };
        assert_eq!(now["data"], expected);
    }
    // One name space, one history.
    s.kv_create("object0", "x").await.is_kv_error(409, "conflict", "exists");
    s.create("kv0", "{}").await.is_error(409, "conflict", "exists");
    assert_eq!(s.get(&format!("{KV}?limit=100")).await.ok()["data"].as_array().unwrap().len(), 11);
}

#[tokio::test]
async fn the_largest_value_fits_however_it_is_escaped() {
    let s = Server::start().await;
    let escaped = "\\u0001".repeat(MAX_VALUE);
    s.send("POST", KV, format!(r#"{{"name":"a","value":"{escaped}","key_context":{{}}}}"#)).await.made();
    let value = s.get(&format!("{KV}/name/a")).await.ok()["value"].clone();
    assert_eq!(value, "\u{1}".repeat(MAX_VALUE));
}
