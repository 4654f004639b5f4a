//! The operations of a vault by name: for counting requests, and for placing faults in tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// One method of [`Vault`](crate::vault::Vault) that costs a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `get_by_name`
    GetByName,
    /// `get`
    Get,
    /// `metadata`
    Metadata,
    /// `create`
    Create,
    /// `update`
    Update,
    /// `delete`
    Delete,
    /// `list`
    List,
    /// `versions`
    Versions,
    /// `version`
    Version,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 9] = [
        Op::GetByName,
        Op::Get,
        Op::Metadata,
        Op::Create,
        Op::Update,
        Op::Delete,
        Op::List,
        Op::Versions,
        Op::Version,
    ];

    /// Whether it changes the vault.
    pub fn writes(self) -> bool {
        match self {
            Op::Create | Op::Update | Op::Delete => true,
            Op::GetByName | Op::Get | Op::Metadata | Op::List | Op::Versions | Op::Version => false,
        }
    }
}

/// How often each operation was called.
#[derive(Debug, Default)]
pub struct OpCounts([AtomicU64; Op::ALL.len()]);

impl OpCounts {
    /// One more.
    pub fn add(&self, op: Op) {
        self.0[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Calls of one operation.
    pub fn get(&self, op: Op) -> u64 {
        self.0[op as usize].load(Ordering::Relaxed)
    }

    /// Calls of all operations.
    pub fn total(&self) -> u64 {
        Op::ALL.iter().map(|op| self.get(*op)).sum()
    }
}
