//! Keys that may not do all, names that cannot be asked for, names that are not free, and a proxy
//! that is down.

use std::fs;
use std::io::Read;
use std::process::Command;

use super::vault::{OddVault, Refusal, Rules};
use super::{Client, DIALECTS};
use crate::support::common::{Mount, replace_worker, run, until};
use crate::support::vault_server::served::Served;

const FORBIDDEN: Refusal = (403, None, r#"{"code":"forbidden","message":"no"}"#);

fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

fn unlisted() -> OddVault {
    let vault = OddVault::start(Rules::default());
    vault.refuse(|asked| asked.lists().then_some(FORBIDDEN));
    for name in ["top", "app/db", "app/deep/x", "other/y"] {
        vault.holds(name, name);
    }
    vault
}

#[test]
fn a_key_that_may_not_list_does_all_else_by_name() {
    for api in DIALECTS {
        let vault = unlisted();
        let client = Client::new(&vault.url, api);
        for name in ["top", "app/deep/x"] {
            assert_eq!(client.run("get", &[name], "").ok(), name);
            client.run("put", &[name], "two").ok();
            assert_eq!(client.run("log", &[name], "").ok().lines().count(), 2, "{api}");
            client.run("rm", &[name], "").ok();
            client.run("put", &[name], "anew").ok();
            assert_eq!(vault.values(name), ["anew"]);
        }
        client.run("get", &["not/there"], "").fails(5);
        client.run("ls", &[], "").fails(3);
        vault.refuse(|_| Some((401, None, "{}")));
        client.run("get", &["top"], "").fails(3);
        run(client.command("mount").arg(&client.place.mnt)).fails(3);
    }
}

#[test]
fn a_mount_whose_key_may_not_list_finds_names_in_known_directories() {
    for api in DIALECTS {
        let vault = unlisted();
        let mount = Client::new(&vault.url, api).mount(&["--name", "app/new", "-o", "name=app/deep/z"]);
        assert_eq!(mount.sh("cat top app/db app/deep/x"), "topapp/dbapp/deep/x");
        for absent in ["nothing", "other", "other/y", "app/nothing"] {
            assert_eq!(errno(fs::metadata(mount.path(absent))), Some(libc::EACCES), "{api} {absent}");
        }
        let listed = mount.script("bash", "ls app");
        assert!(listed.err.contains("Permission denied"), "{listed:?}");
        assert_eq!(errno(fs::metadata(mount.path("app/new"))), Some(libc::ENOENT), "it is no directory");
        mount.sh("echo 2 > top; echo 2 > app/db; echo 1 > app/new; echo 3 > app/deep/x; cat app/new; sed -i s/3/4/ app/deep/x");
        assert_eq!(vault.values("app/db"), ["app/db", "2\n"]);
        assert_eq!(vault.values("app/deep/x"), ["app/deep/x", "3\n", "4\n"]);
        assert_eq!(vault.values("app/new"), ["1\n"]);
        let log = vault.take_log();
        let listings = log.iter().filter(|line| line.ends_with("/kv") || line.ends_with("/list"));
        let listings = listings.filter(|line| line.starts_with("GET")).count();
        assert!(listings <= 3, "{api}: it was told at the start: {log:?}");
        let status = mount.status();
        assert_eq!(status["fs"]["vault"]["unlisted"], true, "{status}");
        let said = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
        assert!(said.contains("the key may not list names") && !said.contains("NOT WELL"), "{said}");
        assert!(mount.log().contains("--name NAME"), "{}", mount.log());
        // A successor has no listing either, and takes that for no revocation.
        let mut held = fs::File::open(mount.path("top")).unwrap();
        replace_worker(mount.pids().0);
        assert_eq!(errno(fs::metadata(mount.path("other"))), Some(libc::EACCES), "{api}");
        let mut text = String::new();
        held.read_to_string(&mut text).unwrap();
        assert_eq!(text, "2\n", "nothing that is open is dropped");
        drop(held);
        assert_eq!(mount.sh("cat app/db app/deep/x; echo 5 > top; cat top"), "2\n4\n5\n");
        assert_eq!(mount.status()["fs"]["vault"]["unlisted"], true);
        mount.sh("rm app/new app/deep/x");
        assert!(vault.values("app/new").is_empty());
        mount.unmount();
    }
}

#[test]
fn a_proxy_that_refuses_encoded_slashes_is_gone_round() {
    let refusals: [Refusal; 6] = [
        (400, None, "{\"code\":\"bad\"}"),
        (400, None, "<html>Bad Request</html>"),
        (403, None, "<html>blocked</html>"),
        (403, None, r#"{"message":"Forbidden"}"#),
        (404, None, "<html>Not Found</html>"),
        (414, None, "<html>URI Too Long</html>"),
    ];
    for refusal in refusals {
        let vault = OddVault::start(Rules::default());
        vault.refuse(move |asked| (asked.is_encoded && asked.reads_a_name()).then_some(refusal));
        vault.holds("a/b", "one");
        let client = Client::new(&vault.url, "kv");
        assert_eq!(client.run("get", &["a/b"], "").ok(), "one", "{}", refusal.0);
        client.run("put", &["a/b"], "two").ok();
        client.run("put", &["a/new"], "1").ok();
        let mount = client.mount(&[]);
        assert_eq!(mount.sh("cat a/b; echo 3 > a/b; cat a/b; rm a/new; ls a"), "two3\nb\n");
        assert_eq!(vault.values("a/b"), ["one", "two", "3\n"]);
        mount.unmount();
    }
}

#[test]
fn a_refused_name_is_not_asked_for_at_each_look() {
    for api in DIALECTS {
        for refusal in [FORBIDDEN, (400, None, "{}"), (414, None, "<html></html>")] {
            let vault = OddVault::start(Rules::default());
            vault.holds("bad", "x");
            let mount = Client::new(&vault.url, api).mount(&["--refresh", "1h"]);
            vault.take_log();
            let status = refusal.0;
            vault.refuse(move |asked| (!asked.lists()).then_some(refusal));
            for _ in 0..20 {
                assert!(fs::metadata(mount.path("bad")).is_err(), "{api} {status}");
            }
            let log = vault.take_log();
            assert!(log.len() <= 4, "{api} {status}: {log:?}");
        }
    }
}

/// It is no word on any object: not absent, not forbidden, and what is in memory is served as in an
/// outage.
#[test]
fn a_page_in_place_of_an_answer_is_one_error_for_a_while() {
    for api in DIALECTS {
        for status in [200, 401, 403, 404] {
            let vault = OddVault::start(Rules::default());
            for name in ["a", "b", "seen"] {
                vault.holds(name, "x");
            }
            let mount = Client::new(&vault.url, api).mount(&[]);
            assert_eq!(mount.sh("cat seen"), "x");
            vault.refuse(move |_| Some((status, None, "<html>Blocked</html>")));
            vault.take_log();
            let begun = std::time::Instant::now();
            for look in ["ls -l a b", "cat a", "stat a b", "cat b", "getfattr -d a", "ls -l a b"] {
                let ran = mount.script("bash", look);
                assert!(
                    ran.code != Some(0) && ran.err.contains("Input/output error"),
                    "{api} {look}: {ran:?}"
                );
            }
            for _ in 0..10 {
                mount.script("bash", "ls -l; stat nothing nothing/there");
            }
            // Once in five seconds for each name, and for the listing.
            let log = vault.take_log();
            let periods = 1 + begun.elapsed().as_secs() as usize / 5;
            for name in ["a", "b"] {
                let asked = log.iter().filter(|line| line.ends_with(&format!("/name/{name}")));
                assert!(asked.count() <= periods, "{api} {status}: {log:?}");
            }
            assert!(log.len() <= 8 * periods, "{api} {status}: {log:?}");
            let said = format!("(status {status}, text/html)");
            assert!(mount.log().contains(&said), "{}", mount.log());
            std::thread::sleep(std::time::Duration::from_secs(6));
            assert_eq!(mount.sh("cat seen"), "x", "{api} {status}: past its time");
            vault.refuse(|_| None);
            until("it is asked for again", || mount.script("bash", "cat a b").out == "xx");
        }
    }
}

#[test]
fn a_page_in_place_of_an_answer_to_a_save_is_told_after_a_few_tries() {
    for api in DIALECTS {
        for status in [200, 403, 500] {
            let vault = OddVault::start(Rules::default());
            vault.holds("a", "old");
            let mount = Client::new(&vault.url, api).mount(&["--refresh", "1h"]);
            assert_eq!(mount.sh("cat a"), "old");
            vault.refuse(move |asked| asked.changes().then_some((status, None, "<html>Blocked</html>")));
            vault.take_log();
            let begun = std::time::Instant::now();
            let ran = mount.script("bash", "echo new > a; sync a");
            assert!(ran.code == Some(1) && ran.err.contains("Input/output error"), "{api} {status}: {ran:?}");
            let log = vault.take_log();
            let sent = log.iter().filter(|line| !line.starts_with("GET")).count();
            // At close, at fsync, and by itself once a second at the most.
            let most = 4 * (3 + begun.elapsed().as_secs() as usize);
            assert!(sent <= most, "{api} {status}: {sent} of {log:?}");
            assert_eq!(mount.sh("cat a"), "new\n", "the bytes are kept");
            vault.refuse(|_| None);
            until("it is stored", || vault.values("a") == ["old", "new\n"]);
            mount.unmount();
        }
    }
}

#[test]
fn a_name_that_is_not_free_yet_is_waited_for() {
    for api in DIALECTS {
        let vault = OddVault::start(Rules { reserves: true, ..Rules::default() });
        vault.holds("s", "old");
        vault.holds("t", "old");
        let client = Client::new(&vault.url, api);
        client.run("rm", &["t"], "").ok();
        vault.take_log();
        let said = client.run("put", &["t"], "new").fails(1);
        assert!(said.contains("not free yet"), "{said}");
        assert!(vault.take_log().len() <= 8, "{api}");
        let mount = client.mount(&[]);
        mount.sh("rm s");
        vault.take_log();
        let ran = mount.script("bash", "echo new > s; sync s");
        assert!(ran.code == Some(1) && ran.err.contains("busy"), "{ran:?}");
        let exclusive = mount.script("bash", "set -C; echo x > t; sync t");
        assert!(exclusive.code == Some(1) && exclusive.err.contains("busy"), "{exclusive:?}");
        assert!(vault.take_log().len() <= 24, "{api}");
        let unsaved = mount.status()["fs"]["unsaved"].to_string();
        assert!(unsaved.contains("not free yet") && unsaved.contains("\"conflict\":false"), "{unsaved}");
        assert_eq!(mount.sh("cat s"), "new\n", "the bytes are kept");
        vault.frees();
        until("both are stored", || vault.values("s") == ["new\n"] && vault.values("t") == ["x\n"]);
        mount.unmount();
    }
}

#[test]
fn a_proxy_that_is_down_is_named_without_its_password() {
    let client = Client::new("https://vault.invalid", "object");
    for proxy in ["http://joe:hunter2@127.0.0.1:1", "joe:hunter2@127.0.0.1:1"] {
        let mut get = client.command("get");
        get.env("HTTPS_PROXY", proxy).env_remove("NO_PROXY").env_remove("no_proxy");
        let said = run(get.arg("x")).fails(4);
        assert!(said.contains("proxy http://127.0.0.1:1 "), "{said}");
        assert!(!said.contains("hunter2") && !said.contains("joe"), "{said}");
    }
}

/// A key of this vault with these permissions.
fn key(data: &std::path::Path, permissions: &str) -> String {
    let mut add = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
    add.args(["serve", "--data"]).arg(data).args(["key", "add", "--permissions", permissions]);
    run(&mut add).ok().trim().to_owned()
}

#[test]
fn a_key_that_may_not_write_is_refused_at_open() {
    for api in DIALECTS {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::start(&dir.path().join("data"));
        Client::with_key(&served.url, api, &served.key).run("put", &["d/f"], "old").ok();
        let reads = key(&dir.path().join("data"), "read");
        let client = Client::with_key(&served.url, api, &reads);
        let key_file = client.key_file.clone();
        let said = run(client.command("mount").arg(&client.place.mnt));
        assert!(said.code == Some(0) && said.err.contains("may not write"), "{said:?}");
        let mount = Mount::adopt(client.place);
        for shell in ["bash", "dash", "zsh"] {
            for write in ["echo new > d/f", "echo new >> d/f", "echo new > d/g", "echo new > h"] {
                let ran = mount.script(shell, write);
                assert!(
                    ran.code != Some(0) && ran.err.to_lowercase().contains("permission denied"),
                    "{ran:?}"
                );
            }
        }
        assert_eq!(mount.sh("cat d/f; test ! -e h; echo x > .a.swp; rm .a.swp"), "old");
        assert_eq!(mount.status()["fs"]["unsaved"], serde_json::json!([]));
        // Another key is tried at once.
        fs::write(&key_file, &served.key).unwrap();
        mount.sh("echo new > d/f && echo new > h && sync d/f h");
        assert_eq!(mount.sh("cat d/f h"), "new\nnew\n");
        mount.unmount();
    }
}

#[test]
fn what_a_rename_stored_shows_at_once_though_the_old_name_is_not_deleted() {
    for api in DIALECTS {
        let vault = OddVault::start(Rules::default());
        for name in ["f", "g", "there"] {
            vault.holds(name, name);
        }
        let mount = Client::new(&vault.url, api).mount(&["--refresh", "1h"]);
        mount.sh("ls; cat f g there; test ! -e new");
        vault.refuse(|asked| {
            (asked.method == "DELETE" || asked.path.ends_with("/delete")).then_some(FORBIDDEN)
        });
        for (from, to) in [("f", "new"), ("g", "there")] {
            let ran = mount.script("bash", &format!("mv {from} {to}"));
            assert!(ran.code == Some(1) && ran.err.contains("Permission denied"), "{ran:?}");
            let both = format!("{from}{from}");
            until("both names have the bytes", || {
                mount.script("bash", &format!("cat {from} {to}")).out == both
            });
            assert_eq!(vault.values(to).last().map(String::as_str), Some(from), "{api}");
        }
        mount.unmount();
    }
}

#[test]
fn a_refused_save_is_believed_for_its_directory_and_key() {
    for api in DIALECTS {
        let vault = OddVault::start(Rules::default());
        for name in ["d/f", "d/g", "e/f"] {
            vault.holds(name, "old");
        }
        vault.refuse(|asked| asked.changes().then_some(FORBIDDEN));
        let client = Client::new(&vault.url, api);
        let key_file = client.key_file.clone();
        let mount = client.mount(&[]);
        assert_eq!(mount.script("bash", "echo new > d/f; sync d/f").code, Some(1));
        for write in ["echo 2 > d/f", "echo 2 > d/g"] {
            let ran = mount.script("bash", write);
            assert!(ran.code == Some(1) && ran.err.contains("Permission denied"), "{ran:?}");
        }
        assert_eq!(mount.sh("cat d/f; cat d/g"), "new\nold", "what an earlier writer wrote is kept");
        // Of other directories nothing is known, nor of new objects.
        vault.refuse(|_| None);
        mount.sh("echo new > e/f && sync e/f && echo new > d/h && sync d/h");
        assert_eq!((vault.values("e/f").len(), vault.values("d/h").len()), (2, 1));
        fs::write(&key_file, "sk_another").unwrap();
        mount.sh("echo 3 > d/g && sync d/g");
        assert_eq!(vault.values("d/g"), ["old", "3\n"]);
        until("the unsaved bytes are stored", || vault.values("d/f") == ["old", "new\n"]);
        mount.unmount();
    }
}
