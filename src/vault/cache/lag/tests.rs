//! What is accepted, withheld and asked for again, without a vault.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn item(id: &str, name: &str, version: u64) -> Summary {
    Summary {
        id: ObjectId::new(id),
        name: ObjectName::new(name).unwrap(),
        updated_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(version)),
        version: Some(VersionTag::new(version.to_string())),
    }
}

fn meta(id: &str, name: &str, version: u64) -> Meta {
    let Summary { id, name, updated_at, version } = item(id, name, version);
    Meta { id, name, version: version.unwrap(), updated_at: updated_at.unwrap() }
}

#[test]
fn what_is_stored_again_and_again_is_remembered_from_the_last_time_on() {
    let (mut lag, start) = (Lag::default(), Instant::now());
    for n in 0..10 {
        lag.stored(&meta("i", "f", n), n == 0, start + SECOND * n as u32 * 2);
    }
    let last = start + SECOND * 18;
    for (after, verdict) in [(1, Verdict::Instead(item("i", "f", 9))), (15, Verdict::Accepted)] {
        assert_eq!(
            lag.presence(&item("i", "f", 8), last + SECOND * after, last + SECOND * after, false),
            verdict
        );
    }
    assert!(lag.entries.is_empty() && lag.names.is_empty() && lag.order.is_empty());
}

#[test]
fn versions_of_one_moment_are_told_apart_and_a_clock_that_is_put_back_changes_no_order() {
    let (mut lag, now) = (Lag::default(), Instant::now());
    let at = |version: &str, time: u64| Meta { version: VersionTag::new(version), ..meta("i", "f", time) };
    let asked = |m: &Meta| Summary { version: Some(m.version.clone()), ..item("i", "f", 0) };
    let asked = |m: &Meta| Summary { updated_at: Some(m.updated_at), ..asked(m) };
    let (first, second, third) = (at("a", 5), at("b", 5), at("c", 3));
    for meta in [&first, &second, &third] {
        lag.stored(meta, false, now);
    }
    for older in [&first, &second] {
        assert_eq!(lag.presence(&asked(older), now, now, false), Verdict::Instead(asked(&third)));
    }
    assert_eq!(lag.presence(&asked(&third), now, now, false), Verdict::Accepted);
    assert_eq!(lag.presence(&asked(&at("d", 4)), now, now, false), Verdict::Accepted, "made elsewhere");
}

/// A save in doubt is sent again, and the vault answers with the version that it made then.
#[test]
fn the_answer_to_a_repeated_update_is_not_the_newest_where_another_is_known() {
    let now = Instant::now();
    let (ours, newer) = (meta("i", "f", 3), meta("i", "f", 4));
    for known in [vec![newer.clone()], vec![ours.clone(), newer.clone()]] {
        let mut lag = Lag::default();
        known.iter().for_each(|meta| lag.stored(meta, false, now));
        lag.stored_again(&ours, now);
        assert_eq!(lag.presence(&item("i", "f", 4), now, now, false), Verdict::Accepted);
        assert_ne!(lag.presence(&item("i", "f", 3), now, now, false), Verdict::Accepted);
    }
    let mut lag = Lag::default();
    lag.stored(&ours, false, now);
    lag.stored_again(&newer, now);
    assert_ne!(lag.presence(&item("i", "f", 3), now, now, false), Verdict::Accepted, "made only now");
}

#[test]
fn of_thousands_the_newest_are_remembered() {
    let (mut lag, now) = (Lag::default(), Instant::now());
    let all = 2 * MOST;
    for n in 0..all {
        lag.stored(&meta(&format!("i{n}"), &format!("f{n}"), 2), true, now);
        lag.note_unanswered(Changed::Name(ObjectName::new(&format!("f{n}")).unwrap()), now);
    }
    assert_eq!((lag.entries.len(), lag.names.len(), lag.unanswered.len()), (MOST, MOST, MOST));
    let older = |n: usize| item(&format!("i{n}"), &format!("f{n}"), 1);
    assert_eq!(lag.presence(&older(0), now, now, false), Verdict::Accepted);
    assert_ne!(lag.presence(&older(all - 1), now, now, false), Verdict::Accepted);
}

#[test]
fn an_absence_is_believed_once_it_is_confirmed_and_a_return_shows_the_lag() {
    let (mut lag, now) = (Lag::default(), Instant::now());
    let name = ObjectName::new("f").unwrap();
    lag.stored(&meta("i", "f", 1), true, now);
    assert_eq!(lag.absence(&name, now - SECOND, false), Verdict::Instead(item("i", "f", 1)), "asked before");
    assert_eq!(lag.absence(&name, now, false), Verdict::Retry);
    assert_eq!(lag.questions(), std::slice::from_ref(&name));
    assert_eq!(lag.absence(&name, now + AGAIN, false), Verdict::Accepted);
    assert!(lag.questions().is_empty() && !lag.is_known(now));
    assert_eq!(
        lag.presence(&item("i", "f", 1), now + SECOND * 2, now + SECOND * 2, false),
        Verdict::Accepted
    );
    assert!(lag.is_known(now + SECOND * 3) && !lag.is_known(now + SECOND * 603));
    assert_eq!(lag.absence(&name, now + SECOND * 3, true), Verdict::Instead(item("i", "f", 1)));
    lag.deleted(&ObjectId::new("i"), now + SECOND * 4);
    assert_eq!(lag.presence(&item("i", "f", 1), now + SECOND * 5, now + SECOND * 5, true), Verdict::Gone);
    lag.stored(&meta("j", "f", 1), true, now + SECOND * 6);
    assert_eq!(
        lag.presence(&item("i", "f", 1), now + SECOND * 7, now + SECOND * 7, false),
        Verdict::Instead(item("j", "f", 1))
    );
    assert_eq!(lag.absence(&name, now + SECOND * 21, false), Verdict::Accepted);
}

#[test]
fn answers_out_of_order_are_no_lag() {
    for (sent, lags) in [(1, false), (3, true)] {
        let (mut lag, start) = (Lag::default(), Instant::now());
        lag.stored(&meta("i", "f", 1), true, start);
        // Sent first, answered last, with what was made elsewhere meanwhile.
        assert_eq!(lag.presence(&item("i", "f", 2), start, start + SECOND * 2, false), Verdict::Accepted);
        let sent = start + SECOND * sent;
        let verdict = lag.presence(&item("i", "f", 1), sent, start + SECOND * 4, false);
        assert_eq!(verdict, Verdict::Instead(item("i", "f", 2)));
        assert_eq!(lag.is_known(start + SECOND * 4), lags);
    }
}
