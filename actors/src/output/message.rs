//! Encodes messages into one buffer: the hot path of output.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{EventSink, MAX_CONTENT, cut_before_char, escape::escape_into};
use crate::{
    id::ExecutionId,
    stream::{PerStream, Stream},
};

/// The format of a message with a piece of a stream. The content is appended between `begin_…` and `end`: text as the
/// inside of a JSON string, or base64.
pub trait MessageFormat {
    /// An unfinished message.
    type Open: Copy;

    /// Begins a message of about `len` bytes of text.
    fn begin_text(&self, out: &mut Vec<u8>, stream: Stream, len: usize) -> Self::Open;

    /// Begins a message of `len` bytes that are not UTF-8.
    fn begin_base64(&self, out: &mut Vec<u8>, stream: Stream, len: usize) -> Self::Open;

    /// Ends the message, with the stream's offset after it.
    fn end(&self, out: &mut Vec<u8>, open: Self::Open, end: u64);

    /// Writes an agent's event. By default a format has no events.
    fn event(&self, _out: &mut Vec<u8>, _id: ExecutionId, _json: &str, _end: u64) {}
}

/// Appends the end of a JSON message: the closing quote of the content, and the offset after it.
#[inline]
pub fn push_end(out: &mut Vec<u8>, end: u64) {
    out.extend_from_slice(br#"","end":"#);
    out.extend_from_slice(itoa::Buffer::new().format(end).as_bytes());
    out.extend_from_slice(b"}}");
}

/// Encodes messages of one format.
pub(super) struct MessageEncoder<F: MessageFormat> {
    format: F,
    out: Vec<u8>,
    end: PerStream<u64>,
    open: Option<OpenMessage<F::Open>>,
}

/// An unfinished message, to which more text of its stream is added.
struct OpenMessage<O> {
    stream: Stream,
    message: O,
    len: usize,
}

impl<F: MessageFormat> MessageEncoder<F> {
    pub(super) fn new(format: F, end: PerStream<u64>) -> Self {
        MessageEncoder { format, out: Vec::new(), end, open: None }
    }

    /// Adds whole characters to the stream, in as few messages as possible.
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
        let open = self.open.get_or_insert_with(|| {
            let message = self.format.begin_text(&mut self.out, stream, piece.len());
            OpenMessage { stream, message, len: 0 }
        });
        escape_into(&mut self.out, piece);
        open.len += piece.len();
        *self.end.get_mut(stream) += piece.len() as u64;
    }

    /// Finishes the open message.
    pub(super) fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let end = *self.end.get(open.stream);
            self.format.end(&mut self.out, open.message, end);
        }
    }

    /// Adds bytes as one message, or as several if they are too long for one.
    pub(super) fn message(&mut self, stream: Stream, bytes: &[u8]) {
        self.append(stream, bytes);
        self.close();
    }

    /// Adds whole lines, each as a message.
    pub(super) fn lines(&mut self, stream: Stream, lines: &[u8]) {
        // A newline is never part of a longer character, so each line of valid UTF-8 is valid.
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

    /// Adds a line of UTF-8 that fits into a message: the path of almost every line.
    fn clean_line(&mut self, stream: Stream, line: &[u8]) {
        *self.end.get_mut(stream) += line.len() as u64;
        let end = *self.end.get(stream);
        let message = self.format.begin_text(&mut self.out, stream, line.len());
        escape_into(&mut self.out, line);
        self.format.end(&mut self.out, message, end);
    }

    fn base64(&mut self, stream: Stream, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_CONTENT) {
            *self.end.get_mut(stream) += piece.len() as u64;
            self.base64_piece(stream, piece, *self.end.get(stream));
        }
    }

    fn base64_piece(&mut self, stream: Stream, piece: &[u8], end: u64) {
        let message = self.format.begin_base64(&mut self.out, stream, piece.len());
        push_base64(&mut self.out, piece);
        self.format.end(&mut self.out, message, end);
    }

    /// Moves the offset of a stream without a message.
    pub(super) fn set_end(&mut self, stream: Stream, end: u64) {
        self.close();
        *self.end.get_mut(stream) = end;
    }

    /// The offset of each stream.
    pub(super) fn ends(&self) -> PerStream<u64> {
        self.end
    }

    /// Bytes encoded and not yet taken.
    pub(super) fn encoded_len(&self) -> usize {
        self.out.len()
    }

    /// Takes the messages encoded so far.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.close();
        let capacity = self.out.capacity();
        std::mem::replace(&mut self.out, Vec::with_capacity(capacity.min(2 * MAX_CONTENT)))
    }
}

impl<F: MessageFormat> EventSink for MessageEncoder<F> {
    fn advance(&mut self, end: u64) {
        self.set_end(Stream::Stdout, end);
    }

    fn text(&mut self, text: &[u8], end: u64) {
        self.close();
        if std::str::from_utf8(text).is_err() {
            return self.base64_piece(Stream::Stdout, text, end);
        }
        let message = self.format.begin_text(&mut self.out, Stream::Stdout, text.len());
        escape_into(&mut self.out, text);
        self.format.end(&mut self.out, message, end);
    }

    fn event(&mut self, id: ExecutionId, json: &str, end: u64) {
        self.close();
        self.format.event(&mut self.out, id, json, end);
    }
}

fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).expect("the buffer has room for the base64");
    debug_assert_eq!(start + written, out.len());
}
