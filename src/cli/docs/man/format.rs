//! vaultfs(5): the tree of a mounted vault, and a line of /etc/fstab. Its options are those of
//! `vaultfs mount`.

use std::collections::BTreeSet;

use clap::Command;
use roff::{Roff, bold, italic, roman};

use crate::cli::args::connect::SYSTEM_VAULT;
use crate::cli::docs::man::command::{option, see_also};
use crate::cli::docs::man::text::{example, paragraphs};

const SECTIONS: [(&str, &[&str]); 3] = [
    (
        "DESCRIPTION",
        &[
            "Each file of a mounted vault is an object: /a/b/c is the object named a/b/c. Directories follow from names. \
             Reading a file returns the object's current version, writing and closing it stores a new version, \
             removing it deletes the object with its history.",
            "`.versions/NAME/N` is version N of the object NAME, 1 the oldest, read-only. The directory can be \
             opened, but it is listed with `show_versions` only.",
            "`NAME/.self` is the object NAME if there are also objects below NAME/.",
            "`.vaultfs/status.json` holds the mount's status, `.vaultfs/metrics` the same numbers in the text format of \
             Prometheus. Only the owner can read them, and reading them sends no request to the vault.",
            "The extended attributes user.vault.id, .version, .updated_at, .stale and .error describe the \
             object.",
        ],
    ),
    (
        "Names",
        &[
            "Characters that a file name cannot hold are escaped: control characters as %00 to %1F, a slash that would be read \
           otherwise as %2F, the first dot of ., .. and reserved names as %2E, a percent sign that would read as \
           one of these as %25, an empty component as %_. A component longer than 255 bytes is split: the first \
           part becomes a directory, and the name of that ends in %+.",
        ],
    ),
    (
        "Lines of /etc/fstab",
        &[
            "    SRC DIR vaultfs OPTIONS 0 0",
            "SRC is the URL of a service, `embedded=DIR` for a vault of this machine, `embedded` for root's in \
             DEFAULT (an ordinary user's is where `vaultfs mount --embedded` has it), or `none` if OPTIONS name the vault.",
            "The options of mount(8) are understood: ro, rw, auto, noauto, user, users, nofail, _netdev, x-systemd.* \
             and the like. suid and dev have no effect, since vaults are mounted nosuid,nodev. A mounted vault \
             cannot be remounted with others. A value that holds a comma is put in double quotes.",
            "Never put a key into the line: `api_key_file` names a file (mode 0600); `credentials` is an alias of that \
             option.",
        ],
    ),
];

/// The page.
pub fn render(cli: &Command) -> String {
    let mut page = crate::cli::docs::man::head("vaultfs", '5');
    page.control("SH", ["NAME"]);
    page.text([roman("vaultfs - the tree of a mounted vault, and its line in /etc/fstab")]);
    for (title, texts) in SECTIONS {
        let of_description = title != "DESCRIPTION";
        page.control(if of_description { "SS" } else { "SH" }, [title]);
        for text in texts {
            match text.strip_prefix("    ") {
                Some(line) => example(&mut page, &[line]),
                None => paragraphs(&mut page, &text.replace("DEFAULT", SYSTEM_VAULT), false, "PP"),
            }
        }
    }
    options(&mut page, cli);
    page.control("SH", ["EXAMPLES"]);
    example(
        &mut page,
        &[
            "https://vault.example.com /srv/secrets vaultfs _netdev,nofail,ro,api_key_file=/etc/vaultfs/key 0 0",
        ],
    );
    let others = [
        ('1', "vaultfs"),
        ('1', "vaultfs-mount"),
        ('5', "fstab"),
        ('5', "systemd.mount"),
        ('8', "mount"),
        ('8', "mount.vaultfs"),
    ];
    let others: BTreeSet<_> = others.map(|(section, name)| (section, name.to_owned())).into();
    see_also(&mut page, others);
    page.render()
}

fn options(page: &mut Roff, cli: &Command) {
    let Some(mount) = cli.find_subcommand("mount") else { return };
    page.control("SS", ["Options"]);
    paragraphs(
        page,
        "Those of vaultfs-mount(1), without dashes; an underscore may stand for a hyphen:",
        false,
        "PP",
    );
    for arg in mount.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(long) = arg.get_long().filter(|long| !["help", "foreground"].contains(long)) else {
            continue;
        };
        let mut line = vec![bold(long.replace('-', "_"))];
        if let Some(value) = arg.get_value_names().and_then(|names| names.first())
            && arg.get_action().takes_values()
        {
            let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
            line.push(roman(if optional { "[=" } else { "=" }));
            line.push(italic(value.as_str()));
            line.extend(optional.then(|| roman("]")));
        }
        option(page, arg, line);
    }
}
