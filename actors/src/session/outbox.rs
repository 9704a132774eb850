//! The only way to a client: a queue before a small bounded channel of WebSocket frames.
//!
//! The channel's receiving end, [`Frames`], is the body of the HTTP response. When the client does not
//! read, the channel fills and words wait here. Each kind is bounded: responses by their limit,
//! heartbeats and pongs to one, output to one batch by its [`Credit`], other messages by the few
//! changes an execution can go through.
//!
//! The sender of the channel is never cloned. [`Outbox::close`] consumes the outbox; what remains, a
//! [`Closing`], can only pass on what was said before.

use std::{
    cell::Cell,
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, task::AtomicWaker};
use tokio::sync::{mpsc, oneshot};

use super::phase::{Outgoing, Outlet};
use crate::{close::CloseReason, protocol::notification::ServerMessage, ws::frame};

/// Frames, or batches of output frames, on their way to the socket.
const SLOTS: usize = 4;

/// The sending end.
#[derive(Debug)]
pub struct Outbox {
    pipe: Pipe,
}

/// What is left of an outbox after the close frame: it passes on what was said before.
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
enum QueuedFrame {
    Message(Bytes),
    Response(Bytes),
    Heartbeat(Bytes),
    Pong(Bytes),
    Output(Bytes, Option<oneshot::Sender<()>>),
}

impl QueuedFrame {
    fn into_parts(self) -> (Bytes, Option<oneshot::Sender<()>>) {
        match self {
            QueuedFrame::Message(frame)
            | QueuedFrame::Response(frame)
            | QueuedFrame::Heartbeat(frame)
            | QueuedFrame::Pong(frame) => (frame, None),
            QueuedFrame::Output(frames, credit) => (frames, credit),
        }
    }
}

/// Whether the receiving end has made room, or gone away, since the queue last met a full channel.
#[derive(Debug, Default)]
pub struct RoomSignal {
    wanted: Cell<bool>,
    made: Cell<bool>,
    taken: Cell<u64>,
    waker: AtomicWaker,
}

impl RoomSignal {
    fn make(&self) {
        if self.wanted.replace(false) {
            self.made.set(true);
            self.waker.wake();
        }
    }

    /// Bytes that the client's socket has taken so far.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Waits until there is room again. Never ends by itself.
    pub async fn made(&self) {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.made.replace(false) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// The permission to go on after output: it comes when the output has found room.
pub type Credit = Option<oneshot::Receiver<()>>;

/// The receiving end: the body of the response.
///
/// After the last frame it stays open until the [`Linger`] is dropped, so that the connection can be
/// read until the client's own close frame, and is not reset over unread input.
pub struct Frames {
    frames: mpsc::Receiver<Bytes>,
    room: Rc<RoomSignal>,
    linger: Option<oneshot::Receiver<()>>,
}

/// While this is held, the response does not end.
#[derive(Debug)]
pub struct Linger {
    _held: oneshot::Sender<()>,
}

impl Outbox {
    /// An outbox, its receiving end, and what keeps that open.
    pub fn new() -> (Outbox, Frames, Linger) {
        let (sender, receiver) = mpsc::channel(SLOTS);
        let (held, linger) = oneshot::channel();
        let room = Rc::new(RoomSignal::default());
        let frames = Frames { frames: receiver, room: Rc::clone(&room), linger: Some(linger) };
        let pipe = Pipe { frames: sender, queue: VecDeque::new(), room };
        (Outbox { pipe }, frames, Linger { _held: held })
    }

    /// Tells when [`Outbox::flush`] is worth calling.
    pub fn room(&self) -> Rc<RoomSignal> {
        Rc::clone(&self.pipe.room)
    }

    /// Passes on what waits, as far as there is room. False if the client is gone.
    pub fn flush(&mut self) -> bool {
        self.pipe.flush()
    }

    /// The credit of the output said last, if it still waits for room.
    ///
    /// Back-pressure is applied here: the execution reads no more until the credit comes.
    pub fn credit(&mut self) -> Credit {
        self.pipe.queue.iter_mut().find_map(|queued| match queued {
            QueuedFrame::Output(_, credit @ None) => {
                let (sender, receiver) = oneshot::channel();
                *credit = Some(sender);
                Some(receiver)
            }
            _ => None,
        })
    }

    /// Whether anything waits for the client.
    pub fn is_blocked(&self) -> bool {
        !self.pipe.queue.is_empty()
    }

    /// Responses that the client has not made room for.
    pub fn unsent_responses(&self) -> usize {
        self.pipe.queue.iter().filter(|queued| matches!(queued, QueuedFrame::Response(_))).count()
    }
}

impl Outlet for Outbox {
    type Closed = Closing;

    fn send(&mut self, words: Outgoing) {
        let queued = match words {
            Outgoing::Message(message @ ServerMessage::Response(_)) => QueuedFrame::Response(frame::text(&message)),
            // An error without id is what a failed call without id gets: it counts as a response.
            Outgoing::Message(message @ ServerMessage::Error(_)) => QueuedFrame::Response(frame::text(&message)),
            Outgoing::Message(message) => QueuedFrame::Message(frame::text(&message)),
            Outgoing::Heartbeat(progress) => QueuedFrame::Heartbeat(frame::text(&ServerMessage::Progress(progress))),
            Outgoing::Ping(payload) => QueuedFrame::Message(frame::ping(&payload)),
            Outgoing::Pong(payload) => QueuedFrame::Pong(frame::pong(&payload)),
            Outgoing::Output(frames) => QueuedFrame::Output(frames, None),
        };
        self.pipe.replace_or_push(queued);
        self.pipe.flush();
    }

    fn close(mut self, reason: &CloseReason) -> Closing {
        self.pipe.queue.push_back(QueuedFrame::Message(frame::close(reason.code.into(), &reason.text)));
        self.pipe.flush();
        Closing { pipe: self.pipe }
    }
}

impl Closing {
    /// Passes on what waits. True when nothing is left to pass on, or nobody to pass it to.
    pub fn flush(&mut self) -> bool {
        !self.pipe.flush() || self.pipe.queue.is_empty()
    }
}

impl Pipe {
    fn replace_or_push(&mut self, queued: QueuedFrame) {
        let unsent = self.queue.iter_mut().find(|waiting| {
            matches!(
                (&queued, waiting),
                (QueuedFrame::Heartbeat(_), QueuedFrame::Heartbeat(_)) | (QueuedFrame::Pong(_), QueuedFrame::Pong(_))
            )
        });
        match unsent {
            Some(older) => *older = queued,
            None => self.queue.push_back(queued),
        }
    }

    fn flush(&mut self) -> bool {
        while !self.queue.is_empty() {
            match self.frames.try_reserve() {
                Ok(permit) => {
                    if let Some((frames, credit)) = self.queue.pop_front().map(QueuedFrame::into_parts) {
                        permit.send(frames);
                        // A pump that is gone needs no credit.
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
                self.room.make();
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
        self.room.make();
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
            assert!(outbox.credit().is_none(), "there is room: go on");
        }
    }

    #[test]
    fn credit_comes_when_the_client_has_made_room() {
        let (mut outbox, mut frames, _linger) = Outbox::new();
        fill(&mut outbox);
        outbox.send(Outgoing::Output(Bytes::from_static(b"y")));
        let mut credit = outbox.credit().expect("the channel is full");
        assert!(outbox.is_blocked() && credit.try_recv().is_err());
        let room = outbox.room();
        assert!(room.made().now_or_never().is_none());
        assert!(frames.next().now_or_never().flatten().is_some());
        assert!(room.made().now_or_never().is_some());
        assert!(outbox.flush());
        assert!(credit.try_recv().is_ok());
    }

    #[test]
    fn pongs_to_a_client_that_does_not_read_do_not_pile_up() {
        let (mut outbox, _frames, _linger) = Outbox::new();
        fill(&mut outbox);
        for n in 0..1_000u32 {
            outbox.send(Outgoing::Pong(Bytes::copy_from_slice(&n.to_be_bytes())));
        }
        assert_eq!(outbox.pipe.queue.len(), 1);
    }

    #[test]
    fn what_was_said_before_the_close_comes_before_it_and_nothing_after() {
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
    fn a_client_that_is_gone_is_noticed() {
        let (mut outbox, frames, _linger) = Outbox::new();
        let room = outbox.room();
        drop(frames);
        assert!(room.made().now_or_never().is_some());
        assert!(!outbox.flush());
    }
}
