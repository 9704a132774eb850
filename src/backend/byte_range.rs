//! The header `Range` of a request for output (RFC 9110 section 14), and what it selects of a stream. Pure.

use std::ops::Range;

/// A valid range of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByteRange {
    /// From the first offset on, up to and including the last if there is one.
    From {
        /// The offset of the first byte.
        first: u64,
        /// The offset of the last byte.
        last: Option<u64>,
    },
    /// The last bytes of the stream: how many.
    Suffix(u64),
}

/// What a request selects of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ByteSelection {
    /// The whole stream.
    Whole,
    /// These bytes of it.
    Part(Range<u64>),
    /// Bytes that are not there.
    Unsatisfiable,
}

impl ByteRange {
    /// Reads the value of the header. `None` if it must or may be ignored: another unit, a syntax error (RFC 9110 section
    /// 14.2), or more than one range, because no client of output needs a multipart body.
    pub fn parse(value: &str) -> Option<ByteRange> {
        let (unit, set) = value.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        // A list may have empty elements (RFC 9110 section 5.6.1).
        let mut specs = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty());
        let (spec, other) = (specs.next()?, specs.next());
        if other.is_some() {
            return None;
        }
        match spec.split_once('-')? {
            ("", suffix) => Some(ByteRange::Suffix(number(suffix)?)),
            (first, "") => Some(ByteRange::From { first: number(first)?, last: None }),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(ByteRange::From { first, last: Some(last) })
            }
        }
    }

    /// The bytes that it selects of a stream of `length` bytes of which `there` can be read. A range that begins before
    /// `there` is not satisfiable, because what its client writes to a file would not be what it asked for; of the last
    /// bytes it gets those that are there.
    pub fn select(self, length: u64, there: &Range<u64>) -> ByteSelection {
        let selected = match self {
            // There is no part that `Content-Range` could name.
            ByteRange::Suffix(n) if n > 0 && length == 0 => return ByteSelection::Whole,
            ByteRange::Suffix(0) => return ByteSelection::Unsatisfiable,
            ByteRange::Suffix(n) => length.saturating_sub(n).max(there.start)..there.end,
            ByteRange::From { first, .. } if first < there.start => return ByteSelection::Unsatisfiable,
            ByteRange::From { first, last } => {
                first..last.map_or(there.end, |last| last.saturating_add(1).min(there.end))
            }
        };
        if selected.is_empty() { ByteSelection::Unsatisfiable } else { ByteSelection::Part(selected) }
    }
}

/// A number of digits. One that is too large is beyond every stream's end, as the largest is.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from(first: u64, last: Option<u64>) -> Option<ByteRange> {
        Some(ByteRange::From { first, last })
    }

    #[test]
    fn only_one_valid_range_of_bytes_counts() {
        let huge = "9".repeat(30);
        for (value, range) in [
            ("bytes=0-99", from(0, Some(99))),
            ("Bytes=7-7", from(7, Some(7))),
            ("bytes=100-", from(100, None)),
            ("bytes=-100", Some(ByteRange::Suffix(100))),
            ("bytes=-0", Some(ByteRange::Suffix(0))),
            ("bytes= 1-2 ", from(1, Some(2))),
            ("bytes=,\t1-2 ,,", from(1, Some(2))),
            (&format!("bytes=0-{huge}"), from(0, Some(u64::MAX))),
            (&format!("bytes={huge}-"), from(u64::MAX, None)),
            (&format!("bytes=-{huge}"), Some(ByteRange::Suffix(u64::MAX))),
            ("", None),
            ("bytes", None),
            ("bytes=", None),
            ("bytes=,", None),
            ("bytes=-", None),
            ("bytes=1", None),
            ("bytes=2-1", None),
            ("bytes=0-1,3-4", None),
            ("bytes=0-1,x", None),
            ("bytes=+1-2", None),
            ("bytes=1-2-3", None),
            ("bytes=1 - 2", None),
            ("bytes =0-1", None),
            ("lines=0-1", None),
            ("bytes=0x1-2", None),
        ] {
            assert_eq!(ByteRange::parse(value), range, "{value:?}");
        }
    }

    #[test]
    fn a_range_selects_what_is_there() {
        use ByteSelection::{Part, Unsatisfiable, Whole};
        for (range, length, there, selected) in [
            ("0-99", 1_000, 0..1_000, Part(0..100)),
            ("0-", 1_000, 0..1_000, Part(0..1_000)),
            ("999-", 1_000, 0..1_000, Part(999..1_000)),
            ("1000-", 1_000, 0..1_000, Unsatisfiable),
            ("990-2000", 1_000, 0..1_000, Part(990..1_000)),
            ("-100", 1_000, 0..1_000, Part(900..1_000)),
            ("-2000", 1_000, 0..1_000, Part(0..1_000)),
            ("-0", 1_000, 0..1_000, Unsatisfiable),
            ("0-", 0, 0..0, Unsatisfiable),
            ("-5", 0, 0..0, Whole),
            // The beginning is gone.
            ("0-99", 1_000, 50..1_000, Unsatisfiable),
            ("50-99", 1_000, 50..1_000, Part(50..100)),
            ("-980", 1_000, 50..1_000, Part(50..1_000)),
            // All is gone.
            ("-5", 1_000, 1_000..1_000, Unsatisfiable),
            ("0-", 1_000, 1_000..1_000, Unsatisfiable),
            // The disk has failed, and the end is gone.
            ("0-", 1_000, 0..600, Part(0..600)),
            ("600-", 1_000, 0..600, Unsatisfiable),
            ("-500", 1_000, 0..600, Part(500..600)),
            ("-400", 1_000, 0..600, Unsatisfiable),
        ] {
            let parsed = ByteRange::parse(&format!("bytes={range}")).unwrap();
            assert_eq!(parsed.select(length, &there), selected, "{range} of {there:?}");
        }
    }

    proptest! {
        #[test]
        fn no_value_panics(value in ".{0,40}") {
            let _ = ByteRange::parse(&value);
        }

        #[test]
        fn a_selected_part_is_there_and_asked_for(
            (start, end, length) in (0u64..200, 0u64..200, 0u64..50).prop_map(|(a, b, more)| (a.min(b), a.max(b), a.max(b) + more)),
            (first, last) in (0u64..300, prop::option::of(0u64..300)),
            is_suffix: bool,
        ) {
            let range = if is_suffix { ByteRange::Suffix(first) } else { ByteRange::From { first, last: last.map(|n| first + n) } };
            let is_asked = |at: u64| match range {
                ByteRange::Suffix(n) => at + n >= length,
                ByteRange::From { first, last } => at >= first && last.is_none_or(|last| at <= last),
            };
            match range.select(length, &(start..end)) {
                ByteSelection::Part(part) => {
                    prop_assert!(!part.is_empty());
                    for at in 0..length + 1 {
                        let is_expected = is_asked(at) && (start..end).contains(&at);
                        prop_assert_eq!(part.contains(&at), is_expected, "byte {} of {:?}", at, range);
                    }
                }
                ByteSelection::Whole => prop_assert!(is_suffix && first > 0 && length == 0),
                ByteSelection::Unsatisfiable => {
                    let begins_there = is_suffix || first >= start;
                    prop_assert!(!begins_there || !(start..end).any(is_asked), "{:?} of {}..{}", range, start, end);
                }
            }
        }
    }
}
