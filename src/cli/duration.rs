//! Durations in flags: `30`, `2.5`, `90s`, `5m`, `1h30m`. A number without a unit is seconds.

use std::time::Duration;

use jiff::SignedDuration;

use crate::config::value::{Checker, checked};

/// The longest duration, about 30 years: more than any limit, and few enough milliseconds for every counter.
const LONGEST: Duration = Duration::from_secs(1_000_000_000);

/// The parser of a duration.
pub(super) fn duration() -> Checker<Duration> {
    checked(read_duration)
}

/// Reads a duration.
///
/// # Errors
///
/// The text is not one, or it is zero or longer than any limit.
pub(super) fn read_duration(text: &str) -> Result<Duration, String> {
    let refused =
        || format!("must be a duration such as 30, 2.5, 90s, 5m or 1h30m (a number alone is seconds), not {text:?}");
    // Only digits, a dot and units, because the parsers below also read `1e3`, `-5m` and `5m ago`.
    if !text.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase() || c == '.') {
        return Err(refused());
    }
    let is_number = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let duration = if is_number {
        text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    } else {
        text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok())
    };
    let duration = duration.filter(|duration| !duration.is_zero() && *duration < LONGEST).ok_or_else(refused)?;
    // The protocol counts milliseconds.
    Ok(duration.max(Duration::from_millis(1)))
}

/// A time in its two largest units: `12s`, `1m30s`, `1h5m`, `2d`.
pub(super) fn in_words(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..600 => format!("{minutes}m{}s", seconds % 60),
        600..3_600 => format!("{minutes}m"),
        3_600..172_800 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_is_seconds() {
        for (text, ms) in [
            ("30", 30_000),
            ("2.5", 2_500),
            ("0.25", 250),
            (".5", 500),
            ("0.0001", 1),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("1.5h", 5_400_000),
            ("999999999", 999_999_999_000),
        ] {
            assert_eq!(read_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for wrong in [
            "",
            "0",
            "0s",
            "-1",
            "-5m",
            "5m ago",
            "soon",
            "nan",
            "inf",
            "1e3",
            "5x",
            "m",
            "1000000000",
            "5 m",
            "PT1S",
            "1:30",
            ".",
        ] {
            assert!(read_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_has_its_two_largest_units() {
        for (ms, text) in [
            (0, "0s"),
            (59_999, "59s"),
            (60_000, "1m0s"),
            (599_000, "9m59s"),
            (600_000, "10m"),
            (3_900_000, "1h5m"),
            (172_800_000, "2d"),
        ] {
            assert_eq!(in_words(ms), text, "{ms}");
        }
    }
}
