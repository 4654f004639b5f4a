//! `vaultfs volume-plugin`: volumes for Docker and Podman.
//!
//! Stays in the foreground, for a service manager, and logs on standard error. SIGTERM and SIGINT
//! end it: requests under way are answered, volumes in use stay mounted, and the next start finds
//! them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::args::connect::credential;
use crate::cli::args::hints;
use crate::cli::args::values;
use crate::cli::args::values::home;
use crate::cli::commands::mount::MountArgs;
use crate::cli::commands::serve;
use crate::cli::exit::{Exit, Failure};
use crate::cli::service;
use crate::clock::SystemClock;
use crate::display::Shown;
use crate::server::instance::listen;
use crate::server::instance::listen::Listeners;
use crate::sys::hardening;
use crate::volume::driver::{Driver, Parts};
use crate::volume::mounter::Commands;
use crate::volume::options::{self, Grammar, Takes};
use crate::volume::profile::Profiles;
use crate::volume::socket;
use crate::volume::store::Store;

/// Serve volumes to Docker and Podman
///
/// Each volume is a separate mount with the options of `docker volume create -o …`. It is mounted
/// for the first container and unmounted after the last. docs/CONTAINERS.md has the steps.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vaultfs volume-plugin --socket /run/docker/plugins/vaultfs.sock \\\n    \
                        -o api-url=https://vault.example.com,api-key-file=/etc/vaultfs/volumes.key\n  \
                        docker volume create -d vaultfs -o prefix=app app\n  \
                        docker run -v app:/run/secrets IMAGE"
)]
pub struct VolumePluginArgs {
    /// Socket for the engine, for example /run/docker/plugins/vaultfs.sock; its directory is
    /// created if it is missing
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Directory for the state and the mount points of volumes [default: /var/lib/vaultfs-volumes;
    /// not as root: $XDG_STATE_HOME/vaultfs-volumes]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Directory of the profiles for `-o profile=NAME`; a profile is a file with one option per
    /// line [default: /etc/vaultfs/profiles; not as root: $XDG_CONFIG_HOME/vaultfs/profiles]
    #[arg(long, value_name = "DIR")]
    profiles: Option<PathBuf>,

    /// How long a volume stays mounted after its last container, for the next one
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::time)]
    keep_mounted: Duration,

    /// Default options of every volume, such as api-url=URL,api-key-file=FILE
    #[arg(short = 'o', value_name = "OPT,OPT=VAL")]
    options: Vec<String>,

    /// Log more: -v also logs each request of the engine (refusals are always logged)
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

/// Runs the command.
pub fn run(args: VolumePluginArgs) -> anyhow::Result<ExitCode> {
    serve::log_to_stderr(args.verbose.saturating_add(1));
    if hardening::has_env("WORKOS_API_KEY") {
        return Err(Failure::new(
            Exit::Usage,
            "volumes are mounted by processes of their own, which read the key from a file: give \
             -o api-key-file=FILE instead of WORKOS_API_KEY",
        )
        .into());
    }
    let mut defaults = defaults(&args.options);
    if let Some(file) = credential().and_then(|file| file.into_os_string().into_string().ok()) {
        options::default_key(&mut defaults, file);
    }
    check_defaults(&defaults)?;
    let state = match &args.state {
        Some(dir) => std::path::absolute(dir)?,
        None => default_state()?,
    };
    let profiles = match &args.profiles {
        Some(dir) => std::path::absolute(dir)?,
        None => default_profiles()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let settings = Settings { defaults, profiles: Profiles::new(profiles), keep: args.keep_mounted };
    runtime.block_on(serve(&args.socket, &state, settings))?;
    Ok(ExitCode::SUCCESS)
}

/// What holds for all volumes.
struct Settings {
    defaults: BTreeMap<String, String>,
    profiles: Profiles,
    keep: Duration,
}

async fn serve(path: &Path, state: &Path, settings: Settings) -> anyhow::Result<()> {
    // Before anything is made: a signal from here on ends it in good order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("which boot this is")?;
    let (store, volumes) = Store::open(state, boot.trim())?;
    let driver = Arc::new(Driver::new(Parts {
        store,
        volumes,
        mounter: Arc::new(Commands::new()),
        grammar: Arc::new(MountGrammar),
        defaults: settings.defaults,
        profiles: settings.profiles,
        keep: settings.keep,
        clock: Arc::new(SystemClock),
    }));
    let unix = socket::listen(path).await?;
    tracing::info!(socket = %path.shown(), state = %state.shown(), "volumes are served");
    service::notify("READY=1");
    if let Some(within) = service::watchdog() {
        tokio::spawn(feed_watchdog(path.to_owned(), within));
    }
    let settling = tokio::spawn({
        let driver = driver.clone();
        async move { driver.check_mounts().await }
    });
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        service::notify("STOPPING=1");
        // No client may find a socket without a listener.
        let _ = std::fs::remove_file(path);
    };
    listen::serve(Listeners { unix, shared: None, tcp: None }, socket::router(driver.clone()), stop).await;
    settling.abort();
    driver.end().await;
    Ok(())
}

/// Tells the service manager that the plugin lives, as long as it answers on its socket as it would
/// answer an engine.
async fn feed_watchdog(socket: PathBuf, within: Duration) {
    // An answer that takes a third of the time, after a pause of as much, still comes in time.
    let part = within / 3;
    loop {
        match tokio::time::timeout(part, socket::ask_for_volumes(&socket)).await {
            Ok(Ok(())) => service::notify("WATCHDOG=1"),
            Ok(Err(e)) => tracing::error!(socket = %socket.shown(), "the plugin cannot ask itself: {e}"),
            Err(_) => tracing::error!(socket = %socket.shown(), "the plugin does not answer itself"),
        }
        tokio::time::sleep(part).await;
    }
}

/// Not where an embedded vault or the logs are: the directory is open to pass through.
pub(in crate::cli) fn default_state() -> anyhow::Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/vaultfs-volumes".into());
    }
    let state = user_directory("XDG_STATE_HOME", ".local/state");
    Ok(state.context("HOME is not set: give --state DIR")?.join("vaultfs-volumes"))
}

fn default_profiles() -> anyhow::Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/etc/vaultfs/profiles".into());
    }
    let config = user_directory("XDG_CONFIG_HOME", ".config");
    Ok(config.context("HOME is not set: give --profiles DIR")?.join("vaultfs/profiles"))
}

fn user_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    named.or_else(|| home().map(|home| home.join(below_home)))
}

/// Refuses what would be refused of every volume. A key may be missing: volumes may bring one.
fn check_defaults(defaults: &BTreeMap<String, String>) -> Result<(), Failure> {
    let usage = |sentence| Failure::new(Exit::Usage, sentence);
    let arguments = options::arguments(&[defaults], &MountGrammar).map_err(usage)?;
    let mount = parse(&arguments).map_err(usage)?;
    mount.validate(true).map_err(|e| Failure { message: as_options(&e.message), ..e })
}

/// `-o a=1,b` as a map; `-o a=1 -o b` is the same.
fn defaults(lists: &[String]) -> BTreeMap<String, String> {
    let options = lists.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty());
    options
        .map(|option| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

/// The command line of `vaultfs mount`, as clap knows it.
struct MountGrammar;

impl Grammar for MountGrammar {
    fn takes(&self, name: &str) -> Option<Takes> {
        let command = crate::cli::Cli::command();
        let mount = command.find_subcommand("mount")?;
        let arg = mount.get_arguments().find(|arg| arg.get_long() == Some(name))?;
        Some(match arg.get_action() {
            ArgAction::Set | ArgAction::Append => match arg.get_num_args() {
                Some(range) if range.min_values() == 0 => Takes::Either,
                _ => Takes::Value,
            },
            _ => Takes::Nothing,
        })
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let command = crate::cli::Cli::command();
        let mount = command.find_subcommand("mount")?;
        let shown = mount.get_arguments().filter(|arg| !arg.is_hide_set());
        let of_mount = shown.filter_map(|arg| arg.get_long().map(str::to_owned));
        hints::nearest(name, options::offered(of_mount))
    }

    fn check(&self, arguments: &[String]) -> Result<Option<Duration>, String> {
        parse(arguments).map(|mount| mount.patience())
    }

    fn validate(&self, arguments: &[String]) -> Result<(), String> {
        parse(arguments)?.validate(false).map_err(|e| as_options(&e.message))
    }
}

fn parse(arguments: &[String]) -> Result<MountArgs, String> {
    let line = ["vaultfs", "mount"].into_iter().chain(arguments.iter().map(String::as_str)).chain(["/"]);
    match crate::cli::Cli::try_parse_from(line) {
        Ok(crate::cli::Cli { command: crate::cli::Command::Mount(mount) }) => Ok(*mount),
        Err(e) if e.kind() != ErrorKind::DisplayHelp => Err(one_sentence(&e.render().to_string())),
        _ => Err("an option is wrong".into()),
    }
}

/// A sentence about the command line of `vaultfs mount`, for the user that gives options of a
/// volume.
fn as_options(sentence: &str) -> String {
    let sentence = sentence.replace(" --", " -o ").replace("'--", "'-o ");
    sentence.strip_prefix("--").map_or(sentence.clone(), |rest| format!("-o {rest}"))
}

/// What clap says, without its usage lines and dashes.
fn one_sentence(said: &str) -> String {
    let lines = said.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.split(" For more information").next().map(as_options).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let map = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        options::arguments(&[&map], &MountGrammar)
    }

    #[test]
    fn options_of_mount_are_options_of_volumes() {
        let all = [
            ("embedded", "/data"),
            ("prefix", "app"),
            ("read-only", ""),
            ("mode", "0640"),
            ("uid", "1000"),
            ("gid", "1000"),
            ("refresh", "2s"),
        ];
        assert_eq!(of(&all).expect("all known").len(), 8);
        assert!(of(&[("api-url", "https://x"), ("api-key-file", "/k"), ("api", "kv")]).is_ok());
    }

    #[test]
    fn what_is_wrong_is_one_sentence() {
        let refresh = of(&[("refresh", "soon")]).unwrap_err();
        assert!(refresh.contains("-o refresh") && refresh.contains("10s"), "{refresh}");
        assert!(!refresh.contains('\n') && !refresh.contains("Usage"), "{refresh}");
        for unknown in ["never-empty", "foreground", "o", "colour", "mountpoint"] {
            assert!(of(&[(unknown, "x")]).unwrap_err().contains("no such option"), "{unknown}");
        }
        for (meant, said) in [
            ("readonly-", "read-only"),
            ("prefx", "prefix"),
            ("api_key_fil", "api-key-file"),
            ("mod", "mode"),
        ] {
            assert!(of(&[(meant, "x")]).unwrap_err().ends_with(&format!("did you mean {said}?")), "{meant}");
        }
        assert!(!of(&[("never-empt", "")]).unwrap_err().contains("did you mean"), "not for volumes");
        for prefix in ["/", "/a/"] {
            assert!(of(&[("prefix", prefix)]).unwrap_err().starts_with("-o prefix=/"));
        }
        assert!(of(&[("prefix", "a/")]).is_ok());
        assert!(of(&[("wait", "5m")]).unwrap_err().contains("90 s at most"));
        assert!(of(&[("wait", "")]).is_ok());
    }

    #[test]
    fn defaults_are_a_list_or_several() {
        let given = ["api-url=https://x,read-only".to_owned(), "uid=5".to_owned()];
        let map = defaults(&given);
        assert_eq!(
            (map["api-url"].as_str(), map["read-only"].as_str(), map["uid"].as_str()),
            ("https://x", "", "5")
        );
    }
}
