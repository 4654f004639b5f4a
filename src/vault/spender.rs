//! On whose behalf requests are sent: when the budget is spent, people want to know by which program.
//!
//! The name travels with the task that serves a program ([`on_behalf_of`]) and with the flights that it begins, so
//! that no call has to carry it. What is sent by nobody's task (refreshing, retries) is vaultfs's own. A [`Ledger`]
//! adds up; it stays small, however many programs there are.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

/// Programs that are told apart.
const PROGRAMS: usize = 64;

/// What vaultfs does by itself.
const OWN: &str = "(vaultfs)";

/// All programs that have no line of their own.
const OTHERS: &str = "(others)";

tokio::task_local! {
    static SPENDER: Arc<str>;
}

/// A program, as /proc names it.
pub type Spender = Option<Arc<str>>;

/// Runs `work` on behalf of a program.
pub async fn on_behalf_of<T>(spender: Spender, work: impl Future<Output = T>) -> T {
    match spender {
        Some(name) => SPENDER.scope(name, work).await,
        None => work.await,
    }
}

/// On whose behalf this task runs.
pub fn current() -> Spender {
    SPENDER.try_with(Arc::clone).ok()
}

/// Requests sent on behalf of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// Its name, or a word in parentheses.
    pub program: String,
    /// How many, since the start.
    pub requests: u64,
}

/// Who has spent how much.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<Arc<str>, u64>>);

impl Ledger {
    /// The present task sends a request.
    pub fn add(&self) {
        let name = current().unwrap_or_else(|| OWN.into());
        let mut counts = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
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

    /// The greatest spenders, the greatest first.
    pub fn top(&self, most: usize) -> Vec<Spent> {
        let counts = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let spent = counts.iter().map(|(name, n)| Spent { program: name.to_string(), requests: *n });
        let mut spent: Vec<Spent> = spent.collect();
        drop(counts);
        spent.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.program.cmp(&b.program)));
        spent.truncate(most);
        spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn spend(ledger: &Ledger, name: &str, times: usize) {
        on_behalf_of(Some(name.into()), async { (0..times).for_each(|_| ledger.add()) }).await;
    }

    #[tokio::test]
    async fn requests_are_booked_on_who_caused_them() {
        let ledger = Ledger::default();
        ledger.add();
        spend(&ledger, "find", 3).await;
        spend(&ledger, "cat", 1).await;
        let spent = |program: &str, requests| Spent { program: program.into(), requests };
        assert_eq!(ledger.top(2), [spent("find", 3), spent("(vaultfs)", 1)]);
    }

    #[tokio::test]
    async fn the_ledger_stays_small_and_loses_no_request() {
        let ledger = Ledger::default();
        spend(&ledger, "greedy", 5000).await;
        for n in 0..1000 {
            spend(&ledger, &format!("p{n}"), 1).await;
        }
        let all = ledger.top(usize::MAX);
        assert!(all.len() <= PROGRAMS + 1);
        assert_eq!(all[0].program, "greedy");
        assert_eq!(all.iter().map(|spent| spent.requests).sum::<u64>(), 6000);
    }
}
