//! The embedded vault: a WorkOS-style vault over SQLite, served on a Unix socket and, if asked, on TCP.

pub mod embedded;
pub mod error;
