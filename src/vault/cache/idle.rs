//! An idle mount observes no revocation, and must not go on showing what it showed before.
//!
//! 1. **Falling asleep** it takes back from the kernel what this could go on showing without
//!    asking: pages of open and mapped files, listings. Names have run out by then. That costs no
//!    request, where staying awake for as long as a program has a file open or mapped would cost
//!    one a tick, for years.
//! 2. **The first read after that** comes to us, and though the bytes are at hand the vault is
//!    asked first whether the key is still taken: one page of names, because a listing is refused
//!    also where names are not. Any answer that is no refusal counts, so that a lookup before the
//!    read waits for nothing more.
//! 3. Once the mount is awake ticks observe it. A vault that does not answer is no refusal: see
//!    [`STALE_WAIT`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::vault::cache::single_flight::{Flight, STALE_WAIT, spawn_shared};
use crate::vault::cache::{Cache, is_outage};
use crate::vault::{Call, ListQuery, Result, attribution};

impl Cache {
    /// Whether the mount has slept, and changes have not been asked for since.
    pub fn was_idle(&self) -> bool {
        self.was_idle.load(Ordering::Acquire)
    }

    /// Whether a tick would have verified the key since, and none did.
    pub fn is_key_unverified(&self) -> bool {
        if !self.was_idle() {
            return false;
        }
        let (now, period) = (self.clock.now(), self.period());
        let observed_at = self.refresh_state().observed_at;
        observed_at.is_none_or(|observed_at| now.saturating_duration_since(observed_at) >= period)
    }

    /// Asks whether the vault still accepts the key. A refusal is handled as any other; the caller
    /// continues in any case, and waits only briefly for a vault that does not answer.
    pub async fn verify_key(self: &Arc<Self>, call: &Call) {
        if self.recent_outage().is_none() {
            let left = call.deadline.saturating_duration_since(self.clock.now());
            let answer = tokio::time::timeout(left.min(STALE_WAIT), self.key_check_flight()).await;
            let answered = answer.is_ok_and(|answer| !answer.is_err_and(|e| is_outage(e.kind)));
            if answered {
                return;
            }
        }
        self.served_stale.store(true, Ordering::Relaxed);
    }

    pub(super) fn key_accepted(&self) {
        let now = self.clock.now();
        self.refresh_state().observed_at = Some(now);
    }

    fn key_check_flight(self: &Arc<Self>) -> Flight<()> {
        let mut state = self.state();
        if let Some(out) = &state.key_check {
            return out.clone();
        }
        let cache = self.clone();
        // About the key, not about what one user may ask: a guest's share does not count.
        let flight = spawn_shared(attribution::current().unlimited(), async move {
            let answer = cache.check_key().await;
            cache.note(&answer);
            cache.state().key_check = None;
            answer
        });
        state.key_check = Some(flight.clone());
        flight
    }

    async fn check_key(&self) -> Result<()> {
        let asked = self.clock.now();
        self.ask_for_names_again();
        let call = Call::foreground(asked + self.config.timeout);
        let page = self.vault.list(&call, &ListQuery::first()).await?;
        self.seed(&page, asked);
        Ok(())
    }
}
