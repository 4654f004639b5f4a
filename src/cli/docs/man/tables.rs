//! What counts for several commands: exit codes, variables of the environment, files, related
//! pages. Which command has which follows from its options.

use clap::CommandFactory;

use crate::cli::Cli;
use crate::cli::args::connect::SYSTEM_VAULT;
use crate::cli::commands::mount8;
use crate::cli::docs::man::command::{Page, subcommands};
use crate::cli::exit::Exit;

/// A name, its description, and the pages that have it.
pub struct Entry {
    name: &'static str,
    says: &'static str,
    pub counts: fn(&Page<'_>) -> bool,
}

impl Entry {
    pub fn row(&self) -> (String, String) {
        (self.name.to_owned(), self.says.to_owned())
    }
}

/// The page of all commands.
fn is_all(page: &Page<'_>) -> bool {
    page.name() == "vaultfs"
}

/// Commands that name a vault.
fn connects(page: &Page<'_>) -> bool {
    is_all(page) || page.takes("api_key_file")
}

/// `vaultfs serve` and what is below.
fn serves(page: &Page<'_>) -> bool {
    is_all(page) || page.name().starts_with("vaultfs-serve")
}

/// What makes a mount, or has one made.
fn mounts(page: &Page<'_>) -> bool {
    is_all(page) || page.takes("foreground") || page.name() == "mount.vaultfs"
}

fn plugs(page: &Page<'_>) -> bool {
    is_all(page) || page.takes("socket")
}

/// What looks for mounts.
fn looks(page: &Page<'_>) -> bool {
    connects(page) || mounts(page) || page.takes("mountpoint") || page.takes("directory")
}

/// What says how it does to a service manager.
fn is_service(page: &Page<'_>) -> bool {
    mounts(page) || plugs(page) || page.takes("listen")
}

/// What the program looks at. A test compares it with the sources.
pub const VARIABLES: &[Entry] = &[
    Entry {
        name: "WORKOS_API_KEY",
        says: "The API key, if no key file is given. vaultfs removes it from its own environment and from that of the \
               processes that it starts.",
        counts: connects,
    },
    Entry {
        name: "WORKOS_API_URL",
        says: "The service's address, without `--api-url`. `--embedded` ignores it.",
        counts: connects,
    },
    Entry {
        name: "CREDENTIALS_DIRECTORY",
        says: "Set by systemd. The credential `workos-api-key` is the API key if no key file is given; the credential \
               `vaultfs-master-key` is the master key of an embedded vault.",
        counts: |page| connects(page) || serves(page),
    },
    Entry {
        name: "STATE_DIRECTORY",
        says: "Set by systemd for a unit with `StateDirectory=`: default directory of the embedded vault.",
        counts: connects,
    },
    Entry {
        name: "XDG_DATA_HOME, HOME",
        says: "Default directory of the embedded vault: `$XDG_DATA_HOME/vaultfs`, else \
               `$HOME/.local/share/vaultfs`.",
        counts: connects,
    },
    Entry {
        name: "XDG_STATE_HOME",
        says: "Directory of the logs on a machine without the journal: `$XDG_STATE_HOME/vaultfs`, else `$HOME/.local/state/vaultfs`, else (root) \
               /var/log/vaultfs. The volume plugin of an ordinary user keeps its state in `$XDG_STATE_HOME/vaultfs-volumes`.",
        counts: |page| mounts(page) || plugs(page),
    },
    Entry {
        name: "XDG_RUNTIME_DIR",
        says: "Directory of the control sockets, `$XDG_RUNTIME_DIR/vaultfs`. Root uses it only if `/run/vaultfs` cannot be \
               used.",
        counts: looks,
    },
    Entry {
        name: "HTTPS_PROXY, ALL_PROXY, NO_PROXY",
        says: "The proxy to services, and the hosts that are reached without it. Loopback never is through one.",
        counts: connects,
    },
    Entry {
        name: "SSL_CERT_FILE, SSL_CERT_DIR",
        says: "Certificates to trust instead of the system's; `--ca-file` adds to them.",
        counts: connects,
    },
    Entry {
        name: "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID",
        says: "Set by the service manager. vaultfs reports readiness, state and watchdog pings to it (sd_notify(3)). A mount \
               does so with `--foreground` only.",
        counts: is_service,
    },
    Entry {
        name: "JOURNAL_STREAM",
        says: "Set by systemd: with `--foreground`, whether standard error is the journal, which then gets fields.",
        counts: mounts,
    },
    Entry {
        name: "PATH",
        says: "Directories to search for `fusermount3`, which mounts for ordinary users.",
        counts: |page| mounts(page) || plugs(page),
    },
    Entry {
        name: "NO_COLOR, TERM",
        says: "No colours on the terminal if NO_COLOR is set to anything, or TERM is `dumb`.",
        counts: |page| is_all(page) || page.takes("listen"),
    },
];

pub const FILES: &[Entry] = &[
    Entry { name: "~/.local/share/vaultfs", says: "Default embedded vault of a user.", counts: connects },
    Entry {
        name: SYSTEM_VAULT,
        says: "System-wide embedded vault, used by `vaultfs@NAME.service`, by `embedded` in /etc/fstab, and by root when HOME \
               is unset.",
        counts: |page| connects(page) || mounts(page),
    },
    Entry {
        name: "DIR/vault.db, DIR/master-key, DIR/api-key, DIR/vault.sock",
        says: "Files of an embedded vault: the database, the key that seals it (unless another file is given), an API key with \
               all permissions, and the socket of the server.",
        counts: |page| connects(page) || serves(page),
    },
    Entry { name: "MOUNTPOINT/.versions/NAME/N", says: "Version N of an object.", counts: mounts },
    Entry {
        name: "MOUNTPOINT/.vaultfs/status.json, MOUNTPOINT/.vaultfs/metrics",
        says: "State of the mount, for scripts and for Prometheus.",
        counts: |page| mounts(page) || page.name() == "vaultfs-status",
    },
    Entry {
        name: "~/.local/state/vaultfs/NAME.log, /var/log/vaultfs/NAME.log",
        says: "Log of a mount on a machine without the journal; NAME is the escaped path of the mount point.",
        counts: mounts,
    },
    Entry {
        name: "/run/vaultfs, $XDG_RUNTIME_DIR/vaultfs, /run/user/UID/vaultfs, /tmp/vaultfs-UID",
        says: "Directory of the control sockets, by which commands find mounts: the first of these that can be used.",
        counts: looks,
    },
    Entry {
        name: "/etc/vaultfs/NAME.conf, /etc/vaultfs/NAME.key, ~/.config/vaultfs/NAME.conf, ~/.config/vaultfs/NAME.key",
        says: "Mount point, options and API key of `vaultfs@NAME.service` (system and user units).",
        counts: mounts,
    },
    Entry {
        name: "/etc/fuse.conf",
        says: "The line `user_allow_other` permits `--allow-other` for ordinary users.",
        counts: |page| mounts(page) || page.name() == "vaultfs-doctor",
    },
    Entry {
        name: "/etc/fstab",
        says: "Lines of the type `vaultfs` or `fuse.vaultfs`: vaultfs(5).",
        counts: |page| mounts(page) || page.name() == "umount.fuse.vaultfs",
    },
    Entry {
        name: "/etc/vaultfs/volumes.conf",
        says: "The socket and options of `vaultfs-volumes.service`.",
        counts: plugs,
    },
    Entry {
        name: "/etc/vaultfs/profiles",
        says: "Profiles: options that a volume may use only by naming the profile.",
        counts: plugs,
    },
    Entry {
        name: "/var/lib/vaultfs-volumes",
        says: "State and mount points of root's volumes.",
        counts: plugs,
    },
    Entry {
        name: "/usr/share/doc/vaultfs/docs",
        says: "Documents: SEMANTICS.md describes each file operation, OPERATIONS.md the setup of machines, REFERENCE.md \
               commands and options, TROUBLESHOOTING.md each message.",
        counts: is_all,
    },
];

/// Pages that no text of the command names.
pub fn related(page: &Page<'_>) -> &'static [(char, &'static str)] {
    match page.name() {
        "vaultfs" => &[('8', "mount.vaultfs"), ('8', "umount.fuse.vaultfs")],
        "vaultfs-mount" => &[
            ('1', "vaultfs-unmount"),
            ('1', "vaultfs-doctor"),
            ('5', "systemd.service"),
            ('8', "mount.vaultfs"),
        ],
        "vaultfs-unmount" => {
            &[('1', "vaultfs-mount"), ('1', "vaultfs-pending"), ('8', "umount.fuse.vaultfs")]
        }
        "vaultfs-status" | "vaultfs-pending" | "vaultfs-upgrade" | "vaultfs-doctor" => {
            &[('1', "vaultfs-mount")]
        }
        "mount.vaultfs" => &[
            ('1', "vaultfs-mount"),
            ('5', "fstab"),
            ('5', "systemd.mount"),
            ('8', "mount"),
            ('8', "umount.fuse.vaultfs"),
        ],
        "umount.fuse.vaultfs" => {
            &[('1', "vaultfs-unmount"), ('5', "fstab"), ('8', "mount.vaultfs"), ('8', "umount")]
        }
        "vaultfs-serve" => &[('5', "systemd.service")],
        "vaultfs-volume-plugin" => &[('1', "vaultfs-mount")],
        _ => &[],
    }
}

/// The names of the pages of commands.
pub fn commands() -> Vec<String> {
    subcommands(&Cli::command()).map(|sub| format!("vaultfs-{}", sub.get_name())).collect()
}

/// Each exit code with what it says.
pub fn exit_codes(page: &Page<'_>) -> Vec<(String, String)> {
    let own = || Exit::ALL.iter().map(|exit| ((*exit as u8).to_string(), exit.meaning()));
    let of_mount = || mount8::EXIT_CODES.iter().map(|(code, says)| (code.to_string(), *says));
    let codes: Vec<_> = if page.section == '8' { of_mount().collect() } else { own().collect() };
    let all = [("0".to_owned(), "done")].into_iter().chain(codes);
    all.map(|(code, says)| (code, format!("{}{}.", says[..1].to_uppercase(), &says[1..]))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Names in quotes that the sources read from the environment. Those of tests are theirs.
    fn read_by(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).expect("the sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                read_by(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source");
            for call in ["var_os(\"", "var(\"", " env(\"", "has_env(\"", "named(\"", "absolute_dir(\""] {
                let names = text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
                let is_name =
                    |name: &&str| name.len() > 1 && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
                found.extend(names.filter(is_name).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_variable_that_is_read_has_its_entry() {
        let mut read = Vec::new();
        read_by(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut read);
        assert!(read.contains(&"HOME".to_owned()) && read.contains(&"WORKOS_API_KEY".to_owned()), "{read:?}");
        read.extend(crate::cli::service::VARIABLES.map(str::to_owned));
        let known: Vec<&str> = VARIABLES.iter().flat_map(|entry| entry.name.split(", ")).collect();
        // Of tests, and of package builds.
        let inner = |name: &str| name.starts_with("VAULTFS_") || name == "SOURCE_DATE_EPOCH";
        let missing: Vec<_> =
            read.iter().filter(|name| !inner(name) && !known.contains(&name.as_str())).collect();
        assert!(missing.is_empty(), "no page says what these do: {missing:?}");
    }
}
