//! Escapes the characters that a terminal or a log reader would obey instead of showing.

use std::{borrow::Cow, fmt::Write};

/// Whether a character is a control character (C0, DEL, C1), ends a line for some readers (U+2028, U+2029), or changes
/// the direction of the text around it (Unicode's Bidi_Control).
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with an escape of JSON, such as `\u001b`, for each such character. So the visible form of a JSON text is
/// the same JSON.
pub fn visible(text: &str) -> Cow<'_, str> {
    // Almost every text is printable ASCII, which is decided by its bytes.
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) || !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            // All of them are in the basic plane, so four digits suffice. A `String` accepts every write.
            c if is_obeyed(c) => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn only_characters_that_are_obeyed_are_escaped() {
        for (text, shown) in [
            ("", ""),
            ("GET /a?b=\"c\\d\"", "GET /a?b=\"c\\d\""),
            ("grüße 日本 👩‍💻 \u{a0}", "grüße 日本 👩‍💻 \u{a0}"),
            ("\u{1b}[31mred", "\\u001b[31mred"),
            ("a\r\n\tb\0", "a\\r\\n\\tb\\u0000"),
            ("\u{7f}\u{80}\u{9b}31m\u{9f}", "\\u007f\\u0080\\u009b31m\\u009f"),
            ("\u{2028}\u{2029}\u{85}", "\\u2028\\u2029\\u0085"),
            (
                "\u{202e}txt.exe\u{2066}\u{2069}\u{200e}\u{200f}\u{61c}",
                "\\u202etxt.exe\\u2066\\u2069\\u200e\\u200f\\u061c",
            ),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    proptest! {
        #[test]
        fn json_stays_the_same_and_holds_no_such_character(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let shown = visible(&json);
            assert!(!shown.contains(is_obeyed));
            assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }
}
