//! Whether a name is shown as a file or as a directory, and under which text. What was seen first
//! stays: a name seen as a file is one for the life of the mount, and what would be below it is
//! shown beside it.

use std::ffi::OsStr;

use crate::fs::inode::Table;
use crate::fs::name;
use crate::fs::name::{DirPrefix, Rest, SELF};
use crate::vault::ObjectName;

impl Table {
    /// The entry under which `name` shows in `under`, now.
    pub fn shown(&mut self, name: &ObjectName, under: &DirPrefix) -> Option<(String, Rest)> {
        let (text, rest) = name::split(name.as_str(), under)?;
        if let Rest::Dir(dir) = &rest
            && let Some(owner) = dir.self_name()
            && self.is_file_instead_of(dir, &owner)
        {
            self.pin_beside(&owner, name);
            return name::split_beside(name.as_str(), under);
        }
        if rest == Rest::File
            && let Some(dir) = self.seen_dir_of(name)
        {
            // Once a directory, it stays one: the object is in it.
            return Some((text, Rest::Dir(dir)));
        }
        Some((text, rest))
    }

    /// `owner` stays a file, although `name` begins with it.
    pub fn pin_beside(&mut self, owner: &ObjectName, name: &ObjectName) {
        if self.pin_as_file(owner) {
            tracing::warn!(
                file = owner.as_str(),
                beside = name.as_str(),
                "a name begins with that of a file: it is shown beside it, with %2F for the slash"
            );
        }
    }

    /// Whether `owner` is shown as a file rather than as the directory `dir` of the same name.
    pub fn is_file_instead_of(&self, dir: &DirPrefix, owner: &ObjectName) -> bool {
        self.is_kept_a_file(owner) && !self.is_seen_dir(dir) && !self.is_made(dir)
    }

    /// Whether `name` shows in `under` as a file with just this text.
    pub fn is_shown_as(&mut self, name: &ObjectName, under: &DirPrefix, component: &OsStr) -> bool {
        let shown = self.shown(name, under);
        shown.is_some_and(|(text, rest)| rest == Rest::File && component == text.as_str())
    }

    /// The directories on the way to `name`, from the root on, each with the file name in it.
    pub fn steps_to(&mut self, name: &ObjectName) -> Option<Vec<(DirPrefix, String)>> {
        let (mut way, mut under) = (Vec::new(), DirPrefix::root());
        loop {
            let (text, rest) = self.shown(name, &under)?;
            way.push((under, text));
            let Rest::Dir(dir) = rest else { return Some(way) };
            under = dir;
            if under.self_name().as_ref() == Some(name) {
                way.push((under, SELF.to_owned()));
                return Some(way);
            }
        }
    }
}
