//! Docker's multiplexed stream: the encoder's header, and a decoder that accepts a stream cut anywhere.
//!
//! The decoder hands on output as it arrives, in slices of the bytes from the socket. Only headers and the backend's
//! events are collected until they are complete.

use std::mem;

use bytes::Bytes;

use crate::stream::Stream;

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 8;

/// The stream that carries the backend's events.
const EVENTS: u8 = 3;

/// The longest event accepted, in bytes. The events of a native backend are below 4 KiB.
const MAX_EVENT: usize = 1 << 20;

/// The header of a frame of output.
pub fn header(stream: Stream, len: u32) -> [u8; HEADER_LEN] {
    let stream = match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    header_of(stream, len)
}

/// The header of a frame with an event of the backend.
pub fn event_header(len: u32) -> [u8; HEADER_LEN] {
    header_of(EVENTS, len)
}

fn header_of(stream: u8, len: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = len.to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

/// A part of a multiplexed stream.
#[derive(PartialEq, Eq, Debug)]
pub enum StreamPart {
    /// Output, not necessarily a whole frame of it.
    Output(Stream, Bytes),
    /// One complete event, which is JSON.
    Event(Bytes),
}

/// Why bytes are not a multiplexed stream.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The header's first byte is not 1, 2 or 3.
    #[error("unknown stream number {0} in a frame header")]
    UnknownStream(u8),
    /// The three bytes after it are not zero.
    #[error("bytes 1 to 3 of a frame header are not zero")]
    BadHeader,
    /// An event over the limit.
    #[error("an event of {0} bytes, over the limit of {MAX_EVENT}")]
    EventTooLong(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum DecoderState {
    #[default]
    Header,
    Output {
        stream: Stream,
        left: usize,
    },
    Event {
        len: usize,
    },
}

/// Decodes one stream. Feed it with [`Decoder::push`], then call [`Decoder::next_part`] until it is empty.
#[derive(Default)]
pub struct Decoder {
    state: DecoderState,
    input: Bytes,
    /// The beginning of a header or of an event.
    collected: Vec<u8>,
}

impl Decoder {
    /// Adds bytes from the socket. Nothing is copied if the decoder is empty.
    pub fn push(&mut self, chunk: Bytes) {
        self.input = if self.input.is_empty() { chunk } else { [mem::take(&mut self.input), chunk].concat().into() };
    }

    /// Whether the stream stands between two frames, the only place where it may end.
    pub fn is_between_frames(&self) -> bool {
        self.state == DecoderState::Header && self.collected.is_empty() && self.input.is_empty()
    }

    /// The next part, or `None` until more is pushed.
    ///
    /// # Errors
    ///
    /// The bytes are not a multiplexed stream.
    pub fn next_part(&mut self) -> Result<Option<StreamPart>, DecodeError> {
        loop {
            match self.state {
                DecoderState::Header => {
                    let Some(header) = self.collect(HEADER_LEN) else { return Ok(None) };
                    self.state = next_state(&header)?;
                }
                DecoderState::Output { left: 0, .. } => self.state = DecoderState::Header,
                DecoderState::Output { .. } if self.input.is_empty() => return Ok(None),
                DecoderState::Output { stream, left } => {
                    let piece = self.input.split_to(left.min(self.input.len()));
                    self.state = DecoderState::Output { stream, left: left - piece.len() };
                    return Ok(Some(StreamPart::Output(stream, piece)));
                }
                DecoderState::Event { len } => {
                    let Some(event) = self.collect(len) else { return Ok(None) };
                    self.state = DecoderState::Header;
                    return Ok(Some(StreamPart::Event(event)));
                }
            }
        }
    }

    /// Takes `len` bytes once they are here, without copying if they arrived in one piece.
    fn collect(&mut self, len: usize) -> Option<Bytes> {
        let missing = len - self.collected.len();
        let piece = self.input.split_to(missing.min(self.input.len()));
        if piece.len() == len {
            return Some(piece);
        }
        self.collected.extend_from_slice(&piece);
        (piece.len() == missing).then(|| mem::take(&mut self.collected).into())
    }
}

fn next_state(header: &[u8]) -> Result<DecoderState, DecodeError> {
    let (&[stream, a, b, c], size) = header.split_first_chunk::<4>().ok_or(DecodeError::BadHeader)?;
    let left = size.try_into().map(u32::from_be_bytes).map_err(|_| DecodeError::BadHeader)? as usize;
    match stream {
        _ if (a, b, c) != (0, 0, 0) => Err(DecodeError::BadHeader),
        1 => Ok(DecoderState::Output { stream: Stream::Stdout, left }),
        2 => Ok(DecoderState::Output { stream: Stream::Stderr, left }),
        EVENTS if left > MAX_EVENT => Err(DecodeError::EventTooLong(left)),
        EVENTS => Ok(DecoderState::Event { len: left }),
        other => Err(DecodeError::UnknownStream(other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::PerStream;

    /// The content of a stream: both outputs, and the events.
    type Content = (PerStream<Vec<u8>>, Vec<Vec<u8>>);

    fn decode(wire: &[u8], cuts: &[usize]) -> Result<Content, DecodeError> {
        let mut decoder = Decoder::default();
        let (mut output, mut events) = Content::default();
        let mut from = 0;
        for to in cuts.iter().copied().chain([wire.len()]) {
            let to = to.clamp(from, wire.len());
            decoder.push(Bytes::copy_from_slice(&wire[from..to]));
            from = to;
            while let Some(part) = decoder.next_part()? {
                match part {
                    StreamPart::Output(stream, piece) => output.get_mut(stream).extend_from_slice(&piece),
                    StreamPart::Event(event) => events.push(event.to_vec()),
                }
            }
        }
        assert!(decoder.is_between_frames());
        Ok((output, events))
    }

    proptest! {
        #[test]
        fn a_stream_decodes_the_same_wherever_it_is_cut(
            frames in prop::collection::vec((1u8..=3, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            mut cuts in prop::collection::vec(0usize..900, 0..20),
        ) {
            cuts.sort_unstable();
            let mut wire = Vec::new();
            let (mut output, mut events) = Content::default();
            for (stream, bytes) in frames {
                wire.extend_from_slice(&header_of(stream, bytes.len() as u32));
                wire.extend_from_slice(&bytes);
                match stream {
                    1 => output.stdout.extend(bytes),
                    2 => output.stderr.extend(bytes),
                    _ => events.push(bytes),
                }
            }
            prop_assert_eq!(decode(&wire, &cuts).unwrap(), (output, events));
        }

        #[test]
        fn garbage_is_an_error_or_waits_for_more(wire in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(Bytes::from(wire));
            while let Ok(Some(_)) = decoder.next_part() {}
        }
    }

    #[test]
    fn invalid_headers_are_refused() {
        for (wire, error) in [
            ([4, 0, 0, 0, 0, 0, 0, 1], DecodeError::UnknownStream(4)),
            ([1, 0, 1, 0, 0, 0, 0, 1], DecodeError::BadHeader),
            ([3, 0, 0, 0, 0, 0x10, 0, 1], DecodeError::EventTooLong(0x10_0001)),
        ] {
            let mut decoder = Decoder::default();
            decoder.push(Bytes::copy_from_slice(&wire));
            assert_eq!(decoder.next_part().unwrap_err(), error);
        }
    }
}
