//! When to try again, and after how long. Decisions only: nothing here sends or sleeps.
//!
//! A read may be repeated freely. A write is repeated only when the vault surely did not do it: no
//! connection, 429, or 503 with Retry-After. A write that carries an Idempotency-Key is repeated
//! like a read, because the vault recognizes it; its failure still counts as possibly applied.
//! Every other failed write may have been applied and goes to the caller, which reads the vault
//! before it tries again. Tries are bounded by the deadline, and by number where a further try says
//! nothing new: a server that answered 500 or nonsense will do so again, and a vault that has never
//! answered is not there. A vault that has answered before and takes no connections, or ends them
//! without an answer, and a proxy that has no server behind it (502, 503, 504) are a restart: it is
//! waited for to the deadline. The wait is exponential with full jitter, or what the vault asks for
//! if that fits the deadline. Background calls follow the service's advice for 429: 60, 120, 240
//! seconds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::sys::random;
use crate::vault::Priority;

/// Whether a request may be repeated when it may have been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// It changes nothing.
    Read,
    /// It changes something each time it arrives.
    Write,
    /// It changes something once, however often it arrives, if the vault knows idempotency keys.
    Keyed,
}

impl Idempotency {
    /// Whether it changes anything.
    pub fn changes(self) -> bool {
        match self {
            Idempotency::Read => false,
            Idempotency::Write | Idempotency::Keyed => true,
        }
    }
}

/// How one attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// No connection: it was never sent.
    NotSent,
    /// The same, of a vault that has answered before.
    Gone,
    /// Sent, and no whole answer came back.
    Lost,
    /// Sent, and no server answered: 502, 503, 504, or the connection ended, of a vault that has
    /// answered before.
    Away,
    /// 429, and how long the vault asks to wait.
    RateLimited(Option<Duration>),
    /// 503, and how long the vault asks to wait.
    Unavailable(Duration),
    /// Any other 5xx, and 408.
    Server,
}

impl FailureClass {
    /// Whether the vault may have done what was asked.
    pub fn maybe_applied(self) -> bool {
        match self {
            FailureClass::NotSent
            | FailureClass::Gone
            | FailureClass::RateLimited(_)
            | FailureClass::Unavailable(_) => false,
            FailureClass::Lost | FailureClass::Away | FailureClass::Server => true,
        }
    }

    /// Whether it is the vault's for the moment, whatever it is asked.
    pub fn is_restart(self) -> bool {
        matches!(self, FailureClass::Gone | FailureClass::Away | FailureClass::Unavailable(_))
    }
}

/// How often, and how long in between.
#[derive(Clone)]
pub struct Policy {
    /// Attempts of one operation, the first included. Not counted while the vault is restarted.
    pub max_tries: u32,
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
            base: Duration::from_millis(100),
            cap: Duration::from_secs(2),
            jitter: Arc::new(random_part),
        }
    }
}

/// A random part of `max`; half of it should the system have no randomness to give.
fn random_part(max: Duration) -> Duration {
    match random::bytes() {
        Ok(bytes) => max.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => max / 2,
    }
}

/// The service's advice after a 429, by the number of tries made.
const ADVICE: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(120), Duration::from_secs(240)];

/// A vault that is back shall not be waited for much longer.
const RESTART_CAP: Duration = Duration::from_secs(1);

/// What a connection may need.
pub const CONNECT_TIME: Duration = Duration::from_millis(100);

impl Policy {
    /// How long to wait before the next attempt after `tries`; `None` to give up. `left` is the
    /// time to the deadline: a wait that would use it up is not begun.
    pub fn wait(
        &self,
        class: FailureClass,
        idempotency: Idempotency,
        priority: Priority,
        tries: u32,
        left: Duration,
    ) -> Option<Duration> {
        if tries >= self.max_tries && !class.is_restart()
            || class.maybe_applied() && idempotency == Idempotency::Write
        {
            return None;
        }
        let wait = match (class, priority) {
            (FailureClass::RateLimited(Some(after)), _) => after,
            (FailureClass::Unavailable(after), _) => after.max(self.restart_pause(tries)),
            (FailureClass::RateLimited(None), Priority::Background) => *ADVICE.get(tries as usize - 1)?,
            (
                FailureClass::RateLimited(None)
                | FailureClass::NotSent
                | FailureClass::Lost
                | FailureClass::Server,
                _,
            ) => self.backoff(tries, self.cap),
            (FailureClass::Gone | FailureClass::Away, _) => self.restart_pause(tries),
        };
        // A try that the deadline cuts off says less than the failure before it.
        let needed = if class.is_restart() { wait + CONNECT_TIME } else { wait };
        (needed < left).then_some(wait)
    }

    /// How long to wait after so many tries in a row that found no server.
    pub fn restart_pause(&self, tries: u32) -> Duration {
        self.backoff(tries, RESTART_CAP)
    }

    fn backoff(&self, tries: u32, cap: Duration) -> Duration {
        let doubled = self.base.saturating_mul(2u32.saturating_pow(tries.saturating_sub(1)));
        (self.jitter)(doubled.min(cap))
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

    fn front(class: FailureClass, idempotency: Idempotency, tries: u32, left: Duration) -> Option<Duration> {
        policy().wait(class, idempotency, Priority::Foreground, tries, left)
    }

    #[test]
    fn writes_are_repeated_only_when_surely_not_applied() {
        for class in [
            FailureClass::NotSent,
            FailureClass::Gone,
            FailureClass::RateLimited(None),
            FailureClass::RateLimited(Some(SECOND)),
            FailureClass::Unavailable(SECOND),
        ] {
            assert!(front(class, Idempotency::Write, 1, LONG).is_some(), "{class:?}");
            assert!(front(class, Idempotency::Read, 1, LONG).is_some(), "{class:?}");
        }
        for class in [FailureClass::Lost, FailureClass::Away, FailureClass::Server] {
            assert_eq!(front(class, Idempotency::Write, 1, LONG), None, "{class:?}");
            assert!(front(class, Idempotency::Read, 1, LONG).is_some(), "{class:?}");
            assert!(front(class, Idempotency::Keyed, 1, LONG).is_some(), "{class:?}");
            assert!(class.maybe_applied());
        }
    }

    #[test]
    fn backoff_doubles_and_ends() {
        let waits: Vec<_> = (1..=4).map(|n| front(FailureClass::Lost, Idempotency::Read, n, LONG)).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(waits, [ms(100), ms(200), ms(400), None]);
        let eager = Policy { max_tries: 100, ..policy() };
        let late = eager.wait(FailureClass::Lost, Idempotency::Read, Priority::Foreground, 90, LONG);
        assert_eq!(late, Some(eager.cap));
    }

    #[test]
    fn a_vault_that_was_there_is_waited_for() {
        for (class, idempotency) in
            [(FailureClass::Gone, Idempotency::Write), (FailureClass::Away, Idempotency::Read)]
        {
            let waits: Vec<_> =
                (1..40).map(|tries| front(class, idempotency, tries, LONG).unwrap()).collect();
            assert!(waits.is_sorted() && waits.ends_with(&[SECOND]), "they grow to {SECOND:?}: {waits:?}");
            assert!(waits.iter().sum::<Duration>() > 30 * SECOND);
            assert_eq!(front(class, idempotency, 20, SECOND), None, "the deadline ends it");
        }
        assert_eq!(
            front(FailureClass::NotSent, Idempotency::Write, 4, LONG),
            None,
            "one that never was is not"
        );
    }

    #[test]
    fn no_wait_outlasts_the_deadline() {
        let asked = FailureClass::RateLimited(Some(5 * SECOND));
        assert_eq!(front(asked, Idempotency::Write, 1, 6 * SECOND), Some(5 * SECOND));
        assert_eq!(front(asked, Idempotency::Write, 1, 5 * SECOND), None);
        assert_eq!(front(FailureClass::Lost, Idempotency::Read, 1, Duration::from_millis(100)), None);
    }

    #[test]
    fn background_follows_the_advice() {
        let wait = |tries, left| {
            policy().wait(
                FailureClass::RateLimited(None),
                Idempotency::Read,
                Priority::Background,
                tries,
                left,
            )
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
