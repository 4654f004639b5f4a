//! When to try again, and after how long. Decisions only: nothing here sends or sleeps.
//!
//! A read may be repeated freely. A write is repeated only when the vault surely did not do it: no
//! connection, 429, or 503 with Retry-After. A write that carries an Idempotency-Key is repeated like a read,
//! because the vault knows it again; what comes of it is in doubt all the same. Every other failure of a write leaves its effect in doubt and
//! goes to the caller, who looks before it tries again. Tries are bounded by number and by the deadline.
//! A vault that has answered before and takes no connections now is being restarted: it is waited for to the
//! deadline. One that has never answered is not there, and a few tries are enough.
//! The wait is exponential with full jitter, or what the vault asks for if that fits the deadline.
//! Background calls follow the service's advice for 429: 60, 120, 240 seconds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::vault::Priority;

/// Whether a request may be repeated when its fate is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It changes nothing.
    Read,
    /// It changes something each time it arrives.
    Write,
    /// It changes something once, however often it arrives, if the vault knows idempotency keys.
    Keyed,
}

impl Effect {
    /// Whether it changes anything.
    pub fn changes(self) -> bool {
        match self {
            Effect::Read => false,
            Effect::Write | Effect::Keyed => true,
        }
    }
}

/// How one attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No connection: it was never sent.
    NotSent,
    /// The same, of a vault that has answered before.
    Gone,
    /// Sent, and no whole answer came back.
    Lost,
    /// 429, and how long the vault asks to wait.
    RateLimited(Option<Duration>),
    /// 503, and how long the vault asks to wait.
    Unavailable(Option<Duration>),
    /// Any other 5xx, and 408.
    Server,
}

impl Trouble {
    /// Whether the vault may have done what was asked.
    pub fn leaves_doubt(self) -> bool {
        match self {
            Trouble::NotSent | Trouble::Gone | Trouble::RateLimited(_) | Trouble::Unavailable(Some(_)) => {
                false
            }
            Trouble::Lost | Trouble::Unavailable(None) | Trouble::Server => true,
        }
    }
}

/// How often, and how long in between.
#[derive(Clone)]
pub struct Policy {
    /// Attempts of one operation, the first included.
    pub max_tries: u32,
    /// The same, while no connection can be made to a vault that has answered before.
    pub max_connects: u32,
    /// The first wait is at most this, each further one at most twice as long.
    pub base: Duration,
    /// No wait of our own choosing is longer.
    pub cap: Duration,
    /// Picks a duration between zero and the given one.
    pub jitter: Arc<dyn Fn(Duration) -> Duration + Send + Sync>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("max_tries", &self.max_tries).finish_non_exhaustive()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_tries: 4,
            max_connects: 40,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(2),
            jitter: Arc::new(random_part),
        }
    }
}

/// A random part of `max`; half of it should the system have no randomness to give.
fn random_part(max: Duration) -> Duration {
    let mut bytes = [0; 4];
    match ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes) {
        Ok(()) => max.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => max / 2,
    }
}

/// The service's advice after a 429, by the number of tries made (VAULT-API.md §1).
const ADVICE: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(120), Duration::from_secs(240)];

/// A vault that is back shall not be waited for much longer.
const CONNECT_CAP: Duration = Duration::from_secs(1);

/// What a connection may need.
const CONNECT_TIME: Duration = Duration::from_millis(100);

impl Policy {
    /// How long to wait before the next attempt after `tries`; `None` to give up. `left` is the time to the
    /// deadline: a wait that would use it up is not begun.
    pub fn wait(
        &self,
        trouble: Trouble,
        effect: Effect,
        priority: Priority,
        tries: u32,
        left: Duration,
    ) -> Option<Duration> {
        let max = if trouble == Trouble::Gone { self.max_connects } else { self.max_tries };
        if tries >= max {
            return None;
        }
        let wait = match (trouble, effect, priority) {
            (Trouble::RateLimited(Some(after)) | Trouble::Unavailable(Some(after)), _, _) => after,
            (Trouble::RateLimited(None), _, Priority::Background) => *ADVICE.get(tries as usize - 1)?,
            (Trouble::RateLimited(None) | Trouble::NotSent, _, _) => self.backoff(tries),
            (Trouble::Gone, _, _) => self.backoff(tries).min(CONNECT_CAP),
            (
                Trouble::Lost | Trouble::Unavailable(None) | Trouble::Server,
                Effect::Read | Effect::Keyed,
                _,
            ) => self.backoff(tries),
            (Trouble::Lost | Trouble::Unavailable(None) | Trouble::Server, Effect::Write, _) => return None,
        };
        // A connection that the deadline cuts off says less than the refusal before it.
        let needed = if trouble == Trouble::Gone { wait + CONNECT_TIME } else { wait };
        (needed < left).then_some(wait)
    }

    fn backoff(&self, tries: u32) -> Duration {
        let doubled = self.base.saturating_mul(2u32.saturating_pow(tries.saturating_sub(1)));
        (self.jitter)(doubled.min(self.cap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);
    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy { jitter: Arc::new(|max| max), ..Policy::default() }
    }

    fn front(trouble: Trouble, effect: Effect, tries: u32, left: Duration) -> Option<Duration> {
        policy().wait(trouble, effect, Priority::Foreground, tries, left)
    }

    #[test]
    fn writes_are_repeated_only_when_surely_not_applied() {
        for trouble in [
            Trouble::NotSent,
            Trouble::Gone,
            Trouble::RateLimited(None),
            Trouble::RateLimited(Some(SECOND)),
            Trouble::Unavailable(Some(SECOND)),
        ] {
            assert!(front(trouble, Effect::Write, 1, LONG).is_some(), "{trouble:?}");
            assert!(front(trouble, Effect::Read, 1, LONG).is_some(), "{trouble:?}");
        }
        for trouble in [Trouble::Lost, Trouble::Unavailable(None), Trouble::Server] {
            assert_eq!(front(trouble, Effect::Write, 1, LONG), None, "{trouble:?}");
            assert!(front(trouble, Effect::Read, 1, LONG).is_some(), "{trouble:?}");
            assert!(front(trouble, Effect::Keyed, 1, LONG).is_some(), "{trouble:?}");
            assert!(trouble.leaves_doubt());
        }
    }

    #[test]
    fn backoff_doubles_and_ends() {
        let waits: Vec<_> = (1..=4).map(|n| front(Trouble::Lost, Effect::Read, n, LONG)).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(waits, [ms(100), ms(200), ms(400), None]);
        let eager = Policy { max_tries: 100, ..policy() };
        let late = eager.wait(Trouble::Lost, Effect::Read, Priority::Foreground, 90, LONG);
        assert_eq!(late, Some(eager.cap));
    }

    #[test]
    fn a_vault_that_was_there_is_waited_for() {
        let wait = |tries| front(Trouble::Gone, Effect::Write, tries, LONG);
        let all: Duration = (1..40).map(|tries| wait(tries).unwrap()).sum();
        assert!(all > 30 * SECOND && (1..40).all(|tries| wait(tries) <= Some(SECOND)));
        assert_eq!(wait(40), None);
        assert_eq!(front(Trouble::Gone, Effect::Write, 20, SECOND), None);
        assert_eq!(front(Trouble::NotSent, Effect::Write, 4, LONG), None, "one that never was is not");
    }

    #[test]
    fn no_wait_outlasts_the_deadline() {
        let asked = Trouble::RateLimited(Some(5 * SECOND));
        assert_eq!(front(asked, Effect::Write, 1, 6 * SECOND), Some(5 * SECOND));
        assert_eq!(front(asked, Effect::Write, 1, 5 * SECOND), None);
        assert_eq!(front(Trouble::Lost, Effect::Read, 1, Duration::from_millis(100)), None);
    }

    #[test]
    fn background_follows_the_advice() {
        let wait = |tries, left| {
            policy().wait(Trouble::RateLimited(None), Effect::Read, Priority::Background, tries, left)
        };
        assert_eq!([1, 2, 3].map(|n| wait(n, LONG)), ADVICE.map(Some));
        assert_eq!(wait(4, LONG), None);
        assert_eq!(wait(1, 10 * SECOND), None);
    }

    #[test]
    fn jitter_stays_below_its_bound() {
        let waits: Vec<_> = (0..100).map(|_| random_part(SECOND)).collect();
        assert!(waits.iter().all(|w| *w <= SECOND));
        assert!(waits.iter().any(|w| *w != waits[0]), "it is random");
    }
}
