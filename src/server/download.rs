//! The body of a response with output that is read like a file.
//!
//! If it cannot be completed, it is cut after the client has the bytes before the cut. A client that stops reading in the
//! middle is disconnected, because it holds a file and a place among the connections.

use std::{
    cell::Cell,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use actix_web::HttpRequest;
use bytes::Bytes;
use futures_util::Stream;
use log::info;
use tokio::time::sleep_until;

use super::{
    connection::{self, ConnectionHandle},
    flush::FlushWait,
};

/// The body.
pub struct DownloadBody<E> {
    bytes: Pin<Box<dyn Stream<Item = Result<Bytes, E>>>>,
    progress: ReadProgress,
    socket: Option<Rc<ConnectionHandle>>,
    /// The error with which it is cut.
    cut: Option<(E, FlushWait)>,
}

/// When actix last took a piece of a body. The body owns it, so that the watch ends with the body.
#[derive(Debug)]
struct ReadProgress(Rc<Cell<Instant>>);

impl<E> DownloadBody<E> {
    /// The body of the response to this request, whose client may stop reading for `patience`.
    pub fn new(
        request: &HttpRequest,
        patience: Duration,
        bytes: impl Stream<Item = Result<Bytes, E>> + 'static,
    ) -> DownloadBody<E> {
        let progress = ReadProgress::watch(request, patience);
        DownloadBody { bytes: Box::pin(bytes), progress, socket: connection::of(request), cut: None }
    }
}

impl<E: Unpin> Stream for DownloadBody<E> {
    type Item = Result<Bytes, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some((_, wait)) = &mut this.cut {
                ready!(wait.poll(this.socket.as_deref(), cx));
                return Poll::Ready(this.cut.take().map(|(error, _)| Err(error)));
            }
            // Not while the bytes before a cut are sent, which the client may leave unread, too.
            this.progress.record();
            match ready!(this.bytes.as_mut().poll_next(cx)) {
                Some(Err(error)) => this.cut = Some((error, FlushWait::default())),
                next => return Poll::Ready(next),
            }
        }
    }
}

impl ReadProgress {
    /// Watches the connection of this request until this is dropped, and shuts it down when nothing was taken for
    /// `patience`.
    fn watch(request: &HttpRequest, patience: Duration) -> ReadProgress {
        let progress = ReadProgress(Rc::new(Cell::new(Instant::now())));
        let is_due = stands_still(Rc::downgrade(&progress.0), patience);
        connection::shut_down_when(request, is_due, || {
            info!(event = "socket.shut_down"; "a client does not read the output that it requested: its connection is shut down");
        });
        progress
    }

    /// Records that the client has made room for another piece.
    fn record(&self) {
        self.0.set(Instant::now());
    }
}

async fn stands_still(progress: Weak<Cell<Instant>>, patience: Duration) -> bool {
    while let Some(taken_at) = progress.upgrade().map(|progress| progress.get()) {
        let due_at = taken_at + patience;
        if due_at <= Instant::now() {
            return true;
        }
        sleep_until(due_at.into()).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_web::test]
    async fn only_a_body_that_stands_still_is_due() {
        let progress = ReadProgress(Rc::new(Cell::new(Instant::now())));
        let patience = Duration::from_millis(20);
        assert!(stands_still(Rc::downgrade(&progress.0), patience).await);
        let weak = Rc::downgrade(&progress.0);
        drop(progress);
        assert!(!stands_still(weak, patience).await, "its body has ended");
    }
}
