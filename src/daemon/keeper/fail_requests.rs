//! The last resort: when no worker lives long enough to serve, the keeper answers every request
//! with EIO itself.
//!
//! So no program hangs, and none sees, or writes into, the plain directory below the mount.

use std::fs::File;
use std::io::{self, Read};

use nix::errno::Errno;

use crate::sys::fuse_device;

/// Longest request: the largest WRITE with its headers.
const LONGEST: usize = (1 << 20) + 8192;

const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// Answers one pending request. False when the connection is gone.
pub fn one(mut device: &File) -> io::Result<bool> {
    let mut request = vec![0; LONGEST];
    let len = match device.read(&mut request) {
        Ok(len) => len,
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => {
            return Ok(true);
        }
        Err(e) => return Err(e),
    };
    // fuse_in_header: len, opcode, unique
    let Some(header) = request.get(..16).filter(|_| len >= 16) else { return Ok(true) };
    let opcode = u32::from_ne_bytes(header[4..8].try_into().expect("four bytes"));
    let errno = match opcode {
        FORGET | BATCH_FORGET | INTERRUPT => return Ok(true),
        DESTROY => 0,
        _ => Errno::EIO as i32,
    };
    let mut reply = Vec::with_capacity(16);
    reply.extend_from_slice(&16u32.to_ne_bytes());
    reply.extend_from_slice(&(-errno).to_ne_bytes());
    reply.extend_from_slice(&header[8..16]);
    match fuse_device::answer(device, &reply) {
        // The program that asked is gone.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(true),
        other => other.map(|()| true),
    }
}
