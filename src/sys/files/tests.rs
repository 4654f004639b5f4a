use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};

use crate::sys::files::*;

/// A user that is neither root nor this one.
const OTHER: u32 = 61_234;

fn text(path: &Path) -> Result<Vec<u8>, Unfit> {
    Ok(open(path, None)?.read(100)?.to_vec())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn chains_of_trusted_links_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // As Kubernetes projects them.
    fs::create_dir(at("..2026")).unwrap();
    fs::write(at("..2026/key"), "value").unwrap();
    symlink("..2026", at("..data")).unwrap();
    symlink("..data/key", at("key")).unwrap();
    symlink(at("key"), at("absolute")).unwrap();
    symlink("..data/../absolute", at("dots")).unwrap();
    for name in ["key", "..data/key", "absolute", "dots", "../../../../../../proc/self/root"] {
        let path = if name.starts_with("../../") {
            at(name).join(at("dots").strip_prefix("/").unwrap())
        } else {
            at(name)
        };
        assert_eq!(text(&path).unwrap(), b"value", "{name}");
    }
    symlink("loop", at("loop")).unwrap();
    assert!(matches!(text(&at("loop")), Err(Unfit::Io(e)) if e.raw_os_error() == Some(libc::ELOOP)));
    for (name, kind) in [
        ("none", ErrorKind::NotFound),
        ("..data", ErrorKind::IsADirectory),
        ("key/x", ErrorKind::NotADirectory),
    ] {
        assert!(matches!(text(&at(name)), Err(Unfit::Io(e)) if e.kind() == kind), "{name}");
    }
    assert!(matches!(text(Path::new("/")), Err(Unfit::Io(e)) if e.kind() == ErrorKind::IsADirectory));
}

#[test]
fn links_and_files_of_others_are_refused() {
    if !is_root() {
        crate::sys::stdio::say("SKIPPED: only root can make files of others");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/own"), "value").unwrap();
    fs::write(at("theirs"), "value").unwrap();
    chown(at("theirs"), Some(OTHER), None).unwrap();
    symlink("dir/own", at("link")).unwrap();
    symlink("dir", at("way")).unwrap();
    symlink("link", at("hop")).unwrap();
    for link in ["link", "way"] {
        std::os::unix::fs::lchown(at(link), Some(OTHER), None).unwrap();
    }
    for name in ["link", "way/own", "hop"] {
        assert!(matches!(text(&at(name)), Err(Unfit::Link { owner: OTHER, .. })), "{name}");
        assert!(open(&at(name), Some(OTHER)).is_ok(), "{name}");
    }
    assert!(matches!(text(&at("theirs")), Err(Unfit::Owner(OTHER))));
    assert!(open(&at("theirs"), Some(OTHER)).is_ok());
    // To write, only one's own.
    for (name, why) in
        [("theirs", "belongs to user 61234"), ("way/new", "is a link that belongs to user 61234")]
    {
        let refused = Place::of(&at(name)).and_then(|place| place.append()).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert!(!at("dir/new").exists());
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let _listening = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    nix::unistd::mkfifo(&at("open-fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    fs::set_permissions(at("open-fifo"), fs::Permissions::from_mode(0o666)).unwrap();
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    fs::write(at("large"), [0; 101]).unwrap();
    assert!(matches!(text(Path::new("/dev/zero")), Err(Unfit::NotRegular)));
    assert!(matches!(text(&at("open-fifo")), Err(Unfit::NotRegular)));
    assert!(text(&at("socket")).is_err());
    assert!(matches!(text(&at("large")), Err(Unfit::Io(e)) if e.kind() == ErrorKind::FileTooLarge));
    // Also with a reader, where the open succeeds.
    let _reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(at("open-fifo")).unwrap();
    symlink("large", at("link")).unwrap();
    fs::hard_link(at("large"), at("second")).unwrap();
    fs::write(at("writable"), "").unwrap();
    fs::set_permissions(at("writable"), fs::Permissions::from_mode(0o602)).unwrap();
    for name in ["fifo", "open-fifo", "socket", "link", "second", "writable", "/dev/zero", "/dev/full"] {
        let place = Place::of(&at(name)).unwrap();
        assert!(place.append().is_err(), "{name}");
        assert!(place.check().is_err(), "{name}");
    }
    let null = Place::of(Path::new("/dev/null")).unwrap();
    null.check().unwrap();
    null.append().unwrap();
    let place = Place::of(&at("new")).unwrap();
    place.check().unwrap();
    place.append().unwrap();
    assert_eq!(fs::metadata(at("new")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn below_a_directory_no_name_leads_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("top/in")).unwrap();
    fs::write(at("outside"), "").unwrap();
    fs::write(at("top/in/file"), "").unwrap();
    symlink("../outside", at("top/link")).unwrap();
    symlink("in", at("top/way")).unwrap();
    let top = File::open(at("top")).unwrap();
    let below = |path: &Path| open_below(top.as_fd(), path);
    assert!(below(Path::new("in/file")).is_ok());
    for path in ["../outside", "link", "way/file", "in", "", "in/../in/file", "/etc/passwd", "none"] {
        assert!(below(Path::new(path)).is_err(), "{path}");
    }
    assert!(below(&at("top/in/file")).is_err());
}

#[test]
fn what_was_put_in_the_place_of_a_socket_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o777;
    fs::write(at("file"), "").unwrap();
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let _listening = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    symlink("file", at("link")).unwrap();
    symlink("socket", at("other")).unwrap();
    let before = mode("socket");
    for name in ["file", "link", "other", "none"] {
        assert!(let_in(&at(name), None, 0o666).is_err(), "{name}");
    }
    assert_eq!((mode("file"), mode("socket")), (0o600, before));
    let_in(&at("socket"), None, 0o660).unwrap();
    assert_eq!(mode("socket"), 0o660);
}

#[test]
fn a_directory_is_opened_where_trusted_links_lead() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    symlink("a/../a", root.join("link")).unwrap();
    fs::write(root.join("file"), "").unwrap();
    for name in ["a/b", "link/b", "link/b/../b/."] {
        assert_eq!(directory(&root.join(name)).unwrap().1, root.join("a/b"), "{name}");
    }
    assert_eq!(directory(Path::new(".")).unwrap().1, std::env::current_dir().unwrap());
    assert_eq!(directory(Path::new("/")).unwrap().1, Path::new("/"));
    for name in ["file", "none", "file/x"] {
        assert!(directory(&root.join(name)).is_err(), "{name}");
    }
    if is_root() {
        std::os::unix::fs::lchown(root.join("link"), Some(OTHER), None).unwrap();
        assert!(matches!(directory(&root.join("link/b")), Err(Unfit::Link { owner: OTHER, .. })));
    }
}
