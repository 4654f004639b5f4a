//! Sentences and examples as they stand in `--help`, in the terms of a page.

use roff::{Inline, Roff, bold, roman};

/// A sentence: what is in backquotes, and names of pages, are bold.
pub fn inlines(text: &str) -> Vec<Inline> {
    let mut out = Vec::new();
    for (i, part) in text.split('`').enumerate() {
        match i % 2 {
            1 => out.push(bold(part)),
            _ => part.split_inclusive(' ').for_each(|word| push_word(word, &mut out)),
        }
    }
    out
}

fn push_word(word: &str, out: &mut Vec<Inline>) {
    let name_at = word.find(|c: char| c.is_ascii_alphanumeric()).unwrap_or(0);
    let (before, rest) = word.split_at(name_at);
    let is_page = |name: &str, rest: &str| {
        name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
            && rest.starts_with(|c: char| c.is_ascii_digit())
            && rest[1..].starts_with(')')
    };
    match rest.split_once('(') {
        Some((name, rest)) if !name.is_empty() && is_page(name, rest) => {
            out.extend([roman(before), bold(name), roman(format!("({rest}"))]);
        }
        _ => out.push(roman(word)),
    }
}

/// Paragraphs, which an empty line separates. The first is begun already if `begun`; the next ones
/// by `macro`.
pub fn paragraphs(page: &mut Roff, text: &str, begun: bool, next: &str) {
    for (i, paragraph) in text.split("\n\n").filter(|text| !text.trim().is_empty()).enumerate() {
        if i > 0 || !begun {
            page.control(next, []);
        }
        page.text(inlines(&paragraph.replace('\n', " ")));
    }
}

/// Lines as they are typed: neither filled nor hyphenated.
pub fn example(page: &mut Roff, lines: &[&str]) {
    page.control("PP", []).control("in", ["+4n"]).control("EX", []);
    for line in lines {
        page.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    page.control("EE", []).control("in", []);
}

/// What follows the options in `--help`, by what it is.
#[derive(Default)]
pub struct After<'a> {
    /// Each with the line before it, if it has one of its own.
    pub examples: Vec<(Option<&'a str>, Vec<&'a str>)>,
    /// About the exit code.
    pub exit: Vec<&'a str>,
    /// The rest.
    pub notes: Vec<&'a str>,
}

impl<'a> After<'a> {
    pub fn parse(text: &'a str) -> Self {
        let mut found = Self::default();
        for paragraph in text.split("\n\n").filter(|text| !text.trim().is_empty()) {
            let mut lines = paragraph.lines();
            let first = lines.next().unwrap_or_default();
            let rest: Vec<&str> = lines.collect();
            if first.starts_with("Exit codes:") {
                // All of them have their section on each page.
            } else if first.starts_with("Exit code") {
                found.exit.push(paragraph);
            } else if first.ends_with(':') && !rest.is_empty() && rest.iter().all(|l| l.starts_with("  ")) {
                let title = (!["Example:", "Examples:"].contains(&first)).then_some(first);
                found.examples.push((title, rest));
            } else {
                found.notes.push(paragraph);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_pages_are_bold() {
        let said = |text| Roff::new().text(inlines(text)).to_roff();
        assert_eq!(said("see `vaultfs x` and fstab(5)."), "see \\fBvaultfs x\\fR and \\fBfstab\\fR(5).\n");
        assert_eq!(said("(mount(8) does)"), "(\\fBmount\\fR(8) does)\n");
        assert_eq!(said("DIR (or two) f(x)"), "DIR (or two) f(x)\n");
    }

    #[test]
    fn what_follows_the_options_is_told_apart() {
        let text = "Examples:\n  a\n  b\n\n/etc/fstab:\n  c\n\nExit code 1 if x.\n\nExit codes:\n  0  done\n\nNote: d";
        let after = After::parse(text);
        assert_eq!(after.examples, [(None, vec!["  a", "  b"]), (Some("/etc/fstab:"), vec!["  c"])]);
        assert_eq!((after.exit, after.notes), (vec!["Exit code 1 if x."], vec!["Note: d"]));
    }
}
