//! The project itself: its layers, words, documents, package and toolchain.

mod layering;
mod package;
mod secret_types;
mod semantics_doc;
mod toolchain;
mod troubleshooting;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// A path of the source tree.
fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(in_tree(path)).unwrap()
}

/// All files below `folder` with this extension: the path below it, and the text.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let (top, mut found) = (in_tree(folder), Vec::new());
    let mut directories = vec![top.clone()];
    while let Some(directory) = directories.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let below = path.strip_prefix(&top).unwrap().to_str().unwrap();
                found.push((below.to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}
