//! Other words for commands and options: those that run, and what is said of the others.

use crate::support::common::{Mount, Place, run};
use crate::support::home::Home;

#[test]
fn other_words_for_a_command_run_it() {
    let home = Home::new();
    for (put, get, log, rm) in [
        ("put", "get", "log", "rm"),
        ("set", "cat", "history", "delete"),
        ("write", "read", "versions", "delete"),
    ] {
        home.ok(&[put, "a"], b"1");
        home.ok(&[put, "a"], b"2\n");
        assert_eq!(home.ok(&[get, "a"], b""), b"2\n", "{get}");
        assert_eq!(home.ok(&[get, "a", "--version", "1"], b""), b"1", "{get}");
        assert_eq!(home.text(&[log, "a"]).lines().count(), 2, "{log}");
        home.ok(&["restore", "a", "1"], b"");
        assert_eq!(home.ok(&[get, "a"], b""), b"1");
        home.ok(&["restore", "a", "--version", "2"], b"");
        assert_eq!(home.ok(&[get, "a"], b""), b"2\n");
        assert_eq!(home.text(&["list"]), home.text(&["ls"]));
        home.ok(&[rm, "a"], b"");
        assert_eq!(home.text(&["list"]), "", "{rm}");
    }
    let version = crate::support::home::feed(&mut home.command(&["version"]), b"");
    assert!(version.status.success() && version.stdout.starts_with(b"vaultfs "), "{version:?}");
}

#[test]
fn other_words_for_mounting_run_too() {
    let mount = Mount::with(&["--daemon", "--ro"]);
    assert!(std::fs::write(mount.path("a"), "1").is_err(), "it is read-only");
    run(mount.vaultfs(["umount"]).arg(mount.mnt())).ok();
    mount.unmount_done();
}

/// Every command and option, misspelt in each place by a letter more, a letter less, and two
/// exchanged: what is offered can be seen in the help, and no tip names anything hidden.
#[test]
fn no_misspelling_leads_to_what_is_hidden() {
    let place = Place::new();
    let help = run(&mut place.vaultfs(["--help"])).ok();
    let (mut tips, mut all) = (0, 0);
    for word in ["mount", "generate", "doctor", "delete", "keeper", "probe", "volume-plugin"] {
        for at in 0..word.len() - 1 {
            let swapped = [&word[..at], &word[at + 1..at + 2], &word[at..at + 1], &word[at + 2..]].concat();
            for typed in
                [[&word[..at], &word[at + 1..]].concat(), [&word[..at], "q", &word[at..]].concat(), swapped]
            {
                let ran = run(&mut place.vaultfs([&typed]));
                if ran.code != Some(2) {
                    continue;
                }
                all += 1;
                let said = ran.err;
                assert!(
                    !["generate", "keeper", "probe"]
                        .iter()
                        .any(|hidden| said.contains(&format!("'{hidden}'"))),
                    "{said}"
                );
                if let Some((_, tip)) = said.split_once("did you mean '") {
                    let (word, _) = tip.split_once('\'').unwrap();
                    assert!(help.contains(word), "{typed}: {said}");
                    tips += 1;
                }
            }
        }
    }
    assert!(tips > 40 && all - tips > 20, "{tips} of {all}");
}

#[test]
fn a_version_is_a_number() {
    let place = Place::new();
    for args in
        [&["get", "x", "--version", "y"][..], &["restore", "x", "--version", "1.0"], &["restore", "x", "y"]]
    {
        let said = run(&mut place.vaultfs(args)).fails(2);
        assert!(said.contains("give a version number, like 3"), "{said}");
    }
    let said = run(&mut place.vaultfs(["restore", "x"])).fails(2);
    assert!(said.contains("<N>"), "{said}");
}

/// What is meant is said, and what is not near to anything gets no tip.
#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn each_misspelling_gets_the_right_tip_or_none() {
    const NONE: &str = "";
    let place = Place::new();
    for (typed, tip) in [
        ("mout", "'mount'"),
        ("mont", "'mount'"),
        ("stauts", "'status'"),
        ("unmout", "'unmount'"),
        ("delte", "'delete'"),
        ("hisotry", "'history'"),
        ("remove", "'rm'"),
        ("show", "'get'"),
        ("completoin", "'completion'"),
        ("login", NONE),
        ("version x", NONE),
        ("stop", NONE),
        ("search", NONE),
        ("edit", NONE),
        ("generat", NONE),
        ("keeper", NONE),
        ("worker", NONE),
        ("remount", NONE),
        ("mv", NONE),
        ("cp", NONE),
        ("tree", NONE),
        ("mount --key-file f /m", "--api-key-file FILE"),
        ("mount --key k /m", "--api-key-file FILE"),
        ("mount --api-key=k /m", "--api-key-file FILE"),
        ("mount --API_KEY=k /m", "--api-key-file FILE"),
        ("mount --token k /m", "--api-key-file FILE"),
        ("get --token k a", "--api-key-file FILE"),
        ("mount --url u /m", "--api-url URL"),
        ("mount --debug /m", "-v"),
        ("mount --force /m", NONE),
        ("mount --profile p /m", NONE),
        ("mount --foregroud /m", "--foreground"),
        ("mount --read-onyl /m", "--read-only"),
        ("mount --nonempt /m", NONE),
        ("status --jsn", "--json"),
        ("rm --yes a", "--force"),
        ("serve --port 1", "--listen ADDR"),
        ("get --revision 3 a", "--version N"),
        ("mount -x /m", NONE),
        ("key creat", "'create'"),
        ("mount --embedded d /m", "--embedded=DIR"),
        ("mount /m --embedded d", "--embedded=DIR"),
        ("mount /m --wait 60s", "--wait=TIME"),
        ("get a --embedded d", "--embedded=DIR"),
        ("restore a 1 2", "NAME and N"),
        ("get a 3", "takes one NAME"),
        ("unmount a b", "takes one MOUNTPOINT"),
        ("doctor a", "takes no argument"),
    ] {
        let said = run(&mut place.vaultfs(typed.split(' '))).fails(2);
        match tip {
            // Nor does the usage guess an option.
            NONE => assert!(
                !said.contains("tip:") && !said.contains("[OPTIONS] --") && !said.contains("mount --"),
                "{typed}: {said}"
            ),
            tip => assert!(said.contains("tip:") && said.contains(tip), "{typed}: {said}"),
        }
    }
}

fn said(args: &[&str]) -> String {
    run(&mut Place::new().vaultfs(args)).fails(2)
}

#[test]
fn values_that_no_option_takes_are_not_repeated() {
    for args in [
        &["put", "NAME", "SECRET"][..],
        &["put", "NAME", "--", "SECRET"],
        &["put", "NAME", "--value=SECRET"],
        &["put", "NAME", "-pSECRET"],
        &["get", "NAME", "SECRET"],
        &["restore", "NAME", "SECRET"],
        &["mount", "/m", "--read-only=SECRET"],
        &["mount", "/m", "--api-key=SECRET"],
        &["mount", "/m", "--password", "SECRET"],
        &["key", "create", "SECRET"],
        &["mount", "--embedded", "SECRET", "/m"],
        &["mount", "/m", "--sk_SECRET"],
        &["sk_SECRET"],
        &["put", "a", "--format", "SECRET1"],
        &["SECRET123"],
        &["get", "--SECRET1", "NAME"],
    ] {
        let said = said(args);
        assert!(!said.contains("SECRET") && said.contains("--help"), "{said}");
    }
    assert!(said(&["put", "NAME", "SECRET"]).contains("read from standard input"));
    assert!(said(&["mount", "/m", "--refresh=5"]).contains("'5'"), "a value that an option takes");
    assert!(said(&["put", "a", "--format", "jsn"]).contains("'json'?"));
}

#[test]
fn what_was_given_cannot_command_a_terminal() {
    for given in ["--x\u{1b}[2J\nvaultfs: fine", "-\u{9b}\n", "mou\u{1b}[2J\nt", "--json=\u{1b}\n"] {
        for args in [
            &["status", "m", given][..],
            &[given],
            &["mount", "/m", "--api", given],
            &["put", "a", "--format", given],
        ] {
            let said = said(args);
            assert!(
                !said.contains(['\u{1b}', '\u{9b}']) && !said.contains("\nvaultfs: fine"),
                "{args:?}: {said:?}"
            );
        }
    }
}
