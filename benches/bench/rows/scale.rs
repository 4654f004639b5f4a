//! Does anything grow with the number of objects? Lookups, reads and the refresher's tick, at three
//! sizes side by side.

use std::time::{Duration, Instant};

use super::hundred;
use crate::Plan;
use crate::measure::{Spread, c_path, cat, list, quantile, stat};
use crate::mount::{Mount, Place};
use crate::report::Report;
use crate::vault::Vault;

struct Side<'a> {
    vault: &'a Vault,
    mount: Mount<'a>,
    /// Names that were asked for already.
    used: u32,
}

const REFRESH: Duration = Duration::from_millis(500);

pub fn all(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let sizes: [usize; 3] = [100, 10_000, if plan.quick { 100_000 } else { 1_000_000 }];
    let names = |size: usize| (0..size).map(|n| format!("key-{n:07}")).collect();
    let vaults: Vec<Vault> =
        sizes.iter().map(|size| Vault::start(names(*size), hundred)).collect::<Result<_, _>>()?;
    let place = Place::new()?;
    let mut sides = Vec::new();
    for (size, vault) in sizes.iter().zip(&vaults) {
        let refresh = format!("--refresh={}ms", REFRESH.as_millis());
        let mount = place.mount(&format!("mnt-{size}"), &vault.url, &["--read-only", &refresh])?;
        if *size != sizes[1] {
            let (took, asked) = (mount.took.as_secs_f64(), vault.requests().all());
            report.row(
                "mount-time",
                format!("mount with {size} objects"),
                "≤ 2 requests, ≤ 1 s",
                (format!("{asked} requests, {took:.2} s"), "once".into()),
                asked <= 2 && took <= 1.0,
            );
        }
        let begun = Instant::now();
        let seen = list(&c_path(&mount.mnt), false)?;
        if seen != *size {
            return Err(format!("{seen} names where there are {size}"));
        }
        report.told(
            format!("first listing of {size} names"),
            (
                format!("{:.2} s", begun.elapsed().as_secs_f64()),
                format!("{} requests", vault.requests().all()),
            ),
        );
        sides.push(Side { vault, mount, used: 0 });
    }
    let large = format!("{} objects against {}", sizes[2], sizes[0]);
    let rounds = plan.rounds.max(5);
    let lookups = ratios(&mut sides, rounds, |side| side.absent(300))?;
    report.at_most(
        "scale-lookup",
        format!("lookup answered from the names that are known, {large}"),
        2.0,
        &lookups,
    );
    let reads = ratios(&mut sides, rounds, |side| side.read(100 / rounds as u32))?;
    report.at_most("scale-read", format!("cold read, {large}"), 2.0, &reads);
    ticks(plan, report, &sides, &large)
}

/// The last side's time over the first's, round by round; the sides take turns.
fn ratios(
    sides: &mut [Side<'_>],
    rounds: usize,
    mut work: impl FnMut(&mut Side<'_>) -> Result<f64, String>,
) -> Result<Spread, String> {
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let took = sides.iter_mut().map(&mut work).collect::<Result<Vec<_>, _>>()?;
        ratios.push(took[took.len() - 1] / took[0]);
    }
    Ok(Spread::of(ratios))
}

impl Side<'_> {
    /// Looks up names that nobody has and that were never asked for; the median time.
    fn absent(&mut self, count: u32) -> Result<f64, String> {
        let mut took = Vec::new();
        for _ in 0..count {
            self.used += 1;
            let path = c_path(&self.mount.path(&format!("nobody-{:07}", self.used)));
            let begun = Instant::now();
            if stat(&path).is_ok() {
                return Err("a name that nobody has is there".into());
            }
            took.push(begun.elapsed().as_secs_f64());
        }
        Ok(quantile(&mut took, 0.5))
    }

    /// Reads names for the first time; the median time.
    fn read(&mut self, count: u32) -> Result<f64, String> {
        // From here on `used` counts these.
        let mut took = Vec::new();
        for _ in 0..count {
            self.used += 1;
            // A step that visits all of them before it comes back.
            let n = (u64::from(self.used) * 61 % self.vault_size()) as u32;
            let path = c_path(&self.mount.path(self.vault.name(n)));
            let begun = Instant::now();
            cat(&path, &mut [0; 4096])?;
            took.push(begun.elapsed().as_secs_f64());
        }
        Ok(quantile(&mut took, 0.5))
    }

    fn vault_size(&self) -> u64 {
        self.vault.len() as u64
    }
}

/// What a side has done so far: requests, but for those that look for deletions after a tick;
/// ticks, time on a processor.
fn so_far(side: &Side<'_>) -> Result<(u64, u64, Duration), String> {
    let status = side.mount.status()?;
    let count = |what: &str| {
        let count = status["fs"]["changes"]["refresh"][what].as_u64();
        count.ok_or_else(|| format!("no {what} in status"))
    };
    let requests = side.vault.requests().all().saturating_sub(count("deletion_requests")?);
    Ok((requests, count("ticks")?, side.mount.cpu()))
}

/// Lets the refreshers tick and counts what that takes.
fn ticks(plan: &Plan, report: &mut Report, sides: &[Side<'_>], large: &str) -> Result<(), String> {
    let length = Duration::from_secs(if plan.quick { 8 } else { 20 });
    let before = sides.iter().map(so_far).collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < length {
        // In use, or the refresher goes to sleep.
        for side in sides {
            n += 1;
            let _ = stat(&c_path(&side.mount.path(&format!("somebody-{n}"))));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut each = Vec::new();
    for (side, (requests, ticks, cpu)) in sides.iter().zip(before) {
        let after = so_far(side)?;
        let (used, ticks) = (after.0 - requests, after.1 - ticks);
        let cpu = (after.2 - cpu).as_secs_f64() / ticks.max(1) as f64;
        each.push(cpu);
        report.row(
            "tick-requests",
            format!(
                "requests of {ticks} ticks of up to {} ms, {} objects",
                REFRESH.as_millis(),
                side.vault.len()
            ),
            "one a tick",
            (used.to_string(), format!("{:.0} µs of CPU a tick", cpu * 1e6)),
            // One may be on its way at either end.
            used <= ticks + 1,
        );
    }
    let ratio = each[each.len() - 1] / each[0];
    let figure = (format!("{ratio:.2} ×"), "once".to_owned());
    report.row("scale-tick", format!("CPU of a tick, {large}"), "≤ 2 ×", figure, ratio <= 2.0);
    Ok(())
}
