//! The vault: whether it is reached, takes the key, agrees about the time, and has requests left.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Finding;
use crate::cli::connect::{self, ConnectArgs, Endpoint};
use crate::cli::exit::{Exit, Failure};
use crate::clock::SystemClock;
use crate::vault::BudgetStatus;

/// Clocks may differ so much: certificates and refresh times still work.
const CLOCKS: Duration = Duration::from_secs(60);

/// What there is to say about the vault that is named, if one is.
pub fn examine(args: &ConnectArgs) -> Result<Vec<Finding>, Failure> {
    if !args.names_a_vault() {
        let how =
            "give --api-url and --api-key-file, or --embedded, or set WORKOS_API_KEY, to have it looked at";
        return Ok(vec![Finding::note("vault", "no vault is named", how)]);
    }
    let (spec, key) = match args.resolve() {
        Ok(resolved) => resolved,
        Err(failure) if failure.exit == Exit::Usage => return Err(failure),
        Err(failure) => {
            return Ok(vec![Finding::problem("key", failure.message, "mend that, then look again")]);
        }
    };
    if let Endpoint::Embedded(dir) = &spec.endpoint {
        return Ok(embedded(dir));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    let looked = runtime.block_on(connect::look(&spec, key, Arc::new(SystemClock)));
    Ok(match looked {
        Ok(look) => {
            let says = format!(
                "it answers in {} ms, {:?} API, and takes the key",
                look.took.as_millis(),
                look.dialect
            );
            let mut found = vec![Finding::ok("vault", says)];
            found.extend(look.status.ahead_ms.map(|ms| clock(Duration::from_millis(ms.unsigned_abs()))));
            found.extend(look.status.budget.map(|budget| rate(&budget)));
            found
        }
        Err(failure) => vec![Finding::problem("vault", failure.message, next_step(failure.exit))],
    })
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
    let says = format!("{} of {} requests left in this minute", budget.remaining, budget.limit);
    if budget.assumed {
        return Finding::ok(
            "rate",
            format!("the service tells no limit; {} a minute are assumed", budget.limit),
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

/// Nothing is started for it: the first use would make one.
fn embedded(dir: &Path) -> Vec<Finding> {
    let shown = dir.display();
    let Ok(meta) = dir.metadata() else {
        return vec![Finding::ok("vault", format!("{shown} is made at the first mount"))];
    };
    let mut found = Vec::new();
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        let fix = format!("use a directory of your own, or chown {shown}");
        found.push(Finding::problem("vault", format!("{shown} belongs to another user"), fix));
    } else {
        found.push(Finding::ok("vault", format!("{shown} is there")));
    }
    if dir.join("master-key").exists() {
        found.push(Finding::note(
            "master key",
            "it is beside the database: who has a copy of the directory can read it all",
            "keep it elsewhere, and a copy of it in a safe place (docs/OPERATIONS.md, \"Backup\")",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn clocks_may_differ_by_a_minute() {
        assert_eq!(clock(Duration::from_secs(30)).level, Level::Ok);
        let late = clock(Duration::from_secs(3600));
        assert!(late.level == Level::Warning && late.says.contains("1h"), "{late:?}");
    }

    #[test]
    fn a_budget_that_is_nearly_spent_is_a_warning() {
        let of = |remaining| rate(&BudgetStatus { limit: 1000, remaining, reset_s: 9, assumed: false }).level;
        assert_eq!((of(1000), of(99)), (Level::Ok, Level::Warning));
    }
}
