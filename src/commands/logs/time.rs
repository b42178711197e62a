//! Parses the timestamps of log lines. Pure.
//!
//! QEMU and libvirt write the time zone (`2025-11-03T18:00:02.562872Z`, `2025-11-03 18:00:02.931+0000`),
//! Nova writes local time without a zone (`2025-11-03 18:00:03.552`), and syslog omits the year.
//! To add a format, add a function next to [`parse`] and [`syslog`].
#![forbid(unsafe_code)]

/// A point in time in seconds since 1970-01-01, as UTC, as local time, or both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// From a timestamp with a zone.
    pub utc: Option<i64>,
    /// From a timestamp without a zone, read as if it were UTC.
    pub local: Option<i64>,
}

impl Time {
    /// UTC if known, else local time.
    pub fn seconds(self) -> Option<i64> {
        self.utc.or(self.local)
    }

    /// This time, with missing parts from `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            utc: self.utc.or(other.utc),
            local: self.local.or(other.local),
        }
    }

    /// The difference in seconds: the smaller one of UTC and local time if both times contain both.
    pub fn apart(self, other: Self) -> Option<i64> {
        let by = |one: Option<i64>, other: Option<i64>| Some((one? - other?).abs());
        let same_clock = [by(self.utc, other.utc), by(self.local, other.local)];
        let nearest = same_clock.into_iter().flatten().min();
        nearest.or_else(|| by(self.seconds(), other.seconds()))
    }
}

const DAY: i64 = 86_400;
/// 8,000 years, so that a clamped time has a year of four digits.
const FAR: i64 = 8_000 * 365 * DAY;

/// Parses the timestamp at the very start of `text`.
pub fn parse(text: &[u8]) -> Option<Time> {
    let [year, month, day, hour, minute, second] = numbers(text, b"0000-00-00T00:00:00")?;
    let local = days(year, month, day)? * DAY + clock(hour, minute, second)?;
    let mut rest = &text[19..];
    if let [b'.' | b',', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit());
        rest = &fraction[digits.count()..];
    }
    let utc = zone(rest).map(|offset| local - offset);
    Some(Time {
        utc,
        local: utc.is_none().then_some(local),
    })
}

/// Parses a syslog timestamp (`Nov  3 18:00:03`) at the start of `text`. Its year is the latest one with which
/// it is not after `reference`, a Unix timestamp, by more than a day.
pub fn syslog(text: &[u8], reference: i64) -> Option<Time> {
    const MONTHS: [&[u8]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    let (name, rest) = text.split_at_checked(3)?;
    let month = (1..).zip(MONTHS).find(|(_, month)| *month == name)?.0;
    let [_, day, hour, minute, second] = numbers(rest, b" _0 00:00:00")?;
    let clock = clock(hour, minute, second)?;
    // A file's mtime can be any value.
    let reference = reference.clamp(-FAR, FAR);
    let (year, ..) = civil(reference.div_euclid(DAY));
    [year + 1, year, year - 1].into_iter().find_map(|year| {
        let seconds = days(year, month, day)? * DAY + clock;
        // The timestamp is local time, which differs from UTC by less than a day.
        (seconds <= reference + DAY).then_some(Time {
            utc: None,
            local: Some(seconds),
        })
    })
}

/// Formats a time by RFC 3339, with `Z` if it is UTC and without a zone if it is local time.
pub fn text(time: Time) -> Option<String> {
    let seconds = time.seconds()?;
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let clock = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let zone = if time.utc.is_some() { "Z" } else { "" };
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{zone}"
    ))
}

/// Parses the `N` numbers at the start of a text that matches `template`: `0` matches a digit, `_` a digit or a
/// space, `T` a `T` or a space, and any other byte itself. `T` and other bytes separate the numbers.
fn numbers<const N: usize>(text: &[u8], template: &[u8]) -> Option<[i64; N]> {
    let mut numbers = [0; N];
    let mut place = 0;
    for (shape, byte) in template.iter().zip(text.get(..template.len())?) {
        match (shape, byte) {
            (b'0' | b'_', b'0'..=b'9') => {
                let number = numbers.get_mut(place)?;
                *number = *number * 10 + i64::from(byte - b'0');
            }
            (b'_', b' ') => {}
            (b'T', b'T' | b' ') => place += 1,
            (shape, byte) if shape == byte && !b"0_".contains(shape) => place += 1,
            _ => return None,
        }
    }
    Some(numbers)
}

/// Seconds since midnight; `None` for an invalid time.
fn clock(hour: i64, minute: i64, second: i64) -> Option<i64> {
    (hour < 24 && minute < 60 && second < 61).then_some(hour * 3600 + minute * 60 + second)
}

/// The offset from UTC in seconds of a zone (`Z`, `+0200`, `-05:00`) at the start of `text`.
fn zone(text: &[u8]) -> Option<i64> {
    let sign = match text.first()? {
        b'Z' => return Some(0),
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let short = || numbers(&text[1..], b"0000").map(|[number]| [number / 100, number % 100]);
    let [hours, minutes] = numbers(&text[1..], b"00:00").or_else(short)?;
    (hours <= 14 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Days since 1970-01-01; `None` for an invalid date. Counts years from March, so that a leap day is the last
/// day of its year.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month < 3 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(year * 365 + leap + of_year - 719_468)
}

/// Year, month and day from the days since 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    const CENTURIES: i64 = 146_097;
    let days = days + 719_468;
    let (cycle, day) = (days.div_euclid(CENTURIES), days.rem_euclid(CENTURIES));
    let of_cycle = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * of_cycle + of_cycle / 4 - of_cycle / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = (shifted + 2) % 12 + 1;
    let year = cycle * 400 + of_cycle + i64::from(month < 3);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_timestamps_with_and_without_a_zone() {
        for (written, read) in [
            ("2025-11-03T18:00:02.562872Z qemu", "2025-11-03T18:00:02Z"),
            ("2025-11-03 18:00:02.931+0000: 12", "2025-11-03T18:00:02Z"),
            ("2025-11-03T20:00:02+02:00 host", "2025-11-03T18:00:02Z"),
            ("2025-11-03T13:00:02,1-0500", "2025-11-03T18:00:02Z"),
            ("2025-11-03 18:00:02.552 7 ERROR", "2025-11-03T18:00:02"),
            ("2025-11-03 18:00:02 - x", "2025-11-03T18:00:02"),
            ("1970-01-01 00:00:00", "1970-01-01T00:00:00"),
            ("2025-13-03 18:00:02", ""),
            ("2025-11-03 25:00:02", ""),
            ("2025-11-03 18:00", ""),
            ("not a time at all, is it", ""),
        ] {
            let time = parse(written.as_bytes()).and_then(text);
            assert_eq!(time.unwrap_or_default(), read, "{written}");
        }
        let time = parse(b"2025-11-03T20:00:02+02:00").unwrap();
        assert_eq!(time.utc, Some(1_762_192_802));
    }

    #[test]
    fn syslog_time_gets_the_year_of_its_reference() {
        let november = 1_762_192_802;
        for (written, reference, read) in [
            ("Nov  3 18:00:02 h", november, "2025-11-03T18:00:02"),
            ("Dec 31 23:59:59 h", november, "2024-12-31T23:59:59"),
            ("Now  3 18:00:02 h", november, ""),
        ] {
            let time = syslog(written.as_bytes(), reference).and_then(text);
            assert_eq!(time.unwrap_or_default(), read, "{written}");
        }
        for reference in [i64::MIN, i64::MAX] {
            assert!(syslog(b"Nov  3 18:00:02 h", reference).is_some());
        }
    }

    #[test]
    fn days_and_civil_are_inverse_functions() {
        for day in (-200_000..200_000).step_by(17) {
            let (year, month, date) = civil(day);
            assert_eq!(days(year, month, date), Some(day));
        }
    }
}
