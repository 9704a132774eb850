//! WebSocket frames from the server (RFC 6455 section 5.2): unmasked, unfragmented, written in place.

use bytes::Bytes;
use serde::Serialize;

const FIN_TEXT: u8 = 0x81;
const FIN_CLOSE: u8 = 0x88;
const FIN_PING: u8 = 0x89;
const FIN_PONG: u8 = 0x8a;

/// The longest payload of a control frame, in bytes (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// Appends one text frame with the payload that `fill` appends. `about` is the approximate length of the payload: if the
/// real length needs a header of another size, the payload is moved.
pub fn write_text(out: &mut Vec<u8>, about: usize, fill: impl FnOnce(&mut Vec<u8>)) {
    let frame = begin_text(out, about);
    fill(out);
    end_text(out, frame);
}

/// An unfinished text frame.
#[derive(Clone, Copy, Debug)]
pub struct OpenFrame {
    start: usize,
    header: usize,
}

/// Begins a text frame of about `about` bytes. The bytes that are appended before [`end_text`] are its payload.
pub fn begin_text(out: &mut Vec<u8>, about: usize) -> OpenFrame {
    let frame = OpenFrame { start: out.len(), header: header_len(about) };
    out.resize(frame.start + frame.header, 0);
    frame
}

/// Ends the frame that [`begin_text`] began, with the shortest header for its length.
pub fn end_text(out: &mut Vec<u8>, frame: OpenFrame) {
    let OpenFrame { start, header } = frame;
    let len = out.len() - start - header;
    let right = header_len(len);
    match right.cmp(&header) {
        std::cmp::Ordering::Equal => {}
        std::cmp::Ordering::Less => {
            out.drain(start + right..start + header);
        }
        std::cmp::Ordering::Greater => {
            out.splice(start + header..start + header, std::iter::repeat_n(0, right - header));
        }
    }
    out[start] = FIN_TEXT;
    match right {
        2 => out[start + 1] = len as u8,
        4 => {
            out[start + 1] = 126;
            out[start + 2..start + 4].copy_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out[start + 1] = 127;
            out[start + 2..start + 10].copy_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

fn header_len(payload: usize) -> usize {
    match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// One message as a text frame.
pub fn text(message: &impl Serialize) -> Bytes {
    let mut out = Vec::with_capacity(256);
    write_text(&mut out, 200, |out| {
        serde_json::to_writer(out, message).expect("messages have string keys and writing to memory cannot fail");
    });
    Bytes::from(out)
}

/// A close frame. The reason is cut at a character boundary to the length that a control frame can hold.
pub fn close(code: u16, reason: &str) -> Bytes {
    let room = MAX_CONTROL_PAYLOAD - 2;
    let reason = &reason[..reason.floor_char_boundary(room)];
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    control(FIN_CLOSE, &payload)
}

/// A ping frame.
pub fn ping(payload: &[u8]) -> Bytes {
    control(FIN_PING, payload)
}

/// The pong that answers a ping with this payload.
pub fn pong(payload: &[u8]) -> Bytes {
    control(FIN_PONG, payload)
}

fn control(first: u8, payload: &[u8]) -> Bytes {
    let payload = &payload[..payload.len().min(MAX_CONTROL_PAYLOAD)];
    let mut out = Vec::with_capacity(2 + payload.len());
    out.extend_from_slice(&[first, payload.len() as u8]);
    out.extend_from_slice(payload);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_shortest_for_any_approximate_length() {
        for about in [0, 125, 126, 65_535, 65_536] {
            for len in [0usize, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
                let mut out = b"before".to_vec();
                write_text(&mut out, about, |out| out.resize(out.len() + len, b'x'));
                let frame = &out[6..];
                assert_eq!(frame[0], FIN_TEXT);
                let (header, stated) = match frame[1] {
                    127 => (10, u64::from_be_bytes(frame[2..10].try_into().unwrap()) as usize),
                    126 => (4, usize::from(u16::from_be_bytes(frame[2..4].try_into().unwrap()))),
                    short => (2, usize::from(short)),
                };
                assert_eq!((header, stated), (header_len(len), len), "guessed {about}");
                assert!(frame[header..].iter().all(|&b| b == b'x'));
                assert_eq!(frame.len(), header + len);
            }
        }
    }

    #[test]
    fn a_long_close_reason_is_cut_between_characters() {
        let frame = close(1008, &"é".repeat(100));
        assert!(frame.len() <= 2 + MAX_CONTROL_PAYLOAD);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }
}
