//! The request budget: avoids requests that the vault would refuse, and puts the foreground first.
//!
//! The vault counts requests in fixed windows. Each answer says how many are left and when the
//! window ends. [`Budget`] mirrors that count: a request takes a token, an answer corrects the
//! count by the requests in flight. Until the first header, 1000 requests a minute are assumed for
//! a service, and no limit for the embedded vault. No header gives the length of a window. It is
//! estimated as the longest time to a window's end that this window or the previous one reported.
//! Background work leaves a quarter of the limit to the foreground. A guest (`attribution`) gets no
//! request once it has used as many in the window as are left: at most half for one guest, three
//! quarters for all. A caller waits for the next window only if it begins before the caller's
//! deadline; otherwise it fails at once. The arithmetic is in [`Window`], which takes the time as
//! an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::vault::client::rate_limit_headers::Headers;
use crate::vault::{BudgetStatus, Call, Error, ErrorKind, Priority, Result, attribution};

/// The limit assumed of a service that sends no headers, per minute.
pub const ASSUMED_LIMIT: u32 = 1000;

/// The window of the service, and of vaults that report no end.
const WINDOW: Duration = Duration::from_secs(60);

/// Upper bound of a window, so that a wrong clock does not stop the client for years.
pub(super) const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// Ends are reported in whole seconds: one that differs by more belongs to another window.
const ROUNDED: Duration = Duration::from_secs(1);

/// One window of the limit.
#[derive(Debug)]
struct Window {
    /// `None`: no limit is known or assumed.
    limit: Option<u32>,
    remaining: u32,
    /// `None` until the first request of a window.
    ends: Option<Instant>,
    /// The longest reported time to the end of the present window, and of the previous one.
    resets: [Duration; 2],
    /// Requests in flight, which the count of an answer does not include.
    in_flight: u32,
    /// Whether a header has reported the limit.
    learnt: bool,
    /// Requests of each guest, and until when they count: windows of some vaults never end.
    shares: HashMap<u32, u32>,
    shares_end: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Take {
    Go,
    WaitUntil(Instant),
    /// Requests are left, but not for this guest.
    ShareSpent(Instant),
}

impl Window {
    fn new(limit: Option<u32>) -> Self {
        let resets = [Duration::ZERO; 2];
        Self {
            limit,
            remaining: limit.unwrap_or(0),
            ends: None,
            resets,
            in_flight: 0,
            learnt: false,
            shares: HashMap::new(),
            shares_end: None,
        }
    }

    fn roll(&mut self, now: Instant) {
        if self.ends.is_some_and(|ends| ends <= now) {
            self.ends = None;
            self.remaining = self.limit.unwrap_or(0);
            self.resets = [Duration::ZERO, self.resets[0]];
            self.shares_end = Some(now);
        }
        if self.shares_end.is_some_and(|end| end <= now) {
            self.shares_end = None;
            self.shares.clear();
        }
    }

    /// The length of a window, as far as is known.
    fn length(&self) -> Duration {
        let longest = self.resets[0].max(self.resets[1]);
        if longest.is_zero() { WINDOW } else { longest }
    }

    /// This window ends in `reset`.
    fn learn_end(&mut self, now: Instant, reset: Duration) {
        let whole = reset.max(ROUNDED);
        let is_new = self.ends.is_none_or(|ends| now + reset > ends + ROUNDED);
        self.resets = match is_new {
            true => [whole, self.resets[0]],
            false => [self.resets[0].max(whole), self.resets[1]],
        };
        self.ends = Some(now + reset);
    }

    fn take(&mut self, now: Instant, priority: Priority, guest: Option<u32>) -> Take {
        self.roll(now);
        if let Some(limit) = self.limit {
            let (quarter, length) = (limit.div_ceil(4), self.length());
            let reserve = match priority {
                Priority::Foreground => 0,
                Priority::Background => quarter,
            };
            let ends = *self.ends.get_or_insert(now + length);
            if self.remaining <= reserve {
                return Take::WaitUntil(ends);
            }
            if let Some(guest) = guest {
                let had = self.shares.entry(guest).or_default();
                if self.remaining <= quarter.max(*had) {
                    return Take::ShareSpent(ends);
                }
                *had += 1;
                self.shares_end.get_or_insert(now + length);
            }
            self.remaining -= 1;
        }
        self.in_flight += 1;
        Take::Go
    }

    fn learn(&mut self, now: Instant, headers: &Headers, refused: bool) {
        self.roll(now);
        if headers.limit == Some(0) {
            self.limit = None;
        } else if let Some(limit) = headers.limit {
            if self.limit != Some(limit) || !self.learnt {
                // Another limit, other windows.
                self.remaining = limit.saturating_sub(self.in_flight);
                (self.resets, self.ends) = ([Duration::ZERO; 2], None);
            }
            self.limit = Some(limit);
            self.learnt = true;
        }
        if self.limit.is_none() {
            return;
        }
        if let Some(remaining) = headers.remaining {
            self.remaining = remaining.saturating_sub(self.in_flight);
        }
        if let Some(reset) = headers.reset {
            self.learn_end(now, reset);
        }
        if refused && let Some(wait) = headers.retry_after.or(headers.reset) {
            self.remaining = 0;
            self.ends = Some(now + wait.min(LONGEST_WINDOW));
        }
    }
}

/// Grants the right to send requests.
#[derive(Debug)]
pub struct Budget {
    clock: Arc<dyn Clock>,
    window: Mutex<Window>,
    changed: Notify,
}

/// The right to send one request; dropped when the answer is there or will not come.
#[derive(Debug)]
pub struct Ticket<'a>(&'a Budget, Option<u32>);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
    }
}

impl Budget {
    /// A budget of `limit` requests a minute until headers say otherwise; `None` for no limit.
    pub fn new(limit: Option<u32>, clock: Arc<dyn Clock>) -> Self {
        Self { clock, window: Mutex::new(Window::new(limit)), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }

    /// Waits for the right to send, at most to the call's deadline; [`ErrorKind::RateLimited`] if
    /// the wait would be longer.
    pub async fn acquire(&self, call: &Call) -> Result<Ticket<'_>> {
        let attribution = attribution::current();
        loop {
            // Registered before the check, so that no change between check and wait is missed.
            let changed = self.changed.notified();
            let now = self.clock.now();
            let guest = attribution.payer().guest();
            let taken = self.lock().take(now, call.priority, guest);
            let (until, error) = match taken {
                Take::Go => return Ok(Ticket(self, guest)),
                Take::WaitUntil(until) => (until, spent as fn(Duration) -> Error),
                Take::ShareSpent(until) => (until, share_spent as fn(Duration) -> Error),
            };
            if until >= call.deadline {
                return Err(error(until.saturating_duration_since(now)));
            }
            tokio::select! {
                () = tokio::time::sleep(until.saturating_duration_since(now)) => {}
                () = changed => {}
                () = attribution.payer().is_not(guest) => {}
            }
        }
    }

    /// Corrects the count by an answer and returns the ticket. `refused`: the answer was a 429.
    pub fn learn(&self, ticket: Ticket<'_>, headers: &Headers, refused: bool) {
        drop(ticket);
        let now = self.clock.now();
        self.lock().learn(now, headers, refused);
        self.changed.notify_waiters();
    }

    /// Returns an unused ticket: the vault never saw the request.
    pub fn unused(&self, ticket: Ticket<'_>) {
        let guest = ticket.1;
        drop(ticket);
        let mut window = self.lock();
        if let Some(had) = guest.and_then(|guest| window.shares.get_mut(&guest)) {
            *had = had.saturating_sub(1);
        }
        window.remaining = (window.remaining + 1).min(window.limit.unwrap_or(0));
        drop(window);
        self.changed.notify_waiters();
    }

    /// For `status`; `None` where there is no limit.
    pub fn status(&self) -> Option<BudgetStatus> {
        let now = self.clock.now();
        let mut window = self.lock();
        window.roll(now);
        let (limit, assumed) = (window.limit?, !window.learnt);
        let left = window.ends.map_or(Duration::ZERO, |ends| ends.saturating_duration_since(now));
        let reset_s = left.as_secs_f64().ceil() as u64;
        let window_s = window.length().as_secs_f64();
        Some(BudgetStatus { limit, remaining: window.remaining, reset_s, window_s, assumed })
    }
}

fn spent(wait: Duration) -> Error {
    let seconds = wait.as_secs_f64().ceil() as u64;
    let sentence = format!("the request budget is used up: it is renewed in {seconds} s");
    Error { attempts: 0, retry_after: Some(wait), ..Error::new(ErrorKind::RateLimited, sentence) }
}

fn share_spent(wait: Duration) -> Error {
    let seconds = wait.as_secs_f64().ceil() as u64;
    let sentence = format!(
        "this user's share of the request budget is used up: it is renewed in {seconds} s; only the mount's owner, --uid and root have all of it"
    );
    Error { attempts: 0, retry_after: Some(wait), ..Error::new(ErrorKind::ShareSpent, sentence) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const FRONT: Priority = Priority::Foreground;
    const BACK: Priority = Priority::Background;

    fn headers(limit: u32, remaining: u32, reset_s: u64) -> Headers {
        Headers {
            limit: Some(limit),
            remaining: Some(remaining),
            reset: Some(Duration::from_secs(reset_s)),
            retry_after: None,
        }
    }

    #[test]
    fn without_headers_a_thousand_a_minute() {
        let now = Instant::now();
        let mut window = Window::new(Some(ASSUMED_LIMIT));
        for _ in 0..1000 {
            assert_eq!(window.take(now, FRONT, None), Take::Go);
        }
        assert_eq!(window.take(now, FRONT, None), Take::WaitUntil(now + WINDOW));
        assert_eq!(window.take(now + WINDOW, FRONT, None), Take::Go);
    }

    #[test]
    fn background_leaves_a_quarter() {
        let now = Instant::now();
        let mut window = Window::new(Some(100));
        let sent = (0..100).filter(|_| window.take(now, BACK, None) == Take::Go).count();
        assert_eq!(sent, 75);
        let sent = (0..100).filter(|_| window.take(now, FRONT, None) == Take::Go).count();
        assert_eq!(sent, 25);
    }

    #[test]
    fn a_guest_has_half_all_guests_three_quarters_and_the_owner_the_rest() {
        let now = Instant::now();
        let mut window = Window::new(Some(100));
        let mut take = |now, guest| (0..200).filter(|_| window.take(now, FRONT, guest) == Take::Go).count();
        assert_eq!([take(now, Some(1)), take(now, Some(2)), take(now, Some(3))], [50, 25, 0]);
        assert_eq!([take(now, Some(1)), take(now, None)], [0, 25]);
        assert_eq!(take(now + WINDOW, Some(1)), 50, "in the next window again");
        assert_eq!([take(now + WINDOW, None), take(now + WINDOW, Some(2))], [50, 0]);
    }

    #[test]
    fn a_share_is_renewed_also_where_the_window_never_ends() {
        let start = Instant::now();
        let mut window = Window::new(None);
        let mut had = 0;
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            window.learn(now, &headers(100, 60, 60), false);
            had += (0..100).filter(|_| window.take(now, FRONT, Some(1)) == Take::Go).count();
            window.in_flight = 0;
        }
        assert!((400..=600).contains(&had), "{had} in ten windows");
    }

    #[tokio::test]
    async fn a_flight_that_waits_for_a_guests_share_goes_on_when_the_owner_joins_it() {
        let clock = ManualClock::new();
        let budget = Budget::new(Some(8), Arc::new(clock.clone()));
        let call = Call::foreground(clock.now() + Duration::from_secs(600));
        let guest = || attribution::Attribution::of(1000, true);
        for _ in 0..4 {
            attribution::on_behalf_of(guest(), async { budget.acquire(&call).await.map(drop) })
                .await
                .unwrap();
        }
        let short = Call::foreground(clock.now() + Duration::from_secs(1));
        let refused =
            attribution::on_behalf_of(guest(), async { budget.acquire(&short).await.map(drop) }).await;
        assert_eq!(refused.unwrap_err().kind, ErrorKind::ShareSpent);
        let flight = guest().of_flight();
        let payer = flight.payer().clone();
        let join = async {
            tokio::task::yield_now().await;
            attribution::on_behalf_of(guest(), async { payer.join() }).await;
            tokio::task::yield_now().await;
            assert_eq!(payer.guest(), Some(1000));
            payer.join();
        };
        let waits = attribution::on_behalf_of(flight, async { budget.acquire(&call).await.map(drop) });
        let (taken, ()) = tokio::join!(waits, join);
        taken.unwrap();
        attribution::on_behalf_of(guest(), async { payer.join() }).await;
        assert_eq!(payer.guest(), None, "no guest pays after the owner");
    }

    #[test]
    fn answers_correct_the_count_less_what_is_on_its_way() {
        let now = Instant::now();
        let mut window = Window::new(Some(ASSUMED_LIMIT));
        for _ in 0..5 {
            window.take(now, FRONT, None);
        }
        window.in_flight -= 1;
        window.learn(now, &headers(6000, 10, 20), false);
        assert_eq!((window.limit, window.remaining), (Some(6000), 6));
        assert_eq!(window.ends, Some(now + Duration::from_secs(20)));
        let later = now + Duration::from_secs(20);
        assert_eq!(window.take(later, FRONT, None), Take::Go);
        assert_eq!(window.remaining, 5999);
    }

    #[test]
    fn no_limit_until_headers_come_and_a_refusal_stops_all() {
        let now = Instant::now();
        let mut window = Window::new(None);
        let nothing = Headers::default();
        for _ in 0..5000 {
            assert_eq!(window.take(now, BACK, None), Take::Go);
            window.in_flight -= 1;
            window.learn(now, &nothing, false);
        }
        window.learn(now, &headers(10, 9, 60), false);
        let refusal = Headers { retry_after: Some(Duration::from_secs(7)), ..nothing };
        window.learn(now, &refusal, true);
        assert_eq!(window.take(now, FRONT, None), Take::WaitUntil(now + Duration::from_secs(7)));
    }

    #[test]
    fn a_vault_without_a_limit_says_so() {
        let now = Instant::now();
        let mut window = Window::new(Some(ASSUMED_LIMIT));
        window.take(now, FRONT, None);
        window.learn(now, &Headers { limit: Some(0), ..Headers::default() }, false);
        for _ in 0..5000 {
            assert_eq!(window.take(now, BACK, None), Take::Go);
        }
        window.learn(now, &headers(10, 10, 60), false);
        assert_eq!(window.limit, Some(10), "it has one again");
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_window_only_if_the_deadline_allows() {
        let clock = ManualClock::new();
        let budget = Budget::new(Some(1), Arc::new(clock.clone()));
        let short = Call::foreground(clock.now() + Duration::from_secs(10));
        let ticket = budget.acquire(&short).await.unwrap();
        budget.learn(ticket, &headers(1, 0, 20), false);
        let e = budget.acquire(&short).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::RateLimited);
        assert_eq!((e.attempts, e.retry_after), (0, Some(Duration::from_secs(20))));
        let status = budget.status().unwrap();
        assert_eq!((status.limit, status.remaining, status.reset_s), (1, 0, 20));

        let long = Call::foreground(clock.now() + Duration::from_secs(30));
        let wait = async {
            tokio::task::yield_now().await;
            clock.advance(Duration::from_secs(20));
        };
        let (ticket, ()) = tokio::join!(budget.acquire(&long), wait);
        ticket.unwrap();
    }

    #[tokio::test]
    async fn a_better_answer_wakes_those_who_wait() {
        let clock = ManualClock::new();
        let budget = Budget::new(Some(2), Arc::new(clock.clone()));
        let call = Call::foreground(clock.now() + Duration::from_secs(600));
        let first = budget.acquire(&call).await.unwrap();
        let _second = budget.acquire(&call).await.unwrap();
        let answer = async {
            tokio::task::yield_now().await;
            budget.learn(first, &headers(100, 98, 60), false);
        };
        let (third, ()) = tokio::join!(budget.acquire(&call), answer);
        third.unwrap();
    }

    /// A vault that counts in windows of `length`, of which `into` have passed at first.
    fn answers(limit: u32, length: u64, into: u64, at: u64, remaining: u32) -> Headers {
        headers(limit, remaining, length - (into + at) % length)
    }

    proptest::proptest! {
        #[test]
        fn the_length_of_a_window_is_learnt_from_its_ends(
            limit in 1..10_000_u32,
            length in 1..=86_400_u64,
            late in 0.0..1.0_f64,
            between in 1..600_u64,
        ) {
            let start = Instant::now();
            let into = (length as f64 * late) as u64;
            let mut window = Window::new(Some(ASSUMED_LIMIT));
            let (mut at, mut resets) = (0, Vec::new());
            while at < 3 * length {
                let now = start + Duration::from_secs(at);
                window.take(now, FRONT, None);
                window.in_flight = 0;
                window.learn(now, &answers(limit, length, into, at, limit), false);
                resets.push((at, window.length().as_secs()));
                at += between;
            }
            proptest::prop_assert!(resets.iter().all(|(_, resets)| *resets <= length));
            let second = resets.iter().filter(|(at, _)| at + into >= length).map(|(_, resets)| *resets);
            // A window may end before any request was sent in it: the first request in another one
            // shows it.
            proptest::prop_assert!(second.min().unwrap_or(length) + between >= length);
            // The vault changes the length of its windows.
            let other = if length > 30 { length / 10 } else { length * 10 };
            for n in 0..4 {
                let now = start + Duration::from_secs(at + n * other.max(length));
                window.take(now, FRONT, None);
                window.in_flight = 0;
                window.learn(now, &headers(limit, limit, other), false);
            }
            proptest::prop_assert_eq!(window.length().as_secs(), other);
        }
    }
}
