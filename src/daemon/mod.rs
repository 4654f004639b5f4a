//! The processes of a mount.
//!
//! The *keeper* ([`keeper`]) mounts, holds the /dev/fuse descriptor and unmounts; the *worker*
//! ([`worker`]) connects to the vault and serves requests; the *helper* ([`helper`]) makes the
//! system calls on the mount that a change made elsewhere needs. Keeper and worker talk over one
//! channel ([`protocol`]); people and commands talk to the worker over a socket ([`control`]).
//! Every worker starts by taking over a mount that is already there, so that a restart is nothing
//! new.
//!
//! Two rules bind everything in here: neither keeper nor worker makes a call on its own mount (a
//! process that waits for an answer which it would have to give cannot be killed), and nothing is
//! unmounted that the mount table does not show to be ours.

pub mod capabilities;
pub mod control;
pub mod heartbeat;
pub mod helper;
pub mod hooks;
pub mod keeper;
pub mod live_mounts;
pub mod locate;
pub mod protocol;
pub mod runtime_dir;
pub mod state_log;
pub mod worker;
