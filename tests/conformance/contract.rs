//! The contract suite on each vault: in memory, faulty, behind a prefix, and the client over TCP
//! and over the Unix socket against the embedded server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vaultfs::clock::SystemClock;
use vaultfs::secret::SecretString;
use vaultfs::server::instance::embedded::Embedded;
use vaultfs::vault::client;
use vaultfs::vault::client::api_key::{ApiKey, read_key_file};
use vaultfs::vault::client::retry::Policy;
use vaultfs::vault::client::{HttpConfig, Opened, Target};
use vaultfs::vault::prefix::PrefixVault;
use vaultfs::vault::testing::faulty::FaultyVault;
use vaultfs::vault::testing::memory::MemoryVault;
use vaultfs::vault::{Call, Content, Dialect, DynVault, ErrorKind, ListQuery, ObjectId, ObjectName};

use super::vault_contract as contract;
use crate::support::vault_server::{Server, id};

const MAX_SIZE: usize = 1024 * 1024;

fn call() -> Call {
    Call::foreground(Instant::now() + Duration::from_secs(10))
}

async fn open(target: Target, key: SecretString) -> vaultfs::vault::Result<Opened> {
    open_as(target, key, None).await
}

async fn open_as(
    target: Target,
    key: SecretString,
    dialect: Option<Dialect>,
) -> vaultfs::vault::Result<Opened> {
    let config = HttpConfig {
        target,
        tls: Arc::default(),
        key: Arc::new(ApiKey::new(key, None, None)),
        clock: Arc::new(SystemClock),
        max_size: MAX_SIZE,
        policy: Policy::default(),
        listeners: None,
        key_context: Default::default(),
    };
    client::open(config, &call(), dialect).await
}

async fn server() -> Server {
    Server::start_in(tempfile::tempdir().unwrap(), MAX_SIZE).await
}

#[tokio::test]
async fn memory_in_both_dialects() {
    contract::run(Arc::new(MemoryVault::object())).await;
    contract::run(Arc::new(MemoryVault::kv())).await;
}

#[tokio::test]
async fn a_faulty_vault_without_faults() {
    contract::run(Arc::new(FaultyVault::new(Arc::new(MemoryVault::object())))).await;
}

#[tokio::test]
async fn a_prefix_beside_other_objects() {
    for memory in [MemoryVault::object(), MemoryVault::kv()] {
        let memory: DynVault = Arc::new(memory);
        let name = |text: &str| ObjectName::new(text).unwrap();
        for other in ["app", "apple", "other/app/x", "app2/x", "x"] {
            memory.create(&call(), &name(other), &Content::plain("not yours")).await.unwrap();
        }
        contract::run(Arc::new(PrefixVault::new(memory.clone(), "app"))).await;
        contract::run(Arc::new(PrefixVault::new(memory.clone(), "a//ü"))).await;
        assert_eq!(contract::list_all(&memory, 100).await.len(), 5);
    }
}

#[tokio::test]
async fn http_over_tcp() {
    let server = server().await;
    let opened = open(Target::Url(server.url.clone()), SecretString::new(server.key.clone())).await.unwrap();
    assert_eq!(opened.first_page.unwrap().items, []);
    let before = opened.vault.status().requests;
    contract::create_then_read_each_way(&opened.vault).await;
    assert_eq!(opened.vault.status().requests - before, 8, "each operation is one request");
    contract::run(opened.vault).await;
    // A client of its own, because each assumes 1000 requests a minute while no header says
    // otherwise.
    let opened = open(Target::Url(server.url.clone()), SecretString::new(server.key.clone())).await.unwrap();
    contract::run(Arc::new(PrefixVault::new(opened.vault, "app"))).await;
    server.stop().await;
}

#[tokio::test]
async fn kv_over_tcp() {
    let server = server().await;
    let open = || {
        let key = SecretString::new(server.key.clone());
        open_as(Target::Url(server.url.clone()), key, Some(Dialect::Kv))
    };
    let opened = open().await.unwrap();
    assert_eq!((opened.first_page.unwrap().items, opened.vault.status().requests), (vec![], 1));
    let before = opened.vault.status().requests;
    contract::create_then_read_each_way(&opened.vault).await;
    assert_eq!(opened.vault.status().requests - before, 8, "each operation is one request");
    contract::run(opened.vault).await;
    contract::run(Arc::new(PrefixVault::new(open().await.unwrap().vault, "app"))).await;
    server.stop().await;
}

#[tokio::test]
async fn kv_over_the_socket_of_the_embedded_vault() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::start(dir.path()).await.unwrap();
    let key = || read_key_file(first.key_file(), None).unwrap();
    let target = || Target::Socket(first.socket().to_owned());
    let kv: DynVault = open_as(target(), key(), Some(Dialect::Kv)).await.unwrap().vault;
    contract::run(kv.clone()).await;

    // Either dialect reads the bytes that the other wrote.
    let object: DynVault = open(target(), key()).await.unwrap().vault;
    for (n, bytes) in [&b"text\n"[..], b"\0\xff", b"{\n  \"a\": 1\n}\n", b""].into_iter().enumerate() {
        for (writer, reader) in [(&kv, &object), (&object, &kv)] {
            let name = ObjectName::new(&format!("both/{n}")).unwrap();
            let made = writer.create(&call(), &name, &Content::plain(bytes)).await.unwrap();
            let read = reader.get_by_name(&call(), &name).await.unwrap();
            assert_eq!(read.content.bytes.expose(), bytes);
            let history = reader.versions(&call(), &made.id, None).await.unwrap();
            assert_eq!(history[0].size, Some(bytes.len() as u64));
            writer.delete(&call(), &made.id, None).await.unwrap();
        }
    }
    first.shutdown().await;
}

#[tokio::test]
async fn http_over_the_socket_of_the_embedded_vault() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::start(dir.path()).await.unwrap();
    let key = || read_key_file(first.key_file(), None).unwrap();
    let target = || Target::Socket(first.socket().to_owned());
    let vault: DynVault = open(target(), key()).await.unwrap().vault;
    contract::run(vault.clone()).await;

    let name = ObjectName::new("dir/kept").unwrap();
    vault.create(&call(), &name, &Content::plain("x")).await.unwrap();
    let opened = open(target(), key()).await.unwrap();
    let names: Vec<_> = opened.first_page.unwrap().items.iter().map(|s| s.name.clone()).collect();
    assert_eq!(names, [name], "the first page comes with the question");

    let wrong = open(target(), SecretString::new("sk_of_somebody_else".into())).await.unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::Unauthorized);
    assert!(!wrong.to_string().contains("sk_of_somebody_else"), "{wrong}");

    first.shutdown().await;
    let e = vault.list(&call(), &ListQuery::first()).await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::Unreachable);
}

/// A mount that looks for a save of its own, whose answer was lost, asks for the newest alone.
#[tokio::test]
async fn of_a_long_history_the_newest_versions_alone_can_be_had() {
    let s = server().await;
    let object = id(&s.create("much/changed", r#"{"value":"1"}"#).await.ok());
    for n in 2..=120 {
        s.update(&object, &format!(r#"{{"value":"{n}"}}"#)).await.ok();
    }
    let routes = [format!("/vault/object/versions?id={object}&"), format!("/vault/v1/kv/{object}/versions?")];
    for route in &routes {
        let all = s.get(route.trim_end_matches(['&', '?'])).await.ok()["data"].as_array().unwrap().clone();
        assert_eq!(all.len(), 120, "{route}");
        for limit in [1, 64, 100] {
            let some = s.get(&format!("{route}limit={limit}")).await.ok();
            assert_eq!(some["data"].as_array().unwrap(), &all[..limit], "{route}");
        }
        for bad in ["0", "", "x", "-1"] {
            let refused = s.get(&format!("{route}limit={bad}")).await;
            assert_eq!(refused.status.as_u16(), 400, "{refused:?}");
        }
    }
    for dialect in [Dialect::Object, Dialect::Kv] {
        let vault = open_as(Target::Url(s.url.clone()), SecretString::new(s.key.clone()), Some(dialect))
            .await
            .unwrap()
            .vault;
        let all = vault.versions(&call(), &ObjectId::new(&*object), None).await.unwrap();
        let since = async |n: usize| {
            let some =
                vault.versions(&call(), &ObjectId::new(&*object), Some(&all[n - 1].tag)).await.unwrap();
            some.into_iter().map(|v| v.tag).collect::<Vec<_>>()
        };
        let tags = |from: usize| all[from - 1..].iter().map(|v| v.tag.clone()).collect::<Vec<_>>();
        assert_eq!(since(119).await, tags(57), "one page");
        assert_eq!(since(57).await, tags(57));
        assert_eq!(since(56).await, tags(1), "it is not on the page");
    }
}
