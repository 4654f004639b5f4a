//! The table: a line a row, with goal, figure, spread and whether the goal is met; then why not,
//! and the machine.

use std::fmt::Write;
use std::time::Duration;

use crate::measure::Spread;
use crate::{Plan, notes, peers};

/// Whether a goal is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Met,
    Missed,
    /// There is no goal, or no way to tell.
    Told,
}

impl From<bool> for Verdict {
    fn from(met: bool) -> Self {
        if met { Self::Met } else { Self::Missed }
    }
}

struct Row {
    id: &'static str,
    work: String,
    goal: String,
    figure: String,
    spread: String,
    verdict: Verdict,
}

enum Line {
    Title(&'static str),
    Row(Row),
}

/// What was measured.
#[derive(Default)]
pub struct Report {
    lines: Vec<Line>,
    failures: Vec<String>,
}

impl Report {
    /// A new group of rows.
    pub fn begin(&mut self, title: &'static str) {
        self.lines.push(Line::Title(title));
    }

    /// One row; `id` is what its note goes by.
    pub fn row(
        &mut self,
        id: &'static str,
        work: impl Into<String>,
        goal: impl Into<String>,
        (figure, spread): (String, String),
        verdict: impl Into<Verdict>,
    ) {
        let row = Row { id, work: work.into(), goal: goal.into(), figure, spread, verdict: verdict.into() };
        eprintln!(
            "   {:<9} {}: {} ({}), goal {}",
            mark(row.verdict),
            row.work,
            row.figure,
            row.spread,
            row.goal
        );
        self.lines.push(Line::Row(row));
    }

    /// A ratio whose goal is an upper bound.
    pub fn at_most(&mut self, id: &'static str, work: impl Into<String>, bound: f64, ratio: &Spread) {
        let goal = format!("≤ {bound} ×");
        self.row(id, work, goal, ratio.times(), ratio.median <= bound);
    }

    /// A ratio whose goal is a lower bound.
    pub fn at_least(&mut self, id: &'static str, work: impl Into<String>, bound: f64, ratio: &Spread) {
        let goal = format!("≥ {bound} ×");
        self.row(id, work, goal, ratio.times(), ratio.median >= bound);
    }

    /// A count that is to be exactly so.
    pub fn exactly(&mut self, id: &'static str, work: impl Into<String>, goal: u64, count: Option<u64>) {
        let figure = count.map_or("not counted".to_owned(), |n| n.to_string());
        let verdict = count.map_or(Verdict::Told, |n| (n == goal).into());
        self.row(id, work, format!("{goal}"), (figure, "exact".into()), verdict);
    }

    /// A figure without a goal.
    pub fn told(&mut self, work: impl Into<String>, figure: (String, String)) {
        self.row("", work, "", figure, Verdict::Told);
    }

    /// A group could not be measured.
    pub fn broken(&mut self, group: &str, why: &str) {
        eprintln!("   FAILED    {why}");
        self.failures.push(format!("{group}: {why}"));
    }

    /// The rows that have a figure, without its unit, which is always the same for one row.
    pub fn figures(&self) -> Vec<(String, f64)> {
        let rows = self.lines.iter().filter_map(|line| match line {
            Line::Title(_) => None,
            Line::Row(row) => Some(row),
        });
        let figure = |row: &Row| {
            let number = row.figure.split(' ').next()?.replace(',', "");
            Some((row.work.clone(), number.parse().ok()?))
        };
        rows.filter_map(figure).collect()
    }

    /// Whether every group was measured.
    pub fn is_whole(&self) -> bool {
        self.failures.is_empty()
    }

    /// The document.
    pub fn markdown(&self, plan: &Plan, took: Duration) -> String {
        let mut text = String::from(HEAD);
        let mut missed = Vec::new();
        let (mut met, mut all) = (0, 0);
        for line in &self.lines {
            match line {
                Line::Title(title) => {
                    let _ = write!(
                        text,
                        "\n### {title}\n\n| Work | Goal | Median | Spread | |\n|---|---|---|---|---|\n"
                    );
                }
                Line::Row(row) => {
                    let Row { id, work, goal, figure, spread, verdict } = row;
                    let _ = writeln!(text, "| {work} | {goal} | {figure} | {spread} | {} |", mark(*verdict));
                    met += usize::from(*verdict == Verdict::Met);
                    all += usize::from(*verdict != Verdict::Told);
                    if *verdict == Verdict::Missed {
                        missed.push((id, work));
                    }
                }
            }
        }
        let _ = write!(text, "\n{met} of {all} goals are met.\n");
        if !missed.is_empty() {
            text.push_str("\n## What is missed, and why\n");
            for (id, work) in missed {
                let why = notes::why(id)
                    .unwrap_or("No cause is known: run it again alone (`--only`), and profile it.");
                let _ = write!(text, "\n- **{work}.** {why}\n");
            }
        }
        for failure in &self.failures {
            let _ = write!(text, "\n**Not measured:** {failure}\n");
        }
        let rounds = if plan.quick { ", shortened (`--quick`)" } else { "" };
        let _ = write!(
            text,
            "\n## The run\n\n{}, vaultfs {}. {}\n\nBeside it: {}; the crates of Cargo.lock.\n\n\
             {} rounds{rounds}, {:.0} minutes in all.\n\n{}",
            &humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()[..10],
            env!("CARGO_PKG_VERSION"),
            machine(),
            peers::versions().join(", "),
            plan.rounds,
            took.as_secs_f64() / 60.0,
            notes::METHOD
        );
        text
    }
}

const HEAD: &str = "# Benchmarks

`scripts/bench` writes this file. A ratio compares two sides that are measured in the same minute, in alternating rounds.
Each round gives one ratio; the table has the median and the spread from the lowest to the highest. The vault and the
daemon count the requests. The last section says how each row is measured.

## The table
";

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::Missed => "**missed**",
        Verdict::Told => "",
    }
}

/// The machine in words.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let model = field(&cpu, "model name").unwrap_or_else(|| "unknown processor".into());
    let kb = field(&memory, "MemTotal").and_then(|t| t.split(' ').next()?.parse::<u64>().ok());
    let virtual_ = if cpu.contains("hypervisor") { "A virtual machine" } else { "A machine" };
    let kernel = read("/proc/sys/kernel/osrelease");
    let version = kernel.trim().split(['-', '+']).next().unwrap_or_default().to_owned();
    let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    let system = field(&read("/etc/os-release").replace('=', ":"), "PRETTY_NAME").unwrap_or_default();
    format!(
        "{virtual_} with {cores} processors ({model}), {} GB of memory, Linux {version}, {}; load at the end {load}.",
        kb.unwrap_or(0) / 1_000_000,
        system.trim_matches('"')
    )
}
