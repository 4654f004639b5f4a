//! While a vault restarts, one request at a time is sent, with growing pauses, until one is
//! answered. Thousands of waiting callers cause no storm, and the budget is left for when the vault
//! is back.
//!
//! A permit covers the pause and the attempt after it. An attempt without any answer holds it for
//! [`LONGEST_TURN`] at most: the next one may find the vault back.

use std::future::Future;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// How long an attempt keeps the others waiting, at most.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// What is known of the vault.
#[derive(Debug)]
pub struct Restart {
    state: Mutex<RestartState>,
    permit: Semaphore,
    back: Notify,
}

#[derive(Debug, Default)]
struct RestartState {
    /// Consecutive attempts that found no server; 0 while the vault answers.
    failures: u32,
    /// When the next attempt may start.
    next: Option<Instant>,
}

/// The right to send a request.
#[derive(Debug)]
pub struct Permit<'a>(Option<SemaphorePermit<'a>>);

impl Restart {
    /// Given while the vault answers, as far as is known.
    pub fn new() -> Self {
        Self { state: Mutex::default(), permit: Semaphore::new(1), back: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, RestartState> {
        self.state.lock()
    }

    /// An attempt found no server. `had_permit`: it held a permit, so it was sent after the failure
    /// was known. `pause` gives the pause after so many failures in a row.
    pub fn failed(&self, had_permit: bool, pause: impl FnOnce(u32) -> Duration) {
        let mut state = self.state();
        if state.failures > 0 && !had_permit {
            return;
        }
        state.failures = state.failures.saturating_add(1);
        state.next = Some(Instant::now() + pause(state.failures));
    }

    /// The vault answers.
    pub fn answered(&self) {
        if std::mem::take(&mut *self.state()).failures > 0 {
            self.back.notify_waiters();
        }
    }

    /// Whether a caller without a permit has to wait for one.
    pub fn is_under_way(&self) -> bool {
        self.state().failures > 0
    }

    /// Waits for a permit, `left` at most; returns at once while the vault answers.
    pub async fn permit(&self, left: Duration) -> Option<Permit<'_>> {
        let end = Instant::now() + left;
        loop {
            // Registered before the check, so that no answer between check and wait is missed.
            let back = self.back.notified();
            if !self.is_under_way() {
                return Some(Permit(None));
            }
            let waited = async {
                tokio::select! {
                    // Never closed.
                    permit = self.permit.acquire() => permit.ok(),
                    () = back => None,
                }
            };
            let Some(permit) = timeout_at(end, waited).await.ok()? else { continue };
            let back = self.back.notified();
            let Some(next) = self.state().next else { continue };
            if next >= end {
                return None;
            }
            tokio::select! {
                () = sleep_until(next) => return Some(Permit(Some(permit))),
                () = back => {}
            }
        }
    }
}

impl Permit<'_> {
    /// Whether it was given because the vault answers.
    pub fn is_free(&self) -> bool {
        self.0.is_none()
    }

    /// Holds the permit while `attempt` runs, up to the limit.
    pub async fn keep_for<T>(self, attempt: impl Future<Output = T>) -> T {
        let mut attempt = std::pin::pin!(attempt);
        match timeout(LONGEST_TURN, &mut attempt).await {
            Ok(done) => done,
            Err(_) => {
                drop(self);
                attempt.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn one_asks_at_a_time_and_all_go_once_it_answers() {
        let restart = Restart::new();
        assert!(restart.permit(LONG).await.unwrap().is_free());
        restart.failed(false, |_| Duration::from_secs(1));
        let first = restart.permit(LONG).await.unwrap();
        assert!(!first.is_free());
        let waiting = async { restart.permit(Duration::from_secs(5)).await.is_none() };
        assert!(waiting.await, "the turn is taken, to the end of its time");
        let others = futures_util::future::join_all((0..1000).map(|_| restart.permit(LONG)));
        let answer = async {
            tokio::task::yield_now().await;
            first.keep_for(std::future::ready(())).await;
            restart.answered();
        };
        let (permits, ()) = tokio::join!(others, answer);
        assert!(permits.iter().all(|permit| permit.as_ref().is_some_and(Permit::is_free)));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_end_with_the_deadline_and_a_try_that_hangs_holds_nobody_up() {
        let restart = Restart::new();
        restart.failed(false, |failures| Duration::from_secs(u64::from(failures) * 10));
        assert!(restart.permit(Duration::from_secs(9)).await.is_none());
        let hangs = restart.permit(LONG).await.unwrap();
        let began = Instant::now();
        let hang = hangs.keep_for(tokio::time::sleep(LONG));
        let next = async { restart.permit(LONG).await.map(|_| began.elapsed()) };
        let (next, ()) = tokio::join!(next, hang);
        assert!(next.is_some_and(|waited| waited < 2 * LONGEST_TURN), "{next:?}");
    }
}
