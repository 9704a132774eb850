//! Tracks an HTTP/1.1 response below awc, to know whether its body really ended.
//!
//! awc reports a body that was cut by the peer's FIN as a clean end. The legacy image sends no outcome, so the last
//! chunk, or the last byte of a stated length, must be seen below awc. awc still parses the response.

use std::{cell::RefCell, mem, rc::Rc};

/// The longest line that is tracked, in bytes.
const MAX_LINE: usize = 16 * 1024;

/// The longest head that is held back, in bytes; as much as awc reads of one.
const MAX_HEAD: usize = 128 * 1024;

/// Tracks one response.
#[derive(Debug, Default)]
pub struct BodyTracker {
    state: TrackerState,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum TrackerState {
    #[default]
    StatusLine,
    Header(BodyLength),
    ChunkSize,
    ChunkEnd,
    Trailer,
    /// So many bytes of the body, or of a chunk of it.
    Bytes {
        left: u64,
        chunked: bool,
    },
    Complete,
    /// Neither a length nor chunks: the body ends with the connection, so that a proper end looks like a cut (RFC 9112
    /// section 6.3, rule 8).
    UntilClose,
    /// The framing is broken.
    Unknowable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BodyLength {
    Unstated,
    Sized(u64),
    Chunked,
}

impl BodyTracker {
    /// Whether the last byte of the body has passed.
    pub fn is_complete(&self) -> bool {
        self.state == TrackerState::Complete
    }

    /// Whether the head is still incomplete.
    fn is_in_head(&self) -> bool {
        matches!(self.state, TrackerState::StatusLine | TrackerState::Header(_))
    }

    /// Takes bytes from the socket.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = match self.state {
                TrackerState::Bytes { left, chunked } => {
                    let used = left.min(bytes.len() as u64);
                    self.state = after_bytes(left - used, chunked);
                    used as usize
                }
                TrackerState::Complete | TrackerState::UntilClose | TrackerState::Unknowable => return,
                state => self.read_line(state, bytes),
            };
            bytes = &bytes[used..];
        }
    }

    /// Takes bytes up to the end of a line. Returns their number.
    fn read_line(&mut self, state: TrackerState, bytes: &[u8]) -> usize {
        let newline = memchr::memchr(b'\n', bytes);
        let used = newline.map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(&bytes[..used]);
        if self.line.len() > MAX_LINE {
            self.state = TrackerState::Unknowable;
        } else if newline.is_some() {
            self.state = after_line(state, self.line.trim_ascii_end());
            self.line.clear();
        }
        used
    }
}

fn after_line(state: TrackerState, line: &[u8]) -> TrackerState {
    match state {
        TrackerState::StatusLine => TrackerState::Header(BodyLength::Unstated),
        TrackerState::Header(BodyLength::Unstated) if line.is_empty() => TrackerState::UntilClose,
        TrackerState::Header(BodyLength::Sized(length)) if line.is_empty() => after_bytes(length, false),
        TrackerState::Header(BodyLength::Chunked) if line.is_empty() => TrackerState::ChunkSize,
        TrackerState::Header(body) => after_header(line, body),
        TrackerState::ChunkSize => after_chunk_size(line),
        TrackerState::ChunkEnd if line.is_empty() => TrackerState::ChunkSize,
        TrackerState::Trailer if line.is_empty() => TrackerState::Complete,
        TrackerState::Trailer => TrackerState::Trailer,
        _ => TrackerState::Unknowable,
    }
}

fn after_header(line: &[u8], body: BodyLength) -> TrackerState {
    let line = String::from_utf8_lossy(line).to_ascii_lowercase();
    TrackerState::Header(match line.split_once(':').map(|(name, value)| (name, value.trim())) {
        Some(("transfer-encoding", value)) if value.ends_with("chunked") => BodyLength::Chunked,
        Some(("content-length", value)) if body != BodyLength::Chunked => match value.parse() {
            Ok(length) => BodyLength::Sized(length),
            Err(_) => return TrackerState::Unknowable,
        },
        _ => body,
    })
}

fn after_chunk_size(line: &[u8]) -> TrackerState {
    let text = String::from_utf8_lossy(line);
    match u64::from_str_radix(text.split(';').next().unwrap_or_default().trim(), 16) {
        Ok(0) => TrackerState::Trailer,
        Ok(left) => TrackerState::Bytes { left, chunked: true },
        Err(_) => TrackerState::Unknowable,
    }
}

fn after_bytes(left: u64, chunked: bool) -> TrackerState {
    match left {
        0 if chunked => TrackerState::ChunkEnd,
        0 => TrackerState::Complete,
        left => TrackerState::Bytes { left, chunked },
    }
}

/// Holds a response's head back until it is complete, and makes a body that only the close ends visible to awc.
///
/// awc reads such a body of an HTTP/1.0 response, but takes an HTTP/1.1 response without a length and without
/// chunks for one without a body, and drops what came (actix-http 3.20, `ResponseHead::decode`). So the version
/// in that response's status line is lowered.
#[derive(Debug, Default)]
pub struct HeadGate {
    tracker: BodyTracker,
    held: Vec<u8>,
    passed: bool,
}

impl HeadGate {
    /// Whether the head has passed, so that the bytes that follow need no gate.
    pub fn has_passed(&self) -> bool {
        self.passed
    }

    /// Takes bytes from the socket. Returns the head, and the bytes behind it, once the head is complete.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.tracker.follow(bytes);
        self.held.extend_from_slice(bytes);
        let waits = self.tracker.is_in_head() && self.held.len() <= MAX_HEAD;
        (!waits).then(|| self.open())
    }

    /// Returns the bytes held back, because the head is complete, too long, or cut off.
    pub fn open(&mut self) -> Vec<u8> {
        self.passed = true;
        let mut held = mem::take(&mut self.held);
        let is_until_close = self.tracker.state == TrackerState::UntilClose;
        if is_until_close && held.starts_with(b"HTTP/1.1 ") && may_have_body(&held) {
            held[b"HTTP/1.".len()] = b'0';
        }
        held
    }
}

/// Whether a response with this status line may have a body (RFC 9112 section 6.3, rule 1).
fn may_have_body(head: &[u8]) -> bool {
    let status = head.get(b"HTTP/1.1 ".len()..).and_then(|rest| rest.get(..3));
    status.is_some_and(|status| status[0] != b'1' && status != b"204" && status != b"304")
}

/// Tells whether the body of one response ended properly.
#[derive(Clone, Debug, Default)]
pub struct BodyEnd(pub(super) Rc<RefCell<BodyTracker>>);

impl BodyEnd {
    /// Whether the last byte of the body has been seen.
    pub fn is_complete(&self) -> bool {
        self.0.borrow().is_complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\n\r\n!\r\n0\r\nTrailer: 1\r\n\r\n";
    const SIZED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

    fn complete(pieces: &[&[u8]]) -> bool {
        let mut tracker = BodyTracker::default();
        for piece in pieces {
            tracker.follow(piece);
        }
        tracker.is_complete()
    }

    #[test]
    fn only_the_whole_response_is_complete_however_it_arrives() {
        for wire in [CHUNKED, SIZED] {
            for cut in 0..wire.len() {
                assert!(!complete(&[&wire[..cut]]), "cut at {cut} of {}", wire.len());
                assert!(complete(&[&wire[..cut], &wire[cut..]]), "in two pieces at {cut}");
            }
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            assert!(complete(&bytes));
        }
    }

    /// The bytes that awc reads when these pieces arrive.
    fn through_the_gate(pieces: &[&[u8]]) -> Vec<u8> {
        let mut gate = HeadGate::default();
        let mut read = Vec::new();
        for piece in pieces {
            if gate.has_passed() {
                read.extend_from_slice(piece);
            } else {
                read.extend(gate.push(piece).unwrap_or_default());
            }
        }
        if !gate.has_passed() {
            read.extend(gate.open());
        }
        read
    }

    #[test]
    fn only_a_head_without_a_length_and_without_chunks_is_changed() {
        let body = "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 \r\n\r\n";
        let table = [
            (format!("HTTP/1.1 200 OK\r\n\r\n{body}"), true),
            (format!("HTTP/1.1 200 OK\r\nConnection: close\r\nX-Y: z\r\n\r\n{body}"), true),
            (format!("HTTP/1.1 500 X\nTransfer-Encoding: identity\n\n{body}"), true),
            (format!("HTTP/1.0 200 OK\r\n\r\n{body}"), false),
            (format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n{body}"), false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_owned(), false),
            ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), false),
            ("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(), false),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".to_owned(), false),
            ("HTTP/1.1 200 OK\r\nConnection: clo".to_owned(), false),
            ("not HTTP at all".to_owned(), false),
        ];
        for (wire, changed) in table {
            let expected = if changed { wire.replacen("HTTP/1.1", "HTTP/1.0", 1) } else { wire.clone() };
            let wire = wire.as_bytes();
            for cut in 0..=wire.len() {
                let read = through_the_gate(&[&wire[..cut], &wire[cut..]]);
                assert_eq!(String::from_utf8_lossy(&read), expected, "in two pieces at {cut}");
            }
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            assert_eq!(String::from_utf8_lossy(&through_the_gate(&bytes)), expected);
        }
    }

    #[test]
    fn a_head_without_an_end_is_not_held_back_for_ever() {
        let mut gate = HeadGate::default();
        let line = b"X-Y: z\r\n".repeat(1024);
        let lines: Vec<_> =
            std::iter::repeat_n(&line, 20).map_while(|line| gate.push(line).is_none().then_some(())).collect();
        assert_eq!(lines.len(), MAX_HEAD / line.len());
        assert!(gate.has_passed());
    }

    #[test]
    fn a_body_that_only_the_close_ends_is_never_complete() {
        assert!(!complete(&[b"HTTP/1.1 200 OK\r\n\r\nhello"]));
        assert!(!complete(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"]));
    }
}
