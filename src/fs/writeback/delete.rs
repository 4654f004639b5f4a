//! Deletions of objects at the vault.

use std::time::Duration;

use crate::fs::writeback::Writeback;
use crate::vault::{Call, Error, ErrorKind, ObjectId, VersionTag};

/// How long after a refused deletion others are taken to be refused, too.
const REFUSAL: Duration = Duration::from_secs(60);

impl Writeback {
    /// Deletes an object at the vault, and remembers a refusal.
    pub async fn delete_object(
        &self,
        call: &Call,
        id: &ObjectId,
        version: Option<&VersionTag>,
    ) -> Result<(), Error> {
        let deleted = self.env.cache().vault().delete(call, id, version).await;
        if let Err(Error { kind: ErrorKind::Unauthorized | ErrorKind::Forbidden, .. }) = &deleted {
            *self.deletion_refused.lock() = Some(self.env.now());
        }
        deleted
    }

    /// Whether the vault refused a deletion a short while ago.
    pub fn refuses_deletions(&self) -> bool {
        let now = self.env.now();
        self.deletion_refused.lock().is_some_and(|at| now.saturating_duration_since(at) < REFUSAL)
    }
}
