//! What all processes of a mount take: with nothing in the cache, for each secret more, and after a
//! burst.

use std::time::Duration;

use super::{hundred, names};
use crate::Plan;
use crate::measure::{c_path, cat, in_threads, list, stat};
use crate::mount::{Mount, Place, wait};
use crate::report::Report;
use crate::vault::Vault;

/// How long a mount is left alone before it is looked at.
fn rest(plan: &Plan) -> Duration {
    // Free memory is given back within 20 s of the end of a burst.
    Duration::from_secs(if plan.quick { 25 } else { 60 })
}

pub fn all(plan: &Plan, report: &mut Report) -> Result<(), String> {
    idle(plan, report)?;
    secrets(plan, report)?;
    burst(plan, report)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn idle(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let place = Place::new()?;
    let vault = Vault::start(names("", 10), hundred)?;
    let remote = place.mount("remote", &vault.url, &[])?;
    let embedded = place.mount_embedded("embedded")?;
    let after = rest(plan);
    std::thread::sleep(after);
    for (id, what, mount) in
        [("pss", "vault over HTTP", &remote), ("pss-embedded", "embedded vault", &embedded)]
    {
        let (pss, count) = (mount.pss()?, mount.pids().len());
        report.row(
            id,
            format!("PSS of all processes, empty cache, {} s after mount, {what}", after.as_secs()),
            "≤ 16 MB",
            (megabytes(pss), format!("{count} processes; two mounts share the program's pages")),
            pss <= 16_000_000,
        );
    }
    Ok(())
}

/// Makes the kernel forget names and inodes, so that what is left in the daemon is its cache.
fn forget(mount: &Mount<'_>) -> Result<(), String> {
    wait("the kernel has forgotten the inodes", || {
        std::fs::write("/proc/sys/vm/drop_caches", "2").ok()?;
        std::thread::sleep(Duration::from_millis(500));
        (mount.status().ok()?["fs"]["inodes"].as_u64()? < 1000).then_some(())
    })
}

fn secrets(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let (few, many) = (100_000, if plan.quick { 200_000 } else { 1_000_000 });
    let names: Vec<String> = (0..many).map(|n| format!("service-secret-{n:07}")).collect();
    let vault = Vault::start(names.clone(), hundred)?;
    let place = Place::new()?;
    let options = ["--read-only", "--refresh=24h", "--cache-size=1GiB"];
    let mount = place.mount("mnt", &vault.url, &options)?;
    let mut measured = Vec::new();
    for (from, to) in [(0, few), (few, many)] {
        let share = (to - from) / 4;
        in_threads(4, |k| {
            let part = &names[from + k * share..from + (k + 1) * share];
            part.iter().try_for_each(|name| stat(&c_path(&mount.path(name))))
        })?;
        forget(&mount)?;
        std::thread::sleep(rest(plan).min(Duration::from_secs(30)));
        let held = mount.status()?["fs"]["cache"]["values"].as_u64().unwrap_or(0);
        if held != to as u64 {
            return Err(format!("{held} values are held where {to} were read"));
        }
        measured.push(mount.pss()?);
    }
    let each = (measured[1] as f64 - measured[0] as f64) / (many - few) as f64;
    report.row(
        "secret",
        format!("each further cached secret of 100 bytes, name of 22, from {few} to {many}"),
        "≤ 450 bytes",
        (format!("{each:.0} bytes"), format!("{} to {}", megabytes(measured[0]), megabytes(measured[1]))),
        each <= 450.0,
    );
    Ok(())
}

fn burst(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let count = if plan.quick { 3000 } else { 10_000 };
    let names = names("app/", count);
    let vault = Vault::start(names.clone(), |_, _| 20_000)?;
    let place = Place::new()?;
    let mount = place.mount("mnt", &vault.url, &["--refresh=24h", "--cache-size=8MiB"])?;
    list(&c_path(&mount.path("app")), false)?;
    let read = |part: &[String]| {
        part.iter().try_for_each(|name| cat(&c_path(&mount.path(name)), &mut [0; 32_768]).map(drop))
    };
    // As many as the cache holds, and some more.
    read(&names[..600])?;
    forget(&mount)?;
    std::thread::sleep(rest(plan).min(Duration::from_secs(30)));
    let before = mount.pss()?;
    let share = count / 64;
    in_threads(64, |k| read(&names[k * share..(k + 1) * share]))?;
    let during = mount.pss()?;
    forget(&mount)?;
    std::thread::sleep(rest(plan));
    let after = mount.pss()?;
    let ratio = after as f64 / before as f64;
    report.row(
        "burst",
        format!("PSS a minute after 64 threads read {count} values of 20 kB through a cache of 8 MiB"),
        "≤ 1.3 × before",
        (
            format!("{ratio:.2} ×"),
            format!(
                "{} before, {} at the end of it, {} after",
                megabytes(before),
                megabytes(during),
                megabytes(after)
            ),
        ),
        ratio <= 1.3,
    );
    Ok(())
}
