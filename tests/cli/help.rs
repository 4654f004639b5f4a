//! What people read and type: help, suggestions, completions, man pages, status, metrics, doctor.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::common::{self, Mount, Place, Ran, run};

fn vaultfs(place: &Place, args: &[&str]) -> Ran {
    run(&mut place.vaultfs(args))
}

#[test]
fn help_teaches_and_hides_what_is_internal() {
    let place = Place::new();
    let top = vaultfs(&place, &["--help"]).ok();
    assert!(top.contains("Examples:") && top.contains("vaultfs mount --embedded ~/secrets"), "{top}");
    for internal in ["keeper", "worker", "generate"] {
        assert!(!top.contains(internal), "{internal}");
    }
    let mount = vaultfs(&place, &["mount", "--help"]).ok();
    for group in [
        "Which vault:",
        "What may be done:",
        "How fresh:",
        "Limits:",
        "Who may enter:",
        "The process:",
        "Examples:",
    ] {
        assert!(mount.contains(group), "{group}");
    }
    // What follows the options of the vault is under headings of its own.
    let vault =
        mount.split("Which vault:").nth(1).and_then(|rest| rest.split("What may be done:").next()).unwrap();
    for other in ["--timeout", "--max-size", "--in-place", "--wait", "--on-change", "--audit", "MOUNTPOINT"] {
        assert!(!vault.split("Limits:").next().unwrap().contains(other), "{other}");
    }
}

#[test]
fn typos_get_a_suggestion() {
    let place = Place::new();
    assert!(vaultfs(&place, &["mout"]).fails(2).contains("'mount'"));
    assert!(vaultfs(&place, &["status", "--jsn"]).fails(2).contains("--json"));
    assert!(
        vaultfs(&place, &["mount", "--embedded", "-o", "raed_only", "/x"]).fails(2).contains("read_only?")
    );
}

#[test]
fn what_is_given_to_no_option_is_not_repeated() {
    let place = Place::new();
    for args in [
        &["put", "NAME", "SECRET"][..],
        &["mount", "--embedded", "--api-key=SECRET", "/x"],
        &["mount", "--embedded", "-o", "api_key=SECRET", "/x"],
        &["mount", "--embedded", "-o", "ro=SECRET", "/x"],
        &["mount", "--api-key-file", "sk_SECRET", "/x"],
    ] {
        let said = vaultfs(&place, args).fails(2);
        assert!(!said.contains("SECRET"), "{said}");
    }
    // A question, not a mistake: whatever is missing beside it.
    for args in [&["mount", "-o", "help"][..], &["mount", "--embedded", "-o", "ro,help", "/x"]] {
        let list = vaultfs(&place, args).ok();
        assert!(list.contains("allow_other") && list.contains("refresh=TIME"), "{list}");
    }
}

#[test]
fn no_colour_where_none_is_wanted() {
    let place = Place::new();
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let line = format!("{} mount --help; {0} mnt", common::VAULTFS);
        let mut terminal = Command::new("script");
        place.isolate(&mut terminal);
        // Under CI=… the library colours a terminal of any kind: a build service renders it.
        terminal.env_remove("CI").env_remove("CLICOLOR").env_remove("CLICOLOR_FORCE");
        let said = run(terminal.args(["-qec", &line, "/dev/null"]).env(variable, value)).out;
        assert!(said.contains("Usage") && !said.contains('\u{1b}'), "{variable}: {said:?}");
    }
}

#[test]
fn a_long_listing_says_on_a_terminal_how_far_it_is() {
    let mount = Mount::start();
    mount.sh("for n in $(seq 101); do echo $n > name-$n; done");
    let ls = |terminal: bool| {
        let line = format!(
            "{} ls {} > {}/names",
            common::VAULTFS,
            mount.embedded(),
            mount.place().dir.path().display()
        );
        let mut command = Command::new(if terminal { "script" } else { "sh" });
        mount.place().isolate(&mut command);
        let said = run(if terminal {
            command.args(["-qec", &line, "/dev/null"])
        } else {
            command.args(["-c", &line])
        });
        let names = fs::read_to_string(mount.place().dir.path().join("names")).unwrap();
        assert!(names.lines().count() == 101 && !names.contains('\u{1b}'), "data alone: {names}");
        said.out + &said.err
    };
    // Written over, and taken away at the end.
    assert_eq!(ls(true), "\r\u{1b}[K100 names\r\u{1b}[K");
    assert_eq!(ls(false), "");
}

#[test]
fn man_finds_nothing_wrong_with_its_pages() {
    let place = Place::new();
    let dir = place.dir.path();
    let line = format!("umask 022; exec {} generate man {}", common::VAULTFS, dir.display());
    let mut generate = Command::new("sh");
    place.isolate(&mut generate);
    run(generate.args(["-c", &line])).ok();
    let pages = fs::read_dir(dir).unwrap().flatten().map(|file| file.path());
    let pages: Vec<_> = pages
        .filter(|path| path.extension().is_some_and(|e| ["1", "5", "8"].iter().any(|n| e == *n)))
        .collect();
    assert!(pages.len() > 15, "{pages:?}");
    let get = fs::read_to_string(dir.join("vaultfs-get.1")).unwrap();
    assert!(get.contains("Also called \\fBcat\\fR and \\fBread\\fR."), "{get}");
    for page in pages {
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8"])
            .arg(&page)
            .env("MANWIDTH", "80")
            .env("LC_ALL", "C.UTF-8");
        let said = run(&mut man);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{}", page.display());
        assert!(fs::read_to_string(&page).unwrap().contains(".SH NAME"), "{}", page.display());
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&page).unwrap()) & 0o777;
        assert_eq!(mode, 0o644, "as files that everybody reads: {}", page.display());
    }
}

#[test]
fn status_says_first_whether_all_is_well() {
    let mount = Mount::start();
    fs::write(mount.path("a"), "canary-value").unwrap();
    let said = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
    assert_eq!(said.lines().next().unwrap(), format!("{}  ok", mount.mnt().display()));
    assert!(said.contains("  unsaved    nothing\n"), "{said}");
}

#[test]
fn metrics_are_numbers_and_hold_no_name_and_no_value() {
    let mount = Mount::start();
    fs::write(mount.path("canary-name"), "canary-value").unwrap();
    assert!(std::os::unix::fs::symlink("canary-name", mount.path("b")).is_err());
    let text = fs::read_to_string(mount.path(".vaultfs/metrics")).unwrap();
    assert!(
        text.contains("\nvaultfs_vault_up 1\n")
            && text.contains("vaultfs_failed_operations_total{errno=\"EPERM\"} 1"),
        "{text}"
    );
    let own = |name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.trim().parse::<u32>().unwrap()
    };
    assert_eq!(own("vaultfs_worker_restarts_total "), 0);
    let memory = mount.status()["memory"].clone();
    for process in ["worker", "keeper"] {
        let locked = u32::from(memory[process] == "locked");
        assert_eq!(own(&format!("vaultfs_memory_locked{{process=\"{process}\"}} ")), locked, "{memory}");
    }
    assert!(!text.contains("canary"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("vaultfs_") && value.parse::<f64>().is_ok(), "{line}");
    }
    let (_, worker) = mount.pids();
    common::signal(worker, nix::sys::signal::Signal::SIGKILL);
    let replaced = || fs::read_to_string(mount.path(".vaultfs/metrics")).unwrap_or_default();
    common::until("the metrics count it", || replaced().contains("\nvaultfs_worker_restarts_total 1\n"));
    let status = fs::read_to_string(mount.path(".vaultfs/status.json")).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["processes"]["restarts"], 1, "{status}");
}

#[test]
fn the_log_says_as_much_as_was_asked_for_and_no_value() {
    let log = |verbosity: &[&str]| {
        let mount = Mount::with(verbosity);
        fs::write(mount.path("name-x"), "canary-value").unwrap();
        assert_eq!(fs::read_to_string(mount.path("name-x")).unwrap(), "canary-value");
        assert!(std::os::unix::fs::symlink("name-x", mount.path("b")).is_err());
        let log = mount.log();
        assert!(
            log.contains("serving") && log.contains("operation=\"symlink\" name=\"b\" errno=EPERM"),
            "{log}"
        );
        assert!(!log.contains("canary"), "{log}");
        log
    };
    assert!(!log(&[]).contains("asked") && !log(&["-v"]).contains("asked"));
    let all = log(&["-vv"]);
    for part in ["operation=\"lookup\"", "operation=\"create\"", "name=\"name-x\"", "pid="] {
        assert!(all.lines().any(|line| line.contains("asked") && line.contains(part)), "{part}: {all}");
    }
}

#[test]
fn the_doctor_names_each_fix() {
    let place = Place::new();
    let root = place.dir.path().join("machine");
    for (path, text) in [
        ("etc/updatedb.conf", "PRUNEFS=\"NFS proc\"\n"),
        ("proc/sys/kernel/osrelease", "6.1.0-28-amd64\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n"),
        ("usr/bin/podman", ""),
    ] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
    }
    let root = root.to_str().unwrap();
    let said = vaultfs(&place, &["doctor", "--root", root]);
    assert_eq!(said.code, Some(1), "no device: {}", said.out);
    for part in ["modprobe fuse", "PRUNEFS", "6.9", "--allow-other"] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let found = vaultfs(&place, &["doctor", "--json", "--root", root]);
    let found: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert!(vaultfs(&place, &["doctor", "--root", "/nonexistent"]).fails(2).contains("no such directory"));
    let problems = found.as_array().unwrap().iter().filter(|finding| finding["level"] == "problem");
    assert!(problems.into_iter().all(|finding| finding["fix"].is_string()));
}

/// What `ls` refuses, the doctor calls a problem; and it changes nothing.
#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn the_doctor_opens_a_vault_of_ones_own_without_touching_it() {
    let place = Place::new();
    let new = || {
        fs::remove_dir_all(&place.data).ok();
        run(place.vaultfs(["put", &place.embedded(), "a"]).stdin(Stdio::null())).ok();
    };
    let mode = |file: &str, mode| {
        fs::set_permissions(place.data.join(file), std::os::unix::fs::PermissionsExt::from_mode(mode))
            .unwrap();
    };
    let files = || -> Vec<(String, std::time::SystemTime, u32)> {
        let entries = fs::read_dir(&place.data).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .map(|file| {
                let meta = file.metadata().unwrap();
                let mode = std::os::unix::fs::MetadataExt::mode(&meta);
                (file.file_name().into_string().unwrap(), meta.modified().unwrap(), mode)
            })
            .collect();
        all.sort();
        all
    };
    let look = || -> Vec<(String, String)> {
        let before = files();
        let found = vaultfs(&place, &["doctor", "--json", &place.embedded()]).out;
        assert_eq!(files(), before, "it changes nothing");
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        let of = |f: &serde_json::Value, part: &str| f[part].as_str().unwrap().to_owned();
        let about = found.as_array().unwrap().iter().filter(|f| f["check"] == "vault" || f["check"] == "key");
        about.map(|f| (of(f, "level"), of(f, "says"))).collect()
    };
    let is_ok = |part: &str| {
        let found = look();
        assert!(found.iter().all(|f| f.0 == "ok") && found[0].1.contains(part), "{found:?}");
    };
    is_ok("is made at the first mount");
    assert!(!place.data.exists());
    new();
    is_ok("takes its key");

    let breaks: [(&str, &dyn Fn()); 8] = [
        ("the master key is open to others", &|| mode("master-key", 0o644)),
        ("the master key is missing", &|| fs::remove_file(place.data.join("master-key")).unwrap()),
        ("another master key", &|| {
            fs::write(place.data.join("master-key"), format!("{}=", "A".repeat(43))).unwrap()
        }),
        ("the API key is open to others", &|| mode("api-key", 0o644)),
        ("the API key is none", &|| fs::write(place.data.join("api-key"), [0; 20]).unwrap()),
        ("the API key is another", &|| {
            fs::write(place.data.join("api-key"), format!("sk_{}", "0".repeat(64))).unwrap()
        }),
        ("the database is none", &|| fs::write(place.data.join("vault.db"), [7; 8192]).unwrap()),
        ("the directory is none", &|| {
            fs::remove_dir_all(&place.data).unwrap();
            fs::write(&place.data, "").unwrap();
        }),
    ];
    for (what, break_it) in breaks {
        new();
        break_it();
        let found = look();
        assert!(found.iter().any(|f| f.0 == "problem"), "{what}: {found:?}");
        assert_ne!(vaultfs(&place, &["ls", &place.embedded()]).code, Some(0), "{what}");
        if place.data.is_file() {
            fs::remove_file(&place.data).unwrap();
        }
    }

    // One that is served is asked, and one whose server was killed is looked at with its log.
    new();
    let mount = Mount::at(place, &[]);
    fs::write(mount.path("b"), "1").unwrap();
    let asked = run(mount.vaultfs(["doctor"]).arg(mount.embedded())).out;
    assert!(asked.contains("it answers in"), "{asked}");
    let (keeper, worker) = mount.pids();
    for pid in [keeper, worker] {
        common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
    common::until("they are gone", || common::processes_of(mount.mnt()).is_empty());
    let looked = run(mount.vaultfs(["doctor"]).arg(mount.embedded())).out;
    assert!(looked.contains("takes its key"), "{looked}");
    run(mount.vaultfs(["unmount"]).arg(mount.mnt())).ok();
    let again = Mount::at(mount.unmount_done(), &[]);
    assert_eq!(fs::read_to_string(again.path("b")).unwrap(), "1");
}

#[test]
fn the_doctor_sees_that_nobody_may_gain_privileges() {
    crate::support::only_root!("only root can become another user");
    let place = Place::new();
    // The build may be where only root can look.
    let program = place.dir.path().join("vaultfs");
    fs::copy(common::VAULTFS, &program).unwrap();
    [place.dir.path(), &program].into_iter().for_each(common::open_to_all);
    let doctor = |more: &[&str]| {
        let mut command = Command::new("setpriv");
        place.isolate(&mut command);
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(more).arg(&program);
        run(command.arg("doctor").current_dir("/")).out
    };
    let line = |text: &str| text.lines().find(|line| line.contains("fusermount3")).unwrap().to_owned();
    assert!(line(&doctor(&[])).starts_with("ok"));
    let refused = doctor(&["--no-new-privs"]);
    assert!(line(&refused).starts_with("PROBLEM") && refused.contains("unset NoNewPrivileges"), "{refused}");
}

#[test]
fn the_doctor_looks_at_a_vault() {
    let place = Place::new();
    let mut serving = place.vaultfs(["serve", "--rate-limit", "5", "--listen", "127.0.0.1:0", "--data"]);
    let mut server =
        common::Beside::start(serving.arg(&place.data).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut url = String::new();
    let mut said = std::io::BufReader::new(server.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut url).unwrap();
    let key = place.data.join("api-key");
    let args = ["doctor", "--json", "--api-url", url.trim(), "--api-key-file", key.to_str().unwrap()];
    let look = || -> Vec<(String, String)> {
        let found: serde_json::Value = serde_json::from_str(&vaultfs(&place, &args).out).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        found.as_array().unwrap().iter().map(|f| (text(&f["check"]), text(&f["level"]))).collect()
    };
    let is =
        |found: &[(String, String)], check: &str, level: &str| found.contains(&(check.into(), level.into()));
    let found = look();
    assert!(is(&found, "vault", "ok") && is(&found, "rate", "ok"), "{found:?}");
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(is(&look(), "key", "problem"));
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    drop(server);
    assert!(is(&look(), "vault", "problem"));
}
