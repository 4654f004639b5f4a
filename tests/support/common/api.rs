//! The vault that a mount serves, over its API: whatever is done here is done elsewhere. Never
//! becomes the vault's owner, as a command with `--embedded` may.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use super::Mount;

pub struct Api {
    client: reqwest::Client,
    key: String,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    pub fn of(mount: &Mount) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let data = &mount.place().data;
        Self {
            client: reqwest::Client::builder().unix_socket(data.join("vault.sock")).build().unwrap(),
            key: fs::read_to_string(data.join("api-key")).unwrap().trim().to_owned(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        }
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Result<Value> {
        let mut request =
            self.client.request(method, format!("http://vault/vault/{path}")).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let text = self.runtime.block_on(async { request.send().await?.error_for_status()?.text().await })?;
        Ok(serde_json::from_str(&text).unwrap())
    }

    /// Makes an object; its id.
    pub fn create(&self, name: &str, bytes: &[u8]) -> String {
        let data = json!({"value": std::str::from_utf8(bytes).unwrap()});
        let made = self.ask(Method::POST, "object/create", Some(&json!({"name": name, "data": data})));
        made.unwrap()["id"].as_str().unwrap().to_owned()
    }

    pub fn update(&self, id: &str, bytes: &[u8]) {
        self.try_update(id, bytes).unwrap();
    }

    /// For vaults that may be gone just now.
    pub fn try_update(&self, id: &str, bytes: &[u8]) -> reqwest::Result<()> {
        let data = json!({"value": std::str::from_utf8(bytes).unwrap()});
        self.ask(Method::PUT, "object/update", Some(&json!({"id": id, "data": data}))).map(drop)
    }

    pub fn delete(&self, id: &str) {
        self.ask(Method::DELETE, "object/delete", Some(&json!({"id": id}))).unwrap();
    }
}
