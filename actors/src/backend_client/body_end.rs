//! Follows an HTTP/1.1 response as it passes by, to know whether its body really ended.
//!
//! awc reports a body that was cut by the peer's FIN as a clean end. The legacy image has no last
//! word of its own, so the last chunk, or the last byte of a stated length, must be seen below awc.
//! This is only a follower: awc still does the parsing that counts.

use std::{cell::RefCell, rc::Rc};

/// How far the response has come.
#[derive(Debug, Default)]
pub struct BodyTracker {
    state: TrackerState,
}

#[derive(Debug)]
enum TrackerState {
    Head {
        line: Vec<u8>,
        body: BodyLength,
        status_seen: bool,
    },
    Sized {
        left: u64,
    },
    ChunkSize {
        line: Vec<u8>,
    },
    Chunk {
        left: u64,
    },
    ChunkEnd {
        left: u8,
    },
    Trailer {
        empty: bool,
    },
    Complete,
    /// Neither a length nor chunks: the body goes on until the connection is closed, so nothing tells its end
    /// from a cut (RFC 9112 section 6.3, rule 8).
    UntilClose,
    /// The framing is broken.
    Unknowable,
}

#[derive(Clone, Copy, Debug)]
enum BodyLength {
    Unstated,
    Sized(u64),
    Chunked,
}

/// The longest line of a head that is followed, in bytes.
const MAX_LINE: usize = 16 * 1024;

impl Default for TrackerState {
    fn default() -> Self {
        TrackerState::Head { line: Vec::new(), body: BodyLength::Unstated, status_seen: false }
    }
}

impl BodyTracker {
    /// Whether the last byte of the body has passed.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, TrackerState::Complete)
    }

    /// Whether the head is still incomplete.
    fn is_in_head(&self) -> bool {
        matches!(self.state, TrackerState::Head { .. })
    }

    /// Looks at what came from the socket.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (next, used) = step(std::mem::replace(&mut self.state, TrackerState::Unknowable), bytes);
            self.state = next;
            bytes = &bytes[used..];
        }
    }
}

/// Holds a response's head back until it is complete, and makes a body that only the close ends visible to awc.
///
/// awc reads such a body of an HTTP/1.0 response, but takes an HTTP/1.1 response without a length and without
/// chunks for one without a body, and drops what came (actix-http 3.20, `ResponseHead::decode`). So the version
/// in that response's status line is lowered.
#[derive(Debug, Default)]
pub struct HeadGate {
    follower: BodyTracker,
    held: Vec<u8>,
    passed: bool,
}

/// The longest head that is held back, in bytes; as much as awc reads of one.
const MAX_HEAD: usize = 128 * 1024;

impl HeadGate {
    /// Whether the head has passed: what comes now needs no gate.
    pub fn has_passed(&self) -> bool {
        self.passed
    }

    /// Takes what came from the socket. Gives the head, and what came behind it, once that is complete.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.follower.follow(bytes);
        self.held.extend_from_slice(bytes);
        let waits = self.follower.is_in_head() && self.held.len() <= MAX_HEAD;
        (!waits).then(|| self.open())
    }

    /// Gives what is held back: nothing more will come, or no more is waited for.
    pub fn open(&mut self) -> Vec<u8> {
        self.passed = true;
        let mut held = std::mem::take(&mut self.held);
        if matches!(self.follower.state, TrackerState::UntilClose)
            && held.starts_with(b"HTTP/1.1 ")
            && may_have_body(&held)
        {
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

/// One step over at least one byte: the next state, and how many bytes it took.
fn step(state: TrackerState, bytes: &[u8]) -> (TrackerState, usize) {
    match state {
        TrackerState::Head { line, body, status_seen } => match read_line(line, bytes) {
            HeaderLine::More(line, used) => (TrackerState::Head { line, body, status_seen }, used),
            HeaderLine::TooLong => (TrackerState::Unknowable, bytes.len()),
            HeaderLine::Done(line, used) => (after_head_line(&line, body, status_seen), used),
        },
        TrackerState::Sized { left } => {
            let used = left.min(bytes.len() as u64);
            (sized(left - used), used as usize)
        }
        TrackerState::ChunkSize { line } => match read_line(line, bytes) {
            HeaderLine::More(line, used) => (TrackerState::ChunkSize { line }, used),
            HeaderLine::TooLong => (TrackerState::Unknowable, bytes.len()),
            HeaderLine::Done(line, used) => (after_chunk_size(&line), used),
        },
        TrackerState::Chunk { left } => {
            let used = left.min(bytes.len() as u64);
            let next = if used == left {
                TrackerState::ChunkEnd { left: 2 }
            } else {
                TrackerState::Chunk { left: left - used }
            };
            (next, used as usize)
        }
        TrackerState::ChunkEnd { left } => match (left, bytes[0]) {
            (2, b'\r') => (TrackerState::ChunkEnd { left: 1 }, 1),
            (1, b'\n') => (TrackerState::ChunkSize { line: Vec::new() }, 1),
            _ => (TrackerState::Unknowable, bytes.len()),
        },
        TrackerState::Trailer { empty } => match bytes[0] {
            b'\n' if empty => (TrackerState::Complete, 1),
            b'\n' => (TrackerState::Trailer { empty: true }, 1),
            b'\r' => (TrackerState::Trailer { empty }, 1),
            _ => (TrackerState::Trailer { empty: false }, 1),
        },
        TrackerState::Complete => (TrackerState::Complete, bytes.len()),
        TrackerState::UntilClose => (TrackerState::UntilClose, bytes.len()),
        TrackerState::Unknowable => (TrackerState::Unknowable, bytes.len()),
    }
}

enum HeaderLine {
    More(Vec<u8>, usize),
    Done(Vec<u8>, usize),
    TooLong,
}

fn read_line(mut line: Vec<u8>, bytes: &[u8]) -> HeaderLine {
    let newline = memchr::memchr(b'\n', bytes);
    let used = newline.map_or(bytes.len(), |at| at + 1);
    if line.len() + used > MAX_LINE {
        return HeaderLine::TooLong;
    }
    line.extend_from_slice(&bytes[..used]);
    if newline.is_none() {
        return HeaderLine::More(line, used);
    }
    line.truncate(line.trim_ascii_end().len());
    HeaderLine::Done(line, used)
}

fn after_head_line(line: &[u8], body: BodyLength, status_seen: bool) -> TrackerState {
    if !status_seen {
        return TrackerState::Head { line: Vec::new(), body, status_seen: true };
    }
    if line.is_empty() {
        return match body {
            BodyLength::Unstated => TrackerState::UntilClose,
            BodyLength::Sized(length) => sized(length),
            BodyLength::Chunked => TrackerState::ChunkSize { line: Vec::new() },
        };
    }
    let line = String::from_utf8_lossy(line).to_ascii_lowercase();
    let body = match line.split_once(':').map(|(name, value)| (name, value.trim())) {
        Some(("transfer-encoding", value)) if value.ends_with("chunked") => BodyLength::Chunked,
        Some(("content-length", value)) if !matches!(body, BodyLength::Chunked) => match value.parse() {
            Ok(length) => BodyLength::Sized(length),
            Err(_) => return TrackerState::Unknowable,
        },
        _ => body,
    };
    TrackerState::Head { line: Vec::new(), body, status_seen }
}

fn sized(left: u64) -> TrackerState {
    if left == 0 { TrackerState::Complete } else { TrackerState::Sized { left } }
}

fn after_chunk_size(line: &[u8]) -> TrackerState {
    let text = String::from_utf8_lossy(line);
    let size = text.split(';').next().unwrap_or_default().trim();
    match u64::from_str_radix(size, 16) {
        Ok(0) => TrackerState::Trailer { empty: true },
        Ok(left) => TrackerState::Chunk { left },
        Err(_) => TrackerState::Unknowable,
    }
}

/// Tells whether the body of one response ended properly.
#[derive(Clone, Default)]
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
        let mut follower = BodyTracker::default();
        for piece in pieces {
            follower.follow(piece);
        }
        follower.is_complete()
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

    /// What awc reads of these pieces.
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
