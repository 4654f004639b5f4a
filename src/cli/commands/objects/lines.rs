//! What the object commands print: lines of listings and histories.

use std::time::SystemTime;

use serde::Serialize;

use crate::display;
use crate::sys::local_time;
use crate::vault::{ObjectName, Summary, VersionInfo, VersionTag};

/// One line of `ls`, exact: it may be data. No API lists sizes.
pub fn ls_line(item: &Summary, long: bool, terminal: bool) -> String {
    let name = shown(&item.name, terminal);
    if !long {
        return name;
    }
    let version = item.version.as_ref().map_or("-", |v| v.as_str());
    let time = item.updated_at.map_or_else(|| "-".to_owned(), local_time::seconds);
    format!("{:>8}  {time:19}  {version:>4}  {name}", "-")
}

/// One object of `ls --json`.
pub fn ls_json(item: &Summary) -> impl Serialize + '_ {
    LsJson {
        name: item.name.as_str(),
        id: item.id.as_str(),
        version: item.version.as_ref().map(json_version),
        updated_at: item.updated_at.map(timestamp),
    }
}

/// One line of `log`.
pub fn log_line(info: &VersionInfo) -> String {
    let size = info.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
    let time = local_time::seconds(info.created_at);
    format!("{:>4}  {time}  {size:>8}{}", info.number, if info.current { "  current" } else { "" })
}

/// One version of `log --json`.
pub fn log_json(info: &VersionInfo) -> impl Serialize + use<> {
    LogJson {
        version: info.number,
        created_at: timestamp(info.created_at),
        size: info.size,
        current: info.current,
    }
}

#[derive(Serialize)]
struct LsJson<'a> {
    name: &'a str,
    id: &'a str,
    version: Option<serde_json::Value>,
    updated_at: Option<String>,
}

#[derive(Serialize)]
struct LogJson {
    version: u64,
    created_at: String,
    size: Option<u64>,
    current: bool,
}

/// A number where the dialect counts versions, so that it is the same as in `log`.
fn json_version(tag: &VersionTag) -> serde_json::Value {
    tag.as_str().parse::<u64>().map_or_else(|_| tag.as_str().into(), Into::into)
}

/// A name for a line of output: escaped for a terminal, as it is for a pipe, as ls(1) does.
fn shown(name: &ObjectName, terminal: bool) -> String {
    match terminal {
        true => display::text(name.as_str()).to_string(),
        false => name.as_str().to_owned(),
    }
}

fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_for_terminals_only() {
        let name = ObjectName::new("a\n\u{1b}[31m\u{9b}\u{202e}é\\").unwrap();
        assert_eq!(shown(&name, true), r"a\n\u{1b}[31m\u{9b}\u{202e}é\\");
        assert_eq!(shown(&name, false), name.as_str());
    }
}
