//! What a person at a terminal sees and is asked, and that scripts see nothing of it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::common::{Mount, Place, run, signal, until};
use crate::support::home::{Home, feed};
use crate::support::pty::Terminal;

fn command(home: &Home, args: &[&str]) -> Command {
    let mut command = home.command(args);
    command.env_remove("RUST_LOG").arg(format!("--embedded={}", home.vault().display()));
    command
}

fn at_terminal(home: &Home, args: &[&str]) -> Terminal {
    Terminal::run(&mut command(home, args))
}

/// `put a` that waits for the value.
fn put(home: &Home) -> Terminal {
    let terminal = at_terminal(home, &["put", "a"]);
    terminal.expect("not part of the value");
    assert!(!terminal.echoes());
    terminal
}

#[test]
fn a_typed_value_is_not_shown_and_has_no_last_enter() {
    let home = Home::new();
    for (version, (typed, stored)) in [
        ("hunter2\n\u{4}", "hunter2"),
        ("line 1\nline 2\n\u{4}", "line 1\nline 2"),
        ("ends with an empty line\n\n\u{4}", "ends with an empty line\n"),
        ("without Enter\u{4}", "without Enter"),
        ("two\nlines\u{4}", "two\nlines"),
        ("mistyppp\u{7f}\u{7f}ed\n\u{4}", "mistyped"),
        (" grüße \n\u{4}", " grüße "),
    ]
    .into_iter()
    .enumerate()
    {
        let mut terminal = put(&home);
        terminal.type_in(typed);
        until("it ended", || terminal.child.try_wait().unwrap().is_some());
        assert!(terminal.echoes(), "as before");
        let (status, seen) = terminal.ends();
        assert!(
            status.success() && seen.contains(&format!("stored a, version {}\r\n", version + 1)),
            "{seen}"
        );
        for word in typed.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 5) {
            assert!(!seen.contains(word), "{seen}");
        }
        assert_eq!(home.text(&["get", "a"]), stored);
    }
    let mut terminal = Terminal::spoil(&mut command(&home, &["put", "a"]));
    terminal.expect("not part of the value");
    terminal.type_in("an exact value, with x\nin it\n\u{4}");
    let (status, seen) = terminal.ends();
    assert!(status.success() && !seen.contains("exact"), "{seen}");
    assert_eq!(home.text(&["get", "a"]), "an exact value, with x\nin it");
    assert_eq!(home.text(&["restore", "a", "7"]), "");
    // The same value again is no version.
    let mut terminal = put(&home);
    terminal.type_in(" grüße \n\u{4}");
    assert!(terminal.ends().1.contains("no new version is stored"));
}

#[test]
fn what_a_terminal_does_not_give_whole_is_not_stored() {
    let home = Home::new();
    let longest = "x".repeat(4094);
    let mut terminal = put(&home);
    terminal.type_in(&format!("{longest}\n\u{4}"));
    assert!(terminal.ends().0.success());
    assert_eq!(home.text(&["get", "a"]), longest);
    for typed in [format!("{longest}yz\n"), format!("short\n{}\nmore\n", "z".repeat(9000))] {
        let mut terminal = put(&home);
        terminal.type_in(&typed);
        until("it ended", || terminal.child.try_wait().unwrap().is_some());
        assert!(terminal.echoes());
        let (status, seen) = terminal.ends();
        assert!(status.code() == Some(1) && seen.contains("NAME < FILE"), "{status:?} {seen}");
    }
    for nothing in ["\u{4}", "\n\u{4}"] {
        let mut terminal = put(&home);
        terminal.type_in(nothing);
        let (status, seen) = terminal.ends();
        assert!(status.code() == Some(1) && seen.contains("nothing is stored"), "{seen}");
    }
    assert_eq!(home.text(&["log", "a"]).lines().count(), 1);
}

#[test]
fn whatever_ends_a_hidden_prompt_shows_typing_again_and_leaves_no_part_of_the_value() {
    let home = Home::new();
    for (keys, end) in [
        ("\u{3}", Signal::SIGINT),
        ("\u{1c}", Signal::SIGQUIT),
        ("\u{1a}", Signal::SIGINT),
        ("", Signal::SIGTERM),
        ("", Signal::SIGHUP),
    ] {
        let mut terminal = put(&home);
        terminal.type_in("first line\nhalf of a sec");
        if keys.is_empty() {
            signal(terminal.child.id() as i32, end);
        } else {
            terminal.type_in(keys);
        }
        until("it ended", || terminal.child.try_wait().unwrap().is_some());
        assert!(terminal.echoes(), "{end}");
        assert_eq!(terminal.left(), 0, "{end}");
        assert_eq!(terminal.ends().0.signal(), Some(end as i32), "{end}");
    }
    assert_eq!(home.text(&["ls"]), "");
}

#[test]
fn a_pipe_is_stored_as_it_is_at_a_terminal_too() {
    let home = Home::new();
    for value in ["x\n", "", "\n\n", "a\u{4}b\r\n\u{3}", "no newline"] {
        home.ok(&["put", "piped"], value.as_bytes());
        assert_eq!(home.text(&["get", "piped"]), value);
        let mut terminal = Terminal::with(&mut command(&home, &["put", "a"]), |command| {
            command.stdin(Stdio::piped());
        });
        std::io::Write::write_all(&mut terminal.child.stdin.take().unwrap(), value.as_bytes()).unwrap();
        let (status, seen) = terminal.ends();
        assert!(status.success() && seen.contains("stored a, version"), "{seen}");
        assert_eq!(home.text(&["get", "a"]), value);
    }
}

#[test]
fn a_person_is_asked_before_a_deletion() {
    let home = Home::new();
    let put = |name: &str| (1..=3).for_each(|n| drop(home.ok(&["put", name], n.to_string().as_bytes())));
    put("a");
    for no in ["n\n", "\n", "\u{4}", "yesterday\n"] {
        let mut terminal = at_terminal(&home, &["rm", "a"]);
        terminal.expect("delete a and its 3 versions for good? [y/N]");
        terminal.type_in(no);
        let (status, seen) = terminal.ends();
        assert!(status.code() == Some(1) && seen.contains("a is not deleted"), "{seen}");
    }
    assert_eq!(home.text(&["ls"]), "a\n");
    for yes in ["y\n", "YES\n"] {
        put("a");
        let mut terminal = at_terminal(&home, &["rm", "a"]);
        terminal.expect("[y/N]");
        terminal.type_in(yes);
        let (status, seen) = terminal.ends();
        assert!(status.success() && seen.contains("deleted a and its"), "{seen}");
        assert_eq!(home.text(&["ls"]), "");
    }
    for force in ["-f", "--force"] {
        put("a");
        let (status, seen) = at_terminal(&home, &["rm", force, "a"]).ends();
        assert!(status.success() && seen.contains("deleted a") && !seen.contains('?'), "{seen}");
    }
    let (status, seen) = at_terminal(&home, &["rm", "none"]).ends();
    assert!(status.code() == Some(5) && !seen.contains('?'), "{seen}");
    // Nobody sees a question.
    put("a");
    let terminal = Terminal::with(&mut command(&home, &["rm", "a"]), |command| {
        command.stdin(Stdio::null());
    });
    assert!(terminal.ends().0.success());
    put("a");
    let terminal = Terminal::with(&mut command(&home, &["rm", "a"]), |command| {
        command.stderr(Stdio::null());
    });
    assert!(terminal.ends().0.success());
    assert_eq!(home.text(&["ls"]), "");
}

#[test]
fn success_is_one_line_at_a_terminal_and_nothing_in_a_script() {
    let mut place = Place::new();
    place.mnt = std::fs::canonicalize(&place.mnt).unwrap();
    let mnt = place.mnt.to_str().unwrap().to_owned();
    let (status, seen) = Terminal::run(&mut place.mount_command(&[])).ends();
    assert!(status.success() && seen.ends_with(&format!("mounted {mnt}\r\n")), "{seen}");
    let mount = Mount::adopt(place);
    let object = |args: &[&str]| {
        let mut command = mount.vaultfs(args);
        command.arg(mount.embedded());
        command
    };
    std::fs::write(mount.path("a"), "1").unwrap();
    std::fs::write(mount.path("a"), "2").unwrap();
    let (_, seen) = Terminal::run(&mut object(&["restore", "a", "1"])).ends();
    assert_eq!(seen, "restored version 1 of a, version 3\r\n");
    let (_, seen) = Terminal::run(mount.vaultfs(["unmount"]).arg(&mnt)).ends();
    assert_eq!(seen, format!("unmounted {mnt}\r\n"));
    let place = mount.unmount_done();
    // In a script, and where one of the two is a file.
    let silent = |command: &mut Command| {
        let ran = run(command);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""), "{command:?}");
    };
    silent(&mut place.mount_command(&[]));
    let mount = Mount::adopt(place);
    silent(mount.vaultfs(["restore", "a", "2"]).arg(mount.embedded()));
    let (_, seen) = Terminal::with(mount.vaultfs(["restore", "a", "1"]).arg(mount.embedded()), |command| {
        command.stdout(Stdio::null());
    })
    .ends();
    assert_eq!(seen, "");
    let put = feed(
        mount.vaultfs(["put", "b"]).arg(mount.embedded()).stdout(Stdio::piped()).stderr(Stdio::piped()),
        b"x",
    );
    assert!(put.stdout.is_empty() && put.stderr.is_empty(), "{put:?}");
    silent(mount.vaultfs(["rm", "b"]).arg(mount.embedded()));
    silent(mount.vaultfs(["unmount"]).arg(mount.mnt()));
    mount.unmount_done();
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let place = Place::new();
    let doctor = |change: &dyn Fn(&mut Command)| {
        let mut command = place.vaultfs(["doctor"]);
        Terminal::with(&mut command, change).ends().1
    };
    let seen = doctor(&|_| {});
    assert!(seen.contains("\u{1b}[32mok") && seen.contains("\u{1b}[0m"), "{seen}");
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let seen = doctor(&|command| _ = command.env(variable, value));
        assert!(seen.contains("ok ") && !seen.contains('\u{1b}'), "{variable}: {seen}");
    }
    assert!(!run(&mut place.vaultfs(["doctor"])).out.contains('\u{1b}'));
    // A machine with a problem and a warning, and nothing that contradicts them.
    let root = place.dir.path().join("root");
    for (path, text) in [("usr/bin/fusermount3", ""), ("proc/sys/kernel/osrelease", "5.15.0\n")] {
        std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        std::fs::write(root.join(path), text).unwrap();
    }
    let set_uid = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(root.join("usr/bin/fusermount3"), set_uid).unwrap();
    let broken = |no_colour: &str| {
        let mut command = place.vaultfs(["doctor", "--root", root.to_str().unwrap()]);
        Terminal::with(&mut command, |command| _ = command.env("NO_COLOR", no_colour)).ends().1
    };
    let seen = broken("");
    assert!(seen.contains("\u{1b}[1;31mPROBLEM\u{1b}[0m  device "), "{seen}");
    assert!(seen.contains("\u{1b}[33mWARNING\u{1b}[0m  kernel "), "{seen}");
    assert!(seen.contains("fusermount3 is installed") && !seen.contains("can mount"), "{seen}");
    assert!(!broken("1").contains('\u{1b}'));
    let mount = Mount::at(place, &[]);
    let (_, seen) = Terminal::run(mount.vaultfs(["status"]).arg(mount.mnt())).ends();
    assert!(seen.starts_with(&format!("{}  \u{1b}[32mok\u{1b}[0m\r\n", mount.mnt().display())), "{seen}");
    assert_eq!(seen.matches('\u{1b}').count(), 2, "{seen}");
    mount.unmount();
}
