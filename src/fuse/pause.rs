//! Before another worker takes over at an upgrade, this one ends what it is at: requests that come
//! meanwhile wait where they were read, not begun, and those that are out are answered. So the
//! successor has nothing to guess.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

/// Whether requests are begun, and how many are out.
#[derive(Debug, Default)]
pub struct Pause {
    state: Mutex<State>,
    /// The pause is over.
    over: Condvar,
    /// A request was answered.
    answered: Notify,
}

#[derive(Debug, Default)]
struct State {
    paused: bool,
    out: usize,
}

/// A request that is out.
#[derive(Debug)]
pub struct Out(Arc<Pause>);

/// Ends the pause when dropped.
#[derive(Debug)]
pub struct Paused(Arc<Pause>);

impl Pause {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A request was read: blocks its thread during a pause.
    pub fn wait(&self) {
        self.over.wait_while(&mut self.state(), |state| state.paused);
    }

    /// A request waits for the vault until the result is dropped.
    pub fn out(self: &Arc<Self>) -> Out {
        self.state().out += 1;
        Out(self.clone())
    }

    /// Begins no request from now on, and waits until those that are out are answered, for so long
    /// at the most.
    pub async fn begin(self: &Arc<Self>, within: Duration) -> Paused {
        self.state().paused = true;
        let paused = Paused(self.clone());
        let until = Instant::now() + within;
        while self.state().out > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, self.answered.notified()).await.is_err() {
                break;
            }
        }
        paused
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.0.state().out -= 1;
        self.0.answered.notify_one();
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.state().paused = false;
        self.0.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_waits_for_what_is_out_and_holds_what_comes() {
        let pause = Arc::new(Pause::default());
        pause.wait();
        let out = pause.out();
        let paused = pause.begin(Duration::from_millis(10)).await;
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = std::thread::spawn({
            let pause = pause.clone();
            move || {
                pause.wait();
                sender.send(()).unwrap();
            }
        });
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err(), "it is not begun");
        drop(paused);
        receiver.recv().unwrap();
        reader.join().unwrap();
        let ends = async {
            tokio::task::yield_now().await;
            drop(out);
        };
        let (paused, ()) = tokio::join!(pause.begin(Duration::from_secs(600)), ends);
        drop(paused);
        pause.wait();
    }
}
