//! JSON string escaping on the hot path of output.
//!
//! Most output needs no escaping except for its newlines, so the work is to find the next byte to escape and to copy
//! the bytes before it. The search looks at 32 bytes at a time, in a form that compilers turn into vector
//! instructions, then at 8 bytes in a word.

/// Appends `text`, which must be UTF-8, as the inside of a JSON string (RFC 8259 section 7).
pub fn escape_into(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let clean = clean_prefix(rest);
        out.extend_from_slice(&rest[..clean]);
        let Some(&byte) = rest.get(clean) else { return };
        push_escape(out, byte);
        rest = &rest[clean + 1..];
    }
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'\n' => b'n',
        b'"' | b'\\' => byte,
        b'\t' => b't',
        b'\r' => b'r',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// The number of bytes at the start that need no escaping.
fn clean_prefix(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = bytes.get(at..at + 32) {
        // No early exit inside the block, because that would prevent vectorisation.
        if block.iter().fold(false, |found, &b| found | needs_escape(b)) {
            break;
        }
        at += 32;
    }
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let found = escapes_in(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let tail = &bytes[at..];
    at + tail.iter().position(|&b| needs_escape(b)).unwrap_or(tail.len())
}

#[inline]
fn needs_escape(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// Sets the high bit of each byte that needs escaping. Borrows can set wrong bits above the lowest one; only the lowest
/// one is used.
fn escapes_in(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zeros = |w: u64| w.wrapping_sub(ONES) & !w;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word;
    (below_space | zeros(word ^ (ONES * 0x22)) | zeros(word ^ (ONES * 0x5c))) & HIGHS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = vec![b'"'];
        escape_into(&mut out, text.as_bytes());
        out.push(b'"');
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_ascii_byte_is_escaped_at_each_position_of_a_block() {
        for byte in 0..128u8 {
            for at in 0..70 {
                let mut text = "x".repeat(70).into_bytes();
                text[at] = byte;
                let text = String::from_utf8(text).unwrap();
                assert_eq!(serde_json::from_str::<String>(&escaped(&text)).unwrap(), text);
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(text in "(?s).{0,200}") {
            prop_assert_eq!(serde_json::from_str::<String>(&escaped(&text)).unwrap(), text);
        }
    }
}
