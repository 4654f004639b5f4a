//! What keeps secrets inside the process: called first thing in `main`, in every process, after
//! each exec.
//!
//! 1. No other process of the user may look in: not dumpable, no core file, umask 077.
//! 2. A key that came in the environment leaves it: it is kept in a [`SecretString`], its bytes in
//!    the initial environment block (what `/proc/PID/environ` shows) are wiped, and children do not
//!    inherit it.
//! 3. Memory is locked where that cannot fail later: under a limit, MCL_FUTURE makes allocations
//!    fail once the limit is reached (measured), so it is done only where the limit is, or can be
//!    made, unlimited.
//!
//! exec(2) resets all of this, which is why nothing here is inherited and each process calls it
//! again. The module may not log: it runs before there is a log.

use std::ffi::{CStr, CString};
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::secret::SecretString;

/// Environment variables that hold secrets.
const SECRET_VARIABLES: [&str; 1] = ["WORKOS_API_KEY"];

/// What the caller's umask was.
static INHERITED_UMASK: OnceLock<Mode> = OnceLock::new();

/// The secrets taken out of the environment, until they are requested.
static TAKEN: Mutex<Vec<(&'static str, SecretString)>> = Mutex::new(Vec::new());

/// Hardens this process. To be called before any thread is started and before any secret is read.
///
/// Failures are ignored on purpose where there is nothing better to do: a kernel that refuses
/// PR_SET_DUMPABLE does not exist, and lowering a limit always works.
pub fn process() {
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    INHERITED_UMASK.get_or_init(|| umask(Mode::from_bits_truncate(0o077)));
    for name in SECRET_VARIABLES {
        if let Some(value) = scrub(name) {
            TAKEN.lock().push((name, value));
        }
    }
}

/// The mode of a new file that holds no secret, under the caller's umask.
pub fn public_mode() -> u32 {
    0o644 & !INHERITED_UMASK.get().map_or(0o077, |mask| mask.bits())
}

/// The secret that came in the environment variable `name`, once: the second call finds nothing.
pub fn take_env(name: &str) -> Option<SecretString> {
    let mut taken = TAKEN.lock();
    let found = taken.iter().position(|(n, _)| *n == name)?;
    Some(taken.swap_remove(found).1)
}

/// Whether a secret of the environment variable `name` is still to be taken.
pub fn has_env(name: &str) -> bool {
    TAKEN.lock().iter().any(|(n, _)| *n == name)
}

/// Raises the limit of descriptors: each connection of a server needs one.
pub fn raise_descriptors() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Names this process as `ps` and `top` show it (15 bytes at most).
pub fn name_process(name: &CStr) {
    let _ = nix::sys::prctl::set_name(name);
}

/// Reads a variable, removes it and wipes its bytes where the environment block had them.
fn scrub(name: &str) -> Option<SecretString> {
    let value = std::env::var_os(name)?;
    for place in places_of(name) {
        // SAFETY: the pointer came from `environ` in this single thread and points to a writable
        // NUL-terminated string; `getenv` finds an empty value there until the variable is removed
        // below.
        unsafe { wipe(place) };
    }
    // SAFETY: `process` runs before any other thread exists, so nothing reads the environment
    // meanwhile.
    unsafe { std::env::remove_var(name) };
    // A key is ASCII; what is not UTF-8 is no key, and is dropped with the block wiped.
    value.into_string().ok().map(SecretString::new)
}

/// Where `environ` holds the values of `name=…`.
fn places_of(name: &str) -> Vec<*mut libc::c_char> {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    let prefix = CString::new(format!("{name}=")).expect("names of variables have no NUL");
    let mut found = Vec::new();
    // SAFETY: `environ` is a NULL-terminated array of NUL-terminated strings, read in a single
    // thread.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            if libc::strncmp(*entry, prefix.as_ptr(), prefix.as_bytes().len()) == 0 {
                found.push((*entry).add(prefix.as_bytes().len()));
            }
            entry = entry.add(1);
        }
    }
    found
}

/// Overwrites a C string with zeros, in a way the compiler keeps.
///
/// # Safety
/// `text` is a writable NUL-terminated string that has no other user.
unsafe fn wipe(text: *mut libc::c_char) {
    let mut at = text;
    // SAFETY: by the contract above each byte up to the NUL is writable.
    unsafe {
        while *at != 0 {
            std::ptr::write_volatile(at, 0);
            at = at.add(1);
        }
    }
}

/// Whether this process' memory can be written to swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockState {
    /// Every page, those to come included, stays in memory.
    Locked,
    /// Pages may be swapped out; why, and what to do.
    NotLocked(String),
}

/// Locks this process' memory if that can be done without making later allocations fail.
pub fn lock_memory() -> LockState {
    let unlimited = nix::sys::resource::RLIM_INFINITY;
    // Root may raise the hard limit; any process may raise the soft one to it.
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, unlimited, unlimited).is_ok();
    if !raised && !has_cap_ipc_lock() {
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft / 1024);
        return LockState::NotLocked(format!(
            "the limit of locked memory is {limit} KiB; `ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity) lets it be locked",
        ));
    }
    // ONFAULT: only pages in use are locked, not the 16 MiB that each session thread reserves.
    // SAFETY: takes no pointers.
    let rc = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    if rc == 0 {
        LockState::Locked
    } else {
        LockState::NotLocked(format!("mlockall: {}", std::io::Error::last_os_error()))
    }
}

/// CAP_IPC_LOCK: the limit does not apply.
fn has_cap_ipc_lock() -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps & CAP_IPC_LOCK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The initial block is what counts, so a child process is looked at from outside in
    /// `tests/process/secrets.rs`; here: the value comes out once and the variable is gone.
    #[test]
    fn a_scrubbed_variable_is_gone_and_its_bytes_are_wiped() {
        // SAFETY: no other test of this binary touches this variable.
        unsafe { std::env::set_var("VAULTFS_TEST_SCRUB", "sk_scrub_me") };
        let place = places_of("VAULTFS_TEST_SCRUB")[0];
        let value = scrub("VAULTFS_TEST_SCRUB").expect("was set");
        assert_eq!(value.expose(), "sk_scrub_me");
        assert!(std::env::var_os("VAULTFS_TEST_SCRUB").is_none());
        // SAFETY: libc leaks what setenv allocated.
        let bytes = unsafe { std::slice::from_raw_parts(place.cast::<u8>(), 11) };
        assert_eq!(bytes, [0; 11]);
    }

    #[test]
    fn nothing_is_taken_twice() {
        TAKEN.lock().push(("X", SecretString::new("once".into())));
        assert_eq!(take_env("X").expect("there").expose(), "once");
        assert!(take_env("X").is_none());
    }
}
