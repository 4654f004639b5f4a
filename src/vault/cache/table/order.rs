//! Entries in the order of their names: numbers in sorted runs of at most a few hundred.
//!
//! What a number stands for is the caller's, who compares. A place is found by halving twice, first among the runs,
//! then in one; an insertion moves at most one run's tail. Four bytes an entry when they come in order, six when not.

use std::cmp::Ordering;

/// Numbers in a run.
const RUN: usize = 512;

/// The sorted numbers.
#[derive(Debug, Default)]
pub struct Order {
    /// None is empty.
    runs: Vec<Vec<u32>>,
}

/// A place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    run: usize,
    at: usize,
}

impl Order {
    /// Puts `number` in; `compare` says how another one stands to it.
    pub fn insert(&mut self, number: u32, mut compare: impl FnMut(u32) -> Ordering) {
        // What comes in order needs no search.
        let last = self.runs.last().and_then(|run| run.last());
        let Place { mut run, mut at } = match last.map(|last| compare(*last)) {
            None | Some(Ordering::Less) => Place { run: self.runs.len(), at: 0 },
            Some(_) => self.first_not_before(&mut compare),
        };
        if run == self.runs.len() {
            // Behind all others: at the end of the last run, or in a new one, so that what comes in order fills each.
            match self.runs.last_mut() {
                Some(last) if last.len() < RUN => last.push(number),
                _ => {
                    let mut fresh = Vec::with_capacity(RUN);
                    fresh.push(number);
                    self.runs.push(fresh);
                }
            }
            return;
        }
        if self.runs[run].len() == RUN {
            let mut second = Vec::with_capacity(RUN);
            second.extend(self.runs[run].drain(RUN / 2..));
            self.runs.insert(run + 1, second);
            if at > RUN / 2 {
                (run, at) = (run + 1, at - RUN / 2);
            }
        }
        self.runs[run].insert(at, number);
    }

    /// Takes out the number that `compare` calls equal.
    pub fn remove(&mut self, mut compare: impl FnMut(u32) -> Ordering) {
        let Place { run, at } = self.first_not_before(&mut compare);
        let Some(numbers) = self.runs.get_mut(run) else { return };
        if compare(numbers[at]) != Ordering::Equal {
            return;
        }
        numbers.remove(at);
        let len = numbers.len();
        if len == 0 {
            self.runs.remove(run);
        } else if let Some(next) = self.runs.get(run + 1)
            && len + next.len() <= RUN / 2
        {
            let next = self.runs.remove(run + 1);
            self.runs[run].extend(next);
        }
    }

    /// Keeps the numbers that `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        for run in &mut self.runs {
            run.retain(|number| keep(*number));
        }
        self.runs.retain(|run| !run.is_empty());
    }

    /// The first place whose number does not stand before what is sought.
    pub fn first_not_before(&self, compare: &mut impl FnMut(u32) -> Ordering) -> Place {
        let before = |run: &Vec<u32>, compare: &mut dyn FnMut(u32) -> Ordering| {
            run.last().is_some_and(|last| compare(*last) == Ordering::Less)
        };
        let run = self.runs.partition_point(|run| before(run, compare));
        let at = self.runs.get(run).map_or(0, |run| run.partition_point(|n| compare(*n) == Ordering::Less));
        Place { run, at }
    }

    /// The numbers from `place` on.
    pub fn from(&self, place: Place) -> impl Iterator<Item = u32> + '_ {
        let Place { run, at } = place;
        let first = self.runs.get(run).map_or(&[][..], |run| &run[at..]);
        first.iter().chain(self.runs.iter().skip(run + 1).flatten()).copied()
    }

    /// Bytes taken from the allocator.
    #[cfg(test)]
    pub fn bytes_used(&self) -> usize {
        let runs: usize = self.runs.iter().map(|run| run.capacity() * size_of::<u32>()).sum();
        runs + self.runs.capacity() * size_of::<Vec<u32>>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all(order: &Order) -> Vec<u32> {
        order.from(Place { run: 0, at: 0 }).collect()
    }

    #[test]
    fn it_is_a_sorted_set_whatever_is_done() {
        let (mut order, mut model) = (Order::default(), BTreeSet::new());
        let mut noise: u32 = 1;
        for step in 0..60_000 {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = noise >> 18;
            // Grows, shrinks, grows.
            if (noise >> 8) % 100 < [70, 20, 55][step / 20_000] {
                if model.insert(number) {
                    order.insert(number, |other| other.cmp(&number));
                }
            } else {
                model.remove(&number);
                order.remove(|other| other.cmp(&number));
            }
            if step % 5_000 == 0 {
                assert_eq!(all(&order), model.iter().copied().collect::<Vec<_>>());
                let from = order.from(order.first_not_before(&mut |other| other.cmp(&number)));
                assert!(from.eq(model.range(number..).copied()));
            }
        }
        order.retain(|n| n % 3 == 0);
        model.retain(|n| n % 3 == 0);
        assert_eq!(all(&order), model.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_comes_in_order_fills_the_runs() {
        let mut order = Order::default();
        (0..100_000).for_each(|n| order.insert(n, |other| other.cmp(&n)));
        assert!(order.bytes_used() < 100_000 * 9 / 2);
    }

    #[test]
    fn a_place_is_found_in_few_comparisons() {
        let mut order = Order::default();
        (0..1_000_000).for_each(|n| order.insert(n, |other| other.cmp(&n)));
        let mut compared = 0;
        order.first_not_before(&mut |other| {
            compared += 1;
            other.cmp(&777_777)
        });
        assert!(compared <= 22, "{compared}");
    }
}
