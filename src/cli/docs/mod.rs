//! Man pages and completions, from the definitions that parse the command line.

pub mod completions;
mod live_words;
pub mod man;
