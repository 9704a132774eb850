//! Reads a range of a stream from its file, piece by piece, on tokio's blocking pool: a disk that hangs holds up this
//! response alone.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::BackendEvent,
    stream::{Gap, GapReason, Stream},
};
use log::warn;
use tokio::task::JoinHandle;

use crate::backend::{output_buffer::StoredRange, storage::stored_file::StoredPiece};

/// A piece of output, or an event, in the order of the stream.
#[derive(Debug)]
pub(super) enum StreamItem {
    Output { stream: Stream, bytes: Bytes },
    Event(BackendEvent),
}

/// A range that is being read.
pub(super) struct StoredRead {
    range: StoredRange,
    /// Why bytes are missing that were given up meanwhile.
    given_up: GapReason,
    under_way: Option<JoinHandle<io::Result<StoredPiece>>>,
}

impl StoredRead {
    pub(super) fn new(range: StoredRange, given_up: GapReason) -> Self {
        StoredRead { range, given_up, under_way: None }
    }

    /// The next piece, or a gap in place of bytes that are not there; `None` at the end of the range.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        let StoredRange { stream, from, to, .. } = self.range;
        if from == to {
            return Poll::Ready(None);
        }
        let reading = self.under_way.get_or_insert_with(|| {
            let file = Arc::clone(&self.range.file);
            tokio::task::spawn_blocking(move || file.read(from, to))
        });
        let read = ready!(Pin::new(reading).poll(cx));
        self.under_way = None;
        let gap = |to, reason| StreamItem::Event(BackendEvent::Gap(Gap { stream, from, to, reason }));
        let (next, item) = match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(StoredPiece::Bytes(bytes)) => (from + bytes.len() as u64, StreamItem::Output { stream, bytes }),
            Ok(StoredPiece::GivenUp(start)) => (start, gap(start, self.given_up)),
            Err(error) => {
                warn!(event = "storage.unreadable", stream = stream.as_str(), from = from, to = to;
                    "cannot read stored output: {error}");
                (to, gap(to, GapReason::Unreadable))
            }
        };
        self.range.from = next;
        Poll::Ready(Some(item))
    }
}
