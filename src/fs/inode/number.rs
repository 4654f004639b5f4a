//! Inode numbers: the same in every mount of a vault, and below 2^32.
//!
//! Programs for 32 bits cannot get greater ones (EOVERFLOW), and backup programs read a file again
//! when its number has changed. So a number is not counted up: it is the first *free* one of
//! h(vault, what it is, k) for k = 0, 1, 2 …, where h is 32 bits of a SHA-256. It is free when
//! neither the kernel nor this process holds an inode with it. What takes a name while the inode
//! before it is still held (a rotation, a directory made anew) therefore has the next number, and
//! the first one again in the next mount.

use std::any::Any;
use std::collections::HashSet;
use std::sync::{Arc, Weak};

use ring::digest::{Context, SHA256};

use super::{DirKind, Node, ROOT};
use crate::vault::{ObjectId, ObjectName};

/// Inode number in listings for entries that the kernel has not looked up: no inode has it.
const UNKNOWN: u32 = u32::MAX;

/// What an inode is, as far as its number is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    Dir(&'a DirKind),
    File(&'a ObjectName),
    Version(&'a ObjectId, u64),
    Control,
}

impl What<'_> {
    fn put_into(self, hash: &mut Context) {
        // A text ends with a byte that no text has.
        let mut put = |tag: &[u8], text: &str| {
            [tag, text.as_bytes(), &[0xff]].iter().for_each(|part| hash.update(part))
        };
        match self {
            Self::Dir(DirKind::Tree(prefix)) => put(b"directory", prefix.as_str()),
            Self::Dir(DirKind::Histories(prefix)) => put(b"histories", prefix.as_str()),
            Self::Dir(DirKind::History(name, id)) => {
                put(b"history", name.as_str());
                put(b"of", id.as_str());
            }
            Self::Dir(DirKind::Control) => put(b"controls", ""),
            Self::File(name) => put(b"file", name.as_str()),
            Self::Version(id, number) => put(b"version", &format!("{id}/{number}")),
            Self::Control => put(b"control", ""),
        }
    }
}

/// Gives out numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The vault's name, hashed.
    vault: Hash,
    /// Where not all is known that the kernel holds: other numbers than those.
    pub salt: u64,
    /// The kernel holds these, and nothing is known of them.
    unknown: HashSet<u64>,
    /// Inodes that left the table while this process still used them.
    leaving: Vec<(u64, Weak<dyn Any + Send + Sync>)>,
}

#[derive(Clone)]
struct Hash(Context);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl Numbers {
    pub fn of(vault: &str) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(vault.as_bytes());
        hash.update(&[0xff]);
        Self { vault: Hash(hash), salt: 0, unknown: HashSet::new(), leaving: Vec::new() }
    }

    /// The first free number; `is_held` says which ones are in the table.
    pub fn first_free(&mut self, what: What<'_>, is_held: impl Fn(u64) -> bool) -> u64 {
        self.leaving.retain(|(_, node)| node.strong_count() > 0);
        let mut hash = self.vault.0.clone();
        what.put_into(&mut hash);
        // Fewer than 2^32 are held: there is no memory for more.
        (self.salt..u64::MAX)
            .flat_map(|round| {
                let mut hash = hash.clone();
                hash.update(&round.to_le_bytes());
                let digest = hash.finish();
                let words = digest
                    .as_ref()
                    .chunks_exact(4)
                    .map(|word| word.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)));
                words.collect::<Vec<u32>>()
            })
            .filter(|number| *number != UNKNOWN && u64::from(*number) > ROOT)
            .map(u64::from)
            .find(|number| !is_held(*number) && !self.is_elsewhere(*number))
            .unwrap_or(u64::from(UNKNOWN) - 1)
    }

    fn is_elsewhere(&self, number: u64) -> bool {
        self.unknown.contains(&number) || self.leaving.iter().any(|(ino, _)| *ino == number)
    }

    /// The kernel holds an inode of this number that is not in the table.
    pub fn is_held_by_the_kernel(&mut self, number: u64) {
        self.unknown.insert(number);
    }

    /// The kernel forgot an inode that is not in the table.
    pub fn forget(&mut self, number: u64) {
        self.unknown.remove(&number);
    }

    /// The inode has left the table.
    pub fn let_go(&mut self, node: Node) {
        let ino = node.ino();
        let left: Weak<dyn Any + Send + Sync> = match node {
            Node::Dir(dir) => weak(dir),
            Node::File(file) => weak(file),
            Node::Version(version) => weak(version),
            Node::Control(control) => weak(control),
        };
        if left.strong_count() > 0 {
            self.leaving.push((ino, left));
        }
    }
}

fn weak<T: Any + Send + Sync>(node: Arc<T>) -> Weak<dyn Any + Send + Sync> {
    Arc::downgrade(&node) as Weak<dyn Any + Send + Sync>
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_in_every_process_and_no_special_one() {
        let name = ObjectName::new("db/password").unwrap();
        let mut numbers = Numbers::of("https://vault.example");
        let first = numbers.first_free(What::File(&name), |_| false);
        // Backups know it: it may not change with a version of this program.
        assert_eq!(first, 2_517_469_956);
        let second = numbers.first_free(What::File(&name), |ino| ino == first);
        assert_ne!(first, second);
        assert_ne!(first, Numbers::of("https://other.example").first_free(What::File(&name), |_| false));
        for n in 0..10_000 {
            let number = numbers.first_free(What::Version(&ObjectId::new("1"), n), |_| false);
            assert!(number > ROOT && number < u64::from(u32::MAX), "{number}");
        }
    }

    #[test]
    fn what_somebody_is_at_is_not_given_out() {
        let name = ObjectName::new("f").unwrap();
        let mut numbers = Numbers::of("v");
        let first = numbers.first_free(What::File(&name), |_| false);
        let file = Arc::new(crate::fs::inode::file::File::new(first, name.clone(), Default::default()));
        numbers.let_go(Node::File(file.clone()));
        assert_ne!(numbers.first_free(What::File(&name), |_| false), first);
        drop(file);
        assert_eq!(numbers.first_free(What::File(&name), |_| false), first);
        numbers.is_held_by_the_kernel(first);
        assert_ne!(numbers.first_free(What::File(&name), |_| false), first);
        numbers.forget(first);
        assert_eq!(numbers.first_free(What::File(&name), |_| false), first);
    }
}
