//! Attribution: the program and user that requests are sent for. Status shows which program spent
//! the budget, and guests (users admitted by `--allow-other`) have only a share of it.
//!
//! An [`Attribution`] belongs to the task that serves a program ([`on_behalf_of`]) and to the
//! flights that it begins, so that no call has to carry it. Requests outside of such a task
//! (refreshing, retries) are vaultfs's own. A flight counts for the caller that joined it last
//! ([`Payer::join`]): none fails because the share of the first caller is spent. A
//! [`RequestCounter`] adds up; it stays small, however many programs there are.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::vault::{ErrorKind, Result};

/// Programs that are counted separately.
const PROGRAMS: usize = 64;

/// What vaultfs does by itself.
const OWN: &str = "(vaultfs)";

/// All programs that have no line of their own.
const OTHERS: &str = "(others)";

tokio::task_local! {
    static ATTRIBUTION: Attribution;
}

/// The program and user that a task works for.
#[derive(Debug, Clone, Default)]
pub struct Attribution {
    /// The program, as /proc names it.
    program: Option<Arc<str>>,
    uid: Option<u32>,
    payer: Payer,
}

impl Attribution {
    /// A request of this user. A guest spends a share of the budget only.
    pub fn of(uid: u32, is_guest: bool) -> Self {
        Self { program: None, uid: Some(uid), payer: Payer::Task(is_guest.then_some(uid)) }
    }

    /// With the name of its program.
    pub fn named(self, program: Option<String>) -> Self {
        Self { program: program.map(Arc::from), ..self }
    }

    /// The same for a flight, which others may join.
    pub fn of_flight(self) -> Self {
        let payer = Payer::Flight(Arc::new(watch::Sender::new(self.payer.guest())));
        Self { payer, ..self }
    }

    /// The same without a share, for requests that must be sent in any case.
    pub fn unlimited(self) -> Self {
        Self { payer: Payer::default(), ..self }
    }

    /// Its user; `None` for vaultfs itself.
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// The share of the budget that is spent.
    pub fn payer(&self) -> &Payer {
        &self.payer
    }

    /// Runs `work`, which does not wait, on its behalf.
    pub fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        ATTRIBUTION.sync_scope(self, work)
    }
}

/// The share of the budget that is spent: a guest's, or that of all others, which is the whole.
#[derive(Debug, Clone)]
pub enum Payer {
    /// Of a task: always the same.
    Task(Option<u32>),
    /// Of a flight: the caller that joined last, but no guest after another user.
    Flight(Arc<watch::Sender<Option<u32>>>),
}

impl Default for Payer {
    fn default() -> Self {
        Self::Task(None)
    }
}

impl Payer {
    /// The guest that is charged.
    pub fn guest(&self) -> Option<u32> {
        match self {
            Self::Task(guest) => *guest,
            Self::Flight(payer) => *payer.borrow(),
        }
    }

    /// The present task waits for this flight, too.
    pub fn join(&self) {
        let Self::Flight(payer) = self else { return };
        let joining = current().payer.guest();
        payer.send_if_modified(|payer| {
            let is_taken_over = payer.is_some() && *payer != joining;
            if is_taken_over {
                *payer = joining;
            }
            is_taken_over
        });
    }

    /// Another than `guest` pays.
    pub async fn is_not(&self, guest: Option<u32>) {
        match self {
            // The sender is here: it is not closed.
            Self::Flight(payer) => drop(payer.subscribe().wait_for(|now| *now != guest).await),
            Self::Task(_) => std::future::pending().await,
        }
    }

    /// Whether the flight failed for want of the share of `guest`, and another caller has joined it
    /// since.
    pub fn is_another<T>(&self, guest: Option<u32>, answer: &Result<T>) -> bool {
        matches!(answer, Err(e) if e.kind == ErrorKind::ShareSpent) && self.guest() != guest
    }
}

/// Runs `work` on behalf of a program.
pub async fn on_behalf_of<T>(attribution: Attribution, work: impl Future<Output = T>) -> T {
    ATTRIBUTION.scope(attribution, work).await
}

/// The attribution of this task.
pub fn current() -> Attribution {
    ATTRIBUTION.try_with(Attribution::clone).unwrap_or_default()
}

/// Requests sent on behalf of one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    /// Its name, or a word in parentheses.
    pub program: String,
    /// How many, since the start.
    pub requests: u64,
}

/// Requests by program.
#[derive(Debug, Default)]
pub struct RequestCounter(Mutex<HashMap<Arc<str>, u64>>);

impl RequestCounter {
    /// The present task sends a request.
    pub fn add(&self) {
        let name = current().program.unwrap_or_else(|| OWN.into());
        let mut counts = self.0.lock();
        if !counts.contains_key(&name) && counts.len() >= PROGRAMS {
            let fewest =
                counts.iter().filter(|(name, _)| ***name != *OTHERS).min_by_key(|(_, count)| **count);
            if let Some(fewest) = fewest.map(|(name, _)| name.clone()) {
                let count = counts.remove(&fewest).unwrap_or(0);
                *counts.entry(OTHERS.into()).or_default() += count;
            }
        }
        *counts.entry(name).or_default() += 1;
    }

    /// The programs with the most requests, in descending order.
    pub fn top(&self, most: usize) -> Vec<RequestCount> {
        let counts = self.0.lock();
        let spent = counts.iter().map(|(name, n)| RequestCount { program: name.to_string(), requests: *n });
        let mut spent: Vec<RequestCount> = spent.collect();
        drop(counts);
        spent.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.program.cmp(&b.program)));
        spent.truncate(most);
        spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn spend(counter: &RequestCounter, name: &str, times: usize) {
        let attribution = Attribution::of(0, false).named(Some(name.into()));
        on_behalf_of(attribution, async { (0..times).for_each(|_| counter.add()) }).await;
    }

    #[tokio::test]
    async fn requests_are_booked_on_who_caused_them() {
        let counter = RequestCounter::default();
        counter.add();
        spend(&counter, "find", 3).await;
        spend(&counter, "cat", 1).await;
        let spent = |program: &str, requests| RequestCount { program: program.into(), requests };
        assert_eq!(counter.top(2), [spent("find", 3), spent("(vaultfs)", 1)]);
    }

    #[tokio::test]
    async fn the_counter_stays_small_and_loses_no_request() {
        let counter = RequestCounter::default();
        spend(&counter, "greedy", 5000).await;
        for n in 0..1000 {
            spend(&counter, &format!("p{n}"), 1).await;
        }
        let all = counter.top(usize::MAX);
        assert!(all.len() <= PROGRAMS + 1);
        assert_eq!(all[0].program, "greedy");
        assert_eq!(all.iter().map(|spent| spent.requests).sum::<u64>(), 6000);
    }
}
