//! The three forms of a stream: multiplexed, JSON lines, and plain text for people with curl; and one more for
//! the legacy callers of Claude.

mod claude;

use std::{
    fmt,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_web::{HttpRequest, http::header};
use bytes::Bytes;
use cc_executor_actors::{
    backend_api::{BackendEvent, MULTIPLEXED, NDJSON, multiplex},
    id::ExecutionId,
    outcome::Status,
    output::{
        OutputEncoder,
        json_lines::{self, JsonLines},
        splitter::Splitter,
    },
    stream::PerStream,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Sleep, sleep},
};

use super::{
    output_buffer::{ConsumerItem, DismissReason},
    registry::StreamGuard,
};
use crate::server::connection::ConnectionHandle;

/// How a stream is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamFormat {
    /// Output as it comes, and nothing else.
    Plain,
    /// Docker's framing.
    Multiplexed,
    /// JSON lines.
    Ndjson,
    /// Claude's events as they come, JSON lines too, and how it ended.
    Claude,
}

impl StreamFormat {
    /// What a request asks for.
    pub fn of(request: &HttpRequest) -> StreamFormat {
        StreamFormat::accepted(request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()))
    }

    /// What an `Accept` header asks for; plain where it asks for nothing else that is known.
    pub fn accepted(accept: Option<&str>) -> StreamFormat {
        let listed = accept.unwrap_or_default().split(',');
        let known =
            listed.map(|entry| entry.split(';').next().unwrap_or_default().trim()).find_map(|media| match media {
                MULTIPLEXED => Some(StreamFormat::Multiplexed),
                NDJSON => Some(StreamFormat::Ndjson),
                "text/plain" => Some(StreamFormat::Plain),
                _ => None,
            });
        known.unwrap_or(StreamFormat::Plain)
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            StreamFormat::Plain => "text/plain; charset=utf-8",
            StreamFormat::Multiplexed => MULTIPLEXED,
            StreamFormat::Ndjson | StreamFormat::Claude => NDJSON,
        }
    }
}

/// The body of a response. Dropping it is how an execution learns that its consumer is gone.
pub struct StreamBody {
    format: StreamFormat,
    items: mpsc::Receiver<ConsumerItem>,
    /// Until the consumer's other end has gone, which it does after its last word.
    dismissed: Option<oneshot::Receiver<DismissReason>>,
    lines: Splitter<JsonLines>,
    events: claude::EventFormatter,
    id: ExecutionId,
    end: Option<StreamEnd>,
    socket: Option<Rc<ConnectionHandle>>,
    /// Held while the consumer has not had everything.
    _streaming: StreamGuard,
    /// Shows whoever watches the socket that this is still there.
    alive: Rc<()>,
}

/// How a stream ends.
struct StreamEnd {
    flush: FlushWait,
    how: EndKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EndKind {
    /// Properly: all has been said.
    Whole,
    /// Cut, so that nobody takes it for whole.
    Cut,
    /// It has ended.
    Over,
}

/// What was said last is on its way. A cut makes actix drop the connection with what is still in its
/// own buffer, and a shutdown the whole process, so that must be gone first. Each pending poll lets
/// actix flush; it stops only when the socket is full.
struct FlushWait {
    flushes: u32,
    wait: Option<Pin<Box<Sleep>>>,
}

/// How often actix must have flushed into a socket that was not full afterwards.
const FLUSHES: u32 = 3;

/// How often a full socket is looked at.
const FULL_CADENCE: Duration = Duration::from_millis(10);

impl FlushWait {
    fn new() -> Self {
        FlushWait { flushes: 0, wait: None }
    }

    fn poll(&mut self, socket: Option<&ConnectionHandle>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            if socket.is_some_and(|socket| !socket.has_room()) {
                self.flushes = 0;
                self.wait = Some(Box::pin(sleep(FULL_CADENCE)));
                continue;
            }
            if self.flushes == FLUSHES {
                return Poll::Ready(());
            }
            self.flushes += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
    }
}

/// A plain text stream of an execution that did not exit with code 0 is cut, so that no reader takes
/// it for a success.
#[derive(Debug)]
pub struct CutStream;

impl fmt::Display for CutStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the execution did not exit with code 0")
    }
}

impl std::error::Error for CutStream {}

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
        let lines = json_lines::encoder(offsets);
        StreamBody {
            format,
            items,
            dismissed: Some(dismissed),
            lines,
            events: claude::EventFormatter::default(),
            id,
            end: None,
            socket,
            _streaming: streaming,
            alive: Rc::new(()),
        }
    }

    /// Whether it is still there, for whoever watches its socket.
    pub fn is_alive(&self) -> Weak<()> {
        Rc::downgrade(&self.alive)
    }

    fn end(&mut self, how: EndKind) {
        self.end = Some(StreamEnd { flush: FlushWait::new(), how });
    }

    /// The next bytes, or nothing where the item had none.
    fn take(&mut self, item: Option<ConsumerItem>) -> Vec<u8> {
        match &item {
            Some(ConsumerItem::Word(BackendEvent::Exit(ending))) => {
                let cut = self.format == StreamFormat::Plain && ending.status != Status::Completed;
                self.end(if cut { EndKind::Cut } else { EndKind::Whole });
            }
            // Somebody else has the rest: a plain stream must not look whole.
            Some(ConsumerItem::Word(BackendEvent::TakenOver(_))) => {
                self.end(if self.format == StreamFormat::Plain { EndKind::Cut } else { EndKind::Whole });
            }
            // Without a last word the stream must not look whole.
            None => self.end(EndKind::Cut),
            Some(_) => {}
        }
        item.map(|item| self.encode(item)).unwrap_or_default()
    }

    /// The bytes of one item; may be none.
    fn encode(&mut self, item: ConsumerItem) -> Vec<u8> {
        match (self.format, item) {
            (StreamFormat::Plain, ConsumerItem::Output { bytes, .. }) => bytes.into(),
            (StreamFormat::Plain, ConsumerItem::Word(_)) => Vec::new(),
            (StreamFormat::Multiplexed, ConsumerItem::Output { stream, bytes }) => {
                let mut frame = Vec::with_capacity(multiplex::HEADER_LEN + bytes.len());
                frame.extend_from_slice(&multiplex::header(stream, length(&bytes)));
                frame.extend_from_slice(&bytes);
                frame
            }
            (StreamFormat::Multiplexed, ConsumerItem::Word(word)) => {
                let word = json(&word);
                let mut frame = multiplex::event_header(length(&word)).to_vec();
                frame.extend_from_slice(&word);
                frame
            }
            (StreamFormat::Ndjson, ConsumerItem::Output { stream, bytes }) => {
                self.lines.feed(stream, &bytes);
                self.lines.take().0
            }
            (StreamFormat::Ndjson, ConsumerItem::Word(word)) => {
                match &word {
                    BackendEvent::Exit(_) | BackendEvent::TakenOver(_) => self.lines.finish(true),
                    BackendEvent::Gap(gap) => drop(self.lines.skip(*gap)),
                    _ => {}
                }
                let mut lines = self.lines.take().0;
                lines.extend_from_slice(&json(&word));
                lines.push(b'\n');
                lines
            }
            (StreamFormat::Claude, ConsumerItem::Output { stream, bytes }) => self.events.output(stream, &bytes),
            (StreamFormat::Claude, ConsumerItem::Word(BackendEvent::Gap(gap))) => self.events.gap(gap),
            (StreamFormat::Claude, ConsumerItem::Word(BackendEvent::Exit(ending))) => {
                self.events.complete(self.id, &ending)
            }
            (StreamFormat::Claude, ConsumerItem::Word(_)) => Vec::new(),
        }
    }
}

fn json(word: &BackendEvent) -> Vec<u8> {
    serde_json::to_vec(word).expect("words have string keys and writing to memory cannot fail")
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("reads and words are far below 4 GiB")
}

impl futures_util::Stream for StreamBody {
    type Item = Result<Bytes, CutStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(end) = &mut this.end {
                if end.how != EndKind::Over {
                    ready!(end.flush.poll(this.socket.as_deref(), cx));
                }
                return Poll::Ready(match std::mem::replace(&mut end.how, EndKind::Over) {
                    EndKind::Whole | EndKind::Over => None,
                    EndKind::Cut => Some(Err(CutStream)),
                });
            }
            // Looked at first: what was to come before it is still in the ring, for whoever has it now.
            let dismissed = this.dismissed.as_mut().map(|dismissed| Pin::new(dismissed).poll(cx));
            if matches!(dismissed, Some(Poll::Ready(_))) {
                this.dismissed = None;
            }
            let item = match dismissed {
                Some(Poll::Ready(Ok(DismissReason::TakenOver))) => {
                    Some(ConsumerItem::Word(BackendEvent::TakenOver(true)))
                }
                Some(Poll::Ready(Ok(DismissReason::Vanished | DismissReason::Replaced))) => None,
                Some(Poll::Ready(Err(_)) | Poll::Pending) | None => ready!(this.items.poll_recv(cx)),
            };
            let bytes = this.take(item);
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Bytes::from(bytes))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_picks_the_form() {
        for (accept, format) in [
            (None, StreamFormat::Plain),
            (Some("*/*"), StreamFormat::Plain),
            (Some("text/plain"), StreamFormat::Plain),
            (Some(MULTIPLEXED), StreamFormat::Multiplexed),
            (Some("application/x-ndjson;q=0.9, */*"), StreamFormat::Ndjson),
            (Some("image/png, application/vnd.docker.multiplexed-stream"), StreamFormat::Multiplexed),
        ] {
            assert_eq!(StreamFormat::accepted(accept), format, "{accept:?}");
        }
    }
}
