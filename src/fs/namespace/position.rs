//! Where a name shows, as far as the kernel knows the way to it.

use crate::fs::inode::{DirKind, ROOT};
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
        let steps = table.steps_to(name)?;
        let (mut way, mut path, mut parent) = (Vec::new(), String::new(), ROOT);
        for (at, (_, text)) in steps.iter().enumerate() {
            let text = text.clone();
            let Some((below, _)) = steps.get(at + 1) else {
                return Some(NamePosition { way, parent, path, text, is_below: false });
            };
            let kind = DirKind::Tree(below.clone());
            let Some(ino) = table.dir_ino(&kind).filter(|ino| table.is_held(*ino)) else {
                return Some(NamePosition { way, parent, path, text, is_below: true });
            };
            path.push_str(&text);
            path.push('/');
            way.push((parent, text, kind));
            parent = ino;
        }
        None
    }

    /// Where `name` shows: the number of its directory, if the kernel knows that, and the file name
    /// there.
    pub(in crate::fs) fn position(&self, name: &ObjectName) -> Option<(u64, String)> {
        let mut table = self.inodes.lock();
        let (under, text) = table.steps_to(name)?.pop()?;
        Some((table.dir_ino(&DirKind::Tree(under))?, text))
    }

    /// The path, below the mount point, under which `name` shows now.
    pub(in crate::fs) fn path_of(&self, name: &str) -> String {
        let way = ObjectName::new(name).and_then(|name| self.inodes.lock().steps_to(&name));
        way.unwrap_or_default().into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("/")
    }
}
