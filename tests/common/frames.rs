//! WebSocket frames as bytes (RFC 6455 section 5.2), without a library, because tests also send malformed ones.

use std::io::{self, Read};

/// The first byte of a text frame: FIN and the opcode. The others likewise.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

/// A masked frame, as a client sends it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = frame_header(first, payload.len() as u64);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// The header of a masked frame that declares this payload length.
pub fn frame_header(first: u8, len: u64) -> Vec<u8> {
    let mut out = header(first, 0x80, len);
    out.extend(MASK);
    out
}

/// A masked text frame.
pub fn text_frame(text: &str) -> Vec<u8> {
    frame(TEXT, text.as_bytes())
}

/// A masked close frame.
pub fn close_frame(code: u16) -> Vec<u8> {
    frame(CLOSE, &code.to_be_bytes())
}

/// An unmasked frame, as a server sends it.
pub fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [header(first, 0, payload.len() as u64).as_slice(), payload].concat()
}

fn header(first: u8, mask_bit: u8, len: u64) -> Vec<u8> {
    let mut out = vec![first];
    match len {
        0..=125 => out.push(mask_bit | len as u8),
        126..=0xffff => {
            out.push(mask_bit | 126);
            out.extend((len as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend(len.to_be_bytes());
        }
    }
    out
}

/// A frame that was read, its payload unmasked.
pub struct RawFrame {
    pub first: u8,
    pub is_masked: bool,
    pub payload: Vec<u8>,
}

/// Reads one frame.
///
/// # Errors
///
/// Those of `from`: `UnexpectedEof` if it ends within the frame.
pub fn read_frame(from: &mut impl Read) -> io::Result<RawFrame> {
    let [first, second] = read_bytes(from)?;
    let len = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(read_bytes(from)?)),
        127 => u64::from_be_bytes(read_bytes(from)?),
        short => u64::from(short),
    };
    let is_masked = second & 0x80 != 0;
    let mask = if is_masked { read_bytes(from)? } else { [0; 4] };
    let mut payload = vec![0; len as usize];
    from.read_exact(&mut payload)?;
    if is_masked {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Ok(RawFrame { first, is_masked, payload })
}

fn read_bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
