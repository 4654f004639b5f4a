//! The kernel's protocol: the adapter between fuser and [`crate::fs`], and how a worker gets a
//! session for a connection after its INIT. Nothing in here mounts or starts a process.

pub mod adapter;
mod dispatch;
pub mod pause;
mod reply;
pub mod request_counts;
pub mod session;
