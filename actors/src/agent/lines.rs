//! Cuts an agent's standard output into lines.

use bytes::{Bytes, BytesMut};

/// The longest line that can be an event, in bytes.
pub const MAX_LINE: usize = 16 << 20;

/// A line of a stream, or a piece of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventLine {
    /// A whole line, its newline included.
    Whole(Bytes),
    /// A piece of a line that is too long for an event. Only the last piece has a newline.
    Piece(Bytes),
}

impl EventLine {
    /// The bytes of the line or piece.
    pub fn bytes(&self) -> &Bytes {
        match self {
            EventLine::Whole(bytes) | EventLine::Piece(bytes) => bytes,
        }
    }
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct LineSplitter {
    buffer: BytesMut,
    /// The number of bytes at the start of the buffer that have no newline.
    searched: usize,
    /// Whether the beginning of the line was returned as pieces.
    in_pieces: bool,
}

impl LineSplitter {
    /// Adds more of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next line, if all of it has arrived.
    pub fn pop(&mut self) -> Option<EventLine> {
        let newline = memchr::memchr(b'\n', &self.buffer[self.searched..]).map(|at| self.searched + at + 1);
        let end = match newline {
            Some(end) if end <= MAX_LINE => end,
            None if self.buffer.len() <= MAX_LINE => {
                self.searched = self.buffer.len();
                return None;
            }
            _ => MAX_LINE,
        };
        let is_end = newline == Some(end);
        self.searched = 0;
        let bytes = self.buffer.split_to(end).freeze();
        let whole = is_end && !self.in_pieces;
        self.in_pieces = !is_end;
        Some(if whole { EventLine::Whole(bytes) } else { EventLine::Piece(bytes) })
    }

    /// Takes the bytes after the last newline.
    pub fn rest(&mut self) -> Option<EventLine> {
        self.searched = 0;
        let bytes = self.buffer.split().freeze();
        let in_pieces = std::mem::take(&mut self.in_pieces);
        (!bytes.is_empty()).then(|| if in_pieces { EventLine::Piece(bytes) } else { EventLine::Whole(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut LineSplitter) -> Vec<EventLine> {
        std::iter::from_fn(|| lines.pop()).collect()
    }

    proptest! {
        #[test]
        fn the_lines_are_the_same_for_any_cut_of_the_stream(text in "[a\n]{0,60}", cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut lines = LineSplitter::default();
            let mut got = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                lines.push(&text.as_bytes()[from..cut]);
                from = cut;
                got.extend(all(&mut lines));
            }
            got.extend(lines.rest());
            let expected: Vec<_> =
                text.split_inclusive('\n').map(|line| EventLine::Whole(Bytes::copy_from_slice(line.as_bytes()))).collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_line_of_16_mib_is_whole_and_a_longer_one_comes_in_pieces() {
        let mut lines = LineSplitter::default();
        let mut longest = vec![b'x'; MAX_LINE - 1];
        longest.push(b'\n');
        for piece in longest.chunks(100_000) {
            lines.push(piece);
        }
        assert_eq!(lines.pop(), Some(EventLine::Whole(longest.clone().into())));
        lines.push(b"y");
        lines.push(&longest);
        lines.push(b"next\n");
        let got = all(&mut lines);
        assert_eq!(got.len(), 3);
        assert!(matches!(&got[0], EventLine::Piece(piece) if piece.len() == MAX_LINE));
        assert_eq!(got[1], EventLine::Piece(Bytes::from_static(b"\n")));
        assert_eq!(got[2], EventLine::Whole(Bytes::from_static(b"next\n")));
    }
}
