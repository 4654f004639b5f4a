//! The programs people save with, on a real mount: one save is one version of the same object, and
//! nothing of the program's own is left in the vault.

use std::fs;

use crate::support::common::{self, Mount, Place, run};

/// Editors make no backups below /tmp, so these mounts are elsewhere.
fn mount() -> Mount {
    Mount::at(Place::below("/var/tmp"), &[])
}

/// Names in the vault.
fn names(mount: &Mount) -> Vec<String> {
    let listed = run(&mut mount.vaultfs(["ls", &mount.embedded()])).ok();
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

fn id(mount: &Mount, name: &str) -> String {
    mount.sh(&format!("getfattr --only-values -n user.vault.id {name}"))
}

/// Each script changes `s` from `before` to `after`, as one version of the same object, and leaves
/// nothing.
fn saves_once(scripts: &[(&str, &str)]) {
    saves(scripts, |mount, program| assert_eq!(names(mount), ["s"], "{program}: nothing left"));
}

/// The same of programs that are not known to remove: what they unlink is deleted a second later.
fn saves_once_and_unlinks(scripts: &[(&str, &str)]) {
    saves(scripts, |mount, program| common::until(program, || names(mount) == ["s"]));
}

fn saves(scripts: &[(&str, &str)], leaves_nothing: fn(&Mount, &str)) {
    let mount = mount();
    // Outside the mount, beside it: what programs copy from.
    mount.sh("echo before > s; echo after > ../after");
    let id_before = id(&mount, "s");
    for (program, script) in scripts {
        mount.sh("echo before > s");
        let versions = mount.versions("s").len();
        mount.sh(script);
        assert_eq!(fs::read_to_string(mount.path("s")).unwrap(), "after\n", "{program}");
        assert_eq!(mount.versions("s").len(), versions + 1, "{program}: one version");
        assert_eq!(id(&mount, "s"), id_before, "{program}: the same object");
        leaves_nothing(&mount, program);
    }
}

/// vim saves `s` with these settings.
fn vim_with(settings: &str) -> String {
    format!("vim -u NONE -es -c '{settings}' -c s/before/after/ -c wq s")
}

#[test]
fn vim() {
    let vim = vim_with;
    saves_once(&[
        ("plain", "vim -u NONE -es -c s/before/after/ -c wq s"),
        ("as installed", "vim -es -c s/before/after/ -c wq s"),
        ("backupcopy=yes", "vim -u NONE -es -c 'set backupcopy=yes' -c s/before/after/ -c wq s"),
        ("undofile", "vim -u NONE -es -c 'set undofile' -c s/before/after/ -c wq s && rm .s.un~"),
        ("backup, another ending", &format!("{} && rm s.was", vim("set backup backupext=.was"))),
        ("backup, renamed", &format!("{} && rm s~", vim("set backup backupcopy=no"))),
        ("backup, copied", &format!("{} && rm s~", vim("set backup backupcopy=yes"))),
        ("backup in a directory", &format!("mkdir b && {} && rm -r b", vim("set backup backupdir=./b"))),
        ("no swap file", &vim("set noswapfile")),
        ("backupcopy=no", "vim -u NONE -es -c 'set backupcopy=no writebackup' -c s/before/after/ -c wq s"),
    ]);
}

#[test]
fn stream_editors() {
    saves_once(&[
        ("sed", "sed -i s/before/after/ s"),
        ("perl", "perl -pi -e s/before/after/ s"),
        ("ed", "printf '%s\\n' s/before/after/ w q | ed -s s"),
    ]);
}

/// What these write beside the file under a name of their choice is a backup that was asked for.
#[test]
fn stream_editors_with_a_backup() {
    saves_once(&[
        ("sed -i.bak", "sed -i.bak s/before/after/ s && test \"$(cat s.bak)\" = before && rm s.bak"),
        ("sed -i~", "sed -i~ s/before/after/ s && test \"$(cat s~)\" = before && rm s~"),
        ("perl -i.old", "perl -i.old -pe s/before/after/ s && test \"$(cat s.old)\" = before && rm s.old"),
        (
            "sed -i.any",
            "sed -i.2024-01 s/before/after/ s && test \"$(cat s.2024-01)\" = before && rm s.2024-01",
        ),
        ("sed -i'any_*'", "sed -i'any_*' s/before/after/ s && test \"$(cat any_s)\" = before && rm any_s"),
        ("perl -i.any", "perl -i.any -pe s/before/after/ s && test \"$(cat s.any)\" = before && rm s.any"),
        ("cp -b -S .any", "cp -b -S .any ../after s && test \"$(cat s.any)\" = before && rm s.any"),
        ("install -b", "install -m 600 -b -S .any ../after s && test \"$(cat s.any)\" = before && rm s.any"),
        ("mv -b", "echo after > t.tmp; mv -b -S .any t.tmp s && test \"$(cat s.any)\" = before && rm s.any"),
        ("rsync -b", "rsync -Ib --suffix=.any ../after s && test \"$(cat s.any)\" = before && rm s.any"),
        ("rsync -b, its own suffix", "rsync -Ib ../after s && test \"$(cat s~)\" = before && rm s~"),
        (
            "rsync --backup-dir",
            "rsync -Ib --backup-dir=b ../after s && test \"$(cat b/s)\" = before && rm -r b",
        ),
        (
            "perl into a directory",
            "mkdir b; perl -i'b/*' -pe s/before/after/ s && test \"$(cat b/s)\" = before && rm -r b",
        ),
        ("a script", "mv s s-before && cp ../after s && rm s-before"),
        ("patch -b", &format!("{DIFF} | patch -bs s && test \"$(cat s.orig)\" = before && rm s.orig")),
        ("cp -b", "cp -b ../after s && test \"$(cat s~)\" = before && rm s~"),
    ]);
}

const DIFF: &str = "printf '%s\\n' '--- s' '+++ s' '@@ -1 +1 @@' -before +after";

#[test]
fn programs_that_change_a_file() {
    saves_once(&[
        ("patch", &format!("{DIFF} | patch -s s")),
        ("jq and mv", "echo '\"after\"' | jq -r . > s.tmp && mv s.tmp s"),
        ("openssl -out", "echo YWZ0ZXIK | openssl enc -d -base64 -out s"),
        ("sort -o", "sort -o s - < ../after"),
    ]);
}

#[test]
fn emacs() {
    let save = "--eval '(progn (find-file \"s\") (erase-buffer) (insert \"after\\n\") (save-buffer))'";
    let kept = "test \"$(cat s~)\" = before && rm s~";
    saves_once(&[
        ("plain", &format!("emacs -Q --batch {save} && {kept}")),
        ("by copying", &format!("emacs -Q --batch --eval '(setq backup-by-copying t)' {save} && {kept}")),
        ("no backup", &format!("emacs -Q --batch --eval '(setq make-backup-files nil)' {save}")),
        ("precious", &format!("emacs -Q --batch --eval '(setq file-precious-flag t)' {save} && {kept}")),
    ]);
}

/// nano has no batch mode: it gets a terminal, and keys.
#[test]
fn nano() {
    let keys = r"\x0b"; // ^K cuts the line
    let nano = |options: &str| {
        format!(
            "export TERM=xterm; {{ sleep 0.3; printf '{keys}after\\r'; sleep 0.3; printf '\\x0f\\r'; sleep 0.3; \
             printf '\\x18'; sleep 0.2; }} | script -qec 'nano --ignorercfiles -L {options} s' /dev/null > /dev/null"
        )
    };
    saves_once(&[("nano", &nano("")), ("nano -B", &format!("{}; rm s~", nano("-B")))]);
}

/// What busybox has under other programs' names; its tar, gunzip and unzip unlink first.
#[test]
fn programs_of_busybox() {
    let tar = "cp ../after ../s; busybox tar -C .. -cf ../t.tar s; busybox tar -xf ../t.tar";
    saves_once_and_unlinks(&[
        ("sed -i", "busybox sed -i s/before/after/ s"),
        ("sed -i.bak", "busybox sed -i.bak s/before/after/ s; rm s.bak"),
        ("ed", "printf '%s\\n' s/before/after/ w q | busybox ed s > /dev/null"),
        ("tar", tar),
        ("gunzip -f", "gzip -c ../after > s.gz; busybox gunzip -f s.gz"),
        (
            "unzip -o",
            "cp ../after ../s; rm -f ../a.zip; (cd .. && zip -q a.zip s); busybox unzip -qo ../a.zip",
        ),
        ("patch", &format!("{DIFF} | busybox patch s > /dev/null")),
        ("dos2unix", "printf 'after\\r\\n' > ../dos; cp ../dos s.tmp; busybox dos2unix s.tmp; mv s.tmp s"),
        ("cp -f", "busybox cp -f ../after s"),
        ("sort -o", "busybox sort -o s ../after"),
        ("tee", "echo after | busybox tee s > /dev/null"),
    ]);
}

/// Editors that want a terminal, and get one.
#[test]
fn editors_on_a_terminal() {
    let typed = |program: &str, keys: &[&str]| {
        let keys: String = keys.iter().map(|keys| format!("sleep 0.5; printf '{keys}'; ")).collect();
        format!(
            "export TERM=xterm; {{ {keys} sleep 0.5; }} | timeout 20 script -qec '{program} s' /dev/null > /dev/null"
        )
    };
    let emacs_like = [r"\013after", r"\030\023", r"\030\003"];
    let vi_like = [r"ddiafter\033:x\r"];
    saves_once(&[
        ("mg -n", &typed("mg -n", &emacs_like)),
        ("mg with a backup", &format!("{}; rm s~", typed("mg", &emacs_like))),
        ("jed", &format!("{}; rm -f s~", typed("jed", &emacs_like))),
        ("nvi", &typed("nvi", &vi_like)),
        ("nvi -e", "printf '%%s/before/after/\\nx\\n' | nvi -e -s s"),
        ("joe", &format!("{}; rm s~", typed("joe", &[r"\031after\r", r"\013x"]))),
    ]);
}

#[test]
fn editors_of_settings() {
    let file = "$(pwd -P)/s";
    let augtool = |how: &str| {
        format!(
            "augtool {how} -At \"Simplevars.lns incl {file}\" set \"/files{file}/k\" after -s > /dev/null"
        )
    };
    let ini = "test \"$(tr -d ' \\n' < s)\" = '[a]k=after'";
    saves_settings(&[
        ("crudini", "[a]\nk = before\n", &format!("crudini --set s a k after && {ini}")),
        ("crudini --inplace", "[a]\nk = before\n", &format!("crudini --inplace --set s a k after && {ini}")),
        (
            "git config -f",
            "[a]\n\tk = before\n",
            "git config -f s a.k after && test $(git config -f s a.k) = after",
        ),
        ("augtool", "k = before\n", &format!("{} && grep -q 'k = after' s", augtool(""))),
        ("augtool -b", "k = before\n", &format!("{} && grep -q 'k = after' s; rm s.augsave", augtool("-b"))),
        ("xmlstarlet", "<a><b>before</b></a>\n", "xmlstarlet ed -L -u /a/b -v after s && grep -q after s"),
        ("htpasswd", "u:x\n", "htpasswd -b s after pw 2> /dev/null && grep -q ^after: s"),
        ("htpasswd -D", "u:x\nafter:y\n", "htpasswd -D s u 2> /dev/null && ! grep -q ^u: s"),
        ("ksh93 >;", "before\n", "ksh93 -c 'echo after >; s' && grep -q after s"),
        ("ksh93 <>;", "befor\nxx\n", "ksh93 -c 'echo after 1<>; s' && test \"$(cat s)\" = after"),
        ("dd conv=notrunc", "befor\n", "printf after | dd of=s conv=notrunc status=none && grep -q after s"),
        ("truncate", "after\nbefore\n", "truncate -s 6 s && test \"$(cat s)\" = after"),
        ("tee -a", "before\n", "echo after | tee -a s > /dev/null && grep -q after s"),
    ]);
}

/// Each changes `s` from what is given, as one version of the same object, and leaves nothing.
fn saves_settings(scripts: &[(&str, &str, &str)]) {
    let mount = mount();
    mount.sh("echo first > s");
    let before = id(&mount, "s");
    for (program, given, script) in scripts {
        fs::write(mount.path("s"), given).unwrap();
        let versions = mount.versions("s").len();
        mount.sh(script);
        assert_eq!(mount.versions("s").len(), versions + 1, "{program}: one version");
        assert_eq!(id(&mount, "s"), before, "{program}: the same object");
        common::until(program, || names(&mount) == ["s"]);
    }
}

#[test]
fn copying_programs() {
    saves_once(&[
        ("echo", "echo after > s"),
        ("printf", "printf 'after\\n' > s"),
        ("echo of coreutils", "env echo after > s"),
        ("cp", "cp ../after s"),
        ("cp -a", "cp -a ../after s"),
        ("dd", "dd if=../after of=s status=none"),
        ("tee", "echo after | tee s > /dev/null"),
        ("rsync", "rsync --ignore-times ../after s"),
        ("rsync -a", "rsync -a --ignore-times ../after s"),
        ("rsync --inplace", "rsync --inplace --ignore-times ../after s"),
        ("temporary and mv", "echo after > s.tmp && mv s.tmp s"),
        ("cp -f", "cp -f ../after s"),
        ("cp -p", "cp -p ../after s"),
        ("install", "install -m 600 ../after s"),
        ("cp --remove-destination", "cp --remove-destination ../after s"),
        ("mv from elsewhere", "cp ../after /dev/shm/vaultfs-test-after; mv /dev/shm/vaultfs-test-after s"),
        ("tar", "echo after > /dev/shm/s; tar -C /dev/shm -cf - s | tar -xf -; rm /dev/shm/s"),
    ]);
}

/// The history stays whatever unlinks a file and creates it anew.
#[test]
fn programs_that_unlink_before_they_create() {
    let python = "import os; os.unlink(\"s\"); open(\"s\", \"w\").write(\"after\\n\")";
    let exclusive = "import os; os.unlink(\"s\"); open(\"s\", \"x\").write(\"after\\n\")";
    let renamed =
        "import os; open(\"t\", \"w\").write(\"after\\n\"); os.unlink(\"s\"); os.rename(\"t\", \"s\")";
    let linked = "import os; open(\"t\", \"w\").write(\"after\\n\"); os.unlink(\"s\"); os.link(\"t\", \"s\"); os.unlink(\"t\")";
    saves_once_and_unlinks(&[
        ("gunzip -f", "gzip -c ../after > s.gz; gunzip -f s.gz"),
        ("xz -df", "xz -c ../after > s.xz; xz -df s.xz"),
        ("tar", "cp ../after ../s; tar -C .. -cf ../a.tar s; tar -xf ../a.tar"),
        ("tar --unlink-first", "tar -C .. -cf ../a.tar s; tar --unlink-first -xf ../a.tar"),
        ("tar --xattrs", "tar --xattrs -C .. -cf ../a.tar s; tar --xattrs -xf ../a.tar"),
        ("bsdtar", "bsdtar -C .. -cf ../a.tar s; bsdtar -xf ../a.tar"),
        ("python", &format!("python3 -c '{python}'")),
        ("python, exclusively", &format!("python3 -c '{exclusive}'")),
        ("python, by renaming", &format!("python3 -c '{renamed}'")),
        ("python, by linking", &format!("python3 -c '{linked}'")),
        ("perl", "perl -e 'unlink \"s\"; open F, \">\", \"s\"; print F \"after\\n\"; close F or die'"),
        ("node", "node -e 'fs.unlinkSync(\"s\"); fs.writeFileSync(\"s\", \"after\\n\")'"),
        ("cp -f of what cannot be opened", "chmod 400 s; cp -f ../after s"),
        ("ln -f", "echo after > t; ln -f t s; rm t"),
    ]);
}

#[test]
fn archivers_and_filters() {
    saves_once_and_unlinks(&[
        ("bunzip2 -f", "bzip2 -c ../after > s.bz2; bunzip2 -f s.bz2"),
        ("zstd -df", "zstd -q -c ../after > s.zst; zstd -q -df --rm s.zst"),
        ("unzip -o", "cp ../after ../s; rm -f ../a.zip; (cd .. && zip -q a.zip s); unzip -qo ../a.zip"),
        ("cpio -u", "cp ../after ../s; (cd .. && echo s | cpio -o --quiet) | cpio -iu --quiet"),
        ("gawk -i inplace", "gawk -i inplace '{ sub(/before/, \"after\"); print }' s"),
        ("gawk with a suffix", "gawk -i inplace -v inplace::suffix=.bak '{ print \"after\" }' s; rm s.bak"),
        ("sponge", "sed s/before/after/ s | sponge s"),
        ("dos2unix -n", "dos2unix -q -n ../after s"),
        ("iconv -o", "iconv -f utf-8 -t utf-8 -o s ../after"),
        ("sort -o", "sort -o s ../after"),
        ("shuf -o", "shuf -o s ../after"),
        ("split", "split -l 10 -a 1 ../after part; mv parta s"),
        ("patch -b", &format!("{DIFF} | patch -s -b s; rm s.orig")),
        ("xxd -r", "xxd ../after | xxd -r > s"),
        ("curl -o", "curl -s -o s \"file://$(readlink -f ../after)\""),
        ("sqlite3 .output", "sqlite3 :memory: '.output s' \"select 'after';\""),
        ("sqlite3 .once", "sqlite3 :memory: '.once s' \"select 'after';\""),
        (
            "gpg -o",
            "export GNUPGHOME=$(mktemp -d) && gpg='gpg --batch -q --yes --pinentry-mode loopback --passphrase x' \
             && $gpg -c -o ../g.gpg ../after && $gpg -o s -d ../g.gpg; rm -rf $GNUPGHOME",
        ),
        ("rsync --delay-updates", "rsync -I --delay-updates ../after s"),
        ("rsync --partial-dir", "rsync -I --partial-dir=.p ../after s"),
        ("install -C", "install -C -m 600 ../after s"),
        ("mv -b", "cp ../after t.tmp; mv -b t.tmp s; rm s~"),
    ]);
}

#[test]
fn libraries_of_languages() {
    let fileinput = |more: &str| {
        format!(
            "python3 -c 'import fileinput\nfor line in fileinput.input(\"s\", inplace=True{more}): \
             print(line.replace(\"before\", \"after\"), end=\"\")'"
        )
    };
    saves_once_and_unlinks(&[
        ("python fileinput", &fileinput("")),
        ("python fileinput with a backup", &format!("{}; rm s.bak", fileinput(", backup=\".bak\""))),
        ("python pathlib", "python3 -c 'import pathlib; pathlib.Path(\"s\").write_text(\"after\\n\")'"),
        (
            "python NamedTemporaryFile",
            "python3 -c 'import tempfile, shutil; f = tempfile.NamedTemporaryFile(\"w\", dir=\".\", delete=False); \
             f.write(\"after\\n\"); f.close(); shutil.move(f.name, \"s\")'",
        ),
        ("python copy2", "python3 -c 'import shutil; shutil.copy2(\"../after\", \"s\")'"),
        ("perl File::Copy", "perl -MFile::Copy -e 'copy(\"../after\", \"s\") or die'"),
        (
            "perl Tie::File",
            "perl -MTie::File -e 'tie @a, \"Tie::File\", \"s\" or die; $a[0] = \"after\"; untie @a'",
        ),
        (
            "perl File::Temp",
            "perl -MFile::Temp=tempfile -e '($h, $n) = tempfile(DIR => \".\"); print $h \"after\\n\"; close $h; rename $n, \"s\" or die'",
        ),
        ("lua", "lua5.4 -e 'f = io.open(\"s\", \"w\"); f:write(\"after\\n\"); f:close()'"),
        (
            "lua, removing first",
            "lua5.4 -e 'f = io.open(\"s.tmp\", \"w\"); f:write(\"after\\n\"); f:close(); os.remove(\"s\"); os.rename(\"s.tmp\", \"s\")'",
        ),
        ("tcl", "echo 'set f [open s w]; puts $f after; close $f' | tclsh"),
        ("tcl copy", "echo 'file copy -force ../after s' | tclsh"),
        (
            "tcl rename",
            "echo 'set f [open s.new w]; puts $f after; close $f; file rename -force s.new s' | tclsh",
        ),
        ("node promises", "node -e 'fs.promises.writeFile(\"s\", \"after\\n\")'"),
        ("node stream", "node -e 'fs.createWriteStream(\"s\").end(\"after\\n\")'"),
        ("node rm", "node -e 'fs.rmSync(\"s\"); fs.writeFileSync(\"s\", \"after\\n\")'"),
    ]);
}

#[test]
fn git_ends_no_history() {
    let mount = mount();
    mount.sh(
        "git init -q r && cd r && git config user.email a@b && git config user.name n && echo 1 > f && git add f \
         && git commit -qm one && echo 2 > f && git commit -qam two",
    );
    let (before, mut versions) = (id(&mount, "r/f"), mount.versions("r/f").len());
    for (script, content) in [
        ("git checkout -q HEAD~", "1\n"),
        ("git checkout -q -", "2\n"),
        ("echo 3 > f && git stash -q", "2\n"),
        ("git stash pop -q", "3\n"),
        ("git reset -q --hard", "2\n"),
        ("git checkout -q HEAD~ -- f", "1\n"),
    ] {
        mount.sh(&format!("cd r && {script}"));
        versions += 1 + usize::from(script.starts_with("echo"));
        assert_eq!(fs::read_to_string(mount.path("r/f")).unwrap(), content, "{script}");
        assert_eq!(mount.versions("r/f").len(), versions, "{script}: one version");
        assert_eq!(id(&mount, "r/f"), before, "{script}: the same object");
    }
    // Its status stays quiet afterwards, and what it removes is deleted.
    assert_eq!(mount.sh("cd r && git rm -qf f && git status --porcelain"), "D  f\n");
    common::until("it is deleted a moment later", || !names(&mount).contains(&"r/f".to_owned()));
}

/// What it is told to forget is in a backup that is a link, and the file keeps its history.
#[test]
fn hosts_that_ssh_forgets() {
    let mount = mount();
    let line = |host: &str| format!("echo \"{host} $(cut -d' ' -f1,2 ../k.pub)\" >> known_hosts");
    mount.sh(&format!("ssh-keygen -q -t ed25519 -N '' -f ../k; {}; {}; {}", line("a"), line("b"), line("c")));
    let before = id(&mount, "known_hosts");
    for (host, versions) in [("a", 1), ("b", 2)] {
        mount.sh(&format!(
            "cp known_hosts ../was; ssh-keygen -q -R {host} -f known_hosts; cmp known_hosts.old ../was"
        ));
        assert_eq!(
            (id(&mount, "known_hosts"), mount.versions("known_hosts").len()),
            (before.clone(), 3 + versions)
        );
        assert_eq!(mount.versions("known_hosts.old").len(), versions);
    }
    assert!(mount.sh("cat known_hosts").starts_with("c ssh-ed25519 "));
    common::until("no temporary is left", || names(&mount) == ["known_hosts", "known_hosts.old"]);
}

#[test]
fn attributes_go_around_with_a_copy() {
    let mount = mount();
    let script = "mkdir ../copy; rsync -aX s ../copy/; rsync -aXI ../copy/s s; tar --xattrs -cf ../a.tar s; \
                  bsdtar -cf ../b.tar s; cp -a s ../copy/c; bsdtar -xf ../b.tar; tar --xattrs --warning=all -xf ../a.tar";
    let ran = mount.script("bash", &format!("set -e; echo value > s; {script}; cat s; getfattr -d -m - s"));
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "value\n", ""));
}

/// Only root gives files away.
#[test]
fn copies_of_what_belongs_to_others() {
    let mount = mount();
    if !common::is_root() {
        let refused = mount.script("bash", "echo x > s; chown 12345 s");
        assert!(refused.err.contains("not permitted"), "{}", refused.err);
        return;
    }
    mount.sh("echo before > s; echo after > ../s; chown 1234:2345 ../s; tar -C .. -cf ../a.tar s");
    let before = id(&mount, "s");
    for script in [
        "cp -a ../s s",
        "rsync -aI ../s s",
        "tar -xf ../a.tar",
        "bsdtar -xf ../a.tar",
        "install -o 1234 -g 2345 ../s s",
        "cp ../s s; chown 1234:2345 s",
    ] {
        mount.sh("echo before > s; chown 0:0 s");
        let versions = mount.versions("s").len();
        let ran = mount.script("bash", &format!("set -e; {script}; stat -c %u:%g s; cat s"));
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.as_str()),
            (Some(0), "1234:2345\nafter\n", ""),
            "{script}"
        );
        assert_eq!((id(&mount, "s"), mount.versions("s").len()), (before.clone(), versions + 1), "{script}");
    }
    let status = mount.status();
    assert_eq!(status["fs"]["owners_set"], 1, "{status}");
    let text = run(&mut mount.vaultfs([std::ffi::OsStr::new("status"), mount.mnt().as_os_str()])).ok();
    assert!(text.contains("1 set by chown, forgotten at unmount"), "{text}");
    let made = "mkdir d; chown 1234:2345 d; echo x > d/a; mkdir d/e; echo x > d/e/b; mkfifo d/p; mknod d/q p; stat -c %u:%g d/* d/e/b";
    assert_eq!(mount.sh(made), "1234:2345\n".repeat(5), "in a directory that was given away");
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(mount.sh("stat -c %u:%g s d/a"), "0:0\n0:0\n");
}

#[test]
fn nothing_goes_to_a_trash_in_the_vault() {
    let mount = mount();
    mount.sh("echo x > s");
    for program in ["gio trash s", "trash-put s"] {
        let refused = mount.script("bash", program);
        assert!(refused.code != Some(0), "{program}");
        assert_eq!(names(&mount), ["s"], "{program}");
        assert_eq!(mount.sh("ls -A"), "s\n", "{program}");
    }
}

#[test]
fn programming_languages() {
    let replace = "import os, tempfile
f, path = tempfile.mkstemp(dir='.')
os.write(f, b'after\\n'); os.fsync(f); os.close(f); os.replace(path, 's')";
    saves_once(&[
        ("python open", "python3 -c 'open(\"s\", \"w\").write(\"after\\n\")'"),
        ("python mkstemp, fsync, replace", &format!("python3 -c \"{replace}\"")),
        ("python r+", "python3 -c 'f = open(\"s\", \"r+\"); f.write(\"after\\n\"); f.truncate(); f.close()'"),
        ("node writeFile", "node -e 'fs.writeFileSync(\"s\", \"after\\n\")'"),
        (
            "node writeFile and rename",
            "node -e 'fs.writeFileSync(\"s.tmp\", \"after\\n\"); fs.renameSync(\"s.tmp\", \"s\")'",
        ),
        ("node copyFile", "node -e 'fs.copyFileSync(\"../after\", \"s\")'"),
        ("perl", "perl -e 'open F, \">\", \"s\"; print F \"after\\n\"; close F or die'"),
    ]);
}

#[test]
fn vim_keeps_its_backup_beside_and_the_history_with_the_file() {
    let mount = mount();
    mount.sh("echo 1 > s");
    let before = id(&mount, "s");
    for n in 2..5 {
        mount.sh(&format!("vim -u NONE -es -c 'set backup' -c s/.*/{n}/ -c wq s"));
        assert_eq!(fs::read_to_string(mount.path("s~")).unwrap(), format!("{}\n", n - 1));
    }
    assert_eq!((id(&mount, "s"), mount.versions("s").len()), (before, 4));
    common::until("a backup that is left alone becomes an object", || names(&mount) == ["s", "s~"]);
    assert_eq!(mount.versions("s").len(), 4);
}

#[test]
fn the_passphrase_of_a_key() {
    let mount = mount();
    mount.sh("ssh-keygen -q -t ed25519 -N '' -f k");
    let before = id(&mount, "k");
    mount.sh("ssh-keygen -q -p -P '' -N secret -f k > /dev/null; ssh-keygen -y -P secret -f k > /dev/null");
    assert_eq!((id(&mount, "k"), mount.versions("k")), (before, vec![1, 2]));
    assert_eq!(names(&mount), ["k", "k.pub"]);
}

/// It renames the file over and over before it unlinks it.
#[test]
fn shred_leaves_nothing() {
    let mount = mount();
    mount.sh("echo 1 > s; echo 2 > t; shred -u s");
    assert_eq!(names(&mount), ["t"], "nothing under the names it tries");
}

#[test]
fn a_repository() {
    let mount = mount();
    mount.sh(
        "git init -q r && cd r && git config user.email a@b && git config user.name n && echo 1 > f && git add f \
         && git commit -qm one && echo 2 > f && git commit -qam two && git fsck --strict && git log --oneline",
    );
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(mount.sh("cd r && git status --porcelain && git show HEAD:f HEAD~:f"), "2\n1\n");
    let left: Vec<String> =
        names(&mount).into_iter().filter(|n| n.contains(".lock") || n.contains("tmp_")).collect();
    assert_eq!(left, [""; 0], "no lock and no temporary is left");
}

#[test]
fn a_file_that_is_unlinked_and_not_replaced_is_deleted() {
    let mount = mount();
    mount.sh("echo 2 > moved");
    for remove in
        ["rm s", "unlink s", "find . -name s -delete", "busybox rm s", "busybox unlink s", "shred -u s"]
    {
        mount.sh(&format!("echo 1 > s; {remove}"));
        assert_eq!(names(&mount), ["moved"], "{remove} has deleted it when it ends");
    }
    // mv(1) to another file system copies, then unlinks.
    mount.sh("mv moved /dev/shm/vaultfs-test-moved; rm /dev/shm/vaultfs-test-moved; ! test -e moved");
    common::until("it is deleted a moment later", || names(&mount).is_empty());
}

#[test]
fn what_only_looks_like_a_temporary_is_kept() {
    let mount = mount();
    mount.sh("echo 1 > .env.docker; set -C; echo 2 > notes.new; echo 3 > list~");
    let mount = Mount::at(mount.unmount(), &[]);
    assert_eq!(mount.sh("cat .env.docker notes.new list~"), "1\n2\n3\n");
}
