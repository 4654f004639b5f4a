//! vaultfs: a secrets vault as a directory.
//!
//! Layers, imports go down only: `cli` → `volume` → `fuse` → `server` → `fs` → `vault` → `heap`, `secret`, `clock`, `harden`.
//! `tests/layering.rs` checks it.

pub mod cli;
pub mod clock;
pub mod fs;
pub mod fuse;
pub mod harden;
pub mod heap;
pub mod secret;
pub mod server;
pub mod vault;
pub mod volume;
