//! The key endpoints of both dialects: data keys made, wrapped and opened, texts encrypted under
//! them.
//!
//! Nothing here is stored and nothing is replayed: the same request gives another key each time. A
//! key that is corrupt or not this vault's is 422 in the object dialect and 400 in kv.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::App;
use super::body::{Fields, json, secret_json};
use super::error::{ApiError, ApiResult, ErrorType};
use super::key_limits::Received;
use super::kv::uuid_text;
use crate::secret::SecretString;
use crate::server::crypto::context::KeyContext;
use crate::server::crypto::data_keys::{Issued, KeyError};
use crate::server::service::ServiceError;
use crate::vault::codec::json_with_text;

#[derive(Serialize)]
struct Encrypted {
    ciphertext: String,
}

/// What the kv dialect says besides the key itself.
#[derive(Serialize)]
struct Wrapped {
    id: String,
    encrypted_keys: String,
    context: KeyContext,
}

/// A JSON object with the secret field `name` in front of the fields of `rest`.
fn with_secret(name: &str, secret: &SecretString, rest: &impl Serialize) -> Response {
    // Plain structs of strings, which serde_json writes without fail.
    let rest = serde_json::to_string(rest).expect("plain structs serialise");
    secret_json(json_with_text(&format!("{{\"{name}\":"), secret, &format!(",{}", &rest[1..])))
}

fn secret_only(name: &str, secret: &SecretString) -> Response {
    let start = format!("{{\"{name}\":");
    secret_json(json_with_text(&start, secret, "}"))
}

/// POST /vault/key/create-data-key
pub async fn create_data_key(State(app): State<App>, body: Received) -> ApiResult {
    #[derive(Serialize)]
    struct EncryptedKey {
        encrypted_key: String,
    }
    if !body.expose().trim_ascii().is_empty() {
        Fields::parse(&body)?;
    }
    let issued = app.service.data_keys().issue(&KeyContext::default()).map_err(ServiceError::from)?;
    Ok(with_secret("plaintext_key", &issued.key, &EncryptedKey { encrypted_key: issued.blob }))
}

/// POST /vault/key/encrypt-data
pub async fn encrypt_data(State(app): State<App>, body: Received) -> ApiResult {
    let fields = Fields::parse(&body)?;
    let (text, key) = (fields.secret("plaintext")?, fields.secret("data_key")?);
    Ok(json(StatusCode::OK, &Encrypted { ciphertext: app.service.encrypt(&key, &text)? }))
}

/// POST /vault/key/decrypt-data
pub async fn decrypt_data(State(app): State<App>, body: Received) -> ApiResult {
    let fields = Fields::parse(&body)?;
    let (ciphertext, key) = (fields.string("ciphertext")?, fields.secret("data_key")?);
    Ok(secret_only("plaintext", &app.service.decrypt(&key, &ciphertext)?))
}

/// POST /vault/key/decrypt-data-key
pub async fn decrypt_data_key(State(app): State<App>, body: Received) -> ApiResult {
    let blob = Fields::parse(&body)?.string("encrypted_key")?;
    let (_, key) = app.service.data_keys().open(&blob).map_err(ServiceError::from)?;
    Ok(secret_only("plaintext_key", &key))
}

/// In kv, a key that is of no use is a matter of form.
fn kv_error(e: KeyError) -> ApiError {
    let e = ApiError::from(ServiceError::from(e));
    match e.kind {
        ErrorType::UnprocessableEntity => ApiError::invalid(e.message),
        _ => e,
    }
}

fn issued(issued: Issued, context: KeyContext) -> Response {
    let rest = Wrapped { id: uuid_text(issued.id), encrypted_keys: issued.blob, context };
    with_secret("data_key", &issued.key, &rest)
}

/// POST /vault/v1/keys/data-key
pub async fn kv_data_key(State(app): State<App>, body: Received) -> ApiResult {
    let context = Fields::parse(&body)?.context("context")?;
    Ok(issued(app.service.data_keys().issue(&context).map_err(kv_error)?, context))
}

/// POST /vault/v1/keys/decrypt
pub async fn kv_decrypt(State(app): State<App>, body: Received) -> ApiResult {
    #[derive(Serialize)]
    struct KeyId {
        id: String,
    }
    let blob = Fields::parse(&body)?.string("keys")?;
    let (id, key) = app.service.data_keys().open(&blob).map_err(kv_error)?;
    Ok(with_secret("data_key", &key, &KeyId { id: uuid_text(id) }))
}

/// POST /vault/v1/keys/rekey
pub async fn kv_rekey(State(app): State<App>, body: Received) -> ApiResult {
    let fields = Fields::parse(&body)?;
    let (blob, context) = (fields.string("encrypted_keys")?, fields.context("context")?);
    Ok(issued(app.service.data_keys().rekey(&blob, &context).map_err(kv_error)?, context))
}
