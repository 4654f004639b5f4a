//! TLS on the served vault: a round trip with the certificate trusted, none without, and key files
//! that are refused.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::common::{self, Mount, Place, run, until};
use crate::support::vault_server::served::Served;

/// A certificate for the loopback names, its key, and a directory to serve.
struct Files {
    dir: TempDir,
    cert: PathBuf,
    key: PathBuf,
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn files() -> Files {
    files_with("critical,CA:FALSE", "DNS:localhost,IP:127.0.0.1")
}

fn files_with(constraints: &str, names: &str) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=vaultfs test"])
        .args(["-addext", &format!("subjectAltName={names}")])
        .args(["-addext", &format!("basicConstraints={constraints}"), "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    mode(&key, 0o600);
    Files { dir, cert, key }
}

impl Files {
    fn data(&self) -> PathBuf {
        self.dir.path().join("vault")
    }

    fn options(&self, listen: &str) -> [String; 6] {
        let (cert, key) = (self.cert.to_str().unwrap(), self.key.to_str().unwrap());
        ["--listen", listen, "--tls-cert", cert, "--tls-key", key].map(str::to_owned)
    }

    fn refused(&self, options: &[String]) -> (Option<i32>, String) {
        let refused = Command::new(env!("CARGO_BIN_EXE_vaultfs"))
            .args(["serve", "--data"])
            .arg(self.data())
            .args(options)
            .output()
            .unwrap();
        assert!(refused.stdout.is_empty());
        assert!(!self.data().exists(), "refused before anything is made");
        (refused.status.code(), String::from_utf8(refused.stderr).unwrap())
    }

    fn vaultfs(&self, url: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
        command.args(args).args(["--api-url", url, "--timeout", "5s", "--api-key-file"]);
        command.arg(self.data().join("api-key")).stdin(Stdio::null()).output().unwrap()
    }
}

#[test]
fn a_vault_is_served_to_other_machines_over_tls() {
    let files = files();
    let mut served = Served::start_with(&files.data(), Stdio::null(), &files.options("0.0.0.0:0"));
    let port = served.url.strip_prefix("https://0.0.0.0:").unwrap().to_owned();
    let url = format!("https://localhost:{port}");
    let cert = files.cert.to_str().unwrap();
    let listed = files.vaultfs(&url, &["ls", "--ca-file", cert]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    // Not trusted, not spoken to; and nothing is answered without TLS.
    assert_eq!(files.vaultfs(&url, &["ls"]).status.code(), Some(4));
    assert_eq!(files.vaultfs(&format!("http://127.0.0.1:{port}"), &["ls"]).status.code(), Some(4));
    let curl = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "--cacert", cert, "-w", "%{http_code} %{http_version}"])
        .args(["-o", "/dev/null", "-H"])
        .arg(format!("Authorization: Bearer {}", served.key))
        .arg(format!("{url}/vault/v1/kv"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "200 1.1", "{}", String::from_utf8_lossy(&curl.stderr));
    // A connection on which no handshake comes does not hold up the end.
    let idle = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let begun = Instant::now();
    served.signal(libc::SIGTERM);
    assert_eq!(served.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(20), "it waited for a connection that says nothing");
    drop(idle);
}

#[test]
fn a_certificate_that_is_not_trusted_is_named_with_what_to_do() {
    let (own, names) = ("critical,CA:FALSE", "DNS:localhost,IP:127.0.0.1");
    for (constraints, names, trusted, words) in [
        ("critical,CA:TRUE", names, true, ["CA:TRUE", "basicConstraints=CA:FALSE"]),
        (own, names, false, ["UnknownIssuer", "--ca-file"]),
        (own, "DNS:elsewhere.example", true, ["elsewhere.example", "for other names"]),
    ] {
        let files = files_with(constraints, names);
        let served = Served::start_with(&files.data(), Stdio::null(), &files.options("127.0.0.1:0"));
        let trust = ["--ca-file", files.cert.to_str().unwrap()];
        let args = [&["ls"][..], if trusted { &trust } else { &[] }].concat();
        let refused = files.vaultfs(&served.url, &args);
        let sentence = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(4), "{sentence}");
        assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
        assert!(!sentence.contains("is running"), "{sentence}");
    }
}

#[test]
fn what_cannot_be_a_certificate_and_its_key_is_refused() {
    let (files, other) = (files(), files());
    let options = files.options("127.0.0.1:0");
    assert_eq!(files.refused(&options[..4]).0, Some(2), "a certificate without a key is a usage error");
    mode(&files.key, 0o644);
    let (code, sentence) = files.refused(&options);
    assert!(code == Some(1) && sentence.contains("can be read by others"), "{sentence}");
    mode(&files.key, 0o600);
    for (cert, key, word) in [
        (&files.cert, &other.key, "together"),
        (&files.key, &files.key, "no certificate"),
        (&files.cert, &files.cert, "no private key"),
        (&files.cert, &files.dir.path().join("gone"), "missing"),
        (&files.dir.path().join("gone"), &files.key, "certificate"),
    ] {
        if key == &files.cert {
            mode(&files.cert, 0o600);
        }
        let options = ["--listen", "127.0.0.1:0", "--tls-cert"].map(str::to_owned).into_iter();
        let paths = [cert.to_str().unwrap().to_owned(), "--tls-key".into(), key.to_str().unwrap().to_owned()];
        let (code, sentence) = files.refused(&options.chain(paths).collect::<Vec<_>>());
        assert_eq!(code, Some(1), "{sentence}");
        assert!(sentence.contains(word), "{sentence:?} does not say {word:?}");
        assert!(!sentence.contains("PRIVATE KEY"), "{sentence}");
    }
}

/// openssl with these arguments, in `dir`.
fn openssl(dir: &Path, args: &str) {
    let made = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// An authority called `subject` in `dir`, and a certificate of it for a server on this machine.
fn authority(dir: &Path, subject: &str) {
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {ec} -days 2 -subj /CN={subject} -keyout ca.key -out ca.pem"));
    openssl(dir, &format!("req {ec} -subj /CN=vault -keyout key.pem -out request.pem"));
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n")
        .unwrap();
    openssl(
        dir,
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
    );
    mode(&dir.join("key.pem"), 0o600);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn a_renewed_ca_file_is_read_by_a_running_mount() {
    let dir = tempfile::tempdir().unwrap();
    let (place, data) = (Place::new(), dir.path().join("vault"));
    let serve = |authority: &str, listen: &str| {
        let file = |name: &str| dir.path().join(authority).join(name).to_str().unwrap().to_owned();
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        Served::start_with(
            &data,
            Stdio::null(),
            &["--listen", listen, "--tls-cert", &cert, "--tls-key", &key],
        )
    };
    // The second is called like the first, so that its certificates look like forged ones of the
    // first.
    for (name, subject) in [("1", "authority"), ("2", "authority"), ("3", "another")] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        authority(&dir.path().join(name), subject);
    }
    let trusted = dir.path().join("trusted.pem");
    let trust = |name: &str| {
        std::fs::copy(dir.path().join(name).join("ca.pem"), dir.path().join("next.pem")).unwrap();
        std::fs::rename(dir.path().join("next.pem"), &trusted).unwrap();
    };
    trust("1");
    let served = serve("1", "127.0.0.1:0");
    let (url, listen) = (served.url.clone(), served.url.strip_prefix("https://").unwrap().to_owned());
    let key_file = data.join("api-key");
    let way = ["--ca-file", trusted.to_str().unwrap(), "--api-url", &url, "--api-key-file"];
    run(place
        .vaultfs(["mount", "--timeout", "3s", "--refresh", "1s"])
        .args(way)
        .arg(&key_file)
        .arg(&place.mnt))
    .ok();
    let mount = Mount::adopt(place);
    let save = |value: &str| {
        let mut file = std::fs::File::create(mount.path("f"))?;
        file.write_all(value.as_bytes())?;
        file.sync_all()
    };
    save("one").unwrap();

    drop(served);
    let served = serve("2", &listen);
    assert!(save("two").is_err(), "nobody who is trusted has signed its certificate");
    std::fs::write(&trusted, "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    until("a broken file is told", || {
        let _ = save("two");
        mount.log().contains("the certificates cannot be renewed, the old ones stay")
    });
    trust("2");
    until("it is read again by itself", || save("two").is_ok());

    trust("3");
    common::signal(mount.pids().0, Signal::SIGHUP);
    until("SIGHUP reads it again", || mount.log().matches("the file of --ca-file was renewed").count() == 2);
    assert!(save("three").is_err(), "who is trusted no more is spoken to no more");
    drop(served);
    let _served = serve("3", &listen);
    until("it is spoken to again", || save("three").is_ok());
    // A successor starts with a file that cannot be used, and reads it when it can be.
    std::fs::remove_file(&trusted).unwrap();
    common::replace_worker(mount.pids().0);
    assert!(save("four").is_err());
    trust("3");
    until("the successor reads it", || save("four").is_ok());
    mount.unmount();
}
