//! A vault served in this process over TCP and its socket, and a client that says what it got.
pub mod served;

use std::sync::Arc;

use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vaultfs::secret::SecretString;
use vaultfs::server::instance::data_dir::DataDir;
use vaultfs::server::instance::serve::{Instance, ServeOptions};
use vaultfs::server::service::Service;
use vaultfs::server::store::{Permission, Permissions};

/// Largest value the test servers take, so that limits are cheap to reach.
pub const MAX_VALUE: usize = 4096;

/// A running vault in a directory of its own.
pub struct Server {
    pub dir: TempDir,
    pub url: String,
    pub key: String,
    pub service: Arc<Service>,
    client: Client,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub json: Value,
    pub text: String,
    pub request_id: String,
    /// X-RateLimit-Limit, -Remaining, -Reset and Retry-After.
    pub limits: [Option<u64>; 4],
    pub allow: String,
}

impl Answer {
    /// The answer is this error, its sentence names `word`, and it has the documented form.
    #[track_caller]
    pub fn is_error(&self, status: u16, kind: &str, word: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.json["error"], kind, "{self:?}");
        assert_eq!(self.json["code"], kind, "{self:?}");
        let message = self.json["message"].as_str().unwrap();
        assert!(message.contains(word), "{message:?} does not name {word:?}");
        assert_eq!(self.json.as_object().unwrap().len(), 3);
        assert!(self.request_id.starts_with("req_"));
    }

    /// The answer is this error as the kv dialect says it.
    #[track_caller]
    pub fn is_kv_error(&self, status: u16, code: &str, word: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.json["code"], code, "{self:?}");
        let message = self.json["message"].as_str().unwrap();
        assert!(message.contains(word), "{message:?} does not name {word:?}");
        if status == 403 || status >= 500 {
            assert_eq!(self.json.as_object().unwrap().len(), 2, "{self:?}");
        } else {
            assert_eq!(self.json["error"], message, "{self:?}");
            assert_eq!(self.json.as_object().unwrap().len(), 3, "{self:?}");
        }
        assert!(self.request_id.starts_with("req_"));
    }

    /// The answer is 201; its JSON.
    #[track_caller]
    pub fn made(self) -> Value {
        assert_eq!(self.status, StatusCode::CREATED, "{self:?}");
        assert!(self.request_id.starts_with("req_"));
        self.json
    }

    /// The answer is 200; its JSON.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        assert!(self.request_id.starts_with("req_"));
        self.json
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), MAX_VALUE).await
    }

    pub async fn start_in(dir: TempDir, max_value: usize) -> Self {
        Self::start_with(dir, ServeOptions { max_value, ..ServeOptions::default() }).await
    }

    pub async fn start_with(dir: TempDir, options: ServeOptions) -> Self {
        let data = DataDir::prepare(dir.path()).unwrap();
        let lock = data.try_lock().unwrap().unwrap();
        let key_file = data.key_file();
        let instance = Instance::open(data, lock, options).await.unwrap();
        let service = Arc::clone(instance.service());
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(instance.listen(Some(tcp.into())).unwrap().run(async {
            let _ = stopped.await;
        }));
        let key = std::fs::read_to_string(key_file).unwrap().trim().to_owned();
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().build().unwrap();
        Self { dir, url, key, service, client, stop: Some(stop), task: Some(task) }
    }

    /// Ends the server in good order and gives its directory back.
    pub async fn stop(mut self) -> TempDir {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
        self.dir
    }

    /// Another key, with these permissions.
    pub async fn key_with(&self, permissions: &[Permission]) -> String {
        let key = format!("sk_made_for_a_test_{}", ulid::Ulid::new());
        let text = SecretString::new(key.clone());
        self.service.add_key(&text, "test", Permissions::of(permissions)).await.unwrap();
        key
    }

    pub async fn send_as(&self, key: Option<&str>, method: &str, path: &str, body: Vec<u8>) -> Answer {
        self.send_with(key, method, path, body, None).await
    }

    /// A POST of the key of the server's own with an `Idempotency-Key`.
    pub async fn post_once(&self, once: &str, path: &str, body: &str) -> Answer {
        self.send_with(Some(&self.key), "POST", path, body.into(), Some(once)).await
    }

    pub async fn send_with(
        &self,
        key: Option<&str>,
        method: &str,
        path: &str,
        body: Vec<u8>,
        once: Option<&str>,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.url)).body(body);
        if let Some(key) = key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        if let Some(once) = once {
            request = request.header("Idempotency-Key", once);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        assert_eq!(header("content-type"), "application/json");
        assert_eq!(header("cache-control"), "no-store");
        let request_id = header("x-request-id");
        let limits = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"]
            .map(|name| header(name).parse().ok());
        let allow = header("allow");
        let text = response.text().await.unwrap();
        let json = serde_json::from_str(&text).unwrap_or_default();
        Answer { status, json, text, request_id, limits, allow }
    }

    pub async fn send(&self, method: &str, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send_as(Some(&self.key), method, path, body.into()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }

    pub async fn create(&self, name: &str, data: &str) -> Answer {
        let name = serde_json::to_string(name).unwrap();
        self.send("POST", "/vault/object/create", format!(r#"{{"name":{name},"data":{data}}}"#)).await
    }

    pub async fn kv_create(&self, name: &str, value: &str) -> Answer {
        let body = serde_json::json!({"name": name, "value": value, "key_context": {}});
        self.send("POST", "/vault/v1/kv", body.to_string()).await
    }

    pub async fn kv_update(&self, id: &str, value: &str) -> Answer {
        let body = serde_json::json!({"value": value});
        self.send("PUT", &format!("/vault/v1/kv/{id}"), body.to_string()).await
    }

    pub async fn kv_get(&self, id: &str) -> Answer {
        self.get(&format!("/vault/v1/kv/{id}")).await
    }

    pub async fn update(&self, id: &str, data: &str) -> Answer {
        self.send("PUT", "/vault/object/update", format!(r#"{{"id":"{id}","data":{data}}}"#)).await
    }

    pub async fn delete(&self, id: &str) -> Answer {
        self.send("DELETE", "/vault/object/delete", format!(r#"{{"id":"{id}"}}"#)).await
    }
}

/// The id in an object's JSON.
pub fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}
