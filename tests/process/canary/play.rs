//! Drives every path that a secret takes: the files of a mount, and the commands.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::hunt::{Hunt, canary};
use crate::support::common::{Mount, Place, Ran, run};

/// The largest value that the mounts and vaults of these tests take is this or less.
const TOO_LARGE: usize = 256 * 1024;

/// Two words that occur nowhere else, and values made of them.
pub struct Secret {
    one: String,
    two: String,
}

impl Secret {
    pub fn new() -> Self {
        Self { one: canary("one"), two: canary("two") }
    }

    pub fn guard(&self, hunt: &mut Hunt) {
        hunt.guard("the value", &self.one);
        hunt.guard("the value's end", &self.two);
    }

    /// Text that JSON has to escape.
    pub fn text(&self) -> String {
        format!("pass \"{}\\\n\tü{}\n", self.one, self.two)
    }

    /// Bytes that travel in base64.
    fn binary(&self) -> Vec<u8> {
        [&[0, 0xff][..], self.one.as_bytes(), &[0xfe], self.two.as_bytes()].concat()
    }

    /// An object of its own, canonical.
    fn json(&self) -> String {
        format!("{{\n  \"user\": \"{}\",\n  \"password\": \"{}\"\n}}\n", self.one, self.two)
    }

    /// What `--format json` refuses, each for another reason.
    pub fn broken_json(&self) -> Vec<String> {
        let (one, two) = (&self.one, &self.two);
        vec![
            format!("{one} {two}"),
            format!("{{\"{one}\": {two}}}"),
            format!("{{\"{one}\": \"{two}\", \"{one}\": 1}}"),
            format!("[\"{one}\"]"),
            format!("{{\"{one}\": {}\"{two}\"{}}}", "[".repeat(200), "]".repeat(200)),
            format!("{{\"{one}\": \"\\x{two}\"}}"),
        ]
    }
}

/// A vault and the mount of it.
pub struct Vault {
    place: Option<Place>,
    mount: Option<Mount>,
    mnt: PathBuf,
    /// Address and key, if it is not the embedded vault of the place.
    service: Option<(String, String)>,
}

impl Vault {
    pub fn new(place: Place, service: Option<(String, String)>) -> Self {
        Self { mnt: place.mnt.clone(), place: Some(place), mount: None, service }
    }

    /// Once it is mounted: with the watchdog.
    pub fn watched(mut self) -> Self {
        self.mount = self.place.take().map(Mount::adopt);
        self
    }

    pub fn place(&self) -> &Place {
        self.mount.as_ref().map(Mount::place).or(self.place.as_ref()).expect("either is there")
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mnt.join(name)
    }

    /// Unmounts as a user would.
    pub fn unmount(self) -> Place {
        self.mount.expect("mounted").unmount()
    }

    /// A command on the vault.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.place().vaultfs(words);
        match &self.service {
            Some((url, key)) => command.args(["--api-url", url]).env("WORKOS_API_KEY", key),
            None => command.arg(self.place().embedded()),
        };
        command.env("TMPDIR", self.place().dir.path());
        command
    }

    /// A command on the mount.
    pub fn command_with_mount(&self, words: &[&str]) -> Command {
        let mut command = self.place().vaultfs(words);
        command.arg(&self.mnt);
        command
    }
}

/// The arguments; Debug of the whole would show the environment, and with it the key.
fn words(command: &Command) -> String {
    command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command; everything that it says is searched.
pub fn say(command: &mut Command, hunt: &mut Hunt) -> Ran {
    let ran = say_errors(command, hunt);
    hunt.hear(format!("the output of {}", words(command)), ran.out.as_bytes());
    ran
}

/// Runs a command that prints values: only what else it says is searched.
pub fn say_errors(command: &mut Command, hunt: &mut Hunt) -> Ran {
    let ran = run(command);
    hunt.hear(format!("the errors of {}", words(command)), ran.err.as_bytes());
    ran
}

/// Runs a command with standard input.
pub fn feed(command: &mut Command, input: &[u8], hunt: &mut Hunt) -> Option<i32> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that refuses before it reads closes its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    let said = child.wait_with_output().unwrap();
    hunt.hear(format!("the output of {}", words(command)), said.stdout);
    hunt.hear(format!("the errors of {}", words(command)), said.stderr);
    said.status.code()
}

/// Files in every way; returns one that holds bytes which are not stored yet.
pub fn files(vault: &Vault, secret: &Secret, hunt: &mut Hunt) -> File {
    saves(vault, secret);
    history(vault, secret);
    refusals(vault, secret);
    for name in ["id", "version", "stale"] {
        let attribute = format!("user.vault.{name}");
        let got = run(Command::new("getfattr").args(["-n", &attribute]).arg(vault.path("text")));
        assert!(got.out.contains(&attribute), "{got:?}");
        hunt.hear("xattrs", got.out + &got.err);
    }
    let status = fs::read(vault.path(".vaultfs/status.json")).unwrap();
    assert!(!status.is_empty());
    hunt.hear("status.json", status);
    let mut open = File::create(vault.path("open")).unwrap();
    open.write_all(secret.text().as_bytes()).unwrap();
    open
}

/// Whole, in parts, by rename, as scratch and as backup.
fn saves(vault: &Vault, secret: &Secret) {
    let (text, binary) = (secret.text(), secret.binary());
    for (name, bytes) in [("text", text.as_bytes()), ("binary", &binary), ("json", secret.json().as_bytes())]
    {
        fs::write(vault.path(name), bytes).unwrap();
        assert_eq!(fs::read(vault.path(name)).unwrap(), bytes, "{name}");
    }
    let mut parts = OpenOptions::new().append(true).create(true).open(vault.path("text")).unwrap();
    parts.write_all(&binary).unwrap();
    parts.sync_all().unwrap();
    drop(parts);
    assert_eq!(fs::read(vault.path("text")).unwrap(), [text.as_bytes(), &binary].concat());
    fs::write(vault.path("text"), &text).unwrap();

    let file = OpenOptions::new().read(true).write(true).open(vault.path("binary")).unwrap();
    file.write_all_at(text.as_bytes(), 7).unwrap();
    file.set_len(20).unwrap();
    drop(file);
    fs::create_dir(vault.path("dir")).unwrap();
    fs::write(vault.path("dir/inner"), &text).unwrap();
    fs::write(vault.path("dir/inner.tmp"), &binary).unwrap();
    fs::rename(vault.path("dir/inner.tmp"), vault.path("dir/inner")).unwrap();
    fs::rename(vault.path("dir/inner"), vault.path("moved")).unwrap();
    for scratch in [".text.swp", ".#text", "text~", "tmpabcdefgh"] {
        let mut file = OpenOptions::new().write(true).create_new(true).open(vault.path(scratch)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
    fs::rename(vault.path("moved"), vault.path("moved~")).unwrap();
    fs::write(vault.path("moved"), &text).unwrap();
    fs::remove_file(vault.path("moved~")).unwrap();
    fs::write(vault.path("gone"), &text).unwrap();
    fs::remove_file(vault.path("gone")).unwrap();
}

fn history(vault: &Vault, secret: &Secret) {
    let first = vault.path(".versions/text/1");
    assert_eq!(fs::read(&first).unwrap(), secret.text().as_bytes());
    let names: Vec<_> = fs::read_dir(vault.path(".versions/text")).unwrap().flatten().collect();
    assert!(names.len() >= 3);
    fs::copy(&first, vault.path("binary")).unwrap();
}

/// What is refused: too large, there already, impossible names and kinds, old versions.
fn refusals(vault: &Vault, secret: &Secret) {
    let large = secret.text().repeat(TOO_LARGE / secret.text().len() + 1);
    let mut file = File::create(vault.path("large")).unwrap();
    let stored = file.write_all(large.as_bytes()).and_then(|()| file.sync_all());
    assert_eq!(stored.unwrap_err().raw_os_error(), Some(libc::EFBIG));
    file.seek(SeekFrom::Start(0)).unwrap();
    file.set_len(0).unwrap();
    drop(file);
    let again = OpenOptions::new().write(true).create_new(true).open(vault.path("text"));
    assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    let long = ["x".repeat(250), "y".repeat(250), "z".repeat(250), "a".repeat(250), "b".repeat(250)];
    assert!(fs::write(vault.path(long.join("%+/")), secret.text()).is_err());
    assert!(fs::write(vault.path("%25x"), secret.text()).is_err());
    assert!(fs::hard_link(vault.path("text"), vault.path("binary")).is_err());
    assert!(std::os::unix::fs::symlink("text", vault.path("link")).is_err());
    assert!(fs::write(vault.path(".versions/text/1"), secret.text()).is_err());
    assert!(fs::write(vault.path(".vaultfs/status.json"), secret.text()).is_err());
    assert!(fs::read(vault.path("absent")).is_err());
    let mut read_only = File::open(vault.path("text")).unwrap();
    assert!(read_only.write_all(secret.text().as_bytes()).is_err());
    assert!(read_only.read_to_end(&mut Vec::new()).is_ok());
}

/// The commands, and what they refuse.
pub fn commands(vault: &Vault, secret: &Secret, hunt: &mut Hunt) {
    say(&mut vault.command_with_mount(&["status"]), hunt).ok();
    say(&mut vault.command_with_mount(&["status", "--json"]), hunt).ok();
    for words in [&["ls"][..], &["ls", "--long"], &["ls", "--json"]] {
        assert!(say(&mut vault.command(words), hunt).ok().contains("text"));
    }
    assert_eq!(feed(&mut vault.command(&["put", "by/command"]), secret.text().as_bytes(), hunt), Some(0));
    assert_eq!(feed(&mut vault.command(&["put", "by/command"]), &secret.binary(), hunt), Some(0));
    let got = say_errors(&mut vault.command(&["get", "by/command", "--version", "1"]), hunt).ok();
    assert_eq!(got, secret.text());
    assert!(!hunt.find(got.as_bytes()).is_empty(), "the search finds what is there");
    for words in [&["log", "by/command"][..], &["log", "by/command", "--json"]] {
        say(&mut vault.command(words), hunt).ok();
    }
    say(&mut vault.command(&["restore", "by/command", "--version", "1"]), hunt).ok();
    assert_eq!(say_errors(&mut vault.command(&["get", "by/command"]), hunt).ok(), secret.text());

    say(&mut vault.command(&["get", "by/command", "--version", "99"]), hunt).fails(5);
    say(&mut vault.command(&["get", "absent"]), hunt).fails(5);
    for text in secret.broken_json() {
        let mut put = vault.command(&["put", "by/command", "--format", "json"]);
        assert_ne!(feed(&mut put, text.as_bytes(), hunt), Some(0));
    }
    let large = secret.text().repeat(TOO_LARGE / secret.text().len() + 1);
    // Refused by the command itself, and by the vault (413).
    for limit in ["64KiB", "8MiB"] {
        let mut put = vault.command(&["put", "by/command", "--max-size", limit]);
        let code = feed(&mut put, large.as_bytes(), hunt);
        assert_ne!(code, Some(0), "--max-size {limit}");
    }
    say(&mut vault.command(&["rm", "by/command"]), hunt).ok();
    say(&mut vault.command(&["rm", "by/command"]), hunt).fails(5);
}
