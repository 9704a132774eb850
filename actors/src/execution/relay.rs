//! The pump: from the backend's stream to the parent, at the pace of the parent.
//!
//! Back-pressure is applied in `Relay::flush`: the parent's reply to output is the permission to go
//! on, and until it comes nothing more is read from the backend.

use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout_at};

use super::{
    connect::{self, ConnectError, EventStream, NextPart},
    legacy::LegacyClocks,
    messages::{EncodedOutput, ExecutionEvent, ExecutionReport, Parent, StreamStart},
};
use crate::{
    agent::{Agent, ReaderOptions, SharedProgress},
    backend_api::{BackendEvent, StatusChange, multiplex::StreamPart},
    backend_client::{BackendClient, BackendError, BodyEnd, HoldIdentity, ResponseBody},
    clock::Stopwatch,
    id::ExecutionId,
    outcome::{Outcome, Reason, Status},
    output::{AgentReader, EventStep, OutputEncoder, OutputOptions},
    protocol::Framing,
    stream::{Gap, PerStream, Stream as OutputStream},
};

/// How long an unfinished line waits for its newline while its stream is quiet.
const QUIET: Duration = Duration::from_millis(100);

/// Encoded output is sent on when it reaches this size, in bytes, or when nothing more is ready.
const BATCH: usize = 64 * 1024;

/// Heartbeats that the backend may miss before it is given up.
const MISSED_HEARTBEATS: u32 = 6;

/// What the pump works for, and with.
pub(super) struct RelayConfig {
    pub(super) id: ExecutionId,
    pub(super) backend: BackendClient,
    pub(super) holder: Rc<HoldIdentity>,
    /// Whether the backend that runs it knows it by its id.
    pub(super) has_id: bool,
    pub(super) parent: Parent,
    pub(super) framing: Framing,
    /// The agent whose events standard output is.
    pub(super) agent: Option<&'static dyn Agent>,
    /// Whether the client wants these events.
    pub(super) events: bool,
    /// What the client has already.
    pub(super) offsets: PerStream<u64>,
    pub(super) heartbeat: Duration,
    /// Whether it runs on in its backend when its stream breaks off.
    pub(super) may_detach: bool,
}

impl RelayConfig {
    fn reader_options(&self) -> ReaderOptions {
        ReaderOptions { framing: self.framing, start: self.offsets.stdout, events_of: self.events.then_some(self.id) }
    }
}

/// How the pumping ended.
pub(super) enum RelayEnd {
    /// The execution ended.
    Ended(Outcome),
    /// It goes on for another consumer.
    TakenOver,
}

/// Reads a stream of our own backend to its end. One that breaks off is looked for again where the
/// execution may have gone on; for any other the backend is asked whether another consumer has it now,
/// because the backend cuts the connection of one that was sent away and does not read.
pub(super) async fn ours(mut words: EventStream, wiring: RelayConfig) -> RelayEnd {
    let mut tap = Relay::new(wiring);
    loop {
        let why = match tap.follow(&mut words).await {
            Ok(last) => return last,
            Err(why) => why,
        };
        let RelayConfig { backend, id, holder, may_detach, .. } = &tap.wiring;
        if !may_detach {
            if connect::is_anothers(backend, *id, holder).await {
                let _ = tap.finish(false).await;
                return RelayEnd::TakenOver;
            }
            return RelayEnd::Ended(tap.lost(why).await);
        }
        match connect::again(backend, *id, tap.fed, holder).await {
            Ok((found, standing)) => {
                words = found;
                tap.found(&standing);
            }
            Err(ConnectError::Ended(ending)) => {
                // The end may be said by now: nobody else reads on.
                let _ = tap.finish(true).await;
                return RelayEnd::Ended(ending);
            }
            Err(ConnectError::TakenOver) => {
                let _ = tap.finish(false).await;
                return RelayEnd::TakenOver;
            }
            Err(ConnectError::Backend(BackendError::Refused(error))) if holder.is_gone_with_its_backend(&error) => {
                let message = "the backend was restarted, and the execution ended with the one before".to_owned();
                return RelayEnd::Ended(tap.lost(message).await);
            }
            Err(refusal) => {
                let message = format!("{why}; {}; it may still run: attach to it later", refusal.message());
                return RelayEnd::Ended(tap.lost(message).await);
            }
        }
    }
}

impl ConnectError {
    fn message(&self) -> String {
        match self {
            ConnectError::Backend(error) => error.to_string(),
            ConnectError::Silent(message) | ConnectError::Lost(message) => message.clone(),
            ConnectError::TakenOver => "another consumer holds the execution now".to_owned(),
            ConnectError::Ended(ending) => ending.reason.as_str().to_owned(),
        }
    }
}

/// Reads the plain stream of the legacy image to its end, and says how the execution ended.
pub(super) async fn plain(
    mut body: ResponseBody,
    end: BodyEnd,
    wiring: RelayConfig,
    legacy: Rc<LegacyClocks>,
    stall: Option<Duration>,
) -> Outcome {
    let (reader, progress) = match wiring.agent {
        Some(agent) => {
            let patience = wiring.backend.claude_exit();
            let (reader, progress) = agent.reader_with_progress(wiring.reader_options(), patience, Instant::now());
            (Some(reader), Some(progress))
        }
        None => (None, None),
    };
    let mut tap = Relay::with(wiring, reader);
    let mut stalled = Stopwatch::started(Instant::now());
    loop {
        legacy.is_open().await;
        stalled.run(true, Instant::now());
        run_clock(progress.as_ref(), true);
        let chunk = match body.next().now_or_never() {
            Some(chunk) => Some(chunk),
            None => {
                if let Err(why) = tap.flush().await {
                    return tap.lost(why).await;
                }
                let stall_at = stall.and_then(|stall| stalled.due_at(stall));
                let exit_due = progress.as_ref().and_then(|progress| progress.borrow().exit_due(None));
                tokio::select! {
                    biased;
                    chunk = body.next() => Some(chunk),
                    () = at(tap.quiet_at()) => None,
                    () = legacy.is_paused() => None,
                    // It has said how it ended, and this stream never ends by itself.
                    () = at(exit_due) => return tap.finished(progress.as_ref()).await,
                    () = at(stall_at) => return tap.stalled(stalled.elapsed(Instant::now())).await,
                }
            }
        };
        stalled.run(false, Instant::now());
        run_clock(progress.as_ref(), false);
        match chunk {
            None => {
                if let Err(why) = tap.flush_quiet().await {
                    return tap.lost(why).await;
                }
            }
            Some(Some(Ok(chunk))) => {
                stalled.reset(Instant::now());
                legacy.output(Instant::now());
                if let Some(progress) = &progress {
                    progress.borrow_mut().set_arrival(Instant::now());
                }
                if let Err(why) = tap.feed(OutputStream::Stdout, &chunk).await {
                    return tap.lost(why).await;
                }
                if let Some(progress) = progress.as_ref().filter(|progress| progress.borrow_mut().take_change()) {
                    let activity = progress.borrow().activity();
                    tap.tell(ExecutionEvent::Alive(legacy.alive(Instant::now()).with_activity(activity)));
                }
            }
            // awc reports a cut as a clean end: what was seen below it decides.
            Some(None) if end.is_complete() => return tap.finished(progress.as_ref()).await,
            Some(None) => return tap.lost("the backend's stream was cut off".to_owned()).await,
            Some(Some(Err(error))) => return tap.lost(format!("the backend's stream broke off: {error}")).await,
        }
    }
}

fn run_clock(progress: Option<&SharedProgress>, runs: bool) {
    if let Some(progress) = progress {
        progress.borrow_mut().run_clock(runs, Instant::now());
    }
}

/// The ending of an execution of the legacy image whose stream ended properly: COMPLETED, unless its agent reported
/// otherwise.
fn ending_of(progress: Option<&SharedProgress>) -> Outcome {
    let ended = |status, reason| Outcome::without_process(status, reason, None);
    let Some(progress) = progress else { return ended(Status::Completed, Reason::Exit) };
    let mut progress = progress.borrow_mut();
    progress.finish(Instant::now());
    let mut ending = progress.verdict(true).map_or_else(
        || ended(Status::Completed, Reason::Exit),
        |(status, reason, message)| Outcome::without_process(status, reason, (!message.is_empty()).then_some(message)),
    );
    ending.result = progress.result().cloned().map(Box::new);
    ending
}

/// Where output goes.
struct Relay {
    wiring: RelayConfig,
    encoder: Box<dyn OutputEncoder>,
    /// How far each stream has come from the backend.
    fed: PerStream<u64>,
    fed_at: PerStream<Option<Instant>>,
    /// How far each stream had come when that was last handed on.
    told: PerStream<u64>,
    heard_at: Cell<Instant>,
    status: Status,
}

impl Relay {
    fn new(wiring: RelayConfig) -> Self {
        let reader = wiring.agent.map(|agent| agent.reader(wiring.reader_options()));
        Relay::with(wiring, reader)
    }

    fn with(wiring: RelayConfig, agent: Option<Box<dyn AgentReader>>) -> Self {
        let (framing, offsets) = (wiring.framing, wiring.offsets);
        let encoder = (wiring.parent.encoder)(OutputOptions { framing, offsets, agent });
        Relay {
            wiring,
            encoder,
            told: offsets,
            fed: offsets,
            fed_at: PerStream::default(),
            heard_at: Cell::new(Instant::now()),
            status: Status::Running,
        }
    }

    /// Reads a stream to its last word. The error says why there is none.
    async fn follow(&mut self, words: &mut EventStream) -> Result<RelayEnd, String> {
        loop {
            match words.ready() {
                NextPart::Part(part) => {
                    self.heard_at.set(Instant::now());
                    if let Some(last) = self.on_part(part).await? {
                        return Ok(last);
                    }
                }
                NextPart::Lost(message) => return Err(message),
                NextPart::Dry => match words.fill().now_or_never() {
                    Some(filled) => filled?,
                    None => {
                        self.flush().await?;
                        self.wait(words).await?;
                    }
                },
            }
        }
    }

    /// Waits for the backend: for more of the stream, or until an unfinished line has waited long
    /// enough. Silence counts here.
    async fn wait(&mut self, words: &mut EventStream) -> Result<(), String> {
        let lost_at = self.heard_at.get() + self.wiring.heartbeat * MISSED_HEARTBEATS;
        let until = self.quiet_at().map_or(lost_at, |quiet_at| quiet_at.min(lost_at));
        match timeout_at(until.into(), words.fill()).await {
            Ok(filled) => filled,
            Err(_) if until < lost_at => self.flush_quiet().await,
            // It was this process that stood still: what came meanwhile has not been looked at.
            Err(_) if lost_at.elapsed() > self.wiring.heartbeat => {
                self.heard_at.set(Instant::now());
                Ok(())
            }
            Err(_) => Err(self.silence()),
        }
    }

    async fn on_part(&mut self, part: StreamPart) -> Result<Option<RelayEnd>, String> {
        let word = match part {
            StreamPart::Output(stream, bytes) => {
                self.feed(stream, &bytes).await?;
                return Ok(None);
            }
            StreamPart::Word(word) => serde_json::from_slice(&word).map_err(|error| connect::not_understood(&error))?,
        };
        match word {
            BackendEvent::Exit(ending) => {
                // The end may be said even where the client has not taken what came before.
                let _ = self.finish(true).await;
                return Ok(Some(RelayEnd::Ended(ending)));
            }
            BackendEvent::TakenOver(_) => {
                let _ = self.finish(false).await;
                return Ok(Some(RelayEnd::TakenOver));
            }
            BackendEvent::Started(started) => {
                self.flush().await?;
                self.change(StatusChange::to(started.status));
            }
            BackendEvent::Queued(queued) => self.tell(ExecutionEvent::Queued(queued.position)),
            BackendEvent::Status(change) => {
                self.flush().await?;
                self.change(change);
            }
            BackendEvent::Alive(alive) => self.tell(ExecutionEvent::Alive(alive)),
            BackendEvent::Gap(gap) => self.on_gap(gap).await?,
        }
        Ok(None)
    }

    async fn on_gap(&mut self, gap: Gap) -> Result<(), String> {
        let told = self.encoder.skip(gap);
        *self.fed.get_mut(gap.stream) = gap.to;
        *self.fed_at.get_mut(gap.stream) = None;
        self.flush().await?;
        if let Some(gap) = told {
            self.tell(ExecutionEvent::Gap(gap));
        }
        Ok(())
    }

    /// A stream that broke off was found again.
    fn found(&mut self, standing: &StreamStart) {
        self.heard_at.set(Instant::now());
        if let Some(position) = standing.position {
            return self.tell(ExecutionEvent::Queued(position));
        }
        if !standing.status.is_final() && standing.status != self.status {
            self.change(StatusChange::to(standing.status));
        }
        self.tell(ExecutionEvent::Alive(standing.alive.clone()));
    }

    fn change(&mut self, change: StatusChange) {
        self.status = change.status;
        self.tell(ExecutionEvent::Status(change));
    }

    async fn feed(&mut self, stream: OutputStream, bytes: &Bytes) -> Result<(), String> {
        self.encoder.feed(stream, bytes);
        *self.fed.get_mut(stream) += bytes.len() as u64;
        *self.fed_at.get_mut(stream) = self.encoder.has_unfinished_line(stream).then(Instant::now);
        self.step().await?;
        if self.encoder.encoded_len() >= BATCH { self.flush().await } else { Ok(()) }
    }

    /// An agent's events are encoded in small steps, so that of a long one not all is encoded at a time.
    async fn step(&mut self) -> Result<(), String> {
        loop {
            match self.encoder.step() {
                EventStep::Dry => return Ok(()),
                EventStep::Done if self.encoder.encoded_len() >= BATCH => self.flush().await?,
                EventStep::Done => {}
                EventStep::Gap(gap) => {
                    self.flush().await?;
                    self.tell(ExecutionEvent::Gap(gap));
                }
            }
        }
    }

    /// Hands on what is encoded, and waits for the permission to go on. Meanwhile the backend is asked
    /// for signs of life; the error is that it gave none. A parent that is gone cannot be told; this
    /// actor is being stopped then.
    async fn flush(&mut self) -> Result<(), String> {
        // An agent's events move the offsets without a word, and the client is asked what has arrived by these.
        if self.encoder.encoded_len() == 0 && self.encoder.offsets() == self.told {
            return Ok(());
        }
        let (bytes, offsets) = self.encoder.take();
        self.told = offsets;
        let output = EncodedOutput { execution_id: self.wiring.id, bytes: Bytes::from(bytes), offsets };
        let sent = pin!(self.wiring.parent.output.send(output));
        tokio::select! {
            biased;
            taken = sent => match taken {
                Ok(()) => Ok(()),
                Err(_) => std::future::pending().await,
            },
            () = self.no_life() => Err(self.silence()),
        }
    }

    /// Asks how the execution is, once a heartbeat, and returns when that was not answered for too long. Never returns for
    /// the legacy image, which the execution's actor watches by its health.
    async fn no_life(&self) {
        let RelayConfig { id, backend, heartbeat, has_id, .. } = &self.wiring;
        if !has_id {
            return std::future::pending().await;
        }
        while self.heard_at.get().elapsed() < *heartbeat * MISSED_HEARTBEATS {
            sleep(*heartbeat).await;
            if let Ok(snapshot) = backend.snapshot(*id).await {
                self.heard_at.set(Instant::now());
                self.tell(ExecutionEvent::Alive(snapshot.alive));
            }
        }
    }

    /// When the first unfinished line has waited long enough.
    fn quiet_at(&self) -> Option<Instant> {
        let earliest = OutputStream::BOTH.iter().filter_map(|stream| *self.fed_at.get(*stream)).min()?;
        Some(earliest + QUIET)
    }

    async fn flush_quiet(&mut self) -> Result<(), String> {
        let now = Instant::now();
        for stream in OutputStream::BOTH {
            let fed_at = self.fed_at.get_mut(stream);
            if fed_at.is_some_and(|at| at + QUIET <= now) {
                *fed_at = None;
                self.encoder.flush_quiet(stream);
            }
        }
        self.flush().await
    }

    /// Nothing more will come: the execution has ended, or is followed no further.
    async fn finish(&mut self, ended: bool) -> Result<(), String> {
        self.encoder.finish(ended);
        self.step().await?;
        self.flush().await
    }

    /// The proper end of the legacy image's stream. The ending counts only if all output was handed on.
    async fn finished(&mut self, progress: Option<&SharedProgress>) -> Outcome {
        match self.finish(true).await {
            Ok(()) => ending_of(progress),
            Err(why) => Outcome::failed(Reason::BackendLost, why),
        }
    }

    /// The end of a stream that broke off: what came before is still handed on.
    async fn lost(&mut self, message: String) -> Outcome {
        let _ = self.finish(false).await;
        Outcome::failed(Reason::BackendLost, message)
    }

    async fn stalled(&mut self, quiet: Duration) -> Outcome {
        let _ = self.finish(false).await;
        let message =
            format!("nothing was written for {} ms; this backend cannot say what is left of it", quiet.as_millis());
        Outcome::failed(Reason::Stalled, message)
    }

    fn silence(&self) -> String {
        let waited = self.wiring.heartbeat * MISSED_HEARTBEATS;
        format!("the backend gave no sign of life for {} s", waited.as_secs())
    }

    fn tell(&self, fact: ExecutionEvent) {
        self.wiring.parent.reports.do_send(ExecutionReport { execution_id: self.wiring.id, fact });
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
