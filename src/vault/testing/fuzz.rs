//! Long runs of property tests: made-up input for ten minutes, other input each time.
//!
//! Each parser that meets the network has one of its own, ignored but for `scripts/test --all`. A
//! shorter run by hand: `VAULTFS_FUZZ_SECONDS=20 cargo test --lib --test fs -- --ignored
//! ten_minutes --nocapture`.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

/// Cases between two looks at the clock.
const ROUND: u32 = 100;

/// Checks what `strategy` makes up until the time is over; says how much that was.
pub(crate) fn for_ten_minutes<S>(what: &str, strategy: &S, check: impl Fn(S::Value) -> TestCaseResult)
where
    S: Strategy<Value: Debug>,
{
    let seconds = std::env::var("VAULTFS_FUZZ_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let end = Instant::now() + Duration::from_secs(seconds);
    // Whatever PROPTEST_CASES says. Each runner begins with a seed of its own.
    let config =
        Config { cases: ROUND, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut cases = 0u64;
    while Instant::now() < end {
        TestRunner::new(config.clone()).run(strategy, &check).unwrap();
        cases += u64::from(ROUND);
    }
    crate::sys::stdio::line(format_args!("{what}: {cases} made-up inputs in {seconds} s"));
}
