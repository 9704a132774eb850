//! The format of one JSON object per line, which the backend offers as NDJSON.

use super::{
    OutputOptions,
    message::{MessageFormat, push_end},
    splitter::Splitter,
};
use crate::{
    protocol::Framing,
    stream::{PerStream, Stream},
};

/// Messages as lines of JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonLines;

/// An encoder of both streams in chunks, from these offsets.
pub fn encoder(offsets: PerStream<u64>) -> Splitter<JsonLines> {
    Splitter::new(JsonLines, OutputOptions { framing: Framing::Chunk, offsets, agent: None })
}

impl MessageFormat for JsonLines {
    type Open = ();

    #[inline]
    fn begin_text(&self, out: &mut Vec<u8>, stream: Stream, _: usize) {
        out.extend_from_slice(match stream {
            Stream::Stdout => br#"{"output":{"type":"stdout","content":""#,
            Stream::Stderr => br#"{"output":{"type":"stderr","content":""#,
        });
    }

    #[inline]
    fn begin_base64(&self, out: &mut Vec<u8>, stream: Stream, _: usize) {
        out.extend_from_slice(match stream {
            Stream::Stdout => br#"{"output":{"type":"stdout","contentBase64":""#,
            Stream::Stderr => br#"{"output":{"type":"stderr","contentBase64":""#,
        });
    }

    #[inline]
    fn end(&self, out: &mut Vec<u8>, (): (), end: u64) {
        push_end(out, end);
        out.push(b'\n');
    }
}
