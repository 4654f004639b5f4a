//! `vaultfs generate`: man pages and shell completions, from the definitions that parse the command line.
//!
//! Hidden: `scripts/package` runs it, and who packages vaultfs by other means. Sections 1 and 8 are the commands and
//! the helpers of mount(8) as clap knows them; section 5 is put together from the options of `mount` and the text in
//! here, for the reader of a line of /etc/fstab.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::Cli;
use super::mount8::{MountHelper, UmountHelper};

/// What the foot of a page says.
const VERSION: &str = concat!("vaultfs ", env!("CARGO_PKG_VERSION"));

/// Write man pages or shell completions
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Man pages of all commands, into DIR
    Man {
        /// A directory that exists
        dir: PathBuf,
    },
    /// Completions for a shell, to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command.
pub fn run(args: GenerateArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Man { dir } => man_pages(&dir)?,
        What::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vaultfs", &mut script);
            io::stdout().write_all(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn man_pages(dir: &Path) -> io::Result<()> {
    let mut cli = without_help_command(Cli::command());
    cli.build();
    pages_of(&cli, dir)?;
    // As mount(8) calls them, with their options in its terms.
    for helper in [MountHelper::command(), UmountHelper::command()] {
        let page = Man::new(helper.clone()).section("8").manual("System Administration");
        write(page, &dir.join(format!("{}.8", helper.get_name())))?;
    }
    fs::write(dir.join("vaultfs.5"), section_five(&cli))
}

/// The page of a command and those of its subcommands: vaultfs-mount.1.
fn pages_of(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        pages_of(sub, dir)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let page = Man::new(command.clone()).title(name.clone()).section("1").manual("vaultfs");
    write(page, &dir.join(format!("{name}.1")))
}

/// `vaultfs help` has no page to refer to.
fn without_help_command(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help_command)
}

/// The page, with what the generator does not offer: an empty date that is seen as one, and a telling heading.
fn write(page: Man, path: &Path) -> io::Result<()> {
    let mut rendered = Vec::new();
    page.source(VERSION).render(&mut rendered)?;
    let text = String::from_utf8_lossy(&rendered);
    let text = text.replacen(&format!("  \"{VERSION}\""), &format!(" \"\" \"{VERSION}\""), 1);
    let text = text
        .replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n")
        .replace(".SH EXTRA\nExample:\n", ".SH EXAMPLE\n");
    let text = text.replace(".SH EXTRA\n", ".SH NOTES\n");
    fs::write(path, text)
}

/// The tree of a mounted vault, and a line of /etc/fstab.
fn section_five(cli: &clap::Command) -> String {
    let mut page = Roff::new();
    page.control("TH", ["vaultfs", "5", "", VERSION, "File Formats"]);
    let sections: [(&str, &[&str]); 6] = [
        ("NAME", &["vaultfs - the tree of a mounted vault, and its line in /etc/fstab"]),
        (
            "THE TREE",
            &[
                "Each file is an object of the vault: /a/b/c is the object named a/b/c. Directories are made by names. \
                 Reading a file is reading the object's current version, writing and closing it makes a new version, \
                 removing it deletes the object with its history.",
                ".versions/NAME/N is version N of the object NAME, 1 the oldest, read-only. The directory is there, but \
                 not listed without show_versions.",
                "NAME/.self is the object NAME where there are also objects below NAME/.",
                ".vaultfs/status.json says how the mount is doing, .vaultfs/metrics the same in the text format of \
                 Prometheus. Only the owner can read them, and they never ask the vault.",
                "The extended attributes user.vault.id, .version, .updated_at, .stale and .error tell what is known of \
                 an object.",
            ],
        ),
        (
            "NAMES",
            &[
                "What a file name cannot hold is escaped: control characters as %00 to %1F, a slash that would be read \
                 otherwise as %2F, the first dot of ., .. and reserved names as %2E, a percent sign that would read as \
                 one of these as %25, an empty component as %_. A component over 255 bytes goes on in a directory whose \
                 name ends in %+.",
            ],
        ),
        (
            "FSTAB",
            &[
                "A line of /etc/fstab is",
                "    SRC DIR vaultfs OPTIONS 0 0",
                "SRC is the URL of a service, embedded=DIR for a vault of this machine, embedded for the one in \
                 /var/lib/vaultfs, or none if OPTIONS say it. For example:",
                "    https://vault.example.com /srv/secrets vaultfs _netdev,nofail,ro,api_key_file=/etc/vaultfs/key 0 0",
                "The options of mount(8) are understood: ro, rw, auto, noauto, user, users, nofail, _netdev, x-systemd.* \
                 and the like. suid and dev have no effect, since vaults are mounted nosuid,nodev. A mounted vault \
                 cannot be remounted with others. A value that holds a comma is put in double quotes.",
                "A key never stands in the line: api_key_file names a file (mode 0600), and credentials is another word \
                 for it.",
            ],
        ),
        ("OPTIONS", &["Those of vaultfs-mount(1), without dashes; an underscore may stand for a hyphen:"]),
        ("SEE ALSO", &["vaultfs(1), vaultfs-mount(1), mount.vaultfs(8), fstab(5), systemd.mount(5)"]),
    ];
    for (title, paragraphs) in sections {
        page.control("SH", [title]);
        for paragraph in paragraphs {
            match paragraph.strip_prefix("    ") {
                // As it is typed: neither filled nor hyphenated.
                Some(line) => page
                    .control("PP", [])
                    .control("nf", [])
                    .text([roman("    "), bold(line)])
                    .control("fi", []),
                None => page.control("PP", []).text([roman(*paragraph)]),
            };
        }
        if title == "OPTIONS" {
            options(&mut page, cli);
        }
    }
    page.to_roff().replacen(&format!("  \"{VERSION}\""), &format!(" \"\" \"{VERSION}\""), 1)
}

fn options(page: &mut Roff, cli: &clap::Command) {
    let Some(mount) = cli.find_subcommand("mount") else { return };
    for option in mount.get_arguments().filter(|option| !option.is_hide_set()) {
        let Some(long) = option.get_long().filter(|long| !["help", "foreground"].contains(long)) else {
            continue;
        };
        let mut line = vec![bold(long.replace('-', "_"))];
        let takes_value = option.get_action().takes_values();
        if let Some(value) = option.get_value_names().and_then(|names| names.first()).filter(|_| takes_value)
        {
            line.extend([roman("="), italic(value.as_str())]);
        }
        page.control("TP", []).text(line);
        let mut help = option.get_help().map(ToString::to_string).unwrap_or_default();
        if let Some(default) = option.get_default_values().first().filter(|_| takes_value) {
            help.push_str(&format!(" [default: {}]", default.to_string_lossy()));
        }
        page.text([roman(help)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page() {
        let dir = tempfile::tempdir().expect("a directory");
        man_pages(dir.path()).expect("own directory");
        for name in [
            "vaultfs.1",
            "vaultfs-mount.1",
            "vaultfs-key-create.1",
            "vaultfs.5",
            "mount.vaultfs.8",
            "umount.fuse.vaultfs.8",
        ] {
            assert!(dir.path().join(name).exists(), "{name}");
        }
        let internal = fs::read_dir(dir.path()).expect("there").flatten();
        let names: Vec<String> =
            internal.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        assert!(!names.iter().any(|name| name.contains("generate") || name.contains("keeper")), "{names:?}");
        for name in names.iter().filter(|name| name.ends_with(".1") || name.ends_with(".5")) {
            let text = fs::read_to_string(dir.path().join(name)).expect("written");
            let title = text.lines().find(|line| line.starts_with(".TH")).expect("a title");
            assert!(title.contains(&format!(" \"\" \"{VERSION}\" ")), "{title}");
            assert!(!text.contains("help(1)") && !text.contains("EXTRA"), "{name}");
        }
        let five = fs::read_to_string(dir.path().join("vaultfs.5")).expect("written");
        assert!(five.contains("allow_other") && five.contains("64MiB"));
    }
}
