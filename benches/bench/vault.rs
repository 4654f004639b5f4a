//! A vault that answers at once, or after as long as is asked: the kv dialect over objects that are
//! made up as they are asked for. It counts requests, changes objects on demand, and remembers when
//! it told of a change.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ulid::Ulid;

/// Size of the value of an object at a version.
pub type SizeOf = fn(u32, u32) -> usize;

/// The vault, as those who measure see it.
pub struct Vault {
    pub url: String,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    pub gets: u64,
    pub lists: u64,
    pub puts: u64,
}

impl Requests {
    pub fn all(&self) -> u64 {
        self.gets + self.lists + self.puts
    }
}

impl std::ops::Sub for Requests {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            gets: self.gets - before.gets,
            lists: self.lists - before.lists,
            puts: self.puts - before.puts,
        }
    }
}

struct Shared {
    names: Vec<String>,
    index: HashMap<String, u32>,
    versions: Vec<AtomicU32>,
    size_of: SizeOf,
    began_ms: u64,
    delay_us: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    puts: AtomicU64,
    /// By when they changed, in milliseconds since 1970, which only grows.
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Changes {
    at: BTreeMap<u64, u32>,
    of: HashMap<u32, u64>,
    /// When an answer with this version of this object was sent, listings included.
    told: HashMap<(u32, u32), Instant>,
}

const HOUR_MS: u64 = 3_600_000;

impl Vault {
    /// With objects of these names; each is as large as `size_of` says of its number and version (1
    /// at first).
    pub fn start(names: Vec<String>, size_of: SizeOf) -> Result<Self, String> {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
        let index = names.iter().enumerate().map(|(n, name)| (name.clone(), n as u32)).collect();
        let shared = Arc::new(Shared {
            versions: names.iter().map(|_| AtomicU32::new(1)).collect(),
            names,
            index,
            size_of,
            began_ms: began.as_millis() as u64,
            delay_us: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            changes: Mutex::default(),
        });
        let router = Router::new()
            .route("/vault/v1/kv", get(list))
            .route("/vault/v1/kv/name/{name}", get(by_name))
            .route("/vault/v1/kv/{id}", get(by_id).put(put))
            .with_state(shared.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))))
            .map_err(|e| e.to_string())?;
        let url = format!("http://{}", listener.local_addr().map_err(|e| e.to_string())?);
        runtime.spawn(async move {
            use axum::serve::ListenerExt;
            let listener = listener.tap_io(|tcp| drop(tcp.set_nodelay(true)));
            axum::serve(listener, router).await
        });
        Ok(Self { url, shared, runtime: Some(runtime) })
    }

    /// Each answer waits for so long from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.shared.names.len()
    }

    pub fn name(&self, n: u32) -> &str {
        &self.shared.names[n as usize]
    }

    /// Requests so far.
    pub fn requests(&self) -> Requests {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let Shared { gets, lists, puts, .. } = &*self.shared;
        Requests { gets: read(gets), lists: read(lists), puts: read(puts) }
    }

    /// Gives an object its next version, as somebody elsewhere would; the version.
    pub fn change(&self, n: u32) -> u32 {
        self.shared.change(n)
    }

    /// When an answer that names this version, or shows that there is one, was sent for the first
    /// time.
    pub fn told(&self, n: u32, version: u32) -> Option<Instant> {
        self.shared.changes.lock().ok()?.told.get(&(n, version)).copied()
    }

    /// Versions that answers have told of.
    pub fn versions_told(&self) -> Vec<(u32, u32)> {
        self.shared.changes.lock().map(|c| c.told.keys().copied().collect()).unwrap_or_default()
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The value of an object at a version: every byte tells which.
pub fn value(n: u32, version: u32, size: usize) -> String {
    let unit = format!("{n:07}.{version:06};");
    let mut text = unit.repeat(size / unit.len() + 1);
    text.truncate(size);
    text
}

impl Shared {
    fn change(&self, n: u32) -> u32 {
        let version = self.versions[n as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        if let Ok(mut changes) = self.changes.lock() {
            let last = changes.at.last_key_value().map_or(self.began_ms, |(at, _)| *at);
            let at = now.max(last + 1);
            if let Some(before) = changes.of.insert(n, at) {
                changes.at.remove(&before);
            }
            changes.at.insert(at, n);
        }
        version
    }

    fn version(&self, n: u32) -> u32 {
        self.versions[n as usize].load(Ordering::Relaxed)
    }

    /// What nobody changed is from an hour ago and before, a second apart.
    fn updated_ms(&self, n: u32, changes: &Changes) -> u64 {
        let before = (self.names.len() as u64 - u64::from(n)) * 1000;
        changes.of.get(&n).copied().unwrap_or(self.began_ms - HOUR_MS - before)
    }

    fn id(&self, n: u32) -> String {
        format!("vault_obj_{}", Ulid::from_parts(self.began_ms + u64::from(n), 7))
    }

    fn number(&self, id: &str) -> Option<u32> {
        let ulid = Ulid::from_string(id.strip_prefix("vault_obj_")?).ok()?;
        let n = ulid.timestamp_ms().checked_sub(self.began_ms)? as u32;
        (usize::try_from(n).ok()? < self.names.len()).then_some(n)
    }

    async fn answer(&self, status: StatusCode, text: String) -> Response {
        let delay = self.delay_us.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        let headers = [(header::CONTENT_TYPE.as_str(), "application/json"), ("x-ratelimit-limit", "0")];
        (status, headers, text).into_response()
    }

    fn object(&self, n: u32, with_value: bool) -> String {
        let Ok(mut changes) = self.changes.lock() else { return String::new() };
        let version = self.version(n);
        let (id, name) = (self.id(n), &self.names[n as usize]);
        let at = time(self.updated_ms(n, &changes));
        if version > 1 {
            changes.told.entry((n, version)).or_insert_with(Instant::now);
        }
        let value = match with_value {
            true => format!(r#","value":"{}""#, value(n, version, (self.size_of)(n, version))),
            false => String::new(),
        };
        format!(
            r#"{{"id":"{id}","name":"{name}"{value},"metadata":{{"id":"{id}","environment_id":"e","key_id":"k","updated_by":{{"id":"u","name":"u"}},"updated_at":"{at}","context":{{}},"version_id":"{n:08x}-{:04x}-4000-8000-{version:012x}"}}}}"#,
            version & 0xffff
        )
    }
}

fn time(ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

const MISSING: &str = r#"{"error":"no such object","message":"no such object","code":"not_found"}"#;

async fn by_name(State(vault): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    vault.gets.fetch_add(1, Ordering::Relaxed);
    match vault.index.get(&name) {
        Some(n) => vault.answer(StatusCode::OK, vault.object(*n, true)).await,
        None => vault.answer(StatusCode::NOT_FOUND, MISSING.into()).await,
    }
}

async fn by_id(State(vault): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    vault.gets.fetch_add(1, Ordering::Relaxed);
    match vault.number(&id) {
        Some(n) => vault.answer(StatusCode::OK, vault.object(n, true)).await,
        None => vault.answer(StatusCode::NOT_FOUND, MISSING.into()).await,
    }
}

/// What is written is not kept: the next version is made up, too.
async fn put(State(vault): State<Arc<Shared>>, Path(id): Path<String>, _body: Bytes) -> Response {
    vault.puts.fetch_add(1, Ordering::Relaxed);
    match vault.number(&id) {
        Some(n) => {
            vault.change(n);
            vault.answer(StatusCode::CREATED, vault.object(n, false)).await
        }
        None => vault.answer(StatusCode::NOT_FOUND, MISSING.into()).await,
    }
}

async fn list(State(vault): State<Arc<Shared>>, Query(query): Query<HashMap<String, String>>) -> Response {
    vault.lists.fetch_add(1, Ordering::Relaxed);
    let limit = query.get("limit").and_then(|t| t.parse().ok()).unwrap_or(10_usize).min(100);
    let after = query.get("after").and_then(|id| vault.number(id));
    let since = query.get("updatedAfter").and_then(|t| humantime::parse_rfc3339(t).ok());
    let text = {
        let Ok(mut changes) = vault.changes.lock() else { return StatusCode::CONFLICT.into_response() };
        let numbers: Box<dyn Iterator<Item = u32>> = match since {
            Some(since) => Box::new(since_then(&vault, &changes, since, after).into_iter()),
            None => Box::new(after.map_or(0, |n| n + 1)..vault.names.len() as u32),
        };
        let search = query.get("search");
        let fits = |n: &u32| search.is_none_or(|part| vault.names[*n as usize].contains(part.as_str()));
        let numbers: Vec<u32> = numbers.filter(fits).take(limit + 1).collect();
        let more = numbers.len() > limit;
        let page = &numbers[..numbers.len().min(limit)];
        let lines: Vec<String> = page
            .iter()
            .map(|n| {
                let version = vault.version(*n);
                if version > 1 {
                    changes.told.entry((*n, version)).or_insert_with(Instant::now);
                }
                let at = time(vault.updated_ms(*n, &changes));
                format!(
                    r#"{{"id":"{}","name":"{}","updated_at":"{at}"}}"#,
                    vault.id(*n),
                    vault.names[*n as usize]
                )
            })
            .collect();
        let next = page.last().filter(|_| more).map_or("null".into(), |n| format!("\"{}\"", vault.id(*n)));
        format!(r#"{{"data":[{}],"list_metadata":{{"before":null,"after":{next}}}}}"#, lines.join(","))
    };
    vault.answer(StatusCode::OK, text).await
}

/// The objects that changed after a moment, by number.
fn since_then(vault: &Shared, changes: &Changes, since: SystemTime, after: Option<u32>) -> Vec<u32> {
    let since = since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let total = vault.names.len() as u64;
    // The youngest of the unchanged: the last number is from an hour and a second ago.
    let youngest = vault.began_ms - HOUR_MS;
    let unchanged = youngest.saturating_sub(since).div_ceil(1000).min(total) as u32;
    let mut numbers: Vec<u32> = (total as u32 - unchanged..total as u32)
        .filter(|n| vault.updated_ms(*n, changes) > since && !changes.of.contains_key(n))
        .collect();
    numbers.extend(changes.at.range(since + 1..).map(|(_, n)| *n));
    numbers.sort_unstable();
    numbers.retain(|n| after.is_none_or(|after| *n > after));
    numbers
}
