//! Follows an HTTP/1.1 response as it passes by, to know whether its body really ended.
//!
//! awc reports a body that was cut by the peer's FIN as a clean end. The original's image has no last
//! word of its own, so the last chunk, or the last byte of a stated length, must be seen below awc.
//! This is only a follower: awc still does the parsing that counts.

/// How far the response has come.
#[derive(Debug, Default)]
pub struct Follower {
    state: State,
}

#[derive(Debug)]
enum State {
    Head {
        line: Vec<u8>,
        body: Body,
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
    /// The framing does not say where the body ends, or is broken.
    Unknowable,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Unstated,
    Sized(u64),
    Chunked,
}

/// The longest line of a head that is followed, in bytes.
const MAX_LINE: usize = 16 * 1024;

impl Default for State {
    fn default() -> Self {
        State::Head { line: Vec::new(), body: Body::Unstated, status_seen: false }
    }
}

impl Follower {
    /// Whether the last byte of the body has passed.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }

    /// Looks at what came from the socket.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (next, used) = step(std::mem::replace(&mut self.state, State::Unknowable), bytes);
            self.state = next;
            bytes = &bytes[used..];
        }
    }
}

/// One step over at least one byte: the next state, and how many bytes it took.
fn step(state: State, bytes: &[u8]) -> (State, usize) {
    match state {
        State::Head { line, body, status_seen } => match read_line(line, bytes) {
            Line::More(line, used) => (State::Head { line, body, status_seen }, used),
            Line::TooLong => (State::Unknowable, bytes.len()),
            Line::Done(line, used) => (after_head_line(&line, body, status_seen), used),
        },
        State::Sized { left } => {
            let used = left.min(bytes.len() as u64);
            (sized(left - used), used as usize)
        }
        State::ChunkSize { line } => match read_line(line, bytes) {
            Line::More(line, used) => (State::ChunkSize { line }, used),
            Line::TooLong => (State::Unknowable, bytes.len()),
            Line::Done(line, used) => (after_chunk_size(&line), used),
        },
        State::Chunk { left } => {
            let used = left.min(bytes.len() as u64);
            let next = if used == left { State::ChunkEnd { left: 2 } } else { State::Chunk { left: left - used } };
            (next, used as usize)
        }
        State::ChunkEnd { left } => match (left, bytes[0]) {
            (2, b'\r') => (State::ChunkEnd { left: 1 }, 1),
            (1, b'\n') => (State::ChunkSize { line: Vec::new() }, 1),
            _ => (State::Unknowable, bytes.len()),
        },
        State::Trailer { empty } => match bytes[0] {
            b'\n' if empty => (State::Complete, 1),
            b'\n' => (State::Trailer { empty: true }, 1),
            b'\r' => (State::Trailer { empty }, 1),
            _ => (State::Trailer { empty: false }, 1),
        },
        State::Complete => (State::Complete, bytes.len()),
        State::Unknowable => (State::Unknowable, bytes.len()),
    }
}

enum Line {
    More(Vec<u8>, usize),
    Done(Vec<u8>, usize),
    TooLong,
}

fn read_line(mut line: Vec<u8>, bytes: &[u8]) -> Line {
    let newline = memchr::memchr(b'\n', bytes);
    let used = newline.map_or(bytes.len(), |at| at + 1);
    if line.len() + used > MAX_LINE {
        return Line::TooLong;
    }
    line.extend_from_slice(&bytes[..used]);
    if newline.is_none() {
        return Line::More(line, used);
    }
    line.truncate(line.trim_ascii_end().len());
    Line::Done(line, used)
}

fn after_head_line(line: &[u8], body: Body, status_seen: bool) -> State {
    if !status_seen {
        return State::Head { line: Vec::new(), body, status_seen: true };
    }
    if line.is_empty() {
        return match body {
            Body::Unstated => State::Unknowable,
            Body::Sized(length) => sized(length),
            Body::Chunked => State::ChunkSize { line: Vec::new() },
        };
    }
    let line = String::from_utf8_lossy(line).to_ascii_lowercase();
    let body = match line.split_once(':').map(|(name, value)| (name, value.trim())) {
        Some(("transfer-encoding", value)) if value.ends_with("chunked") => Body::Chunked,
        Some(("content-length", value)) if !matches!(body, Body::Chunked) => match value.parse() {
            Ok(length) => Body::Sized(length),
            Err(_) => return State::Unknowable,
        },
        _ => body,
    };
    State::Head { line: Vec::new(), body, status_seen }
}

fn sized(left: u64) -> State {
    if left == 0 { State::Complete } else { State::Sized { left } }
}

fn after_chunk_size(line: &[u8]) -> State {
    let text = String::from_utf8_lossy(line);
    let size = text.split(';').next().unwrap_or_default().trim();
    match u64::from_str_radix(size, 16) {
        Ok(0) => State::Trailer { empty: true },
        Ok(left) => State::Chunk { left },
        Err(_) => State::Unknowable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\n\r\n!\r\n0\r\nTrailer: 1\r\n\r\n";
    const SIZED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

    fn complete(pieces: &[&[u8]]) -> bool {
        let mut follower = Follower::default();
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

    #[test]
    fn a_body_that_only_the_close_ends_is_never_complete() {
        assert!(!complete(&[b"HTTP/1.1 200 OK\r\n\r\nhello"]));
        assert!(!complete(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"]));
    }
}
