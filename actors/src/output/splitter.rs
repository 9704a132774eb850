//! Cuts the bytes of the two output streams into messages.
//!
//! The contents in order are the stream, byte for byte: newlines are kept, no character is split between two messages,
//! and bytes that are not UTF-8 are sent as base64.

use super::{
    AgentReader, EventStep, MAX_CONTENT, OutputEncoder, OutputOptions, cut_before_char,
    message::{MessageEncoder, MessageFormat},
    partial_char,
};
use crate::{
    protocol::Framing,
    stream::{Gap, PerStream, Stream},
};

/// The encoder of both streams of one execution for one client.
pub struct Splitter<F: MessageFormat> {
    framing: Framing,
    encoder: MessageEncoder<F>,
    /// The end of each stream that is not encoded yet: an incomplete line or character.
    carry: PerStream<Vec<u8>>,
    /// The reader of standard output, if that is an agent's events.
    agent: Option<Box<dyn AgentReader>>,
}

impl<F: MessageFormat> Splitter<F> {
    /// A splitter with these options, without output so far.
    pub fn new(format: F, OutputOptions { framing, offsets, agent }: OutputOptions) -> Self {
        Splitter { framing, encoder: MessageEncoder::new(format, offsets), carry: PerStream::default(), agent }
    }
}

impl<F: MessageFormat> OutputEncoder for Splitter<F> {
    fn feed(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(agent) = self.agent.as_mut().filter(|_| stream == Stream::Stdout) {
            return agent.feed(bytes);
        }
        let carry = self.carry.get_mut(stream);
        match self.framing {
            Framing::Chunk => feed_chunk(&mut self.encoder, stream, carry, bytes),
            Framing::Line => feed_lines(&mut self.encoder, stream, carry, bytes),
        }
    }

    fn step(&mut self) -> EventStep {
        self.agent.as_mut().map_or(EventStep::Dry, |agent| agent.step(&mut self.encoder))
    }

    fn has_unfinished_line(&self, stream: Stream) -> bool {
        let carry = self.carry.get(stream);
        carry.len() > partial_char(carry)
    }

    fn flush_quiet(&mut self, stream: Stream) {
        let carry = self.carry.get_mut(stream);
        let keep = carry.split_off(carry.len() - partial_char(carry));
        self.encoder.message(stream, &std::mem::replace(carry, keep));
    }

    fn skip(&mut self, gap: Gap) -> Option<Gap> {
        if let Some(agent) = self.agent.as_mut().filter(|_| gap.stream == Stream::Stdout) {
            agent.skip(gap);
            return None;
        }
        let rest = std::mem::take(self.carry.get_mut(gap.stream));
        self.encoder.message(gap.stream, &rest);
        self.encoder.set_end(gap.stream, gap.to);
        Some(gap)
    }

    fn finish(&mut self, ended: bool) {
        if let Some(agent) = &mut self.agent {
            agent.finish(ended);
        }
        for stream in Stream::BOTH {
            let rest = std::mem::take(self.carry.get_mut(stream));
            self.encoder.message(stream, &rest);
        }
    }

    fn offsets(&self) -> PerStream<u64> {
        self.encoder.ends()
    }

    fn encoded_len(&self) -> usize {
        self.encoder.encoded_len()
    }

    fn take(&mut self) -> (Vec<u8>, PerStream<u64>) {
        let encoded = self.encoder.take();
        (encoded, self.encoder.ends())
    }
}

fn feed_chunk<F: MessageFormat>(
    encoder: &mut MessageEncoder<F>,
    stream: Stream,
    carry: &mut Vec<u8>,
    mut bytes: &[u8],
) {
    // The rest of a character that began in an earlier piece comes first.
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

fn feed_lines<F: MessageFormat>(
    encoder: &mut MessageEncoder<F>,
    stream: Stream,
    carry: &mut Vec<u8>,
    mut bytes: &[u8],
) {
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
    // A line that is too long for one message is sent in pieces; its last piece waits for the newline.
    while carry.len() > MAX_CONTENT {
        let piece = cut_before_char(carry, MAX_CONTENT);
        encoder.message(stream, &carry[..piece]);
        carry.drain(..piece);
    }
}
