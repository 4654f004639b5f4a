//! `vaultfs mount`: validates the options, starts the keeper, waits for its answer.
//!
//! The key and the configuration go to the keeper through a pipe. The command returns when the
//! mount answers a request of its own, or with the exit code and the message of the process that
//! failed. `-o` options are the long options under another name ([`mount_options`]).

mod start;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::args::connect::{ApiKeyInput, ConnectArgs, ConnectSpec, Endpoint, say_made};
use crate::cli::args::{mount_options, values};
use crate::cli::commands::mount::start::{start_keeper, stat_from_outside};
use crate::cli::exit::{Exit, Failure};
use crate::cli::log;
use crate::cli::log::LogConfig;
use crate::cli::{assembly, service, terminal};
use crate::daemon::protocol::{MountConfig, Outcome};
use crate::daemon::runtime_dir;
use crate::display::Shown;
use crate::fs::{self, Audit, Options};
use crate::sys::files;
use crate::sys::mount::KernelOptions;
use crate::sys::mount_target::Target;
use crate::sys::mountpoint;
use crate::sys::stdio;
use crate::vault::codec::Format;
use crate::vault::lazy::Start;

/// Mount a vault on a directory; return when the mount can be used
///
/// Each object of the vault is a file. Reading a file returns the object's current version; when a
/// save returns, the vault has a new version. Old versions are in .versions in the root. `vaultfs
/// status` shows the state of the mount. Background processes serve it until `vaultfs unmount`, and
/// it outlives a crash of the process that serves it.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  mkdir -p ~/secrets ~/app-secrets\n  vaultfs mount --embedded ~/secrets\n  \
                  vaultfs mount --api-url https://vault.example.com --api-key-file ~/.config/vault-key ~/secrets\n  \
                  vaultfs mount --embedded --prefix app --read-only ~/app-secrets\n\nAt boot: vaultfs(5), mount.vaultfs(8), \
                  and the units vaultfs@.service."
)]
pub struct MountArgs {
    #[command(flatten)]
    connect: ConnectArgs,

    /// An empty directory to mount on
    #[arg(help_heading = None)]
    mountpoint: PathBuf,

    /// Refuse every change
    #[arg(help_heading = "What may be done", long, alias = "ro")]
    read_only: bool,

    /// Refuse to delete; overwriting works
    #[arg(help_heading = "What may be done", long)]
    no_delete: bool,

    /// Fail a save with ESTALE when the object was changed elsewhere since it was opened
    ///
    /// The data of the failed save stays readable in the mount, and `vaultfs pending` lists it.
    /// Without --strict the last save wins, and the other value is in .versions.
    #[arg(help_heading = "What may be done", long)]
    strict: bool,

    /// How values are stored: auto stores JSON objects as JSON and all else as bytes, json accepts
    /// JSON objects only, raw always stores bytes
    #[arg(help_heading = "What may be done", long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,

    /// How soon remote changes are visible
    #[arg(help_heading = "How fresh", long, value_name = "TIME", default_value = "5s", value_parser = values::some_time)]
    refresh: Duration,

    /// Update files in place when they change elsewhere, so that a bind-mounted single file shows
    /// the new value
    ///
    /// A remote change then keeps the inode, and a reader may see a mix of both versions. Without
    /// --in-place a remote change is an atomic rename, and no reader sees a mix.
    #[arg(help_heading = "How fresh", long)]
    in_place: bool,

    /// How long cached values are served while the vault is unreachable
    #[arg(help_heading = "How fresh", long, value_name = "TIME", default_value = "1h", value_parser = values::time)]
    max_stale: Duration,

    /// How long an unmount tries to store unsaved writes
    #[arg(help_heading = "Limits", long, value_name = "TIME", default_value = "60s", value_parser = values::time)]
    drain: Duration,

    /// Wait for a vault that does not answer yet [60s without a value]
    ///
    /// Without --wait and --lazy, the mount of such a vault fails at once with exit code 4.
    #[arg(help_heading = "How fresh", long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s",
          value_parser = values::time, conflicts_with = "lazy")]
    wait: Option<Duration>,

    /// Mount even if the vault is unreachable; access fails with ETIMEDOUT until it answers
    #[arg(help_heading = "How fresh", long)]
    lazy: bool,

    /// Run CMD (with /bin/sh) after a remote change
    ///
    /// Its environment describes the change: VAULTFS_NAME, VAULTFS_VERSION, VAULTFS_EVENT (created,
    /// changed, deleted, or many), and VAULTFS_MOUNTPOINT. Changes of one name within half a second
    /// cause one run. One command runs at a time, for at most 60 s.
    #[arg(help_heading = "How fresh", long, value_name = "CMD", value_parser = command_line)]
    on_change: Option<String>,

    /// Size of the value cache
    #[arg(help_heading = "Limits", long, value_name = "SIZE", default_value = "64MiB", value_parser = values::some_size)]
    cache_size: ByteSize,

    /// Show the directories of this name, for a key that may not list names (repeatable)
    ///
    /// Such a key finds names without a slash, and names in directories that are known from --name,
    /// from an object that was read, or from a save. Any other name that is no object is EACCES.
    #[arg(help_heading = "What may be done", long = "name", value_name = "NAME", value_parser = values::name)]
    names: Vec<String>,

    /// More names of temporary files that are never stored, besides those of editors (repeatable)
    #[arg(help_heading = "What may be done", long, value_name = "GLOB", value_parser = glob_pattern)]
    scratch: Vec<String>,

    /// Memory for temporary (scratch) files
    #[arg(help_heading = "Limits", long, value_name = "SIZE", default_value = "16MiB", value_parser = values::size)]
    scratch_size: ByteSize,

    /// Let other users in, as far as file permissions allow
    #[arg(help_heading = "Who may enter", long)]
    allow_other: bool,

    /// User that owns all files [default: you]
    #[arg(help_heading = "Who may enter", long, value_name = "USER", value_parser = values::user)]
    uid: Option<u32>,

    /// Group of all files [default: yours]
    #[arg(help_heading = "Who may enter", long, value_name = "GROUP", value_parser = values::group)]
    gid: Option<u32>,

    /// Maximum file permissions
    #[arg(help_heading = "Who may enter", long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    file_mode: u32,

    /// Maximum directory permissions
    #[arg(help_heading = "Who may enter", long, value_name = "MODE", default_value = "0700", value_parser = mode)]
    dir_mode: u32,

    /// List .versions in the root
    #[arg(help_heading = "What may be done", long)]
    show_versions: bool,

    /// Record each open as a JSON line appended to FILE; SIGHUP to the keeper reopens FILE
    ///
    /// With --read-only each open then costs a request to vaultfs; without --audit it costs none.
    #[arg(help_heading = "The process", long, value_name = "FILE", value_parser = values::absolute_path)]
    audit: Option<PathBuf>,

    /// Log to FILE instead of the journal or $XDG_STATE_HOME/vaultfs/NAME.log
    #[arg(help_heading = "The process", long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// Options as mount(8) takes them: the long ones without dashes, and ro, rw, noexec, nonempty …
    #[arg(help_heading = "The process", short = 'o', value_name = "OPT,OPT=VAL")]
    options: Vec<String>,

    /// Log more: -v also logs retries and remote changes, -vv also each request of the kernel
    #[arg(help_heading = "The process", short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Stay in the foreground, log on standard error, end with the mount
    #[arg(help_heading = "The process", short, long)]
    foreground: bool,

    /// It does so anyway
    #[arg(long, hide = true, conflicts_with = "foreground", aliases = ["background", "daemonize"])]
    daemon: bool,

    /// Mount over files
    #[arg(long, hide = true)]
    nonempty: bool,

    /// Show .vaultfs in an empty root
    #[arg(long, hide = true)]
    never_empty: bool,

    /// Programs on the mount cannot be run
    #[arg(long, hide = true)]
    noexec: bool,

    /// As mount(8) has it
    #[arg(long, hide = true)]
    sync: bool,

    /// As mount(8) has it
    #[arg(long, hide = true)]
    noatime: bool,

    /// As mount(8) has it
    #[arg(long, hide = true)]
    nosymfollow: bool,

    /// What the mount table calls it
    #[arg(long, hide = true, value_name = "NAME")]
    fsname: Option<String>,
}

/// Validates the options and the mount point before a process is started.
fn prepare(args: &MountArgs) -> anyhow::Result<(MountConfig, ApiKeyInput, Target)> {
    if let Some(option) = args.options.first() {
        return Err(usage(mount_options::refusal(option)).into());
    }
    let mut kernel = KernelOptions {
        allow_other: args.allow_other,
        noexec: args.noexec,
        sync: args.sync,
        noatime: args.noatime,
        nosymfollow: args.nosymfollow && nix::unistd::geteuid().is_root(),
        source: args.fsname.clone(),
    };
    if args.nosymfollow && !kernel.nosymfollow {
        stdio::say("hint: -o nosymfollow has no effect for ordinary users; a vault holds no links anyway");
    }
    let (spec, key) = args.connect().resolve()?;
    // mount(2) refuses what is longer than a page.
    let vault = Some(spec.endpoint.to_string()).filter(|vault| vault.len() < 2048);
    kernel.source = kernel.source.or(vault);
    let options = args.file_system_options();
    let failed = |e: &dyn std::fmt::Display| Failure::new(Exit::Failed, e.to_string());
    mountpoint::check_machine(&kernel, options.uid, options.gid).map_err(|e| failed(&e))?;
    let target = mountpoint::check(&args.mountpoint, args.nonempty).map_err(|e| failed(&e))?;
    let mountpoint = target.path().to_owned();
    keep_off(&mountpoint, &spec, args.audit.as_ref())?;
    if !args.allow_other && options.uid != nix::unistd::geteuid().as_raw() {
        stdio::say("hint: without --allow-other only you can enter, whatever user --uid names");
    }
    let log = LogConfig::choose(&mountpoint, args.log.as_deref(), args.foreground, args.verbose)
        .map_err(|e| bad_log(&e))?;
    let config = MountConfig {
        mountpoint,
        options,
        kernel,
        spec: serde_json::to_value(spec)?,
        start: match args.wait {
            Some(patience) => Start::Wait(patience),
            None if args.lazy => Start::Lazy,
            None => Start::AtOnce,
        },
        drain: args.drain,
        on_change: args.on_change.clone(),
        log: serde_json::to_value(&log)?,
        log_place: log.target.to_string(),
        foreground: args.foreground,
    };
    Ok((config, key, target))
}

fn bad_log(e: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("the log cannot be written: {e}"))
}

/// Refuses files of the worker on the mount itself: the worker would wait for itself.
fn keep_off(mountpoint: &Path, spec: &ConnectSpec, audit: Option<&PathBuf>) -> Result<(), Failure> {
    let data = match &spec.endpoint {
        Endpoint::Embedded(dir) => Some(dir),
        Endpoint::Url(_) => None,
    };
    let needed = [data, spec.key_file.as_ref(), spec.ca_file.as_ref(), audit];
    for path in needed.into_iter().flatten() {
        files::check_way(path).map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", path.shown())))?;
        // Of a missing path: its nearest existing ancestor.
        let real = path.ancestors().find_map(|part| part.canonicalize().ok());
        if real.is_some_and(|real| real.starts_with(mountpoint)) {
            let (path, mountpoint) = (path.shown(), mountpoint.shown());
            return Err(usage(format!(
                "{path} would be hidden by the mount on {mountpoint}: choose another place"
            )));
        }
    }
    Ok(())
}

/// Runs the command.
pub fn run(args: MountArgs) -> anyhow::Result<ExitCode> {
    let (config, key, target) = prepare(&args)?;
    let spec: ConnectSpec = serde_json::from_value(config.spec.clone())?;
    let new = spec.new_vault();
    let given = args.connect.runtime.dir().map(Path::to_owned);
    let runtime_dir = given.or_else(runtime_dir::known_by_environment_alone);
    let (mut child, ready) = start_keeper(&config, key.secret.as_ref(), target, runtime_dir.as_deref())?;
    drop(key);
    let dev = match ready {
        Outcome::Ready { dev, .. } => dev,
        Outcome::Failed(failed) => {
            let _ = child.wait();
            new.filter(|_| spec.new_vault().is_none()).inspect(|dir| say_made(dir));
            return Err(Failure::with_code(failed.exit, failed.message).into());
        }
    };
    new.inspect(|dir| say_made(dir));
    match stat_from_outside(&config.mountpoint, dev) {
        Ok(status) if !args.read_only => hint_at_key(&status),
        Ok(_) => {}
        Err(failure) => {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            // The mount is gone before its failure is reported.
            let _ = child.wait();
            return Err(failure.into());
        }
    }
    if !args.foreground {
        // mount(8) says nothing.
        if args.fsname.is_none() {
            terminal::done(format_args!("mounted {}", config.mountpoint.shown()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    service::stay(child, &config.mountpoint)
}

/// `mount -f`: checks everything and mounts nothing.
pub fn check(args: &MountArgs) -> anyhow::Result<ExitCode> {
    prepare(args).map(|_| ExitCode::SUCCESS)
}

impl MountArgs {
    /// `mount -s`: ignores unknown options, with a hint for each.
    pub fn forget_unknown_options(&mut self) {
        let mut named: Option<String> = None;
        for option in self.options.drain(..) {
            // Text after an unknown name=value may be the rest of a value with a comma in it.
            let rest = !option.contains('=') && named.as_ref().is_some_and(|before| before.contains('='));
            if !rest {
                let shown = mount_options::shown(&option);
                stdio::say(format_args!("hint: -o {shown} is not known and was ignored"));
                named = Some(option);
            }
        }
    }

    /// `--wait`: how long to wait for a vault that does not answer.
    pub fn patience(&self) -> Option<Duration> {
        self.wait
    }

    /// The checks of [`run`] that need neither a vault nor a mount point, for the volume plugin.
    /// `key_later`: the key may come later.
    pub fn validate(&self, key_later: bool) -> Result<(), Failure> {
        self.connect().validate(key_later)?;
        if let Some(path) = &self.audit {
            Audit::check(path).map_err(|e| assembly::bad_audit(path, &e))?;
        }
        self.log.as_deref().map_or(Ok(()), log::check).map_err(|e| bad_log(&e))
    }

    /// Connection options; files of the user that `--uid` names are trusted too.
    fn connect(&self) -> ConnectArgs {
        ConnectArgs { also: self.uid, ..self.connect.clone() }
    }

    fn file_system_options(&self) -> Options {
        let own = Options::default();
        Options {
            // Filled in by `assembly::stack`.
            vault: own.vault,
            read_only: self.read_only,
            no_delete: self.no_delete,
            strict: self.strict,
            format: self.format,
            refresh: self.refresh,
            in_place: self.in_place,
            max_stale: self.max_stale,
            timeout: self.connect.timeout,
            max_size: self.connect.max_size.as_u64(),
            cache_size: self.cache_size.as_u64(),
            names: self.names.clone(),
            scratch: self.scratch.clone(),
            scratch_size: self.scratch_size.as_u64(),
            uid: self.uid.unwrap_or(own.uid),
            gid: self.gid.unwrap_or(own.gid),
            file_mode: self.file_mode,
            dir_mode: self.dir_mode,
            show_versions: self.show_versions,
            audit: self.audit.clone(),
            never_empty: self.never_empty,
        }
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

/// Octal permission bits.
fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, like 0640".into()),
    }
}

/// A shell command.
fn command_line(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.contains('\0') {
        return Err("give a command, like 'nginx -s reload'".into());
    }
    Ok(text.to_owned())
}

fn glob_pattern(text: &str) -> Result<String, String> {
    glob::Pattern::new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// Prints a hint if the vault has reported that the key may not write.
fn hint_at_key(status: &[u8]) {
    let status = serde_json::from_slice::<fs::Status>(status);
    if status.is_ok_and(|status| status.vault.may_write == Some(false)) {
        stdio::say(
            "hint: this key may not write: files cannot be opened for writing (EACCES); --read-only says so from the start",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_permissions() {
        assert_eq!(mode("0640"), Ok(0o640));
        assert!(mode("1777").is_err());
        assert!(mode("rw").is_err());
    }
}
