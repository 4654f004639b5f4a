//! Values in memory: whole objects, one a version, bounded in bytes, the least recently used leaves first.
//!
//! A value that an open handle pins lives on through its `Arc` when it leaves here. Values are wiped when
//! their last owner drops them ([`crate::secret::SecretBytes`]).

use std::sync::Arc;

use lru::LruCache;

use crate::vault::{Object, ObjectId, VersionTag};

/// What an entry costs beside its bytes: keys, names, list links (measured order of magnitude).
const OVERHEAD: u64 = 300;

/// The cache of values.
#[derive(Debug)]
pub struct Values {
    lru: LruCache<(ObjectId, VersionTag), Arc<Object>>,
    bytes: u64,
    capacity: u64,
}

impl Values {
    /// Holds at most `capacity` bytes, but always the newest value.
    pub fn new(capacity: u64) -> Self {
        Self { lru: LruCache::unbounded(), bytes: 0, capacity }
    }

    /// The value of a version, if it is here; counts as a use.
    pub fn get(&mut self, id: &ObjectId, version: &VersionTag) -> Option<Arc<Object>> {
        self.lru.get(&(id.clone(), version.clone())).cloned()
    }

    /// Takes a value in and lets the oldest go.
    pub fn put(&mut self, object: Arc<Object>) {
        let key = (object.meta.id.clone(), object.meta.version.clone());
        self.bytes += cost(&object);
        if let Some(old) = self.lru.put(key, object) {
            self.bytes -= cost(&old);
        }
        while self.bytes > self.capacity && self.lru.len() > 1 {
            match self.lru.pop_lru() {
                Some((_, old)) => self.bytes -= cost(&old),
                None => break,
            }
        }
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        self.lru.clear();
        self.bytes = 0;
    }

    /// Number of values and their bytes, overhead included.
    pub fn usage(&self) -> (usize, u64) {
        (self.lru.len(), self.bytes)
    }
}

fn cost(object: &Object) -> u64 {
    object.content.bytes.len() as u64 + object.meta.name.as_str().len() as u64 + OVERHEAD
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::vault::{Content, Meta, ObjectName};

    fn object(id: &str, len: usize) -> Arc<Object> {
        Arc::new(Object {
            meta: Meta {
                id: ObjectId::new(id),
                name: ObjectName::new(id).unwrap(),
                version: VersionTag::new("1"),
                updated_at: SystemTime::UNIX_EPOCH,
            },
            content: Content::plain(vec![b'x'; len]),
        })
    }

    #[test]
    fn the_least_recently_used_leaves_first_and_the_count_stays_true() {
        let one = VersionTag::new("1");
        let mut values = Values::new(2 * (1000 + 1 + OVERHEAD));
        values.put(object("a", 1000));
        values.put(object("b", 1000));
        assert!(values.get(&ObjectId::new("a"), &one).is_some());
        values.put(object("c", 1000));
        assert!(values.get(&ObjectId::new("b"), &one).is_none());
        assert!(values.get(&ObjectId::new("a"), &one).is_some());
        values.put(object("a", 10));
        assert_eq!(values.usage(), (2, 1010 + 2 * (1 + OVERHEAD)));
    }
}
