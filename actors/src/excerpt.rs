//! Shortens the texts of clients that errors and log lines repeat: to [`MAX_ECHO`] characters in an error, to a number of
//! bytes in a log line.

use std::{borrow::Cow, fmt};

/// The most characters of a client's value that an error repeats.
pub const MAX_ECHO: usize = 200;

/// What follows the beginning of a text that was cut.
const CUT: &str = " (cut)";

/// A text in quotation marks, escaped, and cut.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = beginning(self.0);
        let cut = if kept.len() < self.0.len() { CUT } else { "" };
        write!(f, "{kept:?}{cut}")
    }
}

/// The text, or its beginning if it is too long.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    let kept = beginning(text);
    if kept.len() < text.len() { format!("{kept}{CUT}").into() } else { text.into() }
}

/// The text, or its beginning of at most this many bytes and a mark.
pub fn cut(text: &str, max_bytes: usize) -> Cow<'_, str> {
    match text.floor_char_boundary(max_bytes) {
        end if end < text.len() => format!("{}…", &text[..end]).into(),
        _ => text.into(),
    }
}

fn beginning(text: &str) -> &str {
    text.char_indices().nth(MAX_ECHO).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_to_bytes_between_characters() {
        for (text, max_bytes, shown) in
            [("", 0, ""), ("abc", 3, "abc"), ("abcd", 3, "abc…"), ("aüb", 2, "a…"), ("aüb", 3, "aü…"), ("ü", 0, "…")]
        {
            assert_eq!(cut(text, max_bytes), shown, "{text} {max_bytes}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(Quoted("a\"b").to_string(), r#""a\"b""#);
        assert_eq!(excerpt("short"), "short");
        for unit in ["x", "\x7f", "é", "😀"] {
            let exact = unit.repeat(MAX_ECHO);
            assert_eq!(excerpt(&exact), exact);
            let long = unit.repeat(900_000);
            assert_eq!(excerpt(&long), format!("{exact} (cut)"));
            assert_eq!(Quoted(&long).to_string(), format!("{exact:?} (cut)"));
        }
    }
}
