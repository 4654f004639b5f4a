//! The built server, killed at random moments under a writing load: what it acknowledged is there
//! afterwards. And what lies on its disk holds no value and no usable key.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::support::vault_server::served::Served;

fn client() -> Client {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap()
}

/// What the server said yes to: name to (id, version, value), or deleted.
type Acknowledged = Arc<Mutex<HashMap<String, Option<(String, u64, String)>>>>;

/// Creates, updates twice and deletes every third, until the connection breaks.
async fn write_until_it_dies(url: String, key: String, label: String, known: Acknowledged) {
    let client = client();
    let send = async |method: reqwest::Method, path: &str, body: Value| -> Option<Value> {
        let request = client.request(method, format!("{url}/vault/object/{path}")).bearer_auth(&key);
        let response = request.body(body.to_string()).send().await.ok()?;
        assert_eq!(response.status(), StatusCode::OK);
        serde_json::from_str(&response.text().await.ok()?).ok()
    };
    for n in 0.. {
        let name = format!("{label}/{n}");
        let value = |version: u64| format!("{label} {n} at {version} {}", "x".repeat(n * 37 % 9000));
        let body = json!({"name": name, "data": {"value": value(1)}});
        let Some(made) = send(reqwest::Method::POST, "create", body).await else { return };
        let id = made["id"].as_str().unwrap().to_owned();
        known.lock().unwrap().insert(name.clone(), Some((id.clone(), 1, value(1))));
        for version in 2..4 {
            let body = json!({"id": id, "data": {"value": value(version)}});
            let Some(updated) = send(reqwest::Method::PUT, "update", body).await else { return };
            assert_eq!(updated["version"], version);
            known.lock().unwrap().insert(name.clone(), Some((id.clone(), version, value(version))));
        }
        if n % 3 == 0 {
            // In doubt from here on: only the answer settles it.
            known.lock().unwrap().remove(&name);
            let deleted = send(reqwest::Method::DELETE, "delete", json!({"id": id})).await;
            if deleted.is_none() {
                return;
            }
            known.lock().unwrap().insert(name, None);
        }
    }
}

async fn check(served: &Served, known: &Acknowledged) {
    let client = client();
    let known = known.lock().unwrap().clone();
    for (name, expected) in known {
        let encoded = name.replace(' ', "%20");
        let request = client.get(format!("{}/vault/object/get-by-name?name={encoded}", served.url));
        let response = request.bearer_auth(&served.key).send().await.unwrap();
        let status = response.status();
        let got: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        match expected {
            None => assert_eq!(status, StatusCode::NOT_FOUND, "{name} was deleted, yet: {got}"),
            Some((id, version, value)) => {
                assert_eq!(status, StatusCode::OK, "{name} was acknowledged, yet: {got}");
                assert_eq!(got["id"], id);
                // One more update may have been made than was acknowledged, not one less.
                let now = got["version"].as_u64().unwrap();
                assert!(now == version || now == version + 1, "{name}: {now} after {version}");
                if now == version {
                    assert_eq!(got["data"]["value"], value);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let known = Acknowledged::default();
    let begun = Instant::now();
    let mut rounds = 0;
    let has_load = || known.lock().unwrap().len() > 20;
    while rounds < 8 || begun.elapsed() < Duration::from_secs(4) || !has_load() {
        let mut served = Served::start(dir.path());
        check(&served, &known).await;
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let label = format!("round {rounds} writer {writer}");
                let (url, key) = (served.url.clone(), served.key.clone());
                tokio::spawn(write_until_it_dies(url, key, label, Arc::clone(&known)))
            })
            .collect();
        // A moment that differs from round to round: it is the subject here, not something to wait
        // for.
        let moment = u64::from(ulid::Ulid::new().random() as u16) % 300;
        tokio::time::sleep(Duration::from_millis(20 + moment)).await;
        served.signal(libc::SIGKILL);
        served.wait();
        for writer in writers {
            writer.await.unwrap();
        }
        rounds += 1;
    }
    let served = Served::start(dir.path());
    check(&served, &known).await;
}

#[tokio::test]
async fn a_terminated_server_drains_ends_well_and_lets_the_next_one_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path());
    let second = Command::new(env!("CARGO_BIN_EXE_vaultfs"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(second.stdout.is_empty());
    let sentence = String::from_utf8(second.stderr).unwrap();
    assert!(sentence.contains("served by another process"), "{sentence}");

    // An idle connection does not hold it up.
    let idle = std::net::TcpStream::connect(served.url.strip_prefix("http://").unwrap()).unwrap();
    served.signal(libc::SIGTERM);
    assert_eq!(served.wait().code(), Some(0));
    drop(idle);
    assert!(!dir.path().join("vault.sock").exists());
    let mut next = Served::start(dir.path());
    next.signal(libc::SIGINT);
    assert_eq!(next.wait().code(), Some(0));
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path());
    let body = r#"{"name":"late","data":{}}"#;
    let mut stream = std::net::TcpStream::connect(served.url.strip_prefix("http://").unwrap()).unwrap();
    let head = format!(
        "POST /vault/object/create HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        served.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server asks for the body: the request is under way.
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
    served.signal(libc::SIGTERM);
    // No new connections: it has heard.
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(served.url.strip_prefix("http://").unwrap()).is_ok() {
        assert!(Instant::now() < deadline, "it goes on taking connections");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    lines.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("\"name\":\"late\""), "{answer}");
    assert_eq!(served.wait().code(), Some(0));
}

#[test]
fn only_loopback_is_listened_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("vault");
    let refused = Command::new(env!("CARGO_BIN_EXE_vaultfs"))
        .args(["serve", "--listen", "0.0.0.0:0", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--listen"));
    assert!(!data.exists());
}

/// Whether any file of the directory but `api-key` holds `needle`.
fn holder(dir: &Path, needle: &[u8]) -> Option<String> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let files = files.filter(|file| file.file_type().unwrap().is_file() && file.file_name() != "api-key");
    files
        .filter(|file| std::fs::read(file.path()).unwrap().windows(needle.len()).any(|w| w == needle))
        .map(|file| file.file_name().into_string().unwrap())
        .next()
}

#[tokio::test]
async fn the_disk_holds_no_value_and_no_key() {
    const VALUES: [&str; 3] = ["canary-first-9f27c1", "canary-second-b81d4e", "canary-third-77aa02"];
    let dir = tempfile::tempdir().unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut served = Served::start_logging(dir.path(), log.reopen().unwrap().into());
    let client = client();
    let send = async |method: reqwest::Method, path: &str, body: Value| -> Value {
        let request = client.request(method, format!("{}/vault/object/{path}", served.url));
        let response = request.bearer_auth(&served.key).body(body.to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    };
    let big = VALUES[2].repeat(3000);
    let made =
        send(reqwest::Method::POST, "create", json!({"name": "seen", "data": {"value": VALUES[0]}})).await;
    let id = made["id"].as_str().unwrap();
    send(reqwest::Method::PUT, "update", json!({"id": id, "data": {"any": [VALUES[1]]}})).await;
    send(reqwest::Method::PUT, "update", json!({"id": id, "data": {"value": big}})).await;
    // The search itself finds what is there.
    assert!(holder(dir.path(), b"seen").is_some());
    let clean = |when: &str| {
        for needle in VALUES.into_iter().chain([served.key.as_str(), &served.key[3..]]) {
            assert_eq!(holder(dir.path(), needle.as_bytes()), None, "{when}: {needle}");
        }
    };
    clean("while it runs");
    // Refusals too, with a value in the wrong place, and with a key that is nearly right.
    for body in [format!("{{\"name\":[\"{}\"]", VALUES[0]), format!("{{\"name\":[\"{}\"]}}", VALUES[0])] {
        let request = client.post(format!("{}/vault/object/create", served.url)).body(body);
        let answer = request.bearer_auth(&served.key).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        assert!(!answer.text().await.unwrap().contains(VALUES[0]));
    }
    let request =
        client.get(format!("{}/vault/object/list", served.url)).bearer_auth(format!("{}x", served.key));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    send(reqwest::Method::DELETE, "delete", json!({"id": id})).await;
    clean("after a delete");
    served.signal(libc::SIGTERM);
    assert_eq!(served.wait().code(), Some(0));
    for needle in VALUES {
        assert_eq!(holder(dir.path(), needle.as_bytes()), None, "after its end: {needle}");
    }
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("answered") && log.contains("status=401"), "the log is at its most verbose: {log}");
    for needle in VALUES.into_iter().chain([served.key.as_str(), &served.key[3..]]) {
        assert!(!log.contains(needle), "the log holds {needle}");
    }
    assert!(!dir.path().join("vault.db-wal").exists(), "a clean end leaves one file");
}
