//! The embedded vault beside the parts it is made of: HTTP that answers a constant, SQLite that
//! commits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use vaultfs::server::instance::data_dir::DataDir;
use vaultfs::server::instance::serve::{Instance, ServeOptions};

use crate::Plan;
use crate::measure::{compare, time};
use crate::mount::Place;
use crate::report::Report;

/// A server on a runtime of its own.
struct Server {
    runtime: Option<Runtime>,
    url: String,
    key: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> Result<Runtime, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|e| e.to_string())
}

fn vault(dir: &Path) -> Result<Server, String> {
    let runtime = runtime()?;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (url, key) = runtime.block_on(async {
        let data = DataDir::prepare(dir).map_err(|e| text(&e))?;
        let lock = data.try_lock().map_err(|e| text(&e))?.ok_or("the directory is in use")?;
        let key_file = data.key_file();
        let instance = Instance::open(data, lock, ServeOptions::default()).await.map_err(|e| text(&e))?;
        let tcp = TcpListener::bind("127.0.0.1:0").await.map_err(|e| text(&e))?;
        let url = format!("http://{}", tcp.local_addr().map_err(|e| text(&e))?);
        let listening = instance.listen(Some(tcp.into())).map_err(|e| text(&e))?;
        tokio::spawn(listening.run(std::future::pending::<()>()));
        let key = std::fs::read_to_string(key_file).map_err(|e| text(&e))?;
        Ok::<_, String>((url, key.trim().to_owned()))
    })?;
    Ok(Server { runtime: Some(runtime), url, key })
}

fn constant(body: String) -> Result<Server, String> {
    let runtime = runtime()?;
    let url = runtime.block_on(async {
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", tcp.local_addr()?);
        let body: Arc<str> = body.into();
        let answer =
            get(move || async move { ([(header::CONTENT_TYPE, "application/json")], body.to_string()) });
        use axum::serve::ListenerExt;
        let tcp = tcp.tap_io(|tcp| drop(tcp.set_nodelay(true)));
        tokio::spawn(async move { axum::serve(tcp, Router::new().route("/constant", answer)).await });
        Ok::<_, std::io::Error>(url)
    });
    Ok(Server { url: url.map_err(|e| e.to_string())?, runtime: Some(runtime), key: String::new() })
}

/// A client on a runtime of its own.
struct Client {
    runtime: Runtime,
    http: reqwest::Client,
}

impl Client {
    fn send(&self, request: reqwest::RequestBuilder) -> Result<String, String> {
        let answer = async { request.send().await?.error_for_status()?.text().await };
        self.runtime.block_on(answer).map_err(|e| e.to_string())
    }

    /// So many requests, each after the last, on so many connections at once.
    fn many(
        &self,
        each: usize,
        at_once: usize,
        make: impl Fn(usize) -> reqwest::RequestBuilder,
    ) -> Result<Duration, String> {
        let line = |k: usize| {
            let requests: Vec<_> = (0..each).map(|n| make(k * each + n)).collect();
            async move {
                for request in requests {
                    request.send().await?.error_for_status()?.bytes().await?;
                }
                Ok::<_, reqwest::Error>(())
            }
        };
        let lines = futures_util::future::try_join_all((0..at_once).map(line));
        time(|| self.runtime.block_on(lines).map_err(|e| e.to_string()))
    }
}

pub fn all(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let place = Place::new()?;
    let ours = vault(&place.make("data")?)?;
    let http = reqwest::Client::builder().no_proxy().build().map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let client = Client { runtime: runtime.map_err(|e| e.to_string())?, http };
    let mut id = String::new();
    for n in 0..1000 {
        let body = format!(r#"{{"name":"app/key-{n}","value":"{}","key_context":{{}}}}"#, "v".repeat(100));
        let request = client.http.post(format!("{}/vault/v1/kv", ours.url)).bearer_auth(&ours.key).body(body);
        let made: serde_json::Value =
            serde_json::from_str(&client.send(request)?).map_err(|e| e.to_string())?;
        id = made["id"].as_str().ok_or("an object without id")?.to_owned();
    }
    let read = |n: usize| {
        let url = format!("{}/vault/v1/kv/name/app%2Fkey-{}", ours.url, n % 1000);
        client.http.get(url).bearer_auth(&ours.key)
    };
    let theirs = constant(client.send(read(1))?)?;
    let bare = |_: usize| client.http.get(format!("{}/constant", theirs.url)).bearer_auth(&ours.key);
    for (at_once, row, what) in
        [(1, "embedded-get", "one after another"), (8, "embedded-get-8", "on 8 connections")]
    {
        let each = if plan.quick { 400 } else { 1500 } / at_once;
        // Their time for ours: a ratio of speeds.
        let (ratio, _) = compare(
            plan.rounds,
            5,
            || client.many(each, at_once, bare),
            || client.many(each, at_once, read),
        )?;
        report.at_least(
            row,
            format!("GET by name, {what}, against an axum handler that answers a constant"),
            0.5,
            &ratio,
        );
    }
    updates(plan, report, &place, &ours, &client, &id)
}

/// What one update comes to in SQLite: a version in, the object changed, committed to the disk.
struct Bare(rusqlite::Connection);

impl Bare {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let db = rusqlite::Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.execute_batch(
            "CREATE TABLE objects (seq INTEGER PRIMARY KEY, version INTEGER, updated_at INTEGER);
             CREATE TABLE versions (object INTEGER, number INTEGER, sealed BLOB, PRIMARY KEY (object, number));
             INSERT INTO objects VALUES (1, 1, 1);",
        )?;
        Ok(Self(db))
    }

    fn update(&mut self) -> rusqlite::Result<()> {
        let tx = self.0.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        tx.prepare_cached(
            "UPDATE objects SET version = version + 1, updated_at = updated_at + 1 WHERE seq = 1",
        )?
        .execute([])?;
        tx.prepare_cached("INSERT INTO versions SELECT seq, version, randomblob(129) FROM objects")?
            .execute([])?;
        tx.commit()
    }
}

fn updates(
    plan: &Plan,
    report: &mut Report,
    place: &Place,
    ours: &Server,
    client: &Client,
    id: &str,
) -> Result<(), String> {
    let mut bare = Bare::open(&place.path("bare.db")).map_err(|e| e.to_string())?;
    // Until its log is as long as it gets, as the other's is: growing a file costs more than
    // writing it.
    (0..1500).try_for_each(|_| bare.update()).map_err(|e| e.to_string())?;
    let each = if plan.quick { 30 } else { 100 };
    let write = |n: usize| {
        let body = format!(r#"{{"value":"{n:0100}"}}"#);
        client.http.put(format!("{}/vault/v1/kv/{id}", ours.url)).bearer_auth(&ours.key).body(body)
    };
    let mut commit = || time(|| (0..each).try_for_each(|_| bare.update()).map_err(|e| e.to_string()));
    let (ratio, _) = compare(plan.rounds, 5, &mut commit, || client.many(each, 1, write))?;
    report.at_least(
        "embedded-update",
        "durable update over HTTP, against a bare SQLite transaction",
        0.5,
        &ratio,
    );
    let (ratio, _) = compare(plan.rounds, 3, &mut commit, || client.many(each / 8 + 1, 8, write))?;
    report.told("the same on 8 connections at once", ratio.times());
    Ok(())
}
