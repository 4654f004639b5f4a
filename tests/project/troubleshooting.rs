//! docs/TROUBLESHOOTING.md is keyed by messages: each of them is still said, in these words.

use std::fs;
use std::path::Path;

/// The kernel's own words.
const NOT_OURS: [&str; 1] = ["Transport endpoint is not connected"];

/// All sources as one text: string literals that go on in the next line are put together.
fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let mut joined = false;
            for line in fs::read_to_string(path).unwrap().lines() {
                let line = if joined { line.trim_start() } else { line };
                joined = line.ends_with('\\');
                text.push_str(line.trim_end_matches('\\'));
                if !joined {
                    text.push('\n');
                }
            }
        }
    }
}

/// The messages in a heading, as the words between what differs.
fn said(heading: &str) -> Vec<String> {
    let quoted = heading.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(|message| message.split('…')).map(|words| words.trim().to_owned());
    words
        .map(|words| words.trim_matches(['(', ')', ' ', '.', ':']).to_owned())
        .filter(|words| words.len() > 3)
        .collect()
}

#[test]
fn every_message_that_is_quoted_is_said() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&root.join("src"), &mut text);
    let document = fs::read_to_string(root.join("docs/TROUBLESHOOTING.md")).unwrap();
    let headings: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(headings.len() > 40, "the document is read");
    let mut lost = Vec::new();
    for heading in headings {
        let parts = said(heading);
        assert!(!parts.is_empty(), "no message in: {heading}");
        lost.extend(
            parts.into_iter().filter(|part| !text.contains(part) && !NOT_OURS.contains(&part.as_str())),
        );
    }
    assert!(lost.is_empty(), "nobody says this any more:\n{}", lost.join("\n"));
}
