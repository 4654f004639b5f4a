//! The Debian package: what is in it, where its links lead, and what its scripts say when it goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use nix::fcntl::{Flock, FlockArg};

/// The package of this build, unpacked: its files, and what dpkg reads in `DEBIAN/`.
struct Package {
    root: PathBuf,
}

/// Making it takes long, and each test may be a process of its own: the first test of a run makes
/// it for all of them.
static PACKAGE: LazyLock<Package> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    fs::create_dir_all(&dir).unwrap();
    let _turn = Flock::lock(fs::File::open(&dir).unwrap(), FlockArg::LockExclusive).unwrap();
    // A run is the process that started the tests: its number, and when it began.
    let parent = nix::unistd::getppid();
    let stat = fs::read_to_string(format!("/proc/{parent}/stat")).unwrap();
    let run = format!(
        "{parent} {}",
        stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(19)).unwrap()
    );
    let (made_by, root) = (dir.join("run"), dir.join("root"));
    if fs::read_to_string(&made_by).is_ok_and(|text| text == run) {
        return Package { root };
    }
    let _ = fs::remove_dir_all(&root);
    let mut make = Command::new("scripts/package");
    make.current_dir(env!("CARGO_MANIFEST_DIR")).arg("--debug").arg(&dir);
    make.envs([("DEBFULLNAME", "A Builder"), ("DEBEMAIL", "builder@example.com")]);
    let made = ok(&mut make);
    let package = String::from_utf8(made.stdout).unwrap();
    ok(Command::new("dpkg-deb").arg("--raw-extract").arg(package.trim()).arg(&root));
    fs::write(made_by, run).unwrap();
    Package { root }
});

#[track_caller]
fn ok(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// Everything below a directory, links as they are.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

#[test]
fn the_package_lists_its_crates_and_their_licences() {
    let doc = PACKAGE.root.join("usr/share/doc/vaultfs");
    let list: serde_json::Value =
        serde_json::from_slice(&fs::read(doc.join("vaultfs.cdx.json")).unwrap()).unwrap();
    assert_eq!(
        (&list["bomFormat"], &list["metadata"]["component"]["name"]),
        (&"CycloneDX".into(), &"vaultfs".into())
    );
    let unpacked = ok(Command::new("gzip").arg("-dc").arg(doc.join("crates-licenses.gz"))).stdout;
    let licences = String::from_utf8(unpacked).unwrap();
    let crates = list["components"].as_array().unwrap();
    for name in ["fuser", "rustls", "rusqlite", "tokio"] {
        assert!(crates.iter().any(|one| one["name"] == name), "{name} is linked");
    }
    for one in crates {
        let (name, version) = (one["name"].as_str().unwrap(), one["version"].as_str().unwrap());
        let licence = one["licenses"][0]["expression"].as_str().unwrap();
        assert!(!licence.is_empty(), "{name}");
        assert!(licences.contains(&format!("{name} {version}: {licence}\n")), "{name} {version}");
    }
    assert!(!crates.iter().any(|one| one["name"] == "proptest"), "it is for tests only");
}

#[test]
fn every_link_leads_to_a_file_of_the_package() {
    let mut found = Vec::new();
    files(&PACKAGE.root, &mut found);
    let links: Vec<_> = found.iter().filter(|path| path.is_symlink()).collect();
    assert!(links.len() >= 6, "helpers and pages: {links:?}");
    for link in links {
        let target = fs::read_link(link).unwrap();
        assert!(target.is_relative(), "{} leads to {}", link.display(), target.display());
        assert!(link.exists(), "{} leads to {}", link.display(), target.display());
    }
    let helper = fs::canonicalize(PACKAGE.root.join("usr/sbin/mount.vaultfs")).unwrap();
    assert_eq!(helper, fs::canonicalize(PACKAGE.root.join("usr/bin/vaultfs")).unwrap());
}

#[test]
fn pages_and_completions_are_where_man_and_the_shells_look() {
    let share = PACKAGE.root.join("usr/share");
    for file in [
        "bash-completion/completions/vaultfs",
        "zsh/vendor-completions/_vaultfs",
        "fish/vendor_completions.d/vaultfs.fish",
        "man/man1/vaultfs-mount.1.gz",
        "man/man5/vaultfs.5.gz",
        "man/man8/mount.fuse.vaultfs.8.gz",
    ] {
        let mode =
            fs::metadata(share.join(file)).unwrap_or_else(|e| panic!("{file}: {e}")).permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{file}");
    }
}

#[test]
fn the_tarball_has_the_same_files() {
    let dir = PACKAGE.root.parent().unwrap();
    let (tarball, to) = (fs::read_dir(dir).unwrap().flatten(), tempfile::tempdir().unwrap());
    let tarball =
        tarball.map(|file| file.path()).find(|path| path.to_string_lossy().ends_with(".tar.gz")).unwrap();
    ok(Command::new("tar").args(["--strip-components=1", "-xzf"]).arg(tarball).arg("-C").arg(to.path()));
    for file in [
        "bin/vaultfs",
        "share/man/man1/vaultfs.1.gz",
        "share/bash-completion/completions/vaultfs",
        "sbin/mount.vaultfs",
    ] {
        let (here, there) = (to.path().join(file), PACKAGE.root.join("usr").join(file));
        assert_eq!(fs::read(&here).unwrap(), fs::read(there).unwrap(), "{file}");
    }
    let said =
        String::from_utf8(ok(Command::new(to.path().join("bin/vaultfs")).arg("version")).stdout).unwrap();
    assert_eq!(said, concat!("vaultfs ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// As `scripts/run` does it.
#[test]
fn a_user_gets_pages_and_completions_in_the_home() {
    let home = tempfile::tempdir().unwrap();
    let install = |home: &Path| {
        let mut shell = Command::new("bash");
        shell.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("XDG_DATA_HOME").env("HOME", home);
        let line = ". scripts/lib.sh; write_for_user \"$0\"";
        String::from_utf8(ok(shell.args(["-euc", line, env!("CARGO_BIN_EXE_vaultfs")])).stderr).unwrap()
    };
    // A second time, too.
    for _ in 0..2 {
        let said = install(home.path());
        assert!(!said.contains("could not"), "{said}");
    }
    let share = home.path().join(".local/share");
    for file in [
        "bash-completion/completions/vaultfs",
        "zsh/site-functions/_vaultfs",
        "fish/vendor_completions.d/vaultfs.fish",
    ] {
        assert!(fs::read_to_string(share.join(file)).unwrap().contains("vaultfs complete-words"), "{file}");
    }
    let bin = home.path().join(".local/bin");
    fs::create_dir(&bin).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut man = Command::new("man");
    man.args(["-w", "vaultfs-mount"]).env("HOME", home.path()).env("PATH", path).env_remove("MANPATH");
    let found = String::from_utf8(ok(&mut man).stdout).unwrap();
    assert_eq!(Path::new(found.trim()), share.join("man/man1/vaultfs-mount.1"));
    // A home that cannot be written is no reason to end: the vault can be mounted all the same.
    assert!(install(Path::new("/proc")).contains("could not be installed"));
}

#[test]
fn the_documents_lead_to_each_other_where_they_are_installed() {
    let doc = PACKAGE.root.join("usr/share/doc/vaultfs");
    let mut found = Vec::new();
    files(&doc, &mut found);
    let mut links = 0;
    for document in found.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            links += 1;
            let there = document.parent().unwrap().join(path);
            assert!(there.is_file(), "{} leads to {target}", document.display());
        }
    }
    assert!(links > 8, "{links}");
    let copyright = fs::read_to_string(doc.join("copyright")).unwrap();
    assert!(
        copyright.contains("Copyright: 20") && copyright.contains("common-licenses/Apache-2.0"),
        "{copyright}"
    );
}

#[test]
fn the_program_has_no_symbols_and_runs() {
    let program = PACKAGE.root.join("usr/bin/vaultfs");
    let sections = String::from_utf8(ok(Command::new("objdump").arg("-h").arg(&program)).stdout).unwrap();
    assert!(sections.contains(".text") && !sections.contains(".debug_info"), "{sections}");
    let symbols = Command::new("objdump").arg("-t").arg(&program).output().unwrap();
    assert!(String::from_utf8(symbols.stdout).unwrap().contains("no symbols"));
    let said = String::from_utf8(ok(Command::new(program).arg("--version")).stdout).unwrap();
    assert_eq!(said, concat!("vaultfs ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn the_builder_answers_for_the_package() {
    let control = fs::read_to_string(PACKAGE.root.join("DEBIAN/control")).unwrap();
    assert!(control.contains("\nMaintainer: A Builder <builder@example.com>\n"), "{control}");
    let long = control.lines().find(|line| line.len() > 79);
    assert_eq!(long, None);
    let keys = fs::metadata(PACKAGE.root.join("etc/vaultfs")).unwrap();
    assert_eq!(keys.permissions().mode() & 0o777, 0o700);
}

/// Runs a script of the package on a machine that is a directory, as dpkg does with --root; what it
/// said.
fn script(name: &str, action: &str, machine: &Path) -> String {
    let mut command = Command::new(PACKAGE.root.join("DEBIAN").join(name));
    let output = ok(command.arg(action).env("DPKG_ROOT", machine));
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn put(machine: &Path, path: &str, text: &str) {
    let path = machine.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn removal_says_what_still_counts_on_the_package() {
    let dir = tempfile::tempdir().unwrap();
    let machine = dir.path();
    assert_eq!(script("prerm", "remove", machine), "", "nothing is there");
    put(machine, "etc/fstab", "# embedded /srv/no vaultfs x 0 0\nproc /proc proc defaults 0 0\n");
    assert_eq!(script("prerm", "remove", machine), "");
    let lines =
        "UUID=1 / ext4 rw 0 1\n  embedded\t/srv/own vaultfs noauto 0 0\nnone /srv/x fuse.vaultfs ro\n";
    put(machine, "etc/fstab", lines);
    put(machine, "proc/self/mounts", "embedded /srv/own fuse.vaultfs rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n");
    let said = script("prerm", "remove", machine);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "a sentence each: {said}");
    assert!(lines[0].contains("/etc/fstab") && lines[0].ends_with("/srv/own, /srv/x"), "{said}");
    assert!(lines[1].contains("still mounted") && lines[1].ends_with(" /srv/own"), "{said}");
    assert_eq!(script("prerm", "upgrade", machine), "", "they go on with the next version");
}

#[test]
fn purging_takes_what_is_configured_and_leaves_a_vault() {
    let dir = tempfile::tempdir().unwrap();
    let machine = dir.path();
    put(machine, "etc/vaultfs/app.key", "sk_x");
    put(machine, "var/log/vaultfs/x.log", "");
    put(machine, "etc/systemd/system/multi-user.target.wants/vaultfs@app.service", "");
    put(machine, "var/lib/vaultfs-volumes/volumes.json", "");
    fs::create_dir_all(machine.join("var/lib/vaultfs-volumes/volumes/a")).unwrap();
    put(machine, "var/lib/vaultfs/vault.db", "secrets");
    let said = script("postrm", "purge", machine);
    assert!(said.contains("the vault in /var/lib/vaultfs stays"), "{said}");
    let mut left = Vec::new();
    files(machine, &mut left);
    assert_eq!(left, [machine.join("var/lib/vaultfs/vault.db")]);
    assert!(!machine.join("etc/vaultfs").exists() && !machine.join("var/lib/vaultfs-volumes").exists());
    // What the unit made, and nobody used.
    fs::remove_file(machine.join("var/lib/vaultfs/vault.db")).unwrap();
    assert_eq!(script("postrm", "purge", machine), "");
    assert!(!machine.join("var/lib/vaultfs").exists());
}
