//! `--against BINARY`: the same rows with another build of vaultfs, in rounds that go to and fro
//! between the two.
//!
//! Each round sets every group up anew for each build, so that what the machine does in a minute
//! meets both. A ratio is taken for each row and round; its median counts.

use std::collections::BTreeMap;
use std::path::Path;

use crate::measure::Spread;
use crate::report::Report;
use crate::{Plan, mount, rows};

/// Rounds within one measurement of a build.
const WITHIN: usize = 3;

/// The table of ratios, in Markdown.
pub fn compare(plan: &Plan, old: &Path) -> Result<String, String> {
    // What a group measures in rounds of its own has few of them here.
    let (rounds, plan) = (plan.rounds, &Plan { rounds: WITHIN, ..plan.clone() });
    let old = old.canonicalize().map_err(|e| format!("{}: {e}", old.display()))?;
    let mut order = Vec::new();
    // By row: the figures of this build and of the other one, in turn.
    let mut figures: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
    for round in 0..rounds {
        eprintln!("== round {} of {rounds}", round + 1);
        // Which of them comes first changes, because the second finds the machine warm.
        for side in [round % 2, 1 - round % 2] {
            mount::measure_binary([None, Some(old.as_path())][side]);
            for (work, figure) in measured(plan)? {
                if !figures.contains_key(&work) {
                    order.push(work.clone());
                }
                figures.entry(work).or_default()[side].push(figure);
            }
        }
    }
    let mut text = "| Work | New | Old | New / old | Spread |\n|---|---|---|---|---|\n".to_owned();
    for work in order {
        let [new, old] = &figures[&work];
        if new.len() != old.len() {
            return Err(format!("{work}: not measured in every round"));
        }
        let ratios = new.iter().zip(old).filter(|(_, old)| **old != 0.0).map(|(new, old)| new / old);
        let ratios: Vec<f64> = ratios.collect();
        if ratios.is_empty() {
            continue;
        }
        let (ratio, spread) = Spread::of(ratios).times();
        let [new, old] = [new, old].map(|figures| Spread::of(figures.clone()).median);
        text.push_str(&format!("| {work} | {new:.3} | {old:.3} | {ratio} | {spread} |\n"));
    }
    Ok(text)
}

/// One round of the groups that are asked for with the build that is set.
fn measured(plan: &Plan) -> Result<Vec<(String, f64)>, String> {
    let mut report = Report::default();
    for group in rows::GROUPS.iter().filter(|group| plan.wants(group.name)) {
        (group.run)(plan, &mut report).map_err(|e| format!("{}: {e}", group.name))?;
    }
    Ok(report.figures())
}
