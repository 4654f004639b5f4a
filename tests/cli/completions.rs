//! What shells offer at a Tab: the shells themselves are asked, at a terminal where they need one.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::common::{self, COMMAND_TIME, Mount, Place, run, signal, wait};
use crate::support::pty::Terminal;

/// A shell on this machine, or none, which is said.
fn is_here(shell: &str) -> bool {
    let here = Command::new(shell).args(["-c", "true"]).status().is_ok_and(|status| status.success());
    if !here {
        eprintln!("SKIPPED: {shell} is not installed");
    }
    here
}

/// The words as `vaultfs complete-words` offers them for a line.
fn offered(place: &Place, dir: &Path, words: &[&str]) -> Vec<String> {
    let mut command = place.vaultfs(["complete-words", "--"]);
    let out = run(command.args(words).current_dir(dir)).ok();
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("words"), "{out}");
    lines.map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

/// The same for a line with words that blanks part; `Files` and `Directories` as the kind says.
fn words(place: &Place, line: &str) -> Vec<String> {
    let out = run(place.vaultfs(["complete-words", "--"]).args(line.split(' '))).ok();
    match out.lines().next() {
        Some("words") => offered(place, place.dir.path(), &line.split(' ').collect::<Vec<_>>()),
        kind => vec![kind.unwrap_or_default().to_owned()],
    }
}

#[test]
fn commands_options_and_values_are_offered() {
    let place = Place::new();
    let is = |line: &str, offered: &[&str]| assert_eq!(words(&place, line), offered, "{line}");
    is("mou", &["mount"]);
    is("mount --refr", &["--refresh"]);
    is("mount --api k", &["kv"]);
    is("mount --api=k", &["--api=kv"]);
    is("key enc", &["encrypt"]);
    is("completion z", &["zsh"]);
    is("mount --embedded --no-d", &["--no-delete"]);
    is("mount -o allow_o", &["allow_other"]);
    is("mount -o ro,refr", &["ro,refresh"]);
    is("put a --fo", &["--format"]);
    assert!(words(&place, "mount --uid ro").contains(&"root".to_owned()));
    assert!(words(&place, "").contains(&"completion".to_owned()));
    for line in ["mount ", "mount --embedded a", "mount -- a", "serve --data ", "mount -vf "] {
        is(line, &["dirs"]);
    }
    for line in ["mount --api-key-file ", "mount --log=", "key encrypt --data-key-file x"] {
        is(line, &["files"]);
    }
    for line in ["mount --refresh ", "mount /m x", "doctor x", "restore a ", "get a b"] {
        is(line, &[]);
    }
    for line in ["", "gen", "comple", "mount --", "mount --non", "mount --d", "mount --r"] {
        for hidden in ["generate", "complete-words", "--nonempty", "--fsname", "--daemon", "--ro"] {
            assert!(!words(&place, line).contains(&hidden.to_owned()), "{line}: {hidden}");
        }
    }
}

#[test]
fn what_bash_parts_is_one_word() {
    let place = Place::new();
    for (parted, answer) in [
        (&["mount", "--api", "=", "k"][..], &["words", "kv"][..]),
        (&["mount", "--api", "="], &["words", "auto", "object", "kv"]),
        (&["mount", "--log", "=", "/x"], &["files"]),
        (&["mount", "'--no-del"], &["words", "--no-delete"]),
    ] {
        let out = run(place.vaultfs(["complete-words", "--bash", "--"]).args(parted)).ok();
        let offered: Vec<_> = out.lines().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(offered, answer, "{parted:?}");
    }
}

/// A shell with our completions, in `dir`; what `vaultfs` would get is shown instead of run.
fn shell(place: &Place, shell: &str, dir: &Path) -> Terminal {
    let bin = Path::new(common::VAULTFS).parent().unwrap().display().to_string();
    let script = place.dir.path().join(format!("completion.{shell}"));
    fs::write(&script, run(&mut place.vaultfs(["completion", shell])).ok()).unwrap();
    let (args, begin) = match shell {
        "bash" => (&["--norc", "--noprofile", "-i"][..], ""),
        _ => (&["-f", "-i"][..], "autoload -Uz compinit; compinit -u -D; unsetopt beep; "),
    };
    let mut command = Command::new(shell);
    place.isolate(&mut command);
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    command.args(args).current_dir(dir).env("PATH", path).env("HISTFILE", "");
    let mut terminal = Terminal::run(&mut command);
    terminal.type_in(&format!(
        "{begin}. {}; vaultfs() {{ printf 'G''OT<%s>' \"$@\"; echo; }}; PS1='re''ady> '\n",
        script.display()
    ));
    terminal.expect("ready> ");
    terminal
}

/// Types a line with Tabs in it, and sees what the command gets.
#[track_caller]
fn gets(terminal: &mut Terminal, line: &str, words: &[&str]) {
    terminal.type_in(&format!("{line}\n"));
    let got: String = words.iter().map(|word| format!("GOT<{word}>")).collect();
    let got = format!("{got}\r\n");
    let is_next = || terminal.seen().rsplit_once(&got).is_some_and(|(_, rest)| rest.contains("ready> "));
    let next = wait(|| is_next().then_some(()), COMMAND_TIME);
    assert!(next.is_some(), "{got:?}: {}", terminal.seen());
}

/// No shell shows it, and none runs it.
const UNSEEN: &str = "unseen \u{1b}[2J\n$(touch pwned)";
const HOSTILE: &str = "it's $(touch pwned) `touch pwned`; x";

fn with_objects() -> Mount {
    let mount = Mount::start();
    mount.sh("mkdir -p db; printf 1 > db/password; printf 1 > 'db/a b'; printf 1 > note");
    fs::write(mount.path(HOSTILE), "1").unwrap();
    run(mount.vaultfs(["put", UNSEEN, &mount.embedded()]).stdin(std::process::Stdio::null())).ok();
    mount
}

fn at_a_terminal(name: &str) {
    if !is_here(name) {
        return;
    }
    let mount = with_objects();
    let mnt = mount.mnt().to_str().unwrap();
    let mut terminal = shell(mount.place(), name, mount.mnt());
    gets(&mut terminal, "vaultfs unm\t", &["unmount"]);
    gets(&mut terminal, &format!("vaultfs unmount {}\t", &mnt[..mnt.len() - 1]), &["unmount", mnt]);
    gets(&mut terminal, "vaultfs mount --refr\t5s", &["mount", "--refresh", "5s"]);
    gets(&mut terminal, "vaultfs mount --api=k\t", &["mount", "--api=kv"]);
    gets(&mut terminal, "vaultfs mount -o ro,allow_o\t", &["mount", "-o", "ro,allow_other"]);
    gets(&mut terminal, "vaultfs get no\t", &["get", "note"]);
    gets(&mut terminal, "vaultfs cat d\tpa\t", &["cat", "db/password"]);
    gets(&mut terminal, "vaultfs rm -f db/a\t", &["rm", "-f", "db/a b"]);
    gets(&mut terminal, "vaultfs log it\t", &["log", HOSTILE]);
    gets(
        &mut terminal,
        "vaultfs mount --api-key-file /etc/passw\t",
        &["mount", "--api-key-file", "/etc/passwd"],
    );
    gets(&mut terminal, "vaultfs mount /usr/sha\tx", &["mount", "/usr/share/x"]);
    terminal.type_in("exit\n");
    terminal.ends();
    assert!(!mount.path("pwned").exists(), "a name was run");
    mount.unmount();
}

#[test]
fn bash_completes_words_values_mounts_and_names() {
    at_a_terminal("bash");
}

#[test]
fn zsh_completes_words_values_mounts_and_names() {
    at_a_terminal("zsh");
}

#[test]
fn fish_completes_words_values_mounts_and_names() {
    if !is_here("fish") {
        return;
    }
    let mount = with_objects();
    let script = mount.place().dir.path().join("vaultfs.fish");
    fs::write(&script, run(&mut mount.vaultfs(["completion", "fish"])).ok()).unwrap();
    let bin = Path::new(common::VAULTFS).parent().unwrap().display().to_string();
    let fish = |line: &str| {
        let line = format!("source {}; complete -C \"vaultfs {line}\"", script.display());
        let mut shell = Command::new("fish");
        mount.place().isolate(&mut shell);
        shell.env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()));
        let out = run(shell.args(["--no-config", "-c", &line]).current_dir(mount.mnt())).ok();
        out.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mnt = mount.mnt().to_str().unwrap();
    assert_eq!(fish("unm"), ["unmount"]);
    assert!(fish("unmount /").contains(&mnt.to_owned()));
    assert_eq!(fish("mount --refr"), ["--refresh"]);
    assert_eq!(fish("mount --api=k"), ["--api=kv"]);
    assert_eq!(fish("get no"), ["note"]);
    assert_eq!(fish("get db/"), ["db/a b", "db/password"]);
    assert_eq!(fish("log it"), [HOSTILE]);
    assert_eq!(fish("mount --api-key-file /etc/passw")[0], "/etc/passwd");
    assert_eq!(fish("mount /usr/sha"), ["/usr/share/"]);
    assert!(!mount.path("pwned").exists());
    mount.unmount();
}

#[test]
fn a_tab_costs_the_vault_no_more_than_one_listing() {
    let mount = with_objects();
    let names = || offered(mount.place(), mount.mnt(), &["get", "db/"]);
    assert_eq!(names().len(), 2);
    let before = mount.requests();
    assert_eq!(names().len(), 2);
    assert_eq!(offered(mount.place(), mount.mnt(), &["rm", "note", "d"]), ["db/"]);
    assert!(offered(mount.place(), mount.mnt(), &["get", "uns"]).is_empty(), "it would command a terminal");
    assert_eq!(mount.requests(), before);
    mount.unmount();
}

#[test]
fn names_are_those_of_the_mount_that_is_meant() {
    let mount = with_objects();
    let (place, here) = (mount.place(), mount.mnt());
    let named = format!("--mount={}", here.display());
    assert_eq!(offered(place, Path::new("/"), &["get", &named, "no"]), ["note"]);
    for other in ["--embedded=/nowhere", "--api-url"] {
        assert!(offered(place, here, &["get", other, "", "no"]).is_empty(), "another vault");
    }
    for nothing in ["../", "/etc/", ".", "db/../", "db//"] {
        assert!(offered(place, here, &["get", nothing]).iter().all(|name| name.starts_with(nothing)));
    }
    // Written, and not stored yet.
    let mut file = File::create(mount.path("unsaved")).unwrap();
    file.write_all(b"x").unwrap();
    for option in ["--save", "--discard"] {
        assert_eq!(offered(place, here, &["pending", option, "u"]), ["unsaved"], "{option}");
    }
    drop(file);
    mount.unmount();
}

#[test]
fn a_mount_that_does_not_answer_offers_nothing_and_keeps_no_shell_waiting() {
    let mount = with_objects();
    let (keeper, worker) = mount.pids();
    [keeper, worker].iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
    let begun = Instant::now();
    assert!(
        offered(mount.place(), Path::new("/"), &["get", &format!("--mount={}", mount.mnt().display()), ""])
            .is_empty()
    );
    let mounts = offered(mount.place(), Path::new("/"), &["unmount", "/"]);
    let waited = begun.elapsed();
    [worker, keeper].iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
    assert!(mounts.contains(&mount.mnt().to_str().unwrap().to_owned()), "{mounts:?}");
    assert!(waited < Duration::from_secs(30), "{waited:?}: it would have waited for ever");
    mount.unmount();
}
