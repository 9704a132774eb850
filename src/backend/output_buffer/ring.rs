//! The last bytes of one output stream, by their offset in the stream.
//!
//! It allocates one buffer as it fills, so a bound on its bytes bounds its memory.

use std::cmp::min;

/// The last bytes of one stream.
#[derive(Debug)]
pub struct Ring {
    bytes: Vec<u8>,
    capacity: usize,
    /// The offset of a byte whose place is the beginning of the buffer.
    base: u64,
    end: u64,
}

impl Ring {
    /// An empty ring for this many bytes, at least one.
    pub fn new(capacity: usize) -> Self {
        Ring { bytes: Vec::new(), capacity: capacity.max(1), base: 0, end: 0 }
    }

    /// A ring that holds nothing of a stream of this length.
    pub fn without_bytes(end: u64) -> Self {
        Ring { end, ..Ring::new(1) }
    }

    /// The offset of the oldest byte in the ring.
    pub fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The offset after the newest byte, which is the length of the stream so far.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The memory that it takes, in bytes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds to the stream. Overwrites the oldest bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if bytes.len() > self.capacity {
            // Only the last bytes fit, and they overwrite the whole ring.
            let (skipped, last) = bytes.split_at(bytes.len() - self.capacity);
            if self.bytes.len() < self.capacity {
                self.grow(self.capacity);
                self.bytes.resize(self.capacity, 0);
            }
            self.end += skipped.len() as u64;
            bytes = last;
        }
        while !bytes.is_empty() {
            let at = self.index(self.end);
            let (piece, rest) = bytes.split_at(min(bytes.len(), self.capacity - at));
            if at + piece.len() > self.bytes.len() {
                self.grow(at + piece.len());
                self.bytes.truncate(at);
                self.bytes.extend_from_slice(piece);
            } else {
                self.bytes[at..at + piece.len()].copy_from_slice(piece);
            }
            self.end += piece.len() as u64;
            bytes = rest;
        }
    }

    /// The bytes from this offset on, up to `most`, as far as they are contiguous. Empty at the end of the stream, and
    /// before the start of the ring.
    pub fn piece(&self, from: u64, most: usize) -> &[u8] {
        if from < self.start() || from >= self.end {
            return &[];
        }
        let at = self.index(from);
        let left = usize::try_from(self.end - from).unwrap_or(usize::MAX);
        let n = min(min(left, most), self.bytes.len() - at);
        &self.bytes[at..at + n]
    }

    /// Gives back unused memory. Nothing may be added after it.
    pub fn finish(&mut self) {
        self.bytes.shrink_to_fit();
    }

    /// Grows so that everything from this offset on is still in the ring after this many more bytes.
    pub fn make_room(&mut self, from: u64, more: usize) {
        let present = usize::try_from(self.end - from.clamp(self.start(), self.end)).unwrap_or(usize::MAX);
        let needed = present.saturating_add(more);
        if needed > self.capacity {
            let start = self.start();
            if !self.bytes.is_empty() {
                let at = self.index(start);
                self.bytes.rotate_left(at);
            }
            self.base = start;
            self.capacity = needed.max(self.bytes.len());
        }
    }

    /// The place of the byte with this offset.
    fn index(&self, offset: u64) -> usize {
        ((offset - self.base) % self.capacity as u64) as usize
    }

    /// Doubles the buffer, but not beyond the capacity, which a vector would do by itself.
    fn grow(&mut self, needed: usize) {
        if needed > self.bytes.capacity() {
            let wanted = min((self.bytes.capacity() * 2).max(needed), self.capacity);
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_from(ring: &Ring, mut from: u64, most: usize) -> Vec<u8> {
        let mut got = Vec::new();
        loop {
            let piece = ring.piece(from, most);
            if piece.is_empty() {
                return got;
            }
            assert!(piece.len() <= most);
            got.extend_from_slice(piece);
            from += piece.len() as u64;
        }
    }

    proptest! {
        #[test]
        fn it_keeps_the_last_bytes_of_the_stream(
            capacity in 1usize..200,
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..30),
            most in 1usize..70,
        ) {
            let mut ring = Ring::new(capacity);
            let mut stream = Vec::new();
            for piece in &pieces {
                ring.push(piece);
                stream.extend_from_slice(piece);
                let kept = min(stream.len(), capacity);
                prop_assert_eq!(ring.end(), stream.len() as u64);
                prop_assert_eq!(ring.start(), (stream.len() - kept) as u64);
                prop_assert!(ring.memory() <= capacity);
                for from in [ring.start(), ring.start() + kept as u64 / 2, ring.end()] {
                    prop_assert_eq!(&read_from(&ring, from, most)[..], &stream[from as usize..]);
                }
            }
            if let Some(lost) = ring.start().checked_sub(1) {
                prop_assert!(ring.piece(lost, most).is_empty());
            }
        }
    }

    proptest! {
        #[test]
        fn bytes_that_room_was_made_for_are_kept(
            capacity in 1usize..100,
            before in 0usize..300,
            from in 0u64..300,
            more in 0usize..200,
            after in 0usize..300,
        ) {
            let mut ring = Ring::new(capacity);
            let stream: Vec<u8> = (0..before + more + after).map(|at| (at % 251) as u8).collect();
            ring.push(&stream[..before]);
            let from = from.clamp(ring.start(), ring.end());
            ring.make_room(from, more);
            prop_assert_eq!(&read_from(&ring, from, 50)[..], &stream[from as usize..before]);
            ring.push(&stream[before..before + more]);
            prop_assert_eq!(&read_from(&ring, from, 50)[..], &stream[from as usize..before + more]);
            // From here on the buffer wraps around.
            ring.push(&stream[before + more..]);
            let start = ring.start();
            prop_assert_eq!(&read_from(&ring, start, 50)[..], &stream[start as usize..]);
        }
    }

    #[test]
    fn it_allocates_as_it_fills_and_gives_back() {
        let mut ring = Ring::new(4 << 20);
        assert_eq!(ring.memory(), 0);
        ring.push(b"hello");
        assert!(ring.memory() < 100);
        ring.push(&[0; 3 << 20]);
        ring.finish();
        assert_eq!(ring.memory(), (3 << 20) + 5);
        let gone = Ring::without_bytes(ring.end());
        assert_eq!((gone.memory(), gone.start(), gone.end()), (0, ring.end(), ring.end()));
        assert!(gone.piece(0, 10).is_empty() && gone.piece(gone.end(), 10).is_empty());
    }
}
