//! What the vault does not have, read from what a worker wrote down: for when there is no worker
//! that could be asked.

use crate::fs::inode::FailedDeleteRecord;
use crate::fs::inode::file_snapshot::FileSnapshot;
use crate::fs::journal::Key;
use crate::fs::types::unsaved::Unsaved;

/// The writes, and the deletions, in these records that the vault does not have, by name. Records
/// that are not understood are passed over.
pub fn unsaved_from_journal(records: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Vec<Unsaved> {
    let left = |(key, value): (Vec<u8>, Vec<u8>)| {
        let key = Key::decode(&key)?;
        let value = key.value(&value)?;
        match key {
            Key::File(_) => FileSnapshot::decode(value)?.unsaved(),
            Key::FailedDelete(name) => {
                let kept = postcard::from_bytes::<FailedDeleteRecord>(value).ok()?;
                let name = name.as_str().to_owned();
                Some(Unsaved::deletion(name.clone(), name, kept.message))
            }
            _ => None,
        }
    };
    let mut all: Vec<Unsaved> = records.into_iter().filter_map(left).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}
