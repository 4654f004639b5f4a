//! The man pages: which there are, and what each has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::home::{Home, feed};

/// Each page, by the name of its file.
fn all() -> BTreeMap<String, String> {
    let (home, dir) = (Home::new(), tempfile::tempdir().unwrap());
    let made = feed(&mut home.command(&["generate", "man", dir.path().to_str().unwrap()]), b"");
    assert!(made.status.success(), "{made:?}");
    let files = fs::read_dir(dir.path()).unwrap().flatten();
    files
        .map(|file| (file.file_name().into_string().unwrap(), fs::read_to_string(file.path()).unwrap()))
        .collect()
}

#[test]
fn every_command_has_its_page_and_nothing_else_has() {
    let pages = all();
    for name in [
        "vaultfs.1",
        "vaultfs-mount.1",
        "vaultfs-key-create.1",
        "vaultfs-serve-key-add.1",
        "vaultfs.5",
        "mount.vaultfs.8",
        "umount.fuse.vaultfs.8",
    ] {
        assert!(pages.contains_key(name), "{name}: {:?}", pages.keys());
    }
    let internal = ["generate", "keeper", "worker", "help"];
    assert!(!pages.keys().any(|name| internal.iter().any(|word| name.contains(word))));
}

#[test]
fn every_page_has_the_sections_of_man_pages_7_in_their_order() {
    const ORDER: [&str; 11] = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "COMMANDS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "NOTES",
        "EXAMPLES",
        "SEE ALSO",
    ];
    for (name, text) in all().iter().filter(|(name, _)| !name.ends_with(".5")) {
        let sections: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix(".SH "))
            .map(|title| title.trim_matches('"'))
            .collect();
        let places: Vec<_> =
            sections.iter().map(|title| ORDER.iter().position(|known| known == title)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{name}: {sections:?}");
        for needed in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"] {
            assert!(sections.contains(&needed), "{name} has no {needed}");
        }
    }
    let mount = &all()["vaultfs-mount.1"];
    for needed in ["ENVIRONMENT", "FILES", "EXAMPLES"] {
        assert!(mount.contains(&format!(".SH {needed}\n")), "{needed}");
    }
}

#[test]
fn a_synopsis_names_the_values() {
    let pages = all();
    let synopsis = |name: &str| {
        let text = &pages[name];
        let text = text.split(".SH SYNOPSIS\n").nth(1).expect("there");
        text.split(".SH").next().expect("there").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
    };
    let mount = synopsis("vaultfs-mount.1");
    for part in ["[\\-\\-embedded[=DIR]]", "[\\-\\-api\\-url\\~URL]", "[\\-o\\~OPT,OPT=VAL]...", "MOUNTPOINT"]
    {
        assert!(mount.contains(part), "{part}: {mount}");
    }
    assert!(synopsis("vaultfs-serve.1").contains("\\-\\-data\\~DIR"));
    assert!(!synopsis("vaultfs-serve.1").contains("[\\-\\-data"), "it is needed");
    assert!(synopsis("vaultfs-rm.1").contains(" NAME...\n"));
}

/// An ordinary user's is another one.
#[test]
fn the_vault_of_the_source_embedded_is_told_for_root_and_for_others() {
    let page = all()["vaultfs.5"].replace('\n', " ");
    assert!(page.contains("/var/lib/vaultfs (an ordinary user"), "{page}");
}

/// The pages that a page refers to are there, if they are ours.
#[test]
fn what_is_referred_to_is_there() {
    let pages = all();
    let names: BTreeSet<String> = pages.keys().cloned().collect();
    for (name, text) in &pages {
        let plain = text.replace("\\fB", "").replace("\\fR", "").replace("\\-", "-");
        let also = plain.split(".SH \"SEE ALSO\"\n").nth(1).expect("each has one");
        assert!(!also.contains(&name.replace(".1", "(1)")) || name == "vaultfs.1", "{name} refers to itself");
        for word in plain.split_whitespace().filter(|word| word.contains("vaultfs")) {
            let Some((page, rest)) = word.trim_matches(['(', '"']).split_once('(') else { continue };
            let Some(section) = rest.chars().next().filter(|c| "158".contains(*c)) else { continue };
            assert!(names.contains(&format!("{page}.{section}")), "{name} refers to {word}");
        }
    }
}
