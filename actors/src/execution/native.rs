//! Relays the multiplexed stream of a native backend, and attaches again when it breaks off.

use std::time::Instant;

use futures_util::FutureExt;
use tokio::time::timeout_at;

use super::{
    connect::{self, ConnectError, EventStream, ExecutionEnd},
    messages::{ExecutionEvent, StreamStart},
    relay::{MISSED_HEARTBEATS, Relay, RelayConfig, no_sign_of_life},
};
use crate::{
    backend_api::{BackendEvent, StatusChange, multiplex::StreamPart},
    backend_client::BackendError,
    outcome::Status,
};

/// Relays a stream to its end.
pub(super) async fn relay(mut events: EventStream, config: RelayConfig) -> ExecutionEnd {
    let mut native = NativeRelay { relay: Relay::new(config), status: Status::Running };
    let end = loop {
        let fault = match native.follow(&mut events).await {
            Ok(end) => break end,
            Err(fault) => fault,
        };
        match native.reconnect(fault).await {
            Ok((found, start)) => {
                events = found;
                native.on_reconnected(start);
            }
            Err(ConnectError::End(end)) => break end,
            Err(ConnectError::Failed(error)) => {
                return ExecutionEnd::Ended(Box::new(native.relay.lost(error.to_string()).await));
            }
        }
    };
    // The end may be reported even if the client has not taken all output.
    let _ = native.relay.finish(matches!(end, ExecutionEnd::Ended(_))).await;
    end
}

struct NativeRelay {
    relay: Relay,
    /// The status that was last reported.
    status: Status,
}

impl NativeRelay {
    /// Relays a stream to its last event. The error says how it broke off.
    async fn follow(&mut self, events: &mut EventStream) -> Result<ExecutionEnd, String> {
        loop {
            match events.ready()? {
                Some(StreamPart::Output(stream, bytes)) => {
                    self.relay.last_event_at.set(Instant::now());
                    self.relay.feed(stream, &bytes).await?;
                }
                Some(StreamPart::Event(event)) => {
                    self.relay.last_event_at.set(Instant::now());
                    if let Some(end) = self.on_event(connect::parse_event(&event)?).await? {
                        return Ok(end);
                    }
                }
                None => match events.fill().now_or_never() {
                    Some(filled) => filled?,
                    None => {
                        self.relay.flush().await?;
                        self.wait(events).await?;
                    }
                },
            }
        }
    }

    /// Waits for more of the stream, for the time of an unfinished line, or until the backend counts as lost.
    async fn wait(&mut self, events: &mut EventStream) -> Result<(), String> {
        let heartbeat = self.relay.config.heartbeat;
        let lost_at = self.relay.last_event_at.get() + heartbeat * MISSED_HEARTBEATS;
        let until = self.relay.quiet_at().map_or(lost_at, |quiet_at| quiet_at.min(lost_at));
        match timeout_at(until.into(), events.fill()).await {
            Ok(filled) => filled,
            Err(_) if until < lost_at => self.relay.flush_quiet().await,
            // This process was stopped, and has not yet read what arrived meanwhile.
            Err(_) if lost_at.elapsed() > heartbeat => {
                self.relay.last_event_at.set(Instant::now());
                Ok(())
            }
            Err(_) => Err(no_sign_of_life(heartbeat)),
        }
    }

    async fn on_event(&mut self, event: BackendEvent) -> Result<Option<ExecutionEnd>, String> {
        match event {
            BackendEvent::Exit(outcome) => return Ok(Some(ExecutionEnd::Ended(Box::new(outcome)))),
            BackendEvent::TakenOver(_) => return Ok(Some(ExecutionEnd::TakenOver)),
            BackendEvent::Started(started) => {
                self.relay.flush().await?;
                self.change_status(StatusChange::to(started.status));
            }
            BackendEvent::Queued(queued) => self.relay.report(ExecutionEvent::Queued(queued.position)),
            BackendEvent::Status(change) => {
                self.relay.flush().await?;
                self.change_status(change);
            }
            BackendEvent::Alive(heartbeat) => self.relay.report(ExecutionEvent::Alive(heartbeat)),
            BackendEvent::Gap(gap) => self.relay.skip(gap).await?,
        }
        Ok(None)
    }

    /// Attaches again if the execution may have gone on, which it has for an observer. For any other execution the
    /// backend is asked whether another consumer has it now, because the backend cuts the connection of a replaced
    /// consumer that does not read.
    async fn reconnect(&self, fault: String) -> Result<(EventStream, StreamStart), ConnectError> {
        let RelayConfig { backend, id, holder, may_detach, observes, .. } = &self.relay.config;
        if !may_detach && !observes {
            return Err(match connect::is_taken_over(backend, *id, holder).await {
                true => ConnectError::End(ExecutionEnd::TakenOver),
                false => BackendError::BrokeOff(fault).into(),
            });
        }
        match connect::find(backend, *id, self.relay.received, holder, *observes).await {
            Err(ConnectError::Failed(BackendError::Refused(error))) if holder.is_gone_with_its_backend(&error) => {
                let message = "the backend was restarted, and the execution ended with the old backend process";
                Err(BackendError::BrokeOff(message.to_owned()).into())
            }
            Err(ConnectError::Failed(error)) => {
                Err(BackendError::BrokeOff(connect::not_found(&fault, *id, &error)).into())
            }
            found => found,
        }
    }

    fn on_reconnected(&mut self, start: StreamStart) {
        self.relay.last_event_at.set(Instant::now());
        if let Some(position) = start.position {
            return self.relay.report(ExecutionEvent::Queued(position));
        }
        if !start.status.is_final() && start.status != self.status {
            self.change_status(StatusChange::to(start.status));
        }
        self.relay.report(ExecutionEvent::Alive(start.alive));
    }

    fn change_status(&mut self, change: StatusChange) {
        self.status = change.status;
        self.relay.report(ExecutionEvent::Status(change));
    }
}
