//! A running `vaultfs volume-plugin` and a client of it that speaks as dockerd does.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::common::{Beside, Place, is_mounted, run, signal, until};

/// A running plugin.
pub struct Plugin {
    pub place: Place,
    socket: PathBuf,
    process: Option<Beside>,
    /// What a service manager hands over.
    pub credentials: Option<PathBuf>,
}

impl Plugin {
    pub fn start(place: Place, args: &[&str]) -> Self {
        let socket = place.dir.path().join("plugins/vaultfs.sock");
        Self::listening_at(socket, place, args)
    }

    /// Where an engine looks for it.
    pub fn listening_at(socket: PathBuf, place: Place, args: &[&str]) -> Self {
        let mut plugin = Self { place, socket, process: None, credentials: None };
        plugin.run(args);
        plugin
    }

    /// Without options of its own it gives all volumes the place's vault. What nobody uses is
    /// unmounted at once.
    pub fn run(&mut self, args: &[&str]) {
        let mut command = self.place.vaultfs(["volume-plugin", "--socket"]);
        command.arg(self.socket()).arg("--state").arg(self.state());
        command.arg("--profiles").arg(self.profiles());
        if !args.contains(&"--keep-mounted") {
            command.args(["--keep-mounted", "0s"]);
        }
        if !args.contains(&"-o") {
            command.arg("-o").arg(&self.place.embedded()[2..]);
        }
        command.args(args);
        command.envs(self.credentials.as_ref().map(|dir| ("CREDENTIALS_DIRECTORY", dir)));
        let log =
            fs::File::options().create(true).append(true).open(self.place.dir.path().join("plugin.log"));
        self.process = Some(Beside::start(command.stdin(Stdio::null()).stderr(log.unwrap())));
        // Not only listens: the socket of one that was killed may be held for a moment by what it
        // was about to run.
        until("the plugin answers", || self.try_ask("Plugin.Activate", "").is_some());
    }

    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub fn state(&self) -> PathBuf {
        self.place.dir.path().join("volumes-state")
    }

    pub fn profiles(&self) -> PathBuf {
        self.place.dir.path().join("profiles")
    }

    /// Writes a profile with these options.
    pub fn profile(&self, name: &str, options: &Value) {
        fs::create_dir_all(self.profiles()).unwrap();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let lines =
            options.as_object().unwrap().iter().map(|(name, value)| format!("{name}={}\n", text(value)));
        fs::write(self.profiles().join(name), lines.collect::<String>()).unwrap();
    }

    pub fn pid(&self) -> i32 {
        self.process.as_ref().unwrap().0.id() as i32
    }

    /// kill -9.
    pub fn kill(&mut self) {
        drop(self.process.take());
    }

    pub fn stop(&mut self) {
        signal(self.pid(), Signal::SIGTERM);
        let status = self.process.take().unwrap().ends();
        assert!(status.success(), "{status}: {}", self.log());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.place.dir.path().join("plugin.log")).unwrap_or_default()
    }

    /// What is sent and comes back: HTTP status and body.
    #[track_caller]
    pub fn ask(&self, method: &str, body: &str) -> (u16, Value) {
        self.try_ask(method, body).unwrap_or_else(|| panic!("no answer to {method}:\n{}", self.log()))
    }

    /// As [`Plugin::ask`], of a plugin that may be killed meanwhile.
    pub fn try_ask(&self, method: &str, body: &str) -> Option<(u16, Value)> {
        // As dockerd sends it: an empty Host.
        let request = format!(
            "POST /{method} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Accept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(head.contains("content-type: application/vnd.docker.plugins.v1.2+json"), "{head}");
        Some((status, serde_json::from_str(body).ok()?))
    }

    #[track_caller]
    pub fn ok(&self, method: &str, body: Value) -> Value {
        let (status, answer) = self.ask(method, &body.to_string());
        assert_eq!(status, 200, "{method} {body}: {answer}\n{}", self.log());
        answer
    }

    #[track_caller]
    pub fn refused(&self, method: &str, body: Value) -> String {
        let (status, answer) = self.ask(method, &body.to_string());
        assert_eq!(status, 500, "{method} {body}: {answer}");
        answer["Err"].as_str().unwrap().to_owned()
    }

    pub fn create(&self, name: &str, options: Value) {
        self.ok("VolumeDriver.Create", json!({ "Name": name, "Opts": options }));
    }

    pub fn mount(&self, name: &str, id: &str) -> PathBuf {
        let answer = self.ok("VolumeDriver.Mount", json!({ "Name": name, "ID": id }));
        PathBuf::from(answer["Mountpoint"].as_str().unwrap())
    }

    pub fn unmount(&self, name: &str, id: &str) {
        self.ok("VolumeDriver.Unmount", json!({ "Name": name, "ID": id }));
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_file(&self.socket);
        for name in fs::read_dir(self.state().join("volumes")).into_iter().flatten().flatten() {
            if is_mounted(&name.path()) {
                run(self.place.vaultfs(["unmount", "--force"]).arg(name.path()));
            }
        }
        if std::thread::panicking() {
            eprintln!("the plugin's log:\n{}", self.log());
        }
    }
}

/// `vaultfs serve` and where it is.
pub fn server(place: &Place) -> (Beside, String) {
    let mut command = place.vaultfs(["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(&place.data).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Beside::start(&mut command);
    let mut url = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
    (process, url.trim().to_owned())
}
