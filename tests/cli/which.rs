//! Which vault a command means, and which commands make one.

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
