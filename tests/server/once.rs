//! `Idempotency-Key`: a repeated creation or update makes nothing twice and hears the same answer,
//! also when the server was killed in between; and nothing of the request is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vaultfs::clock::ManualClock;
use vaultfs::server::instance::serve::ServeOptions;
use vaultfs::server::store::Permission;

use crate::support::vault_server::served::Served;
use crate::support::vault_server::{MAX_VALUE, Server, id};

const KV: &str = "/vault/v1/kv";

fn body(name: &str, value: &str) -> String {
    json!({"name": name, "value": value, "key_context": {"a": "b"}}).to_string()
}

async fn count(s: &Server) -> usize {
    s.get(&format!("{KV}?limit=100")).await.ok()["data"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_repeated_request_finds_what_the_first_one_made() {
    let s = Server::start().await;
    let made = s.post_once("k1", KV, &body("a", "one")).await.made();
    assert_eq!(s.post_once("k1", KV, &body("a", "one")).await.made(), made);
    // The answer is the first one's, whatever was done to the object since.
    s.kv_update(&id(&made), "two").await.made();
    assert_eq!(s.post_once("k1", KV, &body("a", "one")).await.made(), made);
    // Another body, even one that would do; another key; no key.
    s.post_once("k1", KV, &body("b", "one")).await.is_kv_error(
        422,
        "unprocessable_entity",
        "Idempotency-Key",
    );
    s.post_once("k1", KV, &format!("{} ", body("a", "one"))).await.is_kv_error(
        422,
        "unprocessable_entity",
        "Idem",
    );
    s.post_once("k2", KV, &body("a", "one")).await.is_kv_error(409, "conflict", "exists");
    s.send("POST", KV, body("a", "one")).await.is_kv_error(409, "conflict", "exists");
    s.post_once("", KV, &body("a", "one")).await.is_kv_error(409, "conflict", "exists");
    // A refused request made nothing, and its key is free.
    let other = s.post_once("k2", KV, &body("b", "one")).await.made();
    assert_ne!(id(&other), id(&made));
    assert_eq!(count(&s).await, 2);
    s.send("DELETE", &format!("{KV}/{}", id(&made)), "").await.ok();
    s.post_once("k1", KV, &body("a", "one")).await.is_kv_error(409, "made_and_deleted", "deleted");
    assert_eq!(count(&s).await, 1, "what was deleted does not come back");
}

#[tokio::test]
async fn a_repeated_update_finds_the_version_that_the_first_one_made() {
    let s = Server::start().await;
    let (a, b) = (s.post_once("k", KV, &body("a", "one")).await.made(), s.kv_create("b", "one").await.made());
    let put = async |object: &Value, key: &str, body: Value| {
        let path = format!("{KV}/{}", id(object));
        s.send_with(Some(&s.key), "PUT", &path, body.to_string().into(), Some(key)).await
    };
    let first = a["version_id"].clone();
    let made = put(&a, "k", json!({"value": "two", "version_check": first})).await.made();
    s.kv_update(&id(&a), "three").await.made();
    // What it is to follow does not count, nor how the body is spelt.
    for body in [json!({"value": "two", "version_check": first}), json!({"value": "two"})] {
        assert_eq!(put(&a, "k", body).await.made(), made);
    }
    put(&a, "k", json!({"value": "four"})).await.is_kv_error(422, "unprocessable_entity", "Idempotency-Key");
    put(&a, "other", json!({"value": "two", "version_check": first})).await.is_kv_error(409, "conflict", "");
    assert_eq!(s.kv_get(&id(&a)).await.ok()["value"], "three");
    let of_another = put(&b, "k", json!({"value": "two"})).await.made();
    assert_ne!(of_another["metadata"]["version_id"], made["metadata"]["version_id"]);

    let object = s.create("c", r#"{"n":1}"#).await.ok();
    let text = format!(r#"{{"id":"{}","data":{{"n":2}}}}"#, id(&object));
    let update = async || {
        s.send_with(Some(&s.key), "PUT", "/vault/object/update", text.clone().into(), Some("k")).await.ok()
    };
    let made = update().await;
    s.update(&id(&object), r#"{"n":3}"#).await.ok();
    assert_eq!((update().await, &made["version"]), (made.clone(), &json!(2)));
    s.delete(&id(&object)).await.ok();
    let path = "/vault/object/update";
    s.send_with(Some(&s.key), "PUT", path, text.into(), Some("k")).await.is_error(404, "not_found", "id");
}

#[tokio::test]
async fn the_scope_is_key_and_route() {
    let s = Server::start().await;
    let first = s.post_once("k", KV, &body("a", "v")).await.made();
    let other = s.key_with(&[Permission::Write]).await;
    let answer = s.send_with(Some(&other), "POST", KV, body("b", "v").into(), Some("k")).await;
    let second = answer.made();
    let object = s.post_once("k", "/vault/object/create", r#"{"name":"c","data":{"n":1}}"#).await.ok();
    assert_eq!(s.post_once("k", "/vault/object/create", r#"{"name":"c","data":{"n":1}}"#).await.ok(), object);
    let differs = s.post_once("k", "/vault/object/create", r#"{"name":"c","data":{"n":2}}"#).await;
    differs.is_error(422, "unprocessable_entity", "Idempotency-Key");
    assert!(id(&first) != id(&second) && id(&second) != id(&object));
    assert_eq!(count(&s).await, 3);
    // What makes keys never answers with one that it gave out before.
    for (path, body, field) in [
        ("/vault/v1/keys/data-key", r#"{"context":{}}"#, "data_key"),
        ("/vault/key/create-data-key", "", "plaintext_key"),
    ] {
        let (a, b) = (s.post_once("k", path, body).await.ok(), s.post_once("k", path, body).await.ok());
        assert_ne!(a[field], b[field]);
    }
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_day() {
    let clock = ManualClock::new();
    let options =
        ServeOptions { max_value: MAX_VALUE, clock: Arc::new(clock.clone()), ..ServeOptions::default() };
    let s = Server::start_with(tempfile::tempdir().unwrap(), options).await;
    let made = s.post_once("k", KV, &body("a", "v")).await.made();
    clock.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(s.post_once("k", KV, &body("a", "v")).await.made(), made);
    clock.advance(Duration::from_secs(1));
    s.post_once("k", KV, &body("a", "v")).await.is_kv_error(409, "conflict", "exists");
    assert_ne!(id(&s.post_once("k", KV, &body("b", "v")).await.made()), id(&made));
    let rows = rusqlite::Connection::open(s.dir.path().join("vault.db")).unwrap();
    let kept: i64 = rows.query_row("SELECT count(*) FROM idempotency", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 1, "the old one went as the new one came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_makes_the_object() {
    let s = Server::start().await;
    let requests: Vec<_> = (0..20).map(|_| body("a", "same")).collect();
    let answers = requests.iter().map(|body| s.post_once("k", KV, body));
    let made: Vec<Value> =
        futures_util::future::join_all(answers).await.into_iter().map(|a| a.made()).collect();
    assert!(made.iter().all(|answer| answer == &made[0]));
    assert_eq!(count(&s).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_heard_the_answer_asks_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    let post = async |url: &str, key: &str, n: usize| -> Option<Value> {
        let request =
            client.post(format!("{url}{KV}")).bearer_auth(key).header("Idempotency-Key", format!("k{n}"));
        let response = request.body(body(&format!("n{n}"), "canary-8f2d")).send().await.ok()?;
        assert_eq!(response.status(), 201, "request {n}");
        serde_json::from_str(&response.text().await.ok()?).ok()
    };
    let mut answers: Vec<Option<Value>> = Vec::new();
    for _ in 0..6 {
        let mut served = Served::start(dir.path());
        let begun = AtomicUsize::new(answers.len());
        let writing = async {
            let mut heard = Vec::new();
            loop {
                let n = begun.fetch_add(1, Ordering::Relaxed);
                let answer = post(&served.url, &served.key, n).await;
                let broken = answer.is_none();
                heard.push(answer);
                if broken {
                    return heard;
                }
            }
        };
        let killing = async {
            // A moment that differs from round to round, but not before something was written.
            while begun.load(Ordering::Relaxed) < answers.len() + 3 {
                tokio::task::yield_now().await;
            }
            let moment = u64::from(ulid::Ulid::new().random() as u16) % 60;
            tokio::time::sleep(Duration::from_millis(moment)).await;
            served.signal(libc::SIGKILL);
        };
        let (heard, ()) = tokio::join!(writing, killing);
        answers.extend(heard);
        served.wait();
    }
    let mut served = Served::start(dir.path());
    for (n, heard) in answers.iter().enumerate() {
        let again = post(&served.url, &served.key, n).await.unwrap();
        assert!(heard.as_ref().is_none_or(|heard| *heard == again), "{n}: {heard:?}, then {again}");
    }
    served.signal(libc::SIGTERM);
    assert_eq!(served.wait().code(), Some(0));
    let database = rusqlite::Connection::open(dir.path().join("vault.db")).unwrap();
    let one = |sql: &str| -> usize {
        let n: i64 = database.query_row(sql, [], |row| row.get(0)).unwrap();
        usize::try_from(n).unwrap()
    };
    assert_eq!(one("SELECT count(*) FROM objects"), answers.len(), "one object a request");
    assert_eq!(one("SELECT count(*) FROM idempotency"), answers.len());
    assert_eq!(one("SELECT count(*) FROM idempotency i JOIN objects o ON o.id = i.object"), answers.len());
    assert!(answers.iter().any(Option::is_none) && answers.len() > 18);
    let bytes = std::fs::read(dir.path().join("vault.db")).unwrap();
    assert!(!bytes.windows(11).any(|w| w == b"canary-8f2d"));
}
