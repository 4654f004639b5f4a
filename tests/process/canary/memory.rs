//! What is left of values in the memory of a mount's processes after a burst of reads and saves.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::hunt::canary;
use crate::support::common::{Mount, child_of, wait};

const VALUES: usize = 400;
const SIZE: usize = 20_000;

/// The numbers of the values of which a piece is in the memory that the process may write to.
fn held(pid: i32, word: &str) -> BTreeSet<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = BTreeSet::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|how| how.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [mut at, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        // Pieces overlap by the longest needle. What was never touched cannot be told from what is
        // empty.
        let mut piece = vec![0; 1 << 20];
        while at < to {
            let most = piece.len().min((to - at) as usize);
            let Ok(n @ 1..) = memory.read_at(&mut piece[..most], at) else { break };
            numbers(&piece[..n], word, &mut found);
            at += if n > 64 && at + (n as u64) < to { n as u64 - 64 } else { n as u64 };
        }
    }
    found
}

fn numbers(bytes: &[u8], word: &str, found: &mut BTreeSet<usize>) {
    let word = word.as_bytes();
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == word[0]).map(|(at, _)| at);
    for at in starts {
        let number = bytes[at..].strip_prefix(word).and_then(|rest| rest.get(..5));
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        found.extend(number);
    }
}

#[test]
fn after_a_burst_memory_holds_little_more_than_the_cache() {
    crate::support::only_root!("only root looks into a process that is not dumpable");
    let word = canary("burst");
    let mount = Mount::with(&["--cache-size", "1MiB"]);
    let (keeper, worker) = mount.pids();
    let helper = wait(|| child_of(keeper, "vaultfs-helper"), Duration::from_secs(30)).expect("a helper");
    let value = |n: usize| format!("{word}{n:05}").repeat(SIZE / (word.len() + 5));
    std::thread::scope(|scope| {
        for part in 0..8 {
            let (mount, value) = (&mount, &value);
            scope.spawn(move || {
                for n in (part..VALUES).step_by(8) {
                    let file = mount.path(format!("f{n}"));
                    fs::write(&file, value(n)).unwrap();
                    assert_eq!(fs::read_to_string(&file).unwrap(), value(n));
                }
            });
        }
    });
    assert!(!held(worker, &word).is_empty(), "the search finds what is there");
    assert_eq!(held(keeper, &word).len() + held(helper, &word).len(), 0, "these two have no value at all");
    // The cache holds 50. The buffers of libraries and of threads hold some more, which are used
    // again by later requests.
    let bound = VALUES / 4;
    let few = || Some(held(worker, &word).len()).filter(|n| *n <= bound);
    let left = wait(few, Duration::from_secs(60));
    assert!(left.is_some(), "{} of {VALUES} values are in memory", held(worker, &word).len());
    println!("{} of {VALUES} values are in memory", left.unwrap_or_default());
    mount.unmount();
}
