//! Encodes pieces of output and events as messages: WebSocket frames for a client, JSON lines for the backend's stream
//! of that form. It cuts nothing but what is too long for one message; where a stream is cut is decided in
//! [`super::text`] and [`super::events`].

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    id::ExecutionId,
    output::escape::escape_into,
    stream::{PerStream, Stream},
    ws::frame::{self, OpenFrame},
};

/// The most bytes of a stream that go into one message. Escaped at the worst, six for one, it stays
/// far below the limit of a message.
pub const MAX_CONTENT: usize = 64 * 1024;

/// The longest incomplete character that waits for its rest, in bytes.
const MAX_PARTIAL_CHAR: usize = 3;

/// How many bytes at the end are the beginning of a character whose rest is missing: 0 to 3.
pub fn partial_char(bytes: &[u8]) -> usize {
    for back in 1..=MAX_PARTIAL_CHAR.min(bytes.len()) {
        let tail = &bytes[bytes.len() - back..];
        // Continuation bytes belong to a character that begins further to the front.
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

/// The largest cut at or below `at` that splits no character.
pub(super) fn cut_before_char(bytes: &[u8], at: usize) -> usize {
    at - partial_char(&bytes[..at])
}

/// What is around a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Envelope {
    /// A notification in a WebSocket frame.
    Frame,
    /// A JSON object and a newline.
    JsonLine,
}

/// Encodes messages, one after the other, into one buffer.
pub(super) struct Encoder {
    envelope: Envelope,
    pub(super) out: Vec<u8>,
    pub(super) end: PerStream<u64>,
    open: Option<OpenMessage>,
}

/// A message of text that still takes more of its stream.
struct OpenMessage {
    stream: Stream,
    frame: Option<OpenFrame>,
    len: usize,
}

impl Encoder {
    /// Nothing is encoded yet; the streams begin at these offsets.
    pub(super) fn new(envelope: Envelope, start: PerStream<u64>) -> Self {
        Encoder { envelope, out: Vec::new(), end: start, open: None }
    }

    /// Adds whole characters to the stream, in as few messages as may be.
    pub(super) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = match &self.open {
                Some(open) if open.stream == stream && open.len < MAX_CONTENT => MAX_CONTENT - open.len,
                _ => MAX_CONTENT,
            };
            let mut cut = if rest.len() <= room { rest.len() } else { cut_before_char(rest, room) };
            if cut == 0 {
                self.close();
                cut = cut_before_char(rest, rest.len().min(MAX_CONTENT)).max(1);
            }
            let (piece, later) = rest.split_at(cut);
            self.append_piece(stream, piece);
            rest = later;
        }
    }

    fn append_piece(&mut self, stream: Stream, piece: &[u8]) {
        if std::str::from_utf8(piece).is_err() {
            self.close();
            self.base64(stream, piece);
            return;
        }
        if self.open.as_ref().is_some_and(|open| open.stream != stream || open.len + piece.len() > MAX_CONTENT) {
            self.close();
        }
        let envelope = self.envelope;
        let open = self.open.get_or_insert_with(|| {
            let frame = envelope.begin(&mut self.out, piece.len() + 100);
            self.out.extend_from_slice(text_prefix(envelope, stream));
            OpenMessage { stream, frame, len: 0 }
        });
        escape_into(&mut self.out, piece);
        open.len += piece.len();
        *self.end.get_mut(stream) += piece.len() as u64;
    }

    /// Ends the open message.
    pub(super) fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let end = *self.end.get(open.stream);
            self.envelope.end(&mut self.out, open.frame, end);
        }
    }

    /// One message, or several where it is too long for one.
    pub(super) fn message(&mut self, stream: Stream, bytes: &[u8]) {
        self.append(stream, bytes);
        self.close();
    }

    /// Whole lines, each a message of its own.
    pub(super) fn lines(&mut self, stream: Stream, lines: &[u8]) {
        // A newline is never part of a longer character: if all is valid, so is each line.
        let valid = std::str::from_utf8(lines).is_ok();
        let mut from = 0;
        for at in memchr::memchr_iter(b'\n', lines) {
            let line = &lines[from..=at];
            from = at + 1;
            if valid && line.len() <= MAX_CONTENT {
                self.clean_line(stream, line);
            } else {
                self.message(stream, line);
            }
        }
    }

    /// One line of UTF-8 that fits a message. The path that every line of a busy stream takes.
    fn clean_line(&mut self, stream: Stream, line: &[u8]) {
        *self.end.get_mut(stream) += line.len() as u64;
        let end = *self.end.get(stream);
        let prefix = text_prefix(self.envelope, stream);
        let frame = self.envelope.begin(&mut self.out, prefix.len() + line.len() + 16);
        self.out.extend_from_slice(prefix);
        escape_into(&mut self.out, line);
        self.envelope.end(&mut self.out, frame, end);
    }

    fn base64(&mut self, stream: Stream, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_CONTENT) {
            *self.end.get_mut(stream) += piece.len() as u64;
            self.base64_piece(stream, piece, *self.end.get(stream));
        }
    }

    fn base64_piece(&mut self, stream: Stream, piece: &[u8], end: u64) {
        let frame = self.envelope.begin(&mut self.out, piece.len() * 4 / 3 + 100);
        self.out.extend_from_slice(base64_prefix(self.envelope, stream));
        push_base64(&mut self.out, piece);
        self.envelope.end(&mut self.out, frame, end);
    }

    /// How far a stream has come, where that is not counted from what is encoded.
    pub(super) fn end(&mut self, stream: Stream) -> &mut u64 {
        self.close();
        self.end.get_mut(stream)
    }

    /// One message of at most [`MAX_CONTENT`] bytes that counts nothing, with this `end`.
    pub(super) fn piece(&mut self, stream: Stream, piece: &[u8], end: u64) {
        self.close();
        if std::str::from_utf8(piece).is_err() {
            return self.base64_piece(stream, piece, end);
        }
        let frame = self.envelope.begin(&mut self.out, piece.len() + 100);
        self.out.extend_from_slice(text_prefix(self.envelope, stream));
        escape_into(&mut self.out, piece);
        self.envelope.end(&mut self.out, frame, end);
    }

    /// An event, as JSON.
    pub(super) fn event(&mut self, id: ExecutionId, json: &str, end: u64) {
        self.close();
        frame::write_text(&mut self.out, json.len() + 150, |out| {
            out.extend_from_slice(br#"{"jsonrpc":"2.0","method":"event","params":{"executionId":""#);
            out.extend_from_slice(id.to_string().as_bytes());
            out.extend_from_slice(br#"","event":"#);
            out.extend_from_slice(json.as_bytes());
            out.extend_from_slice(br#","end":"#);
            out.extend_from_slice(itoa::Buffer::new().format(end).as_bytes());
            out.extend_from_slice(b"}}");
        });
    }
}

impl Envelope {
    #[inline]
    fn begin(self, out: &mut Vec<u8>, about: usize) -> Option<OpenFrame> {
        match self {
            Envelope::Frame => Some(frame::begin_text(out, about)),
            Envelope::JsonLine => None,
        }
    }

    #[inline]
    fn end(self, out: &mut Vec<u8>, frame: Option<OpenFrame>, end: u64) {
        out.extend_from_slice(br#"","end":"#);
        out.extend_from_slice(itoa::Buffer::new().format(end).as_bytes());
        out.extend_from_slice(b"}}");
        match frame {
            Some(frame) => frame::end_text(out, frame),
            None => out.push(b'\n'),
        }
    }
}

fn text_prefix(envelope: Envelope, stream: Stream) -> &'static [u8] {
    match (envelope, stream) {
        (Envelope::Frame, Stream::Stdout) => {
            br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stdout","content":""#
        }
        (Envelope::Frame, Stream::Stderr) => {
            br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stderr","content":""#
        }
        (Envelope::JsonLine, Stream::Stdout) => br#"{"output":{"type":"stdout","content":""#,
        (Envelope::JsonLine, Stream::Stderr) => br#"{"output":{"type":"stderr","content":""#,
    }
}

fn base64_prefix(envelope: Envelope, stream: Stream) -> &'static [u8] {
    match (envelope, stream) {
        (Envelope::Frame, Stream::Stdout) => {
            br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stdout","contentBase64":""#
        }
        (Envelope::Frame, Stream::Stderr) => {
            br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stderr","contentBase64":""#
        }
        (Envelope::JsonLine, Stream::Stdout) => br#"{"output":{"type":"stdout","contentBase64":""#,
        (Envelope::JsonLine, Stream::Stderr) => br#"{"output":{"type":"stderr","contentBase64":""#,
    }
}

fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).expect("the room was made for it");
    debug_assert_eq!(start + written, out.len());
}
