//! From the bytes of a process to what its client is sent.
//!
//! [`OutputEncoder`] is all that an execution knows of this. [`splitter::Splitter`] implements it for every form in
//! which each message carries a piece of a stream; a [`message::MessageFormat`] writes one such message: WebSocket
//! frames in [`crate::ws::encoder`], JSON lines in [`json_lines`]. Nothing here knows a clock: the caller says when a
//! stream has been quiet, and when it has ended.

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

/// The most bytes of a stream that go into one message. Escaped at the worst, six for one, it stays
/// far below the limit of a message.
pub const MAX_CONTENT: usize = 64 * 1024;

/// Turns both streams of one execution into what one client is sent.
///
/// Output is buffered until it is taken. The caller takes it when it has reached a size or when nothing more is ready,
/// and reads no more of the streams until the client has room: that is where back-pressure is applied.
pub trait OutputEncoder {
    /// Takes bytes of a stream. Of an agent's events nothing is encoded yet: see [`OutputEncoder::step`].
    fn feed(&mut self, stream: Stream, bytes: &[u8]);

    /// Encodes a little more of an agent's events, so that of a long one not all is encoded at a time.
    fn step(&mut self) -> EventStep;

    /// Whether an unfinished line of this stream waits, which [`OutputEncoder::flush_quiet`] would release.
    fn has_unfinished_line(&self, stream: Stream) -> bool;

    /// Releases an unfinished line; an incomplete character still waits.
    fn flush_quiet(&mut self, stream: Stream);

    /// Goes on where the gap ends: its bytes are lost. What waited is released first. Gives the gap that
    /// is to be told now; one in an agent's events is told where the next of them begins.
    fn skip(&mut self, gap: Gap) -> Option<Gap>;

    /// Releases everything: nothing more will come, because the execution has ended or because it is
    /// followed no further. An agent's last event may still need its steps.
    fn finish(&mut self, ended: bool);

    /// How far each stream has come with what is encoded.
    fn offsets(&self) -> PerStream<u64>;

    /// Bytes encoded and not yet taken.
    fn encoded_len(&self) -> usize;

    /// Takes what is encoded so far, and how far each stream has come with it.
    fn take(&mut self) -> (Vec<u8>, PerStream<u64>);
}

/// Makes the encoder of one execution, once it is known what its client has and wants.
pub type NewEncoder = fn(OutputOptions) -> Box<dyn OutputEncoder>;

/// What an encoder begins with.
pub struct OutputOptions {
    /// How output is cut into messages.
    pub framing: Framing,
    /// What the client has already of each stream, in bytes.
    pub offsets: PerStream<u64>,
    /// Reads standard output where it is an agent's events.
    pub agent: Option<Box<dyn AgentReader>>,
}

/// Reads an agent's events from its standard output, and tells what of them is output.
pub trait AgentReader {
    /// Takes more of the stream.
    fn feed(&mut self, bytes: &[u8]);

    /// The bytes of a gap are lost. It begins for the client where the event began that it cut off, and
    /// ends where the next event begins.
    fn skip(&mut self, gap: Gap);

    /// Nothing more will come. If the execution itself has ended, a last line without a newline counts;
    /// else it is left to whoever attaches.
    fn finish(&mut self, ended: bool);

    /// Tells a little more.
    fn step(&mut self, sink: &mut dyn EventSink) -> EventStep;
}

/// Takes what an agent's events say. Their offsets count the events, not the texts.
pub trait EventSink {
    /// The stream has come so far, without a message.
    fn advance(&mut self, end: u64);

    /// A text of at most [`MAX_CONTENT`] bytes, with this `end`.
    fn text(&mut self, text: &[u8], end: u64);

    /// An event as it came, which is JSON, with this `end`.
    fn event(&mut self, id: ExecutionId, json: &str, end: u64);
}

/// What came of a step.
#[derive(PartialEq, Eq, Debug)]
pub enum EventStep {
    /// Nothing is left to do until more comes.
    Dry,
    /// Something was encoded, or passed over.
    Done,
    /// Here the client misses something.
    Gap(Gap),
}
