//! An open session: the handlers of all events but JSON-RPC calls, which are in `requests`.

use std::time::{Duration, Instant};

use super::{
    ControlOutcome, Effect, Incoming, Outgoing, SessionEvent,
    current::{CurrentExecution, ExecutionStage},
    ended::UnacknowledgedEnds,
    step::{SessionEnd, SessionStep},
};
use crate::{
    close::{CloseCode, CloseReason},
    execution::messages::{EncodedOutput, ExecutionEvent, ExecutionReport, StreamStart},
    outcome::{Outcome, Status},
    protocol::{
        Limits,
        execute::Acceptance,
        notification::{DetachReason, DetachedNotice, ErrorNotice, FinalStatus, GapNotice, ServerMessage},
    },
    rpc::{ErrorObject, code},
    session::liveness::{Liveness, LivenessAction},
    stream::Gap,
    supervisor::Drain,
};

/// An open session.
#[derive(Debug)]
pub struct OpenSession {
    pub(super) limits: Limits,
    pub(super) current: Option<CurrentExecution>,
    /// The final status of the newest execution that has ended.
    pub(super) newest: Option<FinalStatus>,
    pub(super) ended: UnacknowledgedEnds,
    pub(super) draining: bool,
    liveness: Liveness,
}

impl OpenSession {
    /// An open session without an execution.
    pub fn new(limits: Limits, now: Instant) -> Self {
        let liveness = Liveness::new(Duration::from_millis(limits.client_stall_ms), now);
        OpenSession {
            limits,
            current: None,
            newest: None,
            ended: UnacknowledgedEnds::default(),
            draining: false,
            liveness,
        }
    }

    /// Handles an event.
    pub fn on(&mut self, event: SessionEvent, now: Instant) -> SessionStep {
        let mut step = SessionStep::default();
        match event {
            SessionEvent::Incoming(incoming) => self.on_incoming(incoming, now, &mut step),
            SessionEvent::Report(report) => self.on_report(report, now, &mut step),
            SessionEvent::Output(EncodedOutput { execution_id, bytes: frames, offsets }) => {
                let current = self.current.as_mut().filter(|current| current.id == execution_id);
                if let Some(live) = current.and_then(CurrentExecution::live_mut) {
                    live.output(offsets, now);
                    // An agent's event without text moves the offsets only.
                    if !frames.is_empty() {
                        self.liveness.sent(frames.len());
                        step.messages.push(Outgoing::Output(frames));
                    }
                    self.ping_for_acknowledgement(now, &mut step);
                }
            }
            SessionEvent::Answered(answered) => self.on_answered(answered, now, &mut step),
            SessionEvent::Heartbeat => self.send_heartbeat(now, &mut step),
            SessionEvent::Tick { taken, blocked, is_read } => {
                // The service has not read a sign of life, although there may be one.
                if !is_read {
                    self.liveness.record_life(now);
                }
                self.on_tick(taken, blocked, now, &mut step);
            }
            SessionEvent::Flooded(reason) => step.close(CloseReason::new(CloseCode::Policy, reason)),
            SessionEvent::Drain(drain) => self.on_drain(drain, &mut step),
        }
        step
    }

    fn on_incoming(&mut self, incoming: Incoming, now: Instant, step: &mut SessionStep) {
        self.liveness.record_life(now);
        match incoming {
            Incoming::Text(text) => self.on_text(&text, now, step),
            Incoming::Ping(payload) => step.messages.push(Outgoing::Pong(payload)),
            Incoming::Pong(payload) => {
                let Some((id, offsets)) = self.liveness.pong(&payload) else { return };
                match &self.current {
                    Some(current) if current.awaits_acknowledgement() && current.id == id => {
                        step.effects.extend((!current.acknowledges).then_some(Effect::Acknowledge(offsets)));
                    }
                    _ => step.effects.extend(self.ended.on_pong((id, offsets))),
                }
            }
            Incoming::Held => {}
            Incoming::Close => step.close(CloseReason::new(CloseCode::Normal, "closed as asked")),
            Incoming::Fault(reason) => step.close(reason),
            Incoming::Gone => step.end = SessionEnd::Gone,
        }
    }

    /// The pong that follows output acknowledges it. The backend waits for that if the command may detach.
    fn ping_for_acknowledgement(&mut self, now: Instant, step: &mut SessionStep) {
        if let Some(current) = self.current.as_mut().filter(|current| current.awaits_acknowledgement())
            && current.live_mut().is_some_and(|live| live.take_due_ping())
        {
            let sent = (current.id, current.offsets());
            step.messages.push(Outgoing::Ping(self.liveness.ping(Some(sent), now)));
        }
    }

    fn send_heartbeat(&self, now: Instant, step: &mut SessionStep) {
        let update = self.current.as_ref().and_then(|current| current.status_update(now));
        step.messages.extend(update.map(Outgoing::Heartbeat));
    }

    fn send_progress(&self, now: Instant, step: &mut SessionStep) {
        let update = self.current.as_ref().and_then(|current| current.status_update(now));
        step.messages.extend(update.map(|update| Outgoing::Message(ServerMessage::Progress(update))));
    }

    fn on_tick(&mut self, taken: u64, blocked: bool, now: Instant, step: &mut SessionStep) {
        let stall_ms = self.limits.client_stall_ms;
        match self.liveness.tick(taken, blocked, now) {
            LivenessAction::Wait => {}
            LivenessAction::Ping => {
                // The pong of an observer acknowledges nothing.
                let held = self.current.as_ref().filter(|current| !current.is_observed());
                let sent = held.map(|current| (current.id, current.offsets()));
                step.messages.push(Outgoing::Ping(self.liveness.ping(sent, now)));
            }
            LivenessAction::Unresponsive => step.close(CloseReason::new(
                CloseCode::Lifeless,
                format!("no answer to a ping within {stall_ms} ms: connect again"),
            )),
            LivenessAction::Stalled => step.close(CloseReason::new(
                CloseCode::Lifeless,
                format!("nothing was read for {stall_ms} ms: connect again and read what is sent"),
            )),
        }
    }

    fn on_answered(&mut self, answered: ControlOutcome, now: Instant, step: &mut SessionStep) {
        let ControlOutcome { id, execution_id, own, is_status, outcome } = answered;
        // The result of a status speaks of output.
        match is_status {
            true => step.reply(id, Some(execution_id), outcome),
            false => step.reply_quickly(id, Some(execution_id), outcome),
        }
        let Some(current) = self.current.as_mut().filter(|current| own && current.id == execution_id) else { return };
        current.n_unanswered = current.n_unanswered.saturating_sub(1);
        if current.n_unanswered == 0
            && let Some(outcome) = current.outcome.take()
        {
            self.on_exited(outcome, now, step);
        }
    }

    fn on_report(&mut self, report: ExecutionReport, now: Instant, step: &mut SessionStep) {
        let Some(current) = self.current.as_mut().filter(|current| current.id == report.execution_id) else { return };
        match report.event {
            ExecutionEvent::Refused(error) => self.on_refused(error, step),
            ExecutionEvent::TakenOver => self.on_taken_over(step),
            ExecutionEvent::Exited(outcome) if current.n_unanswered > 0 => current.outcome = Some(outcome),
            ExecutionEvent::Exited(outcome) => self.on_exited(outcome, now, step),
            ExecutionEvent::Held(start) => {
                self.on_held(&start, now, step);
                self.send_progress(now, step);
            }
            ExecutionEvent::Queued(position) => {
                if let Some(live) = current.live_mut() {
                    live.queued(position, now);
                    self.send_progress(now, step);
                }
            }
            ExecutionEvent::Status(change) => {
                if let Some(live) = current.live_mut() {
                    live.change(change, now);
                    self.send_progress(now, step);
                }
            }
            ExecutionEvent::Alive(heartbeat) => {
                if current.live_mut().is_some_and(|live| live.heartbeat(heartbeat, now)) {
                    // As a heartbeat, because a slow client needs the newest activity only.
                    self.send_heartbeat(now, step);
                }
            }
            ExecutionEvent::Gap(gap) => {
                if let Some(live) = current.live_mut() {
                    live.gap(gap);
                    let Gap { stream: r#type, from, to, reason } = gap;
                    step.send(ServerMessage::Gap(GapNotice { execution_id: current.id, r#type, from, to, reason }));
                }
            }
        }
    }

    fn on_refused(&mut self, error: ErrorObject, step: &mut SessionStep) {
        if let Some(CurrentExecution { stage: ExecutionStage::Starting { call, .. }, .. }) = self.current.take() {
            step.reply(call, None, Err(error));
        }
        self.release(step);
    }

    /// Answers the call that started or attached to the execution.
    fn on_held(&mut self, start: &StreamStart, now: Instant, step: &mut SessionStep) {
        let Some(current) = &mut self.current else { return };
        let call = current.go_live(start, now);
        let result = if current.execute().is_some() {
            current.hold_result(Acceptance::from(start.status))
        } else {
            step.effects.push(Effect::SetHeartbeat(current.heartbeat_ms()));
            current.hold_result(start.status)
        };
        step.reply(call, Some(current.id), Ok(result));
    }

    fn on_taken_over(&mut self, step: &mut SessionStep) {
        let Some(current) = self.current.take() else { return };
        let (execution_id, offsets) = (current.id, current.offsets());
        match current.stage {
            ExecutionStage::Starting { call, .. } => {
                let message = format!(
                    "another session attached to execution {execution_id} meanwhile: attach again to follow it here"
                );
                let error = ErrorObject::new(code::NOT_RUNNING, message);
                step.reply(call, Some(execution_id), Err(error));
            }
            ExecutionStage::Live(_) => {
                let reason = DetachReason::TakenOver;
                step.send(ServerMessage::Detached(DetachedNotice { execution_id, reason, offsets }));
            }
        }
        self.release(step);
    }

    fn on_exited(&mut self, outcome: Outcome, now: Instant, step: &mut SessionStep) {
        let Some(mut current) = self.current.take() else { return };
        let execution_id = current.id;
        if let ExecutionStage::Starting { call, .. } = &mut current.stage {
            let call = call.take();
            let result = match current.execute() {
                Some(_) => current.hold_result(Acceptance::Failed),
                None => current.hold_result(outcome.status),
            };
            step.reply(call, Some(execution_id), Ok(result));
        }
        if let Some(error) = ErrorObject::of_outcome(&outcome) {
            step.send(ServerMessage::Error(ErrorNotice { error, execution_id: Some(execution_id) }));
        }
        if current.awaits_acknowledgement() && current.live_mut().is_some() {
            // Before the final status, so that a client that leaves after it has answered already.
            let sent = (execution_id, current.offsets());
            self.ended.push(sent, current.info.hold, current.acknowledges);
            step.messages.push(Outgoing::Ping(self.liveness.ping(Some(sent), now)));
        }
        let ended = FinalStatus { execution_id, ending: outcome };
        step.send(ServerMessage::Ended(ended.clone()));
        self.newest = Some(ended);
        self.release(step);
    }

    /// The session has no execution any more. A draining session is closed then.
    fn release(&mut self, step: &mut SessionStep) {
        step.effects.push(Effect::Release);
        if self.draining {
            step.close(going_away());
        }
    }

    fn on_drain(&mut self, drain: Drain, step: &mut SessionStep) {
        let Some(current) = &self.current else { return step.close(going_away()) };
        match drain {
            Drain::Begin { executions_live_on: true, .. } if current.may_detach() || current.is_observed() => {
                let text = match current.is_observed() {
                    true => "the service is shutting down: connect again to observe the execution",
                    false => "the service is shutting down, the execution keeps running: connect again and attach",
                };
                step.close(CloseReason::new(CloseCode::GoingAway, text));
            }
            // The session that holds it ends it, or the backend, which ends with this gateway.
            Drain::Begin { .. } | Drain::Hurry { .. } if current.is_observed() => self.draining = true,
            // A running execution may finish.
            Drain::Begin { grace_ms, .. } => {
                if !self.draining && matches!(current.status(), None | Some(Status::Queued)) {
                    step.effects.push(Effect::Drain { grace_ms });
                }
                self.draining = true;
            }
            Drain::Hurry { grace_ms } => {
                step.effects.push(Effect::Drain { grace_ms });
                self.draining = true;
            }
        }
    }
}

fn going_away() -> CloseReason {
    CloseReason::new(CloseCode::GoingAway, "the service is shutting down: connect again in a moment")
}
