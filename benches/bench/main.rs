//! `scripts/bench`: what the goals of speed and thrift come to on this machine, beside what they
//! are compared with.
//!
//! Each group of rows sets up what it needs (a vault of our own making, mounts, peers), measures in
//! rounds that go to and fro between the sides, and reports medians and spread. Requests are
//! counted, by the vault and by the daemon, not derived. All groups together write
//! `docs/BENCHMARKS.md`; some of them (`--only`) print to the terminal.
//!
//! Where to look: `rows` has a module a group, `vault` the vault that answers as fast as HTTP
//! allows or as slowly as is asked, `mount` and `peers` what is measured, `measure` how, `report`
//! the table, `notes` why a goal may be missed.

mod against;
mod measure;
mod mount;
mod notes;
mod peers;
mod report;
mod rows;
mod vault;

use std::path::PathBuf;
use std::time::Instant;

use report::Report;

/// What a run is asked to do.
#[derive(Clone)]
pub struct Plan {
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Less of everything that takes long.
    pub quick: bool,
    /// Which groups and rows.
    only: Option<glob::Pattern>,
    out: Option<PathBuf>,
    /// Another build to compare with.
    against: Option<PathBuf>,
}

const USAGE: &str = "usage: scripts/bench [--only GLOB] [--rounds N] [--quick] [--out FILE] [--against BINARY]

  --only GLOB   only the groups whose names match; the table is printed, not written
  --rounds N    rounds of each measurement (9; quick: 3)
  --quick       fewer rounds, files and objects: 5 minutes at most
  --out FILE    where the table goes (docs/BENCHMARKS.md)
  --against BINARY
                measures this build and BINARY in turn, --rounds times (11), and prints the ratio new / old of each row
  --list        the groups' names";

impl Plan {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut plan = Self { rounds: 0, quick: false, only: None, out: None, against: None };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value\n{USAGE}"));
            match arg.as_str() {
                "--only" => plan.only = Some(glob::Pattern::new(&value()?).map_err(|e| e.to_string())?),
                "--rounds" => plan.rounds = value()?.parse().map_err(|_| "--rounds wants a number")?,
                "--out" => plan.out = Some(value()?.into()),
                "--against" => plan.against = Some(value()?.into()),
                "--quick" => plan.quick = true,
                // What cargo adds.
                "--bench" => {}
                "--list" => {
                    rows::GROUPS.iter().for_each(|group| println!("{}", group.name));
                    std::process::exit(0);
                }
                "-h" | "--help" => {
                    println!("{USAGE}");
                    std::process::exit(0);
                }
                other => return Err(format!("{other}: there is no such option\n{USAGE}")),
            }
        }
        if plan.rounds == 0 {
            plan.rounds = match plan.against {
                Some(_) => 11,
                None if plan.quick => 3,
                None => 9,
            };
        }
        Ok(plan)
    }

    /// Whether a group of this name is to run.
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|glob| glob.matches(name))
    }
}

fn main() -> std::process::ExitCode {
    let plan = match Plan::parse(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(e) => {
            eprintln!("{e}");
            return 2.into();
        }
    };
    // The clients here, like those measured, bring their own cryptography.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Some(old) = &plan.against {
        return match against::compare(&plan, old) {
            Ok(table) => {
                println!("{table}");
                std::process::ExitCode::SUCCESS
            }
            Err(e) => {
                eprintln!("{e}");
                1.into()
            }
        };
    }
    let begun = Instant::now();
    let mut report = Report::default();
    for group in rows::GROUPS {
        if !plan.wants(group.name) {
            continue;
        }
        let at = Instant::now();
        eprintln!("== {}", group.name);
        report.begin(group.title);
        if let Err(e) = (group.run)(&plan, &mut report) {
            report.broken(group.name, &e);
        }
        eprintln!("   {:.0} s", at.elapsed().as_secs_f64());
    }
    let text = report.markdown(&plan, begun.elapsed());
    match (&plan.only, &plan.out) {
        (Some(_), None) => println!("{text}"),
        (_, out) => {
            let out = out.clone().unwrap_or_else(|| "docs/BENCHMARKS.md".into());
            if let Err(e) = std::fs::write(&out, text) {
                eprintln!("{}: {e}", out.display());
                return 1.into();
            }
            eprintln!("written: {}", out.display());
        }
    }
    if report.is_whole() { std::process::ExitCode::SUCCESS } else { 1.into() }
}
