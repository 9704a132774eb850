//! Relays the plain stream of the legacy image. That image has no time-outs, heartbeats or outcomes, so the gateway adds
//! them.
//!
//! [`step`] decides on each event of the stream; this module reads the stream and carries the decisions out.

pub(super) mod clocks;
mod step;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::{MissedTickBehavior, interval_at};

use self::{
    clocks::{LegacyClocks, at},
    step::{LegacyEvent, LegacyState, LegacyStep},
};
use super::{
    messages::ExecutionEvent,
    relay::{MISSED_HEARTBEATS, Relay, RelayConfig, no_sign_of_life},
};
use crate::{
    agent::Agent,
    backend_client::{BodyEnd, ResponseBody},
    outcome::{CancelReport, Outcome, Reason},
    protocol::execute::ExecutionSpec,
    stream::Stream as OutputStream,
};

/// The stream of an execution on the legacy image.
pub(super) struct LegacyStream {
    body: ResponseBody,
    end: BodyEnd,
    pub(super) clocks: Rc<LegacyClocks>,
    stall_timeout: Option<Duration>,
}

impl LegacyStream {
    pub(super) fn new(body: ResponseBody, end: BodyEnd, run: &ExecutionSpec) -> Self {
        let timeout = run.timeout_ms.map(Duration::from_millis);
        LegacyStream {
            body,
            end,
            clocks: Rc::new(LegacyClocks::started(Instant::now(), timeout)),
            stall_timeout: run.stall_timeout_ms.map(Duration::from_millis),
        }
    }
}

/// Relays a stream to its end, to the total time-out, or until the backend is lost.
pub(super) async fn relay(stream: LegacyStream, config: RelayConfig) -> Outcome {
    let clocks = Rc::clone(&stream.clocks);
    let now = Instant::now();
    let watched_reader =
        |agent: &dyn Agent| agent.reader_with_progress(config.reader_options, config.backend.claude_exit(), now);
    let (reader, progress) = config.agent.map(watched_reader).unzip();
    let state = LegacyState::new(stream.stall_timeout, progress, now);
    let watched = config.clone();
    let mut relay = Relay::with_reader(config, reader);
    tokio::select! {
        biased;
        outcome = async {
            match read(stream, state, &mut relay).await {
                Ok(outcome) => outcome,
                Err(fault) => relay.lost(fault).await,
            }
        } => outcome,
        () = clocks.timed_out() => {
            let message = "the total time-out passed; this backend cannot report whether processes remain";
            Outcome { cancel: Some(CancelReport::unknown(0)), ..Outcome::failed(Reason::Timeout, message) }
        }
        () = watch_health(&watched, &clocks) => {
            Outcome::failed(Reason::BackendLost, no_sign_of_life(watched.heartbeat))
        }
    }
}

/// Reads a stream to its end. The error says how it broke off.
async fn read(mut stream: LegacyStream, mut state: LegacyState, relay: &mut Relay) -> Result<Outcome, String> {
    loop {
        stream.clocks.wait_until(false).await;
        state.run_clocks(true, Instant::now());
        let event = match stream.body.next().now_or_never() {
            Some(chunk) => body_event(chunk, &stream.end),
            None => {
                relay.flush().await?;
                tokio::select! {
                    biased;
                    chunk = stream.body.next() => body_event(chunk, &stream.end),
                    () = at(relay.quiet_at()) => LegacyEvent::LineQuiet,
                    () = stream.clocks.wait_until(true) => LegacyEvent::Paused,
                    () = at(state.exit_due()) => LegacyEvent::ExitOverdue,
                    () = at(state.stall_due()) => LegacyEvent::StallOverdue,
                }
            }
        };
        let now = Instant::now();
        match state.on(event, now)? {
            LegacyStep::FlushQuiet => relay.flush_quiet().await?,
            LegacyStep::Feed(chunk) => {
                stream.clocks.record_output(now);
                relay.feed(OutputStream::Stdout, &chunk).await?;
                if let Some(activity) = state.changed_activity() {
                    let heartbeat = stream.clocks.heartbeat(Instant::now());
                    relay.report(ExecutionEvent::Alive(heartbeat.with_activity(activity)));
                }
            }
            LegacyStep::Complete => {
                // The outcome counts only if all output was handed on.
                relay.finish(true).await?;
                return Ok(state.outcome(Instant::now()));
            }
            LegacyStep::Stalled(outcome) => {
                let _ = relay.finish(false).await;
                return Ok(outcome);
            }
        }
    }
}

fn body_event<E: std::fmt::Display>(chunk: Option<Result<bytes::Bytes, E>>, end: &BodyEnd) -> LegacyEvent {
    match chunk {
        Some(Ok(chunk)) => LegacyEvent::Chunk(chunk),
        Some(Err(error)) => LegacyEvent::Failed(error.to_string()),
        None => LegacyEvent::Ended { is_complete: end.is_complete() },
    }
}

/// Reports a heartbeat whenever the backend answers `GET /health`, which is sent once a heartbeat, without waiting for
/// earlier answers, because a single one may be lost. Returns when the backend has given no sign of life for too long.
async fn watch_health(config: &RelayConfig, clocks: &LegacyClocks) {
    let RelayConfig { id, backend, parent, heartbeat, .. } = config;
    let mut ticks = interval_at(tokio::time::Instant::now() + *heartbeat, *heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(answered) = answers.next() => {
                if answered {
                    clocks.last_sign_at.set(Instant::now());
                    parent.report(*id, ExecutionEvent::Alive(clocks.heartbeat(Instant::now())));
                }
            }
            _ = ticks.tick() => {
                if clocks.last_sign_at.get() + *heartbeat * MISSED_HEARTBEATS < Instant::now() {
                    return;
                }
                answers.push(backend.answers());
            }
        }
    }
}
