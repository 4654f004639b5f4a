//! The built server in bad circumstances: a full disk, connections that say nothing, bodies that stall.

mod vault_server;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use vault_server::served::Served;

fn client() -> Client {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap()
}

struct Api {
    client: Client,
    url: String,
    key: String,
}

impl Api {
    fn of(served: &Served) -> Self {
        Self::with_key(served, &served.key)
    }

    fn with_key(served: &Served, key: &str) -> Self {
        Self { client: client(), url: served.url.clone(), key: key.to_owned() }
    }

    async fn create(&self, name: &str, value: &str) -> StatusCode {
        let body = json!({"name": name, "data": {"value": value}}).to_string();
        let request = self.client.post(format!("{}/vault/object/create", self.url)).bearer_auth(&self.key);
        request.body(body).send().await.unwrap().status()
    }

    async fn get(&self, name: &str) -> (StatusCode, Value) {
        let url = format!("{}/vault/object/get-by-name?name={name}", self.url);
        let response = self.client.get(url).bearer_auth(&self.key).send().await.unwrap();
        (response.status(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }
}

/// A small disk, gone with the test.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn of_4_mib(at: &'a Path) -> Self {
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=4m,mode=700", "none"]).arg(at).status().unwrap();
        assert!(mounted.success());
        Self(at)
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn filler(&self) -> std::path::PathBuf {
        self.0.join("lost+found")
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

async fn on_a_full_disk(end: i32) {
    if !is_root() {
        eprintln!("SKIPPED: only root can make a small file system");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let disk = Disk::of_4_mib(temp.path());
    let dir = temp.path().join("vault");
    let mut served = Served::start(&dir);
    assert_eq!(Api::of(&served).create("old", "kept").await, StatusCode::OK);
    served.signal(end);
    served.wait();
    disk.fill();

    let served = Served::start(&dir);
    let api = Api::of(&served);
    let (status, object) = api.get("old").await;
    assert_eq!((status, &object["data"]["value"]), (StatusCode::OK, &json!("kept")));
    // Readers do not wait for one another, or for changes that are refused.
    let long = "x".repeat(60_000);
    let (refused, read) = tokio::join!(api.create("new", &long), api.get("old"));
    assert_eq!((refused, read.0), (StatusCode::INSUFFICIENT_STORAGE, StatusCode::OK));
    assert_eq!(api.get("new").await.0, StatusCode::NOT_FOUND);

    fs::remove_file(disk.filler()).unwrap();
    assert_eq!(api.create("new", &long).await, StatusCode::OK);
    for n in 0..5 {
        assert_eq!(api.create(&format!("more{n}"), "value").await, StatusCode::OK);
        let (status, object) = api.get("new").await;
        assert_eq!((status, &object["data"]["value"]), (StatusCode::OK, &json!(long)));
    }
    // It is a server like any other again: a command beside it finds the database open.
    let mut list = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
    let list =
        list.args(["serve", "--data"]).arg(&dir).args(["key", "list"]).stdin(Stdio::null()).output().unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_a_server_starts_and_reads_and_stores_when_there_is_room() {
    on_a_full_disk(libc::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_a_server_starts_after_a_death_and_has_what_was_acknowledged() {
    on_a_full_disk(libc::SIGKILL).await;
}
