//! /dev/fuse: the connection and the INIT request.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Whether the connection still exists: it ends with its last mount, in any mount namespace.
pub fn is_connected(device: &File) -> bool {
    let mut fds = [PollFd::new(device.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => !fds[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLERR)),
        Err(_) => true,
    }
}

/// The INIT request: `fuse_in_header` (40 bytes), then `fuse_init_in`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init(Vec<u8>);

const HEADER: usize = 40;
const OPCODE_INIT: u32 = 26;
/// FUSE_HAS_RESEND, bit 39: the seventh of `flags2`.
const FLAG2_RESEND: u32 = 1 << 7;
/// `flags2` is there.
const FLAG_INIT_EXT: u32 = 1 << 30;

impl Init {
    /// Reads the first request of a new mount.
    pub fn read(device: &File) -> io::Result<Self> {
        // The kernel queued it when the mount was made; one that was removed meanwhile answers
        // ENODEV.
        let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(Duration::from_secs(5)).unwrap_or(PollTimeout::MAX);
        while poll(&mut ready, timeout) == Err(Errno::EINTR) {}
        if ready[0].any() != Some(true) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel sent no INIT"));
        }
        // FUSE_MIN_READ_BUFFER
        let mut buffer = vec![0; 8192];
        let mut device = device;
        let len = device.read(&mut buffer)?;
        buffer.truncate(len);
        Self::from_bytes(buffer).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the kernel's first request is no INIT")
        })
    }

    /// Checks that `bytes` is an INIT request.
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let init = Self(bytes);
        let opcode = u32::from_ne_bytes(init.0.get(4..8)?.try_into().ok()?);
        (opcode == OPCODE_INIT && init.0.len() >= HEADER + 16).then_some(init)
    }

    /// The request as it came.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn word(&self, index: usize) -> u32 {
        let at = HEADER + 4 * index;
        self.0.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
    }

    /// The protocol version the kernel speaks.
    pub fn abi(&self) -> (u32, u32) {
        (self.word(0), self.word(1))
    }

    /// Whether the kernel can send unanswered requests again.
    pub fn resend(&self) -> bool {
        self.word(3) & FLAG_INIT_EXT != 0 && self.word(4) & FLAG2_RESEND != 0
    }
}

/// Makes the kernel resend the requests that a dead worker had read and not answered.
pub fn resend(device: &File) -> io::Result<()> {
    // fuse_out_header: len, error (FUSE_NOTIFY_RESEND), unique
    let mut notice = [0; 16];
    notice[..4].copy_from_slice(&16u32.to_ne_bytes());
    notice[4..8].copy_from_slice(&7i32.to_ne_bytes());
    answer(device, &notice)
}

/// Writes an answer to the kernel.
pub fn answer(mut device: &File, reply: &[u8]) -> io::Result<()> {
    // One write, one answer: the kernel takes all of it or refuses.
    device.write(reply).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, flags: u32, flags2: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [104, opcode, 1, 0, 0, 0, 0, 0, 0, 0, 7, 45, 131072, flags, flags2] {
            bytes.extend_from_slice(&u32::to_ne_bytes(word));
        }
        bytes.resize(104, 0);
        bytes
    }

    #[test]
    fn the_kernels_offer_is_read() {
        let init = Init::from_bytes(request(26, FLAG_INIT_EXT, FLAG2_RESEND)).expect("an INIT");
        assert_eq!((init.abi(), init.resend()), ((7, 45), true));
        let old = Init::from_bytes(request(26, 0, FLAG2_RESEND)).expect("an INIT");
        assert!(!old.resend());
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(Init::from_bytes(request(1, 0, 0)), None);
        assert_eq!(Init::from_bytes(vec![26; 10]), None);
    }
}
