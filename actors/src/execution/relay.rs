//! Relays output to the parent, at the pace of the parent. [`super::native`] and [`super::legacy`] read the streams.
//!
//! Back-pressure is applied in [`Relay::flush`]: the parent's reply to output is the permission to continue, and until
//! it comes nothing more is read from the backend.

use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::time::sleep;

use super::messages::{EncodedOutput, ExecutionEvent, Parent};
use crate::{
    agent::{Agent, ReaderOptions},
    backend_client::{BackendClient, HoldIdentity},
    id::ExecutionId,
    outcome::{Outcome, Reason},
    output::{AgentReader, EventStep, OutputEncoder, OutputOptions},
    stream::{Gap, PerStream, Stream as OutputStream},
};

/// How long an unfinished line waits for its newline while its stream is quiet.
const QUIET: Duration = Duration::from_millis(100);

/// Encoded output is sent when it reaches this size, in bytes, or when nothing more is ready.
const BATCH: usize = 64 * 1024;

/// Heartbeats that the backend may miss before it counts as lost.
pub(super) const MISSED_HEARTBEATS: u32 = 6;

/// The parameters of a relay.
#[derive(Clone)]
pub(super) struct RelayConfig {
    pub(super) id: ExecutionId,
    pub(super) backend: BackendClient,
    pub(super) holder: Rc<HoldIdentity>,
    /// Whether the backend knows the execution by its id, so that it can be asked for signs of life.
    pub(super) has_id: bool,
    pub(super) parent: Parent,
    /// The agent, if standard output consists of an agent's events.
    pub(super) agent: Option<&'static dyn Agent>,
    pub(super) reader_options: ReaderOptions,
    /// What the client has already of each stream, in bytes.
    pub(super) offsets: PerStream<u64>,
    pub(super) heartbeat: Duration,
    /// Whether the execution keeps running in its backend when its stream breaks off.
    pub(super) may_detach: bool,
    /// Whether it is followed without a hold.
    pub(super) observes: bool,
}

/// Encodes output and hands it to the parent.
pub(super) struct Relay {
    pub(super) config: RelayConfig,
    encoder: Box<dyn OutputEncoder>,
    /// The offset of each stream after the bytes received.
    pub(super) received: PerStream<u64>,
    /// When a line began to wait for its newline.
    waiting_since: PerStream<Option<Instant>>,
    /// The offset of each stream after the bytes handed on.
    sent: PerStream<u64>,
    /// When the backend last gave a sign of life.
    pub(super) last_event_at: Cell<Instant>,
}

impl Relay {
    pub(super) fn new(config: RelayConfig) -> Self {
        let reader = config.agent.map(|agent| agent.reader(config.reader_options));
        Relay::with_reader(config, reader)
    }

    /// A relay whose agent's events this reader takes.
    pub(super) fn with_reader(config: RelayConfig, agent: Option<Box<dyn AgentReader>>) -> Self {
        let (framing, offsets) = (config.reader_options.framing, config.offsets);
        let encoder = (config.parent.encoder)(OutputOptions { framing, offsets, agent });
        Relay {
            config,
            encoder,
            sent: offsets,
            received: offsets,
            waiting_since: PerStream::default(),
            last_event_at: Cell::new(Instant::now()),
        }
    }

    /// Takes output, and hands it on once there is enough of it.
    pub(super) async fn feed(&mut self, stream: OutputStream, bytes: &Bytes) -> Result<(), String> {
        self.encoder.feed(stream, bytes);
        *self.received.get_mut(stream) += bytes.len() as u64;
        *self.waiting_since.get_mut(stream) = self.encoder.has_unfinished_line(stream).then(Instant::now);
        self.step().await?;
        if self.encoder.encoded_len() >= BATCH { self.flush().await } else { Ok(()) }
    }

    /// Skips the lost bytes of a gap.
    pub(super) async fn skip(&mut self, gap: Gap) -> Result<(), String> {
        let reported = self.encoder.skip(gap);
        *self.received.get_mut(gap.stream) = gap.to;
        *self.waiting_since.get_mut(gap.stream) = None;
        self.flush().await?;
        if let Some(gap) = reported {
            self.report(ExecutionEvent::Gap(gap));
        }
        Ok(())
    }

    /// An agent's events are encoded in small steps, so that a long event is never encoded as a whole.
    async fn step(&mut self) -> Result<(), String> {
        loop {
            match self.encoder.step() {
                EventStep::Dry => return Ok(()),
                EventStep::Done if self.encoder.encoded_len() >= BATCH => self.flush().await?,
                EventStep::Done => {}
                EventStep::Gap(gap) => {
                    self.flush().await?;
                    self.report(ExecutionEvent::Gap(gap));
                }
            }
        }
    }

    /// Hands on the encoded output, and waits for the permission to continue. Meanwhile the backend is asked for signs
    /// of life; the error is that it gave none. If the parent is gone this never returns, because the actor is being
    /// stopped then.
    pub(super) async fn flush(&mut self) -> Result<(), String> {
        // An agent's events move the offsets without a message, and the client acknowledges output by offsets.
        if self.encoder.encoded_len() == 0 && self.encoder.offsets() == self.sent {
            return Ok(());
        }
        let (bytes, offsets) = self.encoder.take();
        self.sent = offsets;
        let output = EncodedOutput { execution_id: self.config.id, bytes: Bytes::from(bytes), offsets };
        let reply = pin!(self.config.parent.output.send(output));
        tokio::select! {
            biased;
            taken = reply => match taken {
                Ok(()) => Ok(()),
                Err(_) => std::future::pending().await,
            },
            () = self.no_life() => Err(no_sign_of_life(self.config.heartbeat)),
        }
    }

    /// Asks for the state of the execution, once a heartbeat, and returns when there was no answer for too long. Never
    /// returns for the legacy image, whose health [`super::legacy`] watches.
    async fn no_life(&self) {
        let RelayConfig { id, backend, heartbeat, has_id, observes, .. } = &self.config;
        if !has_id {
            return std::future::pending().await;
        }
        while self.last_event_at.get().elapsed() < *heartbeat * MISSED_HEARTBEATS {
            sleep(*heartbeat).await;
            let snapshot = match observes {
                true => backend.snapshot_as_observer(*id).await,
                false => backend.snapshot(*id).await,
            };
            if let Ok(snapshot) = snapshot {
                self.last_event_at.set(Instant::now());
                self.report(ExecutionEvent::Alive(snapshot.alive));
            }
        }
    }

    /// When the first unfinished line has waited long enough.
    pub(super) fn quiet_at(&self) -> Option<Instant> {
        let earliest = OutputStream::BOTH.iter().filter_map(|stream| *self.waiting_since.get(*stream)).min()?;
        Some(earliest + QUIET)
    }

    /// Hands on unfinished lines that have waited long enough.
    pub(super) async fn flush_quiet(&mut self) -> Result<(), String> {
        let now = Instant::now();
        for stream in OutputStream::BOTH {
            let since = self.waiting_since.get_mut(stream);
            if since.is_some_and(|since| since + QUIET <= now) {
                *since = None;
                self.encoder.flush_quiet(stream);
            }
        }
        self.flush().await
    }

    /// Hands on the rest, because the execution has ended (`ended`) or its stream is not read any further.
    pub(super) async fn finish(&mut self, ended: bool) -> Result<(), String> {
        self.encoder.finish(ended);
        self.step().await?;
        self.flush().await
    }

    /// Hands on the rest of a stream that broke off, and returns the outcome with this message.
    pub(super) async fn lost(&mut self, message: String) -> Outcome {
        let _ = self.finish(false).await;
        Outcome::failed(Reason::BackendLost, message)
    }

    /// Reports an event to the parent.
    pub(super) fn report(&self, event: ExecutionEvent) {
        self.config.parent.report(self.config.id, event);
    }
}

/// The message about a backend that is lost.
pub(super) fn no_sign_of_life(heartbeat: Duration) -> String {
    format!("the backend gave no sign of life for {} s", (heartbeat * MISSED_HEARTBEATS).as_secs())
}
