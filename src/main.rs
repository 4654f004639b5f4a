//! The thin binary: harden, parse, run, exit code.

fn main() -> std::process::ExitCode {
    // Before anything else: no thread runs yet, and no secret has been read.
    vaultfs::sys::hardening::process();
    vaultfs::cli::main()
}
