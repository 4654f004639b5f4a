//! Servers that read their keys from a mount, started as their documentation says, and what keeps
//! sockets beside its keys. Their packages are heavy, so these run with scripts/test --all, which
//! installs them.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::support::common::{self, Mount, Place};

/// A port that was free a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn elsewhere() -> Place {
    let place = Place::below("/var/tmp");
    common::open_to_all(place.dir.path());
    place
}

/// A key and a certificate with this subject, as `key` and `crt` in the mount.
fn certificate(mount: &Mount, subject: &str) {
    mount.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key -out crt \
         -subj /CN={subject} -days 2 2> /dev/null"
    ));
}

#[test]
#[ignore = "needs sshd"]
fn ssh_and_sshd() {
    let mount = Mount::at(elsewhere(), &[]);
    let port = port();
    mount.sh("ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f id");
    mount.sh(&format!(
        "mkdir -p /run/sshd; install -m 600 id.pub ../authorized
         printf '%s\\n' 'Port {port}' 'ListenAddress 127.0.0.1' \"HostKey $PWD/host\" 'StrictModes no' 'UsePAM no' \
           \"AuthorizedKeysFile $(realpath ..)/authorized\" \"PidFile $(realpath ..)/pid\" 'PermitRootLogin yes' > ../conf
         /usr/sbin/sshd -f \"$(realpath ..)/conf\" -E ../log"
    ));
    common::until("sshd runs", || mount.place().dir.path().join("pid").exists());
    let ssh = format!(
        "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlPath=$PWD/cm \
         -o ControlMaster=auto -o ControlPersist=30 -p {port} -i id root@127.0.0.1"
    );
    let said =
        mount.script("bash", &format!("{ssh} echo first 2> ../ssh && {ssh} -O check && {ssh} echo second"));
    let ended = mount.script("bash", &format!("{ssh} -O exit; kill $(cat ../pid)"));
    assert_eq!((said.code, said.out.as_str()), (Some(0), "first\nsecond\n"), "{}", said.err);
    assert!(said.err.contains("Master running"), "the second goes through the socket: {}", said.err);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(mount.sh("ls -A"), "host\nhost.pub\nid\nid.pub\n");
}

#[test]
#[ignore = "needs nginx"]
fn nginx_reloads_its_key() {
    let mount = Mount::at(elsewhere(), &[]);
    let port = port();
    certificate(&mount, "one");
    mount.sh(&format!(
        "D=$(realpath ..); printf '%s\\n' \"pid $D/pid; error_log $D/err;\" 'events {{}}' 'http {{ access_log off; server {{' \
         'listen 127.0.0.1:{port} ssl;' \"ssl_certificate $PWD/crt; ssl_certificate_key $PWD/key; return 200 ok; }} }}\" \
         > ../conf; nginx -c $D/conf"
    ));
    let serves = |subject: &str| {
        let ask = format!(
            "timeout 5 openssl s_client -connect 127.0.0.1:{port} < /dev/null 2> /dev/null | openssl x509 -noout -subject"
        );
        let said = mount.script("bash", &ask).out;
        said.trim_end().ends_with(subject)
    };
    common::until("it serves", || serves("one"));
    certificate(&mount, "two");
    mount.sh("nginx -c $(realpath ..)/conf -s reload");
    common::until("it serves the new certificate", || serves("two"));
    mount.sh("nginx -c $(realpath ..)/conf -s quit");
    common::until("it ends", || !mount.place().dir.path().join("pid").exists());
    assert_eq!((mount.versions("key"), mount.versions("crt")), (vec![1, 2], vec![1, 2]));
}

#[test]
#[ignore = "needs gnupg"]
fn a_home_of_gpg() {
    let mount = Mount::at(elsewhere(), &[]);
    let gpg = "mkdir -p -m 700 home; export GNUPGHOME=$PWD/home; gpg --batch --quiet";
    mount.sh(&format!(
        "{gpg} --pinentry-mode loopback --passphrase '' --quick-gen-key a@example.com ed25519 sign 1y 2> /dev/null"
    ));
    mount.sh("test -S home/S.gpg-agent");
    mount.sh(&format!(
        "echo text > t; {gpg} --detach-sign t; gpg --verify t.sig 2> /dev/null; gpgconf --kill all"
    ));
    common::until("its agent is gone", || !mount.path("home/S.gpg-agent").exists());
    let mount = Mount::at(mount.unmount(), &[]);
    mount.sh(&format!(
        "{gpg} --verify t.sig t 2> /dev/null && gpg --list-secret-keys | grep -q a@example.com"
    ));
    mount.sh("GNUPGHOME=$PWD/home gpgconf --kill all");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn postgresql_takes_the_key_and_insists_on_its_mode() {
    let programs = fs::read_dir("/usr/lib/postgresql").unwrap().flatten().map(|e| e.path().join("bin"));
    let programs = programs.max().expect("PostgreSQL is installed");
    let user = nix::unistd::User::from_name("postgres").unwrap().expect("its package makes the user");
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let own = ["--allow-other", "--uid", &uid, "--gid", &gid];
    let mount = Mount::at(elsewhere(), &own);
    certificate(&mount, "db");
    let place = mount.place().dir.path().to_owned();
    mount.sh("install -d -o postgres ../cluster ../run");
    assert_eq!(as_postgres(&mount, &programs, "initdb -A trust -D ../cluster > /dev/null"), Some(0));
    let starts = |mount: &Mount| start_and_stop(mount, &programs, &place);
    assert!(starts(&mount), "owned by it, 0600");
    mount.sh("chmod 644 key");
    assert!(!starts(&mount), "readable by all");
    let group = ["--allow-other", "--uid", "0", "--gid", &gid, "--file-mode", "0640", "--dir-mode", "0750"];
    let mount = Mount::at(mount.unmount(), &group);
    assert!(starts(&mount), "root's, readable by its group");
}

fn as_postgres(mount: &Mount, programs: &Path, command: &str) -> Option<i32> {
    let user = "setpriv --reuid=postgres --regid=postgres --clear-groups env HOME=/tmp";
    mount.script("bash", &format!("{user} {}/{command}", programs.display())).code
}

fn start_and_stop(mount: &Mount, programs: &Path, place: &Path) -> bool {
    let (at, port) = (place.display(), port());
    let options = format!(
        "-p {port} -k {at}/run -c listen_addresses=127.0.0.1 -c ssl=on -c ssl_cert_file={0}/crt -c ssl_key_file={0}/key",
        mount.mnt().display()
    );
    let start =
        format!("pg_ctl -D {at}/cluster -w -t 20 -l {at}/run/log -o '{options}' start > /dev/null 2>&1");
    if as_postgres(mount, programs, &start) != Some(0) {
        return false;
    }
    let ask = format!(
        "psql 'host=127.0.0.1 port={port} dbname=postgres sslmode=require' -Atc 'select 1' > /dev/null"
    );
    let answers = as_postgres(mount, programs, &ask) == Some(0);
    let stopped = as_postgres(mount, programs, &format!("pg_ctl -D {at}/cluster -w stop > /dev/null"));
    answers && stopped == Some(0)
}
