//! Looks for secrets where none may be: in what was said, in files, in what /proc shows of
//! processes.
//!
//! A canary is a word that occurs nowhere else. It is looked for as it is, in base64 (whatever
//! precedes it), in hexadecimal and as a list of numbers (how `Debug` shows bytes). It consists of
//! letters and digits only, so that JSON, URLs and escapes leave it as it is; what stands around it
//! in a value is what they change.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// A form of a secret.
struct Needle {
    what: String,
    bytes: Vec<u8>,
}

/// A word that occurs nowhere else, made anew each time.
pub fn canary(kind: &str) -> String {
    format!("{kind}{}", ulid::Ulid::new())
}

fn forms(word: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = word.as_bytes();
    let list = format!("{bytes:?}");
    let mut forms = vec![
        ("plain".to_owned(), bytes.to_vec()),
        ("a list of numbers".to_owned(), list.trim_matches(['[', ']']).as_bytes().to_vec()),
        ("hexadecimal".to_owned(), bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into()),
        ("HEXADECIMAL".to_owned(), bytes.iter().map(|b| format!("{b:02X}")).collect::<String>().into()),
    ];
    for before in 0..3 {
        let padded = [&vec![0; before], bytes].concat();
        // Characters that bits of the neighbours go into are left out.
        let (from, to) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
        for engine in [STANDARD, URL_SAFE] {
            forms.push((format!("base64 at {before}"), engine.encode(&padded)[from..to].into()));
        }
    }
    forms
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let starts = haystack.iter().enumerate().filter(|(_, b)| **b == needle[0]).map(|(at, _)| at);
    starts.into_iter().any(|at| haystack[at..].starts_with(needle))
}

/// Secrets, and what was said while they were used.
#[derive(Default)]
pub struct Hunt {
    needles: Vec<Needle>,
    heard: Vec<(String, Vec<u8>)>,
}

impl Hunt {
    /// Looks for this word, too.
    pub fn guard(&mut self, what: &str, word: &str) {
        let forms = forms(word).into_iter();
        self.needles.extend(forms.map(|(form, bytes)| Needle { what: format!("{what} ({form})"), bytes }));
    }

    /// Remembers what a program said.
    pub fn hear(&mut self, who: impl Into<String>, said: impl Into<Vec<u8>>) {
        self.heard.push((who.into(), said.into()));
    }

    /// What of all secrets is in these bytes.
    pub fn find(&self, bytes: &[u8]) -> Vec<&str> {
        let found = self.needles.iter().filter(|needle| contains(bytes, &needle.bytes));
        found.map(|needle| needle.what.as_str()).collect()
    }

    /// Fails if a secret was said, lies in a file below `roots` (but those in `except`), or shows
    /// in one of the processes.
    #[track_caller]
    pub fn nowhere(&self, when: &str, roots: &[&Path], except: &[&Path], pids: &[i32]) {
        let mut seen = self.heard.clone();
        for root in roots {
            files(root, except, &mut seen);
        }
        assert!(!pids.is_empty() || when.starts_with("afterwards"), "{when}: no process to look at");
        for pid in pids {
            process(*pid, except, &mut seen);
        }
        let mut wrong = Vec::new();
        for (place, bytes) in &seen {
            wrong.extend(self.find(bytes).iter().map(|what| format!("{place}: {what}")));
        }
        assert!(wrong.is_empty(), "{when}, secrets are in\n{}", wrong.join("\n"));
    }
}

/// All regular files below a directory, with their names, as they are at this moment.
fn files(dir: &Path, except: &[&Path], seen: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if except.contains(&path.as_path()) {
            continue;
        }
        seen.push((format!("the name of {}", path.display()), path.as_os_str().as_encoded_bytes().to_vec()));
        if kind.is_dir() {
            files(&path, except, seen);
        } else if kind.is_file() {
            // One that went away meanwhile holds nothing any more.
            seen.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
        } else {
            assert!(kind.is_socket() || kind.is_symlink(), "{path:?} is something else");
        }
    }
}

/// The bytes of a file but its holes: the state of a mount is kept in one of a gigabyte, nearly all
/// hole.
fn written(path: &Path) -> std::io::Result<Vec<u8>> {
    use nix::unistd::{Whence, lseek};
    let (mut file, mut bytes, mut at) = (fs::File::open(path)?, Vec::new(), 0);
    while let Ok(from) = lseek(&file, at, Whence::SeekData) {
        let to = lseek(&file, from, Whence::SeekHole)?;
        lseek(&file, from, Whence::SeekSet)?;
        (&mut file).take((to - from) as u64).read_to_end(&mut bytes)?;
        at = to;
    }
    Ok(bytes)
}

/// What the user can see of a process, its open files included, deleted ones too.
fn process(pid: i32, except: &[&Path], seen: &mut Vec<(String, Vec<u8>)>) {
    for file in ["cmdline", "environ", "comm", "status", "maps"] {
        // A process that is not dumpable shows some of them to root only.
        if let Ok(text) = fs::read(format!("/proc/{pid}/{file}")) {
            seen.push((format!("/proc/{pid}/{file}"), text));
        }
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let open: PathBuf = fs::read_link(entry.path()).unwrap_or_default();
        let is_file = fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file());
        if is_file && !except.contains(&open.as_path()) {
            let text = written(&entry.path()).unwrap_or_default();
            seen.push((format!("{} (open in {pid})", open.display()), text));
        }
    }
}

#[test]
fn a_canary_is_found_in_every_disguise() {
    let word = canary("value");
    let mut hunt = Hunt::default();
    hunt.guard("it", &word);
    for before in 0..4 {
        for after in 0..4 {
            let text = [&[0xff; 4][..before], word.as_bytes(), &[0xfe; 4][..after]].concat();
            for hidden in [
                text.clone(),
                STANDARD.encode(&text).into(),
                URL_SAFE.encode(&text).into(),
                format!("{text:?}").into(),
                format!("{text:02x?}").replace(", ", "").into(),
                format!("{:?}", String::from_utf8_lossy(&text)).into(),
                serde_json::Value::from(String::from_utf8_lossy(&text)).to_string().into(),
            ] {
                assert!(!hunt.find(&hidden).is_empty(), "{}", String::from_utf8_lossy(&hidden));
            }
        }
    }
    assert!(hunt.find(canary("value").as_bytes()).is_empty());
    assert!(hunt.find(&word.as_bytes()[1..]).is_empty());
}
