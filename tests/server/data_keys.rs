//! The key endpoints of both dialects: the flow, each refusal, and that no key is kept.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::support::vault_server::{Answer, MAX_VALUE, Server};

impl Server {
    async fn key(&self, path: &str, body: Value) -> Answer {
        self.send("POST", &format!("/vault/key/{path}"), body.to_string()).await
    }

    async fn kv_key(&self, path: &str, body: Value) -> Answer {
        self.send("POST", &format!("/vault/v1/keys/{path}"), body.to_string()).await
    }
}

fn bent(base64: &str) -> String {
    let mut bytes = BASE64.decode(base64).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    BASE64.encode(bytes)
}

#[tokio::test]
async fn the_object_dialects_flow() {
    let s = Server::start().await;
    for body in ["", "{}", " \n"] {
        let made = s.send("POST", "/vault/key/create-data-key", body).await.ok();
        assert_eq!(made.as_object().unwrap().len(), 2);
    }
    let made = s.key("create-data-key", json!({})).await.ok();
    let (key, blob) = (made["plaintext_key"].clone(), made["encrypted_key"].clone());
    assert_eq!(BASE64.decode(key.as_str().unwrap()).unwrap().len(), 32);
    for text in ["secret data", "", "\0\u{1}é\u{10ffff}\"\\", &"x".repeat(MAX_VALUE)] {
        let sealed = s.key("encrypt-data", json!({"plaintext": text, "data_key": key})).await.ok();
        assert_eq!(sealed.as_object().unwrap().len(), 1);
        let ciphertext = sealed["ciphertext"].as_str().unwrap();
        let opened = s.key("decrypt-data", json!({"ciphertext": ciphertext, "data_key": key})).await.ok();
        assert_eq!(opened, json!({"plaintext": text}));
        let bent = s.key("decrypt-data", json!({"ciphertext": bent(ciphertext), "data_key": key})).await;
        bent.is_error(422, "unprocessable_entity", "ciphertext");
    }
    let unwrapped = s.key("decrypt-data-key", json!({"encrypted_key": blob})).await.ok();
    assert_eq!(unwrapped, json!({"plaintext_key": key}));
    // Any 32 bytes will do as a key.
    let own = BASE64.encode([7; 32]);
    s.key("encrypt-data", json!({"plaintext": "x", "data_key": own})).await.ok();
}

#[tokio::test]
async fn the_object_dialects_refusals() {
    let s = Server::start().await;
    let other = Server::start().await;
    let foreign = other.key("create-data-key", json!({})).await.ok();
    let made = s.key("create-data-key", json!({})).await.ok();
    let (key, blob) = (&made["plaintext_key"], made["encrypted_key"].as_str().unwrap());
    let sealed = s.key("encrypt-data", json!({"plaintext": "x", "data_key": key})).await.ok();
    let unprocessable = "unprocessable_entity";
    for body in ["[]", "{", "x"] {
        s.send("POST", "/vault/key/create-data-key", body).await.is_error(400, "invalid_request", "JSON");
    }
    for (path, body, word) in [
        ("encrypt-data", json!({"data_key": key}), "plaintext"),
        ("encrypt-data", json!({"plaintext": "x"}), "data_key"),
        ("encrypt-data", json!({"plaintext": {}, "data_key": key}), "plaintext"),
        ("encrypt-data", json!({"plaintext": "x", "data_key": 7}), "data_key"),
        ("decrypt-data", json!({"data_key": key}), "ciphertext"),
        ("decrypt-data", json!({"ciphertext": null, "data_key": key}), "ciphertext"),
        ("decrypt-data-key", json!({}), "encrypted_key"),
        ("decrypt-data-key", json!({"encrypted_key": []}), "encrypted_key"),
    ] {
        s.key(path, body).await.is_error(400, "invalid_request", word);
    }
    for bad in
        ["", "not base64", "AAAA", &BASE64.encode([1; 33]), key.as_str().unwrap().trim_end_matches('=')]
    {
        let answer = s.key("encrypt-data", json!({"plaintext": "x", "data_key": bad})).await;
        answer.is_error(422, unprocessable, "data_key");
        let answer =
            s.key("decrypt-data", json!({"ciphertext": sealed["ciphertext"], "data_key": bad})).await;
        answer.is_error(422, unprocessable, "data_key");
    }
    for bad in ["", "*", "AAAA", &sealed["ciphertext"].as_str().unwrap()[4..]] {
        let answer = s.key("decrypt-data", json!({"ciphertext": bad, "data_key": key})).await;
        answer.is_error(422, unprocessable, "ciphertext");
    }
    let wrong = json!({"ciphertext": sealed["ciphertext"], "data_key": foreign["plaintext_key"]});
    s.key("decrypt-data", wrong).await.is_error(422, unprocessable, "another data_key");
    for bad in ["", "*", "AAAA", &bent(blob), foreign["encrypted_key"].as_str().unwrap()] {
        let answer = s.key("decrypt-data-key", json!({"encrypted_key": bad})).await;
        answer.is_error(422, unprocessable, "make a new data key");
    }
    let long = json!({"plaintext": "x".repeat(MAX_VALUE + 1), "data_key": key});
    s.key("encrypt-data", long).await.is_error(413, "payload_too_large", "at most");
}

#[tokio::test]
async fn the_kv_dialects_flow() {
    let s = Server::start().await;
    let context = json!({"organization_id": "org_1", "env": "é"});
    let made = s.kv_key("data-key", json!({"context": context})).await.ok();
    assert_eq!((made.as_object().unwrap().len(), &made["context"]), (4, &context));
    assert_eq!(BASE64.decode(made["data_key"].as_str().unwrap()).unwrap().len(), 32);
    let opened = s.kv_key("decrypt", json!({"keys": made["encrypted_keys"]})).await.ok();
    assert_eq!(opened, json!({"data_key": made["data_key"], "id": made["id"]}));
    let other = json!({"organization_id": "org_2"});
    let moved =
        s.kv_key("rekey", json!({"encrypted_keys": made["encrypted_keys"], "context": other})).await.ok();
    assert_eq!(
        (&moved["data_key"], &moved["id"], &moved["context"]),
        (&made["data_key"], &made["id"], &other)
    );
    assert_ne!(moved["encrypted_keys"], made["encrypted_keys"]);
    assert_eq!(s.kv_key("decrypt", json!({"keys": moved["encrypted_keys"]})).await.ok(), opened);
    // The blob shows nothing of its context, and either dialect opens it.
    let blob = BASE64.decode(made["encrypted_keys"].as_str().unwrap()).unwrap();
    assert!(!blob.windows(5).any(|w| w == b"org_1"));
    let unwrapped = s.key("decrypt-data-key", json!({"encrypted_key": moved["encrypted_keys"]})).await.ok();
    assert_eq!(unwrapped["plaintext_key"], made["data_key"]);
}

#[tokio::test]
async fn the_kv_dialects_refusals() {
    let s = Server::start().await;
    let other = Server::start().await;
    let foreign = other.kv_key("data-key", json!({"context": {}})).await.ok();
    let made = s.kv_key("data-key", json!({"context": {}})).await.ok();
    let blob = made["encrypted_keys"].as_str().unwrap();
    let many: Value =
        (0..11).map(|n| (n.to_string(), Value::from("x"))).collect::<serde_json::Map<_, _>>().into();
    let long = json!({"a": "x".repeat(501)});
    for (path, body, word) in [
        ("data-key", json!({}), "context"),
        ("data-key", json!({"context": null}), "context"),
        ("data-key", json!({"context": "x"}), "context"),
        ("data-key", json!({"context": {"a": {}}}), "context"),
        ("decrypt", json!({}), "keys"),
        ("decrypt", json!({"keys": 7}), "keys"),
        ("rekey", json!({"context": {}}), "encrypted_keys"),
        ("rekey", json!({"encrypted_keys": blob}), "context"),
    ] {
        s.kv_key(path, body).await.is_kv_error(400, "invalid_request", word);
    }
    for context in [many, long] {
        s.kv_key("data-key", json!({"context": context})).await.is_kv_error(
            422,
            "unprocessable_entity",
            "context",
        );
        let body = json!({"encrypted_keys": blob, "context": context});
        s.kv_key("rekey", body).await.is_kv_error(422, "unprocessable_entity", "context");
    }
    for bad in ["", "*", "AAAA", &bent(blob), foreign["encrypted_keys"].as_str().unwrap()] {
        s.kv_key("decrypt", json!({"keys": bad})).await.is_kv_error(
            400,
            "invalid_request",
            "make a new data key",
        );
        let body = json!({"encrypted_keys": bad, "context": {}});
        s.kv_key("rekey", body).await.is_kv_error(400, "invalid_request", "make a new data key");
    }
}

#[tokio::test]
async fn no_key_is_kept() {
    let s = Server::start().await;
    let before = rows(&s);
    let mut needles = vec![b"sensitive text".to_vec()];
    for made in [
        s.key("create-data-key", json!({})).await.ok()["plaintext_key"].clone(),
        s.kv_key("data-key", json!({"context": {}})).await.ok()["data_key"].clone(),
    ] {
        let text = made.as_str().unwrap();
        needles.extend([text.as_bytes().to_vec(), BASE64.decode(text).unwrap()]);
        s.key("encrypt-data", json!({"plaintext": "sensitive text", "data_key": made})).await.ok();
    }
    for file in std::fs::read_dir(s.dir.path()).unwrap().map(|entry| entry.unwrap()) {
        let Ok(bytes) = std::fs::read(file.path()) else { continue };
        for needle in &needles {
            assert!(!bytes.windows(needle.len()).any(|w| w == needle), "in {:?}", file.file_name());
        }
    }
    assert_eq!(rows(&s), before, "nothing was written at all");
}

/// Rows in all tables of the database.
fn rows(s: &Server) -> Vec<i64> {
    let database = rusqlite::Connection::open(s.dir.path().join("vault.db")).unwrap();
    ["objects", "versions", "tombstones", "api_keys", "idempotency"]
        .map(|table| {
            database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        })
        .to_vec()
}
