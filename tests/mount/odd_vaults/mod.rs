//! Vaults that are not ours, and what stands before them: each with a small server that behaves so,
//! and the built binary as its client.

mod client;
mod folding;
mod kv_client;
mod lagging;
mod refusals;
mod vault;

use std::path::PathBuf;
use std::process::Command;

use crate::support::common::{Mount, Place, Ran, run};

/// The dialects, as `--api` spells them.
const DIALECTS: [&str; 2] = ["object", "kv"];

/// A machine with a key to a vault somewhere.
struct Client {
    place: Place,
    key_file: PathBuf,
    url: String,
    api: &'static str,
}

impl Client {
    fn new(url: &str, api: &'static str) -> Self {
        Self::with_key(url, api, "sk_test")
    }

    fn with_key(url: &str, api: &'static str, key: &str) -> Self {
        let place = Place::new();
        let key_file = place.dir.path().join("key");
        std::fs::write(&key_file, key).unwrap();
        Command::new("chmod").arg("600").arg(&key_file).status().unwrap();
        Self { place, key_file, url: url.to_owned(), api }
    }

    /// `vaultfs COMMAND`, of this vault.
    fn command(&self, command: &str) -> Command {
        let mut vaultfs = self.place.vaultfs([command, "--api", self.api, "--api-url", &self.url]);
        vaultfs.arg("--api-key-file").arg(&self.key_file);
        vaultfs
    }

    /// Runs an object command with this on its standard input.
    fn run(&self, command: &str, args: &[&str], input: &str) -> Ran {
        let file = self.place.dir.path().join("input");
        std::fs::write(&file, input).unwrap();
        let mut vaultfs = self.command(command);
        vaultfs.args(args);
        let mut shell = Command::new("sh");
        self.place.isolate(&mut shell);
        shell.args(["-c", "input=$1; shift; exec \"$@\" < \"$input\"", "sh"]).arg(file);
        run(shell.arg(vaultfs.get_program()).args(vaultfs.get_args()))
    }

    fn mount(self, args: &[&str]) -> Mount {
        run(self.command("mount").args(args).arg(&self.place.mnt)).ok();
        Mount::adopt(self.place)
    }
}
