//! docs/SEMANTICS.md promises nothing without a test: each paragraph names some, and those exist.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The names of all test functions below `dir`.
fn tests_in(dir: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
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
    }
}

#[test]
fn every_line_of_the_threat_model_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = HashSet::new();
    tests_in(&root.join("tests"), &mut tests);
    let text = fs::read_to_string(root.join("docs/THREAT-MODEL.md")).unwrap();
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = HashSet::new();
    tests_in(&root.join("tests"), &mut tests);
    let text = fs::read_to_string(root.join("docs/SEMANTICS.md")).unwrap();
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
