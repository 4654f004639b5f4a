//! The client against answers that a vault should never give, and against those it may.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vaultfs::clock::{Clock, ManualClock, SystemClock};
use vaultfs::secret::SecretString;
use vaultfs::vault::client::api_key::ApiKey;
use vaultfs::vault::client::object::ObjectVault;
use vaultfs::vault::client::retry::Policy;
use vaultfs::vault::client::tls::TlsFiles;
use vaultfs::vault::client::{HttpConfig, Opened, Target, api_key, is_loopback, open};
use vaultfs::vault::{
    Call, Content, Dialect, Error, ErrorKind, Form, ListQuery, ObjectId, ObjectName, Priority, Result, Vault,
    VersionTag,
};

use crate::support::canned::{Canned, CannedServer};

const KEY: &str = "sk_test_canary_key";
const SECRET: &str = "canary value 5d41402a";

const OBJECT: &str = r#"{"id":"vault_obj_1","name":"a/b","data":{"value":"canary value 5d41402a"},
    "created_at":"2024-01-15T10:30:00.000Z","updated_at":"2024-01-20T14:00:00.000Z","version":2,"new":[1]}"#;
const META: &str = r#"{"id":"vault_obj_1","name":"a/b","updated_at":"2024-01-20T14:00:00.000Z","version":2}"#;

pub(super) fn config(url: &str) -> HttpConfig {
    HttpConfig {
        target: Target::Url(url.to_owned()),
        tls: Arc::default(),
        key: Arc::new(ApiKey::new(SecretString::new(KEY.into()), None, None)),
        clock: Arc::new(SystemClock),
        max_size: 64 * 1024,
        policy: Policy { base: Duration::from_millis(1), ..Policy::default() },
        listeners: None,
        key_context: BTreeMap::new(),
    }
}

fn vault_with(config: HttpConfig) -> ObjectVault {
    let max_size = config.max_size;
    ObjectVault::new(Arc::new(config.transport().unwrap()), max_size)
}

async fn setup(answers: Vec<Canned>) -> (CannedServer, ObjectVault) {
    let server = CannedServer::start(answers).await;
    let vault = vault_with(config(&server.url));
    (server, vault)
}

pub(super) fn call() -> Call {
    Call::foreground(Instant::now() + Duration::from_secs(20))
}

fn name() -> ObjectName {
    ObjectName::new("a/b").unwrap()
}

fn id() -> ObjectId {
    ObjectId::new("vault_obj_1")
}

fn secret() -> Content {
    Content::plain(SECRET)
}

/// And no connection is left over that a request could be lost on.
const META_CLOSED: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 81\r\n\r\n\
    {\"id\":\"vault_obj_1\",\"name\":\"a/b\",\"updated_at\":\"2024-01-20T14:00:00Z\",\"version\":2}";

/// The text of an error, in every way it can be shown, holds neither value nor key.
#[track_caller]
pub(super) fn assert_clean(error: &Error) {
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn a_good_answer_is_read_and_the_request_is_right() {
    let (server, vault) = setup(vec![Canned::json(200, OBJECT)]).await;
    let odd = ObjectName::new("a b/..?&#%+ü\0").unwrap();
    let object = vault.get_by_name(&call(), &odd).await.unwrap();
    assert_eq!(object.content, secret());
    assert_eq!((object.meta.id, object.meta.version), (id(), VersionTag::new("2")));
    let seen = server.seen().remove(0);
    let head = "GET /vault/object/get-by-name?name=a+b%2F..%3F%26%23%25%2B%C3%BC%00 HTTP/1.1\r\n";
    assert!(seen.starts_with(head), "{seen}");
    assert!(seen.contains("authorization: Bearer sk_test_canary_key\r\n"), "{seen}");
    assert_eq!(vault.status().requests, 1);
    let budget = vault.status().budget.unwrap();
    assert_eq!((budget.limit, budget.remaining, budget.assumed), (1000, 999, true), "it tells no limit");
}

#[tokio::test]
async fn writes_send_json_and_any_success_will_do() {
    let (server, vault) = setup(vec![Canned::json(201, META)]).await;
    let quoted = ObjectName::new("q\"uote\n").unwrap();
    vault.create(&call(), &quoted, &Content::plain("x\"y\n")).await.unwrap();
    let structured = Content { form: Form::Structured, ..Content::plain("{\n  \"n\": 1.0\n}\n") };
    vault.update(&call(), &id(), &structured, Some(&VersionTag::new("1"))).await.unwrap();
    vault.delete(&call(), &id(), None).await.unwrap();
    let bodies: Vec<serde_json::Value> = server
        .seen()
        .iter()
        .map(|r| serde_json::from_str(r.split_once("\r\n\r\n").unwrap().1).unwrap())
        .collect();
    assert_eq!(bodies[0], serde_json::json!({"name": "q\"uote\n", "data": {"value": "x\"y\n"}}));
    assert_eq!(bodies[1], serde_json::json!({"id": "vault_obj_1", "data": {"n": 1.0}}));
    assert_eq!(bodies[2], serde_json::json!({"id": "vault_obj_1"}));
    assert!(server.seen()[1].contains("1.0"), "numbers are sent as they are written");
}

#[tokio::test]
async fn missing_fields_are_tolerated_where_it_makes_sense() {
    let answers = vec![
        Canned::json(200, r#"{"id":"i","data":{"value":"x"},"version":"7"}"#),
        Canned::json(200, r#"{"id":"i","name":"n","data":{"value":"x"},"updated_at":"t1"}"#),
        Canned::json(200, r#"{"data":[{"id":"1","name":"n"},{"id":"2"},{"name":""}]}"#),
        Canned::json(200, r#"{"data":[{"version":2},{"version":1}]}"#),
        Canned::json(200, r#"{"data":[{},{},{}],"list_metadata":{"after":null}}"#),
    ];
    let (_server, vault) = setup(answers).await;
    let object = vault.get_by_name(&call(), &name()).await.unwrap();
    assert_eq!((object.meta.name, object.meta.version), (name(), VersionTag::new("7")));
    assert_eq!(vault.get(&call(), &id()).await.unwrap().meta.version, VersionTag::new("t1"));
    let page = vault.list(&call(), &ListQuery::first()).await.unwrap();
    assert_eq!((page.items.len(), page.next), (1, None));
    for count in [2, 3] {
        let history = vault.versions(&call(), &id(), None).await.unwrap();
        assert_eq!(history.iter().map(|v| v.number).collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
        assert_eq!(history.iter().filter(|v| v.current).map(|v| v.number).collect::<Vec<_>>(), [count]);
    }
}

/// The reference knows no `limit` here.
#[tokio::test]
async fn a_vault_that_refuses_a_limit_is_asked_for_all_versions() {
    let refusals = [400, 422].map(|status| Canned::json(status, r#"{"error":"Unexpected field: limit"}"#));
    for refusal in refusals {
        let all = Canned::json(200, r#"{"data":[{"version":2},{"version":1}]}"#);
        let (server, vault) = setup(vec![refusal, all]).await;
        let history = vault.versions(&call(), &id(), Some(&VersionTag::new("1"))).await.unwrap();
        assert_eq!(history.len(), 2);
        let asked: Vec<_> = server.seen().iter().map(|request| request.contains("limit=")).collect();
        assert_eq!(asked, [true, false]);
    }
}

#[tokio::test]
async fn nonsense_is_a_bad_answer_and_is_not_repeated() {
    let html = "<html>canary value 5d41402a</html>";
    let other = [
        Canned::answer(200, &["Content-Type: text/html"], html),
        Canned::answer(200, &[], ""),
        Canned::json(200, "[]"),
        Canned::json(200, "{}"),
        Canned::json(200, r#"{"id":1,"name":"canary"}"#),
        Canned::json(200, r#"{"id":"i","name":"n","version":1,"data":"canary"}"#),
        Canned::json(200, r#"{"id":"i","name":"n","version":1,"data":null}"#),
        Canned::json(200, r#"{"id":"i","name":"n","version":1,"data":{"canary":1,"canary":2}}"#),
        Canned::json(200, r#"{"id":"i","name":"","version":1,"data":{}}"#),
        Canned::answer(404, &["Content-Type: text/html"], html),
        Canned::answer(401, &[], html),
        Canned::answer(403, &[], html),
        Canned::answer(302, &["Location: http://127.0.0.1:1/canary"], ""),
        Canned::answer(405, &[], html),
        Canned::answer(418, &[], ""),
    ];
    for answer in other {
        let (server, vault) = setup(vec![answer.clone()]).await;
        let e = vault.get_by_name(&call(), &name()).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::BadAnswer, "{answer:?}: {e}");
        assert_clean(&e);
        assert_eq!(server.seen().len(), 1, "{answer:?}");
    }
}

#[tokio::test]
async fn statuses_become_kinds_and_sentences() {
    let said = r#"{"error":"x","code":"some_code","message":"said canary"}"#;
    for (status, kind, doubt) in [
        (400, ErrorKind::Invalid, false),
        (401, ErrorKind::Unauthorized, false),
        (403, ErrorKind::Forbidden, false),
        (404, ErrorKind::BadAnswer, true),
        (409, ErrorKind::AlreadyExists, false),
        (413, ErrorKind::TooLarge, false),
        (422, ErrorKind::Invalid, false),
        (429, ErrorKind::RateLimited, false),
        (500, ErrorKind::Server, true),
        (502, ErrorKind::Server, true),
        (503, ErrorKind::Server, true),
    ] {
        let call = || Call::foreground(Instant::now() + Duration::from_secs(2));
        let (_server, vault) = setup(vec![Canned::json(status, said)]).await;
        let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied), (kind, doubt), "{status}: {e}");
        assert_eq!(e.request_id.as_deref(), Some("req_1"));
        assert!(e.message.starts_with("creating \"a/b\": "), "{e}");
        assert_clean(&e);
        let (_server, vault) = setup(vec![Canned::json(status, said)]).await;
        let e = vault.get(&call(), &id()).await.unwrap_err();
        assert!(!e.maybe_applied, "{status}: {e}");
        assert_eq!(e.message.contains("some_code"), kind == ErrorKind::Invalid, "{status}: {e}");
        assert_clean(&e);
    }
    // A vault of one's own tells that its disk is full; of another 507 says no more than any 5xx.
    let full = r#"{"code":"insufficient_storage","message":"said canary"}"#;
    for (said, kind) in [(full, ErrorKind::Full), ("{}", ErrorKind::Server), ("<p>", ErrorKind::Server)] {
        let (server, vault) = setup(vec![Canned::json(507, said)]).await;
        let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied), (kind, kind == ErrorKind::Server), "{e}");
        assert_eq!(server.seen().len(), 1);
        assert_clean(&e);
    }
    let (_server, vault) = setup(vec![Canned::json(404, "{}")]).await;
    assert_eq!(vault.get(&call(), &id()).await.unwrap_err().kind, ErrorKind::NotFound);
    let e = vault.list(&call(), &ListQuery::first()).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::BadAnswer, "a listing is there or what answers is no vault: {e}");
    let (_server, vault) = setup(vec![Canned::json(409, "{}")]).await;
    let e = vault.update(&call(), &id(), &secret(), None).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::VersionMismatch);
}

#[tokio::test]
async fn a_401_revokes_with_json_or_nothing_and_a_page_does_not() {
    for said in ["", "\n", "{}", r#"{"message":"Unauthorized"}"#, r#" {"error":"unauthorized"}"#] {
        let (_server, vault) = setup(vec![Canned::answer(401, &[], said)]).await;
        let e = vault.list(&call(), &ListQuery::first()).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::Unauthorized, "{said:?}: {e}");
    }
    for said in ["<html>", "Sign in", "{cut"] {
        let (_server, vault) = setup(vec![Canned::answer(401, &[], said)]).await;
        let e = vault.list(&call(), &ListQuery::first()).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::BadAnswer, "{said:?}: {e}");
    }
}

#[tokio::test]
async fn cut_answers_are_read_again_and_then_told() {
    let truncated =
        Canned::RawThenClose("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"id\":\"canary".into());
    let chunked =
        Canned::RawThenClose("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"id\":".into());
    for broken in [truncated, chunked] {
        let (server, vault) = setup(vec![broken.clone(), broken.clone(), Canned::json(200, OBJECT)]).await;
        assert_eq!(vault.get(&call(), &id()).await.unwrap().content, secret());
        assert_eq!(server.seen().len(), 3);
        let (server, vault) = setup(vec![broken.clone()]).await;
        let e = vault.get(&call(), &id()).await.unwrap_err();
        assert_eq!((e.kind, e.attempts, server.seen().len()), (ErrorKind::BadAnswer, 4, 4), "{e}");
        assert_clean(&e);
        let (server, vault) = setup(vec![broken]).await;
        let e = vault.update(&call(), &id(), &secret(), None).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied, server.seen().len()), (ErrorKind::BadAnswer, true, 1), "{e}");
    }
}

#[tokio::test]
async fn a_wrong_length_spoils_one_answer_and_not_the_next() {
    let short = Canned::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{OBJECT}"));
    let (_server, vault) = setup(vec![short, Canned::json(200, OBJECT)]).await;
    let e = vault.get(&call(), &id()).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::BadAnswer, "{e}");
    assert_clean(&e);
    assert_eq!(vault.get(&call(), &id()).await.unwrap().content, secret(), "what was left over is not read");
}

#[tokio::test]
async fn a_huge_answer_is_not_swallowed() {
    let announced = Canned::Raw("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n".into());
    for huge in [announced, Canned::Endless] {
        let (server, vault) = setup(vec![huge]).await;
        let e = vault.get(&call(), &id()).await.unwrap_err();
        assert_eq!((e.kind, server.seen().len()), (ErrorKind::BadAnswer, 1), "{e}");
    }
    let value = format!(r#"{{"id":"i","name":"n","version":1,"data":{{"value":"{}"}}}}"#, "x".repeat(65537));
    let (_server, vault) = setup(vec![Canned::json(200, &value)]).await;
    assert_eq!(vault.get(&call(), &id()).await.unwrap_err().kind, ErrorKind::TooLarge);
    let e = vault.create(&call(), &name(), &Content::plain(vec![0; 65537])).await.unwrap_err();
    assert_eq!((e.kind, vault.status().requests), (ErrorKind::TooLarge, 1), "nothing is sent");
}

#[tokio::test]
async fn rate_limits_are_waited_for_if_time_allows() {
    let refused = |after: &str| Canned::answer(429, &[&format!("Retry-After: {after}")], "");
    let (server, vault) = setup(vec![refused("0"), refused("0"), Canned::json(200, META)]).await;
    vault.create(&call(), &name(), &secret()).await.unwrap();
    assert_eq!(server.seen().len(), 3);

    let (server, vault) = setup(vec![refused("60"), Canned::json(200, OBJECT)]).await;
    let started = Instant::now();
    let e = vault.get(&call(), &id()).await.unwrap_err();
    assert_eq!((e.kind, server.seen().len()), (ErrorKind::RateLimited, 1));
    assert_eq!(e.retry_after, Some(Duration::from_secs(60)));
    assert!(started.elapsed() < Duration::from_secs(10), "told at once");
    let again = vault.get(&call(), &id()).await.unwrap_err();
    assert_eq!((again.kind, again.attempts, server.seen().len()), (ErrorKind::RateLimited, 0, 1));

    let (server, vault) = setup(vec![Canned::answer(429, &[], "")]).await;
    let background = Call { priority: Priority::Background, ..call() };
    let e = vault.get(&background, &id()).await.unwrap_err();
    assert_eq!((e.kind, server.seen().len()), (ErrorKind::RateLimited, 1), "60 s do not fit");
}

#[tokio::test]
async fn connections_have_a_maximal_age() {
    let server = CannedServer::start(vec![Canned::json(200, OBJECT)]).await;
    let clock = ManualClock::new();
    let vault = vault_with(HttpConfig { clock: Arc::new(clock.clone()), ..config(&server.url) });
    for (later, connections) in [(0, 1), (299, 1), (1, 2), (299, 2), (1000, 3)] {
        clock.advance(Duration::from_secs(later));
        let call = Call::foreground(clock.now() + Duration::from_secs(20));
        vault.get(&call, &id()).await.unwrap();
        assert_eq!(server.accepted(), connections, "{later}");
    }
}

#[tokio::test]
async fn headers_teach_the_budget() {
    let headers = ["X-RateLimit-Limit: 6000", "X-RateLimit-Remaining: 17", "X-RateLimit-Reset: 30"];
    let (_server, vault) = setup(vec![Canned::answer(200, &headers, META)]).await;
    vault.metadata(&call(), &id()).await.unwrap();
    let budget = vault.status().budget.unwrap();
    assert_eq!((budget.limit, budget.remaining, budget.assumed), (6000, 17, false));
    assert!((29..=30).contains(&budget.reset_s));
}

#[tokio::test]
async fn a_vault_that_is_restarted_is_waited_for() {
    let server = CannedServer::start(vec![Canned::RawThenClose(META_CLOSED.into())]).await;
    let vault = vault_with(config(&server.url));
    vault.metadata(&call(), &id()).await.unwrap();
    let address = server.url.trim_start_matches("http://").to_owned();
    server.stop().await;
    let back = async {
        while vault.status().requests < 8 {
            tokio::task::yield_now().await;
        }
        CannedServer::on(tokio::net::TcpListener::bind(address).await.unwrap(), vec![Canned::json(200, META)])
    };
    let write = async { vault.update(&call(), &id(), &secret(), None).await };
    let (written, server) = tokio::join!(write, back);
    written.unwrap();
    assert_eq!(server.seen().len(), 1);
    assert_eq!(vault.status().budget.unwrap().remaining, 998, "what was never sent costs nothing");
}

#[tokio::test]
async fn a_limit_of_nothing_is_no_limit() {
    let (_server, vault) = setup(vec![Canned::answer(200, &["X-RateLimit-Limit: 0"], META)]).await;
    vault.metadata(&call(), &id()).await.unwrap();
    assert_eq!(vault.status().budget, None);
}

#[tokio::test]
async fn server_errors_are_repeated_for_reads_only() {
    let failed = Canned::json(500, "{}");
    let (server, vault) = setup(vec![failed.clone(), failed.clone(), Canned::json(200, OBJECT)]).await;
    vault.get(&call(), &id()).await.unwrap();
    assert_eq!(server.seen().len(), 3);
    let (server, vault) = setup(vec![failed.clone()]).await;
    let e = vault.get(&call(), &id()).await.unwrap_err();
    assert_eq!((e.kind, e.attempts, server.seen().len()), (ErrorKind::Server, 4, 4));
    assert!(e.to_string().contains("after 4 tries"), "{e}");
    let (server, vault) = setup(vec![failed, Canned::json(200, META)]).await;
    let e = vault.delete(&call(), &id(), None).await.unwrap_err();
    assert_eq!((e.maybe_applied, server.seen().len()), (true, 1));
    let busy = Canned::answer(503, &["Retry-After: 0"], "");
    let (server, vault) = setup(vec![busy, Canned::json(200, META)]).await;
    vault.create(&call(), &name(), &secret()).await.unwrap();
    assert_eq!(server.seen().len(), 2, "busy is surely not applied");
}

#[tokio::test]
async fn a_lost_connection_leaves_writes_in_doubt() {
    let (server, vault) = setup(vec![Canned::Reset]).await;
    let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
    assert_eq!((e.kind, e.maybe_applied, server.seen().len()), (ErrorKind::Unreachable, true, 1));
    assert_clean(&e);
    let (server, vault) = setup(vec![Canned::Reset, Canned::json(200, OBJECT)]).await;
    vault.get(&call(), &id()).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn nobody_there_is_surely_not_applied() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let vault = vault_with(config(&format!("http://{free}")));
    let e = vault.create(&call(), &name(), &secret()).await.unwrap_err();
    assert_eq!((e.kind, e.maybe_applied, e.attempts), (ErrorKind::Unreachable, false, 4));
    assert!(e.message.contains("Connection refused"), "{e}");
    let gone = HttpConfig { target: Target::Socket("/nonexistent/vault.sock".into()), ..config("") };
    let e = vault_with(gone).get(&call(), &id()).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::Unreachable);
    assert!(e.message.contains("/nonexistent/vault.sock"), "{e}");
}

#[tokio::test]
async fn a_vault_that_hangs_ends_at_the_deadline() {
    let drip = Canned::Raw("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{".into());
    for hang in [Canned::Hang, drip] {
        let (_server, vault) = setup(vec![hang]).await;
        let started = Instant::now();
        let short = Call::foreground(started + Duration::from_secs(1));
        let e = vault.get(&short, &id()).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied), (ErrorKind::Deadline, false));
        let short = Call::foreground(Instant::now() + Duration::from_secs(1));
        let e = vault.update(&short, &id(), &secret(), None).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied), (ErrorKind::Deadline, true));
        let e = vault.update(&short, &id(), &secret(), None).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied), (ErrorKind::Deadline, false), "nothing was sent");
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn after_a_401_the_key_file_is_read_again_once() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, "sk_old_canary").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let key = ApiKey::new(api_key::read_key_file(&path, None).unwrap(), Some(path.clone()), None);
    let refused = Canned::json(401, r#"{"message":"bad key sk_old_canary"}"#);
    let server = CannedServer::start(vec![refused.clone(), Canned::json(200, META), refused]).await;
    let vault = vault_with(HttpConfig { key: Arc::new(key), ..config(&server.url) });
    std::fs::write(&path, "sk_new_canary").unwrap();
    vault.create(&call(), &name(), &secret()).await.unwrap();
    assert!(server.seen()[1].contains("Bearer sk_new_canary\r\n"));
    let e = vault.metadata(&call(), &id()).await.unwrap_err();
    assert_eq!((e.kind, server.seen().len()), (ErrorKind::Unauthorized, 3), "the key is the same: no retry");
    assert!(e.message.contains(path.to_str().unwrap()), "{e}");
    assert_clean(&e);
}

async fn open_at(answers: Vec<Canned>, want: Option<Dialect>) -> (CannedServer, Result<Opened>) {
    let server = CannedServer::start(answers).await;
    let opened = open(config(&server.url), &call(), want).await;
    (server, opened)
}

#[tokio::test]
async fn the_dialect_is_found_in_at_most_two_requests() {
    let page = r#"{"data":[{"id":"i","name":"n"}],"list_metadata":{"after":"c"}}"#;
    let (server, opened) = open_at(vec![Canned::json(200, page)], None).await;
    let first = opened.unwrap().first_page;
    let first = first.unwrap();
    assert_eq!((first.items.len(), first.next.as_deref(), server.seen().len()), (1, Some("c"), 1));
    assert!(server.seen()[0].starts_with("GET /vault/object/list?limit=100 "));

    let (server, opened) = open_at(vec![Canned::json(401, "{}")], None).await;
    assert_eq!((opened.unwrap_err().kind, server.seen().len()), (ErrorKind::Unauthorized, 1));
    let (server, opened) = open_at(vec![Canned::json(403, "{}")], None).await;
    assert!(opened.unwrap().first_page.is_none(), "a key that may not list may do all else");
    assert_eq!(server.seen().len(), 1);

    for not_found in [Canned::json(404, "{}"), Canned::answer(404, &[], "<html>")] {
        let (server, opened) = open_at(vec![not_found.clone(), Canned::json(200, page)], None).await;
        let Opened { vault, first_page } = opened.unwrap();
        let first_page = first_page.unwrap();
        assert_eq!((first_page.items.len(), first_page.next.as_deref()), (1, Some("c")));
        assert_eq!((vault.capabilities().dialect, server.seen().len()), (Dialect::Kv, 2));
        assert!(server.seen()[1].starts_with("GET /vault/v1/kv?limit=100&order=asc "));
        let (server, opened) = open_at(vec![not_found.clone(), Canned::json(401, "{}")], None).await;
        assert_eq!((opened.unwrap_err().kind, server.seen().len()), (ErrorKind::Unauthorized, 2));
        let (server, opened) = open_at(vec![not_found.clone(), Canned::json(403, "{}")], None).await;
        let opened = opened.unwrap();
        assert!(opened.first_page.is_none() && opened.vault.capabilities().dialect == Dialect::Kv);
        assert_eq!(server.seen().len(), 2);
    }
    let (server, opened) = open_at(vec![Canned::json(200, page)], Some(Dialect::Kv)).await;
    assert_eq!((opened.unwrap().first_page.unwrap().items.len(), server.seen().len()), (1, 1));
    let (server, opened) = open_at(vec![Canned::json(404, "{}")], Some(Dialect::Object)).await;
    assert!(opened.unwrap_err().message.starts_with("not a vault at "));
    assert_eq!(server.seen().len(), 1, "nothing else was asked for");

    for answers in [
        vec![Canned::answer(404, &[], "<html>"), Canned::answer(404, &[], "<html>")],
        vec![Canned::json(404, "{}")],
        vec![Canned::json(404, "{}"), Canned::answer(401, &[], "<html>")],
        vec![Canned::answer(404, &[], "<html>"), Canned::answer(200, &[], "<html>canary")],
        vec![Canned::answer(200, &[], "<html>canary")],
        vec![Canned::json(200, r#"{"hello":"canary"}"#)],
        vec![Canned::answer(301, &["Location: https://example.com/"], "")],
    ] {
        let (_server, opened) = open_at(answers, None).await;
        let e = opened.unwrap_err();
        assert_eq!(e.kind, ErrorKind::BadAnswer);
        assert!(e.message.starts_with("not a vault at http://127.0.0.1:"), "{e}");
        assert_clean(&e);
    }
}

#[test]
fn loopback_is_told_from_the_world() {
    for host in ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]"] {
        assert!(is_loopback(host), "{host}");
    }
    for host in ["10.0.0.1", "127.0.0.1.example.com", "localhost.example.com", "0.0.0.0", "[::]", ""] {
        assert!(!is_loopback(host), "{host}");
    }
}

#[tokio::test]
async fn tls_is_set_up_and_bad_certificates_are_named() {
    let https = |tls: TlsFiles| HttpConfig { tls: Arc::new(tls), ..config("https://127.0.0.1:1") };
    let e = vault_with(https(TlsFiles::default())).get(&call(), &id()).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::Unreachable);
    for pem in [&b"no certificate"[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pem).unwrap();
        let e = https(TlsFiles::read(Some(file.path()), None).unwrap()).transport().unwrap_err();
        assert_eq!(e.kind, ErrorKind::Invalid);
        assert!(e.message.contains("--ca-file") || e.message.contains("TLS"), "{e}");
    }
}

/// The three ways in which a vault that is restarted answers.
fn away() -> Vec<Canned> {
    [502, 503, 504].map(|status| Canned::answer(status, &[], "<html>")).into()
}

#[tokio::test]
async fn a_read_waits_for_a_vault_that_is_restarted_and_a_change_is_left_in_doubt() {
    let mut answers = [away(), away(), away()].concat();
    answers.extend([Canned::Reset, Canned::json(200, OBJECT)]);
    let (server, vault) = setup(answers).await;
    vault.get(&call(), &id()).await.unwrap();
    assert_eq!(server.seen().len(), 11);
    for answer in away() {
        let (server, vault) = setup(vec![answer, Canned::json(200, OBJECT)]).await;
        let e = vault.update(&call(), &id(), &secret(), None).await.unwrap_err();
        assert_eq!((e.kind, e.maybe_applied, server.seen().len()), (ErrorKind::Server, true, 1));
        vault.get(&call(), &id()).await.unwrap();
    }
    // What says for how long did nothing, however often it says so.
    let busy = Canned::answer(503, &["Retry-After: 0"], "");
    let (server, vault) = setup([vec![busy; 8], vec![Canned::json(200, META)]].concat()).await;
    vault.update(&call(), &id(), &secret(), None).await.unwrap();
    assert_eq!(server.seen().len(), 9);
}

#[tokio::test]
async fn a_thousand_who_wait_for_a_restart_are_no_storm() {
    let (server, vault) = setup(vec![Canned::answer(503, &[], "")]).await;
    let call = Call::foreground(Instant::now() + Duration::from_secs(3));
    let waiting = (0..1000).map(|n| {
        let (vault, id) = (&vault, ObjectId::new(format!("o{n}")));
        async move { vault.get(&call, &id).await.unwrap_err().kind }
    });
    let kinds = futures_util::future::join_all(waiting).await;
    let is_expected = |kind: &ErrorKind| matches!(kind, ErrorKind::Server | ErrorKind::Deadline);
    assert!(kinds.iter().all(is_expected), "{kinds:?}");
    // Those that were out when the first was answered, and one at a time from then on.
    let sent = server.seen().len();
    assert!((10..200).contains(&sent), "{sent}");
    let budget = vault.status().budget.unwrap();
    assert!(budget.remaining > 700, "{} of {} are left", budget.remaining, budget.limit);
}
