//! Points in time as log lines write them. Pure.
//!
//! QEMU and libvirt say their zone (`2025-11-03T18:00:02.562872Z`, `2025-11-03 18:00:02.931+0000`),
//! Nova writes local time without one (`2025-11-03 18:00:03.552`), and syslog leaves out the year.
#![forbid(unsafe_code)]

/// Seconds since 1970, and whether the zone was said; where not, as if it were UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Seconds since 1970-01-01.
    pub seconds: i64,
    /// Whether the line named its zone.
    pub zoned: bool,
}

const DAY: i64 = 86_400;
/// 8,000 years.
const FAR: i64 = 8_000 * 365 * DAY;

/// The timestamp at the very start of `text`.
pub fn parse(text: &[u8]) -> Option<Stamp> {
    if text.len() < 19 || text[4] != b'-' || text[7] != b'-' || !matches!(text[10], b' ' | b'T') {
        return None;
    }
    if text[13] != b':' || text[16] != b':' {
        return None;
    }
    let days = days(
        digits(&text[..4])?,
        digits(&text[5..7])?,
        digits(&text[8..10])?,
    )?;
    let local = days * DAY + clock(&text[11..19])?;
    let mut rest = &text[19..];
    if let [b'.' | b',', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit());
        rest = &fraction[digits.count()..];
    }
    let offset = zone(rest);
    Some(Stamp {
        seconds: local - offset.unwrap_or(0),
        zoned: offset.is_some(),
    })
}

/// A syslog timestamp (`Nov  3 18:00:03`) at the start of `text`. The year is the one that puts it
/// at, or shortly before, `reference`.
pub fn syslog(text: &[u8], reference: i64) -> Option<Stamp> {
    const MONTHS: [&[u8; 3]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    if text.len() < 15 || text[3] != b' ' || text[6] != b' ' {
        return None;
    }
    let month = MONTHS.iter().position(|name| **name == text[..3])?;
    let month = i64::try_from(month).ok()? + 1;
    let day = digits(text[4..6].trim_ascii_start())?;
    let clock = clock(&text[7..15])?;
    // A file may say that it was written at any time, and years have four digits.
    let reference = reference.clamp(-FAR, FAR);
    let (year, ..) = civil(reference.div_euclid(DAY));
    [year + 1, year, year - 1].into_iter().find_map(|year| {
        let seconds = days(year, month, day)? * DAY + clock;
        // Clocks differ by a zone, not by more than a day.
        (seconds <= reference + DAY).then_some(Stamp {
            seconds,
            zoned: false,
        })
    })
}

/// As RFC 3339 has it, with a `Z` where the zone is known.
pub fn text(stamp: Stamp) -> String {
    let (year, month, day) = civil(stamp.seconds.div_euclid(DAY));
    let clock = stamp.seconds.rem_euclid(DAY);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let zone = if stamp.zoned { "Z" } else { "" };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{zone}")
}

fn digits(text: &[u8]) -> Option<i64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + i64::from(byte - b'0'))
    })
}

fn clock(text: &[u8]) -> Option<i64> {
    if text[2] != b':' || text[5] != b':' {
        return None;
    }
    let (hour, minute) = (digits(&text[..2])?, digits(&text[3..5])?);
    let second = digits(&text[6..8])?;
    (hour < 24 && minute < 60 && second < 61).then_some(hour * 3600 + minute * 60 + second)
}

/// What a zone adds to UTC; `None` where there is none.
fn zone(text: &[u8]) -> Option<i64> {
    let (sign, number) = match text {
        [b'Z', ..] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let minutes = match number {
        [_, _, b':', a, b, ..] | [_, _, a, b, ..] => [*a, *b],
        _ => return None,
    };
    let (hours, minutes) = (digits(&number[..2])?, digits(&minutes)?);
    (hours <= 14 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Days since 1970-01-01, counted in years that begin in March, so that the odd day comes last.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month < 3 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(year * 365 + leap + of_year - 719_468)
}

/// Year, month and day of a day since 1970-01-01.
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
    fn each_writing_is_understood() {
        let at = |seconds, zoned| Some(Stamp { seconds, zoned });
        for (written, expected) in [
            ("2025-11-03T18:00:02.562872Z qemu", at(1_762_192_802, true)),
            (
                "2025-11-03 18:00:02.931+0000: 12: error",
                at(1_762_192_802, true),
            ),
            ("2025-11-03T20:00:02+02:00 host", at(1_762_192_802, true)),
            ("2025-11-03T13:00:02,1-0500", at(1_762_192_802, true)),
            ("2025-11-03 18:00:02.552 7 ERROR", at(1_762_192_802, false)),
            ("2025-11-03 18:00:02 - x", at(1_762_192_802, false)),
            ("1970-01-01 00:00:00", at(0, false)),
            ("2025-13-03 18:00:02", None),
            ("2025-11-03 25:00:02", None),
            ("2025-11-03 18:00", None),
            ("not a time at all, is it", None),
        ] {
            assert_eq!(parse(written.as_bytes()), expected, "{written}");
        }
    }

    #[test]
    fn a_year_is_found_for_syslog() {
        let at = |written: &str, reference| syslog(written.as_bytes(), reference).map(text);
        let november = 1_762_192_802;
        let says = |written: &str| Some(written.to_owned());
        assert_eq!(
            at("Nov  3 18:00:02 h", november),
            says("2025-11-03T18:00:02")
        );
        assert_eq!(
            at("Dec 31 23:59:59 h", november),
            says("2024-12-31T23:59:59")
        );
        assert_eq!(at("Now  3 18:00:02 h", november), None);
        for reference in [i64::MIN, i64::MAX] {
            assert!(at("Nov  3 18:00:02 h", reference).is_some());
        }
    }

    #[test]
    fn every_day_is_written_as_it_was_read() {
        for day in (-200_000..200_000).step_by(17) {
            let (year, month, date) = civil(day);
            assert_eq!(days(year, month, date), Some(day));
        }
    }
}
