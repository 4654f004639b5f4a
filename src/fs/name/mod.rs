//! Object names as paths, and back: a bijection (DESIGN.md, "The tree").
//!
//! Names are any UTF-8 of 1 to 1024 bytes; file names are 1 to 255 bytes without `/` and NUL, and
//! neither `.` nor `..`. A name is cut at its slashes; what a file name cannot hold, or would be
//! ambiguous, is escaped. These are all escapes:
//!
//! | Escape | stands for | where |
//! |---|---|---|
//! | `%00`–`%1F` | a control character | everywhere |
//! | `%2E` | `.` | first in `.`, `..`, `.self`, and in `.versions`, `.vaultfs` at the root |
//! | `%2F` | `/` | beside a file, see [`split_beside`] |
//! | `%25` | `%` | before what would make it read as one of these escapes |
//! | `%_` | nothing | an empty component |
//! | `%+` | more follows | last in a directory's name: the component goes on inside |
//!
//! Hexadecimal digits are upper case; `%2f` and `%41` are ordinary text. A component that takes
//! more than 255 bytes becomes nested directories, each filled with at most 250 bytes and `%+`. A
//! cut never separates an escape, nor an escaped `%` from what made it need escaping: so how a
//! piece is spelt depends on nothing beyond it, and one directory has one spelling.
//!
//! [`split`] goes from names to file names, [`decode`] from file names to names. `decode` accepts
//! only what `split` returns: it decodes, encodes again and compares. Pure functions on text,
//! without knowledge of the vault or of inodes. The caller handles `.versions` and `.vaultfs` at
//! the root.

pub(in crate::fs) mod patterns;
mod spelling;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::spelling::Piece;
use crate::vault::model::object::MAX_NAME_BYTES;
use crate::vault::{ObjectId, ObjectName};

/// In each directory: the object that has the directory's own name.
pub const SELF: &str = ".self";

/// At the root: old versions of objects.
pub const VERSIONS: &str = ".versions";

/// At the root: control files.
pub const CONTROL: &str = ".vaultfs";

/// A directory, by what the names of all objects in it begin with.
///
/// `""` is the root and `"a/b/"` the directory `a/b`. A directory that continues an over-long
/// component is the text so far, and where in it that component begins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DirPrefix {
    prefix: Arc<str>,
    /// Where the component begins that the directory's entries belong to: at the end of `prefix`,
    /// or before it in a continuation. Always on a character boundary.
    start: usize,
}

impl DirPrefix {
    /// The root of the tree.
    pub fn root() -> Self {
        Self::whole("")
    }

    /// A directory by the beginning that its names share: nothing, or text that ends in `/`.
    pub fn new(prefix: &str) -> Option<Self> {
        (prefix.is_empty() || prefix.ends_with('/')).then(|| Self::whole(prefix))
    }

    /// The directory with an object's name.
    pub fn of_name(name: &ObjectName) -> Self {
        let (mut text, len) = ([b'/'; MAX_NAME_BYTES + 1], name.as_str().len());
        text[..len].copy_from_slice(name.as_str().as_bytes());
        // A name is text of at most so many bytes, and stays text with a slash behind it.
        Self::whole(std::str::from_utf8(&text[..=len]).unwrap_or_default())
    }

    fn whole(prefix: &str) -> Self {
        Self { prefix: prefix.into(), start: prefix.len() }
    }

    /// What the names of all objects in this directory begin with. In a continuation, not every
    /// name that begins so is in it: ask [`split`].
    pub fn as_str(&self) -> &str {
        &self.prefix
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.prefix.is_empty()
    }

    /// Whether this directory continues an over-long component. It has no [`SELF`] and cannot be
    /// made with mkdir: it exists while an object is in it.
    pub fn is_continuation(&self) -> bool {
        self.start < self.prefix.len()
    }

    /// The object that is `.self` in this directory, if there can be one.
    pub fn self_name(&self) -> Option<ObjectName> {
        if self.is_continuation() { None } else { ObjectName::new(self.prefix.strip_suffix('/')?) }
    }

    /// The part of the component that has been spelt on the way here.
    fn so_far(&self) -> &str {
        &self.prefix[self.start..]
    }
}

impl fmt::Debug for DirPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.prefix)?;
        if self.is_continuation() { write!(f, "+") } else { Ok(()) }
    }
}

/// What a directory shows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DirKind {
    /// The objects with names that begin with the prefix.
    Tree(DirPrefix),
    /// `/.versions` and below: the same names, each a directory of its versions.
    Histories(DirPrefix),
    /// The versions of one object.
    History(ObjectName, ObjectId),
    /// `/.vaultfs`.
    Control,
}

/// What an entry on the way to an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// The object itself.
    File,
    /// A directory that the object's name implies.
    Dir(DirPrefix),
}

/// What a file name in a directory can mean; the vault decides which of these exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// `.self`: the object with the directory's own name.
    SelfFile(ObjectName),
    /// An ordinary entry. At least one of the two is there.
    Entry {
        /// The object, if it is a file.
        as_file: Option<ObjectName>,
        /// The directory, if it is one.
        as_dir: Option<DirPrefix>,
    },
    /// An entry with a `%2F` in it, or on the way to it: valid only beside a file, see
    /// [`split_beside`].
    Beside {
        /// The object, if it is a file.
        as_file: Option<ObjectName>,
        /// The continuation, if the entry ends in `%+`.
        as_dir: Option<DirPrefix>,
    },
}

/// Why a file name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No name is spelt so: ENOENT on lookup, EINVAL on create.
    #[error("no object can have this file name")]
    Spelling,
    /// The name would have more than 1024 bytes, or the file name has more than 255: ENAMETOOLONG.
    #[error("the name is longer than {MAX_NAME_BYTES} bytes, or the file name longer than 255")]
    TooLong,
}

/// The entry under which the object `name` shows in the directory `under`, and what that entry is.
/// `None` if the object is not in there.
///
/// The entry is a valid file name, and [`decode`] in the same directory gives back what is returned
/// here.
pub fn split(name: &str, under: &DirPrefix) -> Option<(String, Rest)> {
    let after = name.strip_prefix(under.as_str())?;
    // Once a slash is part of the component, the rest of the name is, too.
    let end = match after.find('/') {
        Some(at) if !under.so_far().contains('/') => under.prefix.len() + at,
        _ => name.len(),
    };
    entry(name, under, end)
}

/// [`split`] for an object that would be below an object that is shown as a file: it is shown
/// beside that file, with the rest of its name as one component. With `a` a file, `a/b/c` is
/// `a%2Fb%2Fc`.
///
/// `under` is the directory in which that file is, or a continuation that this function has
/// returned.
pub fn split_beside(name: &str, under: &DirPrefix) -> Option<(String, Rest)> {
    if !name.starts_with(under.as_str()) {
        return None;
    }
    entry(name, under, name.len())
}

/// The entry in `under` for `name`; its component there ends at `end`.
fn entry(name: &str, under: &DirPrefix, end: usize) -> Option<(String, Rest)> {
    let component = name.get(under.start..end)?;
    let chunk = spelling::chunk(component, under.so_far().len(), under.is_root())?;
    let rest = if !chunk.last {
        Rest::Dir(DirPrefix { prefix: name[..under.start + chunk.end].into(), start: under.start })
    } else if end == name.len() {
        Rest::File
    } else {
        Rest::Dir(DirPrefix::whole(&name[..=end]))
    };
    Some((chunk.text, rest))
}

/// What `file_name` can mean in the directory `under`: exactly what [`split`] and [`split_beside`]
/// spell so.
///
/// # Errors
/// [`Refused::Spelling`] for what they never return, including reserved names and invalid UTF-8;
/// [`Refused::TooLong`] for more than 255 bytes, and for what would stand for more than 1024.
pub fn decode(file_name: &[u8], under: &DirPrefix) -> Result<Decoded, Refused> {
    let file_name = std::str::from_utf8(file_name).map_err(|_| Refused::Spelling)?;
    if file_name == SELF {
        return under.self_name().map(Decoded::SelfFile).ok_or(Refused::Spelling);
    }
    if file_name.len() > spelling::MAX_FILE_NAME {
        return Err(Refused::TooLong);
    }
    let (text, continues) = spelling::unescape(file_name).ok_or(Refused::Spelling)?;
    let from = under.so_far().len();
    let component = format!("{}{text}", under.so_far());
    let spelt = spell(&component, from, under.is_root(), continues).ok_or(Refused::Spelling)?;
    if spelt != file_name {
        return Err(Refused::Spelling);
    }
    let mut name = format!("{}{text}", under.as_str());
    let beside = component.contains('/');
    let (as_file, as_dir) = if continues {
        let goes_on = name.len() < MAX_NAME_BYTES;
        (None, goes_on.then(|| DirPrefix { prefix: name.into(), start: under.start }))
    } else {
        let as_file = ObjectName::new(&name);
        name.push('/');
        (as_file, (!beside && name.len() <= MAX_NAME_BYTES).then(|| DirPrefix::whole(&name)))
    };
    match (as_file, as_dir) {
        (None, None) => Err(Refused::TooLong),
        (as_file, as_dir) if beside => Ok(Decoded::Beside { as_file, as_dir }),
        (as_file, as_dir) => Ok(Decoded::Entry { as_file, as_dir }),
    }
}

/// How `component` is spelt from byte `from` to its end; with `continues`, how a cut at its end is
/// spelt. `None` if there is no cut at `from`, or can be none at the end.
fn spell(component: &str, from: usize, at_root: bool, continues: bool) -> Option<String> {
    if !continues {
        let chunk = spelling::chunk(component, from, at_root)?;
        return chunk.last.then_some(chunk.text);
    }
    // Whether there is a component that is cut here: if any, then one that goes on with the longest
    // text that must not be cut, since that leaves the most room unused.
    let longest = format!("{component}%25{}", "x".repeat(spelling::MAX_FILE_NAME));
    let Piece { text, end, .. } = spelling::chunk(&longest, from, at_root)?;
    (end == component.len()).then_some(text)
}

/// The path of an object relative to the root, if no other object is shown as a file on the way.
pub fn path(name: &str) -> String {
    let (mut path, mut under) = (String::new(), DirPrefix::root());
    while let Some((component, rest)) = split(name, &under) {
        path.push_str(&component);
        match rest {
            Rest::File => break,
            Rest::Dir(dir) => under = dir,
        }
        path.push('/');
    }
    path
}

/// The object that a path relative to the root can be, also where a directory is in its place;
/// `None` for the root. The inverse of [`path`].
///
/// # Errors
/// As of [`decode`], of the first file name that is refused.
pub fn of_path(path: &std::path::Path) -> Result<Option<ObjectName>, Refused> {
    let (mut under, mut object) = (Some(DirPrefix::root()), None);
    for component in path.components() {
        let dir = under.ok_or(Refused::Spelling)?;
        (object, under) = match decode(component.as_os_str().as_encoded_bytes(), &dir)? {
            Decoded::SelfFile(name) => (Some(name), None),
            Decoded::Entry { as_file, as_dir } | Decoded::Beside { as_file, as_dir } => (as_file, as_dir),
        };
    }
    match path.as_os_str().is_empty() {
        true => Ok(None),
        false => object.map(Some).ok_or(Refused::Spelling),
    }
}

#[cfg(test)]
mod tests;
