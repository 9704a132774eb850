//! The only way to a client, and where a slow client is noticed: a queue before a small bounded channel of WebSocket
//! frames. Output that waits here has a [`Credit`]; until that completes, `Relay::flush` (`execution/relay.rs`) holds
//! the execution back.
//!
//! The channel's receiving end, [`Frames`], is the body of the HTTP response. If the client does not read, the channel
//! fills and messages wait in the queue. Each kind is bounded there: responses by their limit, heartbeats and pongs to
//! one, output to one batch by its [`Credit`], other messages by the few changes of an execution.
//!
//! The sender of the channel is never cloned. [`Outbox::close`] consumes the outbox; the remaining [`Closing`] can only
//! flush the queue.

use std::{
    cell::Cell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{Notify, mpsc, oneshot};

use super::phase::Outgoing;
use crate::{close::CloseReason, protocol::notification::ServerMessage, ws::frame};

/// How long a closed session still reads, so that the client's own close frame can arrive.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// Frames, or batches of output frames, in the channel to the socket.
const SLOTS: usize = 4;

/// The sending end.
#[derive(Debug)]
pub struct Outbox {
    pipe: Pipe,
}

/// An outbox after its close frame.
#[derive(Debug)]
pub struct Closing {
    pipe: Pipe,
}

#[derive(Debug)]
struct Pipe {
    frames: mpsc::Sender<Bytes>,
    queue: VecDeque<QueuedFrame>,
    room: Rc<RoomSignal>,
}

#[derive(Debug)]
struct QueuedFrame {
    kind: FrameKind,
    frame: Bytes,
    /// Completes the [`Credit`] of output.
    credit: Option<oneshot::Sender<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FrameKind {
    Message,
    Response,
    Heartbeat,
    Pong,
    Output,
}

/// Signals that the channel has room again after it was full, or that the receiving end is gone.
#[derive(Debug, Default)]
pub struct RoomSignal {
    /// Whether the queue has met a full channel since the last signal.
    wanted: Cell<bool>,
    made: Notify,
    taken: Cell<u64>,
}

impl RoomSignal {
    fn notify(&self) {
        if self.wanted.replace(false) {
            self.made.notify_one();
        }
    }

    /// The bytes that the server has taken for the client's socket so far.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Waits for the next signal.
    pub async fn wait(&self) {
        self.made.notified().await;
    }
}

/// The permission to send more output: `None` is immediate, otherwise it completes when the last output is in the
/// channel.
pub type Credit = Option<oneshot::Receiver<()>>;

/// The receiving end: the body of the response.
///
/// After the last frame it stays open until the [`Linger`] is dropped, so that the connection is read until the
/// client's close frame arrives, and is not reset because of unread input.
pub struct Frames {
    frames: mpsc::Receiver<Bytes>,
    room: Rc<RoomSignal>,
    linger: Option<oneshot::Receiver<()>>,
}

/// Keeps the response open until it is dropped.
#[derive(Debug)]
pub struct Linger {
    _held: oneshot::Sender<()>,
}

impl Outbox {
    /// Returns an outbox, its receiving end, and the guard that keeps the receiving end open.
    pub fn new() -> (Outbox, Frames, Linger) {
        let (sender, receiver) = mpsc::channel(SLOTS);
        let (held, linger) = oneshot::channel();
        let room = Rc::new(RoomSignal::default());
        let frames = Frames { frames: receiver, room: Rc::clone(&room), linger: Some(linger) };
        let pipe = Pipe { frames: sender, queue: VecDeque::new(), room };
        (Outbox { pipe }, frames, Linger { _held: held })
    }

    /// The signal after which [`Outbox::flush`] makes progress.
    pub fn room(&self) -> Rc<RoomSignal> {
        Rc::clone(&self.pipe.room)
    }

    /// Sends a message after all earlier ones.
    pub fn send(&mut self, message: Outgoing) {
        let (kind, frame) = match message {
            // A failed call without id gets an `error` instead of a response, so it counts as a response.
            Outgoing::Message(message @ (ServerMessage::Response(_) | ServerMessage::Error(_))) => {
                (FrameKind::Response, frame::text(&message))
            }
            Outgoing::Message(message) => (FrameKind::Message, frame::text(&message)),
            Outgoing::Heartbeat(update) => (FrameKind::Heartbeat, frame::text(&ServerMessage::Progress(update))),
            Outgoing::Ping(payload) => (FrameKind::Message, frame::ping(&payload)),
            Outgoing::Pong(payload) => (FrameKind::Pong, frame::pong(&payload)),
            Outgoing::Output(frames) => (FrameKind::Output, frames),
        };
        self.pipe.push(kind, frame);
    }

    /// Sends the close frame.
    pub fn close(mut self, reason: &CloseReason) -> Closing {
        self.pipe.push(FrameKind::Message, frame::close(reason.code.into(), &reason.text));
        Closing { pipe: self.pipe }
    }

    /// Moves queued frames into the channel while it has room. Returns false if the client is gone.
    pub fn flush(&mut self) -> bool {
        self.pipe.flush()
    }

    /// The credit of the last output, if that output still waits for room.
    ///
    /// The session replies to the execution when it completes; `Relay::flush` waits for that reply.
    pub fn credit(&mut self) -> Credit {
        let is_waiting = |queued: &&mut QueuedFrame| queued.kind == FrameKind::Output && queued.credit.is_none();
        let output = self.pipe.queue.iter_mut().find(is_waiting)?;
        let (sender, receiver) = oneshot::channel();
        output.credit = Some(sender);
        Some(receiver)
    }

    /// Whether messages wait for the client.
    pub fn is_blocked(&self) -> bool {
        !self.pipe.queue.is_empty()
    }

    /// The number of responses that wait for the client.
    pub fn unsent_responses(&self) -> usize {
        self.pipe.queue.iter().filter(|queued| queued.kind == FrameKind::Response).count()
    }
}

impl Closing {
    /// Moves queued frames into the channel. Returns true if no frame is left, or the client is gone.
    pub fn flush(&mut self) -> bool {
        !self.pipe.flush() || self.pipe.queue.is_empty()
    }
}

impl Pipe {
    /// Queues a frame. A heartbeat or a pong replaces an unsent frame of its kind.
    fn push(&mut self, kind: FrameKind, frame: Bytes) {
        let is_replaced = matches!(kind, FrameKind::Heartbeat | FrameKind::Pong);
        match self.queue.iter_mut().find(|queued| is_replaced && queued.kind == kind) {
            Some(unsent) => unsent.frame = frame,
            None => self.queue.push_back(QueuedFrame { kind, frame, credit: None }),
        }
        self.flush();
    }

    fn flush(&mut self) -> bool {
        while !self.queue.is_empty() {
            match self.frames.try_reserve() {
                Ok(permit) => {
                    if let Some(QueuedFrame { frame, credit, .. }) = self.queue.pop_front() {
                        permit.send(frame);
                        // The execution may have ended meanwhile.
                        credit.map(|credit| credit.send(()));
                    }
                }
                Err(mpsc::error::TrySendError::Full(())) => {
                    self.room.wanted.set(true);
                    return true;
                }
                Err(mpsc::error::TrySendError::Closed(())) => {
                    self.queue.clear();
                    return false;
                }
            }
        }
        !self.frames.is_closed()
    }
}

impl Stream for Frames {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.frames.poll_recv(cx) {
            Poll::Ready(Some(frames)) => {
                self.room.taken.set(self.room.taken.get() + frames.len() as u64);
                self.room.notify();
                Poll::Ready(Some(frames))
            }
            Poll::Ready(None) => match self.linger.as_mut() {
                Some(linger) => Pin::new(linger).poll(cx).map(|_| {
                    self.linger = None;
                    None
                }),
                None => Poll::Ready(None),
            },
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.frames.close();
        self.room.wanted.set(true);
        self.room.notify();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::close::CloseCode;

    fn fill(outbox: &mut Outbox) {
        for _ in 0..SLOTS {
            outbox.send(Outgoing::Output(Bytes::from_static(b"x")));
            assert!(outbox.credit().is_none(), "there is room");
        }
    }

    #[test]
    fn credit_completes_when_the_client_has_read() {
        let (mut outbox, mut frames, _linger) = Outbox::new();
        fill(&mut outbox);
        outbox.send(Outgoing::Output(Bytes::from_static(b"y")));
        let mut credit = outbox.credit().expect("the channel is full");
        assert!(outbox.is_blocked() && credit.try_recv().is_err());
        let room = outbox.room();
        assert!(room.wait().now_or_never().is_none());
        assert!(frames.next().now_or_never().flatten().is_some());
        assert!(room.wait().now_or_never().is_some());
        assert!(outbox.flush());
        assert!(credit.try_recv().is_ok());
    }

    #[test]
    fn only_the_newest_pong_waits_for_a_client_that_does_not_read() {
        let (mut outbox, _frames, _linger) = Outbox::new();
        fill(&mut outbox);
        for n in 0..1_000u32 {
            outbox.send(Outgoing::Pong(Bytes::copy_from_slice(&n.to_be_bytes())));
        }
        assert_eq!(outbox.pipe.queue.len(), 1);
    }

    #[test]
    fn the_close_frame_comes_after_all_earlier_messages_and_last() {
        let (mut outbox, mut frames, linger) = Outbox::new();
        fill(&mut outbox);
        outbox.send(Outgoing::Pong(Bytes::from_static(b"late")));
        let mut closing = outbox.close(&CloseReason::new(CloseCode::Normal, "bye"));
        assert!(!closing.flush());
        let mut got = Vec::new();
        while let Some(Some(frame)) = frames.next().now_or_never() {
            got.push(frame);
            closing.flush();
        }
        assert_eq!(got.len(), SLOTS + 2);
        assert_eq!((got[SLOTS][0], got[SLOTS + 1][0]), (0x8a, 0x88));
        assert!(closing.flush());
        drop(closing);
        assert!(frames.next().now_or_never().is_none(), "the response stays open while it lingers");
        drop(linger);
        assert_eq!(frames.next().now_or_never(), Some(None));
    }

    #[test]
    fn a_dropped_receiving_end_is_noticed() {
        let (mut outbox, frames, _linger) = Outbox::new();
        let room = outbox.room();
        drop(frames);
        assert!(room.wait().now_or_never().is_some());
        assert!(!outbox.flush());
    }
}
