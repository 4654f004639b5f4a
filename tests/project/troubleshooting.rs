//! docs/TROUBLESHOOTING.md is keyed by messages: each of them is still said, in these words.

use nix::errno::Errno;

use super::{files, read};

/// The kernel's own words.
const NOT_OURS: [&str; 1] = ["Transport endpoint is not connected"];

/// All sources as one text: string literals that go on in the next line are put together.
fn sources() -> String {
    let mut text = String::new();
    for (_, source) in files("src", "rs") {
        let mut joined = false;
        for line in source.lines() {
            let line = if joined { line.trim_start() } else { line };
            joined = line.ends_with('\\');
            text.push_str(line.trim_end_matches('\\'));
            if !joined {
                text.push('\n');
            }
        }
    }
    text
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
    let (text, document) = (sources(), read("docs/TROUBLESHOOTING.md"));
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
    assert!(lost.is_empty(), "no source has this any more:\n{}", lost.join("\n"));
}

/// The errno values that file operations can return, as the one table of them names them.
fn table_of_errnos() -> Vec<String> {
    let source = read("src/fs/types/errno.rs");
    let (_, list) = source.split_once("\nerrno!(").unwrap();
    let (list, _) = list.split_once(')').unwrap();
    list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// What the C library prints for it.
fn printed(errno: &str) -> String {
    let number = (1..200).find(|number| format!("{:?}", Errno::from_raw(*number)) == errno).unwrap();
    let text = std::io::Error::from_raw_os_error(number).to_string();
    text.split(" (os error").next().unwrap().to_owned()
}

#[test]
fn every_errno_is_explained_beside_what_programs_print() {
    let (errnos, document) = (table_of_errnos(), read("docs/TROUBLESHOOTING.md"));
    assert!(errnos.len() > 20, "the table is read");
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    for errno in errnos {
        let quoted = format!("`{errno}`");
        let row = rows.iter().find(|row| row.get(2) == Some(&quoted.as_str()));
        let row = row.unwrap_or_else(|| panic!("no row for {errno}"));
        assert!(row[1].starts_with(&printed(&errno)), "{errno} is printed as {:?}", printed(&errno));
    }
}
