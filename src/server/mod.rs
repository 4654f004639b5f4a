//! The embedded vault: a WorkOS-style vault over SQLite, served on a Unix socket and, if asked, on
//! TCP.
//!
//! ```text
//! embedded, cli::serve     its host: a mount, or a process of its own
//!   instance               one directory, one lock, sockets, draining
//!     api                  HTTP: routes, auth, response, dialects
//!       service            the vault's operations on text
//!         seal, store      ciphertext in, ciphertext out; SQLite
//! ```
//! Calls go down only. A value is plain text above `service` and ciphertext below it.

pub mod api;
pub mod crypto;
pub mod error;
pub mod instance;
pub mod service;
pub mod store;
