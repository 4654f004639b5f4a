//! `vaultfs serve --data DIR key …` beside a running server: what is made works, what is revoked
//! does not.

use std::path::Path;
use std::process::{Command, Output};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vaultfs::server::store::{Permission, Permissions};

use crate::support::vault_server::{Server, id};

fn key(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
    command.args(["serve", "--data"]).arg(dir).arg("key").args(args).output().unwrap()
}

fn out(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_made_listed_and_revoked_beside_a_server() {
    let s = Server::start().await;
    let dir = s.dir.path().to_owned();
    let made = out(key(&dir, &["add", "--permissions", "read,delete", "--name", "back\nup"]));
    let text = made.trim_end();
    assert!(text.starts_with("sk_") && text.len() == 67, "one key, one line");
    let as_it =
        |method: &'static str, path: &'static str| s.send_as(Some(text), method, path, b"{}".to_vec());
    as_it("GET", "/vault/object/list").await.ok();
    as_it("POST", "/vault/object/create").await.is_error(403, "forbidden", "write");
    as_it("DELETE", "/vault/object/delete").await.is_error(400, "invalid_request", "id");

    let listed = out(key(&dir, &["list"]));
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), 2, "{listed}");
    assert_eq!((rows[0][1], rows[0][3]), ("read,write,delete,keys", "first key"));
    assert_eq!((rows[1][1], rows[1][3]), ("read,delete", "back\\nup"));
    assert!(humantime::parse_rfc3339(rows[1][2]).is_ok());
    assert!(!listed.contains("sk_"));

    out(key(&dir, &["revoke", rows[1][0]]));
    as_it("GET", "/vault/object/list").await.is_error(401, "unauthorized", "not known");
    let gone = key(&dir, &["revoke", rows[1][0]]);
    assert_eq!(gone.status.code(), Some(5));
    assert_eq!(key(&dir, &["add", "--permissions", "everything"]).status.code(), Some(2));
}

/// A command ends while the store still cleans up after a deletion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_about_keys_says_nothing_of_its_own_end() {
    let s = Server::start().await;
    let dir = s.dir.path().to_owned();
    for round in 0..40 {
        out(key(&dir, &["add", "--name", "x"]));
        let listed = out(key(&dir, &["list"]));
        let id = listed.lines().last().unwrap().split('\t').next().unwrap();
        let revoked = key(&dir, &["revoke", id]);
        assert_eq!(String::from_utf8_lossy(&revoked.stderr), "", "round {round}");
        out(revoked);
    }
}

#[test]
fn a_directory_without_a_vault_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let refused = key(dir.path(), &["list"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("there is no vault here"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let refused = key(&dir.path().join("missing"), &["add"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!dir.path().join("missing").exists());
}

/// Every route: method, path, body, the permission that it takes and the status where that is
/// given. `<ID>` and `<OTHER>` are objects of the vault, `<KEY>`, `<BLOB>` and `<SEALED>` what it
/// made for a client.
const ROUTES: &[(&str, &str, &str, &str, u16)] = &[
    ("POST", "/vault/object/create", r#"{"name":"made","data":{"value":"v"}}"#, "write", 200),
    ("GET", "/vault/object/get?id=<ID>", "", "read", 200),
    ("GET", "/vault/object/get-by-name?name=canary", "", "read", 200),
    ("GET", "/vault/object/list", "", "read", 200),
    ("PUT", "/vault/object/update", r#"{"id":"<ID>","data":{"value":"canary-value"}}"#, "write", 200),
    ("DELETE", "/vault/object/delete", r#"{"id":"<OTHER>"}"#, "delete", 200),
    ("GET", "/vault/object/metadata?id=<ID>", "", "read", 200),
    ("GET", "/vault/object/versions?id=<ID>", "", "read", 200),
    ("GET", "/vault/object/version?id=<ID>&version=1", "", "read", 200),
    ("POST", "/vault/key/create-data-key", "", "keys", 200),
    ("POST", "/vault/key/encrypt-data", r#"{"plaintext":"p","data_key":"<KEY>"}"#, "keys", 200),
    ("POST", "/vault/key/decrypt-data", r#"{"ciphertext":"<SEALED>","data_key":"<KEY>"}"#, "keys", 200),
    ("POST", "/vault/key/decrypt-data-key", r#"{"encrypted_key":"<BLOB>"}"#, "keys", 200),
    ("GET", "/vault/v1/kv", "", "read", 200),
    ("POST", "/vault/v1/kv", r#"{"name":"made","value":"v","key_context":{}}"#, "write", 201),
    ("GET", "/vault/v1/kv/name/canary", "", "read", 200),
    ("GET", "/vault/v1/kv/<ID>", "", "read", 200),
    ("PUT", "/vault/v1/kv/<ID>", r#"{"value":"canary-value"}"#, "write", 201),
    ("DELETE", "/vault/v1/kv/<OTHER>", "", "delete", 200),
    ("GET", "/vault/v1/kv/<ID>/metadata", "", "read", 200),
    ("GET", "/vault/v1/kv/<ID>/versions", "", "read", 200),
    ("POST", "/vault/v1/keys/data-key", r#"{"context":{}}"#, "keys", 200),
    ("POST", "/vault/v1/keys/decrypt", r#"{"keys":"<BLOB>"}"#, "keys", 200),
    ("POST", "/vault/v1/keys/rekey", r#"{"encrypted_keys":"<BLOB>","context":{}}"#, "keys", 200),
];

/// Routes whose answers hold a value: of an object, or a data key.
fn gives_a_value(path: &str) -> bool {
    let object = ["/object/get", "/object/version?", "/kv/name/", "/keys/", "/key/"];
    object.iter().any(|part| path.contains(part)) || path == "/vault/v1/kv/<ID>"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_takes_its_permission_and_only_reads_give_values() {
    let s = Server::start().await;
    let kinds = [Permission::Read, Permission::Write, Permission::Delete, Permission::Keys];
    let mut keys = vec![("none", None, 401), ("wrong", Some("sk_not_a_key_of_this_vault".to_owned()), 401)];
    for kind in kinds {
        keys.push((kind.name(), Some(s.key_with(&[kind]).await), 403));
    }
    let revoked = s.key_with(&kinds).await;
    for key in s.service.keys().await.unwrap().iter().filter(|key| key.permissions == Permissions::of(&kinds))
    {
        if key.name == "test" {
            s.service.revoke_key(&key.id).await.unwrap();
        }
    }
    keys.push(("revoked", Some(revoked), 401));
    let canary = id(&s.create("canary", r#"{"value":"canary-value"}"#).await.ok());
    let made = s.send("POST", "/vault/key/create-data-key", "").await.ok();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let (plain, blob) = (text("plaintext_key"), text("encrypted_key"));
    let body = serde_json::json!({"plaintext": "p", "data_key": plain}).to_string();
    let sealed =
        s.send("POST", "/vault/key/encrypt-data", body).await.ok()["ciphertext"].as_str().unwrap().to_owned();
    let mut answered = 0;
    for (method, path, body, permission, success) in ROUTES {
        for (kind, key, refusal) in &keys {
            let other = id(&s.create(&format!("other{answered}"), r#"{"value":"x"}"#).await.ok());
            let fill = |text: &str| {
                let ids = text.replace("<OTHER>", &other).replace("<ID>", &canary);
                ids.replace("<KEY>", &plain).replace("<BLOB>", &blob).replace("<SEALED>", &sealed)
            };
            let answer = s.send_as(key.as_deref(), method, &fill(path), fill(body).into()).await;
            let expected = if kind == permission { *success } else { *refusal };
            assert_eq!(answer.status.as_u16(), expected, "{method} {path} with {kind}: {answer:?}");
            let read = expected == *success && gives_a_value(path);
            for secret in ["canary-value", plain.as_str()] {
                assert!(read || !answer.text.contains(secret), "{method} {path} with {kind}: {answer:?}");
            }
            if let Some(made) =
                answer.json["id"].as_str().filter(|_| *method == "POST" && expected == *success)
            {
                s.delete(made).await;
            }
            answered += 1;
        }
    }
    assert_eq!(answered, ROUTES.len() * 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_revoked_while_its_body_comes_in_gets_nothing_done() {
    let s = Server::start().await;
    let canary = id(&s.create("canary", r#"{"value":"canary-value"}"#).await.ok());
    let made = s.send("POST", "/vault/key/create-data-key", "").await.ok();
    let (plain, blob) = (made["plaintext_key"].as_str().unwrap(), made["encrypted_key"].as_str().unwrap());
    let body = serde_json::json!({"plaintext": "p", "data_key": plain}).to_string();
    let sealed = s.send("POST", "/vault/key/encrypt-data", body).await.ok();
    let sealed = sealed["ciphertext"].as_str().unwrap();
    let all = [Permission::Read, Permission::Write, Permission::Delete, Permission::Keys];
    let state = async || {
        let list = s.get("/vault/v1/kv").await.text;
        (list, s.get(&format!("/vault/object/versions?id={canary}")).await.text)
    };
    let before = state().await;
    let mut tried = 0;
    for (method, path, body, ..) in ROUTES.iter().filter(|(_, _, body, ..)| !body.is_empty()) {
        let fill = |text: &str| {
            let ids = text.replace("<OTHER>", &canary).replace("<ID>", &canary);
            ids.replace("<KEY>", plain).replace("<BLOB>", blob).replace("<SEALED>", sealed)
        };
        let (path, body, key) = (fill(path), fill(body), s.key_with(&all).await);
        let address = s.url.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\
             Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server asks for the body when the key was let in.
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).await.unwrap();
        assert!(go_on.starts_with(b"HTTP/1.1 100 "), "{method} {path}");
        let newest = s.service.keys().await.unwrap().pop().unwrap();
        s.service.revoke_key(&newest.id).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 "), "{method} {path}: {answer}");
        assert_eq!(state().await, before, "{method} {path}");
        tried += 1;
    }
    assert!(tried >= 10, "{tried}");
}

#[test]
fn the_matrix_of_permissions_has_each_route() {
    let source = include_str!("../../src/server/api/mod.rs");
    let routes = source.lines().flat_map(|line| line.match_indices('"').map(move |(at, _)| &line[at + 1..]));
    let routes = routes.filter(|rest| rest.starts_with("/vault/")).filter_map(|rest| rest.split('"').next());
    let mut count = 0;
    for route in routes {
        let path = route.replace("{*name}", "canary").replace("{id}", "<ID>");
        let known = |known: &str| {
            known.split('?').next() == Some(path.as_str()) || known == path.replace("<ID>", "<OTHER>")
        };
        assert!(ROUTES.iter().any(|(_, path, ..)| known(path)), "{route} is not in the matrix");
        count += 1;
    }
    assert!(count > 15, "the routes are written elsewhere by now");
    let methods = source.matches("needs(Read,").count() + source.matches("needs(Write,").count();
    let methods = methods + source.matches("needs(Delete,").count() + source.matches("needs(Keys,").count();
    assert_eq!(methods, ROUTES.len(), "each method of each route");
}
