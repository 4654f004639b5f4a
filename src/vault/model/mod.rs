//! A vault's objects, errors and operations as values.

pub mod error;
pub mod object;
pub mod op;
