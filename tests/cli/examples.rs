//! The examples of help, which are those of the man pages, typed as they stand, in their order.

use std::fs;
use std::process::Command;

use crate::support::common::{self, Place, Ran, run};

/// The lines of the examples of `vaultfs COMMAND --help`, with what continues them.
fn examples(place: &Place, command: &str) -> Vec<String> {
    let words = command.split(' ').filter(|word| !word.is_empty()).chain(["--help"]);
    let help = run(place.vaultfs(words).env("COLUMNS", "500")).ok();
    let after = help.lines().skip_while(|line| !line.starts_with("Example"));
    let lines: Vec<String> =
        after.skip(1).take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect();
    lines.join("\n").replace("\\\n", "").lines().map(str::to_owned).collect()
}

/// These need what no test has: a vault in the internet, an engine, a port that may be another's,
/// an unsaved write, the start file of a shell, or that no other test has a mount.
fn needs_more(line: &str) -> bool {
    line.contains("vault.example.com")
        || line.contains("docker")
        || line.contains("volume-plugin")
        || line.contains("127.0.0.1")
        || line == "vaultfs serve --data ~/vault"
        || line.contains("--save")
        || line.contains("fish | source")
        || line.contains("completion zsh")
        || line == "vaultfs pending"
}

#[test]
fn examples_work_as_they_are_typed() {
    let mut place = Place::new();
    let home = fs::canonicalize(place.dir.path()).unwrap();
    place.mnt = home.join("secrets");
    let bin = std::path::Path::new(common::VAULTFS).parent().unwrap().display().to_string();
    let sh = |line: &str| -> Ran {
        let mut shell = Command::new("bash");
        place.isolate(&mut shell);
        shell
            .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
            .env("PASSWORD", "correct horse");
        // Other tests have mounts, too: without one of those it would be this vault.
        let line = format!(
            "vaultfs() {{ case $1 in ls|get|put|rm|log|restore|key) command vaultfs \"$@\" --embedded ;; *) command vaultfs \
             \"$@\" ;; esac; }}; {line}"
        );
        run(shell.args(["-c", &line]).current_dir(&home))
    };
    let all = |command: &str, codes: &[i32]| {
        let lines = examples(&place, command);
        assert!(!lines.is_empty(), "{command}");
        for line in lines.iter().filter(|line| !needs_more(line)) {
            let ran = sh(line);
            assert!(ran.code.is_some_and(|code| codes.contains(&code)), "{command}: {line}: {ran:?}");
        }
    };
    // The doctor's code is about this machine.
    all("", &[0, 1]);
    assert_eq!(sh("vaultfs get password").ok(), "s3cret", "it was stored");
    all("mount", &[0]);
    sh("vaultfs unmount ~/app-secrets").ok();
    sh("printf pem > key.pem; printf plain > plain; printf x | vaultfs put db/user").ok();
    for password in ["1", "2"] {
        sh(&format!("printf {password} | vaultfs put db/password")).ok();
    }
    for command in ["put", "ls", "get", "log", "restore", "pending", "key", "key encrypt", "key create", "rm"]
    {
        all(command, &[0]);
    }
    assert_eq!(fs::read(home.join("old")).unwrap(), b"correct horse");
    all("completion", &[0]);
    // Of the mounts of other tests, too.
    all("status", &[0, 1]);
    // As the line before it would, which serves until it is ended.
    sh("printf x | command vaultfs put --embedded=$HOME/vault a").ok();
    all("serve", &[0]);
    all("doctor", &[0, 1]);
    assert_eq!(examples(&place, "unmount")[0], "vaultfs unmount ~/secrets");
    sh(&examples(&place, "unmount")[0]).ok();
    assert!(fs::read_dir(&place.mnt).unwrap().next().is_none(), "it is unmounted");
}

/// A command that is new has examples, too.
#[test]
fn each_command_has_examples() {
    let place = Place::new();
    let help = run(&mut place.vaultfs(["--help"])).ok();
    let commands =
        help.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| line.starts_with("  "));
    let named = commands.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    let names: Vec<&str> =
        named.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help").collect();
    assert!(names.len() > 12, "{names:?}");
    for name in names {
        assert!(!examples(&place, name).is_empty(), "{name}");
    }
}
