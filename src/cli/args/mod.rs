//! Option types that commands share, and the parser's errors.

pub mod connect;
pub mod format;
pub mod hints;
pub mod mount_options;
pub mod parse;
pub mod values;
