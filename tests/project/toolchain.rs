//! The Rust that the scripts choose, on machines with and without rustup.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Stands for rustup. Lists the toolchains of the file beside it (name and version) and runs them;
/// anything else would fetch one.
const RUSTUP: &str = r#"#!/bin/sh
list=${0%/*}/toolchains
case "$1 $2" in
"toolchain list") sed 's/ .*/ (active)/' "$list" ;;
"run "*) sed -n "s/^$2 /rustc /p" "$list" ;;
*) echo "$@" >>"${0%/*}/fetched" ;;
esac
"#;

/// Stands for what rustup puts in the place of rustc and cargo: stable, unless another is named.
const PROXY: &str = r#"#!/bin/sh
exec "${0%/*}/rustup" run "${RUSTUP_TOOLCHAIN:-stable}" rustc --version
"#;

const DEBIANS: &str = "#!/bin/sh\necho 'rustc 9.0.0 (built from a source tarball)'\n";

fn program(bin: &Path, name: &str, text: &str) {
    fs::write(bin.join(name), text).unwrap();
    fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Whether the Rust of a machine will do for the scripts, and which toolchain they name. `rustup`:
/// the toolchains that it has, if there is one.
fn chosen(rustup: Option<&str>, named: Option<&str>) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path();
    for tool in ["bash", "sh", "dirname", "sed", "awk", "sort", "cut", "head", "cat"] {
        let found = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool));
        symlink(found.iter().find(|path| path.exists()).unwrap(), bin.join(tool)).unwrap();
    }
    if let Some(toolchains) = rustup {
        fs::write(bin.join("toolchains"), toolchains).unwrap();
        program(bin, "rustup", RUSTUP);
    }
    for name in ["rustc", "cargo"] {
        program(bin, name, if rustup.is_some() { PROXY } else { DEBIANS });
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lib.sh");
    let script = r#". "$0"; choose_toolchain; rust_will_do; echo "$? ${RUSTUP_TOOLCHAIN-}""#;
    let mut bash = Command::new(bin.join("bash"));
    bash.args(["-c", script]).arg(lib).env_clear().env("PATH", bin).env("CARGO_HOME", bin);
    let output = bash.envs(named.map(|named| ("RUSTUP_TOOLCHAIN", named))).output().unwrap();
    assert!(!bin.join("fetched").exists(), "nothing is fetched: {output:?}");
    let line = String::from_utf8(output.stdout).unwrap();
    let (status, toolchain) = line.trim_end_matches('\n').split_once(' ').unwrap();
    (status == "0", toolchain.to_owned())
}

#[test]
fn an_installed_toolchain_that_is_new_enough_is_used() {
    let used = |toolchain: &str| (true, toolchain.to_owned());
    assert_eq!(chosen(Some("nightly 9.1.0\n9.0.0 9.0.0\nstable 9.0.0\n"), None), used("stable"));
    assert_eq!(chosen(Some("nightly 9.1.0\n9.0.0 9.0.0\n1.0.0 1.0.0\n"), None), used("9.0.0"));
    assert_eq!(chosen(Some("9.0.0 9.0.0\n10.0.0 10.0.0\n"), None), used("10.0.0"));
    assert_eq!(chosen(Some("stable 1.0.0\n9.0.0 9.0.0\n"), None), used("9.0.0"));
    assert_eq!(chosen(Some("nightly 9.1.0-nightly\n"), None), used("nightly"));
}

#[test]
fn a_toolchain_that_the_environment_names_is_kept() {
    let both = "stable 9.0.0\nnightly 9.1.0\n";
    assert_eq!(chosen(Some(both), Some("nightly")), (true, "nightly".to_owned()));
}

#[test]
fn without_rustup_the_machines_own_rust_is_used() {
    assert_eq!(chosen(None, None), (true, String::new()));
}

#[test]
fn an_old_toolchain_will_not_do() {
    assert_eq!(chosen(Some("stable 1.0.0\n"), None), (false, String::new()));
    assert_eq!(chosen(Some(""), None), (false, String::new()));
}
