//! The same random operations on a mount and on a directory of a local file system: results, error
//! numbers, contents, sizes and modes have to be the same. What may differ is listed in
//! [`allowed`], each with its reason; such an operation is not run on the local side.
//!
//! A failure prints its sequence. `VAULTFS_SEED=N` runs other sequences than the usual ones.

use std::fs::{self, File, OpenOptions};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::support::common::{Mount, Place};

/// Few names, so that they collide; some look like temporaries.
const NAMES: [&str; 10] = ["a", "b", "a~", "b.tmp", "d", "d/a", "d/e", "d/e/a", "f", "f/.a.swp"];
const HANDLES: usize = 3;
const STEPS: usize = 40;

/// A generator that needs no crate and gives the same sequence everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }
}

#[derive(Debug, Clone)]
enum Step {
    Open { handle: usize, name: &'static str, flags: i32, mode: u32 },
    Write { handle: usize, at: u64, bytes: Vec<u8> },
    Read { handle: usize, at: u64, length: usize },
    Resize { handle: usize, size: u64 },
    Sync(usize),
    Close(usize),
    Save(&'static str, Vec<u8>),
    Load(&'static str),
    Truncate(&'static str, u64),
    Unlink(&'static str),
    Mkdir(&'static str),
    Rmdir(&'static str),
    Rename(&'static str, &'static str),
    Stat(&'static str),
    List(&'static str),
    Chmod(&'static str, u32),
    SetTime(&'static str, i64),
    Symlink(&'static str),
    Link(&'static str, &'static str),
}

fn step(random: &mut Random) -> Step {
    let handle = random.below(HANDLES);
    let size = |random: &mut Random| random.below(9000) as u64;
    let bytes = |random: &mut Random| vec![b'a' + random.below(26) as u8; random.below(5000)];
    match random.below(28) {
        0..=3 => {
            let access = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR][random.below(3)];
            let more = [
                0,
                libc::O_CREAT,
                libc::O_CREAT | libc::O_TRUNC,
                libc::O_CREAT | libc::O_EXCL,
                libc::O_APPEND,
            ];
            let more = more[random.below(more.len())];
            Step::Open {
                handle,
                name: random.name(),
                flags: access | more,
                mode: [0o600, 0o644, 0o700][random.below(3)],
            }
        }
        4..=6 => Step::Write { handle, at: size(random), bytes: bytes(random) },
        7 => Step::Read { handle, at: size(random), length: random.below(9000) },
        8 => Step::Resize { handle, size: size(random) },
        9 => Step::Sync(handle),
        10..=11 => Step::Close(handle),
        12..=13 => Step::Save(random.name(), bytes(random)),
        14..=15 => Step::Load(random.name()),
        16 => Step::Truncate(random.name(), size(random)),
        17 => Step::Unlink(random.name()),
        18..=19 => Step::Mkdir(random.name()),
        20 => Step::Rmdir(random.name()),
        21..=22 => Step::Rename(random.name(), random.name()),
        23 => Step::Stat(random.name()),
        24 => Step::List(random.name()),
        25 => Step::Chmod(random.name(), [0o600, 0o755, 0o400][random.below(3)]),
        26 => Step::SetTime(random.name(), random.below(1 << 30) as i64),
        _ if random.below(2) == 0 => Step::Symlink(random.name()),
        _ => Step::Link(random.name(), random.name()),
    }
}

/// Something to work on: else most steps would only find that nothing is there.
fn beginning() -> Vec<Step> {
    let open = |handle, name| Step::Open { handle, name, flags: libc::O_RDWR | libc::O_CREAT, mode: 0o644 };
    let save = |name| Step::Save(name, vec![b'.'; 3000]);
    vec![
        Step::Mkdir("d"),
        Step::Mkdir("f"),
        save("a"),
        save("b"),
        save("d/a"),
        open(0, "a"),
        open(1, "d/e"),
        open(2, "f/.a.swp"),
    ]
}

/// What a step did: an error number, or what it said.
type Outcome = Result<String, i32>;

fn said<T>(result: std::io::Result<T>, say: impl FnOnce(T) -> String) -> Outcome {
    result.map(say).map_err(|e| e.raw_os_error().unwrap_or(-1))
}

fn done<T>(result: std::io::Result<T>) -> Outcome {
    said(result, |_| String::new())
}

fn short(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
    format!("{} bytes, {sum:x}", bytes.len())
}

/// One of the two directories, with its open files.
struct Side {
    root: PathBuf,
    /// Its links are what the mount makes of them.
    links: bool,
    handles: [Option<File>; HANDLES],
}

impl Side {
    fn new(root: PathBuf, links: bool) -> Self {
        fs::create_dir(&root).unwrap();
        Self { root, links, handles: [const { None }; HANDLES] }
    }

    fn held(&self, handle: usize, act: impl FnOnce(&File) -> Outcome) -> Outcome {
        self.handles[handle].as_ref().map_or(Err(libc::EBADF), act)
    }

    fn close(&mut self, handle: usize) -> Outcome {
        let file = self.handles[handle].take().ok_or(libc::EBADF)?;
        done(nix::unistd::close(file.into_raw_fd()).map_err(std::io::Error::from))
    }

    fn run(&mut self, step: &Step) -> Outcome {
        let at = |name: &str| self.root.join(name);
        match step {
            Step::Open { handle, name, flags, mode } => {
                let access = flags & libc::O_ACCMODE;
                let mut options = OpenOptions::new();
                options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY).mode(*mode);
                let opened = options.custom_flags(flags & !libc::O_ACCMODE).open(at(name));
                let _ = self.close(*handle);
                said(opened, |file| {
                    self.handles[*handle] = Some(file);
                    String::new()
                })
            }
            Step::Write { handle, at, bytes } => self.held(*handle, |f| done(f.write_all_at(bytes, *at))),
            Step::Read { handle, at, length } => self.held(*handle, |f| {
                let mut bytes = vec![0; *length];
                said(f.read_at(&mut bytes, *at), |n| short(&bytes[..n]))
            }),
            Step::Resize { handle, size } => self.held(*handle, |f| done(f.set_len(*size))),
            Step::Sync(handle) => self.held(*handle, |f| done(f.sync_all())),
            Step::Close(handle) => self.close(*handle),
            Step::Save(name, bytes) => done(fs::write(at(name), bytes)),
            Step::Load(name) => said(fs::read(at(name)), |bytes| short(&bytes)),
            Step::Truncate(name, size) => {
                done(nix::unistd::truncate(&at(name), *size as i64).map_err(std::io::Error::from))
            }
            Step::Unlink(name) => done(fs::remove_file(at(name))),
            Step::Mkdir(name) => done(fs::create_dir(at(name))),
            Step::Rmdir(name) => done(fs::remove_dir(at(name))),
            Step::Rename(from, to) => done(fs::rename(at(from), at(to))),
            Step::Stat(name) => said(fs::metadata(at(name)), |meta| describe(&meta)),
            Step::List(name) => said(list(&at(name)), |names| names.join(" ")),
            Step::Chmod(name, mode) => done(fs::set_permissions(at(name), fs::Permissions::from_mode(*mode))),
            Step::SetTime(name, seconds) => said(set_time(&at(name), *seconds), |at| at.to_string()),
            Step::Symlink(name) => done(std::os::unix::fs::symlink("a", at(name))),
            Step::Link(from, to) => {
                let linked = fs::hard_link(at(from), at(to));
                if linked.is_ok() && !self.links {
                    // Another object with the same bytes is what a link is on the mount.
                    fs::remove_file(at(to)).and_then(|()| fs::copy(at(from), at(to))).unwrap();
                }
                done(linked)
            }
        }
    }

    /// Everything that can be seen.
    fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut left = vec![self.root.clone()];
        while let Some(dir) = left.pop() {
            for name in list(&dir).unwrap() {
                let path = dir.join(name);
                let meta = fs::symlink_metadata(&path).unwrap();
                let content = if meta.is_dir() { String::new() } else { short(&fs::read(&path).unwrap()) };
                let shown = path.strip_prefix(&self.root).unwrap().display().to_string();
                lines.push(format!("{shown}: {} {content}", describe(&meta)));
                if meta.is_dir() {
                    left.push(path);
                }
            }
        }
        lines.sort_unstable();
        lines
    }
}

fn list(dir: &Path) -> std::io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().unwrap()));
    let mut names: Vec<String> = names.collect::<std::io::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

/// A directory's size and link count say nothing about what is in it.
fn describe(meta: &fs::Metadata) -> String {
    let mode = meta.permissions().mode();
    if meta.is_dir() {
        format!("{mode:o}")
    } else {
        format!("{mode:o} {} bytes, {} links", meta.len(), meta.nlink())
    }
}

fn set_time(path: &Path, seconds: i64) -> std::io::Result<i64> {
    let at = nix::sys::time::TimeSpec::new(seconds, 5);
    let flag = nix::sys::stat::UtimensatFlags::FollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &at, &at, flag)?;
    Ok(fs::metadata(path)?.mtime())
}

/// The differences that may be: what the mount answers then, and why.
fn allowed(step: &Step, ours: &Outcome, local: &Side) -> bool {
    match (step, ours) {
        // A directory is not renamed: each object in it would have to be stored anew. mv copies.
        (Step::Rename(from, _), Err(libc::EXDEV)) => local.root.join(from).is_dir(),
        // Objects hold a value: no symbolic links, and no links of what is not stored.
        (Step::Symlink(_) | Step::Link(..), Err(libc::EPERM)) => true,
        _ => false,
    }
}

fn play(mount: &Mount, local: &Path, seed: u64) {
    let mut random = Random(seed);
    let name = format!("{seed}");
    let (mut ours, mut theirs) = (Side::new(mount.path(&name), true), Side::new(local.join(&name), false));
    let mut played = Vec::new();
    let steps = beginning().into_iter().chain((0..STEPS).map(|_| step(&mut random)));
    for step in steps {
        let outcome = ours.run(&step);
        played.push(format!("{step:?}"));
        if allowed(&step, &outcome, &theirs) {
            continue;
        }
        let wanted = theirs.run(&step);
        assert_eq!(outcome, wanted, "seed {seed}, the last of\n{}", shown(&played));
        assert_eq!(ours.tree(), theirs.tree(), "seed {seed}, after the last of\n{}", shown(&played));
    }
    for handle in 0..HANDLES {
        assert_eq!(ours.close(handle), theirs.close(handle), "seed {seed}");
    }
}

fn shown(played: &[String]) -> String {
    let cut = |line: &String| line.split(", bytes: ").next().unwrap().chars().take(100).collect::<String>();
    played.iter().map(cut).collect::<Vec<_>>().join("\n")
}

/// Plays this many sequences, on a new mount every ten: each mount has a minute, enough on a busy
/// machine, too.
fn sequences(count: u64) {
    let first: u64 = std::env::var("VAULTFS_SEED").map_or(1, |seed| seed.parse().unwrap());
    // What is read-only for its owner is so on both sides only for who is not root, or root on
    // both.
    for seeds in (first..first + count).collect::<Vec<_>>().chunks(10) {
        let place = Place::below("/var/tmp");
        let local = place.dir.path().join("local");
        fs::create_dir(&local).unwrap();
        let mount = Mount::at(place, &["--file-mode", "0777", "--dir-mode", "0777"]);
        seeds.iter().for_each(|seed| play(&mount, &local, *seed));
    }
}

#[test]
fn the_mount_does_what_a_local_directory_does() {
    sequences(200);
}

#[test]
#[ignore = "takes minutes"]
fn the_mount_does_what_a_local_directory_does_for_long() {
    sequences(5000);
}
