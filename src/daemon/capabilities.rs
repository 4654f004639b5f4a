//! Which of root's capabilities each process of a mount keeps.
//!
//! 1. A process keeps what its own work needs ([`Role`]) and drops the rest before it starts a
//!    thread: capabilities belong to threads, and a thread inherits them from the one that starts
//!    it.
//! 2. execve(2) gives a process of uid 0 its whole bounding set again. The keeper starts workers by
//!    it, and a worker the `--on-change` command, which is the administrator's own and runs with
//!    all that the mount command had. These two keep their bounding set, and no process sets
//!    `no_new_privs`, with which `sudo` in such a command would fail. A process that starts no
//!    program loses what it drops from its bounding set, too.
//! 3. A process that is not root has only what it was given on purpose, and keeps it. So does root
//!    where `SECBIT_NOROOT` is set: there an exec gives nothing back.

use nix::sys::statfs::{FsType, statfs};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, capabilities, capabilities_secure_bits,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Where the connections of FUSE are ended.
const FUSECTL: &str = "/sys/fs/fuse/connections";
/// `FUSE_CTL_SUPER_MAGIC` of linux/magic.h.
const FUSECTL_MAGIC: FsType = FsType(0x6573_5543);

/// For a vault's socket that belongs to another user, for logs in another user's directory, and for
/// /proc/PID/fd.
const FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Mounts and unmounts, starts the others, looks at how a worker ended.
    Keeper,
    /// Serves; `runs_commands` with `--on-change`.
    Worker {
        /// It starts programs, and ends them, even if they changed their user.
        runs_commands: bool,
    },
    /// Makes calls on the mount, of which it has its clone already.
    Helper,
}

impl Role {
    fn keeps(self) -> CapabilitySet {
        match self {
            Role::Keeper => {
                FILES | CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::IPC_LOCK
            }
            Role::Worker { runs_commands } => {
                let mut kept = FILES | CapabilitySet::SYS_PTRACE | CapabilitySet::IPC_LOCK;
                kept.set(CapabilitySet::KILL, runs_commands);
                // It ends the connection when the keeper dies. Without fusectl that takes a forced
                // unmount.
                kept.set(CapabilitySet::SYS_ADMIN, !has_fusectl());
                kept
            }
            // Modes and owners of what it renames, removes and touches are those that the mount
            // shows.
            Role::Helper => FILES | CapabilitySet::FOWNER,
        }
    }

    fn starts_programs(self) -> bool {
        match self {
            Role::Keeper => true,
            Role::Worker { runs_commands } => runs_commands,
            Role::Helper => false,
        }
    }
}

/// Drops what `role` does not need. To be called while the process has one thread. A kernel that
/// refuses leaves everything as it was, which is how it would be without this.
pub fn limit(role: Role) {
    let gives_back =
        capabilities_secure_bits().is_ok_and(|bits| !bits.contains(CapabilitiesSecureBits::NO_ROOT));
    if !nix::unistd::geteuid().is_root() || !gives_back {
        return;
    }
    let kept = role.keeps();
    if !role.starts_programs() {
        // Takes CAP_SETPCAP, so it comes first.
        for bit in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            if !kept.contains(bit) {
                // EINVAL: the kernel does not have so many.
                let _ = remove_capability_from_bounding_set(bit);
            }
        }
    }
    if let Ok(mut sets) = capabilities(None) {
        sets.permitted &= kept;
        sets.effective &= kept;
        let _ = set_capabilities(None, sets);
    }
}

fn has_fusectl() -> bool {
    statfs(FUSECTL).is_ok_and(|found| found.filesystem_type() == FUSECTL_MAGIC)
}
