//! The three forms of a stream: multiplexed, JSON lines, and plain text for people with curl; and one more for
//! the original's callers of Claude.

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
    backend::{
        api::{MULTIPLEXED, NDJSON, Word},
        multiplex,
    },
    execution::text::Text,
    id::ExecutionId,
    protocol::PerStream,
    terminate::Status,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Sleep, sleep},
};

use super::{
    spool::{Dismissal, Item},
    table::Streaming,
};
use crate::socket::Duplicate;

/// How a stream is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Output as it comes, and nothing else.
    Plain,
    /// Docker's framing.
    Multiplexed,
    /// JSON lines.
    Ndjson,
    /// Claude's events as they come, JSON lines too, and how it ended.
    Claude,
}

impl Form {
    /// What a request asks for.
    pub fn of(request: &HttpRequest) -> Form {
        Form::accepted(request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()))
    }

    /// What an `Accept` header asks for; plain where it asks for nothing else that is known.
    pub fn accepted(accept: Option<&str>) -> Form {
        let listed = accept.unwrap_or_default().split(',');
        let known =
            listed.map(|entry| entry.split(';').next().unwrap_or_default().trim()).find_map(|media| match media {
                MULTIPLEXED => Some(Form::Multiplexed),
                NDJSON => Some(Form::Ndjson),
                "text/plain" => Some(Form::Plain),
                _ => None,
            });
        known.unwrap_or(Form::Plain)
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Plain => "text/plain; charset=utf-8",
            Form::Multiplexed => MULTIPLEXED,
            Form::Ndjson | Form::Claude => NDJSON,
        }
    }
}

/// The body of a response. Dropping it is how an execution learns that its consumer is gone.
pub struct Body {
    form: Form,
    items: mpsc::Receiver<Item>,
    /// Until the consumer's other end has gone, which it does after its last word.
    dismissed: Option<oneshot::Receiver<Dismissal>>,
    lines: Text,
    events: claude::Events,
    id: ExecutionId,
    end: Option<End>,
    socket: Option<Rc<Duplicate>>,
    /// Held while the consumer has not had everything.
    _streaming: Streaming,
    /// Shows whoever watches the socket that this is still there.
    alive: Rc<()>,
}

/// How a stream ends.
struct End {
    flush: Flush,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
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
struct Flush {
    flushes: u32,
    wait: Option<Pin<Box<Sleep>>>,
}

/// How often actix must have flushed into a socket that was not full afterwards.
const FLUSHES: u32 = 3;

/// How often a full socket is looked at.
const FULL_CADENCE: Duration = Duration::from_millis(10);

impl Flush {
    fn new() -> Self {
        Flush { flushes: 0, wait: None }
    }

    fn poll(&mut self, socket: Option<&Duplicate>, cx: &mut Context<'_>) -> Poll<()> {
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
pub struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the execution did not exit with code 0")
    }
}

impl std::error::Error for Cut {}

impl Body {
    /// A stream in this form, from these offsets.
    pub fn new(
        form: Form,
        id: ExecutionId,
        offsets: PerStream<u64>,
        (items, dismissed): (mpsc::Receiver<Item>, oneshot::Receiver<Dismissal>),
        socket: Option<Rc<Duplicate>>,
        streaming: Streaming,
    ) -> Self {
        let lines = Text::json_lines(offsets);
        Body {
            form,
            items,
            dismissed: Some(dismissed),
            lines,
            events: claude::Events::default(),
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

    fn end(&mut self, how: How) {
        self.end = Some(End { flush: Flush::new(), how });
    }

    /// The next bytes, or nothing where the item had none.
    fn take(&mut self, item: Option<Item>) -> Vec<u8> {
        match &item {
            Some(Item::Word(Word::Exit(ending))) => {
                let cut = self.form == Form::Plain && ending.status != Status::Completed;
                self.end(if cut { How::Cut } else { How::Whole });
            }
            // Somebody else has the rest: a plain stream must not look whole.
            Some(Item::Word(Word::TakenOver(_))) => {
                self.end(if self.form == Form::Plain { How::Cut } else { How::Whole });
            }
            // Without a last word the stream must not look whole.
            None => self.end(How::Cut),
            Some(_) => {}
        }
        item.map(|item| self.encode(item)).unwrap_or_default()
    }

    /// The bytes of one item; may be none.
    fn encode(&mut self, item: Item) -> Vec<u8> {
        match (self.form, item) {
            (Form::Plain, Item::Output { bytes, .. }) => bytes.into(),
            (Form::Plain, Item::Word(_)) => Vec::new(),
            (Form::Multiplexed, Item::Output { stream, bytes }) => {
                let mut frame = Vec::with_capacity(multiplex::HEADER_LEN + bytes.len());
                frame.extend_from_slice(&multiplex::header(stream, length(&bytes)));
                frame.extend_from_slice(&bytes);
                frame
            }
            (Form::Multiplexed, Item::Word(word)) => {
                let word = json(&word);
                let mut frame = multiplex::word_header(length(&word)).to_vec();
                frame.extend_from_slice(&word);
                frame
            }
            (Form::Ndjson, Item::Output { stream, bytes }) => {
                self.lines.feed(stream, &bytes);
                self.lines.take().0
            }
            (Form::Ndjson, Item::Word(word)) => {
                match &word {
                    Word::Exit(_) | Word::TakenOver(_) => self.lines.finish(true),
                    Word::Gap(gap) => drop(self.lines.skip(*gap)),
                    _ => {}
                }
                let mut lines = self.lines.take().0;
                lines.extend_from_slice(&json(&word));
                lines.push(b'\n');
                lines
            }
            (Form::Claude, Item::Output { stream, bytes }) => self.events.output(stream, &bytes),
            (Form::Claude, Item::Word(Word::Gap(gap))) => self.events.gap(gap),
            (Form::Claude, Item::Word(Word::Exit(ending))) => self.events.complete(self.id, &ending),
            (Form::Claude, Item::Word(_)) => Vec::new(),
        }
    }
}

fn json(word: &Word) -> Vec<u8> {
    serde_json::to_vec(word).expect("words have string keys and writing to memory cannot fail")
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("reads and words are far below 4 GiB")
}

impl futures_util::Stream for Body {
    type Item = Result<Bytes, Cut>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(end) = &mut this.end {
                if end.how != How::Over {
                    ready!(end.flush.poll(this.socket.as_deref(), cx));
                }
                return Poll::Ready(match std::mem::replace(&mut end.how, How::Over) {
                    How::Whole | How::Over => None,
                    How::Cut => Some(Err(Cut)),
                });
            }
            // Looked at first: what was to come before it is still in the ring, for whoever has it now.
            let dismissed = this.dismissed.as_mut().map(|dismissed| Pin::new(dismissed).poll(cx));
            if matches!(dismissed, Some(Poll::Ready(_))) {
                this.dismissed = None;
            }
            let item = match dismissed {
                Some(Poll::Ready(Ok(Dismissal::TakenOver))) => Some(Item::Word(Word::TakenOver(true))),
                Some(Poll::Ready(Ok(Dismissal::Vanished | Dismissal::Replaced))) => None,
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
        for (accept, form) in [
            (None, Form::Plain),
            (Some("*/*"), Form::Plain),
            (Some("text/plain"), Form::Plain),
            (Some(MULTIPLEXED), Form::Multiplexed),
            (Some("application/x-ndjson;q=0.9, */*"), Form::Ndjson),
            (Some("image/png, application/vnd.docker.multiplexed-stream"), Form::Multiplexed),
        ] {
            assert_eq!(Form::accepted(accept), form, "{accept:?}");
        }
    }
}
