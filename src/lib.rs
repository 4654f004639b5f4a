//! vaultfs: a secrets vault as a directory.
//!
//! Layers, imports go down only: `cli` → `volume` → `fuse` → `server` → `fs` → `vault` → `heap` → `harden` → `files` → `secret`,
//! `clock`, `crash`, `console` → `display`.
//! `tests/layering.rs` checks it.

pub mod cli;
pub mod clock;
pub mod console;
pub mod crash;
pub mod display;
pub mod files;
pub mod fs;
pub mod fuse;
pub mod harden;
pub mod heap;
pub mod secret;
pub mod server;
pub mod vault;
pub mod volume;

/// This program and its version, as `status` says it.
pub const VERSION: &str = concat!("vaultfs ", env!("CARGO_PKG_VERSION"));
