//! `/.vaultfs/metrics`: the status as Prometheus scrapes it, in its text format.
//!
//! Numbers only: no value, no key and no object's name, which would be a label without bound; of
//! programs those with the most requests have a label each, all others one. What grows for ever is
//! a counter and ends in `_total`; times are in seconds, sizes in bytes. Made when it is read, from
//! the same state as `status.json`, so the two never disagree.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use crate::fs::FileSystem;
use crate::fs::report::status::{CacheUse, Status, Vault, status};

/// The text under construction.
struct Text(String);

impl Text {
    /// One metric with one sample.
    fn metric(&mut self, kind: &str, name: &str, help: &str, value: impl Display) {
        self.samples(kind, name, help, &[(String::new(), value.to_string())]);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.metric("gauge", name, help, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.metric("counter", name, help, value);
    }

    fn samples(&mut self, kind: &str, name: &str, help: &str, samples: &[(String, String)]) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP vaultfs_{name} {help}\n# TYPE vaultfs_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "vaultfs_{name}{labels} {value}");
        }
    }
}

/// The metrics at this moment. Never asks the vault.
pub(in crate::fs) fn metrics(fs: &FileSystem) -> String {
    render(&status(fs), &fs.env.errors().counts())
}

/// `failures`: how often each errno was returned, by its name.
fn render(status: &Status, failures: &BTreeMap<String, u64>) -> String {
    let mut text = Text(String::new());
    let (vault, cache) = (&status.vault, &status.cache);
    let version = env!("CARGO_PKG_VERSION");
    let labels = format!("{{version=\"{version}\",dialect=\"{}\"}}", vault.dialect);
    text.samples("gauge", "build_info", "Always 1; version of the program.", &[(labels, "1".into())]);
    text.gauge("uptime_seconds", "Time since the worker started.", status.uptime_s);
    of_vault(&mut text, vault);
    of_cache(&mut text, cache);
    of_files(&mut text, status);
    of_failures(&mut text, status, failures);
    text.0
}

fn of_vault(text: &mut Text, vault: &Vault) {
    text.gauge(
        "vault_up",
        "1 if the vault answered when it was last asked, else 0.",
        u8::from(vault.outage.is_none()),
    );
    text.gauge(
        "vault_outage_seconds",
        "Time for which the vault has not answered.",
        vault.outage_s.unwrap_or(0),
    );
    text.counter("vault_requests_total", "Requests sent to the vault, retries included.", vault.requests);
    text.samples(
        "counter",
        "vault_requests_by_program_total",
        "The same by the program that caused them; (vaultfs): by itself, (others): programs that sent few.",
        &spent_by(vault),
    );
    if let Some(budget) = &vault.budget {
        text.gauge("vault_budget_limit", "Requests that are allowed in a window.", budget.limit);
        text.gauge("vault_budget_remaining", "Requests that are left in this window.", budget.remaining);
        text.gauge("vault_budget_reset_seconds", "Time until the window ends.", budget.reset_s);
    }
}

fn of_cache(text: &mut Text, cache: &CacheUse) {
    text.gauge("cache_names", "Names of objects that are known.", cache.names);
    text.gauge("cache_values", "Values that are held in memory.", cache.values);
    text.gauge("cache_bytes", "Memory that they take.", cache.bytes);
    text.gauge("cache_capacity_bytes", "Memory that they may take.", cache.capacity);
    text.gauge(
        "cache_locked_bytes",
        "Memory for small values that cannot be swapped out.",
        cache.value_memory_locked,
    );
    text.gauge("cache_refresh_seconds", "For how long an answer counts as fresh.", cache.refresh_s);
    text.gauge(
        "cache_serving_stale",
        "1 if values past their time are being served, else 0.",
        u8::from(cache.serving_stale),
    );
    if let Some(listed) = cache.listed_s {
        text.gauge("cache_listed_seconds", "Time since the last complete listing.", listed);
    }
}

fn of_files(text: &mut Text, status: &Status) {
    text.gauge("inodes", "Files and directories that the kernel knows.", status.inodes);
    text.gauge("open_files", "Open files and directories.", status.handles);
    text.gauge("scratch_bytes", "Memory for files that are never stored.", status.scratch_bytes);
    let failed = status.unsaved.iter().filter(|write| write.error.is_some()).count();
    let conflicts = status.unsaved.iter().filter(|write| write.conflict).count();
    text.gauge(
        "unsaved_writes",
        "Writes that the vault does not have, open files included.",
        status.unsaved.len(),
    );
    text.gauge("unsaved_failed_writes", "Those of them with a failed save.", failed);
    text.gauge("unsaved_conflicts", "Those of them that need a decision.", conflicts);
    text.gauge(
        "unsaved_bytes",
        "Bytes of writes that the vault does not have.",
        status.unsaved.iter().map(|w| w.size).sum::<u64>(),
    );
}

fn of_failures(text: &mut Text, status: &Status, failures: &BTreeMap<String, u64>) {
    let by_errno: Vec<(String, String)> =
        failures.iter().map(|(errno, count)| (format!("{{errno=\"{errno}\"}}"), count.to_string())).collect();
    text.samples("counter", "failed_operations_total", "Operations that failed or were refused.", &by_errno);
    if let Some(processes) = &status.processes {
        text.counter("worker_restarts_total", "Workers that were replaced.", processes.restarts);
        let locked = [("worker", processes.worker_memory_locked), ("keeper", processes.keeper_memory_locked)];
        let locked =
            locked.map(|(process, is)| (format!("{{process=\"{process}\"}}"), u8::from(is).to_string()));
        text.samples("gauge", "memory_locked", "1 if the process stays out of the swap, else 0.", &locked);
    }
}

/// The requests of the programs with the most, and of all others: so their sum is that of all.
fn spent_by(vault: &Vault) -> Vec<(String, String)> {
    const OTHERS: &str = "(others)";
    if vault.spent_by.is_empty() {
        // A vault in the same process does not count requests by origin.
        return Vec::new();
    }
    let named: Vec<_> = vault.spent_by.iter().filter(|spent| spent.program != OTHERS).collect();
    let others = vault.requests.saturating_sub(named.iter().map(|spent| spent.requests).sum());
    let named = named.into_iter().map(|spent| (spent.program.as_str(), spent.requests));
    let all = named.chain((others > 0).then_some((OTHERS, others)));
    all.map(|(program, requests)| (format!("{{program=\"{}\"}}", label(program)), requests.to_string()))
        .collect()
}

/// A label's value: any process may name itself as it likes.
fn label(text: &str) -> String {
    crate::display::line(text).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}
