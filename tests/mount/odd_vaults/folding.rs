//! Paths that are rewritten on the way, and names that a vault takes for one: no other object is
//! read, overwritten or deleted than the one that was named.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use super::vault::{OddVault, Rules};
use super::{Client, DIALECTS};
use crate::support::common::{Beside, until};
use crate::support::vault_server::served::Served;

/// What is merged: slashes, `.` and `..`.
fn folded(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// As NFC would have it, of the one letter that is tried.
fn composed(name: &str) -> String {
    name.replace("e\u{301}", "é")
}

/// Pairs of names that each of these takes for one: what is asked for, and what is there.
fn foldings() -> Vec<(Rules, Vec<(&'static str, &'static str)>)> {
    let name = |fold: fn(&str) -> String| Rules { name: Box::new(fold), ..Rules::default() };
    let path = |fold: fn(&str) -> String| Rules { path: Box::new(fold), ..Rules::default() };
    vec![
        (
            path(folded),
            vec![("r/x/../y", "r/y"), ("r//y", "r/y"), ("r/./y", "r/y"), ("r/y/", "r/y"), ("/r/y", "r/y")],
        ),
        (path(|p| p.to_lowercase()), vec![("Db/Pass", "db/pass")]),
        (path(|p| p.trim_end().to_owned()), vec![("a ", "a")]),
        (path(|p| p.replace("%2F", "/")), vec![("a%2Fb", "a/b")]),
        (name(str::to_lowercase), vec![("Db/pass", "Db/Pass"), ("A", "a")]),
        (name(composed), vec![("cafe\u{301}", "café"), ("d/cafe\u{301}", "d/café")]),
        (name(|n| n.trim_end().to_owned()), vec![("a ", "a"), ("d/f\t", "d/f")]),
    ]
}

#[test]
fn commands_touch_no_other_object() {
    for api in DIALECTS {
        for (rules, pairs) in foldings() {
            let vault = OddVault::start(rules);
            let client = Client::new(&vault.url, api);
            for (asked, there) in pairs {
                vault.holds(there, "theirs");
                for (command, args) in [
                    ("get", &[asked][..]),
                    ("log", &[asked]),
                    ("rm", &[asked]),
                    ("restore", &["--version", "1", asked]),
                    ("get", &["--version", "1", asked]),
                ] {
                    let ran = client.run(command, args, "");
                    assert!(matches!(ran.code, Some(1 | 5)), "{api} {command} {asked:?}: {ran:?}");
                    assert!(ran.out.is_empty(), "{api} {command} {asked:?}: {ran:?}");
                }
                // Where the vault can hold both, it does.
                let put = client.run("put", &[asked], "mine");
                assert_eq!(vault.values(there), ["theirs"], "{api} put {asked:?}: {put:?}");
                match put.code {
                    Some(0) => {
                        assert_eq!(vault.values(asked), ["mine"], "{api} {asked:?}");
                        assert_eq!(client.run("get", &[asked], "").ok(), "mine");
                        client.run("put", &[asked], "again").ok();
                        assert_eq!(vault.values(asked), ["mine", "again"]);
                        client.run("rm", &[asked], "").ok();
                    }
                    code => assert_eq!(code, Some(1), "{api} put {asked:?}: {put:?}"),
                }
                assert_eq!(vault.values(there), ["theirs"], "{api} {asked:?}");
                assert_eq!(client.run("get", &[there], "").ok(), "theirs");
                client.run("rm", &[there], "").ok();
            }
        }
    }
}

#[test]
fn a_mount_touches_no_other_object() {
    for api in DIALECTS {
        for (rules, pairs) in foldings() {
            let vault = OddVault::start(rules);
            for (_, there) in &pairs {
                if vault.values(there).is_empty() {
                    vault.holds(there, "theirs");
                }
            }
            let mount = Client::new(&vault.url, api).mount(&[]);
            for (asked, there) in pairs {
                let asked = spelt(asked);
                let script = format!(
                    "cat '{asked}'; mkdir -p \"$(dirname '{asked}')\"; rm '{asked}'; echo w > '{asked}'; sync '{asked}'; \
                     cat '{asked}'; echo more >> '{asked}'; echo own > own; mv own '{asked}'; mv '{asked}' away; \
                     rm -f '{asked}' own away; true"
                );
                let ran = mount.script("bash", &script);
                assert!(!ran.out.contains("theirs"), "{api} {asked:?}: {ran:?}");
                assert_eq!(vault.values(there), ["theirs"], "{api} {asked:?}: {ran:?}");
                assert_eq!(fs::read_to_string(mount.path(there)).unwrap(), "theirs");
            }
        }
    }
}

/// A name as the tree spells it.
fn spelt(name: &str) -> String {
    let parts = name.split('/').map(|part| match part {
        "" => "%_".to_owned(),
        "." => "%2E".to_owned(),
        ".." => "%2E.".to_owned(),
        part => part.replace("%2F", "%252F").replace('\t', "%09"),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// nginx with a `proxy_pass` that has a path decodes, folds and encodes anew. Its one process is
/// this test's user's, to whom the client sends its key.
fn nginx(dir: &std::path::Path, upstream: &str) -> (Beside, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = dir.display();
    let conf = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/err; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; \
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}/; }} }} }}\n"
    );
    fs::write(dir.join("conf"), conf).unwrap();
    let nginx =
        Beside::start(Command::new("nginx").arg("-e").arg(dir.join("err")).arg("-c").arg(dir.join("conf")));
    until("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (nginx, format!("http://127.0.0.1:{port}"))
}

#[test]
fn nginx_that_folds_paths_leads_to_no_other_object() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&dir.path().join("data"));
    let (_nginx, url) = nginx(dir.path(), &served.url);
    let client = Client::with_key(&url, "kv", &served.key);
    client.run("put", &["r/y"], "theirs").ok();
    for asked in ["r/x/../y", "r//y", "r/./y", "/r/y", "r/y/"] {
        client.run("get", &[asked], "").fails(5);
        client.run("rm", &[asked], "").fails(5);
        client.run("put", &[asked], asked).ok();
        client.run("put", &[asked], "new").ok();
        assert_eq!(client.run("get", &[asked], "").ok(), "new");
    }
    assert_eq!(client.run("get", &["r/y"], "").ok(), "theirs");
    assert_eq!(client.run("log", &["r/y"], "").ok().lines().count(), 1);
    client.run("rm", &["r/y/"], "").ok();
    let mount = client.mount(&[]);
    assert_eq!(mount.sh("cat r/y; cat r/%_/y r/x/%2E./y r/%2E/y %_/r/y"), "theirsnewnewnewnew");
    mount.sh("echo w > r/%_/y; rm r/x/%2E./y; mv r/%2E/y moved; cat moved r/%_/y");
    assert_eq!(mount.sh("cat r/y"), "theirs");
    mount.unmount();
}
