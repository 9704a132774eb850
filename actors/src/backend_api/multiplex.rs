//! Docker's multiplexed stream: the encoder's header, and a decoder that accepts it cut anywhere.
//!
//! Output is handed on as it arrives, in slices of what came from the socket. Only the backend's own
//! words are collected until they are complete.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::stream::Stream;

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 8;

/// The stream that carries the backend's own words.
const WORDS: u8 = 3;

/// The longest word accepted, in bytes. Ours are below 4 KiB.
const MAX_WORD: usize = 1 << 20;

/// The header of a frame of output.
pub fn header(stream: Stream, len: u32) -> [u8; HEADER_LEN] {
    let stream = match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    header_of(stream, len)
}

/// The header of a frame with one of the backend's words.
pub fn word_header(len: u32) -> [u8; HEADER_LEN] {
    header_of(WORDS, len)
}

fn header_of(stream: u8, len: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = len.to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

/// What a multiplexed stream consists of.
#[derive(PartialEq, Eq, Debug)]
pub enum StreamPart {
    /// Output, not necessarily a whole frame of it.
    Output(Stream, Bytes),
    /// One complete word.
    Word(Bytes),
}

/// Why bytes are not a multiplexed stream.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The header's first byte is none of 1, 2, 3.
    #[error("a frame of the unknown stream {0}")]
    UnknownStream(u8),
    /// The three bytes after it are not zero.
    #[error("a frame whose header has no zeros where they belong")]
    BadHeader,
    /// A word over the limit.
    #[error("a status frame of {0} bytes, over the limit of {MAX_WORD}")]
    WordTooLong(usize),
}

enum DecoderState {
    Header,
    Output { stream: Stream, left: usize },
    Word { len: usize },
}

/// Decodes one stream. Feed it with [`Decoder::push`], then call [`Decoder::next_part`] until it is empty.
pub struct Decoder {
    state: DecoderState,
    input: VecDeque<Bytes>,
    waiting: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { state: DecoderState::Header, input: VecDeque::new(), waiting: 0 }
    }
}

impl Decoder {
    /// Adds what arrived.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.waiting += chunk.len();
            self.input.push_back(chunk);
        }
    }

    /// Whether the stream stands between two frames: the only place where it may end.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, DecoderState::Header) && self.waiting == 0
    }

    /// The next part, or `None` until more is pushed.
    pub fn next_part(&mut self) -> Result<Option<StreamPart>, DecodeError> {
        loop {
            match self.state {
                DecoderState::Header => {
                    if self.waiting < HEADER_LEN {
                        return Ok(None);
                    }
                    self.state = next_state(&self.take(HEADER_LEN))?;
                }
                DecoderState::Output { left: 0, .. } => self.state = DecoderState::Header,
                DecoderState::Output { stream, left } => {
                    let Some(front) = self.input.front_mut() else { return Ok(None) };
                    let piece = front.split_to(left.min(front.len()));
                    if front.is_empty() {
                        self.input.pop_front();
                    }
                    self.waiting -= piece.len();
                    self.state = DecoderState::Output { stream, left: left - piece.len() };
                    return Ok(Some(StreamPart::Output(stream, piece)));
                }
                DecoderState::Word { len } => {
                    if self.waiting < len {
                        return Ok(None);
                    }
                    self.state = DecoderState::Header;
                    return Ok(Some(StreamPart::Word(self.take(len))));
                }
            }
        }
    }

    /// Takes `len` bytes that are there, without copying where they lie in one piece.
    fn take(&mut self, len: usize) -> Bytes {
        self.waiting -= len;
        let taken = match self.input.front_mut() {
            Some(front) if front.len() >= len => front.split_to(len),
            _ => {
                let mut joined = Vec::with_capacity(len);
                while joined.len() < len {
                    let Some(front) = self.input.front_mut() else { break };
                    let piece = front.split_to(front.len().min(len - joined.len()));
                    joined.extend_from_slice(&piece);
                    if !front.has_remaining() {
                        self.input.pop_front();
                    }
                }
                return Bytes::from(joined);
            }
        };
        if self.input.front().is_some_and(Bytes::is_empty) {
            self.input.pop_front();
        }
        taken
    }
}

fn next_state(header: &[u8]) -> Result<DecoderState, DecodeError> {
    let (&[stream, a, b, c], size) = header.split_first_chunk::<4>().ok_or(DecodeError::BadHeader)?;
    let left = size.try_into().map(u32::from_be_bytes).map_err(|_| DecodeError::BadHeader)? as usize;
    match stream {
        _ if (a, b, c) != (0, 0, 0) => Err(DecodeError::BadHeader),
        1 => Ok(DecoderState::Output { stream: Stream::Stdout, left }),
        2 => Ok(DecoderState::Output { stream: Stream::Stderr, left }),
        WORDS if left > MAX_WORD => Err(DecodeError::WordTooLong(left)),
        WORDS => Ok(DecoderState::Word { len: left }),
        other => Err(DecodeError::UnknownStream(other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::PerStream;

    /// What a stream carried: both outputs, and the words.
    type Carried = (PerStream<Vec<u8>>, Vec<Vec<u8>>);

    fn decode(wire: &[u8], cuts: &[usize]) -> Result<Carried, DecodeError> {
        let mut decoder = Decoder::default();
        let (mut output, mut words) = Carried::default();
        let mut from = 0;
        for to in cuts.iter().copied().chain([wire.len()]) {
            let to = to.clamp(from, wire.len());
            decoder.push(Bytes::copy_from_slice(&wire[from..to]));
            from = to;
            while let Some(part) = decoder.next_part()? {
                match part {
                    StreamPart::Output(stream, piece) => output.get_mut(stream).extend_from_slice(&piece),
                    StreamPart::Word(word) => words.push(word.to_vec()),
                }
            }
        }
        assert!(decoder.is_between_frames());
        Ok((output, words))
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_decodes_the_same(
            frames in prop::collection::vec((1u8..=3, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            mut cuts in prop::collection::vec(0usize..900, 0..20),
        ) {
            cuts.sort_unstable();
            let mut wire = Vec::new();
            let (mut output, mut words) = Carried::default();
            for (stream, bytes) in frames {
                wire.extend_from_slice(&header_of(stream, bytes.len() as u32));
                wire.extend_from_slice(&bytes);
                match stream {
                    1 => output.stdout.extend(bytes),
                    2 => output.stderr.extend(bytes),
                    _ => words.push(bytes),
                }
            }
            prop_assert_eq!(decode(&wire, &cuts).unwrap(), (output, words));
        }

        #[test]
        fn garbage_is_an_error_or_waits_for_more(wire in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(Bytes::from(wire));
            while let Ok(Some(_)) = decoder.next_part() {}
        }
    }

    #[test]
    fn headers_that_are_none_are_refused() {
        for (wire, error) in [
            ([4, 0, 0, 0, 0, 0, 0, 1], DecodeError::UnknownStream(4)),
            ([1, 0, 1, 0, 0, 0, 0, 1], DecodeError::BadHeader),
            ([3, 0, 0, 0, 0, 0x10, 0, 1], DecodeError::WordTooLong(0x10_0001)),
        ] {
            let mut decoder = Decoder::default();
            decoder.push(Bytes::copy_from_slice(&wire));
            assert_eq!(decoder.next_part().unwrap_err(), error);
        }
    }
}
