//! `vaultfs key` as scripts see it, in both dialects, against the embedded vault.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::home::{Home, assert_fails, feed};
use crate::support::vault_server::Server;

const BOTH: [&str; 2] = ["object", "kv"];

fn line(output: Vec<u8>) -> String {
    let text = String::from_utf8(output).unwrap();
    text.strip_suffix('\n').expect("whole lines").to_owned()
}

/// A file in the home; its path.
fn file(home: &Home, name: &str, content: &[u8], mode: u32) -> String {
    let path = home.0.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_data_key_is_made_and_opened() {
    for api in BOTH {
        let home = Home::with_vault();
        let out = home.0.path().join("plain");
        let wrapped = line(home.ok(&["key", "create", "--api", api, "--out", out.to_str().unwrap()], b""));
        let plain = fs::read_to_string(&out).unwrap();
        assert_eq!(STANDARD.decode(plain.trim()).unwrap().len(), 32, "{api}");
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(STANDARD.decode(&wrapped).unwrap().len() > 32);
        let input = format!("{wrapped}\n");
        let shown = home.ok(&["key", "unwrap", "--api", api, "--show-key"], input.as_bytes());
        assert_eq!(String::from_utf8(shown).unwrap(), plain);
        let both = String::from_utf8(home.ok(&["key", "create", "--api", api, "--show-key"], b"")).unwrap();
        assert_eq!(both.lines().count(), 2, "the encrypted key, then the key");

        let again =
            home.run(&["key", "unwrap", "--api", api, "--out", out.to_str().unwrap()], input.as_bytes());
        assert_fails(&again, 1, "exists");
        let nowhere = home.run(&["key", "unwrap", "--api", api], input.as_bytes());
        assert_fails(&nowhere, 2, "--show-key");
        let foreign = STANDARD.encode([7; 90]);
        let refused = home.run(&["key", "unwrap", "--api", api, "--show-key"], foreign.as_bytes());
        assert_fails(&refused, 1, "refused");
    }
}

#[test]
fn a_key_whose_encrypted_form_nobody_got_is_not_written_down() {
    for api in BOTH {
        let home = Home::with_vault();
        let out = home.0.path().join("plain");
        let embedded = format!("--embedded={}", home.vault().display());
        let args = ["key", "create", &embedded, "--api", api, "--out", out.to_str().unwrap()];
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let refused = home.command(&args).stdout(full).output().unwrap();
        assert_fails(&refused, 1, "standard output");
        assert!(!out.exists(), "{api}");
        let (_, unread) = std::io::pipe().unwrap();
        let refused = home.command(&args).stdout(unread).output().unwrap();
        assert_fails(&refused, 1, "nobody reads");
        assert!(!out.exists(), "{api}");
        // A key that cannot be opened leaves no empty file either.
        let foreign = STANDARD.encode([7; 90]);
        let args = ["key", "unwrap", "--api", api, "--out", out.to_str().unwrap()];
        assert_fails(&home.run(&args, foreign.as_bytes()), 1, "refused");
        assert!(!out.exists(), "{api}");
        line(home.ok(&["key", "create", "--api", api, "--out", out.to_str().unwrap()], b""));
        assert!(out.exists());
    }
}

#[test]
fn what_is_encrypted_comes_back_byte_for_byte() {
    let every_byte: Vec<u8> = (0..=255).cycle().take(50_000).collect();
    let as_much_as_may_be: Vec<u8> = (0..=255).rev().cycle().take(1 << 20).collect();
    for api in BOTH {
        let home = Home::with_vault();
        for plain in [&b"secret\n"[..], b"", "ünïcödé".as_bytes(), &every_byte, &as_much_as_may_be] {
            let sealed = home.ok(&["key", "encrypt", "--api", api], plain);
            assert_eq!(home.ok(&["key", "decrypt", "--api", api], &sealed), plain, "{api}");
        }
        let over = home.run(&["key", "encrypt", "--api", api], &[&as_much_as_may_be[..], b"x"].concat());
        assert_fails(&over, 1, "larger than 1048576 bytes");
        let sealed = line(home.ok(&["key", "encrypt", "--api", api], b"secret"));
        let damaged = sealed.replacen(|c: char| c.is_ascii_digit(), "A", 3);
        let refused = home.run(&["key", "decrypt", "--api", api], damaged.as_bytes());
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn a_key_of_ones_own_is_used() {
    for api in BOTH {
        let home = Home::with_vault();
        let out = home.0.path().join("plain");
        let out = out.to_str().unwrap();
        let wrapped = home.ok(&["key", "create", "--api", api, "--out", out], b"");
        let wrapped = file(&home, "wrapped", &wrapped, 0o644);
        let encrypt = ["key", "encrypt", "--api", api, "--data-key-file"];
        let sealed = home.ok(&[&encrypt[..], &[&wrapped]].concat(), b"secret");
        for key in [wrapped.as_str(), out] {
            let decrypt = ["key", "decrypt", "--api", api, "--data-key-file", key];
            assert_eq!(home.ok(&decrypt, &sealed), b"secret", "{api}");
        }
        let with_plain = home.run(&[&encrypt[..], &[out]].concat(), b"secret");
        match api {
            "kv" => assert_fails(&with_plain, 2, "vaultfs key create"),
            _ => {
                let decrypt = ["key", "decrypt", "--api", api, "--data-key-file", &wrapped];
                assert_eq!(home.ok(&decrypt, &with_plain.stdout), b"secret");
                let nothing = home.run(&["key", "decrypt", "--api", api], &sealed);
                assert_fails(&nothing, 2, "--data-key-file");
            }
        }
        fs::set_permissions(out, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = home.run(&["key", "decrypt", "--api", api, "--data-key-file", out], &sealed);
        assert_fails(&exposed, 2, "chmod 600");
        let other = file(&home, "other", STANDARD.encode([1; 32]).as_bytes(), 0o600);
        let refused = home.run(&["key", "decrypt", "--api", api, "--data-key-file", &other], &sealed);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        for nonsense in ["", "#", "AAAA"] {
            let path = file(&home, "nonsense", nonsense.as_bytes(), 0o600);
            let refused = home.run(&[&encrypt[..], &[&path]].concat(), b"x");
            assert_fails(&refused, 2, "no data key");
        }
    }
}

#[test]
fn contexts_and_associated_data_are_for_kv() {
    let home = Home::with_vault();
    let kv = |args: &[&str], input: &[u8]| home.run(&[&["key"][..], args, &["--api", "kv"]].concat(), input);
    let sealed = kv(&["encrypt", "--context", "org=1", "--context", "app=x", "--aad", "row 7"], b"secret");
    assert!(sealed.status.success(), "{sealed:?}");
    assert_eq!(kv(&["decrypt", "--aad", "row 7"], &sealed.stdout).stdout, b"secret");
    for wrong in [&["decrypt"][..], &["decrypt", "--aad", "row 8"]] {
        assert_fails(&kv(wrong, &sealed.stdout), 1, "--aad");
    }
    assert_fails(&kv(&["decrypt"], b"no envelope"), 1, "base64");
    for args in [
        &["key", "create", "--context", "a=b"][..],
        &["key", "encrypt", "--context", "a=b"],
        &["key", "encrypt", "--aad", "x"],
        &["key", "decrypt", "--aad", "x"],
    ] {
        assert_fails(&home.run(args, b"x"), 2, "the object API");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_asked_which_api_it_speaks_and_no_secret_is_told() {
    let server = Server::start().await;
    let home = Home::with_vault();
    let run = |args: &[&str], input: &[u8]| {
        let mut command = home.command(args);
        command.env("WORKOS_API_URL", &server.url).env("WORKOS_API_KEY", &server.key);
        feed(&mut command, input)
    };
    let canary = b"canary-value-9d5c";
    for api in ["auto", "object", "kv"] {
        let sealed = run(&["key", "encrypt", "--api", api], canary);
        let opened = run(&["key", "decrypt", "--api", api], &sealed.stdout);
        assert_eq!(opened.stdout, canary, "{opened:?}");
        let key = run(&["key", "create", "--api", api, "--show-key"], b"");
        let key = String::from_utf8(key.stdout).unwrap();
        let plain = key.lines().nth(1).unwrap();
        let other =
            run(&["key", "unwrap", "--api", api, "--show-key"], key.lines().next().unwrap().as_bytes());
        assert_eq!(other.stdout, format!("{plain}\n").as_bytes());
        for output in [sealed, opened, other] {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("canary") && !said.contains(plain), "{said}");
        }
    }
    server.stop().await;
}

#[test]
fn a_refusal_says_why_in_the_vaults_words() {
    let home = Home::with_vault();
    let foreign = STANDARD.encode([7; 90]);
    for api in BOTH {
        let refused = home.run(&["key", "unwrap", "--api", api, "--show-key"], foreign.as_bytes());
        assert_fails(
            &refused,
            1,
            "the encrypted key is corrupt or not one of this vault's: make a new data key",
        );
        assert!(!String::from_utf8_lossy(&refused.stderr).contains(&foreign));
    }
    let key = file(&home, "key", STANDARD.encode([1; 32]).as_bytes(), 0o600);
    let decrypt = ["key", "decrypt", "--data-key-file", &key];
    assert_fails(&home.run(&decrypt, foreign.as_bytes()), 1, "made with another data_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_the_permission_is_told_which() {
    let server = Server::start().await;
    let writer = server.key_with(&[vaultfs::server::store::Permission::Write]).await;
    let home = Home::with_vault();
    for api in BOTH {
        let mut command = home.command(&["key", "create", "--api", api]);
        command.env("WORKOS_API_URL", &server.url).env("WORKOS_API_KEY", &writer);
        assert_fails(&feed(&mut command, b""), 3, "takes the permission keys");
    }
    server.stop().await;
}
