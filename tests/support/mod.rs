//! What tests share: real mounts, vaults, proxies. Each test binary has all of it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod canned;
pub mod cgroup;
pub mod common;
pub mod home;
pub mod hostile_names;
pub mod mount_table;
pub mod plugin;
pub mod proxy;
pub mod pty;
pub mod vault_server;

/// Ends a test that an ordinary user cannot make, and says why.
#[allow(unused_macros, reason = "each test binary uses a part of it")]
macro_rules! only_root {
    ($why:literal) => {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: {}", $why);
            return;
        }
    };
}
#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub(crate) use only_root;
