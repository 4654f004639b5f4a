//! One file a command.

pub mod completion;
pub mod daemon;
pub mod doctor;
pub mod generate;
pub mod key;
pub mod mount;
pub mod mount8;
pub mod objects;
pub mod pending;
pub mod serve;
pub mod serve_key;
pub mod status;
pub mod unmount;
pub mod upgrade;
pub mod volume_plugin;
