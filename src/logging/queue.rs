//! Lines that wait for the writer, bounded in bytes and lines.
//!
//! When there is no room, lines are dropped and counted until the writer takes those that wait; the count follows them, in
//! the place of the dropped lines.

/// The most bytes that wait. As many again may be in the writer's hands.
const MAX_BYTES: usize = 1 << 20;

/// The most lines that wait.
const MAX_LINES: usize = 10_000;

/// The most bytes of one write(2). A pipe takes so many as a whole (PIPE_BUF, pipe(7)), so that the lines of two processes
/// that share it are not mixed.
const MAX_PIECE: usize = 4096;

/// Whole lines, in order.
#[derive(Default)]
pub(super) struct LineBatch {
    bytes: Vec<u8>,
    ends: Vec<LineEnd>,
}

/// The end of a line in its batch.
struct LineEnd {
    at: usize,
    /// How many log records are missing if this line is not written: itself, and those that it counts.
    n_records: u64,
}

impl LineBatch {
    /// Appends a line with its end.
    pub(super) fn push(&mut self, line: &str, n_records: u64) {
        self.bytes.extend_from_slice(line.as_bytes());
        self.ends.push(LineEnd { at: self.bytes.len(), n_records });
    }

    /// The lines in pieces of whole lines, each with its number of records. A line that is longer than [`MAX_PIECE`] is a
    /// piece of its own.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let (mut start, mut ends) = (0, self.ends.as_slice());
        std::iter::from_fn(move || {
            let n_fitting = ends.iter().take_while(|end| end.at - start <= MAX_PIECE).count();
            let (piece, rest) = ends.split_at_checked(n_fitting.max(1))?;
            let from = std::mem::replace(&mut start, piece.last()?.at);
            ends = rest;
            Some((&self.bytes[from..start], piece.iter().map(|end| end.n_records).sum()))
        })
    }

    /// Empties the batch. Keeps its memory unless there is much of it.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.bytes.shrink_to(64 * 1024);
        self.ends.shrink_to(1024);
    }

    fn has_room(&self, line: &str) -> bool {
        self.bytes.len() + line.len() <= MAX_BYTES && self.ends.len() < MAX_LINES
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct LineQueue {
    waiting: LineBatch,
    /// How many records were dropped after the lines that wait.
    n_dropped: u64,
}

impl LineQueue {
    /// Appends a line with its end, or drops it.
    pub(super) fn push(&mut self, line: &str, n_records: u64) {
        // Also if a shorter line had room again, because the count stands for one place.
        if self.n_dropped > 0 || !self.waiting.has_room(line) {
            self.n_dropped += n_records;
        } else {
            self.waiting.push(line, n_records);
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.ends.is_empty() && self.n_dropped == 0
    }

    /// Exchanges the waiting lines for an empty batch. Returns how many records were dropped after them.
    pub(super) fn take(&mut self, batch: &mut LineBatch) -> u64 {
        debug_assert!(batch.ends.is_empty());
        std::mem::swap(&mut self.waiting, batch);
        std::mem::take(&mut self.n_dropped)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, proptest};

    use super::*;

    fn lines_of(batch: &LineBatch) -> String {
        batch.pieces().map(|(piece, _)| String::from_utf8_lossy(piece).into_owned()).collect()
    }

    #[test]
    fn what_has_no_room_is_counted_until_the_writer_takes_the_rest() {
        let (mut queue, mut batch) = (LineQueue::default(), LineBatch::default());
        let half = format!("{}\n", "x".repeat(MAX_BYTES / 2 - 1));
        for (line, n_records) in [(&*half, 1), (&half, 1), ("no room\n", 1), ("it counts six others\n", 7)] {
            queue.push(line, n_records);
        }
        assert_eq!(queue.take(&mut batch), 8);
        assert_eq!(lines_of(&batch), format!("{half}{half}"));
        batch.clear();
        queue.push("room again\n", 1);
        assert_eq!((queue.take(&mut batch), lines_of(&batch).as_str()), (0, "room again\n"));
        assert!(queue.is_empty());
    }

    #[test]
    fn the_number_of_lines_is_bounded_and_a_huge_line_is_dropped() {
        let (mut queue, mut batch) = (LineQueue::default(), LineBatch::default());
        for _ in 0..MAX_LINES + 5 {
            queue.push("\n", 1);
        }
        assert_eq!((queue.take(&mut batch), batch.ends.len()), (5, MAX_LINES));
        batch.clear();
        queue.push(&"x".repeat(MAX_BYTES + 1), 1);
        assert!(!queue.is_empty(), "the count waits for the writer");
        assert_eq!((queue.take(&mut batch), batch.ends.len()), (1, 0));
    }

    proptest! {
        #[test]
        fn pieces_are_whole_lines_in_order(lengths in prop::collection::vec(0..3 * MAX_PIECE, 0..40)) {
            let mut batch = LineBatch::default();
            let mut all = String::new();
            for (n, length) in lengths.iter().enumerate() {
                let line = format!("{}\n", "x".repeat(*length));
                batch.push(&line, n as u64);
                all.push_str(&line);
            }
            assert_eq!(lines_of(&batch), all);
            let total: u64 = batch.pieces().map(|(_, n_records)| n_records).sum();
            let expected: u64 = (0..lengths.len() as u64).sum();
            assert_eq!(total, expected);
            for (piece, _) in batch.pieces() {
                assert_eq!(piece.last(), Some(&b'\n'));
                assert!(piece.len() <= MAX_PIECE || piece.iter().filter(|byte| **byte == b'\n').count() == 1);
            }
        }
    }
}
