//! HTTP in front of the service: one route table, one authentication, one response layer around
//! every answer.
//!
//! Each route names the permission it needs, and `auth` checks key and permission before the
//! handler sees the request. Whatever happens, `response` gives the answer an id, forbids storing
//! it, and turns a panic into a 500. An error always leaves as [`error::ApiError`]: no handler
//! writes a status of its own.

pub mod auth;
pub mod body;
pub mod error;
#[cfg(test)]
mod fuzz_tests;
pub mod key;
pub mod key_limits;
pub mod kv;
pub mod object;
pub mod query;
pub mod rate_limit;
pub mod response;
pub mod time;

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, delete, get, post, put};

use super::service::Service;
use super::store::Permission::{self, Delete, Keys, Read, Write};
use crate::server::api::rate_limit::RateLimit;
use error::{ApiError, ErrorType};
use key_limits::KeyLimits;

/// What handlers share.
#[derive(Debug, Clone)]
pub struct App {
    /// The vault.
    pub service: Arc<Service>,
    /// The rate limit, if there is one.
    pub limit: Option<Arc<RateLimit>>,
    /// What is in use of the server.
    pub key_limits: Arc<KeyLimits>,
}

impl App {
    /// In front of `service`, with a rate limit if there is one.
    pub fn new(service: Arc<Service>, limit: Option<Arc<RateLimit>>) -> Self {
        let key_limits = Arc::new(KeyLimits::new(service.max_body()));
        Self { service, limit, key_limits }
    }
}

/// Everything the server answers.
pub fn router(app: App) -> Router {
    let needs = |permission: Permission, route: MethodRouter<App>| -> MethodRouter<App> {
        crate::server::api::auth::guard(&app, permission, route)
    };
    let routes = Router::new()
        .route("/vault/object/create", needs(Write, post(object::create)))
        .route("/vault/object/get", needs(Read, get(object::get)))
        .route("/vault/object/get-by-name", needs(Read, get(object::get_by_name)))
        .route("/vault/object/list", needs(Read, get(object::list)))
        .route("/vault/object/update", needs(Write, put(object::update)))
        .route("/vault/object/delete", needs(Delete, delete(object::delete)))
        .route("/vault/object/metadata", needs(Read, get(object::metadata)))
        .route("/vault/object/versions", needs(Read, get(object::versions)))
        .route("/vault/object/version", needs(Read, get(object::version)))
        .route("/vault/key/create-data-key", needs(Keys, post(key::create_data_key)))
        .route("/vault/key/encrypt-data", needs(Keys, post(key::encrypt_data)))
        .route("/vault/key/decrypt-data", needs(Keys, post(key::decrypt_data)))
        .route("/vault/key/decrypt-data-key", needs(Keys, post(key::decrypt_data_key)))
        .route("/vault/v1/kv", needs(Read, get(kv::list)).merge(needs(Write, post(kv::create))))
        .route("/vault/v1/kv/name/{*name}", needs(Read, get(kv::get_by_name)))
        .route(
            "/vault/v1/kv/{id}",
            needs(Read, get(kv::get))
                .merge(needs(Write, put(kv::update)))
                .merge(needs(Delete, delete(kv::delete))),
        )
        .route("/vault/v1/kv/{id}/metadata", needs(Read, get(kv::metadata)))
        .route("/vault/v1/kv/{id}/versions", needs(Read, get(kv::versions)))
        .route("/vault/v1/keys/data-key", needs(Keys, post(key::kv_data_key)))
        .route("/vault/v1/keys/decrypt", needs(Keys, post(key::kv_decrypt)))
        .route("/vault/v1/keys/rekey", needs(Keys, post(key::kv_rekey)))
        .fallback(async || {
            ApiError::new(ErrorType::NotFound, "no such route: compare the path with the API reference")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(
                ErrorType::MethodNotAllowed,
                "this path does not take this method: the Allow header says which it takes",
            )
        })
        .with_state(app);
    // Outside of the routing, so that `response` sees a request before its method is looked at.
    Router::new()
        .fallback_service(routes)
        .layer(axum::middleware::from_fn(crate::server::api::response::wrap))
}
