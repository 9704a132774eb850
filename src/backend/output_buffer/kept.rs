//! What is kept of an execution's output: the rings, the files if it has them, and what its client has acknowledged. It
//! knows no consumer.

use bytes::Bytes;
use cc_executor_actors::{
    protocol::execute::Overflow,
    stream::{PerStream, Stream},
};

use super::{error::OffsetError, extent::StreamExtent, retention::UnreadPolicy, ring::Ring, stored::StoredOutput};

/// How much acknowledged output is kept of an execution whose output waits for its client, in bytes. A pong proves that a
/// client library has received a message; the program may not have taken it yet when it dies.
pub(super) const RECEIVED_MARGIN: usize = 2 << 20;

/// What is kept of the output.
#[derive(Debug)]
pub(super) struct KeptOutput {
    pub(super) rings: PerStream<Ring>,
    /// What is on disk, if the execution keeps its output there.
    pub(super) stored: Option<StoredOutput>,
    pub(super) acknowledged: PerStream<u64>,
    pub(super) policy: UnreadPolicy,
    /// How much of each stream may wait for acknowledgement in its ring, in bytes.
    unacknowledged_limits: PerStream<u64>,
}

impl KeptOutput {
    /// Nothing yet, with rings of this size and `slack` more.
    pub(super) fn new(
        policy: UnreadPolicy,
        ring_bytes: PerStream<usize>,
        slack: usize,
        stored: Option<StoredOutput>,
    ) -> Self {
        let margin = if policy == UnreadPolicy::Detach(Overflow::Wait) { RECEIVED_MARGIN } else { 0 };
        KeptOutput {
            rings: ring_bytes.map(|bytes| bytes + slack + margin).map(Ring::new),
            stored,
            acknowledged: PerStream::default(),
            policy,
            unacknowledged_limits: ring_bytes.map(|bytes| bytes as u64),
        }
    }

    /// What is left of an ended execution that has written so much: at most files.
    pub(super) fn without_rings(written: PerStream<u64>, stored: Option<StoredOutput>) -> Self {
        KeptOutput {
            rings: written.map(Ring::without_bytes),
            stored,
            acknowledged: PerStream::default(),
            policy: UnreadPolicy::Overwrite,
            unacknowledged_limits: PerStream::default(),
        }
    }

    /// How much was written to each stream.
    pub(super) fn written(&self) -> PerStream<u64> {
        PerStream { stdout: self.rings.stdout.end(), stderr: self.rings.stderr.end() }
    }

    /// Whether a stream's pipe may be read although its client has not acknowledged everything before.
    pub(super) fn may_wait_for_client(&self, stream: Stream) -> bool {
        match &self.stored {
            Some(stored) if stored.is_growing() => stored.has_room(&self.acknowledged),
            _ => {
                let elsewhere = self.on_disk(stream).max(*self.acknowledged.get(stream));
                self.rings.get(stream).end() - elsewhere < *self.unacknowledged_limits.get(stream)
            }
        }
    }

    /// How much of a stream is on disk.
    fn on_disk(&self, stream: Stream) -> u64 {
        self.stored.as_ref().map_or(0, |stored| *stored.ends().get(stream))
    }

    /// What of a stream can be read now.
    pub(super) fn extent(&self, stream: Stream) -> StreamExtent {
        StreamExtent::of(stream, self.rings.get(stream), self.stored.as_ref())
    }

    /// Gives up stored output beyond the quota; of an execution that is being ended because no client came, as if it
    /// dropped its output. Returns whether disk space can be freed.
    pub(super) fn give_up_stored(&mut self, is_ending: bool) -> bool {
        let Some(stored) = self.stored.as_mut().filter(|stored| stored.is_growing()) else { return false };
        match self.policy {
            UnreadPolicy::Detach(Overflow::Wait) if !is_ending => {
                let floor = self.acknowledged.map(|offset| offset.saturating_sub(RECEIVED_MARGIN as u64));
                stored.give_up(floor, 2 * RECEIVED_MARGIN as u64)
            }
            UnreadPolicy::Detach(_) | UnreadPolicy::Overwrite => stored.give_up(stored.ends(), 0),
        }
    }

    /// Adds output. Returns its offset.
    pub(super) fn push(&mut self, stream: Stream, bytes: &Bytes) -> u64 {
        if let Some(stored) = self.stored.as_mut().filter(|stored| stored.is_growing()) {
            stored.record_written(stream, bytes.len());
        }
        let ring = self.rings.get_mut(stream);
        let before = ring.end();
        ring.push(bytes);
        before
    }

    /// Makes room in a ring for this many more bytes, so that what is only there and what follows `cursor` is not
    /// overwritten.
    pub(super) fn make_room(&mut self, stream: Stream, more: usize, cursor: Option<u64>) {
        let needed = match self.policy {
            UnreadPolicy::Detach(Overflow::Wait) => {
                let acknowledged = self.acknowledged.get(stream).saturating_sub(RECEIVED_MARGIN as u64);
                Some(acknowledged.max(self.on_disk(stream)))
            }
            UnreadPolicy::Detach(Overflow::Drop) | UnreadPolicy::Overwrite => None,
        };
        let ring = self.rings.get_mut(stream);
        let from = needed.into_iter().chain(cursor).min().unwrap_or(ring.end());
        ring.make_room(from, more);
    }

    /// Nothing more will be written. Gives back memory that the rings do not need.
    pub(super) fn finish(&mut self) {
        match &self.stored {
            // The files have everything that the rings have.
            Some(stored) if stored.is_growing() => self.drop_rings(),
            _ => {
                self.rings.stdout.finish();
                self.rings.stderr.finish();
            }
        }
    }

    /// Gives up what is in memory.
    pub(super) fn drop_rings(&mut self) {
        self.rings = self.written().map(Ring::without_bytes);
    }

    /// Memory that the rings take, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.rings.stdout.memory() + self.rings.stderr.memory()
    }

    /// Whether every byte was acknowledged.
    pub(super) fn is_fetched(&self) -> bool {
        Stream::BOTH.into_iter().all(|stream| *self.acknowledged.get(stream) >= self.rings.get(stream).end())
    }

    /// Records that a client has received everything before these offsets, which are not beyond the end.
    pub(super) fn acknowledge(&mut self, offsets: PerStream<u64>) {
        let PerStream { stdout, stderr } = self.acknowledged;
        self.acknowledged = PerStream { stdout: stdout.max(offsets.stdout), stderr: stderr.max(offsets.stderr) };
    }

    /// Checks that offsets are not beyond the end.
    pub(super) fn check_offsets(&self, offsets: PerStream<u64>) -> Result<(), OffsetError> {
        for stream in Stream::BOTH {
            let (asked, end) = (*offsets.get(stream), self.rings.get(stream).end());
            if asked > end {
                return Err(OffsetError { stream, asked, end });
            }
        }
        Ok(())
    }
}
