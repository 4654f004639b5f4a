//! Vaults for tests: in memory, and faulty; and the contract that each vault fulfils.

pub mod contract;
mod contract_listing;
pub mod faulty;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod memory;
