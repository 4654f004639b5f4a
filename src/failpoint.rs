//! Points where a test makes a process die; only in debug builds.
//!
//! `VAULTFS_TEST_CRASH=FILE` names a file with the name of a point in it. The process that comes by
//! takes the file away and kills itself, so that each file is one death; behind the word `always`
//! it leaves the file, and behind `abort` it leaves it and crashes. Behind `panic` the thread
//! panics instead, once; behind `stall` it stays there for good, with what it has locked; behind
//! `grow` it takes memory, 1 GiB at the most.
//!
//! A test without a process of its own sees the points that its thread passes ([`observe`]).

#[cfg(debug_assertions)]
thread_local! {
    static OBSERVER: std::cell::Cell<Option<fn(&str)>> = const { std::cell::Cell::new(None) };
}

/// From now on `observer` gets the name of each point that this thread passes.
#[cfg(debug_assertions)]
pub fn observe(observer: Option<fn(&str)>) {
    OBSERVER.set(observer);
}

/// The process may die here.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    if let Some(observer) = OBSERVER.get() {
        observer(name);
    }
    static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os("VAULTFS_TEST_CRASH").map(Into::into)) else {
        return;
    };
    let wanted = std::fs::read_to_string(file).unwrap_or_default();
    if wanted.trim().strip_prefix("stall ") == Some(name) && std::fs::remove_file(file).is_ok() {
        loop {
            std::thread::park();
        }
    }
    if wanted.trim().strip_prefix("panic ") == Some(name) && std::fs::remove_file(file).is_ok() {
        panic!("a test wants it");
    }
    if wanted.trim().strip_prefix("grow ") == Some(name) {
        std::hint::black_box((0..1024).map(|_| vec![1_u8; 1 << 20]).collect::<Vec<_>>());
    }
    let always = wanted.trim().strip_prefix("always ") == Some(name);
    if wanted.trim().strip_prefix("abort ") == Some(name) {
        std::process::abort();
    }
    if always || (wanted.trim() == name && std::fs::remove_file(file).is_ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// The process may die here.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}

/// The same for one subject, which a test also names.
#[cfg(debug_assertions)]
pub fn point_of(name: &str, subject: impl FnOnce() -> String) {
    point(&format!("{name} {}", subject()));
}

/// The same for one subject, which a test also names.
#[cfg(not(debug_assertions))]
pub fn point_of(_name: &str, _subject: impl FnOnce() -> String) {}
