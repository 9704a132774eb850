//! The part of an output stream that can be read at one moment, for readers that are not consumers. Pure: the file is only
//! passed on.

use std::{ops::Range, sync::Arc};

use cc_executor_actors::stream::Stream;

use super::{ring::Ring, stored::StoredOutput};
use crate::backend::storage::stored_file::StoredFile;

/// The part of a stream that can be read.
#[derive(Clone, Debug)]
pub struct StreamExtent {
    /// How much was written, in bytes.
    pub written: u64,
    /// The offsets that can be read, without a hole.
    pub there: Range<u64>,
    /// The file, and the offset up to which it has the bytes. The ring has those after it.
    pub file: Option<(Arc<StoredFile>, u64)>,
}

impl StreamExtent {
    /// What these parts of a stream have.
    pub(super) fn of(stream: Stream, ring: &Ring, stored: Option<&StoredOutput>) -> StreamExtent {
        let in_ring = StreamExtent { written: ring.end(), there: ring.start()..ring.end(), file: None };
        let Some(stored) = stored else { return in_ring };
        let file = stored.files().get(stream);
        let (start, end) = (file.start(), *stored.ends().get(stream));
        let there = match ring.start() {
            _ if start >= end => return in_ring,
            from if from <= end => start..ring.end(),
            // Between file and ring bytes are missing, because the disk has failed: the newer part counts.
            _ if ring.start() < ring.end() => return in_ring,
            _ => start..end,
        };
        StreamExtent { there, file: Some((Arc::clone(file), end)), ..in_ring }
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::stream::PerStream;

    use super::*;

    /// A stream with the file's start and end, and a ring of 10 bytes.
    fn extent(written: usize, file: Option<Range<u64>>, is_ring_gone: bool) -> (u64, Range<u64>, Option<u64>) {
        let mut ring = Ring::new(10);
        ring.push(&vec![0; written]);
        if is_ring_gone {
            ring = Ring::without_bytes(written as u64);
        }
        let stored = file.map(|range| {
            let file = |start| Arc::new(StoredFile::at("/nowhere".into(), start));
            let ends = PerStream { stdout: range.end, stderr: 0 };
            StoredOutput::ended(PerStream { stdout: file(range.start), stderr: file(0) }, ends)
        });
        let extent = StreamExtent::of(Stream::Stdout, &ring, stored.as_ref());
        (extent.written, extent.there, extent.file.map(|(_, end)| end))
    }

    #[test]
    fn file_and_ring_are_read_as_one_where_they_meet() {
        for (written, file, is_ring_gone, there, file_end) in [
            (5, None, false, 0..5, None),
            (25, None, false, 15..25, None),
            (25, None, true, 25..25, None),
            (0, Some(0..0), false, 0..0, None),
            (25, Some(0..25), false, 0..25, Some(25)),
            (25, Some(7..25), true, 7..25, Some(25)),
            (25, Some(25..25), true, 25..25, None),
            // The disk has failed.
            (25, Some(3..18), false, 3..25, Some(18)),
            (25, Some(3..15), false, 3..25, Some(15)),
            (25, Some(3..14), false, 15..25, None),
            (25, Some(3..14), true, 3..14, Some(14)),
            (25, Some(0..0), false, 15..25, None),
        ] {
            assert_eq!(extent(written, file.clone(), is_ring_gone), (written as u64, there, file_end), "{file:?}");
        }
    }
}
