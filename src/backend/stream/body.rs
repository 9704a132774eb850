//! The body of a streaming response.
//!
//! A stream that ended early must not look complete: the body is cut, so that the client sees an error, if the
//! execution's last event did not come, and in a plain stream, which has no events, if bytes are missing or the command did
//! not exit with 0.

use std::{
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use cc_executor_actors::{backend_api::BackendEvent, id::ExecutionId, outcome::Status, stream::PerStream};
use tokio::sync::{mpsc, oneshot};

use super::{
    encoder::StreamEncoder,
    format::StreamFormat,
    stored::{StoredRead, StreamItem},
};
use crate::{
    backend::{
        output_buffer::{ConsumerItem, DismissReason},
        registry::StreamGuard,
    },
    server::{connection::ConnectionHandle, flush::FlushWait},
};

/// The body of a response. When actix drops it, the execution sees that its consumer is gone.
pub struct StreamBody {
    encoder: StreamEncoder,
    items: mpsc::Receiver<ConsumerItem>,
    /// `None` after the execution has dropped the sender, which it does after the last event.
    dismissed: Option<oneshot::Receiver<DismissReason>>,
    state: BodyState,
    /// The range of a file that is being read, before the next item.
    reading: Option<StoredRead>,
    socket: Option<Rc<ConnectionHandle>>,
    /// Counts this stream until its consumer has received everything.
    _streaming: StreamGuard,
    /// Whether bytes are missing.
    has_gap: bool,
    /// Only its weak references are used.
    alive: Rc<()>,
}

enum BodyState {
    Streaming,
    /// The last bytes are on their way.
    Flushing {
        wait: FlushWait,
        is_whole: bool,
    },
    Over,
}

/// The error with which a body is cut.
#[derive(Debug, thiserror::Error)]
#[error("the stream is incomplete, or the command did not exit with code 0")]
pub struct CutStream;

impl StreamBody {
    /// A stream in this format, from these offsets.
    pub fn new(
        format: StreamFormat,
        id: ExecutionId,
        offsets: PerStream<u64>,
        (items, dismissed): (mpsc::Receiver<ConsumerItem>, oneshot::Receiver<DismissReason>),
        socket: Option<Rc<ConnectionHandle>>,
        streaming: StreamGuard,
    ) -> Self {
        StreamBody {
            encoder: StreamEncoder::new(format, id, offsets),
            items,
            dismissed: Some(dismissed),
            state: BodyState::Streaming,
            reading: None,
            socket,
            _streaming: streaming,
            has_gap: false,
            alive: Rc::new(()),
        }
    }

    /// A reference that is alive as long as actix has this body.
    pub fn liveness(&self) -> Weak<()> {
        Rc::downgrade(&self.alive)
    }

    /// The next item; `None` if no event ends the stream.
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        // Before the items, because the items that were not delivered are for the next consumer.
        if let Some(dismissed) = &mut self.dismissed
            && let Poll::Ready(reason) = Pin::new(dismissed).poll(cx)
        {
            self.dismissed = None;
            match reason {
                Ok(DismissReason::TakenOver) => {
                    return Poll::Ready(Some(StreamItem::Event(BackendEvent::TakenOver(true))));
                }
                Ok(DismissReason::Vanished | DismissReason::Replaced) => return Poll::Ready(None),
                Err(_) => {}
            }
        }
        loop {
            if let Some(reading) = &mut self.reading {
                match ready!(reading.poll(cx)) {
                    Some(item) => return Poll::Ready(Some(item)),
                    None => self.reading = None,
                }
            }
            match ready!(self.items.poll_recv(cx)) {
                Some(ConsumerItem::Stored(range, given_up)) => self.reading = Some(StoredRead::new(range, given_up)),
                Some(ConsumerItem::Output { stream, bytes }) => {
                    return Poll::Ready(Some(StreamItem::Output { stream, bytes }));
                }
                Some(ConsumerItem::Event(event)) => return Poll::Ready(Some(StreamItem::Event(event))),
                None => return Poll::Ready(None),
            }
        }
    }

    /// Whether the stream is whole, if this item is its last.
    fn is_whole_after(&self, item: Option<&StreamItem>) -> Option<bool> {
        let is_plain = matches!(self.encoder, StreamEncoder::Plain);
        match item {
            Some(StreamItem::Event(BackendEvent::Exit(ending))) => {
                Some(!is_plain || (ending.status == Status::Completed && !self.has_gap))
            }
            Some(StreamItem::Event(BackendEvent::TakenOver(_))) => Some(!is_plain),
            Some(_) => None,
            None => Some(false),
        }
    }
}

impl futures_util::Stream for StreamBody {
    type Item = Result<Bytes, CutStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                BodyState::Streaming => {}
                BodyState::Flushing { wait, is_whole } => {
                    ready!(wait.poll(this.socket.as_deref(), cx));
                    let cut = (!*is_whole).then_some(Err(CutStream));
                    this.state = BodyState::Over;
                    return Poll::Ready(cut);
                }
                BodyState::Over => return Poll::Ready(None),
            }
            let item = ready!(this.poll_item(cx));
            this.has_gap |= matches!(item, Some(StreamItem::Event(BackendEvent::Gap(_))));
            if let Some(is_whole) = this.is_whole_after(item.as_ref()) {
                this.state = BodyState::Flushing { wait: FlushWait::default(), is_whole };
            }
            let bytes = item.map(|item| this.encoder.encode(item)).unwrap_or_default();
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Bytes::from(bytes))));
            }
        }
    }
}
