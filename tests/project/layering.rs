//! Imports go down only: `cli` → `volume` → `daemon` → `fuse` → `fs`, `server` → `vault` → `sys` →
//! `secret`, `clock`, `failpoint` → `display`; and so do those between the folders of `fs`.
//!
//! Reads the sources as text: every `crate::…` path, in `use` or in code, must lead to the same
//! layer or to a lower one, and crates that stand for a layer's job are named in that layer only.

use super::files;

/// From the top down; layers in one row may not import each other.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["volume"],
    &["daemon"],
    &["fuse"],
    &["fs", "server"],
    &["vault"],
    &["sys"],
    &["secret", "clock", "failpoint"],
    &["display"],
];

/// The folders of `fs`, likewise. `fs/mod.rs` itself is the facade: what it exports again counts as
/// what it is of.
const FS_FOLDERS: &[&[&str]] = &[
    &["assembly"],
    &["ops"],
    &["report"],
    &["temporary"],
    &["writeback"],
    &["propagation"],
    &["handle"],
    &["namespace"],
    &["inode", "recovery"],
    &["types"],
    &["journal"],
    &["name"],
];

/// The folders of `fs` from this one down know nothing of the facade.
const BELOW_THE_FACADE: &str = "handle";

/// Crates and the only layers that may name them. (Of reqwest, `cli` uses the URL parser.)
const CRATES: &[(&str, &[&str])] = &[
    ("fuser", &["fuse", "daemon"]),
    ("reqwest", &["vault", "cli"]),
    ("axum", &["server", "volume"]),
    ("rusqlite", &["server"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli"]),
];

/// What writes to the standard streams, or leads there: it panics, or fails, where nobody reads,
/// and is for `sys::stdio` only.
const STREAMS: &[&str] = &["println!", "print!", "eprintln!", "eprint!", "dbg!", "io::stdout", "io::stderr"];

/// What was locked is never unlocked while the process lives: it could reach the swap meanwhile.
const UNLOCKING: &[&str] = &["munlockall", "munlock", "MADV_PAGEOUT"];

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&layer))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_at(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// The source without comments; line numbers stay.
fn code(source: &str) -> String {
    let strip = |line: &str| -> String {
        let comment = line.match_indices("//").map(|(at, _)| at).find(|&at| !line[..at].ends_with(':'));
        line[..comment.unwrap_or(line.len())].to_owned()
    };
    source.lines().map(|line| strip(line) + "\n").collect()
}

/// The first words of all paths after `root::`, with their places: of each branch where braces
/// follow.
fn paths<'a>(code: &'a str, root: &str) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let after = at + root.len();
        if code[..at].ends_with(is_word) || !code[after..].starts_with("::") {
            continue;
        }
        let rest = &code[after + 2..];
        if !rest.starts_with('{') {
            found.push((at, word_at(rest)));
            continue;
        }
        let (mut depth, mut expects) = (0, true);
        for (i, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' => expects = depth == 1,
                c if depth == 1 && expects && is_word(c) => {
                    found.push((at, word_at(&rest[i..])));
                    expects = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// What is wrong in a file, named by its path below `src`, whose module is `depth` levels below the
/// crate's root.
fn violations(file: &str, depth: usize, source: &str) -> Vec<String> {
    let layer = file.split('/').next().unwrap();
    let code = code(source);
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    let mut wrong = Vec::new();
    let from = rank(layer)
        .unwrap_or_else(|| panic!("{layer} is no layer: add it to LAYERS in tests/project/layering.rs"));
    let to_root = vec!["super"; depth].join("::");
    for root in ["crate", "vaultfs", &to_root] {
        for (at, target) in paths(&code, root) {
            if target != layer && rank(target).is_some_and(|target| target <= from) {
                wrong.push(format!("line {}: {layer} may not import {target}", line(at)));
            }
        }
    }
    for (name, layers) in CRATES {
        if !layers.contains(&layer) {
            for (at, _) in paths(&code, name) {
                wrong.push(format!("line {}: {layer} may not name the crate {name}", line(at)));
            }
        }
    }
    // Code of tests may stand at the end of a file.
    let own = &code[..code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len())];
    for (at, _) in own.match_indices(".display()").filter(|_| layer != "display") {
        wrong.push(format!(
            "line {}: Path::display hides what is no UTF-8: use crate::display::Shown",
            line(at)
        ));
    }
    for word in STREAMS.iter().filter(|_| file != "sys/stdio") {
        for (at, _) in own.match_indices(word).filter(|(at, _)| !own[..*at].ends_with(is_word)) {
            wrong.push(format!("line {}: {word} panics where nobody reads: use crate::sys::stdio", line(at)));
        }
    }
    for word in UNLOCKING {
        for (at, _) in code.match_indices(word).filter(|(at, _)| !code[..*at].ends_with(is_word)) {
            wrong.push(format!("line {}: {word} lets secrets reach the swap", line(at)));
        }
    }
    wrong
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (file, source) in files("src", "rs") {
        let below = file.trim_end_matches(".rs");
        let modules: Vec<&str> = below.split('/').filter(|module| *module != "mod").collect();
        if modules == ["lib"] || modules == ["main"] {
            continue;
        }
        let found = violations(below, modules.len(), &source);
        wrong.extend(found.iter().map(|w| format!("{below}: {w}")));
        checked += 1;
    }
    assert!(checked > 20, "only {checked} files were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn folder_rank(folder: &str) -> Option<usize> {
    FS_FOLDERS.iter().position(|row| row.contains(&folder))
}

/// What the facade exports again, and of which folder that is.
fn exports(facade: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for used in facade.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        let used = used.trim_start_matches("crate::fs::");
        let names = used.rsplit("::").next().unwrap_or(used).split(|c: char| !is_word(c));
        found.extend(names.filter(|name| !name.is_empty()).map(|name| (name.into(), word_at(used).into())));
    }
    found
}

/// The folders above its own, or beside it, that a file of `fs` names; and `FileSystem`, where it
/// may not name that. Its module is `depth` levels below `fs`.
fn arrows_up(folder: &str, depth: usize, source: &str, exports: &[(String, String)]) -> Vec<String> {
    let code = code(source);
    let own = &code[..code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len())];
    let from =
        folder_rank(folder).unwrap_or_else(|| panic!("{folder} is no folder of fs: add it to FS_FOLDERS"));
    let to_fs = vec!["super"; depth].join("::");
    let is_below = Some(from) >= folder_rank(BELOW_THE_FACADE);
    let mut found: Vec<String> = ["crate::fs", &to_fs]
        .into_iter()
        .flat_map(|root| paths(own, root))
        .map(|(_, target)| exports.iter().find(|(name, _)| name == target).map_or(target, |(_, of)| of))
        .filter(|target| {
            (*target != folder && folder_rank(target).is_some_and(|target| target <= from))
                || (*target == "FileSystem" && is_below)
        })
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn in_the_file_system_imports_go_down_only() {
    let sources = files("src/fs", "rs");
    let facade = &sources.iter().find(|(file, _)| file == "mod.rs").expect("fs has a facade").1;
    let exports = exports(facade);
    assert!(exports.len() > 20, "{exports:?}");
    let mut wrong = Vec::new();
    for (file, source) in &sources {
        let Some((folder, _)) = file.split_once('/') else { continue };
        let below = file.trim_end_matches(".rs");
        let depth = below.split('/').filter(|module| *module != "mod").count();
        let arrows = arrows_up(folder, depth, source, &exports);
        wrong.extend(arrows.iter().map(|target| format!("fs/{below}: may not name {target}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_what_it_should() {
    for (layer, depth, source, count) in [
        ("fs", 2, "use crate::vault::Error;\nuse crate::secret::SecretBytes;", 0),
        ("fs", 2, "use crate::server::Store;", 1),
        ("vault", 3, "use crate::{clock::Clock, fs::{name, types}, secret};", 1),
        ("vault", 2, "fn f() { crate::cli::main(); }", 1),
        ("vault", 2, "// use crate::cli;\n//! [`crate::fs`] https://crate::fs", 0),
        ("vault", 2, "use super::super::fs::name;", 1),
        ("vault", 3, "use super::super::object::Content;", 0),
        ("secret", 1, "use crate::clock::Clock;", 1),
        ("sys/hardening", 2, "use crate::secret::SecretBytes;", 0),
        ("sys/hardening", 2, "use crate::vault::Error;", 1),
        ("cli", 2, "use crate::{fuse, server, fs};", 0),
        ("fuse", 2, "use crate::daemon::keeper;", 1),
        ("server", 2, "use crate::fs::name;", 1),
        ("fs", 2, "use fuser::Session;", 1),
        ("fs", 2, "fn f(e: reqwest::Error, a: axum::Router) {}", 2),
        ("cli", 2, "fn f() { println!(\"a\"); std::io::stderr(); }", 2),
        ("sys/stdio", 2, "fn f() { eprint!(\"a\"); }", 0),
        ("cli", 2, "fn f(p: &Path) -> String { p.display().to_string() }", 1),
        ("cli", 2, "#[cfg(test)]\nmod tests {\n fn f(p: &Path) -> String { p.display().to_string() } }", 0),
        ("fs", 2, "use my_axum::Router;\nlet anyhow = 1;", 0),
    ] {
        assert_eq!(violations(layer, depth, source).len(), count, "{layer}: {source}");
    }
    let wrong = violations("vault", 2, "\n\nuse crate::fs::name;");
    assert_eq!(wrong, ["line 3: vault may not import fs"]);
    let exports = exports("pub use crate::fs::ops::open::{Create,\n Opened};\npub use inode::ROOT;\n");
    for (folder, depth, source, up) in [
        ("inode", 2, "use crate::fs::{ops::open, journal, writeback};", &["ops", "writeback"][..]),
        ("journal", 1, "use super::{inode::DirKind, name};", &["inode"]),
        ("inode", 2, "use super::super::ops::open;\nuse super::journal;", &["ops"]),
        ("ops", 2, "use crate::fs::{inode, types::errno};\n// crate::fs::assembly", &[]),
        ("handle", 2, "use crate::fs::{Opened, ROOT};", &["ops"]),
        ("inode", 2, "impl crate::fs::FileSystem {}", &["FileSystem"]),
        ("writeback", 2, "use crate::fs::FileSystem;", &[]),
    ] {
        assert_eq!(arrows_up(folder, depth, source, &exports), up, "{folder}: {source}");
    }
}
