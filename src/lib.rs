//! vaultfs: a secrets vault as a directory.
//!
//! Layers, from the top down; imports go down only, and `tests/project/layering.rs` checks it:
//!
//! - [`cli`]: what a person types and reads.
//! - [`volume`]: the container volume plugin.
//! - [`daemon`]: the processes of a mount.
//! - [`fuse`]: the kernel's protocol.
//! - [`fs`]: the file system, without a kernel; [`server`]: the embedded vault.
//! - [`vault`]: what a vault is; clients of vaults, and the cache over them.
//! - [`sys`]: the operating system.
//! - [`secret`], [`clock`], [`failpoint`], [`display`]: what everything uses.

#![warn(clippy::unwrap_used)]

pub mod cli;
pub mod clock;
pub mod daemon;
pub mod display;
pub mod failpoint;
pub mod fs;
pub mod fuse;
pub mod secret;
pub mod server;
pub mod sys;
pub mod vault;
pub mod volume;

/// This program and its version, as `status` says it.
pub const VERSION: &str = concat!("vaultfs ", env!("CARGO_PKG_VERSION"));
