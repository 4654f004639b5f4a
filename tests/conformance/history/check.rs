//! What must be true of a history, whatever happened while it was made.
//!
//! 1. Every version is whole: one line that a save wrote (of a file that is appended to: several),
//!    versions are 1..N (`Api::history` looks at that), and no save is in it twice.
//! 2. Every save that was acknowledged is in it, once, and in the order of time: a save that began
//!    when another one was acknowledged already is a later version.
//! 3. Nobody reads anything torn. What one reader sees of a name goes forward only, and not behind
//!    what was acknowledged on its own mount before it looked.
//! 4. What was deleted elsewhere does not come back.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use super::value::{self, Save};
use super::work::{FULL, LONGEST_APPENDED, Role};

/// What one program of the load wrote down.
#[derive(Debug, Default)]
pub struct Log {
    pub acknowledged: Vec<Told>,
    pub failed: Vec<(Told, String)>,
    pub reads: Vec<Told>,
    pub torn: Vec<String>,
    /// From when to when, and why.
    pub unread: Vec<(u64, u64, String)>,
    /// Names that it has deleted past the mounts.
    pub deleted: Vec<String>,
    /// The longest operation, in nanoseconds, and which that was.
    pub slowest: (u64, String),
}

/// A save, or what was read, and when it began and was done.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    pub save: Save,
    pub start: u64,
    pub end: u64,
}

impl Log {
    pub fn read(path: &Path, writer: u16) -> Self {
        let mut log = Self::default();
        // A program that was just started has none.
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            log.take(line, writer);
        }
        log
    }

    fn take(&mut self, line: &str, writer: u16) {
        let mut words = line.splitn(5, ' ');
        let kind = words.next().unwrap();
        let words: Vec<&str> = words.collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let told = |at: usize, writer| {
            let save = Save { writer, number: words[at].parse().unwrap() };
            Told { save, start: number(at + 1), end: number(at + 2) }
        };
        match kind {
            "ack" => self.acknowledged.push(told(0, writer)),
            "fail" => self.failed.push((told(0, writer), words[3].to_owned())),
            "read" => self.reads.push(told(1, words[0].parse().unwrap())),
            "torn" => self.torn.push(line.to_owned()),
            "unread" => self.unread.push((number(0), number(1), words[2..].join(" "))),
            "slow" => {
                let slow = (number(0), words[1].to_owned());
                self.slowest = slow.max(std::mem::take(&mut self.slowest));
            }
            "deleted" => self.deleted.push(words[0].to_owned()),
            _ => {}
        }
    }
}

/// What is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: &'static str,
    /// With the history around it.
    pub text: String,
}

/// A name's history and what the load did to it.
pub struct Name<'a> {
    pub name: &'a str,
    pub versions: Vec<Vec<u8>>,
    /// With the program's number and role.
    pub logs: Vec<(u16, &'a Role, &'a Log)>,
}

impl Name<'_> {
    /// What is wrong with it.
    pub fn violations(&self) -> Vec<Violation> {
        let mut wrong = Vec::new();
        let at = self.positions(&mut wrong);
        // Its object ends with each save, and begins anew, where whoever removes it is not known to
        // replace it.
        if self.name != "anew" {
            self.acknowledged_are_there(&at, &mut wrong);
        }
        self.reads_go_forward(&at, &mut wrong);
        wrong
    }

    /// The version of each save.
    fn positions(&self, wrong: &mut Vec<Violation>) -> HashMap<Save, usize> {
        let mut at: HashMap<Save, usize> = HashMap::new();
        let mut before: Vec<Save> = Vec::new();
        for (index, bytes) in self.versions.iter().enumerate() {
            let Some(saves) = value::parse(bytes) else {
                wrong.push(self.told("a version is whole", "this one is not", index));
                continue;
            };
            let last = *saves.last().expect("a line at least");
            if let Some(first) = at.get(&last) {
                wrong.push(self.told(
                    "a save is one version",
                    &format!("version {} is {last}, too", first + 1),
                    index,
                ));
            }
            // Who begins anew may fail, and add to that before it is stored.
            let is_anew = || saves.len() == 1 || (index > 0 && self.was_full(index - 1, &before, last));
            if !saves.starts_with(&before) && !is_anew() {
                wrong.push(self.told("an append adds", "lines of the version before are missing", index));
            }
            at.entry(last).or_insert(index);
            before = saves;
        }
        at
    }

    fn acknowledged(&self) -> Vec<(Told, &Role)> {
        let mut all = Vec::new();
        for (_, role, log) in &self.logs {
            all.extend(log.acknowledged.iter().map(|told| (*told, *role)));
        }
        all
    }

    /// Whether the file began anew between two versions: that one, and what failed to be stored
    /// since, filled it.
    fn was_full(&self, index: usize, before: &[Save], next: Save) -> bool {
        let begun = before.last().and_then(|save| self.time_of(*save)).map_or(0, |told| told.start);
        let ended = self.time_of(next).map_or(u64::MAX, |told| told.end);
        let appends = self.logs.iter().filter(|(_, role, _)| role.kind == "append");
        let failed = appends.flat_map(|(_, _, log)| &log.failed).map(|(told, _)| told);
        let since = failed.filter(|told| told.end >= begun && told.start <= ended);
        let unsaved: usize = since.map(|told| value::line(told.save, LONGEST_APPENDED).len()).sum();
        (self.versions[index].len() + unsaved) as u64 > FULL
    }

    fn time_of(&self, save: Save) -> Option<&Told> {
        let (_, _, log) = self.logs.iter().find(|(writer, _, _)| *writer == save.writer)?;
        let failed = log.failed.iter().map(|(told, _)| told);
        log.acknowledged.iter().chain(failed).find(|told| told.save == save)
    }

    fn acknowledged_are_there(&self, at: &HashMap<Save, usize>, wrong: &mut Vec<Violation>) {
        let mut saves: Vec<(Told, usize)> = Vec::new();
        for (told, role) in self.acknowledged() {
            match at.get(&told.save) {
                Some(index) => saves.push((told, *index)),
                None => {
                    let what = format!(
                        "{} by {} on {} was acknowledged and is missing",
                        told.save, role.kind, role.by
                    );
                    wrong.push(self.told(
                        "what is acknowledged is stored",
                        &what,
                        self.versions_near(told.end, at),
                    ));
                }
            }
        }
        // In the order of their beginnings, with what was acknowledged before each.
        let mut by_end = saves.clone();
        by_end.sort_by_key(|(told, _)| told.end);
        saves.sort_by_key(|(told, _)| told.start);
        let (mut done, mut newest) = (0, None::<(Told, usize)>);
        for (told, index) in saves {
            while by_end.get(done).is_some_and(|(earlier, _)| earlier.end < told.start) {
                if newest.is_none_or(|(_, newest)| newest < by_end[done].1) {
                    newest = Some(by_end[done]);
                }
                done += 1;
            }
            if let Some((earlier, before)) = newest.filter(|(_, before)| *before > index) {
                let what = format!(
                    "{} began when {} (version {}) was acknowledged",
                    told.save,
                    earlier.save,
                    before + 1
                );
                wrong.push(self.told("saves are in the order of time", &what, index));
            }
        }
    }

    fn reads_go_forward(&self, at: &HashMap<Save, usize>, wrong: &mut Vec<Violation>) {
        for (reader, role, log) in self.logs.iter().filter(|(_, role, _)| role.kind.starts_with("read")) {
            for torn in &log.torn {
                let text = format!("{}: reader {reader} on {}: {torn}", self.name, role.by);
                wrong.push(Violation { rule: "no read is torn", text });
            }
            let mut own: Vec<(Told, usize)> = self
                .acknowledged()
                .into_iter()
                .filter(|(_, by)| by.by == role.by)
                .filter_map(|(told, _)| Some((told, *at.get(&told.save)?)))
                .collect();
            own.sort_by_key(|(told, _)| told.end);
            let (mut done, mut newest) = (0, None::<(usize, String)>);
            // What is not stored (yet) has no place in the order.
            for (read, index) in log.reads.iter().filter_map(|read| Some((read, *at.get(&read.save)?))) {
                while own.get(done).is_some_and(|(saved, _)| saved.end < read.start) {
                    if newest.as_ref().is_none_or(|(newest, _)| *newest < own[done].1) {
                        newest = Some((own[done].1, format!("{} was acknowledged there", own[done].0.save)));
                    }
                    done += 1;
                }
                if let Some((before, why)) = newest.as_ref().filter(|(before, _)| *before > index) {
                    let what = format!(
                        "reader {reader} on {} read version {} at {} after {why} (version {})",
                        role.by,
                        index + 1,
                        seconds(read.start),
                        before + 1
                    );
                    wrong.push(self.told("a reader goes forward", &what, index));
                }
                if newest.as_ref().is_none_or(|(newest, _)| *newest < index) {
                    newest = Some((index, format!("it read {}", read.save)));
                }
            }
        }
    }

    fn versions_near(&self, time: u64, at: &HashMap<Save, usize>) -> usize {
        let all = self.acknowledged();
        let before = all.iter().filter(|(told, _)| told.end <= time);
        before.filter_map(|(told, _)| at.get(&told.save)).max().copied().unwrap_or(0)
    }

    /// The history around a version, for people.
    fn told(&self, rule: &'static str, what: &str, index: usize) -> Violation {
        let mut text = format!("{}, version {}: {what}\n", self.name, index + 1);
        let (from, to) = (index.saturating_sub(5), (index + 6).min(self.versions.len()));
        for (at, bytes) in self.versions.iter().enumerate().take(to).skip(from) {
            let saves = value::parse(bytes);
            let last = saves.as_ref().and_then(|saves| saves.last());
            let mark = if at == index { ">" } else { " " };
            let _ = match (last, saves.as_ref().map(Vec::len)) {
                (Some(save), lines) => {
                    let lines = lines.unwrap_or(0);
                    writeln!(text, "  {mark} {:5} {save} ({lines} lines) {}", at + 1, self.story(*save))
                }
                (None, _) => {
                    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
                    writeln!(text, "  {mark} {:5} not whole, {} bytes: {start:?}", at + 1, bytes.len())
                }
            };
        }
        Violation { rule, text }
    }

    /// What its writer knows of a save.
    fn story(&self, save: Save) -> String {
        let Some((_, role, log)) = self.logs.iter().find(|(writer, _, _)| *writer == save.writer) else {
            return "by the test".to_owned();
        };
        let by = format!("{} on {}", role.kind, role.by);
        if let Some(told) = log.acknowledged.iter().find(|told| told.save == save) {
            return format!("{by}, {} - {} acknowledged", seconds(told.start), seconds(told.end));
        }
        if let Some((told, why)) = log.failed.iter().find(|(told, _)| told.save == save) {
            return format!("{by}, {} - {} failed: {why}", seconds(told.start), seconds(told.end));
        }
        format!("{by}, not answered")
    }
}

/// For people, by the same clock everywhere.
pub fn seconds(nanos: u64) -> String {
    format!("{:.3}", nanos as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Role = Role { kind: "echo", name: "f", by: "object" };
    const READER: Role = Role { kind: "read", name: "f", by: "object" };

    fn save(number: u32) -> Save {
        Save { writer: 0, number }
    }

    /// Save `n` is made in the n-th second; the history is this, and a reader sees the saves of
    /// `reads`.
    fn judge(history: &[u32], acknowledged: &[u32], reads: &[u32]) -> Vec<Violation> {
        let told = |number: u32| {
            let start = u64::from(number) * 1000;
            Told { save: save(number), start, end: start + 500 }
        };
        let writer = Log { acknowledged: acknowledged.iter().map(|n| told(*n)).collect(), ..Log::default() };
        let reads = reads.iter().map(|n| Told { start: 0, ..told(*n) }).collect();
        let reader = Log { reads, ..Log::default() };
        let versions = history.iter().map(|n| value::line(save(*n), 50).into_bytes()).collect();
        let logs = vec![(0, &WRITER, &writer), (1, &READER, &reader)];
        Name { name: "f", versions, logs }.violations()
    }

    /// A history, what is acknowledged of it, and what was read; with the rule that this breaks.
    type Case<'a> = (&'a [u32], &'a [u32], &'a [u32], &'a str);

    #[test]
    fn what_is_right_is_no_violation_and_everything_else_is_one() {
        let right: [(&[u32], &[u32], &[u32]); 3] =
            [(&[0, 1, 2], &[1, 2], &[0, 0, 2]), (&[0, 2], &[2], &[0, 1, 2]), (&[0], &[], &[])];
        for (history, acknowledged, reads) in right {
            assert_eq!(judge(history, acknowledged, reads), Vec::new());
        }
        let wrong: [Case<'_>; 4] = [
            (&[0, 1, 2, 1], &[1, 2], &[], "a save is one version"),
            (&[0, 2], &[1, 2], &[], "what is acknowledged is stored"),
            (&[0, 2, 1], &[1, 2], &[], "saves are in the order of time"),
            (&[0, 1, 2], &[1, 2], &[2, 1], "a reader goes forward"),
        ];
        for (history, acknowledged, reads, why) in wrong {
            let said = judge(history, acknowledged, reads);
            assert!(said.iter().any(|said| said.rule == why), "{why}: {said:?}");
        }
    }

    #[test]
    fn a_version_that_is_cut_or_has_lost_lines_is_a_violation() {
        let role = Role { kind: "append", name: "f", by: "object" };
        let log = Log::default();
        let line = |n| value::line(save(n), 50);
        let judge = |versions: &[String]| {
            let versions = versions.iter().map(|text| text.clone().into_bytes()).collect();
            Name { name: "f", versions, logs: vec![(0, &role, &log)] }.violations().len()
        };
        assert_eq!(judge(&[line(0), line(0) + &line(1), line(2)]), 0);
        assert_eq!(judge(&[line(0), line(0) + &line(1), line(0) + &line(2)]), 1);
        assert_eq!(judge(&[line(0), String::new()]), 1);
        assert_eq!(judge(&[line(0)[1..].to_owned()]), 1);
    }

    #[test]
    fn a_file_that_failed_lines_have_filled_may_begin_anew_and_no_other() {
        let role = Role { kind: "append", name: "f", by: "object" };
        let line = |n| value::line(save(n), LONGEST_APPENDED);
        let told = |n: u32| Told { save: save(n), start: u64::from(n), end: u64::from(n) };
        for (failed, wrong) in [(10, 1), (100, 0)] {
            let failed = (1..=failed).map(|n| (told(n), String::new())).collect();
            let log = Log { acknowledged: vec![told(0), told(201)], failed, ..Log::default() };
            let versions = [line(0), line(200) + &line(201)].map(String::into_bytes).to_vec();
            let name = Name { name: "f", versions, logs: vec![(0, &role, &log)] };
            assert_eq!(name.violations().len(), wrong);
        }
    }
}
