//! The file system's promises, without a kernel: a pretend program sends what a kernel would, to a
//! vault in memory that fails where a test says so. One module a promise; `model` compares random
//! sessions with a map.

mod asleep;
mod backups;
mod closes;
mod deadlines;
mod dirs;
mod doubts;
mod dying;
mod editors;
mod failed_deletes;
mod failures;
mod faults;
mod fuzz;
mod held;
mod lagging;
mod made;
mod meddler;
mod model;
mod model_faults;
mod names;
mod numbers;
mod outage;
mod refresher;
mod renames;
mod replaced;
mod requests;
mod revoked;
mod rotations;
mod saves;
mod shell;
#[cfg(debug_assertions)]
mod states;
mod successors;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../src/vault/testing/fuzz.rs"]
mod ten_minutes;
#[cfg(debug_assertions)]
mod torn;
mod unlinked;

// `ten_minutes` is a file of the library, and writes its line through this.
use vaultfs::sys;
