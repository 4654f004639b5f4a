//! (placeholder)
pub mod name;
