//! `vaultfs ls|get|put|rm|log|restore`: objects without a mount.
//!
//! Standard output is data and nothing else; sentences go to standard error. Each command connects,
//! does its work with a few requests and leaves. A save here keeps the promises of a save through a
//! mount: one version, none for equal bytes, an answer only when the vault has it.

mod lines;
mod save;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::args::connect::{ApiKeyInput, ConnectSpec, VaultArgs, connect, say_made};
use crate::cli::args::hints;
use crate::cli::args::values;
use crate::cli::commands::objects::lines::{log_json, log_line, ls_json, ls_line};
use crate::cli::commands::objects::save::{delete, save};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::terminal;
use crate::clock::SystemClock;
use crate::display;
use crate::sys::hardening;
use crate::sys::stdio;
use crate::vault::codec::{self, Format};
use crate::vault::lazy::Start;
use crate::vault::model::object::Cursors;
use crate::vault::{
    Call, Content, DynVault, Error, ErrorKind, ListQuery, Meta, Object, ObjectName, Page, Summary,
    VersionInfo, VersionTag,
};

/// Objects without a mount.
#[derive(Debug, clap::Subcommand)]
pub enum ObjectCommand {
    /// List names, sorted
    ///
    /// Prints one name per line. Names may hold any character, and a terminal shows control
    /// characters escaped. For scripts use --json.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  vaultfs ls\n  vaultfs ls -l db\n  vaultfs ls --json | jq -r '.[].name'"
    )]
    Ls(LsArgs),
    /// Print the value of an object, byte for byte
    #[command(
        visible_aliases = ["cat", "read"],
        after_help = "Examples:\n  vaultfs get db/password\n  vaultfs get db/password --version 3 > old"
    )]
    Get(GetArgs),
    /// Store standard input as the value of an object
    ///
    /// At a terminal, what you type is not shown, and the Enter before Ctrl-D is not part of the
    /// value. From a pipe or a file, each byte counts.
    ///
    /// Creates the object or a new version of it. Equal bytes make no new version. A write-only key
    /// can create objects but not update them: to update, the key also needs the permission read.
    #[command(visible_aliases = ["set", "write"], after_help = "Examples:\n  printf %s \"$PASSWORD\" | vaultfs put db/password\n  \
                            vaultfs put tls/key < key.pem\n\necho adds a newline to the value, printf %s does not.")]
    Put(PutArgs),
    /// Permanently delete objects with their whole history
    #[command(
        visible_alias = "delete",
        after_help = "Example:\n  vaultfs rm db/password db/user\n\nIf one name fails, the others are still deleted."
    )]
    Rm(RmArgs),
    /// List the versions of an object, oldest first
    #[command(visible_aliases = ["history", "versions"], after_help = "Examples:\n  vaultfs log db/password\n  vaultfs get db/password --version 3")]
    Log(LogArgs),
    /// Restore an old version
    ///
    /// Its value is stored as a new version; the history stays complete.
    #[command(after_help = "Example:\n  vaultfs log db/password\n  vaultfs restore db/password 3")]
    Restore(RestoreArgs),
}

/// `vaultfs ls`.
#[derive(Debug, clap::Args)]
pub struct LsArgs {
    /// List only DIR: the names below DIR/, and the object DIR
    ///
    /// On a terminal, control characters in names are escaped; a pipe gets the raw bytes, including
    /// newlines. --json is exact for every name.
    dir: Option<String>,
    /// Print JSON: an array of objects with name, id, version, updated_at
    #[arg(long)]
    json: bool,
    /// Also print size, time of the last change (local time), and version
    ///
    /// A column is - where the listing of the vault does not have it: sizes always (vaultfs log
    /// NAME has them), versions with the kv API.
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    vault: VaultArgs,
}

/// `vaultfs get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// Name of the object
    name: String,
    /// Print version N instead of the current one (see vaultfs log)
    #[arg(long, value_name = "N", value_parser = values::version)]
    version: Option<u64>,
    #[command(flatten)]
    vault: VaultArgs,
}

/// `vaultfs put`.
#[derive(Debug, clap::Args)]
pub struct PutArgs {
    /// Name of the object
    name: String,
    /// How to store it: auto keeps JSON objects structured, json accepts JSON objects only, raw
    /// stores bytes
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    #[command(flatten)]
    vault: VaultArgs,
}

/// `vaultfs rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Names of the objects
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Do not ask. Only a terminal is asked
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    vault: VaultArgs,
}

/// `vaultfs log`.
#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// Name of the object
    name: String,
    /// Print JSON: an array of versions with version, created_at, size, current
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    vault: VaultArgs,
}

/// `vaultfs restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Name of the object
    name: String,
    /// The version to restore (see vaultfs log)
    #[arg(value_name = "N", value_parser = values::version, required_unless_present = "version")]
    number: Option<u64>,
    /// The same
    #[arg(long, value_name = "N", value_parser = values::version, conflicts_with = "number")]
    version: Option<u64>,
    #[command(flatten)]
    vault: VaultArgs,
}

/// Runs the command.
pub fn run(command: ObjectCommand) -> anyhow::Result<ExitCode> {
    // Where the limit forbids it nothing is said: the value is here for moments, and on its way to
    // a pipe.
    let _ = hardening::lock_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match command {
            ObjectCommand::Ls(args) => ls(args).await,
            ObjectCommand::Get(args) => get(args).await,
            ObjectCommand::Put(args) => put(args).await,
            ObjectCommand::Rm(args) => rm(args).await,
            ObjectCommand::Log(args) => log(args).await,
            ObjectCommand::Restore(args) => restore(args).await,
        }
    })?;
    Ok(code)
}

/// What one command works with.
struct ObjectSession {
    vault: DynVault,
    /// What came with the connection, until it is taken.
    first_page: Option<Page>,
    timeout: Duration,
    max_size: u64,
}

impl ObjectSession {
    /// [`ObjectSession::at`] for a command with one name.
    async fn with<T>(
        args: &VaultArgs,
        name: String,
        work: impl AsyncFnOnce(&mut ObjectSession, &ObjectName) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut name = [name];
        let (spec, key) = args.resolve(&mut name)?;
        let name = object_name(&name[0])?;
        Self::at(spec, key, async |session| work(session, &name).await).await
    }

    /// Connects, does `work`, and lets go of the vault whatever comes of it.
    async fn at<T>(
        spec: ConnectSpec,
        key: ApiKeyInput,
        work: impl AsyncFnOnce(&mut ObjectSession) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let connected = connect(&spec, key, Arc::new(SystemClock), Start::AtOnce).await?;
        let mut session = ObjectSession {
            vault: connected.vault,
            first_page: connected.first_page,
            timeout: spec.timeout,
            max_size: spec.max_size,
        };
        let result = work(&mut session).await;
        if let Some(embedded) = connected.embedded {
            embedded.shutdown().await;
        }
        result
    }

    /// The bounds of one operation.
    fn call(&self) -> Call {
        Call::foreground(Instant::now() + self.timeout)
    }

    async fn read(&self, name: &ObjectName) -> Result<Object, Error> {
        let found = self.vault.get_by_name(&self.call(), name).await;
        found.map_err(|e| match e.kind {
            ErrorKind::NotFound => Error::new(e.kind, self.no_such_object(name)),
            _ => e,
        })
    }

    /// Names what was probably meant, if the first names that the vault lists have it.
    fn no_such_object(&self, name: &ObjectName) -> String {
        let names = self.first_page.iter().flat_map(|page| &page.items);
        match hints::nearest(name.as_str(), names.map(|item| item.name.as_str().to_owned())) {
            Some(meant) => {
                format!("there is no object {name:?}: did you mean {meant:?}? vaultfs ls lists all")
            }
            None => format!("there is no object {name:?}: vaultfs ls lists all"),
        }
    }

    /// The versions of an object, oldest first.
    async fn history(&self, meta: &Meta) -> Result<Vec<VersionInfo>, Error> {
        self.vault.versions(&self.call(), &meta.id, None).await.map_err(|e| named(&meta.name, e))
    }

    /// The value of an old version.
    async fn old(&self, meta: &Meta, info: &VersionInfo) -> Result<Content, Error> {
        let old = self.vault.version(&self.call(), &meta.id, info).await;
        old.map(|object| object.content).map_err(|e| named(&meta.name, e))
    }

    /// The version in the object's history that `number` means.
    async fn version_info(&self, meta: &Meta, number: u64) -> Result<VersionInfo, Failure> {
        let history = self.history(meta).await?;
        let range = match (history.first(), history.last()) {
            (Some(first), Some(last)) => format!("{} to {}", first.number, last.number),
            _ => "none".to_owned(),
        };
        history.into_iter().find(|v| v.number == number).ok_or_else(|| {
            let sentence = format!("{:?} has no version {number} (there are {range})", meta.name);
            Failure::new(Exit::NotFound, sentence)
        })
    }
}

/// An object that is given by its id is reported with its name first.
fn named(name: &ObjectName, e: Error) -> Error {
    match e.message.contains(&format!("{name:?}")) {
        true => e,
        false => Error { message: format!("{name:?}: {}", e.message), ..e },
    }
}

fn object_name(text: &str) -> Result<ObjectName, Failure> {
    ObjectName::new(text).ok_or_else(|| Failure::new(Exit::Usage, "a name has 1 to 1024 bytes"))
}

async fn ls(args: LsArgs) -> Result<ExitCode, Failure> {
    let mut dir: Vec<String> = args.dir.into_iter().collect();
    let (spec, key) = args.vault.resolve(&mut dir)?;
    let dir = dir.first().map(String::as_str).filter(|dir| !dir.trim_end_matches('/').is_empty());
    let listed = ObjectSession::at(spec, key, async |session| list(session, dir).await).await?;
    if let (Some(dir), []) = (dir, listed.as_slice()) {
        let sentence = format!("there is no object {dir:?}, and none below it");
        return Err(Failure::new(Exit::NotFound, sentence));
    }
    if args.json {
        return output::print_array(listed.iter().map(ls_json));
    }
    let mut out = Output::new();
    for item in &listed {
        let line = ls_line(item, args.long, out.terminal) + "\n";
        if !out.bytes(line.as_bytes())? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    out.finish()
}

/// The objects in and below `dir`, or all of them, by name. A vault lists in order of creation:
/// nothing is known to be first before the last page.
async fn list(session: &mut ObjectSession, dir: Option<&str>) -> Result<Vec<Summary>, Failure> {
    let below = dir.map(|dir| format!("{}/", dir.trim_end_matches('/')));
    let is_meant = |item: &Summary| {
        let name = item.name.as_str();
        below.as_ref().is_none_or(|below| name.starts_with(below)) || Some(name) == dir
    };
    let mut query = ListQuery::first();
    let mut page = match session.first_page.take() {
        Some(page) => page,
        None => session.vault.list(&session.call(), &query).await?,
    };
    let mut cursors = Cursors::default();
    let mut progress = Progress::on_stderr();
    let (mut listed, mut seen) = (Vec::new(), 0);
    loop {
        let Page { items, next } = page;
        seen += items.len();
        listed.extend(items.into_iter().filter(is_meant));
        let Some(cursor) = cursors.advance(next)? else { break };
        progress.say(&format!("{seen} names"));
        query = query.next(cursor);
        page = session.vault.list(&session.call(), &query).await?;
    }
    listed.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    Ok(listed)
}

async fn get(args: GetArgs) -> Result<ExitCode, Failure> {
    ObjectSession::with(&args.vault, args.name, async |session, name| {
        let object = session.read(name).await?;
        let content = match args.version {
            None => object.content,
            Some(number) => {
                let info = session.version_info(&object.meta, number).await?;
                session.old(&object.meta, &info).await?
            }
        };
        let mut out = Output::new();
        // To standard output, because that is what was asked for.
        out.bytes(content.bytes.expose())?;
        out.finish()
    })
    .await
}

async fn put(args: PutArgs) -> Result<ExitCode, Failure> {
    let mut name = [args.name];
    let (mut spec, key) = args.vault.resolve(&mut name)?;
    let name = object_name(&name[0])?;
    // A mount's vault is there, unless it was moved away.
    spec.makes = args.vault.names_embedded();
    let new = spec.new_vault().filter(|_| spec.makes).map(Path::to_owned);
    ObjectSession::at(spec, key, async |session| {
        new.as_deref().inspect(|dir| say_made(dir));
        let bytes = terminal::read_value(session.max_size)?;
        let saved = save(session, &name, |base| {
            codec::to_content(args.format, base, bytes.expose())
                .map_err(|e| Failure::new(Exit::Failed, e.to_string()))
        })
        .await?;
        if name.as_str().starts_with('/') {
            // Most probably meant as a path.
            stdio::say(format_args!(
                "the name {name:?} begins with a slash: a mount shows it in the directory %_"
            ));
        }
        let name = display::text(name.as_str());
        match saved {
            Some(version) => terminal::done(format_args!("stored {name}{}", numbered(&version))),
            None => terminal::done(format_args!("{name} has this value already: no new version is stored")),
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// The version that a save made, where the vault counts them.
fn numbered(version: &VersionTag) -> String {
    version.as_str().parse::<u64>().map_or_else(|_| String::new(), |n| format!(", version {n}"))
}

async fn rm(args: RmArgs) -> Result<ExitCode, Failure> {
    let mut names = args.names;
    let (spec, key) = args.vault.resolve(&mut names)?;
    let names = names.iter().map(|name| object_name(name)).collect::<Result<Vec<_>, _>>()?;
    ObjectSession::at(spec, key, async |session| {
        let mut failed: Option<Failure> = None;
        for name in &names {
            if let Err(e) = remove(session, name, args.force).await {
                // Each is said; the last where the program ends.
                if let Some(earlier) = failed.replace(e) {
                    earlier.report();
                }
            }
        }
        failed.map_or(Ok(ExitCode::SUCCESS), Err)
    })
    .await
}

/// Deletes an object, if the person at the terminal agrees.
async fn remove(session: &ObjectSession, name: &ObjectName, force: bool) -> Result<(), Failure> {
    let shown = display::text(name.as_str());
    let mut what = shown.to_string();
    if terminal::can_ask() && !force {
        let meta = session.read(name).await?.meta;
        let versions = session.history(&meta).await.map_or(0, |history| history.len());
        match versions {
            0 => what += " and its history",
            1 => {}
            n => what += &format!(" and its {n} versions"),
        }
        if !terminal::confirms(format_args!("delete {what} for good?")) {
            return Err(Failure::new(Exit::Failed, format!("{shown} is not deleted")));
        }
    }
    delete(session, name).await?;
    terminal::done(format_args!("deleted {what}"));
    Ok(())
}

async fn log(args: LogArgs) -> Result<ExitCode, Failure> {
    ObjectSession::with(&args.vault, args.name, async |session, name| {
        let meta = session.read(name).await?.meta;
        let history = session.history(&meta).await?;
        if args.json {
            return output::print_array(history.iter().map(log_json));
        }
        let mut out = Output::new();
        for info in &history {
            if !out.line(log_line(info))? {
                return Ok(ExitCode::SUCCESS);
            }
        }
        out.finish()
    })
    .await
}

async fn restore(args: RestoreArgs) -> Result<ExitCode, Failure> {
    let number = args.number.or(args.version).expect("the parser wants one of them");
    ObjectSession::with(&args.vault, args.name, async |session, name| {
        let meta = session.read(name).await?.meta;
        let info = session.version_info(&meta, number).await?;
        let old = session.old(&meta, &info).await?;
        match save(session, name, |_| Ok(old.clone())).await? {
            Some(version) => {
                let (name, version) = (display::text(name.as_str()), numbered(&version));
                terminal::done(format_args!("restored version {number} of {name}{version}"));
            }
            None => {
                stdio::say(format_args!(
                    "{name:?} holds the bytes of version {number} already: nothing to do"
                ));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
    .await
}
