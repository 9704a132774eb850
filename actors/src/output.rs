//! Encodes the output of a process for its client.
//!
//! An execution knows the trait [`OutputEncoder`] only. [`splitter::Splitter`] implements it for all formats in which a
//! message carries a piece of a stream; a [`message::MessageFormat`] writes one such message: WebSocket frames in
//! [`crate::ws::encoder`], JSON lines in [`json_lines`]. No clock is read here: the caller reports that a stream is
//! quiet, or has ended.

pub mod escape;
pub mod json_lines;
pub mod message;
pub mod splitter;
mod utf8;

pub use self::utf8::{cut_before_char, partial_char};
use crate::{
    id::ExecutionId,
    protocol::Framing,
    stream::{Gap, PerStream, Stream},
};

/// The most bytes of a stream in one message. Even if escaping makes six bytes of each, the message stays far below its
/// limit.
pub const MAX_CONTENT: usize = 64 * 1024;

/// Encodes both streams of one execution for one client.
///
/// Output is buffered until it is taken. The caller takes it when it has reached a size or when nothing more is ready,
/// and reads no more of the streams until the client has room (`Relay::flush`).
pub trait OutputEncoder {
    /// Takes bytes of a stream. An agent's events are encoded by [`OutputEncoder::step`] only.
    fn feed(&mut self, stream: Stream, bytes: &[u8]);

    /// Encodes a part of an agent's events, so that a long event is encoded in several steps.
    fn step(&mut self) -> EventStep;

    /// Whether the stream has an unfinished line, which [`OutputEncoder::flush_quiet`] would release.
    fn has_unfinished_line(&self, stream: Stream) -> bool;

    /// Encodes an unfinished line without its incomplete last character.
    fn flush_quiet(&mut self, stream: Stream);

    /// Skips the lost bytes of a gap, after encoding the rest before it. Returns the gap if it must be reported now; a
    /// gap in an agent's events is reported by the [`OutputEncoder::step`] that reaches the next event.
    fn skip(&mut self, gap: Gap) -> Option<Gap>;

    /// Encodes the rest, because the execution has ended (`ended`) or this client does not follow it any more. An
    /// agent's last event may still need steps.
    fn finish(&mut self, ended: bool);

    /// The offset of each stream after the encoded bytes.
    fn offsets(&self) -> PerStream<u64>;

    /// The number of encoded bytes.
    fn encoded_len(&self) -> usize;

    /// Takes the encoded bytes, and the offset of each stream after them.
    fn take(&mut self) -> (Vec<u8>, PerStream<u64>);
}

/// Makes the encoder of one execution, once the backend has accepted it.
pub type NewEncoder = fn(OutputOptions) -> Box<dyn OutputEncoder>;

/// How output is encoded for one client.
pub struct OutputOptions {
    /// How output is cut into messages.
    pub framing: Framing,
    /// The bytes of each stream that the client has already.
    pub offsets: PerStream<u64>,
    /// The reader of standard output, if that is an agent's events.
    pub agent: Option<Box<dyn AgentReader>>,
}

/// Reads an agent's events from its standard output, and passes their texts to a sink.
pub trait AgentReader {
    /// Takes more of the stream.
    fn feed(&mut self, bytes: &[u8]);

    /// Skips the lost bytes of a gap. For the client the gap begins with the event that it cuts off, and ends where the
    /// next event begins.
    fn skip(&mut self, gap: Gap);

    /// Takes the end of the stream. If the execution has ended, a last line without a newline counts; otherwise the
    /// next client that attaches gets it.
    fn finish(&mut self, ended: bool);

    /// Passes a part of the texts and events to the sink.
    fn step(&mut self, sink: &mut dyn EventSink) -> EventStep;
}

/// Receives the texts and events of an agent. Offsets count the event stream, not the texts.
pub trait EventSink {
    /// Moves the offset without a message.
    fn advance(&mut self, end: u64);

    /// Encodes a text of at most [`MAX_CONTENT`] bytes, with this `end`.
    fn text(&mut self, text: &[u8], end: u64);

    /// Encodes an event, which is JSON, with this `end`.
    fn event(&mut self, id: ExecutionId, json: &str, end: u64);
}

/// The result of a step.
#[derive(PartialEq, Eq, Debug)]
pub enum EventStep {
    /// Nothing is left to do until more bytes arrive.
    Dry,
    /// A text or event was encoded or skipped.
    Done,
    /// A gap must be reported here.
    Gap(Gap),
}
