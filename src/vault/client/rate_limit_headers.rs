//! What the rate limit headers of an answer say.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{DATE, HeaderMap};

use crate::vault::client::budget::LONGEST_WINDOW;

/// A reset above this is Unix time, not a number of seconds.
const UNIX_TIME_FROM: f64 = 1e9;

/// Unix time above this is milliseconds, as some services give it.
const UNIX_MILLISECONDS_FROM: f64 = 1e12;

/// What the headers of one answer say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Headers {
    /// X-RateLimit-Limit; 0, and no count of what is left, means that there is none (vaultfs serve
    /// says so).
    pub limit: Option<u32>,
    /// X-RateLimit-Remaining.
    pub remaining: Option<u32>,
    /// X-RateLimit-Reset as time from now.
    pub reset: Option<Duration>,
    /// Retry-After, as time from now; a date counts by the vault's own clock, if it reports that.
    pub retry_after: Option<Duration>,
}

impl Headers {
    /// Reads them leniently: what is missing or makes no sense is absent. Unix time counts by the
    /// vault's own clock, if it reports that.
    pub fn read(headers: &HeaderMap, wall: SystemTime) -> Self {
        let integer = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let seconds = |name: &str| {
            let number = headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok()?;
            (number.is_finite() && number >= 0.0).then_some(number)
        };
        let small = |name: &str| integer(name).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let date = |name: &str| httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok();
        // By the vault's own clock, if it reports that.
        let now = date(DATE.as_str()).unwrap_or(wall);
        let reset = seconds("x-ratelimit-reset").map(|number| {
            let since = match number {
                _ if number <= UNIX_TIME_FROM => return whole(number),
                _ if number <= UNIX_MILLISECONDS_FROM => number,
                _ => number / 1000.0,
            };
            whole(since - now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
        });
        let (limit, remaining) = (small("x-ratelimit-limit"), small("x-ratelimit-remaining"));
        Self {
            limit: limit.filter(|limit| *limit > 0 || remaining.is_none()),
            remaining,
            reset,
            retry_after: seconds("retry-after")
                .map(whole)
                .or_else(|| date("retry-after").map(|at| at.duration_since(now).unwrap_or_default())),
        }
    }
}

/// A finite time as whole seconds, rounded up: never too early. What is past is now.
fn whole(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.ceil().clamp(0.0, LONGEST_WINDOW.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_leniently() {
        let wall = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let read = |pairs: &[(&'static str, &'static str)]| {
            let map = pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
            Headers::read(&map, wall)
        };
        assert_eq!(read(&[]), Headers::default());
        let garbage = [("x-ratelimit-limit", "-5"), ("x-ratelimit-remaining", "-1"), ("retry-after", "soon")];
        assert_eq!(read(&garbage), Headers::default());
        assert_eq!(read(&[("x-ratelimit-limit", "0")]).limit, Some(0), "no limit");
        let none_left = [("x-ratelimit-limit", "0"), ("x-ratelimit-remaining", "0")];
        assert_eq!(read(&none_left).limit, None);
        assert_eq!(read(&[("x-ratelimit-reset", "30")]).reset, Some(Duration::from_secs(30)));
        assert_eq!(read(&[("x-ratelimit-reset", "1700000042")]).reset, Some(Duration::from_secs(42)));
        assert_eq!(read(&[("x-ratelimit-reset", "1600000000")]).reset, Some(Duration::ZERO));
        assert_eq!(read(&[("x-ratelimit-reset", "1900000000")]).reset, Some(LONGEST_WINDOW));
        let milliseconds = [("x-ratelimit-reset", "1700000042000")];
        assert_eq!(read(&milliseconds).reset, Some(Duration::from_secs(42)));
        for (fraction, number) in [("0.5", 1), ("41.2", 42), ("1700000041.2", 42)] {
            assert_eq!(read(&[("x-ratelimit-reset", fraction)]).reset, Some(Duration::from_secs(number)));
        }
        for nonsense in ["nan", "inf", "-1", "", "1e999"] {
            assert_eq!(read(&[("x-ratelimit-reset", nonsense)]).reset, None, "{nonsense:?}");
        }
        assert_eq!(read(&[("retry-after", "2.5")]).retry_after, Some(Duration::from_secs(3)));
        assert_eq!(read(&[("x-ratelimit-limit", "99999999999")]).limit, Some(u32::MAX));
        let theirs = ("date", "Tue, 14 Nov 2023 22:00:00 GMT");
        let hour = read(&[("x-ratelimit-reset", "1700002800"), theirs]).reset;
        assert_eq!(hour, Some(Duration::from_secs(3600)), "by its own clock, which is behind ours");
        assert_eq!(read(&[("retry-after", " 5 ")]).retry_after, Some(Duration::from_secs(5)));
        let at = ("retry-after", "Tue, 14 Nov 2023 22:13:27 GMT");
        assert_eq!(read(&[at]).retry_after, Some(Duration::from_secs(7)), "{wall:?}");
        let theirs = ("date", "Tue, 14 Nov 2023 22:13:00 GMT");
        assert_eq!(read(&[at, theirs]).retry_after, Some(Duration::from_secs(27)), "by its own clock");
        let past = ("retry-after", "Tue, 14 Nov 2023 22:00:00 GMT");
        assert_eq!(read(&[past]).retry_after, Some(Duration::ZERO));
        assert_eq!(read(&[("retry-after", "soon")]).retry_after, None);
    }
}
