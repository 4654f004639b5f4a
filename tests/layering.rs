//! Imports go down only: `cli` → `volume` → `fuse` → `server` → `fs` → `vault` → `heap` → `harden` → `files` → `secret`, `clock`,
//! `crash`, `console` → `display`.
//!
//! Reads the sources as text: every `crate::…` path, in `use` or in code, must lead to the same layer or to a
//! lower one, and crates that stand for a layer's job are named in that layer only.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top down; layers in one row may not import each other.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["volume"],
    &["fuse"],
    &["server"],
    &["fs"],
    &["vault"],
    &["heap"],
    &["harden"],
    &["files"],
    &["secret", "clock", "crash", "console"],
    &["display"],
];

/// Crates and the only layers that may name them. (Of reqwest, `cli` uses the URL parser.)
const CRATES: &[(&str, &[&str])] = &[
    ("fuser", &["fuse"]),
    ("reqwest", &["vault", "cli"]),
    ("axum", &["server", "volume"]),
    ("rusqlite", &["server"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli"]),
];

/// What writes to the standard streams, or leads there: it panics, or fails, where nobody reads, and is for `console` only.
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

/// The first words of all paths after `root::`, with their places: of each branch where braces follow.
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

/// What is wrong in a file of `layer` whose module is `depth` levels below the crate's root.
fn violations(layer: &str, depth: usize, source: &str) -> Vec<String> {
    let code = code(source);
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    let mut wrong = Vec::new();
    let from =
        rank(layer).unwrap_or_else(|| panic!("{layer} is no layer: add it to LAYERS in tests/layering.rs"));
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
    for word in STREAMS.iter().filter(|_| layer != "console") {
        for (at, _) in own.match_indices(word).filter(|(at, _)| !own[..*at].ends_with(is_word)) {
            wrong.push(format!("line {}: {word} panics where nobody reads: use crate::console", line(at)));
        }
    }
    for word in UNLOCKING {
        for (at, _) in code.match_indices(word).filter(|(at, _)| !code[..*at].ends_with(is_word)) {
            wrong.push(format!("line {}: {word} lets secrets reach the swap", line(at)));
        }
    }
    wrong
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_go_down_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut checked = 0;
    for file in files {
        let below = file.strip_prefix(&src).unwrap().with_extension("");
        let modules: Vec<&str> =
            below.iter().map(|part| part.to_str().unwrap()).filter(|m| *m != "mod").collect();
        if modules == ["lib"] || modules == ["main"] {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        let found = violations(modules[0], modules.len(), &source);
        wrong.extend(found.iter().map(|w| format!("{}: {w}", below.display())));
        checked += 1;
    }
    assert!(checked > 20, "only {checked} files were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_what_it_should() {
    for (layer, depth, source, count) in [
        ("fs", 2, "use crate::vault::Error;\nuse crate::secret::SecretBytes;", 0),
        ("fs", 2, "use crate::server::Store;", 1),
        ("vault", 3, "use crate::{clock::Clock, fs::{name, fuse}, secret};", 1),
        ("vault", 2, "fn f() { crate::cli::main(); }", 1),
        ("vault", 2, "// use crate::cli;\n//! [`crate::fs`] https://crate::fs", 0),
        ("vault", 2, "use super::super::fs::name;", 1),
        ("vault", 3, "use super::super::object::Content;", 0),
        ("secret", 1, "use crate::clock::Clock;", 1),
        ("harden", 1, "use crate::secret::SecretBytes;", 0),
        ("cli", 2, "use crate::{fuse, server, fs};", 0),
        ("fs", 2, "use fuser::Session;", 1),
        ("fs", 2, "fn f(e: reqwest::Error, a: axum::Router) {}", 2),
        ("cli", 2, "fn f() { println!(\"a\"); std::io::stderr(); }", 2),
        ("console", 1, "fn f() { eprint!(\"a\"); }", 0),
        ("cli", 2, "fn f(p: &Path) -> String { p.display().to_string() }", 1),
        ("cli", 2, "#[cfg(test)]\nmod tests {\n fn f(p: &Path) -> String { p.display().to_string() } }", 0),
        ("fs", 2, "use my_axum::Router;\nlet anyhow = 1;", 0),
    ] {
        assert_eq!(violations(layer, depth, source).len(), count, "{layer}: {source}");
    }
    let wrong = violations("vault", 2, "\n\nuse crate::fs::name;");
    assert_eq!(wrong, ["line 3: vault may not import fs"]);
}
