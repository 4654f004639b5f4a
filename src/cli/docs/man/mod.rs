//! Man pages in the form of man-pages(7), from the definitions that parse the command line.
//!
//! Nothing about a command is written down twice: what it takes and does is clap's, its examples
//! are those of `--help`, exit codes are those that commands end with, and what else a page has to
//! say (which variables and files count for a command) follows from its options, by the tables in
//! [`tables`]. Sections 1 and 8 are the commands and the helpers of mount(8); section 5 is the tree
//! of a mount and a line of /etc/fstab.

mod command;
mod format;
mod tables;
mod text;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use clap::CommandFactory;
use roff::Roff;

use crate::cli::Cli;
use crate::cli::commands::mount8::{MountHelper, UmountHelper};
use crate::cli::docs::man::command::Page;
use crate::sys::hardening;

/// What the foot of a page says.
const VERSION: &str = concat!("vaultfs ", env!("CARGO_PKG_VERSION"));

/// Writes all pages into `dir`.
pub fn write(dir: &Path) -> io::Result<()> {
    for (name, text) in pages() {
        let path = dir.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(path, Permissions::from_mode(hardening::public_mode()))?;
    }
    Ok(())
}

/// Each page, by the name of its file.
fn pages() -> Vec<(String, String)> {
    let mut cli = without_help_command(Cli::command());
    cli.build();
    let mut pages = Vec::new();
    pages_of(&cli, None, &mut pages);
    // As mount(8) calls them, with their options in its terms.
    for mut helper in [MountHelper::command(), UmountHelper::command()] {
        helper.build();
        let page = Page { command: &helper, parent: None, section: '8' };
        pages.push((format!("{}.8", helper.get_name()), page.render()));
    }
    pages.push(("vaultfs.5".to_owned(), format::render(&cli)));
    pages
}

/// The page of a command and those of its subcommands: vaultfs-mount.1.
fn pages_of(command: &clap::Command, parent: Option<&clap::Command>, pages: &mut Vec<(String, String)>) {
    let page = Page { command, parent, section: '1' };
    pages.push((format!("{}.1", page.name()), page.render()));
    for sub in command::subcommands(command) {
        pages_of(sub, Some(command), pages);
    }
}

/// `vaultfs help` has no page to refer to.
fn without_help_command(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help_command)
}

/// A page that has a head yet.
fn head(name: &str, section: char) -> Roff {
    let manual = match section {
        '1' => "User Commands",
        '5' => "File Formats",
        _ => "System Administration",
    };
    let mut page = Roff::new();
    // Quoted by hand: an empty argument would be none.
    let date = format!("\"{}\"", date());
    page.control("TH", [name, &section.to_string(), &date, VERSION, manual]);
    page
}

/// The day of the sources, where the build of a package gives it.
fn date() -> String {
    let seconds = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let day = |seconds| {
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        humantime::format_rfc3339_seconds(time).to_string().split('T').next().map(str::to_owned)
    };
    seconds.and_then(day).unwrap_or_default()
}
