# shellcheck shell=bash
# What scripts/run, scripts/test and others share. Sourced, never executed: it defines functions and
# sets ROOT, the top of the source tree. Nothing in here changes the system but need_command and need_cargo.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Where rustup puts cargo; a fresh shell may not know it yet.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
CONNECTIONS=/sys/fs/fuse/connections

say() { printf '%s\n' "$*" >&2; }

die() {
    say "scripts/${0##*/}: $*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: run '$*' as root, then try again."
    fi
}

# need_command COMMAND PACKAGE...: installs the Debian packages if the command is missing.
need_command() {
    local command=$1
    shift
    have "$command" && return
    have apt-get || die "'$command' is missing. Install it with your package manager (Debian: $*), then try again."
    if ! install_packages "$@" || ! have "$command"; then
        die "'$command' could not be installed (Debian packages: $*). Install it by hand, then try again."
    fi
}

install_packages() {
    local quiet=(-y -qq --no-install-recommends -o Dpkg::Use-Pty=0)
    say "Installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${quiet[@]}" "$@" >/dev/null && return
    # The package lists of a fresh machine or container are empty or old.
    as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${quiet[@]}" "$@" >/dev/null
}

# at_least WANTED FOUND: whether version FOUND will do.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

wanted_rust() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

# The toolchains that rustup has: stable first, then releases, the newest first, then what is in development.
installed_toolchains() {
    rustup toolchain list 2>/dev/null |
        awk '{ print (/^stable/ ? 0 : /^(beta|nightly)/ ? 2 : 1), $1 }' | sort -k1,1n -k2,2Vr | cut -d' ' -f2
}

# rust_version COMMAND...: the version of the Rust compiler that COMMAND is. Run in the tree, where rust-toolchain.toml counts.
rust_version() { (cd "$ROOT" && RUSTUP_AUTO_INSTALL=0 "$@" --version 2>/dev/null | cut -d' ' -f2); }

# rust-toolchain.toml names the stable toolchain, which rustup fetches if it is missing. Where a toolchain that is new
# enough is installed, that one is used and nothing is fetched.
choose_toolchain() {
    local name wanted
    have rustup && [ -z "${RUSTUP_TOOLCHAIN:-}" ] || return 0
    wanted=$(wanted_rust)
    for name in $(installed_toolchains); do
        if at_least "$wanted" "$(rust_version rustup run "$name" rustc)"; then
            export RUSTUP_TOOLCHAIN=$name
            return
        fi
    done
}

# Cargo alone says nothing about the compiler: both are needed.
rust_will_do() { have cargo && have rustc && at_least "$(wanted_rust)" "$(rust_version rustc)"; }

# The version of a package that apt would install, without epoch and revision.
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*:\)\?\([0-9.]*\).*/\2/p'; }

# need_cargo: a Rust that is new enough, from the machine's packages if it has one.
need_cargo() {
    local wanted
    need_command cc gcc libc6-dev
    choose_toolchain
    rust_will_do && return
    wanted=$(wanted_rust)
    if ! have rustup && have apt-get; then
        [ -n "$(candidate rustc)" ] || as_root apt-get update -qq
        if [ -n "$(candidate rustup)" ]; then
            install_packages rustup
        elif at_least "$wanted" "$(candidate rustc)"; then
            install_packages cargo rustc
        fi
        hash -r
    fi
    if have rustup && ! rust_will_do; then
        say "Installing the stable Rust toolchain with rustup"
        rustup toolchain install stable --profile minimal --no-self-update >&2
        export RUSTUP_TOOLCHAIN=stable
    fi
    rust_will_do || die "building needs Rust $wanted or newer. Get it from https://rustup.rs, then try again."
}

# need_cargo_tool NAME COMPONENT PACKAGE: cargo fmt and cargo clippy are not part of every installation.
need_cargo_tool() {
    (cd "$ROOT" && cargo "$1" --version >/dev/null 2>&1) && return
    if have rustup; then
        rustup component add "$2" >&2
    else
        install_packages "$3"
    fi
    (cd "$ROOT" && cargo "$1" --version >/dev/null) || die "'cargo $1' is missing. Install it, then try again."
}

target_dir() { (cd "$ROOT" && realpath -m "${CARGO_TARGET_DIR:-target}"); }

# write_completions VAULTFS BASH ZSH FISH: what makes the shells complete its command lines, into these directories.
write_completions() {
    local vaultfs=$1
    mkdir -p "$2" "$3" "$4" && "$vaultfs" completion bash >"$2/vaultfs" &&
        "$vaultfs" completion zsh >"$3/_vaultfs" && "$vaultfs" completion fish >"$4/vaultfs.fish"
}

# write_man VAULTFS DIR: its man pages, into DIR/man1, man5 and man8.
write_man() {
    local pages page
    pages=$(mktemp -d) || return
    "$1" generate man "$pages" || return
    for page in "$pages"/*.[158]; do
        install -Dm644 "$page" "$2/man${page##*.}/$(basename "$page")" || return
    done
    ln -sfn mount.vaultfs.8 "$2/man8/mount.fuse.vaultfs.8" && ln -sfn umount.fuse.vaultfs.8 "$2/man8/umount.vaultfs.8"
    rm -r "$pages"
}

# write_for_user VAULTFS: both, where the shells and man(1) of this user look. zsh looks nowhere in a home by itself.
write_for_user() {
    local share=${XDG_DATA_HOME:-$HOME/.local/share}
    write_completions "$1" "$share/bash-completion/completions" "$share/zsh/site-functions" \
        "$share/fish/vendor_completions.d" || say "Completions could not be installed in $share."
    # man(1) goes from ~/.local/bin in the PATH to the directory beside it, whatever XDG_DATA_HOME says.
    write_man "$1" "$HOME/.local/share/man" || say "Man pages could not be installed in $HOME/.local/share/man."
    if have zsh && ! grep -qs zsh/site-functions "$HOME/.zshrc"; then
        say "For completions in zsh, put this into ~/.zshrc before compinit: fpath=($share/zsh/site-functions \$fpath)"
    fi
}

# need_fuse: what a mount needs. Root mounts by itself, everybody else through fusermount3.
need_fuse() {
    [ "$(id -u)" -eq 0 ] || need_command fusermount3 fuse3
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] ||
        die "there is no /dev/fuse. In a container, start it with --device /dev/fuse --cap-add SYS_ADMIN."
}

# The mounts that tests make, all in directories of this name: a line each, the connection's number and the mount
# point as mountinfo writes it. Nobody else's mount is ever aborted.
test_mounts() { vaultfs_mounts | grep -F '/vaultfs-test-' || true; }

# The mounts of vaultfs, in the same form.
vaultfs_mounts() { awk '/ - fuse\.vaultfs / { split($3, dev, ":"); print dev[2], $5 }' /proc/self/mountinfo; }

# as_in_mountinfo PATH: as mountinfo writes it: blanks and backslashes in octal.
as_in_mountinfo() {
    local path=${1//\\/\\134}
    path=${path// /\\040}
    path=${path//$'\t'/\\011}
    printf '%s' "${path//$'\n'/\\012}"
}

is_vaultfs_mount() { vaultfs_mounts | awk -v point="$(as_in_mountinfo "$1" | sed 's/\\/\\\\/g')" '
    $2 == point { found = 1 } END { exit !found }'; }

# The processes of the binaries in the target directory, by number. Test binaries are in deps/ and do not count.
vaultfs_processes() {
    local target exe
    target=$(target_dir)
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe" 2>/dev/null) in
        "$target"/*/vaultfs | "$target"/*/vaultfs' (deleted)') basename "$(dirname "$exe")" ;;
        esac
    done
}

# new_since OLD: the lines of standard input that are not in OLD.
new_since() { grep -vxF -f <(printf '%s\n' "$1") || true; }

# abort_mounts LIST: ends the connections, which frees all who wait for an answer (a process that waits for a
# FUSE daemon cannot be killed), and takes the mounts away. LIST as from vaultfs_mounts.
abort_mounts() {
    local number point
    [ -e "$CONNECTIONS" ] && ! mountpoint -q "$CONNECTIONS" && as_root mount -t fusectl fusectl "$CONNECTIONS"
    while read -r number point; do
        [ -n "$number" ] || continue
        point=$(printf '%b' "${point//\\/\\0}")
        { echo 1 >"$CONNECTIONS/$number/abort"; } 2>/dev/null || say "The connection $number of $point cannot be aborted."
        umount -l "$point" 2>/dev/null || fusermount3 -uz "$point" 2>/dev/null || say "$point cannot be unmounted."
    done <<<"$1"
}
