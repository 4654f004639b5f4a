//! Requests that a worker's death leaves unanswered: the kernel sends them again, and each effect happens once.
//!
//! 1. A request keeps its number (`unique`); sent again, its top bit is set.
//! 2. Most requests can just be done again: a write by its offset, a flush because what is stored is not dirty any
//!    more, a release because the handle is gone, an open because its handle knows the request it is of.
//! 3. What changes names cannot: an unlink done twice would be ENOENT. So when such a request has found that it may
//!    go on, and before its first effect, it writes down what it is [`Doing`], and after its answer that this is
//!    over. Sent again it goes on from there, and takes what is done already for done. Nobody else can have changed
//!    these names meanwhile: the kernel holds their directories' locks until it has the answer.
//! 4. A request that was in flight at two deaths is the likely cause of them: EIO.
//!
//! Which request a piece of work is for is known to the task, not handed through every call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::errno::{Errno, Result};
use super::journal::Key;
use super::{FileSystem, Step};
use crate::crash;
use crate::vault::ObjectName;

/// Set in the number of a request that is sent again.
const AGAIN: u64 = 1 << 63;

/// Deaths that a request may survive.
const DEATHS: u32 = 2;

/// What a request has begun to do; what it has to know of how things were before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Doing {
    /// Making a file, directory or other name that was not there.
    Make,
    /// Removing a directory that was there and empty.
    Rmdir,
    /// Removing a file's name, with the objects behind it.
    Unlink { ino: u64 },
    /// Moving a file to a name, over another file or not.
    Rename { ino: u64, name: ObjectName, over: Option<u64> },
    /// Moving a directory.
    RenameDir,
}

impl Doing {
    /// The file whose bytes are needed to go on.
    pub fn moves(&self) -> Option<u64> {
        match self {
            Doing::Rename { ino, .. } => Some(*ino),
            Doing::Make | Doing::Rmdir | Doing::Unlink { .. } | Doing::RenameDir => None,
        }
    }
}

/// The request that a task works for.
#[derive(Debug)]
struct Current {
    id: u64,
    before: Option<Doing>,
}

tokio::task_local! {
    static CURRENT: Arc<Current>;
}

/// The number of the request that this task works for.
pub(super) fn current() -> Option<u64> {
    CURRENT.try_with(|current| current.id).ok()
}

/// What this request had begun to do when the last worker died.
pub(super) fn before() -> Option<Doing> {
    CURRENT.try_with(|current| current.before.clone()).ok().flatten()
}

impl FileSystem {
    /// Does `work` for the request `unique`, which changes something. [`FileSystem::answered`] ends it.
    pub fn serve<T: Send + 'static>(
        self: &Arc<Self>,
        unique: u64,
        work: impl FnOnce(&Arc<Self>) -> Step<T>,
    ) -> Step<T> {
        if let Err(poison) = self.seen(unique) {
            return Step::Ready(Err(poison));
        }
        let id = unique & !AGAIN;
        let before = if unique & AGAIN != 0 { self.doings().get(&id).cloned() } else { None };
        let current = Arc::new(Current { id, before });
        match CURRENT.sync_scope(current.clone(), || work(self)) {
            Step::Ready(result) => Step::Ready(result),
            Step::Pending(future) => Step::Pending(Box::pin(CURRENT.scope(current, future))),
        }
    }

    /// Counts how often a request is seen; EIO if workers keep dying of it. To be called for each.
    pub fn seen(&self, unique: u64) -> Result<()> {
        if unique & AGAIN == 0 {
            return Ok(());
        }
        let id = unique & !AGAIN;
        let deaths = {
            let mut sights = self.sights.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let deaths = sights.entry(id).or_insert(0);
            *deaths += 1;
            *deaths
        };
        self.pen.put(&Key::Sights(id), &deaths);
        if deaths < DEATHS {
            return Ok(());
        }
        let why = "workers died twice while they had this request: it is given up";
        Err(self.refused("request", &format!("number {id}"), Errno::EIO, why))
    }

    /// The request `unique` has been answered: it will not come again.
    pub fn answered(&self, unique: u64) {
        let id = unique & !AGAIN;
        if self.doings().remove(&id).is_some() {
            self.pen.delete(&Key::Doing(id));
        }
        self.opening_answered(id);
        if unique & AGAIN != 0 {
            self.sights.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&id);
            self.pen.delete(&Key::Sights(id));
        }
    }

    /// Writes down what the current request is about to do. From now on it can be done in parts.
    pub(super) fn doing(&self, doing: Doing) {
        let Some(id) = current() else { return };
        if self.pen.writes() {
            self.pen.put(&Key::Doing(id), &doing);
            self.doings().insert(id, doing.clone());
        }
        crash::point(match doing {
            Doing::Make => "make",
            Doing::Rmdir => "rmdir",
            Doing::Unlink { .. } => "unlink",
            Doing::Rename { .. } => "rename",
            Doing::RenameDir => "rename dir",
        });
    }

    /// The handle that the current request opened before the last worker died.
    pub(super) fn opened_before(&self) -> Option<Arc<super::open::Handle>> {
        let id = current()?;
        let fh = self.untold.handle_of(id)?;
        self.handles().get(&fh).cloned()
    }
}
