//! The vault inside another process: who serves, who attaches, who takes over, who is let in.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use vaultfs::server::error::ServeError;
use vaultfs::server::instance::embedded::Embedded;
use vaultfs::server::instance::serve::ServeOptions;

use crate::support::vault_server::served::Served;

fn client(socket: &Path) -> Client {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().unix_socket(socket.to_owned()).build().unwrap()
}

fn key(embedded: &Embedded) -> String {
    std::fs::read_to_string(embedded.key_file()).unwrap().trim().to_owned()
}

async fn status(embedded: &Embedded, path: &str, body: Option<&str>) -> Result<StatusCode, reqwest::Error> {
    let url = format!("http://vault/vault/object/{path}");
    let client = client(embedded.socket());
    let request = match body {
        Some(body) => client.post(url).body(body.to_owned()),
        None => client.get(url),
    };
    Ok(request.bearer_auth(key(embedded)).send().await?.status())
}

/// The object `a` is there once somebody serves again.
async fn answers_again(embedded: &Embedded) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match status(embedded, "get-by-name?name=a", None).await {
            Ok(status) => return assert_eq!(status, StatusCode::OK),
            Err(e) => assert!(Instant::now() < deadline, "nobody took over: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_first_serves_the_second_attaches_and_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::start(dir.path()).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(dir.path()), mode(first.socket()), mode(first.key_file())), (0o700, 0o600, 0o600));
    let made = status(&first, "create", Some(r#"{"name":"a","data":{}}"#)).await.unwrap();
    assert_eq!(made, StatusCode::OK);
    let second = Embedded::start(dir.path()).await.unwrap();
    let third = Embedded::start(dir.path()).await.unwrap();
    assert_eq!(status(&second, "get-by-name?name=a", None).await.unwrap(), StatusCode::OK);
    first.shutdown().await;
    answers_again(&second).await;
    second.shutdown().await;
    answers_again(&third).await;
    third.shutdown().await;
    assert!(!dir.path().join("vault.sock").exists());
    // And from nothing but the files.
    let again = Embedded::start(dir.path()).await.unwrap();
    answers_again(&again).await;
}

#[tokio::test]
async fn one_that_is_dropped_serves_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::start(dir.path()).await.unwrap();
    status(&first, "create", Some(r#"{"name":"a","data":{}}"#)).await.unwrap();
    let second = Embedded::start(dir.path()).await.unwrap();
    drop(first);
    answers_again(&second).await;
}

#[tokio::test]
async fn a_start_at_the_same_moment_is_no_race() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let started = futures_util::future::join_all((0..8).map(|_| Embedded::start(&path))).await;
    let all: Vec<_> = started.into_iter().map(Result::unwrap).collect();
    status(&all[0], "create", Some(r#"{"name":"a","data":{}}"#)).await.unwrap();
    for one in all {
        answers_again(&one).await;
        one.shutdown().await;
    }
}

#[tokio::test]
async fn a_killed_server_is_succeeded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Served::start(dir.path());
    let attached = Embedded::start(dir.path()).await.unwrap();
    let made = status(&attached, "create", Some(r#"{"name":"a","data":{}}"#)).await.unwrap();
    assert_eq!(made, StatusCode::OK);
    drop(server);
    // Its socket's file is still there, and does not answer, until the successor replaces it.
    answers_again(&attached).await;
    attached.shutdown().await;
}

#[tokio::test]
async fn a_vault_that_was_moved_away_has_no_empty_successor() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("vault");
    let server = Served::start(&dir);
    let attached = Embedded::start(&dir).await.unwrap();
    std::fs::rename(&dir, temp.path().join("moved")).unwrap();
    drop(server);
    std::fs::create_dir(&dir).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    attached.shutdown().await;
    assert!(!dir.join("vault.db").exists());
    let options = ServeOptions { make: false, ..ServeOptions::default() };
    let refused = Embedded::start_with(&dir, options).await.unwrap_err();
    assert!(refused.to_string().starts_with("there is no vault in"), "{refused}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("vault.sock")).unwrap());
    let embedded = Embedded::start(dir.path()).await.unwrap();
    assert_eq!(status(&embedded, "list", None).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_vault_without_its_master_key_says_so() {
    let dir = tempfile::tempdir().unwrap();
    Embedded::start(dir.path()).await.unwrap().shutdown().await;
    let file = dir.path().join("master-key");
    let right = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let Err(ServeError::MasterKey { problem, .. }) = Embedded::start(dir.path()).await else { panic!() };
    assert!(problem.contains("missing"));
    std::fs::write(&file, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let Err(ServeError::MasterKey { problem, .. }) = Embedded::start(dir.path()).await else { panic!() };
    assert!(problem.contains("not the one"));
    std::fs::write(&file, right).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let Err(ServeError::MasterKey { problem, .. }) = Embedded::start(dir.path()).await else { panic!() };
    assert!(problem.contains("0600"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    Embedded::start(dir.path()).await.unwrap();
}

#[tokio::test]
async fn the_master_key_may_live_elsewhere() {
    // "0123456789abcdef", twice
    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("vault");
    let file = temp.path().join("vaultfs-master-key");
    std::fs::write(&file, KEY).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();

    // As a named file it must be private.
    let options = ServeOptions { master_key_file: Some(file.clone()), ..ServeOptions::default() };
    let Err(ServeError::MasterKey { .. }) = Embedded::start_with(&dir, options.clone()).await else {
        panic!()
    };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
    let embedded = Embedded::start_with(&dir, options).await.unwrap();
    let made = status(&embedded, "create", Some(r#"{"name":"a","data":{}}"#)).await.unwrap();
    assert_eq!(made, StatusCode::OK);
    embedded.shutdown().await;
    assert!(!dir.join("master-key").exists());

    // As a credential of systemd's its group bits are the access list's.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();
    let serve = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&dir).stdout(Stdio::piped());
        command
    };
    let mut server = serve().env("CREDENTIALS_DIRECTORY", temp.path()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    assert!(url.starts_with("http://127.0.0.1:"));
    let attached = Embedded::start(&dir).await.unwrap();
    assert_eq!(status(&attached, "get-by-name?name=a", None).await.unwrap(), StatusCode::OK);
    attached.shutdown().await;
    server.kill().unwrap();
    server.wait().unwrap();

    // Without either there is no key, and none is made that would open nothing.
    let refused = serve().env_remove("CREDENTIALS_DIRECTORY").stderr(Stdio::piped()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("master-key is missing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_our_own_user_is_let_in() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED only_our_own_user_is_let_in: needs root, to become somebody else");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let embedded = Embedded::start(dir.path()).await.unwrap();
    // As if the modes had failed us.
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    open(dir.path(), 0o755);
    open(embedded.socket(), 0o666);
    let ask = |uid: u32| {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"])
            .arg(embedded.socket())
            .args([
                "-H",
                &format!("Authorization: Bearer {}", key(&embedded)),
                "http://vault/vault/object/list",
            ])
            .uid(uid)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask(0), "200");
    assert_eq!(ask(12345), "000");
}
