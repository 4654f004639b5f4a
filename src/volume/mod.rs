//! The container volume plugin: what Docker and Podman ask, answered with mounts.
//!
//! - [`protocol`]: requests and answers, as they are on the wire.
//! - [`state`]: which volumes there are and who uses them. Pure: no I/O, no clock.
//! - [`options`]: what `-o` of `volume create` means in options of `vaultfs mount`, and which a volume may have.
//! - [`profile`]: the others, in files of the plugin's user.
//! - [`store`]: the state on disk, whole or not at all. No secret is ever in it.
//! - [`lock`]: one change at a time for each volume.
//! - [`driver`]: order and locks around these: one request at a time for each volume, none waits for another volume.
//! - [`mounter`]: the mounts themselves, each a `vaultfs mount` of its own that outlives the plugin.
//! - [`socket`]: HTTP over a Unix socket.
//!
//! Two rules: what only asks (List, Get, Path) touches neither a mount nor the network, so that a vault that is
//! away never holds up `docker volume ls`; and a volume that somebody uses is neither unmounted nor removed.

pub mod driver;
pub mod lock;
pub mod mounter;
pub mod options;
pub mod profile;
pub mod protocol;
pub mod socket;
pub mod state;
pub mod store;
