//! (placeholder) The worker's stack of layers: vault, file system, adapter.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileType, INodeNo, ReplyAttr, ReplyDirectory, ReplyEntry, ReplyStatfs, Request,
};

use super::connect::{self, ConnectSpec, Endpoint};
use super::exit::Failure;
use crate::clock::SystemClock;
use crate::fuse::handover::{MountConfig, Unsaved};
use crate::fuse::worker::{Parts, Service};
use crate::harden::LockState;
use crate::secret::SecretString;

pub struct Stack {}
pub struct Last {}

pub async fn build(config: &MountConfig, key: Option<SecretString>) -> Result<Stack, Failure> {
    let spec: ConnectSpec = serde_json::from_value(config.spec.clone()).map_err(anyhow::Error::from)?;
    if !matches!(spec.endpoint, Endpoint::Embedded(_)) {
        connect::connect(&spec, connect::ApiKeyInput { secret: key }, Arc::new(SystemClock)).await?;
    }
    Ok(Stack {})
}

impl Stack {
    pub fn take_apart(
        self,
        _runtime: &tokio::runtime::Handle,
        memory: LockState,
    ) -> (Nothing, Parts<fn(fuser::Notifier)>, Last) {
        (Nothing, Parts { service: Arc::new(NothingService), attach: |_| (), memory }, Last {})
    }
}

impl Last {
    pub async fn stop(self) {}
}

struct NothingService;

#[async_trait::async_trait]
impl Service for NothingService {
    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    async fn drain(&self, _within: Duration) -> Vec<Unsaved> {
        Vec::new()
    }
    async fn reload_key(&self) {}
}

#[derive(Debug)]
pub struct Nothing;

fn root() -> FileAttr {
    let t = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(1),
        size: 0,
        blocks: 0,
        atime: t,
        mtime: t,
        ctime: t,
        crtime: t,
        kind: FileType::Directory,
        perm: 0o700,
        nlink: 1,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl fuser::Filesystem for Nothing {
    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }
    fn getattr(&self, _req: &Request, _ino: INodeNo, _fh: Option<fuser::FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &root());
    }
    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
    fn readdir(&self, _r: &Request, _i: INodeNo, _fh: fuser::FileHandle, _o: u64, reply: ReplyDirectory) {
        reply.ok();
    }
}
