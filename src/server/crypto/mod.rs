//! What stands between a value and the disk: sealing, data keys, key contexts.

pub mod context;
pub mod data_keys;
pub mod seal;
