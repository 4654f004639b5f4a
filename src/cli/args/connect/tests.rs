//! The rules of the command line: which vault, which key, and what is refused.

use clap::Parser;

use crate::cli::args::connect::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    connect: ConnectArgs,
}

fn args(words: &[&str]) -> ConnectArgs {
    Line::try_parse_from(["vaultfs"].iter().chain(words)).unwrap().connect
}

#[test]
fn the_whole_command_line_is_consistent() {
    use clap::CommandFactory;
    crate::cli::Cli::command().debug_assert();
}

#[test]
fn embedded_takes_its_directory_behind_an_equals_sign() {
    let (spec, key) = args(&["--embedded=/v/../w", "--prefix", "a/b/"]).resolve().unwrap();
    assert_eq!(spec.endpoint, Endpoint::Embedded("/v/../w".into()));
    assert_eq!((spec.prefix.as_deref(), spec.timeout), (Some("a/b"), Duration::from_secs(10)));
    assert_eq!((spec.max_size, spec.api), (1024 * 1024, Api::Auto));
    assert!(key.secret.is_none());
    assert!(Line::try_parse_from(["vaultfs", "--embedded", "/dir"]).is_err());
    let (spec, _) = args(&["--embedded=rel"]).resolve().unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(spec.endpoint, Endpoint::Embedded(here.join("rel")), "paths are made absolute");
}

#[test]
fn the_embedded_vault_is_not_asked_which_api_it_speaks() {
    for (words, dialect) in [
        (&["--embedded"][..], Some(Dialect::Object)),
        (&["--embedded", "--api", "object"], Some(Dialect::Object)),
        (&["--embedded", "--api", "kv"], Some(Dialect::Kv)),
    ] {
        assert_eq!(args(words).resolve().unwrap().0.dialect(), dialect, "{words:?}");
    }
}

#[test]
fn contradictions_are_usage_errors() {
    for words in [
        &["--embedded", "--api-url", "https://example.com"][..],
        &["--embedded", "--api-key-file", "/k"],
        &["--embedded", "--timeout", "0s"],
        &["--embedded", "--prefix", "/"],
        &["--api-url", "http://example.com"],
        &["--api-url", "http://10.0.0.1:8200"],
        &["--api-url", "https://user:pw@example.com"],
        &["--api-url", "https://example.com/?key=sk_x"],
        &["--api-url", "ftp://example.com"],
        &["--api-url", "example.com"],
        &["--api-url", ""],
    ] {
        let e = args(words).resolve().unwrap_err();
        assert_eq!(e.exit, Exit::Usage, "{words:?}: {e}");
        assert!(!e.message.contains("pw") && !e.message.contains("sk_x"), "{e}");
    }
    for words in
        [&["--embedded="][..], &["--timeout", "soon"], &["--max-size", "big"], &["--key-context", "novalue"]]
    {
        assert!(Line::try_parse_from(["vaultfs"].iter().chain(words)).is_err(), "{words:?}");
    }
}

#[test]
fn addresses_are_cleaned() {
    for (given, used) in [
        ("https://api.workos.com/", "https://api.workos.com"),
        ("https://EXAMPLE.com/base/", "https://example.com/base"),
        ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
        ("http://[::1]:8200/", "http://[::1]:8200"),
        ("http://localhost", "http://localhost"),
    ] {
        assert_eq!(clean_url(given, "--api-url").unwrap(), used);
    }
}

#[test]
fn the_spec_travels_and_holds_no_secret() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, "sk_canary\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = path.to_str().unwrap();
    let context = ["--key-context", "a=b=c", "--key-context", "d="];
    let words = [&["--api-url", "https://example.com", "--api-key-file", file], &context[..]].concat();
    let (spec, key) = args(&words).resolve().unwrap();
    assert_eq!(key.secret.as_ref().unwrap().expose(), "sk_canary");
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<ConnectSpec>(&json).unwrap(), spec);
    assert_eq!(spec.key_context["a"], "b=c");
    for text in [json, format!("{spec:?}"), format!("{key:?}")] {
        assert!(!text.contains("canary"), "{text}");
    }
}

#[test]
fn a_key_file_that_is_not_there_is_told_from_a_machine_that_is_full() {
    let e =
        args(&["--api-url", "https://example.com", "--api-key-file", "/nonexistent"]).resolve().unwrap_err();
    assert_eq!(e.exit, Exit::Key);
    assert!(e.message.contains("put the key there"), "{e}");
    let full = std::io::Error::from_raw_os_error(libc::EMFILE);
    let e = bad_key(Path::new("/k"), api_key::KeyError::Unreadable { path: "/k".into(), source: full });
    assert_eq!(e.exit, Exit::Failed);
    assert!(e.message.contains("ulimit"), "{e}");
}
