//! The processes of real mounts: how they begin, die, are replaced and end, and whom they trust.

mod canary;
mod capabilities;
mod deaths;
mod ends;
mod frozen;
mod limits;
mod mount;
mod mount8;
mod mountpoint;
mod secrets;
mod service;
mod soak;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod takeover;
mod trust;
mod unmount;
mod unsaved;
mod volume_driver;
mod volume_plugin;
