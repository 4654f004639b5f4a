//! (placeholder)
pub mod name;
pub mod options;

pub use options::Options;
