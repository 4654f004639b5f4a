//! The page of a command: one of `vaultfs`, or a helper of mount(8).

use std::collections::BTreeSet;

use clap::{Arg, ArgAction, Command};
use roff::{Inline, Roff, bold, italic, roman};

use crate::cli::docs::man::tables;
use crate::cli::docs::man::tables::Entry;
use crate::cli::docs::man::text::{After, example, inlines, paragraphs};

/// A command and where it stands.
pub struct Page<'a> {
    pub command: &'a Command,
    pub parent: Option<&'a Command>,
    pub section: char,
}

/// Those that people use.
pub fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

/// What a page is called: vaultfs-key-create.
fn name_of(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

impl Page<'_> {
    pub fn name(&self) -> &str {
        name_of(self.command)
    }

    /// The whole page.
    pub fn render(&self) -> String {
        let mut page = crate::cli::docs::man::head(self.name(), self.section);
        let help = self.command.get_after_long_help().or(self.command.get_after_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let after = After::parse(&help);
        self.name_and_synopsis(&mut page);
        page.control("SH", ["DESCRIPTION"]);
        let about = self.command.get_long_about().or(self.command.get_about());
        let about = about.map(ToString::to_string).unwrap_or_default();
        paragraphs(&mut page, &with_stop(&about), true, "PP");
        let other: Vec<String> = self.command.get_visible_aliases().map(|name| format!("`{name}`")).collect();
        if !other.is_empty() {
            paragraphs(&mut page, &format!("Also called {}.", other.join(" and ")), false, "PP");
        }
        self.options(&mut page);
        self.commands(&mut page);
        page.control("SH", ["EXIT STATUS"]);
        after.exit.iter().for_each(|text| paragraphs(&mut page, text, false, "PP"));
        entries(&mut page, &tables::exit_codes(self));
        self.table(&mut page, "ENVIRONMENT", tables::VARIABLES);
        self.table(&mut page, "FILES", tables::FILES);
        if !after.notes.is_empty() {
            page.control("SH", ["NOTES"]);
            after.notes.iter().for_each(|text| paragraphs(&mut page, text, false, "PP"));
        }
        if !after.examples.is_empty() {
            page.control("SH", ["EXAMPLES"]);
        }
        for (title, lines) in &after.examples {
            if let Some(title) = title {
                page.control("PP", []).text([roman(*title)]);
            }
            example(&mut page, lines);
        }
        let related = self.related(&page.render());
        see_also(&mut page, related);
        page.render().replace(NO_BREAK, "\\~")
    }

    /// Whether the command has this option or argument, by clap's name.
    pub fn takes(&self, id: &str) -> bool {
        self.command.get_arguments().any(|arg| arg.get_id() == id && !arg.is_hide_set())
    }

    fn name_and_synopsis(&self, page: &mut Roff) {
        let about = self.command.get_about().map(ToString::to_string).unwrap_or_default();
        let mut letters = about.chars();
        let first = letters.next().map(|c| c.to_lowercase().to_string()).unwrap_or_default();
        let about = format!("{} - {first}{}", self.name(), letters.as_str().trim_end_matches('.'));
        page.control("SH", ["NAME"]).text([roman(about)]);
        page.control("SH", ["SYNOPSIS"]);
        let call = self.command.get_bin_name().unwrap_or(self.command.get_name());
        let mut line = vec![bold(call)];
        let shown = || self.command.get_arguments().filter(|arg| !arg.is_hide_set());
        // What each command has is said in its options.
        let options = shown().filter(|arg| !arg.is_positional() && !is_of_clap(arg));
        for arg in options.chain(shown().filter(|arg| arg.is_positional())) {
            line.push(roman(" "));
            line.extend(in_synopsis(arg));
        }
        if subcommands(self.command).next().is_some() {
            let needed = self.command.is_subcommand_required_set() || !shown().any(|arg| !is_of_clap(arg));
            let (open, close) = if needed { ("", "") } else { ("[", "]") };
            line.extend([
                roman(format!(" {open}")),
                italic("COMMAND"),
                roman(" ["),
                italic("ARGUMENT"),
                roman(format!("...]{close}")),
            ]);
        }
        // Neither hyphenated nor stretched.
        page.control("nh", []).control("ad", ["l"]).text(line).control("ad", ["b"]).control("hy", []);
    }

    fn options(&self, page: &mut Roff) {
        page.control("SH", ["OPTIONS"]);
        let shown = || self.command.get_arguments().filter(|arg| !arg.is_hide_set());
        for arg in shown().filter(|arg| arg.is_positional()) {
            option(page, arg, vec![italic(placeholder(arg)), roman(more(arg))]);
        }
        let plain = |arg: &&Arg| !arg.is_positional() && arg.get_help_heading().is_none();
        for arg in shown().filter(plain) {
            option(page, arg, flags(arg));
        }
        let mut headings: Vec<&str> = Vec::new();
        for heading in shown().filter_map(|arg| arg.get_help_heading()) {
            if !headings.contains(&heading) {
                headings.push(heading);
            }
        }
        for heading in headings {
            page.control("SS", [heading]);
            let of_it = |arg: &&Arg| !arg.is_positional() && arg.get_help_heading() == Some(heading);
            for arg in shown().filter(of_it) {
                option(page, arg, flags(arg));
            }
        }
    }

    fn commands(&self, page: &mut Roff) {
        if subcommands(self.command).next().is_none() {
            return;
        }
        page.control("SH", ["COMMANDS"]);
        for sub in subcommands(self.command) {
            page.control("TP", []).text([bold(name_of(sub)), roman("(1)")]);
            page.text(inlines(&with_stop(&sub.get_about().map(ToString::to_string).unwrap_or_default())));
        }
    }

    fn table(&self, page: &mut Roff, title: &str, table: &[Entry]) {
        let rows: Vec<_> = table.iter().filter(|entry| (entry.counts)(self)).map(Entry::row).collect();
        if !rows.is_empty() {
            page.control("SH", [title]);
            entries(page, &rows);
        }
    }

    /// The pages above and below, those that the text of this page names, and those that each page
    /// leads to.
    fn related(&self, text: &str) -> BTreeSet<(char, String)> {
        let mut found = BTreeSet::from([('1', "vaultfs".to_owned()), ('5', "vaultfs".to_owned())]);
        found.extend(self.parent.map(|parent| ('1', name_of(parent).to_owned())));
        found.extend(subcommands(self.command).map(|sub| ('1', name_of(sub).to_owned())));
        if let Some(parent) = self.parent.filter(|parent| parent.get_name() != "vaultfs") {
            found.extend(subcommands(parent).map(|sub| ('1', name_of(sub).to_owned())));
        }
        found.extend(tables::related(self).iter().map(|(section, name)| (*section, (*name).to_owned())));
        let plain = text.replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\-", "-");
        found.extend(
            tables::commands()
                .into_iter()
                .filter(|name| {
                    plain.contains(&name.replace("vaultfs-", "vaultfs "))
                        || plain.contains(&format!("{name}(1)"))
                })
                .map(|name| ('1', name)),
        );
        found.remove(&(self.section, self.name().to_owned()));
        found
    }
}

/// -h and -V, which clap adds.
fn is_of_clap(arg: &Arg) -> bool {
    matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version
    )
}

fn placeholder(arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(|names| names.first()).map(|name| name.as_str().to_owned());
    name.unwrap_or_else(|| arg.get_id().as_str().to_uppercase().replace('_', "-"))
}

/// An option or argument that may come again.
fn more(arg: &Arg) -> &'static str {
    let many = arg.get_num_args().is_some_and(|range| range.max_values() > 1);
    if many || matches!(arg.get_action(), ArgAction::Append | ArgAction::Count) { "..." } else { "" }
}

/// `[--api-url URL]`, with a blank that is no place to break the line.
fn in_synopsis(arg: &Arg) -> Vec<Inline> {
    let needed = arg.is_required_set();
    let mut part = vec![roman(if needed { "" } else { "[" })];
    if arg.is_positional() {
        part.push(italic(placeholder(arg)));
    } else {
        let dashed = arg.get_long().map(|long| format!("--{long}"));
        let dashed = dashed.or(arg.get_short().map(|short| format!("-{short}")));
        part.push(bold(dashed.unwrap_or_default()));
        part.extend(value(arg, NO_BREAK));
    }
    part.push(roman(if needed { "" } else { "]" }));
    part.push(roman(more(arg)));
    part
}

/// A blank that is none to the library that writes pages, and becomes groff's unbreakable one.
pub const NO_BREAK: &str = "\u{a0}";

/// What stands behind an option.
fn value(arg: &Arg, blank: &str) -> Vec<Inline> {
    if !arg.get_action().takes_values() {
        return Vec::new();
    }
    let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    let between = if arg.is_require_equals_set() { "=" } else { blank };
    match optional {
        true => vec![roman(format!("[{between}")), italic(placeholder(arg)), roman("]")],
        false => vec![roman(between), italic(placeholder(arg))],
    }
}

/// `-f, --foreground`, `--api-url URL`.
fn flags(arg: &Arg) -> Vec<Inline> {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let both = short.is_some() && long.is_some();
    let mut line = Vec::new();
    line.extend(short.map(bold));
    line.extend(both.then(|| roman(", ")));
    line.extend(long.map(bold));
    line.extend(value(arg, " "));
    line.push(roman(more(arg)));
    line
}

/// An option under its head line: what it does, what it takes, and what holds without it.
pub fn option(page: &mut Roff, arg: &Arg, head: Vec<Inline>) {
    page.control("TP", []).text(head);
    if is_of_clap(arg) {
        let version = matches!(arg.get_action(), ArgAction::Version);
        page.text([roman(if version {
            "Print the version."
        } else {
            "Print what this page says, in short."
        })]);
        return;
    }
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    paragraphs(page, &with_stop(&help), true, "IP");
    let takes_value = arg.get_action().takes_values();
    let values = arg.get_possible_values();
    if takes_value && !values.is_empty() {
        page.control("RS", []);
        for value in values.iter().filter(|value| !value.is_hide_set()) {
            page.control("TP", []).text([bold(value.get_name())]);
            page.text(inlines(&with_stop(&value.get_help().map(ToString::to_string).unwrap_or_default())));
        }
        page.control("RE", []);
    }
    if takes_value && !arg.is_hide_default_value_set() && !arg.get_default_values().is_empty() {
        let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        page.control("IP", []).text([roman("The default is "), bold(defaults.join(",")), roman(".")]);
    }
}

/// Help has no full stop at the end of what is no sentence; a page has.
fn with_stop(text: &str) -> String {
    let mut paragraphs: Vec<String> = text.split("\n\n").map(|text| text.trim_end().to_owned()).collect();
    for paragraph in paragraphs.iter_mut().filter(|text| !text.is_empty()) {
        if !paragraph.ends_with(['.', ':', '?', '!']) {
            paragraph.push('.');
        }
    }
    paragraphs.join("\n\n")
}

/// Names, each with what there is to say of it.
pub fn entries(page: &mut Roff, rows: &[(String, String)]) {
    for (name, text) in rows {
        page.control("TP", []).text([bold(name.as_str())]);
        paragraphs(page, text, true, "IP");
    }
}

/// The last section: by section and name, as man-pages(7) has it.
pub fn see_also(page: &mut Roff, pages: BTreeSet<(char, String)>) {
    page.control("SH", ["SEE ALSO"]);
    let last = pages.len().saturating_sub(1);
    for (i, (section, name)) in pages.into_iter().enumerate() {
        page.text([bold(name), roman(format!("({section}){}", if i == last { "" } else { "," }))]);
    }
}
