//! Times as the user's clock shows them.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-12-01 04:15:53` in the time zone of the environment.
pub fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let since = libc::time_t::try_from(since).unwrap_or(libc::time_t::MAX);
    // SAFETY: a tm is numbers and a pointer, for which zero is a value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both live for the call; the result is one of them, or null for a year that no tm
    // holds.
    if unsafe { libc::localtime_r(&raw const since, &raw mut tm) }.is_null() {
        return "-".to_owned();
    }
    let (year, month) = (i64::from(tm.tm_year) + 1900, tm.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02} {:02}:{:02}:{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}
