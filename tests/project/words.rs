//! Old private words stay away: no identifier and no file of `src` has one of them. The field's
//! word is beside it. A type's name is unique in its layer, and comments are narrow.

use std::collections::HashMap;

use super::{files, read};

/// Old words, and what stands in their place.
const BANNED: &[(&str, &str)] = &[
    ("Sighting sighting", "CrashRecord, crash_record"),
    ("crew equipment Equipment", "worker_process, SpawnConfig"),
    ("last_words condemn weigh", "pending_message, kill_for, record_exit"),
    ("Deaths LINGER introduce assign", "RestartPolicy, REAP_DELAY, spawn_and_verify, hand_mount"),
    ("Front Facts Inheritance inheritance", "StarterPipe, MountFacts, TakeoverState"),
    ("Pausing Parting Broken", "BackingOff, FinalDrain, Failed"),
    ("pulse Finger finger feel STILL beat", "heartbeat, HeartbeatMonitor, check_liveness, TIMEOUT, tick"),
    ("Minder Desk desk Wires", "HelperSupervisor, ControlHandler, ControlChannels"),
    ("untold Untold Untolds", "unacknowledged, UnacknowledgedOpens"),
    ("Wrote Whose lets_store is_stored_by", "Writers, WriteOrigin, commits_on_close"),
    ("Doing doings attend", "Intent, intents, run"),
    ("Pen pen Kept left_in", "JournalWriter, Tracked or RetainedBytes, unsaved_from_journal"),
    ("Rotor rotor Deed deed Greet greet", "Propagator, HelperOp, Handshake"),
    ("carry_out reshow go_on Busy", "execute, repoint, resume_background, InFlight"),
    ("keep_a_file release_kind take_place_of", "pin_as_file, unpin, vacate"),
    ("Walk Walks SIGN", "ScanTracker, PREFETCH_AFTER"),
    ("reveal doomed_with objects_behind let_go_of", "cancel_delete, deletes_with, backing_objects, detach"),
    ("undeleted Undeleted NotDeleted", "failed_deletes, FailedDelete"),
    ("keep_after_all owes_deletions", "dismiss, has_pending_deletes"),
    ("cut_short unannounced", "write_error, pending_notify"),
    ("settle_later settle_rotations", "promote_later, flush_queue"),
    ("doze dozes dozed has_dozed Audience audience", "idle, was_idle, RevocationListener"),
    ("fly flights Feed Belief belief Implied", "spawn_shared, NameStream, Knowledge, PrefixState"),
    ("stand_in sweep Sweep vast price", "stale_fallback, deletion_scan, too_large, request_cost"),
    ("spender Spender Ledger Spent", "Attribution, RequestCounter, RequestCount"),
    ("Trouble trouble Effect", "FailureClass, Idempotency"),
    ("exchange ABREAST abreast", "send_with_retries, MAX_IN_FLIGHT"),
    ("Examined rehearsal rehearse way_to", "Inspected, validate, suggest_options"),
    ("MyTurn Turns Hurry hurry", "VolumeGuard, VolumeLocks, Waiter"),
    ("Trial TRIAL Bench bench", "Quarantine, Queue"),
    ("at_large lot lots guilty GUILTY", "running, shuffle_key, poisoned"),
    ("Sights Sightings sightings", "CrashRecord, CrashRecords, crash_records"),
    ("Told was_told stop_told", "the name of what was reported, logged or requested"),
    ("Settle Settled SETTLED", "Promote, Confirmed, DETACHED_AFTER"),
    ("Believed Questioned judged judged_history", "Accepted, Retry, check_object, check_history"),
    ("Heard News", "Burst, ChangeEvent"),
    ("examine Look LOOK look_again look_after", "check, Survey, POLL_INTERVAL, reload_if_changed, supervise"),
    (
        "Fate fate DOUBTFUL doubt doubts in_doubt is_in_doubt",
        "Outcome, INCOMPLETE, maybe_applied, unanswered",
    ),
    ("clear_doubt resolve_doubt doubt_unsaved", "resolve_creation, verify_key, mark_unsaved_incomplete"),
    ("Said Spot Flaw flaw", "ErrorMessage, MountpointHandle, SyntaxError"),
    ("Load KeyLoad Turn turn Seat seat", "KeyLimits, KeyUse, RequestPermit, permit, ConnectionPermit"),
    ("LATELY lately LAST_WORDS SystemRandom", "RECENT_TIME, recent, EXIT_MARGIN, sys::random"),
    ("hear helper_says what_its_end_says", "note_report, helper_reports, exit_message"),
    ("reload_and_tell hear_the_end SUCCESSION", "reload_and_log, wait_for_last_answer, TAKEOVER"),
    ("doomed claims claimed heard told owes", "deletes, reuses, sent, has_pending_deletes"),
    ("spot spots anew succession", "handle or resolved, fresh_mount, takeover"),
    (
        "settle settles settled stand_in feed",
        "release, promote, ingest or flush_queue; stale_fallback; stream",
    ),
    (
        "deeds greets greeting GREETING beliefs BELIEVED",
        "ops, is_handshake, HANDSHAKE_TIMEOUT, known, TRUSTED_FOR",
    ),
    ("spenders SPENDERS walker walks WALKERS touched", "TOP_PROGRAMS, scanner, SCANNERS, dir_mtime"),
    ("Nobody NoticeQueue handover", "Unattributed, NoticeSender, protocol"),
];

/// Old words that have no other meaning in comments and documents either.
const BANNED_IN_PROSE: &str = "untold rotor doze dozes dozed deed deeds desk crew sighting sightings belief \
                               beliefs spender spenders reshow minder";

/// The identifiers of a line of code; what stands in a comment or in quotes is prose.
fn identifiers(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let unquoted: String = code.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words = unquoted.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[test]
fn old_private_words_do_not_come_back() {
    let sources = files("src", "rs");
    assert!(sources.len() > 200, "{} files", sources.len());
    let instead = |word: &str| BANNED.iter().find(|(old, _)| old.split(' ').any(|old| old == word));
    let mut wrong = Vec::new();
    for (shown, text) in &sources {
        for part in shown.trim_end_matches(".rs").split('/') {
            wrong.extend(instead(part).map(|(_, new)| format!("{shown}: a file called {part} ({new})")));
        }
        for (number, line) in text.lines().enumerate() {
            for word in identifiers(line) {
                let new = instead(&word).map(|(_, new)| new);
                wrong.extend(new.map(|new| format!("{shown}:{}: {word} ({new})", number + 1)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn old_private_words_are_in_no_comment_and_no_document() {
    let banned: Vec<&str> = BANNED_IN_PROSE.split_whitespace().collect();
    let mut texts = files("src", "rs");
    texts.extend(files("docs", "md"));
    texts.push(("README.md".to_owned(), read("README.md")));
    let mut wrong = Vec::new();
    for (file, text) in &texts {
        for (number, line) in text.lines().enumerate() {
            let prose =
                if file.ends_with(".rs") { line.split_once("//").unwrap_or_default().1 } else { line };
            let words = prose.split(|c: char| !(c.is_alphanumeric() || c == '_')).map(str::to_lowercase);
            let old = words.filter(|word| banned.contains(&word.as_str()));
            wrong.extend(old.map(|word| format!("{file}:{}: {word}", number + 1)));
        }
    }
    assert!(texts.len() > 200 && wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows of tables cannot be wrapped.
#[test]
fn comments_end_at_column_100() {
    let folders = ["src", "tests", "benches"];
    let sources: Vec<_> = folders.iter().flat_map(|folder| files(folder, "rs")).collect();
    let mut wide = Vec::new();
    for (file, text) in &sources {
        for (number, line) in text.lines().enumerate() {
            let text =
                line.trim_start().strip_prefix("//").map(|text| text.trim_start_matches(['/', '!', ' ']));
            if line.chars().count() > 100 && text.is_some_and(|text| !text.starts_with('|')) {
                wide.push(format!("{file}:{}", number + 1));
            }
        }
    }
    assert!(sources.len() > 400 && wide.is_empty(), "{}", wide.join("\n"));
}

#[test]
fn the_search_sees_code_and_no_prose() {
    assert_eq!(identifiers(r#"let pen = "a rotor"; // the pulse"#), ["let", "pen"]);
}

/// The type that a line defines, unless it is one of a trait.
fn defined_type(line: &str) -> Option<&str> {
    let is_visibility = |word: &&str| word.starts_with("pub") || word.ends_with(')');
    let mut words = line.split_whitespace().skip_while(is_visibility);
    let kind = words.next()?;
    let is_own = ["struct", "enum", "trait"].contains(&kind) || kind == "type" && !line.starts_with(' ');
    let name = words.next().filter(|_| is_own)?;
    name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()
}

#[test]
fn a_layer_has_each_type_name_once() {
    let mut seen = HashMap::new();
    let mut twice = Vec::new();
    for (shown, text) in files("src", "rs") {
        let layer = shown.split('/').next().unwrap().to_owned();
        for name in text.lines().filter_map(defined_type) {
            if let Some(other) = seen.insert((layer.clone(), name.to_owned()), shown.clone()) {
                twice.push(format!("{name}: {other} and {shown}"));
            }
        }
    }
    assert!(seen.len() > 500, "{} types", seen.len());
    assert!(twice.is_empty(), "{}", twice.join("\n"));
}

#[test]
fn a_definition_is_seen() {
    assert_eq!(defined_type("pub(in crate::fs) struct File {"), Some("File"));
    assert_eq!(defined_type("type Read = u8;"), Some("Read"));
    assert_eq!(defined_type("    type Read;"), None);
    assert_eq!(defined_type("    structure(of)"), None);
}
