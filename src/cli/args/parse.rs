//! What the parser says about a command line that it does not understand, without repeating what
//! may be a secret.
//!
//! A value in `vaultfs put NAME VALUE`, or a key given to a switch, is in the shell's history
//! already. But the parser's message may also go to a journal or a build's log, where it must not
//! be.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::display;

/// In place of what was given.
const KEPT_BACK: &str = "…";

/// The same error, with names of options in it and no values that no option takes.
pub fn without_values(mut e: clap::Error) -> clap::Error {
    let text = |e: &clap::Error, kind| match e.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let kept_back = || ContextValue::String(KEPT_BACK.to_owned());
    match e.kind() {
        ErrorKind::UnknownArgument
            if !text(&e, ContextKind::InvalidArg).is_some_and(|a| a.starts_with('-')) =>
        {
            e.insert(ContextKind::InvalidArg, kept_back());
            let usage = e.get(ContextKind::Usage).map(ToString::to_string).unwrap_or_default();
            let tip = if usage.contains(" put ") {
                "a value is read from standard input: printf %s \"$VALUE\" | vaultfs put NAME"
            } else {
                "it is not repeated here, because it could be a secret"
            };
            e.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
        }
        ErrorKind::TooManyValues => {
            e.insert(ContextKind::InvalidValue, kept_back());
        }
        _ => {}
    }
    escaped(e)
}

/// The same error with what was given shown as other text that is not ours is: the parser would
/// repeat it as it is.
fn escaped(mut e: clap::Error) -> clap::Error {
    let given = e.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, text.clone(), display::line(text).to_string())),
        _ => None,
    });
    let hostile: Vec<_> = given.filter(|(_, text, shown)| text != shown).collect();
    if !hostile.is_empty() {
        // It would repeat it, too.
        e.remove(ContextKind::Suggested);
    }
    for (kind, _, shown) in hostile {
        e.insert(kind, ContextValue::String(shown));
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn said(args: &[&str]) -> String {
        let all = ["vaultfs"].iter().chain(args);
        without_values(Cli::try_parse_from(all).expect_err("not understood")).to_string()
    }

    #[test]
    fn values_that_no_option_takes_are_not_repeated() {
        for args in [
            &["put", "NAME", "SECRET"][..],
            &["put", "NAME", "--", "SECRET"],
            &["put", "NAME", "--value=SECRET"],
            &["put", "NAME", "-pSECRET"],
            &["get", "NAME", "SECRET"],
            &["mount", "/m", "--read-only=SECRET"],
            &["mount", "/m", "--api-key=SECRET"],
            &["key", "create", "SECRET"],
        ] {
            let said = said(args);
            assert!(!said.contains("SECRET") && said.contains("Usage:"), "{said}");
        }
    }

    #[test]
    fn what_was_given_cannot_command_a_terminal() {
        for given in ["--x\u{1b}[2J\nvaultfs: fine", "-\u{9b}\n", "mou\u{1b}[2J\nt", "--json=\u{1b}\n"] {
            for args in [
                &["status", "m", given][..],
                &[given],
                &["mount", "/m", "--api", given],
                &["put", "a", "--format", given],
            ] {
                let said = said(args);
                assert!(
                    !said.contains(['\u{1b}', '\u{9b}']) && !said.contains("\nvaultfs: fine"),
                    "{args:?}: {said:?}"
                );
            }
        }
    }

    #[test]
    fn what_helps_is_said_all_the_same() {
        assert!(said(&["put", "NAME", "SECRET"]).contains("read from standard input"));
        assert!(said(&["get", "NAME", "SECRET"]).contains("could be a secret"));
        assert!(said(&["status", "--jsn"]).contains("--json"));
        assert!(said(&["mount", "/m", "--api-key=SECRET"]).contains("--api-key-file"));
        assert!(said(&["mount", "/m", "--refresh=5"]).contains("'5'"), "a value that an option takes");
        assert!(said(&["mout"]).contains("'mount'"));
    }
}
