//! The only way to a client, and where a slow client is noticed: a queue of WebSocket frames. Output that waits here has
//! a [`Credit`]; until that completes, `Relay::flush` (`execution/relay.rs`) holds the execution back.
//!
//! The queue's reading end, [`Frames`], is the body of the HTTP response. If the client does not read, frames wait. Each
//! kind is bounded: responses and statuses by their number and their bytes ([`UnreadBytes`]), pongs to one, heartbeats to
//! one between two pieces of output, pings by `MAX_UNANSWERED`, output to one batch beyond `OUTPUT_ROOM` by its
//! [`Credit`].
//!
//! A pong, and a response that says nothing about output, go ahead of output that waits: see `FrameKind::may_overtake`.
//!
//! The writing end is never cloned. [`Outbox::close`] consumes the outbox; the remaining [`Closing`] can only wait until
//! the queue is empty.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{Notify, oneshot};

use super::{phase::Outgoing, unread::UnreadBytes};
use crate::{close::CloseReason, protocol::notification::ServerMessage, share::ShareExceeded, ws::frame};

/// How long a closed session still reads, so that the client's own close frame can arrive.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// How many bytes of output may wait before the execution is held back, unless the connection keeps up: one batch, so
/// that the next one is made while the socket takes this one.
const OUTPUT_ROOM: usize = 64 * 1024;

/// The sending end.
pub struct Outbox {
    writer: Writer,
    unread: UnreadBytes,
}

/// An outbox after its close frame.
pub struct Closing {
    writer: Writer,
    /// Counts the messages that still wait.
    _unread: UnreadBytes,
}

/// The one writing end of the queue. Its drop ends the response after the last frame.
struct Writer(Rc<Queue>);

struct Queue {
    state: RefCell<QueueState>,
    room: Rc<RoomSignal>,
}

#[derive(Default)]
struct QueueState {
    frames: VecDeque<QueuedFrame>,
    output_bytes: usize,
    /// Whether the connection is fast, so that more output may wait.
    keeps_up: bool,
    n_counted: usize,
    counted_bytes: usize,
    /// Complete when there is room for output.
    credits: Vec<oneshot::Sender<()>>,
    /// Wakes the response's body.
    body: Option<Waker>,
    /// The response's body was dropped, so no frame is read any more.
    reader_is_gone: bool,
    /// The outbox or its close was dropped, so no frame follows those that wait.
    writer_is_gone: bool,
}

struct QueuedFrame {
    kind: FrameKind,
    frame: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FrameKind {
    /// A response or a status that stays in its place, because it speaks of output or of the held execution.
    Message,
    /// A response that says nothing about output.
    QuickResponse,
    Heartbeat,
    /// A ping, or the close frame.
    Control,
    Pong,
    Output,
}

impl FrameKind {
    /// Whether it may go ahead of output that waits. Never ahead of another message.
    fn may_overtake(self) -> bool {
        matches!(self, FrameKind::Pong | FrameKind::QuickResponse)
    }

    /// Whether it counts as unread until the client takes it. A client causes as many of these as it likes.
    fn is_counted(self) -> bool {
        matches!(self, FrameKind::Message | FrameKind::QuickResponse)
    }
}

/// Tells the session that the body has taken a frame, if the session has asked for that with [`RoomSignal::want`], or that
/// the client is gone.
#[derive(Debug, Default)]
pub struct RoomSignal {
    /// Whether the session has asked for the next signal.
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

    /// Asks for a signal when the next frame is taken.
    pub fn want(&self) {
        self.wanted.set(true);
    }

    /// Waits for the next signal.
    pub async fn wait(&self) {
        self.made.notified().await;
    }
}

/// The permission to send more output: `None` is immediate, otherwise it completes when there is room.
pub type Credit = Option<oneshot::Receiver<()>>;

/// The receiving end: the body of the response.
///
/// After the last frame it stays open until the [`Linger`] is dropped, so that the connection is read until the
/// client's close frame arrives, and is not reset because of unread input.
pub struct Frames {
    queue: Rc<Queue>,
    linger: Option<oneshot::Receiver<()>>,
}

/// Keeps the response open until it is dropped.
#[derive(Debug)]
pub struct Linger {
    _held: oneshot::Sender<()>,
}

impl Outbox {
    /// Returns an outbox, its receiving end, and the guard that keeps the receiving end open.
    pub fn new(unread: UnreadBytes) -> (Outbox, Frames, Linger) {
        let (held, linger) = oneshot::channel();
        let queue = Rc::new(Queue { state: RefCell::default(), room: Rc::default() });
        let frames = Frames { queue: Rc::clone(&queue), linger: Some(linger) };
        (Outbox { writer: Writer(queue), unread }, frames, Linger { _held: held })
    }

    /// The signal after which the queue is shorter, or the client is gone.
    pub fn room(&self) -> Rc<RoomSignal> {
        Rc::clone(&self.writer.0.room)
    }

    /// Sends a message after all earlier ones, output apart where the message may go ahead of it.
    pub fn send(&mut self, message: Outgoing) {
        let (kind, frame) = match message {
            Outgoing::QuickResponse(message) => (FrameKind::QuickResponse, frame::text(&message)),
            Outgoing::Message(message) => (FrameKind::Message, frame::text(&message)),
            Outgoing::Heartbeat(update) => (FrameKind::Heartbeat, frame::text(&ServerMessage::Progress(update))),
            Outgoing::Ping(payload) => (FrameKind::Control, frame::ping(&payload)),
            Outgoing::Pong(payload) => (FrameKind::Pong, frame::pong(&payload)),
            Outgoing::Output(frames) => (FrameKind::Output, frames),
        };
        self.writer.push(kind, frame);
    }

    /// Sends the close frame.
    pub fn close(mut self, reason: &CloseReason) -> Closing {
        self.writer.push(FrameKind::Control, frame::close(reason.code.into(), &reason.text));
        Closing { writer: self.writer, _unread: self.unread }
    }

    /// Whether the client is gone.
    pub fn is_gone(&self) -> bool {
        self.writer.0.state.borrow().reader_is_gone
    }

    /// The permission to send more output. The session replies to the execution when it completes; `Relay::flush` waits
    /// for that reply.
    pub fn credit(&mut self) -> Credit {
        let mut state = self.writer.0.state.borrow_mut();
        if state.output_bytes <= state.output_room() || state.reader_is_gone {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        state.credits.push(sender);
        Some(receiver)
    }

    /// Whether messages wait for the client.
    pub fn is_blocked(&self) -> bool {
        !self.writer.0.state.borrow().frames.is_empty()
    }

    /// The number of responses and statuses that wait for the client.
    pub fn unsent_messages(&self) -> usize {
        self.writer.0.state.borrow().n_counted
    }

    /// Counts the responses and statuses that wait for the client among those of all clients. While any wait, the room
    /// signal tells when to count again.
    ///
    /// # Errors
    ///
    /// They take more memory than this client may use.
    pub fn count_unread(&mut self) -> Result<(), ShareExceeded> {
        let bytes = self.writer.0.state.borrow().counted_bytes;
        if bytes > 0 {
            self.writer.0.room.want();
        }
        self.unread.set(bytes)
    }
}

impl Closing {
    /// Whether no frame waits any more, or the client is gone. If not, the room signal tells when to ask again.
    pub fn is_flushed(&mut self) -> bool {
        let state = self.writer.0.state.borrow();
        let is_flushed = state.frames.is_empty() || state.reader_is_gone;
        if !is_flushed {
            self.writer.0.room.want();
        }
        is_flushed
    }
}

impl Writer {
    fn push(&mut self, kind: FrameKind, frame: Bytes) {
        let mut state = self.0.state.borrow_mut();
        if state.reader_is_gone {
            return;
        }
        state.push(QueuedFrame { kind, frame });
        if let Some(body) = state.body.take() {
            body.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        state.writer_is_gone = true;
        if let Some(body) = state.body.take() {
            body.wake();
        }
    }
}

impl QueueState {
    /// Queues a frame. A pong replaces an unsent one, and a heartbeat the last frame if that is one, too: an earlier one
    /// has the offsets of its place.
    fn push(&mut self, queued: QueuedFrame) {
        let kind = queued.kind;
        let unsent = match kind {
            FrameKind::Pong => self.frames.iter_mut().find(|unsent| unsent.kind == kind),
            FrameKind::Heartbeat => self.frames.back_mut().filter(|unsent| unsent.kind == kind),
            _ => None,
        };
        if let Some(unsent) = unsent {
            unsent.frame = queued.frame;
            return;
        }
        if kind == FrameKind::Output {
            self.output_bytes += queued.frame.len();
        } else if kind.is_counted() {
            self.n_counted += 1;
            self.counted_bytes += queued.frame.len();
        }
        let at = if kind.may_overtake() {
            self.frames.iter().rposition(|waiting| waiting.kind != FrameKind::Output).map_or(0, |last| last + 1)
        } else {
            self.frames.len()
        };
        self.frames.insert(at, queued);
    }

    /// How many bytes of output may wait before the execution is held back.
    fn output_room(&self) -> usize {
        if self.keeps_up { 4 * OUTPUT_ROOM } else { OUTPUT_ROOM }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let QueuedFrame { kind, frame } = self.frames.pop_front()?;
        if kind == FrameKind::Output {
            self.output_bytes -= frame.len();
            if self.output_bytes <= self.output_room() {
                self.give_credit();
            }
        } else if kind.is_counted() {
            self.n_counted -= 1;
            self.counted_bytes -= frame.len();
        }
        Some(frame)
    }

    fn give_credit(&mut self) {
        for credit in self.credits.drain(..) {
            // The execution may have ended meanwhile.
            let _ = credit.send(());
        }
    }
}

impl Frames {
    /// Sets how much output may wait: more for a connection that keeps up, because each wait costs throughput.
    pub fn set_keeps_up(&self, keeps_up: bool) {
        self.queue.state.borrow_mut().keeps_up = keeps_up;
    }
}

impl Stream for Frames {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let queue = Rc::clone(&self.queue);
        let mut state = queue.state.borrow_mut();
        if let Some(frame) = state.pop() {
            drop(state);
            queue.room.taken.set(queue.room.taken.get() + frame.len() as u64);
            queue.room.notify();
            return Poll::Ready(Some(frame));
        }
        if !state.writer_is_gone {
            state.body = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match self.linger.as_mut() {
            Some(linger) => Pin::new(linger).poll(cx).map(|_| {
                self.linger = None;
                None
            }),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let mut state = self.queue.state.borrow_mut();
        state.reader_is_gone = true;
        state.frames.clear();
        state.give_credit();
        self.queue.room.wanted.set(true);
        self.queue.room.notify();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        client::ClientName,
        close::CloseCode,
        protocol::notification::ErrorNotice,
        rpc::{ErrorObject, Response},
        session::unread::UnreadBudget,
    };

    fn outbox() -> (Outbox, Frames, Linger) {
        Outbox::new(UnreadBudget::new(1_000_000).of_session(ClientName::anonymous()))
    }

    fn output(n: usize) -> Outgoing {
        Outgoing::Output(Bytes::from(vec![b'x'; n]))
    }

    fn response(n: u64) -> ServerMessage {
        ServerMessage::Response(Response { id: Some(n).into(), outcome: Err(ErrorObject::new(0, "refused")) })
    }

    fn notice() -> ServerMessage {
        ServerMessage::Error(ErrorNotice { error: ErrorObject::new(0, "refused"), execution_id: None })
    }

    /// The first bytes of the frames that wait.
    fn kinds(frames: &mut Frames) -> Vec<u8> {
        std::iter::from_fn(|| frames.next().now_or_never().flatten()).map(|frame| frame[0]).collect()
    }

    #[test]
    fn credit_completes_when_the_client_has_read() {
        let (mut outbox, mut frames, _linger) = outbox();
        outbox.send(output(OUTPUT_ROOM));
        assert!(outbox.credit().is_none(), "there is room");
        outbox.send(output(1));
        let mut credit = outbox.credit().expect("there is no room");
        assert!(outbox.is_blocked() && credit.try_recv().is_err());
        assert!(frames.next().now_or_never().flatten().is_some());
        assert!(credit.try_recv().is_ok());
        assert_eq!(outbox.room().taken(), OUTPUT_ROOM as u64);
    }

    #[test]
    fn pongs_and_quick_responses_go_ahead_of_output_and_of_nothing_else() {
        let (mut outbox, mut frames, _linger) = outbox();
        outbox.send(output(1));
        outbox.send(Outgoing::Ping(Bytes::new()));
        outbox.send(output(1));
        outbox.send(output(1));
        outbox.send(Outgoing::Pong(Bytes::new()));
        outbox.send(Outgoing::QuickResponse(response(1)));
        outbox.send(Outgoing::Message(response(2)));
        assert_eq!(kinds(&mut frames), [b'x', 0x89, 0x8a, 0x81, b'x', b'x', 0x81]);
    }

    #[test]
    fn only_the_newest_pong_waits_for_a_client_that_does_not_read() {
        let (mut outbox, mut frames, _linger) = outbox();
        for n in 0..1_000u32 {
            outbox.send(Outgoing::Pong(Bytes::copy_from_slice(&n.to_be_bytes())));
        }
        assert_eq!(kinds(&mut frames), [0x8a]);
    }

    #[test]
    fn unread_responses_are_counted_until_they_are_taken() {
        let budget = UnreadBudget::new(1_000);
        let (mut outbox, mut frames, _linger) = Outbox::new(budget.of_session(ClientName::anonymous()));
        for n in 0..5 {
            outbox.send(Outgoing::QuickResponse(response(n)));
            outbox.count_unread().unwrap();
        }
        assert!(budget.total() > 0 && outbox.unsent_messages() == 5);
        assert!(outbox.room().wait().now_or_never().is_none());
        assert_eq!(kinds(&mut frames).len(), 5);
        assert!(outbox.room().wait().now_or_never().is_some(), "the session counts again");
        outbox.count_unread().unwrap();
        assert_eq!((budget.total(), outbox.unsent_messages()), (0, 0));
        outbox.send(Outgoing::Message(notice()));
        outbox.count_unread().unwrap();
        assert!(budget.total() > 0 && outbox.unsent_messages() == 1, "a notification counts as well");
        while outbox.count_unread().is_ok() {
            outbox.send(Outgoing::QuickResponse(response(0)));
        }
        drop((outbox, frames));
        assert_eq!(budget.total(), 0);
    }

    #[test]
    fn the_close_frame_comes_after_all_earlier_messages_and_last() {
        let (mut outbox, mut frames, linger) = outbox();
        outbox.send(output(OUTPUT_ROOM + 1));
        outbox.send(Outgoing::Message(response(1)));
        let mut closing = outbox.close(&CloseReason::new(CloseCode::Normal, "bye"));
        assert!(!closing.is_flushed());
        assert_eq!(kinds(&mut frames), [b'x', 0x81, 0x88]);
        assert!(closing.is_flushed());
        drop(closing);
        assert!(frames.next().now_or_never().is_none(), "the response stays open while it lingers");
        drop(linger);
        assert_eq!(frames.next().now_or_never(), Some(None));
    }

    #[test]
    fn a_dropped_receiving_end_is_noticed() {
        let (mut outbox, frames, _linger) = outbox();
        outbox.send(output(OUTPUT_ROOM + 1));
        let mut credit = outbox.credit().expect("there is no room");
        let room = outbox.room();
        drop(frames);
        assert!(room.wait().now_or_never().is_some());
        assert!(outbox.is_gone() && credit.try_recv().is_ok());
    }
}
