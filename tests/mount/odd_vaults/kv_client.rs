//! The kv dialect against what a live service may answer and ours does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use vaultfs::vault::client::checked::CheckedVault;
use vaultfs::vault::client::kv::KvVault;
use vaultfs::vault::{Content, ErrorKind, ListQuery, ObjectId, ObjectName, Vault, VersionInfo, VersionTag};

use super::client::{assert_clean, call, config};
use crate::support::canned::{Canned, CannedServer};

const SECRET: &str = "canary value 5d41402a";
const OBJECT: &str = r#"{"id":"u-1","name":"a/b","value":"canary value 5d41402a","new":{},"metadata":{
    "id":"u-1","environment_id":"e","key_id":"k","updated_by":{"id":"x","name":"y"},"context":{},
    "updated_at":"2024-06-15T10:30:00Z","version_id":"v-2","newer":[1]}}"#;
const METADATA: &str = r#"{"id":"u-1","updated_at":"2024-06-15T10:30:00Z","version_id":"v-2","context":{}}"#;

async fn setup(answers: Vec<Canned>) -> (CannedServer, KvVault) {
    with_context(answers, BTreeMap::new()).await
}

async fn with_context(answers: Vec<Canned>, context: BTreeMap<String, String>) -> (CannedServer, KvVault) {
    let server = CannedServer::start(answers).await;
    let config = config(&server.url);
    let max_size = config.max_size;
    let vault = KvVault::new(Arc::new(config.transport().unwrap()), max_size, context);
    (server, vault)
}

fn name() -> ObjectName {
    ObjectName::new("a/b").unwrap()
}

fn id() -> ObjectId {
    ObjectId::new("u-1")
}

fn secret() -> Content {
    Content::plain(SECRET)
}

fn body_of(request: &str) -> serde_json::Value {
    serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn header(request: &str, name: &str) -> Option<String> {
    let head = request.split_once("\r\n\r\n").unwrap().0;
    head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
}

#[tokio::test]
async fn names_and_ids_are_one_segment_each() {
    let (server, vault) = setup(vec![Canned::json(200, OBJECT)]).await;
    for (name, path) in [
        ("a b/..?&#%+ü\0", "a%20b%2F..%3F%26%23%25%2B%C3%BC%00"),
        ("dir/a b#1?ü", "dir%2Fa%20b%231%3F%C3%BC"),
        ("...", "..."),
        ("..%2F", "..%252F"),
        (".a", ".a"),
        ("%2e%2e", "%252e%252e"),
        ("/", "%2F"),
        ("\\", "%5C"),
    ] {
        let object = vault.get_by_name(&call(), &ObjectName::new(name).unwrap()).await.unwrap();
        assert_eq!(object.content, secret());
        assert_eq!((object.meta.id, object.meta.version), (id(), VersionTag::new("v-2")));
        let seen = server.seen().pop().unwrap();
        assert!(seen.starts_with(&format!("GET /vault/v1/kv/name/{path} HTTP/1.1\r\n")), "{seen}");
    }
    vault.get(&call(), &ObjectId::new("../x")).await.unwrap();
    assert!(server.seen().pop().unwrap().starts_with("GET /vault/v1/kv/..%2Fx HTTP/1.1\r\n"));
    let before = server.seen().len();
    for folded in ["", ".", ".."].map(ObjectId::new) {
        let e = vault.get(&call(), &folded).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::NotFound);
        assert_eq!(vault.delete(&call(), &folded, None).await.unwrap_err().kind, ErrorKind::NotFound);
    }
    assert_eq!(server.seen().len(), before, "no other route is hit by accident");
}

#[tokio::test]
async fn dot_and_dot_dot_are_found_by_listing() {
    let pages = vec![
        Canned::json(200, r#"{"data":[{"id":"1","name":"a.b"}],"list_metadata":{"after":"c"}}"#),
        Canned::json(200, r#"{"data":[{"id":"2","name":".."},{"id":"u-1","name":"."}]}"#),
        Canned::json(200, &OBJECT.replace("a/b", ".")),
    ];
    let (server, vault) = setup(pages).await;
    let vault = CheckedVault::new(Arc::new(vault));
    vault.get_by_name(&call(), &ObjectName::new(".").unwrap()).await.unwrap();
    let seen = server.seen();
    assert!(seen[0].starts_with("GET /vault/v1/kv?limit=100&order=asc&search=. "), "{}", seen[0]);
    assert!(seen[1].contains("&after=c"), "{}", seen[1]);
    assert!(seen[2].starts_with("GET /vault/v1/kv/u-1 "), "{}", seen[2]);
    let (_server, vault) = setup(vec![Canned::json(200, r#"{"data":[]}"#)]).await;
    let vault = CheckedVault::new(Arc::new(vault));
    let e = vault.get_by_name(&call(), &ObjectName::new("..").unwrap()).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn writes_send_what_the_sdks_send() {
    let (server, vault) =
        setup(vec![Canned::json(201, METADATA), Canned::json(201, OBJECT), Canned::json(200, "{}")]).await;
    let made = vault.create(&call(), &name(), &Content::plain("x\"y\n")).await.unwrap();
    assert_eq!((made.name, made.id, made.version), (name(), id(), VersionTag::new("v-2")));
    vault.update(&call(), &id(), &Content::plain(b"\xff".to_vec()), Some(&made_tag())).await.unwrap();
    vault.delete(&call(), &id(), Some(&made_tag())).await.unwrap();
    let seen = server.seen();
    assert!(seen[0].starts_with("POST /vault/v1/kv "));
    assert!(header(&seen[0], "idempotency-key").is_some());
    let sent = serde_json::json!({"name": "a/b", "key_context": {}, "value": "x\"y\n"});
    assert_eq!(body_of(&seen[0]), sent);
    assert!(seen[1].starts_with("PUT /vault/v1/kv/u-1 "));
    let sent =
        serde_json::json!({"value": "data:application/octet-stream;base64,/w==", "version_check": "v-2"});
    assert_eq!(body_of(&seen[1]), sent);
    assert!(seen[2].starts_with("DELETE /vault/v1/kv/u-1?version_check=v-2 "));
    assert!(seen[1..].iter().all(|r| header(r, "idempotency-key").is_none()));
}

fn made_tag() -> VersionTag {
    VersionTag::new("v-2")
}

#[tokio::test]
async fn a_context_is_sent_and_its_absence_is_explained() {
    let refused = Canned::json(422, r#"{"message":"canary","code":"context_required"}"#);
    let context = BTreeMap::from([("org".to_owned(), "o\"1".to_owned())]);
    let (server, vault) = with_context(vec![refused.clone()], context).await;
    let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
    assert_eq!(body_of(&server.seen()[0])["key_context"], serde_json::json!({"org": "o\"1"}));
    assert!(e.message.contains("context_required") && !e.message.contains("--key-context"), "{e}");
    let (_server, vault) = setup(vec![refused]).await;
    let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::Invalid);
    assert!(e.message.contains("--key-context K=V"), "{e}");
    assert_clean(&e);
}

#[tokio::test]
async fn a_create_is_repeated_with_its_key() {
    for broken in [Canned::Reset, Canned::json(500, "{}"), Canned::answer(503, &[], "")] {
        let (server, vault) = setup(vec![broken.clone(), broken.clone(), Canned::json(201, METADATA)]).await;
        vault.create(&call(), &name(), &secret()).await.unwrap();
        let keys: Vec<_> = server.seen().iter().map(|r| header(r, "idempotency-key").unwrap()).collect();
        assert!(keys.len() == 3 && keys.iter().all(|k| *k == keys[0]), "{keys:?}");
        vault.create(&call(), &name(), &secret()).await.unwrap();
        let other = header(server.seen().last().unwrap(), "idempotency-key").unwrap();
        assert_ne!(other, keys[0], "each create has its own");

        // A service that knows no such keys refuses what it did itself: the caller has to look.
        let (server, vault) = setup(vec![broken.clone(), Canned::json(409, "{}")]).await;
        let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied, server.seen().len()), (ErrorKind::AlreadyExists, true, 2));
        let (server, vault) = setup(vec![broken, Canned::answer(429, &["Retry-After: 60"], "")]).await;
        let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied, server.seen().len()), (ErrorKind::RateLimited, true, 2));
    }
    let (_server, vault) = setup(vec![Canned::json(409, "{}")]).await;
    let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
    assert_eq!((e.kind, e.maybe_applied), (ErrorKind::AlreadyExists, false));
    let (server, vault) = setup(vec![Canned::Reset]).await;
    let e = vault.update(&call(), &id(), &secret(), None).await.unwrap_err();
    assert_eq!((e.maybe_applied, server.seen().len()), (true, 1), "an update has no key");
}

#[tokio::test]
async fn a_version_without_id_is_told_by_its_time_and_never_checked_for() {
    for metadata in [
        r#"{"id":"u-1","updated_at":"2024-06-15T10:30:00Z","version_id":null}"#,
        r#"{"id":"u-1","updated_at":"2024-06-15T10:30:00Z"}"#,
        r#"{"id":"u-1","updated_at":"2024-06-15T10:30:00Z","version_id":""}"#,
    ] {
        let object = format!(r#"{{"id":"u-1","name":"n","value":"x","metadata":{metadata}}}"#);
        let versions =
            r#"{"data":[{"id":"v-2","created_at":"2024-06-15T10:30:00Z","current_version":true}]}"#;
        let answers = vec![
            Canned::json(201, metadata),
            Canned::json(201, &object),
            Canned::json(200, "{}"),
            Canned::json(200, versions),
            Canned::json(200, &object),
        ];
        let (server, vault) = setup(answers).await;
        let made = vault.create(&call(), &name(), &secret()).await.unwrap();
        let again = vault.update(&call(), &id(), &secret(), Some(&made.version)).await.unwrap();
        assert_eq!(again.version, made.version);
        vault.delete(&call(), &id(), Some(&made.version)).await.unwrap();
        assert!(body_of(&server.seen()[1]).get("version_check").is_none());
        assert!(server.seen()[2].starts_with("DELETE /vault/v1/kv/u-1 "));
        let info = vault.versions(&call(), &id(), None).await.unwrap().remove(0);
        let read = vault.version(&call(), &id(), &info).await.unwrap();
        assert_eq!((read.meta.version, read.content), (VersionTag::new("v-2"), Content::plain("x")));
    }
}

#[tokio::test]
async fn missing_fields_are_tolerated_where_it_makes_sense() {
    let answers = vec![
        Canned::json(200, r#"{"value":"x","metadata":{"id":"u-1","version_id":"v-2"}}"#),
        Canned::json(200, r#"{"id":"u-1","name":"a/b","value":"x","metadata":{"version_id":"v-2"}}"#),
        Canned::json(200, r#"{"data":[{"id":"1","name":"n","updated_at":null},{"id":"2"},{"name":""},{}]}"#),
        Canned::json(200, r#"{"data":[],"list_metadata":null}"#),
        Canned::json(200, r#"{"data":[{"id":"1","name":"n"}],"list_metadata":{"after":"","before":"x"}}"#),
    ];
    let (_server, vault) = setup(answers).await;
    for _ in 0..2 {
        let object = vault.get_by_name(&call(), &name()).await.unwrap();
        assert_eq!((object.meta.name, object.meta.id, object.meta.version), (name(), id(), made_tag()));
        assert_eq!(object.meta.updated_at, std::time::UNIX_EPOCH);
    }
    for count in [1, 0, 1] {
        let page = vault.list(&call(), &ListQuery::first()).await.unwrap();
        assert_eq!((page.items.len(), page.next), (count, None));
        assert!(page.items.iter().all(|s| s.version.is_none() && s.updated_at.is_none()));
    }
}

#[tokio::test]
async fn nonsense_is_a_bad_answer() {
    let html = "<html>canary value 5d41402a</html>";
    let metadata = r#""metadata":{"version_id":"v"}"#;
    let object = |members: &str| Canned::json(200, &format!("{{{members}}}"));
    for answer in [
        Canned::answer(200, &["Content-Type: text/html"], html),
        Canned::answer(200, &[], ""),
        object(""),
        object(r#""id":"i","name":"n","value":"canary""#),
        object(&format!(r#""id":"i","name":"n",{metadata}"#)),
        object(&format!(r#""id":"i","name":"n","value":null,{metadata}"#)),
        object(&format!(r#""id":"i","name":"n","value":{{"canary":1}},{metadata}"#)),
        object(&format!(r#""id":"i","name":"n","value":7,{metadata}"#)),
        object(&format!(r#""id":"i","name":"n","value":"canary\ud800",{metadata}"#)),
        object(&format!(r#""id":7,"name":"n","value":"canary",{metadata}"#)),
        object(&format!(r#""name":"n","value":"canary",{metadata}"#)),
        object(&format!(r#""id":"i","name":"","value":"canary",{metadata}"#)),
        object(r#""id":"i","name":"n","value":"canary","metadata":{}"#),
        Canned::answer(404, &["Content-Type: text/html"], html),
        Canned::answer(403, &[], html),
        Canned::answer(302, &["Location: http://127.0.0.1:1/canary"], ""),
    ] {
        let (server, vault) = setup(vec![answer.clone()]).await;
        let e = vault.get_by_name(&call(), &name()).await.unwrap_err();
        assert_eq!((e.kind, server.seen().len()), (ErrorKind::BadAnswer, 1), "{answer:?}: {e}");
        assert_clean(&e);
    }
    let long = format!(r#""id":"i","name":"n","value":"{}",{metadata}"#, "x".repeat(64 * 1024 + 1));
    let (_server, vault) = setup(vec![object(&long)]).await;
    assert_eq!(vault.get(&call(), &id()).await.unwrap_err().kind, ErrorKind::TooLarge);
}

#[tokio::test]
async fn error_bodies_of_either_shape_are_understood() {
    for body in [
        r#"{"error":"canary","message":"canary","code":"bad_limit"}"#,
        r#"{"message":"canary","code":"bad_limit"}"#,
    ] {
        let (_server, vault) = setup(vec![Canned::json(400, body)]).await;
        let e = vault.list(&call(), &ListQuery::first()).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::Invalid);
        assert!(e.message.contains("bad_limit"), "{e}");
        assert_clean(&e);
    }
    for body in [r#"{"error":"canary"}"#, "[]", ""] {
        let (_server, vault) = setup(vec![Canned::json(422, body)]).await;
        let e = vault.list(&call(), &ListQuery::first()).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::Invalid);
        assert!(e.message.contains("status 422"), "{e}");
        assert_clean(&e);
    }
    for (status, kind) in
        [(403, ErrorKind::Forbidden), (500, ErrorKind::Server), (429, ErrorKind::RateLimited)]
    {
        let body = r#"{"message":"canary","code":"canary"}"#;
        let (_server, vault) = setup(vec![Canned::answer(status, &["Retry-After: 99"], body)]).await;
        let e = vault.update(&call(), &id(), &secret(), None).await.unwrap_err();
        assert_eq!((e.kind, e.request_id.as_ref()), (kind, None), "no header is needed");
        assert_clean(&e);
    }
    let (_server, vault) = setup(vec![Canned::json(409, "{}")]).await;
    let e = vault.delete(&call(), &id(), Some(&made_tag())).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::VersionMismatch);
}

#[tokio::test]
async fn listings_ask_for_what_the_query_says_and_check_what_comes() {
    let page = r#"{"data":[{"id":"1","name":"db/x"},{"id":"2","name":"DB/y"},{"id":"3","name":"other"}]}"#;
    let (server, vault) = setup(vec![Canned::json(200, page)]).await;
    let time = std::time::UNIX_EPOCH + Duration::from_micros(1_705_314_600_250_999);
    let query = ListQuery {
        search: Some("db/ &".into()),
        updated_after: Some(time),
        after: Some("c=1".into()),
        ..ListQuery::first()
    };
    assert_eq!(vault.list(&call(), &query).await.unwrap().items, []);
    let asked = "GET /vault/v1/kv?limit=100&order=asc&after=c%3D1&search=db%2F+%26&\
                 updatedAfter=2024-01-15T10%3A30%3A00.250Z ";
    assert!(server.seen()[0].starts_with(asked), "{}", server.seen()[0]);
    let search = |text: &str| ListQuery { search: Some(text.into()), ..ListQuery::first() };
    let found = vault.list(&call(), &search("db/")).await.unwrap().items;
    assert_eq!(found.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["db/x"], "and only that");
    vault.list(&call(), &search("{\"value\":1}/")).await.unwrap();
    assert!(!server.seen()[2].contains("search"), "JSON would be a search by structure");
    for odd in [std::time::UNIX_EPOCH - Duration::from_secs(1), time + Duration::from_secs(1 << 40)] {
        let query = ListQuery { updated_after: Some(odd), ..ListQuery::first() };
        vault.list(&call(), &query).await.unwrap();
    }
}

fn numbers(history: &[VersionInfo]) -> Vec<(u64, &str, bool)> {
    history.iter().map(|v| (v.number, v.tag.as_str(), v.current)).collect()
}

#[tokio::test]
async fn versions_are_oldest_first_in_whatever_order_they_come() {
    let version = |id: &str, second: u32, current: bool| {
        format!(
            r#"{{"id":"{id}","created_at":"2024-06-15T10:30:0{second}Z","size":3,"current_version":{current}}}"#
        )
    };
    let (a, b, c) = (version("a", 1, false), version("b", 1, false), version("c", 1, true));
    let later = version("c", 2, true);
    let expected = [(1, "a", false), (2, "b", false), (3, "c", true)];
    for data in [
        format!("{a},{b},{c}"),
        format!("{c},{b},{a}"),
        format!("{a},{b},{later}"),
        format!("{later},{b},{a}"),
        format!("{b},{later},{}", version("a", 0, false)),
        r#"{"id":"c","current_version":true},{"id":"b"},{"id":"a"}"#.to_owned(),
        r#"{"id":"a"},{"id":"b"},{"id":"c"},{"id":null},{}"#.to_owned(),
    ] {
        let (_server, vault) = setup(vec![Canned::json(200, &format!(r#"{{"data":[{data}]}}"#))]).await;
        let history = vault.versions(&call(), &id(), None).await.unwrap();
        assert_eq!(numbers(&history), expected, "{data}");
    }
    let (_server, vault) = setup(vec![Canned::json(200, r#"{"data":[]}"#)]).await;
    assert_eq!(vault.versions(&call(), &id(), None).await.unwrap(), []);
}

#[tokio::test]
async fn a_history_whose_cursors_do_not_move_is_read_once() {
    let same = r#"{"data":[{"id":"v-1"},{"id":"v-2","current_version":true}],"list_metadata":{"after":"c"}}"#;
    let (server, vault) = setup(vec![Canned::json(200, same)]).await;
    let history = vault.versions(&call(), &id(), None).await.unwrap();
    assert_eq!(numbers(&history), [(1, "v-1", false), (2, "v-2", true)]);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn old_values_are_not_to_be_had() {
    let versions = r#"{"data":[{"id":"v-1","created_at":"2024-06-15T10:29:00Z","size":3},
        {"id":"v-2","created_at":"2024-06-15T10:30:00Z","current_version":true}],"list_metadata":{}}"#;
    let (server, vault) = setup(vec![Canned::json(200, versions), Canned::json(200, OBJECT)]).await;
    let history = vault.versions(&call(), &id(), None).await.unwrap();
    let e = vault.version(&call(), &id(), &history[0]).await.unwrap_err();
    assert_eq!((e.kind, server.seen().len()), (ErrorKind::Unsupported, 1), "that is known without asking");
    assert_eq!(vault.version(&call(), &id(), &history[1]).await.unwrap().content, secret());

    let newer = OBJECT.replace("v-2", "v-3");
    for (tag, kind) in [("v-1", ErrorKind::Unsupported), ("v-9", ErrorKind::NotFound)] {
        let answers = vec![Canned::json(200, &newer), Canned::json(200, versions)];
        let (_server, vault) = setup(answers).await;
        let was_current = VersionInfo { tag: VersionTag::new(tag), ..history[1].clone() };
        assert_eq!(vault.version(&call(), &id(), &was_current).await.unwrap_err().kind, kind, "{tag}");
    }
}
