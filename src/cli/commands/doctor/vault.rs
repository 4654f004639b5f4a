//! The vault: whether it is reached, takes the key, agrees about the time, and has requests left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cli::args::connect;
use crate::cli::args::connect::{ConnectArgs, ConnectSpec, Endpoint, key_file};
use crate::cli::commands::doctor::Finding;
use crate::cli::exit::{Exit, Failure};
use crate::clock::SystemClock;
use crate::display::Shown;
use crate::secret::SecretString;
use crate::server::error::ServeError;
use crate::server::instance::inspect;
use crate::server::instance::inspect::Inspected;
use crate::vault::client;
use crate::vault::client::api_key::ApiKey;
use crate::vault::client::{HttpConfig, Target};
use crate::vault::{BudgetStatus, Call};

/// Clocks may differ so much: certificates and refresh times still work.
const CLOCKS: Duration = Duration::from_secs(60);

/// What there is to say about the vault that is named, if one is.
pub fn check(args: &ConnectArgs) -> Result<Vec<Finding>, Failure> {
    if !args.names_a_vault() {
        let how =
            "give --api-url and --api-key-file, or --embedded, or set WORKOS_API_KEY, to have it looked at";
        return Ok(vec![Finding::note("vault", "no vault is named", how)]);
    }
    let (spec, key) = match args.resolve() {
        Ok(resolved) => resolved,
        Err(failure) if failure.exit == Exit::Usage => return Err(failure),
        Err(failure) => {
            return Ok(vec![Finding::problem("key", failure.message, "fix that, then run the doctor again")]);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    if let Endpoint::Embedded(dir) = &spec.endpoint {
        return Ok(runtime.block_on(embedded(dir, &spec)));
    }
    Ok(asked(runtime.block_on(connect::survey(&spec, key, Arc::new(SystemClock)))))
}

/// What came of asking a vault.
fn asked(answer: Result<client::Survey, Failure>) -> Vec<Finding> {
    match answer {
        Ok(survey) => {
            let says = format!(
                "it answers in {} ms, {:?} API, and takes the key",
                survey.took.as_millis(),
                survey.dialect
            );
            let mut found = vec![Finding::ok("vault", says)];
            if !survey.may_list {
                let fix = "names are found one by one: mount with --name NAME, or use a key that may list";
                found.push(Finding::note("key", "it may not list names", fix));
            }
            found.extend(survey.status.ahead_ms.map(|ms| clock(Duration::from_millis(ms.unsigned_abs()))));
            found.extend(survey.status.budget.map(|budget| rate(&budget)));
            found
        }
        Err(failure) => vec![Finding::problem("vault", failure.message, next_step(failure.exit))],
    }
}

fn next_step(exit: Exit) -> &'static str {
    match exit {
        Exit::Key => "have the key checked where it was issued, or make a new one",
        Exit::RateLimited => "wait a minute; `vaultfs status` shows what the mounts use",
        _ => "check the address, the network (curl -I URL) and the certificates (--ca-file)",
    }
}

fn clock(apart: Duration) -> Finding {
    if apart <= CLOCKS {
        return Finding::ok("clock", "the vault's clock and ours agree");
    }
    let apart = humantime::format_duration(Duration::from_secs(apart.as_secs()));
    Finding::warning(
        "clock",
        format!(
            "the vault's clock and ours are {apart} apart: times shown are wrong, certificates may be refused"
        ),
        "set the clock: timedatectl set-ntp true",
    )
}

fn rate(budget: &BudgetStatus) -> Finding {
    let says = format!(
        "{} of {} requests left in this window of {}",
        budget.remaining,
        budget.limit,
        humantime::format_duration(Duration::from_secs_f64(budget.window_s.round()))
    );
    if budget.assumed {
        return Finding::ok(
            "rate",
            format!("the service reports no limit; {} a minute are assumed", budget.limit),
        );
    }
    if budget.remaining * 10 >= budget.limit {
        return Finding::ok("rate", says);
    }
    Finding::warning(
        "rate",
        says,
        "a longer --refresh, a --prefix, or a key of its own for each mount saves requests",
    )
}

/// Nothing is started for it: the first use would make one. What opening it would say is found
/// without.
async fn embedded(dir: &Path, spec: &ConnectSpec) -> Vec<Finding> {
    let shown = dir.shown();
    let mut found = match inspect::inspect(dir).await {
        Err(e) => return vec![unusable(dir, &e)],
        Ok(Inspected::New) => vec![Finding::ok("vault", format!("{shown} is made at the first mount"))],
        Ok(Inspected::Served { socket, key_file }) => match key_file::read(&key_file, None) {
            Ok(key) => asked(ask(socket, key, spec).await),
            Err(failure) => vec![bad_key(&failure)],
        },
        Ok(Inspected::Openable(vault)) => {
            let key = key_file::read(&vault.key_file, None).map(|key| vault.takes(&key));
            vec![match key {
                Ok(Ok(true)) => {
                    Finding::ok("vault", format!("{shown} is there, can be opened, and takes its key"))
                }
                Ok(Ok(false)) => Finding::problem(
                    "key",
                    format!("the vault does not know the key in {}", vault.key_file.shown()),
                    format!("make another: vaultfs serve --data {shown} key add, and put it into that file"),
                ),
                Ok(Err(e)) => unusable(dir, &e),
                Err(failure) => bad_key(&failure),
            }]
        }
    };
    if dir.join("master-key").exists() {
        found.push(Finding::note(
            "master key",
            "it is beside the database: anyone with a copy of the directory can read every value",
            "keep it in another place, and a copy of it in a safe place (docs/OPERATIONS.md, \"Backup\")",
        ));
    }
    found
}

fn bad_key(failure: &Failure) -> Finding {
    Finding::problem("key", failure.message.clone(), "fix that, then run the doctor again")
}

fn unusable(dir: &Path, e: &ServeError) -> Finding {
    let fix = match e {
        ServeError::ForeignDirectory { path, .. } => {
            format!("use a directory of your own, or chown {}", path.shown())
        }
        ServeError::MasterKey { path, .. } | ServeError::ApiKey { path, .. } => {
            format!("chmod 600 {0} if others can read it, else put {0} back from a backup", path.shown())
        }
        ServeError::Database { path, .. } => format!("put {} back from a backup", path.shown()),
        _ => format!("fix that, or give another directory than {}: --embedded=DIR", dir.shown()),
    };
    Finding::problem("vault", format!("the embedded vault cannot be used: {e}"), fix)
}

/// Asks the process that serves an embedded vault.
async fn ask(socket: PathBuf, key: SecretString, spec: &ConnectSpec) -> Result<client::Survey, Failure> {
    let config = HttpConfig {
        target: Target::Socket(socket),
        tls: Arc::default(),
        key: Arc::new(ApiKey::new(key, None, None)),
        clock: Arc::new(SystemClock),
        max_size: usize::try_from(spec.max_size).unwrap_or(usize::MAX),
        policy: client::retry::Policy::default(),
        listeners: None,
        key_context: spec.key_context.clone(),
    };
    let call = Call::foreground(config.clock.now() + spec.timeout);
    Ok(client::survey(config, &call, spec.dialect()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::commands::doctor::Level;

    #[test]
    fn clocks_may_differ_by_a_minute() {
        assert_eq!(clock(Duration::from_secs(30)).level, Level::Ok);
        let late = clock(Duration::from_secs(3600));
        assert!(late.level == Level::Warning && late.says.contains("1h"), "{late:?}");
    }

    #[test]
    fn a_budget_that_is_nearly_spent_is_a_warning() {
        let of = |remaining| {
            rate(&BudgetStatus { limit: 1000, remaining, reset_s: 9, window_s: 60.0, assumed: false }).level
        };
        assert_eq!((of(1000), of(99)), (Level::Ok, Level::Warning));
    }
}
