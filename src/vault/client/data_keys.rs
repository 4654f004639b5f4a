//! The key endpoints of both dialects: data keys made and unwrapped, and in the object dialect
//! texts encrypted and decrypted by the vault itself.
//!
//! Nothing of this is stored by the vault, so each request may be repeated. Data keys are base64
//! text here as on the wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::secret::SecretString;
use crate::vault::client::retry::Idempotency;
use crate::vault::client::status::bad_answer;
use crate::vault::client::transport::{Answer, Body, Request, Transport};
use crate::vault::client::wire::parse;
use crate::vault::client::{HttpConfig, no_vault, probe};
use crate::vault::codec;
use crate::vault::{Call, Dialect, ErrorKind, ListQuery, Result};

/// A new data key.
pub struct NewKey {
    /// The key itself.
    pub plain: SecretString,
    /// The key as only the vault can open it.
    pub wrapped: String,
}

/// The key endpoints of a vault.
#[derive(Debug)]
pub struct KeyService {
    transport: Arc<Transport>,
    dialect: Dialect,
}

#[derive(Deserialize)]
struct WireKey<'a> {
    #[serde(borrow, alias = "data_key")]
    plaintext_key: Option<&'a RawValue>,
    #[serde(alias = "encrypted_keys")]
    encrypted_key: Option<String>,
}

#[derive(Deserialize)]
struct WireText<'a> {
    #[serde(borrow)]
    plaintext: Option<&'a RawValue>,
    ciphertext: Option<String>,
}

impl KeyService {
    /// Asks which dialect answers unless `want` says so; a key that may do nothing else will do.
    pub async fn open(config: HttpConfig, call: &Call, want: Option<Dialect>) -> Result<Self> {
        let transport = Arc::new(config.transport()?);
        if let Some(dialect) = want {
            return Ok(Self { transport, dialect });
        }
        let (dialect, request, answer) = probe(&transport, call, want, &ListQuery::first()).await?;
        match transport.check_status(answer, &request) {
            // Not allowed to list, which is not asked of it.
            Err(e) if e.kind == ErrorKind::Forbidden => {}
            Err(e) if matches!(e.kind, ErrorKind::BadAnswer | ErrorKind::NotFound) => {
                return Err(no_vault(transport.endpoint(), &e.message));
            }
            Err(e) => return Err(e),
            Ok(answer) if !crate::vault::client::status::is_json_object(&answer.body) => {
                return Err(no_vault(transport.endpoint(), "its answer is not JSON"));
            }
            Ok(_) => {}
        }
        Ok(Self { transport, dialect })
    }

    /// Which dialect is spoken.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Makes a data key, in the kv dialect for a context.
    pub async fn create(&self, call: &Call, context: &BTreeMap<String, String>) -> Result<NewKey> {
        let operation = "making a data key";
        let request = match self.dialect {
            Dialect::Object => ask("/vault/key/create-data-key", b"{}", operation),
            Dialect::Kv => {
                let context = serde_json::json!({ "context": context }).to_string();
                ask("/vault/v1/keys/data-key", context.as_bytes(), operation)
            }
        };
        let answer = self.send(call, &request).await?;
        let wire: WireKey = parse(&answer, &request)?;
        let wrapped = wire.encrypted_key.filter(|key| !key.is_empty());
        let wrapped = wrapped.ok_or_else(|| bad_answer("it holds no encrypted key", &answer, &request))?;
        Ok(NewKey { plain: secret(wire.plaintext_key, &answer, &request)?, wrapped })
    }

    /// Opens a data key.
    pub async fn unwrap(&self, call: &Call, wrapped: &str) -> Result<SecretString> {
        let operation = "opening a data key";
        let request = match self.dialect {
            Dialect::Object => {
                let body = serde_json::json!({ "encrypted_key": wrapped }).to_string();
                ask("/vault/key/decrypt-data-key", body.as_bytes(), operation)
            }
            Dialect::Kv => {
                let body = serde_json::json!({ "keys": wrapped }).to_string();
                ask("/vault/v1/keys/decrypt", body.as_bytes(), operation)
            }
        };
        let answer = self.send(call, &request).await?;
        secret(parse::<WireKey>(&answer, &request)?.plaintext_key, &answer, &request)
    }

    /// Has the vault encrypt a text under a data key. Object dialect only.
    pub async fn encrypt(&self, call: &Call, key: &SecretString, text: &SecretString) -> Result<String> {
        let text = codec::json_with_text("{\"plaintext\":", text, ",\"data_key\":");
        let body = codec::json_with_text(text.expose(), key, "}");
        let request = ask("/vault/key/encrypt-data", body.expose().as_bytes(), "encrypting");
        let answer = self.send(call, &request).await?;
        let wire: WireText = parse(&answer, &request)?;
        wire.ciphertext.ok_or_else(|| bad_answer("it holds no ciphertext", &answer, &request))
    }

    /// Has the vault decrypt what it encrypted under a data key. Object dialect only.
    pub async fn decrypt(&self, call: &Call, key: &SecretString, ciphertext: &str) -> Result<SecretString> {
        let ciphertext = serde_json::Value::from(ciphertext);
        let before = format!("{{\"ciphertext\":{ciphertext},\"data_key\":");
        let body = codec::json_with_text(&before, key, "}");
        let request = ask("/vault/key/decrypt-data", body.expose().as_bytes(), "decrypting");
        let answer = self.send(call, &request).await?;
        secret(parse::<WireText>(&answer, &request)?.plaintext, &answer, &request)
    }

    async fn send(&self, call: &Call, request: &Request) -> Result<Answer> {
        let answer = self.transport.send_with_retries(call, request).await?;
        let reason = self.transport.reason(&answer, request);
        self.transport.check_status(answer, request).map_err(|mut e| match e.kind {
            ErrorKind::Invalid => {
                if let Some(reason) = reason {
                    e.message = format!("{}: the vault refused the request: {reason}", request.operation);
                }
                e
            }
            ErrorKind::NotFound => {
                let why = "status 404: it has no such key endpoint, see --api";
                crate::vault::Error { attempts: e.attempts, ..no_vault(self.transport.endpoint(), why) }
            }
            _ => e,
        })
    }
}

fn ask(path: &'static str, body: &[u8], operation: &str) -> Request {
    let body = Body::new(zeroize::Zeroizing::new(body.to_vec()));
    let mut request =
        Request::write(Method::POST, path, Some(body), ErrorKind::Invalid, operation.to_owned());
    request.idempotency = Idempotency::Read;
    request
}

fn secret(json: Option<&RawValue>, answer: &Answer, request: &Request) -> Result<SecretString> {
    let text = json.and_then(|json| codec::parse_json_text(json.get()));
    text.ok_or_else(|| bad_answer("it holds no text where the secret should be", answer, request))
}
