//! One line for each mount, in aligned columns.

use serde_json::Value;

use crate::cli::commands::status::NOT_OURS;
use crate::cli::commands::status::details::{WELL, place, seconds, status_of, verdict_of};
use crate::cli::output::{GREEN, Lines, PLAIN, RED};
use crate::display;

const HEADER: [&str; 5] = ["MOUNTPOINT", "STATE", "VAULT", "UNSAVED", "UP"];

/// Prints the table, if there is a mount.
pub(super) fn show(out: &mut Lines, mounts: &[Value]) {
    let rows: Vec<[String; 5]> = mounts.iter().map(row).collect();
    let width =
        |n: usize| rows.iter().map(|row| row[n].chars().count()).chain([HEADER[n].len()]).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut print = |[at, state, vault, unsaved, up]: [&str; 5], colour: &str| {
        let [a, s, v, u, _] = widths;
        let pad = " ".repeat(s.saturating_sub(state.len()));
        let after = format!("{pad}  {vault:v$}  {unsaved:>u$}  {up}");
        out.marked(format_args!("{at:a$}  "), colour, state, after);
    };
    if !rows.is_empty() {
        print(HEADER, PLAIN);
    }
    for row in &rows {
        let colour = match row[1].as_str() {
            WELL => GREEN,
            NOT_YOURS => PLAIN,
            _ => RED,
        };
        print(row.each_ref().map(String::as_str), colour);
    }
}

const NOT_YOURS: &str = "not yours";

fn row(mount: &Value) -> [String; 5] {
    let at = display::text(mount["mountpoint"].as_str().unwrap_or("?")).to_string();
    let none = || "-".to_owned();
    if mount["problem"] == NOT_OURS {
        return [at, NOT_YOURS.to_owned(), none(), none(), none()];
    }
    let verdict = verdict_of(mount);
    let state = verdict.split(':').next().unwrap_or_default();
    let state = if mount["detached"].is_string() && state == WELL { "DETACHED" } else { state };
    let omitted = mount["omitted"].as_u64().unwrap_or(0);
    let unsaved = status_of(mount).map(|fs| (fs.unsaved.len() as u64).saturating_add(omitted).to_string());
    let up = mount["uptime_s"].as_u64().map(seconds);
    let vault = mount.get("spec").map(|spec| display::text(&place(spec)).to_string());
    [at, state.to_owned(), vault.unwrap_or_else(none), unsaved.unwrap_or_else(none), up.unwrap_or_else(none)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_hold_no_escape() {
        let dead = json!({"mountpoint": "/srv/\u{1b}[2J", "problem": "DEAD: its processes died"});
        let other = json!({"mountpoint": "/m", "problem": NOT_OURS});
        let odd = json!({
            "mountpoint": "/long/path/to/it", "fs": "x", "uptime_s": 62, "spec": {"endpoint": {"url": "https://v"}}
        });
        let mut lines = Lines::default();
        show(&mut lines, &[dead, other, odd]);
        let expected = [
            r"MOUNTPOINT        STATE      VAULT      UNSAVED  UP",
            r"/srv/\u{1b}[2J    NOT WELL   -                -  -",
            r"/m                not yours  -                -  -",
            r"/long/path/to/it  ?          https://v        -  1m 2s",
        ];
        assert_eq!(lines.to_string(), expected.join("\n") + "\n");
        let mut lines = Lines::default();
        show(&mut lines, &[]);
        assert_eq!(lines.to_string(), "");
    }
}
