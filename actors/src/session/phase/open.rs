//! An open session: what it owes its client, and what follows from an event. Calls are in `requests`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    ControlOutcome, DrainMode, Effect, Incoming, Outgoing, SessionEvent,
    current::{CurrentExecution, ExecutionStage, accepted, attached},
};
use crate::{
    close::{CloseCode, CloseReason},
    execution::messages::{ExecutionEvent, ExecutionReport, StreamStart},
    id::ExecutionId,
    outcome::{Outcome, Status},
    protocol::{
        Limits,
        attach::AttachResult,
        execute::{Acceptance, ExecuteResult},
        notification::{DetachReason, DetachedNotice, ErrorNotice, FinalStatus, GapNotice, ServerMessage},
    },
    rpc::{ErrorObject, Id, Response, code},
    session::liveness::{Liveness, LivenessAction, MAX_UNANSWERED, SentOffsets},
};

/// What follows from an event.
pub(super) struct Transition {
    pub(super) say: Vec<Outgoing>,
    pub(super) asks: Vec<Effect>,
    pub(super) then: NextStep,
}

/// Whether the session goes on.
pub(super) enum NextStep {
    Stay(Box<Open>),
    Close(CloseReason),
    Gone,
}

/// An open session.
#[derive(Debug)]
pub struct Open {
    pub(super) limits: Limits,
    pub(super) hold: Option<CurrentExecution>,
    pub(super) newest: Option<FinalStatus>,
    /// Ended executions that may detach, with the ends of their streams and the numbers of their holds: their last output
    /// may be on the way.
    delivering: VecDeque<(SentOffsets, Option<u64>)>,
    pub(super) draining: bool,
    liveness: Liveness,
}

impl Open {
    /// An open session in which nothing has happened.
    pub(super) fn new(limits: Limits, now: Instant) -> Box<Self> {
        let liveness = Liveness::new(Duration::from_millis(limits.client_stall_ms), now);
        Box::new(Open { limits, hold: None, newest: None, delivering: VecDeque::new(), draining: false, liveness })
    }

    /// What follows from an event.
    pub(super) fn on(mut self: Box<Self>, event: SessionEvent, now: Instant) -> Transition {
        let mut said = Effects::default();
        let then = match event {
            SessionEvent::Incoming(incoming) => self.on_incoming(incoming, now, &mut said),
            SessionEvent::Report(report) => self.on_report(report, now, &mut said),
            SessionEvent::Output { execution_id, frames, offsets } => {
                if let Some(live) =
                    self.hold.as_mut().filter(|hold| hold.id == execution_id).and_then(CurrentExecution::live_mut)
                {
                    live.output(offsets, now);
                    // What moves the offsets alone has nothing to say.
                    if !frames.is_empty() {
                        self.liveness.sent(frames.len());
                        said.say.push(Outgoing::Output(frames));
                    }
                    self.ask_what_arrived(now, &mut said);
                }
                None
            }
            SessionEvent::Answered(answered) => self.on_answered(answered, now, &mut said),
            SessionEvent::Heartbeat => {
                said.say.extend(self.hold.as_ref().and_then(|hold| hold.progress(now)).map(Outgoing::Heartbeat));
                None
            }
            SessionEvent::Look { taken, blocked } => self.on_look(taken, blocked, now, &mut said),
            SessionEvent::Flooded => Some(NextStep::Close(CloseReason::new(
                CloseCode::Policy,
                format!("more than {} responses unread: read what is sent", self.limits.unsent_responses),
            ))),
            SessionEvent::Drain(leave) => self.on_drain(leave, &mut said),
            SessionEvent::Hurry => {
                let then = self.on_drain(DrainMode::Nothing, &mut said);
                if self.hold.is_some() {
                    said.asks.push(Effect::Drain);
                }
                then
            }
        };
        let then = then.unwrap_or(NextStep::Stay(self));
        Transition { say: said.say, asks: said.asks, then }
    }

    fn on_incoming(&mut self, incoming: Incoming, now: Instant, said: &mut Effects) -> Option<NextStep> {
        self.liveness.record_life(now);
        match incoming {
            Incoming::Text(text) => self.on_text(&text, now, said),
            Incoming::Ping(payload) => said.say.push(Outgoing::Pong(payload)),
            Incoming::Pong(payload) => {
                let arrived = self.liveness.pong(&payload);
                let held = self.hold.as_ref().filter(|hold| hold.may_detach).map(|hold| hold.id);
                match arrived {
                    Some((id, offsets)) if Some(id) == held => said.asks.push(Effect::Acknowledge(offsets)),
                    Some(sent) => self.on_delivered(sent, said),
                    None => {}
                }
            }
            Incoming::Close => return Some(NextStep::Close(CloseReason::new(CloseCode::Normal, "closed as asked"))),
            Incoming::Fault(reason) => return Some(NextStep::Close(reason)),
            Incoming::Gone => return Some(NextStep::Gone),
        }
        None
    }

    /// So much of an execution that this session does not hold has arrived. If it has ended here, that may have been
    /// said before its end, and everything of those that ended before it has arrived, too: pongs come in order.
    fn on_delivered(&mut self, sent: SentOffsets, said: &mut Effects) {
        let Some(at) = self.delivering.iter().position(|((id, _), _)| *id == sent.0) else { return };
        let hold = self.delivering[at].1;
        let ended_before = self.delivering.drain(..at);
        said.asks.extend(
            ended_before.chain([(sent, hold)]).map(|((id, offsets), hold)| Effect::Delivered(id, offsets, hold)),
        );
        if self.delivering.front() == Some(&(sent, hold)) {
            self.delivering.pop_front();
        }
    }

    /// Bytes are acknowledged by the pong that follows them: a command that may not lose any waits for it.
    fn ask_what_arrived(&mut self, now: Instant, said: &mut Effects) {
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.may_detach)
            && hold.live_mut().is_some_and(|live| live.wants_ping())
        {
            let sent = (hold.id, hold.offsets());
            said.say.push(Outgoing::Ping(self.liveness.ping(Some(sent), now)));
        }
    }

    fn on_look(&mut self, taken: u64, blocked: bool, now: Instant, said: &mut Effects) -> Option<NextStep> {
        let stall_ms = self.limits.client_stall_ms;
        match self.liveness.tick(taken, blocked, now) {
            LivenessAction::Fine => None,
            LivenessAction::Ping => {
                let sent = self.hold.as_ref().map(|hold| (hold.id, hold.offsets()));
                said.say.push(Outgoing::Ping(self.liveness.ping(sent, now)));
                None
            }
            LivenessAction::Lifeless => Some(NextStep::Close(CloseReason::new(
                CloseCode::Lifeless,
                format!("no answer to a ping within {stall_ms} ms: connect again"),
            ))),
            LivenessAction::Stalled => Some(NextStep::Close(CloseReason::new(
                CloseCode::Lifeless,
                format!("nothing was read for {stall_ms} ms: connect again and read what is sent"),
            ))),
        }
    }

    fn on_answered(&mut self, answered: ControlOutcome, now: Instant, said: &mut Effects) -> Option<NextStep> {
        let ControlOutcome { id, execution_id, own, outcome } = answered;
        said.reply(id, Some(execution_id), outcome);
        let hold = self.hold.as_mut().filter(|hold| own && hold.id == execution_id)?;
        hold.n_asked = hold.n_asked.saturating_sub(1);
        if hold.n_asked > 0 {
            return None;
        }
        let ending = hold.ending.take()?;
        self.on_exited(ending, now, said)
    }

    fn on_report(&mut self, report: ExecutionReport, now: Instant, said: &mut Effects) -> Option<NextStep> {
        let hold = self.hold.as_mut().filter(|hold| hold.id == report.execution_id)?;
        match report.fact {
            ExecutionEvent::Refused(error) => {
                let hold = self.hold.take()?;
                if let ExecutionStage::Starting { answer, .. } = hold.stage {
                    said.reply(answer, None, Err(error));
                }
                said.asks.push(Effect::Release);
                return self.draining.then(|| NextStep::Close(going_away()));
            }
            ExecutionEvent::Held(standing) => {
                let answer = hold.live(&standing, now);
                said.held(answer, hold, &standing);
            }
            ExecutionEvent::Queued(position) => hold.live_mut()?.queued(position, now),
            ExecutionEvent::Status(change) => hold.live_mut()?.change(change, now),
            ExecutionEvent::Alive(alive) => {
                let changed = hold.live_mut()?.alive(alive, now);
                // Said like a heartbeat: for a client that is slow to read only the newest is kept.
                let progress = hold.progress(now).filter(|_| changed);
                said.say.extend(progress.map(Outgoing::Heartbeat));
                return None;
            }
            ExecutionEvent::Gap(gap) => {
                hold.live_mut()?.gap(gap);
                let (r#type, from, to, reason) = (gap.stream, gap.from, gap.to, gap.reason);
                let notice = GapNotice { execution_id: report.execution_id, r#type, from, to, reason };
                said.say.push(Outgoing::Message(ServerMessage::Gap(notice)));
                return None;
            }
            ExecutionEvent::TakenOver => {
                let hold = self.hold.take()?;
                let notice =
                    DetachedNotice { execution_id: hold.id, reason: DetachReason::TakenOver, offsets: hold.offsets() };
                if let ExecutionStage::Starting { answer, .. } = hold.stage {
                    said.reply(answer, Some(hold.id), Err(taken_over()));
                } else {
                    said.say.push(Outgoing::Message(ServerMessage::Detached(notice)));
                }
                said.asks.push(Effect::Release);
                return self.draining.then(|| NextStep::Close(going_away()));
            }
            ExecutionEvent::Exited(ending) if hold.n_asked > 0 => {
                hold.ending = Some(ending);
                return None;
            }
            ExecutionEvent::Exited(ending) => return self.on_exited(ending, now, said),
        }
        let progress = self.hold.as_ref().and_then(|hold| hold.progress(now));
        said.say.extend(progress.map(|progress| Outgoing::Message(ServerMessage::Progress(progress))));
        None
    }

    fn on_exited(&mut self, ending: Outcome, now: Instant, said: &mut Effects) -> Option<NextStep> {
        let mut hold = self.hold.take()?;
        let delivering = hold.may_detach && hold.live_mut().is_some();
        let sent = (hold.id, hold.offsets());
        if let ExecutionStage::Starting { answer, .. } = hold.stage {
            let (execution_id, instance, claude) = (hold.id, None, false);
            let result = match &hold.execute {
                Some(_) => json!(ExecuteResult { execution_id, status: Acceptance::Failed, instance, claude }),
                None => json!(AttachResult { execution_id, status: ending.status, instance, claude }),
            };
            said.reply(answer, Some(hold.id), Ok(result));
        }
        if let Some(code) = ending.reason.error_code() {
            let message = ending.message.clone().unwrap_or_else(|| ending.reason.as_str().to_owned());
            let error = ErrorObject::new(code, message).with(json!({ "reason": ending.reason }));
            said.say.push(Outgoing::Message(ServerMessage::Error(ErrorNotice { error, execution_id: Some(hold.id) })));
        }
        if delivering {
            // Before the end, so that a client that leaves at the end has answered already.
            if self.delivering.len() == MAX_UNANSWERED {
                self.delivering.pop_front();
            }
            self.delivering.push_back((sent, hold.number));
            said.say.push(Outgoing::Ping(self.liveness.ping(Some(sent), now)));
        }
        let ended = FinalStatus { execution_id: hold.id, ending };
        said.say.push(Outgoing::Message(ServerMessage::Ended(ended.clone())));
        said.asks.push(Effect::Release);
        self.newest = Some(ended);
        self.draining.then(|| NextStep::Close(going_away()))
    }

    fn on_drain(&mut self, leave: DrainMode, said: &mut Effects) -> Option<NextStep> {
        let Some(hold) = &self.hold else { return Some(NextStep::Close(going_away())) };
        if hold.may_detach && leave == DrainMode::Running {
            return Some(NextStep::Close(CloseReason::new(
                CloseCode::GoingAway,
                "the service is shutting down, the execution goes on: connect again and attach",
            )));
        }
        if !self.draining {
            self.draining = true;
            if matches!(hold.status(), None | Some(Status::Queued)) {
                said.asks.push(Effect::Drain);
            }
        }
        None
    }
}

/// What a step says and asks for.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) say: Vec<Outgoing>,
    pub(super) asks: Vec<Effect>,
}

impl Effects {
    /// Answers a call: with a response if one is owed, else with an `error` if it failed.
    pub(super) fn reply(
        &mut self,
        id: Option<Id>,
        execution_id: Option<ExecutionId>,
        outcome: Result<Value, ErrorObject>,
    ) {
        let message = match (id, outcome) {
            (Some(id), outcome) => ServerMessage::Response(Response { id, outcome }),
            (None, Err(error)) => ServerMessage::Error(ErrorNotice { error, execution_id }),
            (None, Ok(_)) => return,
        };
        self.say.push(Outgoing::Message(message));
    }

    /// Answers the call that brought the session its execution.
    fn held(&mut self, answer: Option<Id>, hold: &CurrentExecution, standing: &StreamStart) {
        if hold.execute.is_some() {
            self.reply(answer, Some(hold.id), Ok(accepted(hold, standing.status)));
        } else {
            self.asks.push(Effect::Beat(hold.heartbeat_ms()));
            self.reply(answer, Some(hold.id), Ok(attached(hold, standing.status)));
        }
    }
}

fn taken_over() -> ErrorObject {
    ErrorObject::new(code::NOT_RUNNING, "another consumer took it over at once")
}

fn going_away() -> CloseReason {
    CloseReason::new(CloseCode::GoingAway, "the service is shutting down: connect again in a moment")
}
