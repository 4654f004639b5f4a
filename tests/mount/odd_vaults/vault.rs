//! A small vault that behaves as some services do and ours does not: both dialects over one map in
//! memory, and [`Rules`] for what is odd about it.

#![allow(dead_code, reason = "some rules are not tried by all tests")]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// What a request asks for, its path decoded.
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Whether the path came with an encoded character.
    pub is_encoded: bool,
}

impl Asked<'_> {
    pub fn reads_a_name(&self) -> bool {
        self.path.contains("/name/") || self.path.ends_with("/get-by-name")
    }

    pub fn lists(&self) -> bool {
        self.path == "/vault/v1/kv" && self.method == "GET" || self.path.ends_with("/object/list")
    }

    pub fn changes(&self) -> bool {
        self.method != "GET"
    }
}

/// A refusal: status, one more header, body.
pub type Refusal = (u16, Option<(&'static str, &'static str)>, &'static str);

/// What is done to a text.
pub type Rewrite = Box<dyn Fn(&str) -> String + Send + Sync>;
/// What is refused.
pub type Refuse = Box<dyn FnMut(&Asked) -> Option<Refusal> + Send + Sync>;

/// What is odd.
pub struct Rules {
    /// What a proxy makes of the decoded path.
    pub path: Rewrite,
    /// Names that become equal are one name to the vault.
    pub name: Rewrite,
    /// Asked before anything else.
    pub refuse: Refuse,
    /// The name of a deleted object stays taken.
    pub reserves: bool,
    /// Reads show what there was so long ago.
    pub lags: Duration,
    /// Every other one does.
    pub lags_in_turn: bool,
    /// A change is answered so long after it was made.
    pub answers_late: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            path: Box::new(str::to_owned),
            name: Box::new(str::to_owned),
            refuse: Box::new(|_| None),
            reserves: false,
            lags: Duration::ZERO,
            lags_in_turn: false,
            answers_late: Duration::ZERO,
        }
    }
}

#[derive(Clone)]
struct Object {
    id: String,
    name: String,
    values: Vec<String>,
}

#[derive(Default, Clone)]
struct Held {
    objects: Vec<Object>,
    reserved: HashSet<String>,
    made: usize,
    log: Vec<String>,
}

struct Inner {
    rules: Mutex<Rules>,
    held: Mutex<Held>,
    /// What there was before each change, for reads that lag.
    before: Mutex<Vec<(Instant, Held)>>,
}

/// Ends when dropped.
pub struct OddVault {
    pub url: String,
    inner: Arc<Inner>,
    _runtime: tokio::runtime::Runtime,
}

impl OddVault {
    pub fn start(rules: Rules) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inner =
            Arc::new(Inner { rules: Mutex::new(rules), held: Mutex::default(), before: Mutex::default() });
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(handle).with_state(inner.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { url, inner, _runtime: runtime }
    }

    /// An object of this name, made by somebody else.
    pub fn holds(&self, name: &str, value: &str) {
        self.inner.held.lock().unwrap().create(name, value);
    }

    /// A version of an object, made by somebody else.
    pub fn changes(&self, name: &str, value: &str) {
        let mut held = self.inner.held.lock().unwrap();
        let object = held.objects.iter_mut().find(|o| o.name == name).unwrap();
        object.values.push(value.to_owned());
    }

    /// The values of an object, oldest first; none if there is no such object.
    pub fn values(&self, name: &str) -> Vec<String> {
        let held = self.inner.held.lock().unwrap();
        held.objects.iter().find(|o| o.name == name).map_or_else(Vec::new, |o| o.values.clone())
    }

    /// All reserved names are free.
    pub fn frees(&self) {
        self.inner.held.lock().unwrap().reserved.clear();
    }

    /// The requests since the last call, as `METHOD path`.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.held.lock().unwrap().log)
    }

    /// From now on.
    pub fn refuse(&self, rule: impl FnMut(&Asked) -> Option<Refusal> + Send + Sync + 'static) {
        self.inner.rules.lock().unwrap().refuse = Box::new(rule);
    }
}

impl Inner {
    /// What a read shows in place of what is there; before a change that is kept.
    fn lagging(&self, rules: &Rules, held: &Held, changes: bool) -> Option<Held> {
        let mut before = self.before.lock().unwrap();
        if changes {
            before.push((Instant::now(), held.clone()));
            return None;
        }
        let lags = !rules.lags_in_turn || held.log.len().is_multiple_of(2);
        let mut hidden = before.iter().filter(|(made, _)| lags && made.elapsed() < rules.lags);
        hidden.next().map(|(_, before)| before.clone())
    }
}

impl Held {
    fn create(&mut self, name: &str, value: &str) -> usize {
        self.made += 1;
        let id = format!("vault_obj_{:04}", self.made);
        self.objects.push(Object { id, name: name.to_owned(), values: vec![value.to_owned()] });
        self.objects.len() - 1
    }

    fn by_id(&self, id: &str) -> Option<usize> {
        self.objects.iter().position(|o| o.id == id)
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(status: u16, header: Option<(&'static str, &'static str)>, body: String) -> Response {
    let status = axum::http::StatusCode::from_u16(status).unwrap();
    let kind = if body.starts_with('<') { "text/html" } else { "application/json" };
    let mut response = (status, [("content-type", kind)], body).into_response();
    if let Some((name, value)) = header {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

async fn handle(State(inner): State<Arc<Inner>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let late = match method {
        Method::GET => Duration::ZERO,
        _ => inner.rules.lock().unwrap().answers_late,
    };
    let response = answered(&inner, &method, &uri, &body);
    tokio::time::sleep(late).await;
    response
}

fn answered(inner: &Inner, method: &Method, uri: &Uri, body: &Bytes) -> Response {
    let mut rules = inner.rules.lock().unwrap();
    let mut held = inner.held.lock().unwrap();
    let came = decoded(uri.path());
    held.log.push(format!("{method} {came}"));
    let asked = Asked { method: method.as_str(), path: &came, is_encoded: uri.path().contains('%') };
    if let Some((status, header, body)) = (rules.refuse)(&asked) {
        return answer(status, header, body.to_owned());
    }
    let query = reqwest::Url::parse(&format!("http://x/?{}", uri.query().unwrap_or(""))).unwrap();
    let query = |wanted: &str| query.query_pairs().find(|(k, _)| k == wanted).map(|(_, v)| v.into_owned());
    let sent: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let id = query("id").or_else(|| sent["id"].as_str().map(str::to_owned));
    let path = (rules.path)(&came);
    let mut past = None;
    if !rules.lags.is_zero() {
        past = inner.lagging(&rules, &held, asked.changes());
    }
    let held = past.as_mut().unwrap_or(&mut held);
    let (status, body) = match path.strip_prefix("/vault/object/") {
        Some(what) => object(held, &rules, what, id, query("name"), query("version"), &sent),
        None => kv(held, &rules, method.as_str(), &path, query("search"), &sent),
    };
    answer(status, None, body.to_string())
}

type Said = (u16, Value);

fn missing() -> Said {
    (404, json!({"code": "not_found", "message": "not found"}))
}

fn time(object: &Object) -> String {
    format!("2024-01-01T00:{:02}:{:02}.000Z", object.values.len() / 60, object.values.len() % 60)
}

fn create(held: &mut Held, rules: &Rules, sent: &Value, value: &Value) -> Result<usize, Said> {
    let name = sent["name"].as_str().unwrap().to_owned();
    let folded = (rules.name)(&name);
    let taken =
        held.objects.iter().any(|o| (rules.name)(&o.name) == folded) || held.reserved.contains(&folded);
    match taken {
        true => Err((409, json!({"code": "conflict", "message": "taken"}))),
        false => Ok(held.create(&name, value.as_str().unwrap())),
    }
}

fn by_name(held: &Held, rules: &Rules, name: &str) -> Option<usize> {
    let folded = (rules.name)(name);
    held.objects.iter().position(|o| (rules.name)(&o.name) == folded)
}

fn delete(held: &mut Held, rules: &Rules, at: usize) -> Object {
    let gone = held.objects.remove(at);
    if rules.reserves {
        held.reserved.insert((rules.name)(&gone.name));
    }
    gone
}

#[expect(clippy::too_many_arguments, reason = "an object as the vault tells it")]
fn object(
    held: &mut Held,
    rules: &Rules,
    what: &str,
    id: Option<String>,
    name: Option<String>,
    version: Option<String>,
    sent: &Value,
) -> Said {
    let show = |o: &Object, data: Option<(usize, &String)>| {
        let number = data.map_or(o.values.len(), |(number, _)| number);
        let mut shown = json!({"id": o.id, "name": o.name, "version": number, "updated_at": time(o)});
        if let Some((_, value)) = data {
            shown["data"] = json!({ "value": value });
        }
        shown
    };
    let whole = |o: &Object| show(o, o.values.last().map(|v| (o.values.len(), v)));
    let at = match (what, &id, &name) {
        ("get-by-name", _, Some(name)) => by_name(held, rules, name),
        (_, Some(id), _) => held.by_id(id),
        _ => None,
    };
    match (what, at) {
        ("list", _) => {
            let all: Vec<_> = held.objects.iter().map(|o| show(o, None)).collect();
            (200, json!({"data": all, "list_metadata": {}}))
        }
        ("create", _) => match create(held, rules, sent, &sent["data"]["value"]) {
            Ok(at) => (200, show(&held.objects[at], None)),
            Err(refused) => refused,
        },
        ("get" | "get-by-name", Some(at)) => (200, whole(&held.objects[at])),
        ("metadata", Some(at)) => (200, show(&held.objects[at], None)),
        ("update", Some(at)) => {
            held.objects[at].values.push(sent["data"]["value"].as_str().unwrap().to_owned());
            (200, show(&held.objects[at], None))
        }
        ("delete", Some(at)) => (200, json!({"id": delete(held, rules, at).id, "deleted": true})),
        ("versions", Some(at)) => {
            let last = held.objects[at].values.len();
            let all: Vec<_> = (1..=last).rev().map(|n| json!({"version": n, "current": n == last})).collect();
            (200, json!({ "data": all }))
        }
        ("version", Some(at)) => {
            let number: usize = version.unwrap().parse().unwrap();
            let object = &held.objects[at];
            object.values.get(number - 1).map_or_else(missing, |v| (200, show(object, Some((number, v)))))
        }
        _ => missing(),
    }
}

fn kv(
    held: &mut Held,
    rules: &Rules,
    method: &str,
    path: &str,
    search: Option<String>,
    sent: &Value,
) -> Said {
    let metadata = |o: &Object| {
        let version = format!("v-{}-{}", o.id, o.values.len());
        json!({"id": o.id, "version_id": version, "updated_at": time(o)})
    };
    let whole =
        |o: &Object| json!({"id": o.id, "name": o.name, "value": o.values.last(), "metadata": metadata(o)});
    let Some(rest) = path.strip_prefix("/vault/v1/kv") else { return missing() };
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    if let Some(name) = rest.strip_prefix("name/") {
        return by_name(held, rules, name).map_or_else(missing, |at| (200, whole(&held.objects[at])));
    }
    let (id, tail) = rest.split_once('/').unwrap_or((rest, ""));
    match (method, held.by_id(id), tail) {
        ("GET", None, "") if id.is_empty() => {
            let wanted = search.unwrap_or_default();
            let found = held.objects.iter().filter(|o| o.name.contains(&wanted));
            let all: Vec<_> =
                found.map(|o| json!({"id": o.id, "name": o.name, "updated_at": time(o)})).collect();
            (200, json!({"data": all, "list_metadata": {}}))
        }
        ("POST", None, "") if id.is_empty() => match create(held, rules, sent, &sent["value"]) {
            Ok(at) => (201, metadata(&held.objects[at])),
            Err(refused) => refused,
        },
        ("GET", Some(at), "") => (200, whole(&held.objects[at])),
        ("GET", Some(at), "metadata") => (
            200,
            json!({"id": held.objects[at].id, "name": held.objects[at].name, "metadata": metadata(&held.objects[at])}),
        ),
        ("GET", Some(at), "versions") => {
            let object = &held.objects[at];
            let last = object.values.len();
            let all: Vec<_> = (1..=last)
                .map(|n| json!({"id": format!("v-{}-{n}", object.id), "current_version": n == last}))
                .collect();
            (200, json!({ "data": all }))
        }
        ("PUT", Some(at), "") => {
            held.objects[at].values.push(sent["value"].as_str().unwrap().to_owned());
            (201, whole(&held.objects[at]))
        }
        ("DELETE", Some(at), "") => (200, json!({"name": delete(held, rules, at).name, "success": true})),
        _ => missing(),
    }
}
