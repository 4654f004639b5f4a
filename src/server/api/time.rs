//! Moments as clients write them: RFC 3339 with any offset and any number of fraction digits, and
//! what JavaScript makes of a `Date` that is put into a query, which is what the official Node SDK
//! does.

use crate::server::store::Millis;

const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The moment that `text` names, in either form.
pub fn parse_moment(text: &str) -> Option<Millis> {
    parse_rfc3339(text).or_else(|| parse_javascript(text))
}

/// `Sat Jun 15 2024 10:30:00 GMT+0000 (Coordinated Universal Time)`, where the name of the zone may
/// be in any language or missing.
fn parse_javascript(text: &str) -> Option<Millis> {
    let mut words = text.splitn(7, ' ');
    let mut word = || words.next();
    let (weekday, month, day, year) = (word()?, word()?, word()?, word()?);
    let (time, zone, name) = (word()?, word()?.strip_prefix("GMT")?, word());
    let named = name.is_none_or(|name| name.starts_with('(') && name.ends_with(')'));
    if !named || !WEEKDAYS.contains(&weekday) {
        return None;
    }
    let month = 1 + MONTHS.iter().position(|known| *known == month)?;
    let (hours, minutes) = zone.split_at_checked(3)?;
    parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}{hours}:{minutes}"))
}

/// The moment that `text` names, cut to milliseconds; `None` if it is not of RFC 3339's form or no
/// real date.
///
/// A space is taken for the `+` of the offset: that is what a query makes of a `+` that was not
/// encoded.
fn parse_rfc3339(text: &str) -> Option<Millis> {
    // Nothing but ASCII from here on: cutting anywhere is safe.
    let text = Some(text).filter(|text| text.is_ascii())?;
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        None => ("", rest),
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
    };
    if rest.len() > zone.len() && fraction.is_empty() {
        return None;
    }
    let in_range = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        // A leap second is the one after it: they cannot be distinguished.
        && second <= 60;
    if !in_range {
        return None;
    }
    let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let seconds = days_since_1970(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
    Some(Millis((seconds - offset(zone)?) * 1000 + millis))
}

/// Seconds east of UTC.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, zone) = zone.split_at_checked(1)?;
    let [hours, minutes] = numbers(zone, ':', [2, 2])?;
    let seconds = hours * 3600 + minutes * 60;
    match sign {
        _ if hours > 23 || minutes > 59 => None,
        "+" | " " => Some(seconds),
        "-" => Some(-seconds),
        _ => None,
    }
}

/// Numbers of exactly so many digits, with `between` between them.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01, in the Gregorian calendar without end.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let before = |year: i64| {
        let year = year - 1;
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400)
    };
    let months: i64 = (1..month).map(|month| days_in(year, month)).sum();
    before(year) - before(1970) + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_clients_write() {
        let at = |text: &str| parse_rfc3339(text).unwrap_or_else(|| panic!("{text}")).to_string();
        for (text, same) in [
            ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.000Z"),
            ("2024-02-29t23:59:59.1z", "2024-02-29T23:59:59.100Z"),
            ("2024-01-01T00:00:00.123456789Z", "2024-01-01T00:00:00.123Z"),
            ("2024-01-01T00:00:00.999999+00:00", "2024-01-01T00:00:00.999Z"),
            ("2024-01-01T00:30:00 01:00", "2023-12-31T23:30:00.000Z"),
            ("2023-12-31T18:30:00-05:30", "2024-01-01T00:00:00.000Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000Z"),
            ("2000-02-29 12:00:00Z", "2000-02-29T12:00:00.000Z"),
        ] {
            assert_eq!(at(text), same, "{text}");
        }
        assert!(parse_rfc3339("0000-01-01T00:00:00Z").unwrap().0 < 0);
        assert_eq!(parse_rfc3339("1969-12-31T23:59:59.500Z"), Some(Millis(-500)));
        assert!(parse_rfc3339("9999-12-31T23:59:59Z").is_some());
    }

    #[test]
    fn reads_a_date_of_javascript() {
        for (text, same) in [
            ("Sat Jun 15 2024 10:30:59 GMT+0000 (Coordinated Universal Time)", "2024-06-15T10:30:59.000Z"),
            ("Sat Jun 15 2024 00:30:00 GMT+0200 (Mitteleuropäische Sommerzeit)", "2024-06-14T22:30:00.000Z"),
            ("Thu Feb 29 2024 22:00:00 GMT-0330", "2024-03-01T01:30:00.000Z"),
        ] {
            assert_eq!(parse_moment(text).unwrap_or_else(|| panic!("{text}")).to_string(), same);
        }
        assert_eq!(parse_moment("2024-01-01T00:00:00Z"), parse_rfc3339("2024-01-01T00:00:00Z"));
        for bad in [
            "Sat Jun 15 2024 10:30:59",
            "Sat Jun 15 2024 10:30:59 GMT",
            "Sat Jun 15 2024 10:30:59 GMT+0",
            "Sat Jun 15 2024 10:30:59 GMT+ü",
            "Sat Jun 15 2024 10:30:59 GMT+000000",
            "Sat Jun 15 2024 10:30:59 GMT+0000 and more",
            "Sat Jun 31 2024 10:30:59 GMT+0000",
            "Sat Jun 5 2024 10:30:59 GMT+0000",
            "Sat Juni 15 2024 10:30:59 GMT+0000",
            "Samstag Jun 15 2024 10:30:59 GMT+0000",
            "Invalid Date",
        ] {
            assert_eq!(parse_moment(bad), None, "{bad}");
        }
    }

    #[test]
    fn refuses_what_is_no_date() {
        for bad in [
            "",
            "yesterday",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:61Z",
            "2024-01-01T00:00:00+24:00",
            "2024-01-01T00:00:00+0100",
            "2024-01-01T00:00:00Z ",
            "+024-01-01T00:00:00Z",
            "２０２４-01-01T00:00:00Z",
            "1704067200",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }
}
