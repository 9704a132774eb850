//! Values of clients in texts for people: cut to [`MAX_ECHO`] characters, so that no message grows with what it refuses.

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

fn beginning(text: &str) -> &str {
    text.char_indices().nth(MAX_ECHO).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

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
