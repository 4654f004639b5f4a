//! Which vault a command means, and which commands make one.

use crate::support::common::{Mount, run};
use crate::support::home::{Home, assert_fails};

#[test]
fn only_mount_put_and_serve_make_a_vault() {
    let home = Home::new();
    let vault = home.vault();
    for args in [
        &["ls"][..],
        &["get", "a"],
        &["log", "a"],
        &["rm", "a"],
        &["restore", "a", "1"],
        &["key", "create"],
        &["key", "encrypt"],
    ] {
        assert_fails(&home.run(args, b"x"), 5, &format!("there is no vault in {}", vault.display()));
        assert!(!vault.exists(), "{args:?}");
    }
    std::fs::create_dir(&vault).unwrap();
    assert_fails(&home.run(&["ls"], b""), 5, "there is no vault in");
    assert_eq!(std::fs::read_dir(&vault).unwrap().count(), 0);

    let made = format!("vaultfs: made a new vault in {0}: back up {0}/master-key\n", vault.display());
    let put = |value: &[u8]| {
        let mut command = home.command(&["put", "a", &format!("--embedded={}", vault.display())]);
        let stored = crate::support::home::feed(command.env_remove("RUST_LOG"), value);
        assert!(stored.status.success(), "{stored:?}");
        String::from_utf8(stored.stderr).unwrap()
    };
    assert_eq!(put(b"1"), made);
    assert_eq!(put(b"2"), "");
    assert_eq!(home.text(&["get", "a"]), "2");
}

/// Other tests mount beside this one: there are always several mounts.
#[test]
fn a_mount_is_meant_by_an_option_a_path_or_the_working_directory() {
    let one = Mount::start();
    one.sh("mkdir db; printf 1 > db/a; printf both1 > both");
    let two = Mount::with(&["--prefix", "app"]);
    two.sh("printf both2 > both; printf x > .env");
    let (m1, m2) = (one.mnt().to_str().unwrap(), two.mnt().to_str().unwrap());
    let ran = |dir: &str, args: &[&str]| run(one.vaultfs(args).current_dir(dir));
    let silent = |dir: &str, args: &[&str]| {
        let ran = ran(dir, args);
        assert_eq!(ran.err, "", "{args:?}");
        ran.ok()
    };

    let refused = ran("/", &["get", "both"]).fails(2);
    assert!(refused.contains("several mounts") && refused.contains("--mount DIR"), "{refused}");
    let db = format!("{m1}/db");
    for (dir, value) in [(m1, "both1"), (&db, "both1"), (m2, "both2")] {
        let got = ran(dir, &["get", "both"]);
        let root = if dir == m2 { m2 } else { m1 };
        assert_eq!(got.err, format!("vaultfs: using the vault mounted at {root}\n"), "there was a choice");
        assert_eq!(got.ok(), value);
    }
    for (mount, value) in [(m1, "both1"), (&db, "both1"), (m2, "both2")] {
        assert_eq!(silent("/", &["get", "both", "--mount", mount]), value);
    }
    assert!(ran("/", &["get", "-v", "both", "--mount", m1]).err.contains("using the vault mounted at"));
    ran("/", &["get", "both", "--mount", "/proc"]).fails(5);
    ran("/", &["get", "both", "--mount", m1, "--api-url", "http://127.0.0.1:1"]).fails(2);

    assert_eq!(silent("/", &["get", &format!("{m1}/db/a")]), "1");
    assert_eq!(silent(m2, &["get", &format!("{m1}/both")]), "both1", "a path comes before the directory");
    assert_eq!(silent(&db, &["get", "./a"]), "1");
    assert_eq!(silent(&db, &["get", "../both"]), "both1");
    assert_eq!(silent("/", &["ls", m1]), "both\ndb/a\n");
    assert_eq!(silent(&db, &["ls", "."]), "db/a\n");
    assert_eq!(ran(m2, &["get", ".env"]).ok(), "x", "a name");
    ran("/", &["get", &format!("{m1}/.versions/both/1")]).fails(2);
    ran("/", &["rm", &format!("{m1}/both"), &format!("{m2}/both")]).fails(2);
    ran("/", &["rm", &format!("{m1}/both"), "both"]).fails(2);
    silent("/", &["put", &format!("{m2}/new/name")]);
    assert!(run(&mut two.vaultfs(["ls", &two.embedded()])).ok().contains("app/new/name\n"));
    silent("/", &["log", &format!("{m2}/new/name")]);
    silent("/", &["rm", &format!("{m2}/new/name")]);
    // An option comes first, and takes names as they are.
    run(one.vaultfs(["get", &one.embedded(), &format!("{m1}/both")]).current_dir(m2)).fails(5);
    assert_eq!(run(one.vaultfs(["get", &one.embedded(), "both"]).current_dir(m2)).ok(), "both1");
    // The working directory comes before the environment.
    let mut get = one.vaultfs(["get", "both"]);
    get.current_dir(m1).env("WORKOS_API_KEY", "sk_x").env("WORKOS_API_URL", "http://127.0.0.1:1");
    assert_eq!(run(&mut get).ok(), "both1");
    run(get.current_dir("/")).fails(4);
}

#[test]
fn a_directory_below_a_mount_point_means_the_mount() {
    let mount = Mount::start();
    mount.sh("mkdir sub; printf 1 > sub/a");
    let (root, sub) = (mount.mnt().display(), mount.path("sub"));
    let status = run(mount.vaultfs(["status"]).arg(&sub)).ok();
    assert!(status.contains(&root.to_string()), "{status}");
    run(mount.vaultfs(["pending"]).arg(&sub)).ok();
    run(mount.vaultfs(["upgrade"]).arg(&sub)).ok();
    // Another mount may have been there: only a person can say what is meant.
    let refused = run(mount.vaultfs(["unmount"]).arg(&sub)).fails(5);
    assert!(refused.contains(&format!("vaultfs unmount {root}")), "{refused}");
    assert_eq!(mount.sh("cat sub/a"), "1");
    mount.unmount();
}
