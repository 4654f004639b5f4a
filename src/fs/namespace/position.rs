//! Where a name shows, as far as the kernel knows the way to it.

use crate::fs::inode::{DirKind, ROOT};
use crate::fs::name::{DirPrefix, Rest, SELF};
use crate::fs::namespace::Namespace;
use crate::vault::ObjectName;

/// Where a name shows.
#[derive(Debug)]
pub(in crate::fs) struct NamePosition {
    /// The directories on the way: where, under which name, which.
    pub way: Vec<(u64, String, DirKind)>,
    /// The directory.
    pub parent: u64,
    /// The directory's path with a slash at its end; empty for the root.
    pub path: String,
    /// The file name.
    pub text: String,
    /// The kernel does not know the directory: `parent` is the nearest above it that it knows, and
    /// `text` what is in that.
    pub is_below: bool,
}

impl Namespace {
    /// Where `name` shows, as far as the kernel knows the way.
    pub(in crate::fs) fn name_position(&self, name: &ObjectName) -> Option<NamePosition> {
        let mut table = self.inodes.lock();
        let mut under = DirPrefix::root();
        let mut position = NamePosition {
            way: Vec::new(),
            parent: ROOT,
            path: String::new(),
            text: String::new(),
            is_below: false,
        };
        loop {
            let (text, rest) = table.shown(name, &under)?;
            let Rest::Dir(dir) = rest else {
                position.text = text;
                return Some(position);
            };
            let kind = DirKind::Tree(dir.clone());
            let Some(ino) = table.dir_ino(&kind).filter(|ino| table.is_held(*ino)) else {
                (position.text, position.is_below) = (text, true);
                return Some(position);
            };
            position.path.push_str(&text);
            position.path.push('/');
            position.way.push((position.parent, text, kind));
            position.parent = ino;
            if dir.self_name().as_ref() == Some(name) {
                position.text = SELF.to_owned();
                return Some(position);
            }
            under = dir;
        }
    }
}
