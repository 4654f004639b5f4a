//! Faults × operations: a file system without kernel, a real vault, and between them a proxy with
//! bad days.
//!
//! Each cell of the table is one operation under one fault: it must end with the errno that is
//! written down here, in time, with few requests and one line in the log; and when the fault is
//! over, everything works at once, and the vault's own history shows every write once.

mod away;
mod cells;
mod world;

use std::time::Duration;

use futures_util::StreamExt;
use vaultfs::fs::Errno;
use vaultfs::vault::Dialect;

use cells::{Cell, Mode, OPERATIONS};
use world::World;

use crate::support::proxy::{At, Fault};

/// Cells that run at a time: most of them wait.
const ABREAST: usize = 24;

const DRIP: Fault = Fault::Drip(Duration::from_millis(300));

/// Requests to a vault that may be back any moment, with pauses that grow to a second, in the time
/// of one operation.
const WAITED: u64 = 40;

/// Each fault, the errno of an operation that needs an answer while it lasts, and the requests of a
/// read then.
const FAULTS: [(Fault, Errno, u64); 22] = [
    (Fault::Reset(At::Request), Errno::ETIMEDOUT, WAITED),
    (Fault::Reset(At::Answer), Errno::ETIMEDOUT, WAITED),
    (Fault::Reset(At::Lost), Errno::ETIMEDOUT, WAITED),
    (Fault::Reset(At::StatusLine), Errno::ETIMEDOUT, WAITED),
    (Fault::Reset(At::Headers), Errno::ETIMEDOUT, WAITED),
    (Fault::Reset(At::Body), Errno::EIO, 4),
    (Fault::Truncated, Errno::EIO, 4),
    (Fault::TooShort, Errno::EIO, 1),
    (Fault::TooLong, Errno::ETIMEDOUT, 1),
    (Fault::Garbage, Errno::EIO, 4),
    (Fault::Nonsense, Errno::EIO, 1),
    (Fault::Html(200), Errno::EIO, 1),
    (Fault::Html(404), Errno::EIO, 1),
    (Fault::Html(502), Errno::EIO, WAITED),
    (Fault::Redirect, Errno::EIO, 1),
    (DRIP, Errno::ETIMEDOUT, 1),
    (Fault::Huge, Errno::EIO, 1),
    (Fault::Endless, Errno::EIO, 1),
    (Fault::Status(429, 0), Errno::EBUSY, 4),
    (Fault::Status(429, 60), Errno::EBUSY, 1),
    (Fault::Status(500, 0), Errno::EIO, 4),
    (Fault::BlackHole, Errno::ETIMEDOUT, 1),
];

/// Refusals: answers, that no older value stands in for.
const REFUSALS: [(Fault, Errno, u64); 2] =
    [(Fault::Status(401, 0), Errno::EACCES, 1), (Fault::Status(403, 0), Errno::EACCES, 1)];

/// After one of these an operation goes well, because it is tried again or looked after.
const PASSING: [Fault; 11] = [
    Fault::Delay(Duration::from_millis(50)),
    Fault::Reset(At::Request),
    Fault::Reset(At::Answer),
    Fault::Reset(At::Lost),
    Fault::Reset(At::StatusLine),
    Fault::Reset(At::Headers),
    Fault::Reset(At::Body),
    Fault::Truncated,
    Fault::Status(429, 0),
    Fault::Status(500, 0),
    Fault::Status(503, 1),
];

async fn run(cells: Vec<Cell>) {
    let worlds = [World::start(Dialect::Object).await, World::start(Dialect::Kv).await];
    let all = cells.into_iter().flat_map(|cell| worlds.iter().map(move |world| (cell, world.clone())));
    let running = all.enumerate().map(|(number, (cell, world))| async move {
        let named =
            format!("{:?} of {:?} under {:?} ({:?})", cell.mode, cell.operation, cell.fault, world.dialect());
        let done = tokio::spawn(cells::check(world, cell, number)).await;
        done.err().map(|_| named)
    });
    let failed: Vec<_> = futures_util::stream::iter(running).buffer_unordered(ABREAST).collect().await;
    let failed: Vec<_> = failed.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{} cells:\n{}", failed.len(), failed.join("\n"));
}

fn cells(mode: Mode, fault: Fault, errno: Option<Errno>, requests: u64) -> impl Iterator<Item = Cell> {
    OPERATIONS.into_iter().map(move |operation| Cell { mode, operation, fault, errno, requests })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_operation_under_each_lasting_fault() {
    let faults = FAULTS.into_iter().chain([(Fault::Silence, Errno::ETIMEDOUT, 1)]);
    let lasting = faults.flat_map(|(fault, errno, n)| cells(Mode::Lasting, fault, Some(errno), n));
    let refused =
        REFUSALS.into_iter().flat_map(|(fault, errno, n)| cells(Mode::Refusing, fault, Some(errno), n));
    run(lasting.chain(refused).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_operation_goes_well_after_a_passing_fault() {
    run(PASSING.into_iter().flat_map(|fault| cells(Mode::Passing, fault, None, 8)).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_operation_while_nobody_listens() {
    run(cells(Mode::Down, Fault::BlackHole, Some(Errno::ETIMEDOUT), 0).collect()).await;
}
