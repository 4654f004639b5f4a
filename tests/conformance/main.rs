//! Judged by something else than our own expectations: one contract for all vaults, a local file
//! system, a history.

mod contract;
mod differential;
mod history;
#[path = "../support/mod.rs"]
mod support;
mod vault_contract;
