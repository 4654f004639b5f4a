//! What the object commands print: lines of listings and histories.

use std::time::SystemTime;

use serde::Serialize;

use crate::display;
use crate::vault::{ObjectName, Summary, VersionInfo, VersionTag};

/// One line of `ls`, exact: it may be data.
pub fn ls_line(item: &Summary, json: bool, long: bool, terminal: bool) -> String {
    let version = item.version.as_ref().map(|v| v.as_str());
    let time = item.updated_at.map(|t| timestamp(t).to_string());
    if json {
        return json_line(&LsJson {
            name: item.name.as_str(),
            id: item.id.as_str(),
            version: item.version.as_ref().map(json_version),
            updated_at: time,
        });
    }
    let name = shown(&item.name, terminal);
    match long {
        true => format!("{:>4}  {:24}  {name}", version.unwrap_or("-"), time.as_deref().unwrap_or("-")),
        false => name,
    }
}

/// One line of `log`.
pub fn log_line(info: &VersionInfo, json: bool) -> String {
    let time = timestamp(info.created_at);
    if json {
        return json_line(&LogJson {
            version: info.number,
            created_at: time.to_string(),
            size: info.size,
            current: info.current,
        });
    }
    let size = info.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
    format!("{:>4}  {time}  {size:>8}{}", info.number, if info.current { "  current" } else { "" })
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

fn json_line(line: &impl Serialize) -> String {
    let text = serde_json::to_string(line).expect("text, numbers and null always serialise");
    display::json(&text).into_owned()
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

fn timestamp(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(time)
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
