//! A vault whose reads lag behind its writes by seconds: all of them, or every other one, as of two
//! replicas.

use std::fs;
use std::time::{Duration, Instant};

use super::vault::{OddVault, Rules};
use super::{Client, DIALECTS};
use crate::support::common::{self, Mount, until};

const LAG: Duration = Duration::from_secs(4);

/// A mount of a vault that lags and has the object `f`, once the mount knows that it does.
fn each(with: impl Fn(&str, OddVault, Mount)) {
    for api in DIALECTS {
        for lags_in_turn in [false, true] {
            let vault = OddVault::start(Rules { lags: LAG, lags_in_turn, ..Rules::default() });
            vault.holds("f", "old\n");
            let log = tempfile::NamedTempFile::new().unwrap();
            let on_change = format!("echo \"$VAULTFS_NAME\" >> {}", log.path().display());
            let mount =
                Client::new(&vault.url, api).mount(&["--refresh", "500ms", "--on-change", &on_change]);
            assert_eq!(mount.sh("cat f; echo one >> f; cat f"), "old\nold\none\n");
            until("an answer shows that the vault lags", || {
                assert_eq!(mount.sh("cat f"), "old\none\n");
                mount.status()["fs"]["vault"]["lagged_s"].is_u64()
            });
            with(&format!("{api}, in turn: {lags_in_turn}"), vault, mount);
            assert_eq!(fs::read_to_string(log.path()).unwrap(), "", "nothing was changed elsewhere");
        }
    }
}

#[test]
fn programs_read_what_they_wrote_and_go_on_from_there() {
    each(|case, vault, mount| {
        let script = "set -e; for n in 2 3 4 5 6; do sleep 0.7; echo $n >> f; grep -c . f; done; sed -i s/old/new/ f; cat f";
        assert_eq!(mount.sh(script), "3\n4\n5\n6\n7\nnew\none\n2\n3\n4\n5\n6\n", "{case}");
        let values = vault.values("f");
        assert_eq!((values.len(), values[7].as_str()), (8, "new\none\n2\n3\n4\n5\n6\n"), "{case}");
        assert_eq!(mount.sh("ls .versions/f | wc -l").trim(), "8", "{case}");
        mount.unmount();
    });
}

#[test]
fn what_was_made_is_there_and_what_was_removed_is_not() {
    each(|case, vault, mount| {
        mount.sh("set -e; echo 1 > x; mkdir d; echo 2 > d/y; echo 3 > gone; echo 4 > moved");
        std::thread::sleep(LAG + Duration::from_secs(1));
        mount.sh("set -e; rm x; echo v > x; sync x; rm gone; mv moved there; mv d e; rm f");
        let end = Instant::now() + LAG + Duration::from_secs(2);
        while Instant::now() < end {
            assert_eq!(
                mount.sh("cat x e/y there; find . -type f | sort"),
                "v\n2\n4\n./e/y\n./there\n./x\n",
                "{case}"
            );
            assert_eq!(
                mount.sh("for n in gone moved d/y f; do cat $n 2> /dev/null && echo $n; done; true"),
                "",
                "{case}"
            );
            std::thread::sleep(Duration::from_millis(300));
        }
        for (name, values) in [("x", &["v\n"][..]), ("there", &["4\n"]), ("e/y", &["2\n"]), ("f", &[])] {
            assert_eq!(vault.values(name), values, "{case}: {name}");
        }
        mount.unmount();
    });
}

#[test]
fn a_worker_that_takes_over_reads_what_was_written_before() {
    each(|case, vault, mount| {
        mount.sh("echo two >> f; echo new > made; cat f made");
        common::replace_worker(mount.pids().0);
        assert_eq!(mount.sh("echo three >> f; cat f made"), "old\none\ntwo\nthree\nnew\n", "{case}");
        assert_eq!(vault.values("f").len(), 4, "{case}");
        mount.unmount();
    });
}

/// Listings show the changes of this mount before the answers to them have come.
#[test]
fn what_was_changed_here_is_never_told_as_made_elsewhere() {
    for api in DIALECTS {
        let rules = Rules { answers_late: Duration::from_millis(300), ..Rules::default() };
        let vault = OddVault::start(rules);
        vault.holds("f", "old\n");
        let log = tempfile::NamedTempFile::new().unwrap();
        let on_change = format!("echo \"$VAULTFS_NAME $VAULTFS_EVENT\" >> {}", log.path().display());
        let mount = Client::new(&vault.url, api).mount(&["--refresh", "100ms", "--on-change", &on_change]);
        assert_eq!(mount.sh("ls; cat f"), "f\nold\n");
        mount.sh("set -e; for n in 1 2 3; do echo $n >> f; echo $n > x; sync x; mv x y; rm y; echo $n > z$n; rm z$n; done");
        std::thread::sleep(Duration::from_secs(2));
        vault.holds("other", "1");
        let told = || fs::read_to_string(log.path()).unwrap();
        until("it is told of another's", || told().contains("other"));
        assert_eq!(told(), "other created\n", "{api}");
        // What others make of a file just after a save of this mount is told.
        mount.sh("echo mine > f; sync f");
        vault.changes("f", "theirs");
        until("it is told of another's version", || told() == "other created\nf changed\n");
        mount.unmount();
    }
}
