//! Man pages and completions, from the definitions that parse the command line.

pub mod completions;
pub mod man;
