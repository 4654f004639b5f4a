//! Vaults for tests: in memory, faulty, canned; and the contract that each vault fulfils.

#[cfg(test)]
pub(crate) mod canned;
pub mod contract;
pub mod faulty;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod memory;
