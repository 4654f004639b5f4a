//! The vault server from outside: its API, its limits, what it survives.

mod crash;
mod data_keys;
mod embedded;
mod fuzz;
mod http;
mod keys;
mod kv;
mod once;
mod reference_session;
mod scale;
mod siege;
#[path = "../support/mod.rs"]
mod support;
mod tls;
