//! docs/SEMANTICS.md promises nothing without a test: each paragraph names some, and those exist.

use std::collections::HashSet;

use super::{files, read};

/// The names of all test functions.
fn test_names() -> HashSet<String> {
    let mut found = HashSet::new();
    for (_, text) in files("tests", "rs") {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            if let Some(name) = line.strip_prefix("async fn ").or(line.strip_prefix("fn "))
                && std::mem::take(&mut is_test)
            {
                found.insert(name.split('(').next().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn every_line_of_the_threat_model_names_tests_that_exist() {
    let (tests, text) = (test_names(), read("docs/THREAT-MODEL.md"));
    let protections = text.split("\n## ").filter(|section| !section.starts_with("Who is who"));
    let protections = protections.filter(|section| !section.starts_with("Not defended"));
    let lines = protections.flat_map(|section| section.split("\n- ").skip(1));
    let mut count = 0;
    for line in lines.filter(|line| !line.starts_with("Not defended:")) {
        let line = line.split("\n\n").next().unwrap().trim_end();
        let named = line.strip_suffix(']').and_then(|line| line.rsplit_once('[')).map(|(_, names)| names);
        for name in named.unwrap_or_else(|| panic!("no test is named: {line}")).split(',').map(str::trim) {
            assert!(tests.contains(name), "there is no test {name}: {line}");
        }
        count += 1;
    }
    assert!(count > 30, "the document is read");
}

#[test]
fn every_paragraph_names_tests_that_exist() {
    let (tests, text) = (test_names(), read("docs/SEMANTICS.md"));
    let paragraphs: Vec<&str> = text.split("\n\n").filter(|p| p.starts_with("**")).collect();
    assert!(paragraphs.len() > 30, "the document is read");
    for paragraph in paragraphs {
        let named =
            paragraph.trim_end().strip_suffix(']').and_then(|p| p.rsplit_once('[')).map(|(_, names)| names);
        let named = named.unwrap_or_else(|| panic!("no test is named: {paragraph}"));
        for name in named.split(',').map(str::trim) {
            assert!(tests.contains(name), "there is no test {name}: {paragraph}");
        }
    }
}
