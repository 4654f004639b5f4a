//! Who may do what to all mounts of this mount namespace at once.
//!
//! A test that copies the mount table into another namespace keeps every mount of the machine from
//! ending; one that makes mounts nobody serves, or puts helpers in /sbin, disturbs whoever looks at
//! all mounts. Such a test has the table to itself; all others share it, by their
//! [`Place`](super::common::Place). Tests run in processes of their own, so the locks are of
//! flock(2), on the namespace itself: they are free again whatever ends a test.

use std::cell::RefCell;
use std::fs::File;
use std::sync::{Arc, Mutex, Weak};

use nix::fcntl::{Flock, FlockArg};

/// A test's hold on the mount table, for as long as it lives.
pub struct Held {
    _table: Flock<File>,
    /// Of a test that has the table to itself.
    queue: Option<Flock<File>>,
}

thread_local! {
    static HELD: RefCell<Weak<Held>> = const { RefCell::new(Weak::new()) };
}

/// What was held last in this process.
static LAST: Mutex<Weak<Held>> = Mutex::new(Weak::new());

/// Nobody has the table to itself meanwhile, but perhaps the test of this thread.
pub fn share() -> Arc<Held> {
    // The threads that tests begin have no names. What their test holds must not keep them waiting.
    let of_test =
        || std::thread::current().name().is_none().then(|| LAST.lock().unwrap().upgrade()).flatten();
    HELD.with_borrow(Weak::upgrade).or_else(of_test).unwrap_or_else(|| hold(FlockArg::LockShared))
}

/// Nobody else has a mount meanwhile. To be called before the test makes its first
/// [`Place`](super::common::Place).
pub fn take() -> Arc<Held> {
    let held = HELD.with_borrow(Weak::upgrade).unwrap_or_else(|| hold(FlockArg::LockExclusive));
    assert!(held.queue.is_some(), "this test shares the mount table already");
    held
}

fn hold(how: FlockArg) -> Arc<Held> {
    let lock = |file: &str| Flock::lock(File::open(file).unwrap(), how).unwrap();
    // Who waits for all others to end keeps new ones from beginning.
    let queue = lock("/proc/self/exe");
    let table = lock("/proc/self/ns/mnt");
    let held =
        Arc::new(Held { _table: table, queue: matches!(how, FlockArg::LockExclusive).then_some(queue) });
    HELD.set(Arc::downgrade(&held));
    *LAST.lock().unwrap() = Arc::downgrade(&held);
    held
}
