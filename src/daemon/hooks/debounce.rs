//! Decides when the command runs, and for which names. Pure: the time is an argument.
//!
//! A change waits until its name has not changed for [`QUIET`], at most [`LONGEST`], and while the
//! command runs. With more than [`MOST`] waiting names one run covers all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A rotation of several secrets, or one in several steps, is over after this.
pub const QUIET: Duration = Duration::from_millis(500);
/// A name that keeps changing runs the command at this interval.
pub const LONGEST: Duration = Duration::from_secs(5);
/// Limit of waiting names with their own run.
pub const MOST: usize = 64;

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A new name.
    Created,
    /// A new version.
    Changed,
    /// A deletion.
    Deleted,
}

impl EventKind {
    /// The name of the kind in the command's environment.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Created => "created",
            EventKind::Changed => "changed",
            EventKind::Deleted => "deleted",
        }
    }

    /// Two events in a row as one; `None` if they cancel out.
    fn then(self, next: EventKind) -> Option<EventKind> {
        match (self, next) {
            (EventKind::Created, EventKind::Created | EventKind::Changed) => Some(EventKind::Created),
            (EventKind::Created, EventKind::Deleted) => None,
            (EventKind::Deleted, EventKind::Created | EventKind::Changed) => Some(EventKind::Changed),
            (EventKind::Changed | EventKind::Deleted, next) => Some(next),
        }
    }
}

/// A change, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeEvent {
    /// The object's name, as the mount has it.
    pub name: String,
    /// Its version now, if that is known.
    pub version: Option<String>,
    /// What happened.
    pub event: EventKind,
}

/// What one run of the command is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Run {
    /// One name.
    One(ChangeEvent),
    /// Too many names to list.
    Many,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Run::One(news) => write!(f, "{:?} ({})", news.name, news.event.as_str()),
            Run::Many => f.write_str("many names"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Burst {
    fn due(self) -> Instant {
        (self.last + QUIET).min(self.first + LONGEST)
    }
}

/// Waiting changes.
#[derive(Debug, Default)]
pub struct Debouncer {
    waiting: BTreeMap<String, (ChangeEvent, Burst)>,
    many: Option<Burst>,
    running: bool,
}

impl Debouncer {
    /// Adds a change.
    pub fn note(&mut self, news: ChangeEvent, now: Instant) {
        if self.many.is_some() {
            return self.note_many(now);
        }
        let mut first = now;
        let mut event = Some(news.event);
        if let Some((old, burst)) = self.waiting.remove(&news.name) {
            first = burst.first;
            event = old.event.then(news.event);
        }
        if let Some(event) = event {
            self.waiting
                .insert(news.name.clone(), (ChangeEvent { event, ..news }, Burst { first, last: now }));
        }
        if self.waiting.len() > MOST {
            self.note_many(now);
        }
    }

    /// Adds a change of too many names to list.
    pub fn note_many(&mut self, now: Instant) {
        let first = self.many.map_or(now, |burst| burst.first);
        let first = self.waiting.values().map(|(_, burst)| burst.first).chain([first]).min().unwrap_or(now);
        self.many = Some(Burst { first, last: now });
        self.waiting.clear();
    }

    /// When the next run is due; `None` while one runs or nothing waits.
    pub fn due(&self) -> Option<Instant> {
        if self.running {
            return None;
        }
        self.waiting.values().map(|(_, burst)| burst.due()).chain(self.many.map(Burst::due)).min()
    }

    /// Starts the run that is due.
    pub fn take(&mut self, now: Instant) -> Option<Run> {
        if self.due()? > now {
            return None;
        }
        self.running = true;
        if self.many.take().is_some() {
            return Some(Run::Many);
        }
        let name =
            self.waiting.iter().min_by_key(|(_, (_, burst))| burst.due()).map(|(name, _)| name.clone())?;
        self.waiting.remove(&name).map(|(news, _)| Run::One(news))
    }

    /// Waiting changes, and whether there are more than can be listed.
    pub fn waiting(&self) -> (Vec<ChangeEvent>, bool) {
        (self.waiting.values().map(|(news, _)| news.clone()).collect(), self.many.is_some())
    }

    /// A run of a previous worker is still running.
    pub fn begin(&mut self) {
        self.running = true;
    }

    /// The run has ended.
    pub fn ended(&mut self) {
        self.running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(name: &str, event: EventKind) -> ChangeEvent {
        ChangeEvent { name: name.into(), version: None, event }
    }

    fn one(name: &str, event: EventKind) -> Option<Run> {
        Some(Run::One(news(name, event)))
    }

    #[test]
    fn news_about_a_name_waits_for_quiet_but_not_for_ever() {
        let (mut debouncer, start) = (Debouncer::default(), Instant::now());
        debouncer.note(news("a", EventKind::Changed), start);
        assert_eq!(debouncer.take(start + QUIET / 2), None);
        debouncer.note(news("a", EventKind::Changed), start + QUIET / 2);
        assert_eq!(debouncer.take(start + QUIET), None, "not quiet yet");
        assert_eq!(debouncer.take(start + QUIET * 3 / 2), one("a", EventKind::Changed));
        debouncer.ended();
        assert_eq!(debouncer.due(), None);
        let mut at = start;
        while at < start + LONGEST {
            debouncer.note(news("a", EventKind::Changed), at);
            at += QUIET / 2;
        }
        assert_eq!(debouncer.take(start + LONGEST), one("a", EventKind::Changed));
    }

    #[test]
    fn one_runs_at_a_time_and_what_comes_meanwhile_is_kept() {
        let (mut debouncer, start) = (Debouncer::default(), Instant::now());
        debouncer.note(news("a", EventKind::Changed), start);
        debouncer.note(news("b", EventKind::Deleted), start + QUIET / 4);
        let later = start + 2 * QUIET;
        assert_eq!(debouncer.take(later), one("a", EventKind::Changed), "the older first");
        assert_eq!((debouncer.take(later), debouncer.due()), (None, None));
        debouncer.note(news("a", EventKind::Changed), later);
        debouncer.ended();
        assert_eq!(debouncer.take(later), one("b", EventKind::Deleted));
        debouncer.ended();
        assert_eq!(debouncer.take(later), None);
        assert_eq!(debouncer.take(later + QUIET), one("a", EventKind::Changed));
    }

    #[test]
    fn several_events_amount_to_one() {
        use EventKind::{Changed, Created, Deleted};
        for (events, amount) in [
            (&[Created, Changed][..], Some(Created)),
            (&[Changed, Deleted], Some(Deleted)),
            (&[Deleted, Created], Some(Changed)),
            (&[Created, Deleted], None),
            (&[Created, Deleted, Created], Some(Created)),
        ] {
            let (mut debouncer, now) = (Debouncer::default(), Instant::now());
            for event in events {
                debouncer.note(news("a", *event), now);
            }
            assert_eq!(debouncer.take(now + QUIET), amount.and_then(|event| one("a", event)), "{events:?}");
        }
    }

    #[test]
    fn of_very_many_there_is_one_run() {
        let (mut debouncer, now) = (Debouncer::default(), Instant::now());
        for n in 0..=MOST {
            debouncer.note(news(&n.to_string(), EventKind::Changed), now);
        }
        debouncer.note(news("a", EventKind::Changed), now);
        assert_eq!(debouncer.take(now + QUIET), Some(Run::Many));
        debouncer.ended();
        assert_eq!(debouncer.due(), None);
    }
}
