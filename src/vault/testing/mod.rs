//! Vaults for tests: in memory, and faulty. The contract that each vault fulfils is in
//! `tests/conformance/vault_contract`.

pub mod faulty;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod memory;
