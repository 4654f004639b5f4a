//! A vault on this machine: its directory, its listeners, and which clients may connect.

pub mod admission;
pub mod data_dir;
pub mod embedded;
pub mod inspect;
pub mod listen;
pub mod serve;
pub mod tls;
