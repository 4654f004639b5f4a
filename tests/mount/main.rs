//! What programs see of a real mount: saves, reads, trees, odd vaults.

mod audit;
mod budget;
mod odd_vaults;
mod on_change;
mod posix;
mod programs;
mod reads;
mod rotation;
mod saves;
mod servers;
mod stable;
#[path = "../support/mod.rs"]
mod support;
mod tree;
