//! The operating system: processes, mounts, files and memory as the rest of the program uses them.

pub mod allocator;
pub mod channel;
pub mod files;
pub mod fuse_device;
pub mod fusermount;
pub mod hardening;
pub mod journald;
pub mod local_time;
pub mod mount;
pub mod mount_table;
pub mod mount_target;
pub mod mount_users;
pub mod mountpoint;
pub mod probe;
pub mod process;
pub mod program;
pub mod random;
pub mod stdio;
pub mod terminal;
pub mod trust;
pub mod unmount;
