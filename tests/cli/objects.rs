//! The object commands as scripts see them: exact output, exit codes, and no secret anywhere else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use vaultfs::server::store::Permission;

use crate::support::home::{self, Home, assert_fails};
use crate::support::vault_server::Server;

const CANARY: &str = "canary-value-7c211433f02071597741e6ff5a8ea34789abbf43";
const CANARY_KEY: &str = "sk_canary_key_f02071597741e6ff5a8ea347";

#[test]
fn put_get_and_history() {
    let home = Home::new();
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for value in [&b"one"[..], b"", b"one\n", &every_byte] {
        assert_eq!(home.ok(&["put", "dir/name"], value), b"");
        assert_eq!(home.ok(&["get", "dir/name"], b""), value);
        home.ok(&["put", "dir/name"], value);
    }
    let log = home.text(&["log", "dir/name"]);
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 4, "equal bytes make no version: {log}");
    assert!(lines[0].starts_with("   1  20") && lines[0].ends_with("         3"), "{log}");
    assert!(lines[3].ends_with("    100000  current"), "{log}");
    assert_eq!(home.ok(&["get", "dir/name", "--version", "3"], b""), b"one\n");

    home.ok(&["restore", "dir/name", "--version", "1"], b"");
    assert_eq!(home.ok(&["get", "dir/name"], b""), b"one");
    let again = home.run(&["restore", "dir/name", "--version", "1"], b"");
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).contains("nothing to do"));
    let log = home.text(&["log", "dir/name", "--json"]);
    let log: Vec<serde_json::Value> = serde_json::from_str(&log).unwrap();
    let last = log.last().unwrap();
    assert_eq!((&last["version"], &last["size"], &last["current"]), (&5.into(), &3.into(), &true.into()));

    home.ok(&["rm", "dir/name"], b"");
    assert_fails(&home.run(&["get", "dir/name"], b""), 5, "\"dir/name\"");
    home.ok(&["put", "dir/name"], b"anew");
    assert_eq!(home.text(&["log", "dir/name"]).lines().count(), 1, "rm ends the history");
}

#[test]
fn a_closed_standard_input_is_no_empty_value() {
    let home = Home::new();
    home.ok(&["put", "s"], b"secret");
    let mut put = home.command(&["put", "s"]);
    put.arg(format!("--embedded={}", home.vault().display()));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec \"$@\" <&-", "sh"]).arg(put.get_program()).args(put.get_args());
    shell.envs(put.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let closed = shell.output().unwrap();
    assert_fails(&closed, 1, "standard input is closed");
    assert_eq!(home.ok(&["get", "s"], b""), b"secret");
    home.ok(&["put", "s"], b"");
    assert_eq!(home.ok(&["get", "s"], b""), b"");
}

#[test]
fn listings() {
    let home = Home::with_vault();
    assert_eq!(home.text(&["ls"]), "");
    assert_eq!(home.text(&["ls", "--json"]), "[]\n");
    for name in ["db/user", "db/password", "db.json", "dbx", "db/a/b", "odd\nname"] {
        home.ok(&["put", name], b"x");
    }
    home.ok(&["put", "db/user"], b"y");
    assert_eq!(home.text(&["ls"]), "db.json\ndb/a/b\ndb/password\ndb/user\ndbx\nodd\nname\n");
    for dir in ["db", "db/", "db//"] {
        assert_eq!(home.text(&["ls", dir]), "db/a/b\ndb/password\ndb/user\n", "{dir}");
    }
    assert_eq!(home.text(&["ls", "db/a"]), "db/a/b\n");
    assert_eq!(home.text(&["ls", "dbx"]), "dbx\n", "as ls shows a file");
    assert_eq!(home.text(&["ls", "/"]), home.text(&["ls"]));
    assert_eq!(home.text(&["ls", "--prefix", "db"]), "a/b\npassword\nuser\n");
    assert_eq!(home.text(&["get", "user", "--prefix", "db"]), "y");
    home.ok(&["put", "dbx/c"], b"x");
    assert_eq!(home.text(&["ls", "dbx"]), "dbx\ndbx/c\n");
    home.ok(&["rm", "dbx/c"], b"");
    for (dir, json) in [("d", "-l"), ("dbx/", "-l"), ("db/user/", "-l"), ("nothere\n", "--json")] {
        let none = home.run(&["ls", dir, json], b"");
        assert_fails(&none, 5, &format!("there is no object {dir:?}, and none below it"));
    }

    let json: Vec<serde_json::Value> = serde_json::from_str(&home.text(&["ls", "--json"])).unwrap();
    assert_eq!(json.len(), 6);
    assert_eq!((&json[5]["name"], &json[3]["version"]), (&"odd\nname".into(), &2.into()));
    let one: Vec<serde_json::Value> = serde_json::from_str(&home.text(&["ls", "--json", "db/user"])).unwrap();
    assert_eq!(one, json[3..4]);

    let mut child = home.command(&["ls", &format!("--embedded={}", home.vault().display())]).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success(), "a reader that goes away is no failure");
}

/// The time is what date(1) makes of it in the same zone.
#[test]
fn long_listings_have_the_size_the_local_time_and_the_version() {
    let home = Home::new();
    home.ok(&["put", "db/user"], b"x");
    home.ok(&["put", "db/user"], b"y");
    let json: Vec<serde_json::Value> = serde_json::from_str(&home.text(&["ls", "--json"])).unwrap();
    let embedded = format!("--embedded={}", home.vault().display());
    for zone in ["UTC", "JST-9", "NST3:30"] {
        let mut date = std::process::Command::new("date");
        date.env("TZ", zone).args(["+%F %T", "-d", json[0]["updated_at"].as_str().unwrap()]);
        let time = String::from_utf8(date.output().unwrap().stdout).unwrap().trim().to_owned();
        let text = |args: &[&str]| {
            let ran = home.command(args).env("TZ", zone).arg(&embedded).output().unwrap();
            String::from_utf8(ran.stdout).unwrap()
        };
        assert_eq!(text(&["ls", "-l"]), format!("       -  {time}     2  db/user\n"));
        let none = text(&["ls", "-l", "--api", "kv"]);
        assert_eq!(none, format!("       -  {time}     -  db/user\n"));
        let log = text(&["log", "db/user"]);
        assert!(log.ends_with(&format!("   2  {time}         1  current\n")), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_many_pages_is_sorted() {
    const NAMES: u32 = 350;
    let server = Server::start().await;
    for n in 0..NAMES {
        server.create(&format!("{:05}", n * 139 % NAMES), r#"{"a":1}"#).await.ok();
    }
    let mut ls = Home::new().command(&["ls"]);
    ls.env("WORKOS_API_URL", &server.url).env("WORKOS_API_KEY", &server.key);
    let ran = tokio::task::spawn_blocking(move || ls.output().unwrap()).await.unwrap();
    let expected: String = (0..NAMES).map(|n| format!("{n:05}\n")).collect();
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected);
    server.stop().await;
}

#[test]
fn formats() {
    let home = Home::new();
    home.ok(&["put", "s", "--format", "json"], b"{\"b\":1.0,\"a\":{}}");
    assert_eq!(home.text(&["get", "s"]), "{\n  \"b\": 1.0,\n  \"a\": {}\n}\n");
    home.ok(&["put", "s"], b"{\"b\":2}");
    assert_eq!(home.text(&["get", "s"]), "{\n  \"b\": 2\n}\n", "structured stays structured");
    home.ok(&["put", "s", "--format", "raw"], b"{\"b\":2}");
    assert_eq!(home.text(&["get", "s"]), "{\"b\":2}");
    assert_fails(&home.run(&["put", "s", "--format", "json"], b"no json"), 1, "JSON object");
    assert_eq!(home.text(&["log", "s"]).lines().count(), 3);
}

#[test]
fn either_api_of_the_embedded_vault_will_do() {
    let home = Home::new();
    let kv = |args: &[&str], input: &[u8]| home.ok(&[args, &["--api", "kv"]].concat(), input);
    let every_byte: Vec<u8> = (0..=255).collect();
    for name in ["dir/a b#1?ü", ".", "..", "../x"] {
        for value in [&b"text\n"[..], &every_byte] {
            kv(&["put", name], value);
            assert_eq!(kv(&["get", name], b""), value);
            assert_eq!(home.ok(&["get", name], b""), value, "{name}");
        }
        let log = kv(&["log", name], b"");
        assert_eq!(log, home.ok(&["log", name], b""), "{name}");
        let old = home.run(&["get", "--version", "1", "--api", "kv", name], b"");
        assert_fails(&old, 1, "no values of old versions");
        let old = home.run(&["restore", "--version", "1", "--api", "kv", name], b"");
        assert_fails(&old, 1, "no values of old versions");
    }
    assert_eq!(kv(&["ls"], b""), home.ok(&["ls"], b""));
    let long = home.run(&["put", &"é".repeat(201), "--api", "kv"], b"x");
    assert_fails(&long, 1, "longer than the vault takes");
    kv(&["rm", ".", "..", "../x", "dir/a b#1?ü"], b"");
    assert_eq!(home.text(&["ls"]), "");
}

#[test]
fn failures_have_codes_and_sentences() {
    let home = Home::new();
    home.ok(&["put", "there"], b"x");
    let two = home.run(&["rm", "absent one", "there", "absent two"], b"");
    assert_fails(&two, 5, "absent one");
    assert!(String::from_utf8_lossy(&two.stderr).contains("absent two"), "each failure is named");
    assert_eq!(home.text(&["ls"]), "", "what could be deleted is deleted");
    home.ok(&["put", "there"], b"x");
    assert_fails(&home.run(&["get", "there", "--version", "2"], b""), 5, "there are 1 to 1");
    assert_fails(&home.run(&["put", ""], b"x"), 2, "1 to 1024 bytes");
    assert_fails(&home.run(&["put", &"x".repeat(1025)], b"x"), 2, "1 to 1024 bytes");
    assert_fails(&home.run(&["put", "big", "--max-size", "10"], &[b'x'; 11]), 1, "--max-size");
    assert_fails(&home.run(&["ls", "--api-url", "http://127.0.0.1:1"], b""), 2, "--embedded");
    assert_eq!(home.run(&["get"], b"").status.code(), Some(2));
}

#[tokio::test]
async fn keys_are_found_in_their_order() {
    let server = Server::start().await;
    let (url, key, home) = (server.url.clone(), server.key.clone(), Home::new());
    let dir = home.0.path().to_owned();
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file("good", &format!("{key}\n"), 0o600);
    let wrong = file("wrong", CANARY_KEY, 0o600);
    let open = file("open", &key, 0o644);
    file("credentials/workos-api-key", &key, 0o400);
    let credentials = dir.join("credentials");
    let task = tokio::task::spawn_blocking(move || {
        let ls = |args: &[&str], env: &[(&str, &str)]| {
            let all = [&["ls", "--api-url", &url], args].concat();
            home.command(&all).envs(env.iter().copied()).output().unwrap()
        };
        let credentials = credentials.to_str().unwrap();
        assert!(ls(&["--api-key-file", &good], &[("WORKOS_API_KEY", CANARY_KEY)]).status.success());
        assert!(ls(&[], &[("WORKOS_API_KEY", &key)]).status.success());
        let both = [("CREDENTIALS_DIRECTORY", credentials), ("WORKOS_API_KEY", CANARY_KEY)];
        assert!(ls(&[], &both).status.success());
        assert_fails(&ls(&["--api-key-file", &wrong], &both), 3, &wrong);
        assert_fails(&ls(&["--api-key-file", &open], &both), 3, "chmod 600");
        assert_fails(&ls(&["--api-key-file", "/nonexistent"], &both), 3, "/nonexistent");
        assert_fails(&ls(&[], &[("WORKOS_API_KEY", CANARY_KEY)]), 3, "WORKOS_API_KEY");
        assert_fails(&ls(&[], &[]), 3, "no API key");
        let proxy = ["http_proxy", "HTTP_PROXY", "ALL_PROXY"].map(|name| (name, "http://127.0.0.1:1"));
        let direct = ls(&["--api-key-file", &good], &proxy);
        assert!(direct.status.success(), "loopback is never reached through a proxy: {direct:?}");
        let by_env =
            home.command(&["ls"]).envs([("WORKOS_API_URL", &url), ("WORKOS_API_KEY", &key)]).output();
        assert!(by_env.unwrap().status.success());
    });
    task.await.unwrap();
    server.stop().await;
}

/// What a key may do that has one permission only.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_only_write_stores_new_objects() {
    let server = Server::start().await;
    let writer = server.key_with(&[Permission::Write]).await;
    let reader = server.key_with(&[Permission::Read]).await;
    let home = Home::new();
    let run = |key: &str, args: &[&str], input: &[u8]| {
        let mut command = home.command(args);
        command.env("WORKOS_API_URL", &server.url).env("WORKOS_API_KEY", key);
        home::feed(&mut command, input)
    };
    for api in ["auto", "object", "kv"] {
        let name = format!("dir/{api}");
        let put = ["put", &name, "--api", api];
        let stored = run(&writer, &put, b"one");
        assert!(stored.status.success() && stored.stderr.is_empty(), "{stored:?}");
        assert_eq!(run(&reader, &["get", &name], b"").stdout, b"one");
        // A version of it takes a look at it.
        let refused = run(&writer, &put, b"two");
        assert_fails(&refused, 3, &format!("{name:?} exists already"));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("permission read"));
        assert_eq!(run(&reader, &["get", &name], b"").stdout, b"one");
        assert_fails(&run(&writer, &["ls", "--api", api], b""), 3, "takes the permission read");
        assert_fails(&run(&reader, &put, b"two"), 3, "takes the permission write");
        let said = run(&reader, &["rm", &name, "--api", api], b"");
        assert_fails(&said, 3, "takes the permission delete");
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.starts_with(&format!("vaultfs: {name:?}: ")), "the name first: {said}");
    }
    let unknown = run("sk_unknown", &["put", "x"], b"1");
    assert_fails(&unknown, 3, "refused the API key");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_context_is_never_ignored() {
    let home = Home::with_vault();
    let context = ["put", "x", "--key-context", "org=1"];
    assert_fails(&home.run(&context, b"1"), 2, "--api kv");
    assert_eq!(home.text(&["ls"]), "");
    home.ok(&[&context[..], &["--api", "kv"]].concat(), b"1");
    let server = Server::start().await;
    let run = |args: &[&str]| {
        let mut command = home.command(args);
        command.env("WORKOS_API_URL", &server.url).env("WORKOS_API_KEY", &server.key);
        home::feed(&mut command, b"1")
    };
    // It speaks both; asked, the object API.
    for args in [&context[..], &["ls", "--key-context", "a=b"], &["key", "create", "--key-context", "a=b"]] {
        assert_fails(&run(args), 2, "--key-context");
    }
    server.stop().await;
}

#[test]
fn what_is_no_file_is_no_key_and_gets_no_chmod() {
    let home = Home::new();
    let ls = ["ls", "--api-url", "http://127.0.0.1:1", "--api-key-file", "/dev/null"];
    let refused = home.command(&ls).output().unwrap();
    assert_fails(&refused, 3, "/dev/null is no regular file and holds no key");
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("chmod"));
    let serve = ["serve", "--listen", "127.0.0.1:0", "--master-key-file", "/dev/null", "--data"];
    let refused = home.command(&serve).arg(home.vault()).output().unwrap();
    assert_fails(&refused, 1, "master key /dev/null is no file with 32 bytes");
}

#[test]
fn a_missing_master_key_is_named_with_what_to_do() {
    let home = Home::new();
    home.ok(&["put", "a"], b"1");
    let key = home.vault().join("master-key");
    fs::rename(&key, home.0.path().join("elsewhere")).unwrap();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data"];
    let refused = home.command(&serve).arg(home.vault()).output().unwrap();
    assert_fails(&refused, 1, &format!("master key {} is missing", key.display()));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("put it back") && said.contains("--master-key-file"), "{said}");
    let named = ["serve", "--listen", "127.0.0.1:0", "--master-key-file", "/nodir/key", "--data"];
    let refused = home.command(&named).arg(home.vault()).output().unwrap();
    assert_fails(&refused, 1, "master key /nodir/key is missing: put the key there");
}

#[test]
fn the_embedded_vault_is_the_state_directory_of_a_unit() {
    let home = Home::new();
    let state = home.0.path().join("state");
    let mut put = home.command(&["put", "a", "--embedded"]);
    // systemd gives a service of the system no HOME.
    put.env_remove("HOME").env("STATE_DIRECTORY", format!("{}:/nodir/other", state.display()));
    let stored = home::feed(&mut put, b"1");
    assert!(stored.status.success(), "{stored:?}");
    assert!(state.join("vault.db").is_file());
    let mut get = home.command(&["get", "a", &format!("--embedded={}", state.display())]);
    assert_eq!(get.output().unwrap().stdout, b"1");
}

#[test]
fn what_is_no_vault_is_said() {
    let home = Home::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let page = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let n = std::io::Read::read(&mut stream, &mut request).unwrap();
        assert!(n > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>").unwrap();
        drop(listener);
    });
    let ls =
        |url: &str| home.command(&["ls", "--api-url", url]).env("WORKOS_API_KEY", "sk_x").output().unwrap();
    assert_fails(&ls(&url), 4, "not a vault at http://127.0.0.1:");
    page.join().unwrap();
    assert_fails(&ls(&url), 4, "no connection to the vault");
    assert_fails(&ls("http://192.0.2.7"), 2, "plain http would show key and values to the network");
}

/// Neither value nor key shows in any output but `get`'s, or in any file but DIR/api-key.
#[test]
fn the_canary_is_heard_nowhere() {
    let home = Home::new();
    let value = CANARY.as_bytes();
    let json = format!("{{\"secret\":\"{CANARY}\"}}");
    home.ok(&["put", "c"], value);
    assert_eq!(home.ok(&["get", "c"], b""), value);
    let key = fs::read_to_string(home.vault().join("api-key")).unwrap().trim().to_owned();
    let runs: &[(&[&str], &[u8])] = &[
        (&["put", "c"], value),
        (&["put", "j", "--format", "json"], json.as_bytes()),
        (&["put", "c", "--format", "json"], value),
        (&["put", "c", "--max-size", "5"], value),
        (&["put", ""], value),
        (&["ls", "-l"], b""),
        (&["ls", "--json"], b""),
        (&["log", "c", "--json"], b""),
        (&["restore", "c", "--version", "1"], b""),
        (&["restore", "c", "--version", "7"], b""),
        (&["rm", "absent", "j"], b""),
        (&["ls", "--api", "kv"], b""),
    ];
    for (args, input) in runs {
        let output = home.run(args, input);
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(text);
            assert!(!text.contains(CANARY) && !text.contains(&key), "{args:?}: {text}");
        }
    }
    let lost =
        home.command(&["ls", "--api-url", "http://127.0.0.1:1"]).env("WORKOS_API_KEY", CANARY_KEY).output();
    assert!(!format!("{:?}", lost.unwrap()).contains(CANARY_KEY));
    assert_no_file_holds(home.0.path(), &[CANARY, CANARY_KEY, &key], &home.vault().join("api-key"));
}

fn assert_no_file_holds(dir: &Path, secrets: &[&str], but: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            assert_no_file_holds(&entry.path(), secrets, but);
        } else if kind.is_file() && entry.path() != but {
            let bytes = fs::read(entry.path()).unwrap();
            for secret in secrets {
                let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
                assert!(!found, "{} holds a secret", entry.path().display());
            }
        }
    }
}

#[test]
fn what_is_not_there_is_named_with_what_was_probably_meant() {
    let home = Home::new();
    assert_eq!(home.run(&["put", "note"], b"1").status.code(), Some(0));
    for args in [&["get", "nott"][..], &["log", "nott"], &["rm", "/note"], &["restore", "noted", "1"]] {
        assert_fails(&home.run(args, b""), 5, "did you mean \"note\"?");
    }
    let hint = String::from_utf8(home.run(&["put", "/db/password"], b"1").stderr).unwrap();
    assert!(hint.contains("begins with a slash"), "{hint}");
    let other = home.run(&["get", "other"], b"");
    assert_fails(&other, 5, "there is no object \"other\": vaultfs ls lists all");
    assert!(!String::from_utf8_lossy(&other.stderr).contains("request"), "{other:?}");
}
