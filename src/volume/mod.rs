//! The container volume plugin: serves requests of Docker and Podman with mounts.
//!
//! - [`protocol`]: requests and answers, as they are on the wire.
//! - [`state`]: the volumes and their users. Pure: no I/O, no clock.
//! - [`options`]: what `-o` of `volume create` means in options of `vaultfs mount`, and which a
//!   volume may have.
//! - [`profile`]: options that a volume may not have itself, in files of the plugin's user.
//! - [`store`]: the state on disk, written atomically. It never holds a secret.
//! - [`lock`]: one change at a time for each volume.
//! - [`driver`]: the order of these steps under a lock for each volume; volumes do not wait for
//!   each other.
//! - [`mounter`]: the mounts themselves, each a `vaultfs mount` of its own that outlives the
//!   plugin.
//! - [`socket`]: HTTP over a Unix socket.
//!
//! Two rules: List, Get and Path touch neither a mount nor the network, so that `docker volume ls`
//! never waits for a vault; a volume in use is neither unmounted nor removed.

pub mod driver;
pub mod lock;
pub mod mounter;
pub mod options;
pub mod profile;
pub mod protocol;
pub mod socket;
pub mod state;
pub mod store;
