//! `vaultfs serve --data DIR key …` beside a running server: what is made works, what is revoked does not.

mod vault_server;

use std::path::Path;
use std::process::{Command, Output};

use vault_server::Server;

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
