//! The commands as people and scripts use them.

mod completions;
mod examples;
mod help;
mod keys;
mod man;
mod objects;
mod status;
#[path = "../support/mod.rs"]
mod support;
mod terminals;
mod texts;
mod tips;
mod which;
