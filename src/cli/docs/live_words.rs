//! Words of completions that come from what is mounted. A Tab never waits for a vault or a dead
//! mount for longer than [`PATIENCE`], and gets nothing then.

use std::path::{Component, Path};
use std::time::Duration;

use crate::cli::args::values;
use crate::daemon::control::{Answer, Request};
use crate::daemon::live_mounts::{self, LiveMount};
use crate::sys::{mount_table, probe, trust};

/// How long a person waits for a Tab.
const PATIENCE: Duration = Duration::from_secs(1);

/// The user's mount points, written as the word at the cursor begins.
pub fn mount_points(current: &str) -> Vec<String> {
    let table = mount_table::table().unwrap_or_default();
    let own = table.into_iter().filter(|entry| entry.is_vaultfs() && trust::is_own(entry));
    let mut all: Vec<String> = own.filter_map(|entry| as_begun(&entry.mountpoint, current)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// None for a path that the word does not begin. The shell leaves `~` in it.
fn as_begun(path: &Path, current: &str) -> Option<String> {
    if let Some(rest) = current.strip_prefix("~/") {
        let begun = values::home()?.join(rest);
        return path
            .to_str()
            .filter(|path| begun.to_str().is_some_and(|b| path.starts_with(b)))
            .map(str::to_owned);
    }
    let path = match current.is_empty() || current.starts_with('/') {
        true => path,
        false => path.strip_prefix(std::env::current_dir().ok()?).ok()?,
    };
    path.to_str().filter(|path| !path.is_empty()).map(str::to_owned)
}

/// The mount that a command line is about, if there is one: `--mount`, the one that holds the
/// working directory, or the only one. None if it names a vault.
fn the_mount(words: &[String]) -> Option<LiveMount> {
    let vault = |word: &String| ["--embedded", "--api-url"].iter().any(|option| word.starts_with(option));
    if words.iter().any(vault) {
        return None;
    }
    let mut live = live_mounts::live();
    let named = words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix("--mount")? {
        "" => words.get(at + 1).map(String::as_str),
        rest => rest.strip_prefix('='),
    });
    let here = std::env::current_dir().ok()?;
    if let Some(named) = named {
        let named = here.join(named);
        return live.into_iter().find(|mount| mount.mountpoint == named);
    }
    let depth = |mount: &LiveMount| mount.mountpoint.components().count();
    let holding = (0..live.len()).filter(|&at| here.starts_with(&live[at].mountpoint));
    match holding.max_by_key(|&at| depth(&live[at])) {
        Some(at) => Some(live.swap_remove(at)),
        None => live.pop().filter(|_| live.is_empty()),
    }
}

/// Names of objects in the directory that the word at the cursor has reached, from the mount's
/// listing; a directory ends in a slash. Names that a mount spells otherwise are left out.
pub fn names(current: &str, words: &[String]) -> Vec<String> {
    let Some(mount) = the_mount(words) else { return Vec::new() };
    let dir = current.rfind('/').map_or("", |slash| &current[..=slash]);
    let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain(Path::new(dir)) || dir.contains("//") || dir.starts_with('.') {
        return Vec::new();
    }
    let listed = probe::list(&mount.mountpoint.join(dir), PATIENCE).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed);
    let shown = listed.split('\0').filter(|entry| !entry.is_empty() && !entry.contains('%'));
    let objects = shown.filter(|entry| !(dir.is_empty() && [".versions/", ".vaultfs/"].contains(entry)));
    let name = |entry| match entry {
        // The object that has the name of its directory.
        ".self" => dir.trim_end_matches('/').to_owned(),
        entry => format!("{dir}{entry}"),
    };
    objects.map(name).collect()
}

/// Names of unsaved writes and refused deletions.
pub fn unsaved(words: &[String]) -> Vec<String> {
    let Some(mount) = the_mount(words) else { return Vec::new() };
    let answer = mount.connect(PATIENCE).and_then(|mut client| client.ask(&Request::Status, PATIENCE));
    let Ok(Answer::Status(status)) = answer else { return Vec::new() };
    let lists = ["/fs/unsaved", "/fs/undeleted"].iter().filter_map(|list| status.pointer(list)?.as_array());
    lists.flatten().filter_map(|one| Some(one["name"].as_str()?.to_owned())).collect()
}

/// The names in a file like /etc/passwd.
pub fn users(file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect()
}
