//! Cuts the bytes of the two output streams into messages, and encodes these: as WebSocket frames for a
//! client, as JSON lines for the backend's stream of that form.
//!
//! Concatenating the contents gives the stream byte for byte: newlines are kept and no character is
//! split over two messages. What is not UTF-8 goes as base64. This module knows no clock: its caller
//! says when a stream has been quiet ([`Text::flush_quiet`]) and when it has ended ([`Text::finish`]).

use super::{
    encoder::{Encoder, Envelope, cut_before_char},
    events::EventReader,
};
pub use super::{
    encoder::{MAX_CONTENT, partial_char},
    events::EventStep,
};
use crate::{
    id::ExecutionId,
    protocol::Framing,
    stream::{Gap, PerStream, Stream},
};

/// Both streams of one execution on their way to one client.
pub struct Text {
    framing: Framing,
    encoder: Encoder,
    carry: PerStream<Vec<u8>>,
    /// Where standard output is Claude's events.
    events: Option<EventReader>,
}

impl Text {
    /// Nothing has been written yet; what will be begins at these offsets.
    pub fn new(framing: Framing, start: PerStream<u64>) -> Self {
        let encoder = Encoder::new(Envelope::Frame, start);
        Text { framing, encoder, carry: PerStream::default(), events: None }
    }

    /// The same where standard output is Claude's events. They are told under this id, if they are wanted.
    pub fn of_claude(framing: Framing, start: PerStream<u64>, wanted: Option<ExecutionId>) -> Self {
        let events = Some(EventReader::new(framing, start.stdout, wanted));
        Text { events, ..Text::new(framing, start) }
    }

    /// The same in chunks, with each message a line of JSON instead of a frame.
    pub fn json_lines(start: PerStream<u64>) -> Self {
        let encoder = Encoder::new(Envelope::JsonLine, start);
        Text { framing: Framing::Chunk, encoder, carry: PerStream::default(), events: None }
    }

    /// Takes bytes of a stream. Of Claude's events nothing is encoded yet: see [`Text::step`].
    pub fn feed(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(events) = self.events.as_mut().filter(|_| stream == Stream::Stdout) {
            return events.feed(bytes);
        }
        let carry = self.carry.get_mut(stream);
        match self.framing {
            Framing::Chunk => feed_chunk(&mut self.encoder, stream, carry, bytes),
            Framing::Line => feed_lines(&mut self.encoder, stream, carry, bytes),
        }
    }

    /// Encodes a little more of Claude's events.
    pub fn step(&mut self) -> EventStep {
        self.events.as_mut().map_or(EventStep::Dry, |events| events.step(&mut self.encoder))
    }

    /// Whether an unfinished line of this stream waits, which [`Text::flush_quiet`] would release.
    pub fn has_unfinished_line(&self, stream: Stream) -> bool {
        let carry = self.carry.get(stream);
        carry.len() > partial_char(carry)
    }

    /// Releases an unfinished line; an incomplete character still waits.
    pub fn flush_quiet(&mut self, stream: Stream) {
        let carry = self.carry.get_mut(stream);
        let keep = carry.split_off(carry.len() - partial_char(carry));
        self.encoder.message(stream, &std::mem::replace(carry, keep));
    }

    /// Goes on where the gap ends: its bytes are lost. What waited is released first. Gives the gap that
    /// is to be told now; one in Claude's events is told where the next of them begins.
    pub fn skip(&mut self, gap: Gap) -> Option<Gap> {
        if let Some(events) = self.events.as_mut().filter(|_| gap.stream == Stream::Stdout) {
            events.skip(gap);
            return None;
        }
        let rest = std::mem::take(self.carry.get_mut(gap.stream));
        self.encoder.message(gap.stream, &rest);
        *self.encoder.end.get_mut(gap.stream) = gap.to;
        Some(gap)
    }

    /// Releases everything: nothing more will come, because the execution has ended or because it is
    /// followed no further. Claude's last event may still need its steps.
    pub fn finish(&mut self, ended: bool) {
        if let Some(events) = &mut self.events {
            events.finish(ended);
        }
        for stream in Stream::BOTH {
            let rest = std::mem::take(self.carry.get_mut(stream));
            self.encoder.message(stream, &rest);
        }
    }

    /// How far each stream has come with what is encoded.
    pub fn offsets(&self) -> PerStream<u64> {
        self.encoder.end
    }

    /// Bytes encoded and not yet taken.
    pub fn encoded_len(&self) -> usize {
        self.encoder.out.len()
    }

    /// Takes the messages encoded so far, and how far each stream has come with them.
    pub fn take(&mut self) -> (Vec<u8>, PerStream<u64>) {
        self.encoder.close();
        let capacity = self.encoder.out.capacity();
        let frames = std::mem::replace(&mut self.encoder.out, Vec::with_capacity(capacity.min(2 * MAX_CONTENT)));
        (frames, self.encoder.end)
    }
}

fn feed_chunk(encoder: &mut Encoder, stream: Stream, carry: &mut Vec<u8>, mut bytes: &[u8]) {
    // First the rest of a character that began in an earlier piece.
    while !carry.is_empty() {
        let Some((&byte, rest)) = bytes.split_first() else { return };
        carry.push(byte);
        bytes = rest;
        if partial_char(carry) == 0 {
            encoder.append(stream, carry);
            carry.clear();
        }
    }
    let whole = bytes.len() - partial_char(bytes);
    encoder.append(stream, &bytes[..whole]);
    carry.extend_from_slice(&bytes[whole..]);
}

fn feed_lines(encoder: &mut Encoder, stream: Stream, carry: &mut Vec<u8>, mut bytes: &[u8]) {
    if !carry.is_empty() {
        let line_end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
        let (line, rest) = bytes.split_at(line_end.unwrap_or(bytes.len()));
        carry.extend_from_slice(line);
        bytes = rest;
        if line_end.is_some() {
            encoder.message(stream, carry);
            carry.clear();
        }
    }
    if let Some(last) = memchr::memrchr(b'\n', bytes) {
        let (lines, rest) = bytes.split_at(last + 1);
        encoder.lines(stream, lines);
        bytes = rest;
    }
    carry.extend_from_slice(bytes);
    // A line too long for one message goes in pieces, and its last piece waits for the newline.
    while carry.len() > MAX_CONTENT {
        let piece = cut_before_char(carry, MAX_CONTENT);
        encoder.message(stream, &carry[..piece]);
        carry.drain(..piece);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::stream::GapReason;

    /// Reads frames back as a client would.
    pub fn messages(mut wire: &[u8]) -> Vec<Value> {
        let mut found = Vec::new();
        while !wire.is_empty() {
            assert_eq!(wire[0], 0x81);
            let (header, len) = match wire[1] {
                127 => (10, u64::from_be_bytes(wire[2..10].try_into().unwrap()) as usize),
                126 => (4, usize::from(u16::from_be_bytes(wire[2..4].try_into().unwrap()))),
                short => (2, usize::from(short)),
            };
            found.push(serde_json::from_slice(&wire[header..header + len]).expect("a message is JSON"));
            wire = &wire[header + len..];
        }
        found
    }

    fn content(message: &Value) -> (Stream, Vec<u8>, u64) {
        let params = &message["params"];
        let stream = if params["type"] == "stdout" { Stream::Stdout } else { Stream::Stderr };
        let bytes = match params["content"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => STANDARD.decode(params["contentBase64"].as_str().unwrap()).unwrap(),
        };
        assert!(!bytes.is_empty(), "no empty messages");
        assert!(bytes.len() <= MAX_CONTENT);
        (stream, bytes, params["end"].as_u64().unwrap())
    }

    fn run(framing: Framing, pieces: &[(Stream, Vec<u8>)], take_every: usize) -> Vec<Value> {
        let mut text = Text::new(framing, PerStream::default());
        let mut wire = Vec::new();
        for (n, (stream, piece)) in pieces.iter().enumerate() {
            text.feed(*stream, piece);
            if n % take_every == 0 {
                wire.extend(text.take().0);
            }
        }
        text.finish(true);
        wire.extend(text.take().0);
        messages(&wire)
    }

    fn check(framing: Framing, pieces: &[(Stream, Vec<u8>)], take_every: usize) {
        let mut sent: PerStream<Vec<u8>> = PerStream::default();
        for (stream, piece) in pieces {
            sent.get_mut(*stream).extend_from_slice(piece);
        }
        let mut got: PerStream<Vec<u8>> = PerStream::default();
        for message in run(framing, pieces, take_every) {
            let (stream, bytes, end) = content(&message);
            if framing == Framing::Line {
                let newline = bytes.iter().position(|b| *b == b'\n');
                assert!(newline.is_none_or(|at| at == bytes.len() - 1), "one line in a message");
            }
            got.get_mut(stream).extend(bytes);
            assert_eq!(got.get(stream).len() as u64, end);
        }
        assert_eq!(got, sent);
    }

    /// Text with characters of every length, control characters, newlines, and bytes that are no text.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            "[a-z\n\"\\\\\u{1}]{0,40}".prop_map(String::into_bytes),
            "[é€😀\n]{0,20}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..20),
        ]
    }

    fn pieces() -> impl Strategy<Value = Vec<(Stream, Vec<u8>)>> {
        let stream = prop_oneof![3 => Just(Stream::Stdout), 1 => Just(Stream::Stderr)];
        prop::collection::vec((stream, bytes()), 0..30)
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_added_or_moved(pieces in pieces(), every in 1usize..5) {
            check(Framing::Chunk, &pieces, every);
            check(Framing::Line, &pieces, every);
        }

        #[test]
        fn text_cut_anywhere_is_never_sent_as_base64(text in "[aé€😀\n]{1,60}", cut in 0usize..200, framing in 0..2) {
            let cut = cut.min(text.len());
            let (a, b) = text.as_bytes().split_at(cut);
            let pieces = [(Stream::Stdout, a.to_vec()), (Stream::Stdout, b.to_vec())];
            let framing = if framing == 0 { Framing::Chunk } else { Framing::Line };
            for message in run(framing, &pieces, 1) {
                prop_assert!(message["params"]["content"].is_string());
            }
        }
    }

    #[test]
    fn long_streams_are_cut_at_the_limit_and_between_characters() {
        for unit in ["x", "é", "€", "😀", "xé€😀"] {
            for newline in ["", "\n"] {
                let long = (unit.repeat(200_000 / unit.len()) + newline).into_bytes();
                for framing in [Framing::Chunk, Framing::Line] {
                    for size in [1_000, 8_191, 65_536, 300_000] {
                        let pieces: Vec<_> = long.chunks(size).map(|p| (Stream::Stdout, p.to_vec())).collect();
                        check(framing, &pieces, 3);
                        let sent = run(framing, &pieces, 1_000);
                        assert!(sent.iter().all(|m| m["params"]["content"].is_string()));
                        assert!(sent.len() <= 5, "{} messages for 200 000 bytes in {framing:?}", sent.len());
                    }
                }
            }
        }
    }

    #[test]
    fn a_quiet_line_is_released_but_not_half_a_character() {
        let mut text = Text::new(Framing::Line, PerStream::default());
        text.feed(Stream::Stdout, b"prompt> \xe2\x82");
        assert_eq!(text.take().0.len(), 0);
        assert!(text.has_unfinished_line(Stream::Stdout));
        text.flush_quiet(Stream::Stdout);
        assert!(!text.has_unfinished_line(Stream::Stdout));
        assert_eq!(content(&messages(&text.take().0)[0]).1, b"prompt> ");
        text.feed(Stream::Stdout, b"\xac\n");
        assert_eq!(content(&messages(&text.take().0)[0]).1, "€\n".as_bytes());
    }

    #[test]
    fn after_a_gap_the_offsets_go_on_where_it_ends() {
        let mut text = Text::new(Framing::Line, PerStream { stdout: 10, stderr: 0 });
        text.feed(Stream::Stdout, b"half a li");
        let gap = Gap { stream: Stream::Stdout, from: 19, to: 100, reason: GapReason::Dropped };
        assert_eq!(text.skip(gap), Some(gap));
        text.feed(Stream::Stdout, b"whole\n");
        let ends: Vec<_> = messages(&text.take().0).iter().map(|message| content(message).2).collect();
        assert_eq!(ends, [19, 106]);
    }

    #[test]
    fn a_binary_stream_goes_in_large_pieces() {
        let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let sent = run(Framing::Chunk, &[(Stream::Stdout, noise)], 1);
        assert!(sent.len() <= 5, "{} messages", sent.len());
    }
}
