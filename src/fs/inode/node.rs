//! What an inode can be. All but a file's state is immutable.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::fs::inode::file::File;
use crate::fs::name::DirKind;
use crate::vault::{Object, ObjectId, ObjectName, VersionInfo};

/// A directory.
#[derive(Debug)]
pub struct Dir {
    /// Its number.
    pub ino: u64,
    /// What it shows.
    pub kind: DirKind,
}

impl Dir {
    /// Its name for the log.
    pub fn log_name(&self) -> &str {
        match &self.kind {
            DirKind::Tree(under) | DirKind::Histories(under) => under.as_str(),
            DirKind::History(name, _) => name.as_str(),
            DirKind::Control => "",
        }
    }
}

/// One old version of an object; immutable.
#[derive(Debug)]
pub struct VersionFile {
    /// Its number.
    pub ino: u64,
    /// The object's name when it was looked up.
    pub name: ObjectName,
    /// The object.
    pub id: ObjectId,
    /// The version.
    pub info: VersionInfo,
    /// The version with its bytes; `None` where the vault gives no bytes of old versions.
    pub object: Option<Arc<Object>>,
    /// The vault refused later what it had given: the bytes are asked for again at each use.
    pub refused: AtomicBool,
}

impl VersionFile {
    /// Bytes: as many as there are, or as the vault lists.
    pub fn size(&self) -> u64 {
        let listed = self.info.size.unwrap_or(0);
        self.object.as_ref().map_or(listed, |object| object.content.bytes.len() as u64)
    }
}

/// A file in `/.vaultfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ControlFile {
    /// `status.json`
    Status,
    /// `metrics`
    Metrics,
}

/// A control file as it was when it was looked up: its size has to be true, and where the kernel
/// opens files by itself there is no open at which to take the text.
#[derive(Debug)]
pub struct ControlText {
    /// Its number.
    pub ino: u64,
    /// When it was taken.
    pub taken: SystemTime,
    /// What it holds.
    pub text: Vec<u8>,
}

/// An inode, cheap to clone.
#[derive(Debug, Clone)]
pub enum Node {
    /// A directory.
    Dir(Arc<Dir>),
    /// An object, or a file that is not one yet.
    File(Arc<File>),
    /// An old version.
    Version(Arc<VersionFile>),
    /// A control file.
    Control(Arc<ControlText>),
}

impl Node {
    /// The inode number.
    pub fn ino(&self) -> u64 {
        match self {
            Node::Dir(dir) => dir.ino,
            Node::File(file) => file.ino,
            Node::Version(version) => version.ino,
            Node::Control(control) => control.ino,
        }
    }
}
