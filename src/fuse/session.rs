//! Takeover of a mount: how a worker gets a fuser session for a connection after its INIT.
//!
//! The kernel sends INIT once in a mount's life, and fuser insists on a handshake at the start. So
//! each worker, the first like any other, shakes hands with a socket: the INIT request that the
//! keeper saved is written into one end of a socket pair, [`fuser::Session::from_fd`] answers it on
//! the other, and then the real /dev/fuse descriptor is put (dup2) where that other end was. The
//! first worker's answer is what the keeper writes to the kernel: kernel and fuser agree exactly,
//! without a second implementation of the negotiation, and the keeper keeps it to compare a
//! successor's answer with. Nothing here mounts or unmounts, and the descriptor is never cloned
//! (closing a clone aborts the requests it has read).

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::sys::fuse_device::Init;

/// Threads that read requests: best on two cores, measured.
const THREADS: usize = 2;

/// Makes a session that has answered `init`, and returns its answer.
pub fn shake_hands<F: Filesystem>(filesystem: F, init: &Init) -> io::Result<(Session<F>, Vec<u8>)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut ours = std::fs::File::from(ours);
    ours.write_all(init.as_bytes())?;
    let mut config = Config::default();
    // Without allow_other the kernel admits only the owner; fuser's own check would only repeat it.
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    config.clone_fd = false;
    let session = Session::from_fd(filesystem, theirs, config.acl, config)?;
    let mut answer = vec![0; 4096];
    let len = ours.read(&mut answer)?;
    answer.truncate(len);
    // fuse_out_header: len, error, unique
    let error = answer.get(4..8).and_then(|b| b.try_into().ok()).map_or(libc::EIO, i32::from_ne_bytes);
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error.abs()));
    }
    Ok((session, answer))
}

/// Puts the real device in the place of the socket that the session shook hands on.
pub fn attach<F: Filesystem>(session: &Session<F>, device: OwnedFd) -> io::Result<()> {
    let place = session.as_fd().as_raw_fd();
    // SAFETY: `place` stays owned by the session; dup3 swaps what it refers to in one step, and no
    // thread uses it yet, because the session does not run before this.
    match unsafe { libc::dup3(device.as_raw_fd(), place, libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
