//! The consumer of an execution's output: how far it has read, and the few items that wait for it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::BackendEvent,
    protocol::execute::Overflow,
    stream::{Gap, GapReason, PerStream, Stream},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    retention::UnreadPolicy,
    ring::Ring,
    stored::{StoredOutput, StoredRange},
};
use crate::{backend::holds::Claim, server::connection::PeerTimeout};

/// How many items wait for a consumer besides the output in the rings. All that is sent of an execution whose output is
/// gone fits in here: its state, a gap in each stream, and its ending.
pub const SLOTS: usize = 4;

/// The longest piece that is handed over, in bytes.
const PIECE: usize = 64 * 1024;

/// The longest range of a file that is handed over while the execution runs, in bytes. Short, because a consumer counts as
/// reading when it takes the next item.
const STORED_PIECE: u64 = 256 * 1024;

/// A piece of output, or an event.
#[derive(Debug)]
pub enum ConsumerItem {
    /// Output.
    Output {
        /// Which stream.
        stream: Stream,
        /// The bytes.
        bytes: Bytes,
    },
    /// Output that the response reads from its file.
    Stored(StoredRange, GapReason),
    /// An event of the backend. `Exit` is the last item.
    Event(BackendEvent),
}

/// Why a consumer is dismissed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DismissReason {
    /// Another consumer has attached.
    TakenOver,
    /// It has read nothing for too long, and its gateway has not polled.
    Vanished,
    /// Its gateway has attached again over another connection.
    Replaced,
}

/// The execution's end of a consumer.
#[derive(Debug)]
pub struct Consumer {
    pub(super) items: mpsc::Sender<ConsumerItem>,
    /// Two ends for the reason: the response body, which sends it on, and the task that shuts down a socket whose peer
    /// does not read.
    dismiss: (oneshot::Sender<DismissReason>, oneshot::Sender<DismissReason>),
    /// Whether it is a gateway, which acknowledges, and polls the execution's state while it does not read.
    pub(super) is_gateway: bool,
    /// The time-out of a gateway's connection.
    pub peer_timeout: Option<PeerTimeout>,
    /// The claim with which it attaches.
    pub claim: Claim,
    pub(super) cursor: PerStream<u64>,
    /// Whether its client has received everything before the cursor. False for a gateway that attaches again: it knows
    /// what it has read, not what its client has.
    pub has_arrived: bool,
    /// Since when it has no room, as of the last delivery.
    pub(super) blocked_since: Option<Instant>,
}

/// The response's end of a consumer.
#[derive(Debug)]
pub struct ConsumerFeed {
    /// Output and events.
    pub items: mpsc::Receiver<ConsumerItem>,
    /// Gets the reason when the consumer is dismissed.
    pub dismissed: oneshot::Receiver<DismissReason>,
    /// The same, for the task that shuts the socket down.
    pub released: oneshot::Receiver<DismissReason>,
}

impl Consumer {
    /// A consumer that has read everything before these offsets.
    pub fn new(offsets: PerStream<u64>, is_gateway: bool) -> (Consumer, ConsumerFeed) {
        let (items, receiver) = mpsc::channel(SLOTS);
        let (dismiss, dismissed) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let consumer = Consumer {
            items,
            dismiss: (dismiss, release),
            is_gateway,
            peer_timeout: None,
            claim: Claim::Request(None),
            cursor: offsets,
            has_arrived: true,
            blocked_since: None,
        };
        (consumer, ConsumerFeed { items: receiver, dismissed, released })
    }

    pub(super) fn dismiss(self, reason: DismissReason) {
        let (body, socket) = self.dismiss;
        // Either receiver may be gone already.
        let _ = body.send(reason);
        let _ = socket.send(reason);
    }

    /// Waits for the next change, see [`OutputBuffer::consumer_change`](super::OutputBuffer::consumer_change). A
    /// consumer that is not a gateway may stop reading until the execution `is_ending`.
    pub(super) async fn change(&self, patience: Duration, polled_at: Instant, is_ending: bool) -> ConsumerChange {
        // As of the last delivery, because the consumer may have made room since.
        let Some(blocked_since) = self.blocked_since else {
            self.items.closed().await;
            return ConsumerChange::Gone;
        };
        // Only a gateway polls on behalf of its client.
        let since = if self.is_gateway { blocked_since.max(polled_at) } else { blocked_since };
        let vanished = async {
            if self.is_gateway || is_ending {
                tokio::time::sleep_until((since + patience).into()).await;
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            room = self.items.reserve() => if room.is_ok() { ConsumerChange::Room } else { ConsumerChange::Gone },
            () = vanished => ConsumerChange::Vanished,
        }
    }

    /// The next piece that it has not received, or the gap before it. `first` is the index of the stream to begin with;
    /// the streams take turns.
    pub(super) fn next_item(
        &mut self,
        rings: &PerStream<Ring>,
        stored: Option<&StoredOutput>,
        first: &mut usize,
        policy: UnreadPolicy,
        acknowledged: &PerStream<u64>,
    ) -> Option<ConsumerItem> {
        for _ in 0..Stream::BOTH.len() {
            let stream = Stream::BOTH[*first];
            *first = (*first + 1) % Stream::BOTH.len();
            let (ring, cursor) = (rings.get(stream), self.cursor.get_mut(stream));
            if *cursor < ring.start() {
                let dropped = policy == UnreadPolicy::Detach(Overflow::Drop) && *cursor >= *acknowledged.get(stream);
                let reason = if dropped { GapReason::Dropped } else { GapReason::Overwritten };
                // A ring without bytes is that of an ended execution: the rest fits in one item, and the response tells
                // the gap before the first byte that is there.
                let has_ended = ring.start() == ring.end();
                let first = stored.map_or(ring.start(), |stored| *stored.starts().get(stream)).min(ring.start());
                if has_ended || *cursor >= first {
                    let most = if has_ended { u64::MAX } else { STORED_PIECE };
                    if let Some(mut range) = stored.and_then(|stored| stored.range(stream, *cursor, most)) {
                        range.to = range.to.min(ring.start());
                        *cursor = range.to;
                        return Some(ConsumerItem::Stored(range, reason));
                    }
                }
                let to = if *cursor < first { first } else { ring.start() };
                let gap = Gap { stream, from: *cursor, to, reason };
                *cursor = gap.to;
                return Some(ConsumerItem::Event(BackendEvent::Gap(gap)));
            }
            let piece = ring.piece(*cursor, PIECE);
            if !piece.is_empty() {
                *cursor += piece.len() as u64;
                return Some(ConsumerItem::Output { stream, bytes: Bytes::copy_from_slice(piece) });
            }
        }
        None
    }
}

/// A change of the consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsumerChange {
    /// It has made room.
    Room,
    /// It is gone.
    Gone,
    /// It has read nothing for too long, and its gateway has not polled.
    Vanished,
}
