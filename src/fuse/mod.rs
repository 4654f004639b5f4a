//! (placeholder)
pub mod adapter;
pub mod notify;
