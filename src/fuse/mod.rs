//! The kernel's side: the adapter between fuser and [`crate::fs`], and the processes around it.
//!
//! A mount is three processes. The *keeper* ([`keeper`]) mounts, holds the /dev/fuse descriptor and unmounts;
//! the *worker* ([`worker`]) connects to the vault and serves requests; the *helper* ([`helper`]) makes the system
//! calls on the mount that a change made elsewhere needs. Keeper and worker talk over one channel
//! ([`handover`]); people and commands talk to the worker over a socket ([`control`]). Every worker starts by
//! taking over a mount that is already there ([`session`]), so that a restart is nothing new.
//!
//! Two rules bind everything in here: neither keeper nor worker makes a call on its own mount (a process that waits for
//! an answer which it would have to give cannot be killed), and nothing is unmounted that the mount table does
//! not show to be ours.

pub mod adapter;
pub mod attach;
pub mod busy;
pub mod capabilities;
pub mod channel;
pub mod control;
pub mod crew;
pub mod device;
pub mod fusermount;
#[cfg(test)]
mod fuzz_tests;
pub mod handover;
pub mod helper;
pub mod keeper;
pub mod kernel;
pub mod live;
pub mod locate;
pub mod mountpoint;
pub mod mounts;
pub mod notify;
pub mod on_change;
pub mod pause;
pub mod probe;
pub mod process;
pub mod pulse;
pub mod refuse;
mod reply;
pub mod requests;
pub mod runtime;
pub mod session;
pub mod state;
pub mod target;
pub mod trust;
mod userns;
pub mod worker;
