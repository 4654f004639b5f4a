//! The vault itself, past every mount: what others change there, and its history.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

/// The socket of a served vault; it is the same one after the server was started again.
pub struct Api {
    client: reqwest::Client,
    key_file: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    pub fn of(data: &Path) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .unix_socket(data.join("vault.sock"))
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { client, key_file: data.join("api-key"), runtime }
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Value, String> {
        let key = std::fs::read_to_string(&self.key_file).map_err(|e| e.to_string())?;
        let mut url = reqwest::Url::parse(&format!("http://vault/vault/object/{path}")).unwrap();
        url.query_pairs_mut().extend_pairs(query);
        let mut request = self.client.request(method, url).bearer_auth(key.trim());
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let answer = self.runtime.block_on(async {
            let answer = request.send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        });
        let (status, text) = answer.map_err(|e| format!("{e:?}"))?;
        if !status.is_success() {
            return Err(format!("{status} {text}"));
        }
        serde_json::from_str(&text).map_err(|e| e.to_string())
    }

    pub fn id_of(&self, name: &str) -> Result<String, String> {
        let object = self.ask(Method::GET, "get-by-name", &[("name", name)], None)?;
        Ok(object["id"].as_str().unwrap().to_owned())
    }

    pub fn update(&self, id: &str, text: &str) -> Result<(), String> {
        let body = json!({"id": id, "data": {"value": text}});
        self.ask(Method::PUT, "update", &[], Some(body)).map(drop)
    }

    pub fn delete(&self, id: &str) -> Result<(), String> {
        self.ask(Method::DELETE, "delete", &[], Some(json!({"id": id}))).map(drop)
    }

    /// Every name in the vault.
    pub fn names(&self) -> Vec<String> {
        let (mut names, mut after) = (Vec::new(), String::new());
        loop {
            let mut query = vec![("limit", "100")];
            if !after.is_empty() {
                query.push(("after", &after));
            }
            let page = self.ask(Method::GET, "list", &query, None).unwrap();
            let data = page["data"].as_array().unwrap();
            names.extend(data.iter().map(|object| object["name"].as_str().unwrap().to_owned()));
            match page["list_metadata"]["after"].as_str() {
                Some(next) if !data.is_empty() => after = next.to_owned(),
                _ => return names,
            }
        }
    }

    /// The bytes of every version of a name, the oldest first; an error if they are not 1..N.
    pub fn history(&self, name: &str) -> Result<Vec<Vec<u8>>, String> {
        let id = self.id_of(name)?;
        let listed = self.ask(Method::GET, "versions", &[("id", &id)], None)?;
        let listed = listed["data"].as_array().unwrap();
        let mut versions = Vec::new();
        for (at, version) in listed.iter().rev().enumerate() {
            let (number, size) = (version["version"].as_u64().unwrap(), version["size"].as_u64().unwrap());
            if number != at as u64 + 1 {
                return Err(format!("{name}: version {number} is the {}. of {}", at + 1, listed.len()));
            }
            let query = [("id", id.as_str()), ("version", &number.to_string())];
            let object = self.ask(Method::GET, "version", &query, None)?;
            let bytes = object["data"]["value"].as_str().ok_or("no text")?.as_bytes().to_vec();
            if bytes.len() as u64 != size {
                return Err(format!("{name}: version {number} has {} bytes, {size} are listed", bytes.len()));
            }
            versions.push(bytes);
        }
        Ok(versions)
    }
}
