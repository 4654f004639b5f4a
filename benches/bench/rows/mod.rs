//! The groups of rows, in the order of the table.

mod cold;
mod embedded;
mod memory;
mod rotation;
mod scale;
mod siege;
mod warm;

use crate::Plan;
use crate::report::Report;

/// Rows that share what they are measured on.
pub struct Group {
    pub name: &'static str,
    pub title: &'static str,
    pub run: fn(&Plan, &mut Report) -> Result<(), String>,
}

/// All of them.
pub const GROUPS: &[Group] = &[
    Group { name: "warm", title: "Warm reads, against tmpfs (mounted with `--read-only`)", run: warm::reads },
    Group { name: "listing", title: "Warm listings, against tmpfs (`--read-only`)", run: warm::listings },
    Group {
        name: "peers",
        title: "Warm reads on a read-write mount, and other file systems",
        run: warm::peers,
    },
    Group {
        name: "cold",
        title: "Cold reads and saves, against bare requests, 5 ms delay",
        run: cold::reads,
    },
    Group { name: "paging", title: "Cold listing of 10,000 names", run: cold::listing },
    Group { name: "freshness", title: "Changes made elsewhere", run: rotation::freshness },
    Group { name: "rotation", title: "Rotations under readers", run: rotation::rotations },
    Group { name: "memory", title: "Memory", run: memory::all },
    Group { name: "embedded", title: "The embedded vault", run: embedded::all },
    Group { name: "scale", title: "Objects in the vault", run: scale::all },
    Group { name: "siege", title: "`vaultfs serve` under attack", run: siege::all },
];

/// So many names in a directory.
pub fn names(directory: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{directory}key-{n:07}")).collect()
}

/// What most secrets are: 100 bytes.
pub fn hundred(_: u32, _: u32) -> usize {
    100
}
