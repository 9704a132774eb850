//! Whoever follows an execution: what it has had, and the few items that wait for it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::BackendEvent,
    protocol::execute::Overflow,
    stream::{Gap, GapReason, PerStream, Stream},
};
use tokio::sync::{mpsc, oneshot};

use super::{retention::UnreadPolicy, ring::Ring};
use crate::{backend::holds::Claim, server::connection::PeerTimeout};

/// Pieces of output, or words, that wait for a consumer beside the rings. All that is said of an execution whose output
/// is gone fits in here: how it stands, a gap in each stream, and its ending.
pub const SLOTS: usize = 4;

/// The most that is handed over at a time, in bytes.
const PIECE: usize = 64 * 1024;

/// What a consumer is given.
#[derive(Debug)]
pub enum ConsumerItem {
    /// Output.
    Output {
        /// Which stream.
        stream: Stream,
        /// The bytes.
        bytes: Bytes,
    },
    /// A word of the backend. `Exit` is the last item.
    Word(BackendEvent),
}

/// Why a consumer is sent away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DismissReason {
    /// Another one has come.
    TakenOver,
    /// It took nothing, and nobody asked for it.
    Vanished,
    /// Its gateway has come back for it over another connection.
    Replaced,
}

/// Whoever follows an execution.
#[derive(Debug)]
pub struct Consumer {
    pub(super) items: mpsc::Sender<ConsumerItem>,
    /// To the body, which says it, and to whoever makes sure that its socket comes back.
    pub(super) dismiss: (oneshot::Sender<DismissReason>, oneshot::Sender<DismissReason>),
    /// A gateway: it acknowledges, and asks how the execution is while it does not read.
    pub(super) is_gateway: bool,
    /// Looks after its connection, where it is a gateway's.
    pub(super) watch: Option<PeerTimeout>,
    /// How it asks for the execution.
    pub(super) claim: Claim,
    pub(super) cursor: PerStream<u64>,
    /// What comes before the cursor has arrived where it was to go. A gateway that comes back for itself
    /// knows only that it has read it.
    pub(super) has_arrived: bool,
    /// Since when there was no room for it, as of the last delivery.
    pub(super) blocked_since: Option<Instant>,
}

/// The consumer's end.
#[derive(Debug)]
pub struct ConsumerFeed {
    /// What it is given.
    pub items: mpsc::Receiver<ConsumerItem>,
    /// Fires when it is sent away.
    pub dismissed: oneshot::Receiver<DismissReason>,
    /// The same, for whoever watches its socket.
    pub released: oneshot::Receiver<DismissReason>,
}

impl Consumer {
    /// A consumer that has so much of each stream already.
    pub fn new(offsets: PerStream<u64>, is_gateway: bool) -> (Consumer, ConsumerFeed) {
        let (items, receiver) = mpsc::channel(SLOTS);
        let (dismiss, dismissed) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let consumer = Consumer {
            items,
            dismiss: (dismiss, release),
            is_gateway,
            watch: None,
            claim: Claim::Request(None),
            cursor: offsets,
            has_arrived: true,
            blocked_since: None,
        };
        (consumer, ConsumerFeed { items: receiver, dismissed, released })
    }

    /// The same, with somebody who looks after its connection.
    pub fn watched(self, watch: Option<PeerTimeout>) -> Consumer {
        Consumer { watch, ..self }
    }

    /// The same, of which only acknowledgements say what has arrived.
    pub fn arrived(self, has_arrived: bool) -> Consumer {
        Consumer { has_arrived, ..self }
    }

    /// The same, under this name.
    pub fn claiming(self, claim: Claim) -> Consumer {
        Consumer { claim, ..self }
    }

    pub(super) fn dismiss(self, why: DismissReason) {
        let (body, watch) = self.dismiss;
        // Either may be gone already.
        let _ = body.send(why);
        let _ = watch.send(why);
    }

    /// Waits until it makes room, is gone, or has vanished: it took nothing for so long, and its gateway did not ask for
    /// it since `asked_at` either. One that is not a gateway's may stop reading until the execution has `finished`.
    pub(super) async fn changed(&self, patience: Duration, asked_at: Instant, finished: bool) -> ConsumerChange {
        // What the last delivery found, not what is there now: the consumer may have made room since.
        let Some(blocked_since) = self.blocked_since else {
            self.items.closed().await;
            return ConsumerChange::Gone;
        };
        // Only a gateway asks for its client's sake.
        let since = if self.is_gateway { blocked_since.max(asked_at) } else { blocked_since };
        let vanished = async {
            if self.is_gateway || finished {
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

    /// The next piece that it has not had, or the gap before it. `first` is the stream that is looked at first: they
    /// take turns.
    pub(super) fn next_item(
        &mut self,
        rings: &PerStream<Ring>,
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
                let gap = Gap { stream, from: *cursor, to: ring.start(), reason };
                *cursor = gap.to;
                return Some(ConsumerItem::Word(BackendEvent::Gap(gap)));
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

/// What happened to the consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsumerChange {
    /// It has made room.
    Room,
    /// It is gone.
    Gone,
    /// It has taken nothing for too long, and nobody asked for it.
    Vanished,
}
