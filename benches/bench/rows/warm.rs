//! What is in the kernel's caches: reads, stats and listings that should cost no request at all.

use std::ffi::CString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{hundred, names};
use crate::Plan;
use crate::measure::{Spread, c_path, cat, compare, in_threads, list, stat, time};
use crate::mount::{Mount, Place};
use crate::peers;
use crate::report::{Report, Verdict};
use crate::vault::{Vault, value};

/// Long enough that nothing gets old while it is measured.
const FRESH: &str = "--refresh=1h";

fn paths(root: &Path, names: &[String]) -> Vec<CString> {
    names.iter().map(|name| c_path(&root.join(name))).collect()
}

fn cat_all(paths: &[CString], times: usize) -> Result<(), String> {
    let mut buffer = [0; 4096];
    for path in paths.iter().cycle().take(times) {
        cat(path, &mut buffer)?;
    }
    Ok(())
}

fn stat_all(paths: &[CString], times: usize) -> Result<(), String> {
    paths.iter().cycle().take(times).try_for_each(|path| stat(path))
}

/// Requests to the daemon while `work` is done.
fn requests_during(
    mount: &Mount<'_>,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<Option<u64>, String> {
    let before = mount.kernel_requests()?;
    work()?;
    // Asking costs what asking costs: measured, and taken off.
    let (after, again) = (mount.kernel_requests()?, mount.kernel_requests()?);
    let (Some(before), Some(after), Some(again)) = (before, after, again) else { return Ok(None) };
    let asking = again.blocking() - after.blocking();
    Ok(Some((after.blocking() - before.blocking()).saturating_sub(asking)))
}

pub fn reads(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let names = names("app/", 1000);
    let vault = Vault::start(names.clone(), hundred)?;
    let place = Place::new()?;
    let mount = place.mount("mnt", &vault.url, &["--read-only", FRESH])?;
    let contents = names.iter().enumerate().map(|(n, name)| (name.clone(), value(n as u32, 1, 100)));
    let tmpfs = peers::tmpfs(&place, contents)?;
    let (ours, theirs) = (paths(&mount.mnt, &names), paths(&tmpfs.mnt, &names));
    cat_all(&ours, 2 * ours.len())?;
    let times = if plan.quick { 20_000 } else { 50_000 };
    let what = "warm open+fstat+read+close";
    for (threads, bound, id) in [(1, 1.6, "warm-1"), (4, 1.8, "warm-4")] {
        let side = |paths: &[CString]| in_threads(threads, |n| cat_all(&paths[n..=n], times / threads));
        let (ratio, _) = compare(plan.rounds, 5, || side(&ours), || side(&theirs))?;
        report.at_most(
            id,
            format!("{what}, {threads} thread{}", if threads > 1 { "s" } else { "" }),
            bound,
            &ratio,
        );
    }
    let side = |paths: &[CString]| time(|| cat_all(paths, times));
    let (ratio, taken) = compare(plan.rounds, 5, || side(&ours), || side(&theirs))?;
    report.at_most("warm-1000", "the same, 1,000 different files in turn", 1.6, &ratio);
    let each = |s: f64| s / times as f64;
    let taken = Spread { median: each(taken.median), least: each(taken.least), most: each(taken.most) };
    report.told("the same, for one file", taken.micros());
    let count = requests_during(&mount, || cat_all(&ours, 10_000))?;
    report.exactly("warm-requests", "requests to the daemon for 10,000 of them", 0, count);

    let side = |paths: &[CString]| time(|| stat_all(paths, 2 * times));
    let (ratio, _) = compare(plan.rounds, 5, || side(&ours), || side(&theirs))?;
    report.at_most("warm-stat", "warm stat", 1.3, &ratio);
    let runs = if plan.quick { 60 } else { 150 };
    let (ratio, _) = compare(
        plan.rounds,
        runs,
        || run_cat(&mount.path(&names[0])),
        || run_cat(&tmpfs.mnt.join(&names[0])),
    )?;
    report.at_most("cat", "`cat` as a process", 1.05, &ratio);
    Ok(())
}

fn run_cat(path: &Path) -> Result<Duration, String> {
    let mut command = Command::new("/bin/cat");
    command.arg(path).stdin(Stdio::null()).stdout(Stdio::null());
    time(|| match command.status() {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("cat: {other:?}")),
    })
}

pub fn listings(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let (thousand, ten) = (names("1000/", 1000), names("10000/", 10_000));
    let all: Vec<String> = thousand.iter().chain(&ten).cloned().collect();
    let vault = Vault::start(all.clone(), hundred)?;
    let place = Place::new()?;
    let mount = place.mount("mnt", &vault.url, &["--read-only", FRESH])?;
    let tmpfs = peers::tmpfs(&place, all.iter().map(|name| (name.clone(), "x".repeat(100))))?;
    for (directory, count) in [("1000", 1000), ("10000", 10_000)] {
        let (ours, theirs) = (c_path(&mount.path(directory)), c_path(&tmpfs.mnt.join(directory)));
        // Twice: the kernel keeps a listing from the second time on.
        for _ in 0..3 {
            let seen = list(&ours, true)?;
            if seen != count {
                return Err(format!("{seen} names where there are {count}"));
            }
        }
        let times = 40_000 / count;
        let side = |path: &CString, with_stat: bool| {
            time(|| (0..times).try_for_each(|_| list(path, with_stat).map(drop)))
        };
        let pretty = if count == 1000 { "1,000" } else { "10,000" };
        let (ratio, _) = compare(plan.rounds, 5, || side(&ours, true), || side(&theirs, true))?;
        let id = if count == 1000 { "list-stat-1000" } else { "list-stat-10000" };
        report.at_most(id, format!("listing {pretty} names with a stat of each"), 1.15, &ratio);
        let (ratio, _) = compare(plan.rounds, 5, || side(&ours, false), || side(&theirs, false))?;
        let id = if count == 1000 { "list-1000" } else { "list-10000" };
        report.at_most(id, format!("listing {pretty} names alone"), 0.5, &ratio);
        let count = requests_during(&mount, || list(&ours, true).map(drop))?;
        report.exactly(
            "list-requests",
            format!("requests to the daemon for listing {pretty} with stat"),
            0,
            count,
        );
    }
    Ok(())
}

pub fn peers(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let names = names("", 100);
    let vault = Vault::start(names.clone(), hundred)?;
    let place = Place::new()?;
    let mount = place.mount("mnt", &vault.url, &[FRESH])?;
    let tmpfs = peers::tmpfs(&place, names.iter().map(|name| (name.clone(), "x".repeat(100))))?;
    let others = peers::others(&place, &tmpfs.mnt);
    let ours = paths(&mount.mnt, &names);
    cat_all(&ours, 2 * ours.len())?;
    let count = requests_during(&mount, || cat_all(&ours, 1000))?;
    report.exactly("rw-requests", "blocking requests for 1,000 warm reads, read-write mount", 1000, count);
    let times = if plan.quick { 1000 } else { 4000 };
    let mut sides: Vec<(&str, Vec<CString>, Vec<f64>)> = vec![("vaultfs", ours, Vec::new())];
    sides.extend(others.iter().map(|peer| (peer.name, paths(&peer.mnt, &names), Vec::new())));
    sides.push(("tmpfs", paths(&tmpfs.mnt, &names), Vec::new()));
    sides.iter().try_for_each(|(_, paths, _)| cat_all(paths, 2 * paths.len()))?;
    for _ in 0..plan.rounds {
        for (_, paths, took) in &mut sides {
            let begun = Instant::now();
            cat_all(paths, times)?;
            took.push(begun.elapsed().as_secs_f64() / times as f64);
        }
    }
    let ours = Spread::of(sides[0].2.clone()).median;
    let slower = sides.iter().filter(|(name, ..)| !["vaultfs", "tmpfs"].contains(name));
    let verdict = slower.map(|(_, _, took)| Spread::of(took.clone()).median > ours).reduce(|a, b| a && b);
    for (name, _, took) in sides {
        let taken = Spread::of(took).micros();
        if name == "vaultfs" {
            let verdict = verdict.map_or(Verdict::Told, Verdict::from);
            report.row(
                "rw-peers",
                "warm open+fstat+read+close, read-write",
                "faster than bindfs, sshfs, rclone",
                taken,
                verdict,
            );
        } else {
            report.told(format!("the same with {name}"), taken);
        }
    }
    Ok(())
}
