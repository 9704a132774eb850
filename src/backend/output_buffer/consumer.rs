//! The consumer of an execution's output: how far it has read, and the few items that wait for it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::BackendEvent,
    protocol::execute::Overflow,
    stream::{Gap, GapReason, PerStream, Stream},
};
use tokio::sync::{mpsc, oneshot};

use super::{kept::KeptOutput, retention::UnreadPolicy, stored::StoredRange};
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
    /// How far output itself was handed over, and not only a range of a file.
    pub(super) handed: PerStream<u64>,
    /// Whether its client has received everything before the cursor. False for a gateway that attaches again: it knows
    /// what it has read, not what its client has.
    pub has_arrived: bool,
    /// Since when it has no room, as of the last delivery.
    pub(super) blocked_since: Option<Instant>,
    /// Events that it had no room for.
    unsent: VecDeque<BackendEvent>,
    /// The index of the stream that is delivered first. The streams take turns.
    first_stream: usize,
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
            handed: offsets,
            has_arrived: true,
            blocked_since: None,
            unsent: VecDeque::new(),
            first_stream: 0,
        };
        (consumer, ConsumerFeed { items: receiver, dismissed, released })
    }

    pub(super) fn dismiss(self, reason: DismissReason) {
        let (body, socket) = self.dismiss;
        // Either receiver may be gone already.
        let _ = body.send(reason);
        let _ = socket.send(reason);
    }

    /// Whether its response has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.items.is_closed()
    }

    /// Waits until it makes room, if it had none at the last delivery, or is gone.
    pub(super) async fn room_or_end(&self) {
        if self.blocked_since.is_some() {
            // Fails if it is gone.
            let _ = self.items.reserve().await;
        } else {
            self.items.closed().await;
        }
    }

    /// The time at which the consumer counts as gone, because its slots have been full for `patience`. `None` while a slot
    /// is free. A consumer that is not a gateway counts as gone only while the execution `is_ending`.
    pub(super) fn vanishes_at(&self, patience: Duration, is_ending: bool) -> Option<Instant> {
        // It may have made room since the last delivery.
        let is_blocked = self.items.capacity() == 0 && (self.is_gateway || is_ending);
        self.blocked_since.filter(|_| is_blocked).map(|since| since + patience)
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

    /// Whether it has received all events and everything before this offset of a stream, and has room.
    pub(super) fn can_take(&self, stream: Stream, offset: u64) -> bool {
        *self.cursor.get(stream) == offset && self.unsent.is_empty() && self.items.capacity() > 0
    }

    /// Takes output that follows everything that it has received, see [`Consumer::can_take`].
    pub(super) fn take(&mut self, stream: Stream, bytes: Bytes) {
        *self.cursor.get_mut(stream) += bytes.len() as u64;
        *self.handed.get_mut(stream) = *self.cursor.get(stream);
        // Fails if it is gone, which `consumer_change` reports.
        let _ = self.items.try_send(ConsumerItem::Output { stream, bytes });
    }

    /// Adds an event to those that it has not received. Of events of one kind only the newest is kept.
    pub(super) fn queue_event(&mut self, event: BackendEvent) {
        let replaces = |older: &BackendEvent| {
            matches!(
                (older, &event),
                (BackendEvent::Queued(_), BackendEvent::Queued(_) | BackendEvent::Started(_))
                    | (BackendEvent::Status(_), BackendEvent::Status(_))
            )
        };
        if self.unsent.back().is_some_and(replaces) {
            self.unsent.pop_back();
        }
        self.unsent.push_back(event);
    }

    /// Sends an event if it has room and no other event waits for it.
    pub(super) fn send_event_if_room(&self, event: BackendEvent) {
        if self.unsent.is_empty() {
            let _ = self.items.try_send(ConsumerItem::Event(event));
        }
    }

    /// Sends the last event, for which it has room because it has received everything else.
    pub(super) fn finish(self, event: BackendEvent) {
        let _ = self.items.try_send(ConsumerItem::Event(event));
    }

    /// Hands over events and output while it has room. Returns true when it has received everything.
    pub(super) fn deliver(&mut self, kept: &KeptOutput, now: Instant) -> bool {
        loop {
            if self.items.capacity() == 0 {
                self.blocked_since.get_or_insert(now);
                return false;
            }
            self.blocked_since = None;
            let before = self.cursor;
            let item = match self.unsent.pop_front() {
                Some(event) => ConsumerItem::Event(event),
                None => match self.next_item(kept) {
                    Some(item) => item,
                    None => return true,
                },
            };
            let stream = match &item {
                ConsumerItem::Output { stream, .. } | ConsumerItem::Event(BackendEvent::Gap(Gap { stream, .. })) => {
                    Some(*stream)
                }
                // Read from its file later, if the consumer stays.
                ConsumerItem::Stored(..) | ConsumerItem::Event(_) => None,
            };
            if self.items.try_send(item).is_err() {
                self.cursor = before;
                return false;
            }
            if let Some(stream) = stream {
                *self.handed.get_mut(stream) = *self.cursor.get(stream);
            }
        }
    }

    /// The next piece that it has not received, or the gap before it.
    fn next_item(&mut self, kept: &KeptOutput) -> Option<ConsumerItem> {
        let KeptOutput { rings, stored, policy, acknowledged, .. } = kept;
        let stored = stored.as_ref();
        for _ in 0..Stream::BOTH.len() {
            let stream = Stream::BOTH[self.first_stream];
            self.first_stream = (self.first_stream + 1) % Stream::BOTH.len();
            let (ring, cursor) = (rings.get(stream), self.cursor.get_mut(stream));
            if *cursor < ring.start() {
                let dropped = *policy == UnreadPolicy::Detach(Overflow::Drop) && *cursor >= *acknowledged.get(stream);
                let reason = if dropped { GapReason::Dropped } else { GapReason::Overwritten };
                // A ring without bytes is that of an ended execution: the rest fits in one item, and the response tells
                // the gap before the first byte that is there.
                let has_ended = ring.start() == ring.end();
                let first = stored.map_or(ring.start(), |stored| *stored.starts().get(stream)).min(ring.start());
                if has_ended || *cursor >= first {
                    let most = if has_ended { u64::MAX } else { STORED_PIECE };
                    if let Some(mut range) = stored.and_then(|stored| stored.range(stream, *cursor, most)) {
                        // Also beyond the end of a file that the disk did not take as a whole: what cannot be read is
                        // a gap, so one item has all of a stream.
                        range.to = if has_ended { ring.start() } else { range.to.min(ring.start()) };
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
    /// It has made room, or something has changed about an observer.
    Room,
    /// It is gone.
    Gone,
    /// It has read nothing for too long, and its gateway has not polled.
    Vanished,
}
