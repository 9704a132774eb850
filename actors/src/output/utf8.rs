//! Cuts text between characters.

/// The longest incomplete character, in bytes.
const MAX_PARTIAL_CHAR: usize = 3;

/// The number of bytes at the end that begin an incomplete character: 0 to 3.
pub fn partial_char(bytes: &[u8]) -> usize {
    for back in 1..=MAX_PARTIAL_CHAR.min(bytes.len()) {
        let tail = &bytes[bytes.len() - back..];
        // A continuation byte belongs to a character that begins before it.
        if tail[0] & 0b1100_0000 == 0b1000_0000 {
            continue;
        }
        return match std::str::from_utf8(tail) {
            Err(error) if error.error_len().is_none() => back,
            _ => 0,
        };
    }
    0
}

/// The largest cut at or before `at` that splits no character.
pub fn cut_before_char(bytes: &[u8], at: usize) -> usize {
    at - partial_char(&bytes[..at])
}
