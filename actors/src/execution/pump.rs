//! The pump: from the backend's stream to the parent, at the pace of the parent.
//!
//! Back-pressure is applied in `Tap::flush`: the parent's reply to output is the permission to go
//! on, and until it comes nothing more is read from the backend.

use std::{cell::Cell, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::{
    messages::{Fact, Output, Parent, Report},
    open::{Next, Stream, Words},
    text::Text,
};
use crate::{
    backend::{Body, BodyEnd, api::Word, multiplex::Part},
    id::ExecutionId,
    protocol::{Framing, PerStream, Stream as OutputStream},
    terminate::{Ending, Reason, Status},
};

/// How long an unfinished line waits for its newline while its stream is quiet.
const QUIET: Duration = Duration::from_millis(100);

/// Encoded output is sent on when it reaches this size, in bytes, or when nothing more is ready.
const BATCH: usize = 64 * 1024;

/// Time since the start and since the last output, for a backend that does not say.
pub(super) struct Clock {
    started_at: Instant,
    output_at: Cell<Instant>,
}

impl Default for Clock {
    fn default() -> Self {
        let now = Instant::now();
        Clock { started_at: now, output_at: Cell::new(now) }
    }
}

impl Clock {
    /// Milliseconds since the start, and since the last output.
    pub(super) fn read(&self) -> (u64, u64) {
        (super::millis(self.started_at.elapsed()), super::millis(self.output_at.get().elapsed()))
    }
}

/// Reads the stream to its end, and says how the execution ended.
pub(super) async fn run(
    stream: Stream,
    id: ExecutionId,
    framing: Framing,
    parent: Parent,
    clock: std::rc::Rc<Clock>,
) -> Ending {
    let mut tap = Tap { id, parent, text: Text::new(framing), fed_at: PerStream::default() };
    match stream {
        Stream::Ours(words) => pump_ours(words, &mut tap).await,
        Stream::Plain(body, end) => pump_plain(body, &end, &mut tap, &clock).await,
    }
}

async fn pump_ours(mut words: Words, tap: &mut Tap) -> Ending {
    loop {
        match words.ready() {
            Next::Part(Part::Output(stream, bytes)) => tap.feed(stream, &bytes).await,
            Next::Part(Part::Word(word)) => match serde_json::from_slice(&word) {
                Ok(Word::Exit(ending)) => {
                    tap.finish().await;
                    return ending;
                }
                Ok(Word::Status(change)) => {
                    tap.flush().await;
                    tap.tell(Fact::Status(change.status));
                }
                Ok(Word::Alive(alive)) => tap.tell(Fact::Alive(alive)),
                Ok(Word::Started(_)) => {}
                Err(error) => {
                    return tap.lost(format!("the backend said something that is not understood: {error}")).await;
                }
            },
            Next::Lost(message) => return tap.lost(message).await,
            Next::Dry => {
                let filled = match words.fill().now_or_never() {
                    Some(filled) => Some(filled),
                    None => {
                        tap.flush().await;
                        match tap.quiet_at() {
                            Some(at) => timeout_at(at, words.fill()).await.ok(),
                            None => Some(words.fill().await),
                        }
                    }
                };
                match filled {
                    Some(Ok(())) => {}
                    Some(Err(message)) => return tap.lost(message).await,
                    None => tap.flush_quiet().await,
                }
            }
        }
    }
}

async fn pump_plain(mut body: Body, end: &BodyEnd, tap: &mut Tap, clock: &Clock) -> Ending {
    loop {
        let chunk = match body.next().now_or_never() {
            Some(chunk) => Some(chunk),
            None => {
                tap.flush().await;
                match tap.quiet_at() {
                    Some(at) => timeout_at(at, body.next()).await.ok(),
                    None => Some(body.next().await),
                }
            }
        };
        match chunk {
            None => tap.flush_quiet().await,
            Some(Some(Ok(chunk))) => {
                clock.output_at.set(Instant::now());
                tap.feed(OutputStream::Stdout, &chunk).await;
            }
            // awc reports a cut as a clean end: what was seen below it decides.
            Some(None) if end.is_complete() => {
                tap.finish().await;
                let mut ending = Ending::without_process(Status::Completed, Reason::Exit, None);
                ending.elapsed_ms = Some(clock.read().0);
                return ending;
            }
            Some(None) => return tap.lost("the backend's stream was cut off".to_owned()).await,
            Some(Some(Err(error))) => return tap.lost(format!("the backend's stream broke off: {error}")).await,
        }
    }
}

/// Where output goes.
struct Tap {
    id: ExecutionId,
    parent: Parent,
    text: Text,
    fed_at: PerStream<Option<Instant>>,
}

impl Tap {
    async fn feed(&mut self, stream: OutputStream, bytes: &Bytes) {
        self.text.feed(stream, bytes);
        *self.fed_at.get_mut(stream) = self.text.has_unfinished_line(stream).then(Instant::now);
        if self.text.encoded_len() >= BATCH {
            self.flush().await;
        }
    }

    /// Hands on what is encoded, and waits for the permission to go on. A parent that is gone cannot
    /// be told; this actor is being stopped then.
    async fn flush(&mut self) {
        if self.text.encoded_len() > 0 {
            let (frames, offsets) = self.text.take();
            let output = Output { execution_id: self.id, frames: Bytes::from(frames), offsets };
            if self.parent.output.send(output).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// When the first unfinished line has waited long enough.
    fn quiet_at(&self) -> Option<Instant> {
        let earliest = OutputStream::BOTH.iter().filter_map(|stream| *self.fed_at.get(*stream)).min()?;
        Some(earliest + QUIET)
    }

    async fn flush_quiet(&mut self) {
        let now = Instant::now();
        for stream in OutputStream::BOTH {
            let fed_at = self.fed_at.get_mut(stream);
            if fed_at.is_some_and(|at| at + QUIET <= now) {
                *fed_at = None;
                self.text.flush_quiet(stream);
            }
        }
        self.flush().await;
    }

    async fn finish(&mut self) {
        self.text.finish();
        self.flush().await;
    }

    /// The end of a stream that broke off: what came before is still handed on.
    async fn lost(&mut self, message: String) -> Ending {
        self.finish().await;
        Ending::failed(Reason::BackendLost, message)
    }

    fn tell(&self, fact: Fact) {
        self.parent.reports.do_send(Report { execution_id: self.id, fact });
    }
}
