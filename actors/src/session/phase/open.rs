//! An open session: which execution it holds, what it owes its client, and what follows from an event.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answered, Ask, Elsewhere, Event, Incoming, Words};
use crate::{
    execution::messages::{Fact, Report},
    id::ExecutionId,
    protocol::{
        Limits, PerStream,
        method::{Control, ControlKind, Execute, Method},
        notify::{Ended, ErrorNotice, Hearing, Message, Progress},
        rpc::{self, ErrorObject, Id, Response, code},
    },
    terminate::{CloseCode, CloseReason, Ending, Status},
};

/// Heartbeats that the backend may miss before it is called silent.
const MISSED_HEARTBEATS: u32 = 3;

/// What follows from an event.
pub(super) struct Step {
    pub(super) say: Vec<Words>,
    pub(super) asks: Vec<Ask>,
    pub(super) then: Then,
}

/// Whether the session goes on.
pub(super) enum Then {
    Stay(Box<Open>),
    Close(CloseReason),
    Gone,
}

/// An open session.
#[derive(Debug)]
pub struct Open {
    limits: Limits,
    pub(super) hold: Option<Hold>,
    newest: Option<Ended>,
    draining: bool,
}

/// The execution that the session holds.
#[derive(Debug)]
pub(super) struct Hold {
    id: ExecutionId,
    execute: Box<Execute>,
    pub(super) stage: Stage,
    /// Asks that are not answered yet.
    n_asked: usize,
    /// How it ended, while an answer is still owed: the end is said after the answers that led to it.
    ending: Option<Ending>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The backend has not said a word; the answer to `execute` is still owed.
    Starting { answer: Option<Id> },
    /// The process runs.
    Running(Running),
}

#[derive(Debug)]
pub(super) struct Running {
    status: Status,
    offsets: PerStream<u64>,
    began_at: Instant,
    heard_at: Instant,
    output_at: Instant,
}

impl Open {
    /// An open session in which nothing has happened.
    pub(super) fn new(limits: Limits) -> Box<Self> {
        Box::new(Open { limits, hold: None, newest: None, draining: false })
    }

    /// What follows from an event.
    pub(super) fn on(mut self: Box<Self>, event: Event, now: Instant) -> Step {
        let mut said = Said::default();
        let then = match event {
            Event::Incoming(Incoming::Text(text)) => {
                self.on_text(&text, now, &mut said);
                None
            }
            Event::Incoming(Incoming::Ping(payload)) => {
                said.say.push(Words::Pong(payload));
                None
            }
            Event::Incoming(Incoming::Pong) => None,
            Event::Incoming(Incoming::Close) => {
                Some(Then::Close(CloseReason::new(CloseCode::Normal, "closed as asked")))
            }
            Event::Incoming(Incoming::Fault(reason)) => Some(Then::Close(reason)),
            Event::Incoming(Incoming::Gone) => Some(Then::Gone),
            Event::Report(report) => self.on_report(report, now, &mut said),
            Event::Output { execution_id, frames, offsets } => {
                if let Some(running) = self.running(execution_id) {
                    running.offsets = offsets;
                    running.heard_at = now;
                    running.output_at = now;
                    said.say.push(Words::Output(frames));
                }
                None
            }
            Event::Answered(answered) => self.on_answered(answered, &mut said),
            Event::Heartbeat { held_back } => {
                said.say.extend(self.progress(now, held_back).map(Words::Heartbeat));
                None
            }
            Event::Flooded => Some(Then::Close(CloseReason::new(
                CloseCode::Policy,
                format!("more than {} responses unread: read what is sent", self.limits.unsent_responses),
            ))),
            Event::Drain => self.on_drain(&mut said),
        };
        let then = then.unwrap_or(Then::Stay(self));
        Step { say: said.say, asks: said.asks, then }
    }

    fn on_text(&mut self, text: &str, now: Instant, said: &mut Said) {
        let call = match rpc::parse(text) {
            Ok(call) => call,
            Err(response) => return said.say.push(Words::Message(Message::Response(response))),
        };
        let id = call.id.clone();
        match Method::parse(call, &self.limits) {
            Err(error) => said.reply(id, None, Err(error)),
            Ok(Method::Ping) => said.reply(id, None, Ok(json!({}))),
            Ok(Method::Execute(execute)) => self.on_execute(id, execute, said),
            Ok(Method::Control(control)) => self.on_control(id, &control, said),
            Ok(Method::Status(asked)) => self.on_status(id, asked, now, said),
        }
    }

    fn on_execute(&mut self, id: Option<Id>, execute: Box<Execute>, said: &mut Said) {
        let asked = execute.run.execution_id;
        if self.draining {
            let error = ErrorObject::new(code::DRAINING, "the service is shutting down: connect again in a moment");
            return said.reply(id, None, Err(error));
        }
        if let Some(hold) = &self.hold {
            let outcome = match (&hold.stage, asked == Some(hold.id)) {
                (Stage::Running(_), true) if hold.execute == execute => Ok(started(hold.id, "started")),
                (_, true) if hold.execute != execute => Err(ErrorObject::new(
                    code::PARAMS,
                    format!(
                        "executionId {} is this session's running execution, with {}",
                        hold.id,
                        difference(&hold.execute, &execute)
                    ),
                )),
                _ => Err(ErrorObject::new(
                    code::ALREADY_RUNNING,
                    format!(
                        "this session runs execution {} already: wait for its end, cancel it, or open another session",
                        hold.id
                    ),
                )
                .with(json!({ "executionId": hold.id }))),
            };
            return said.reply(id, Some(hold.id), outcome);
        }
        let execution_id = asked.unwrap_or_else(ExecutionId::random);
        said.asks.push(Ask::Start(execution_id, execute.clone()));
        self.hold =
            Some(Hold { id: execution_id, execute, stage: Stage::Starting { answer: id }, n_asked: 0, ending: None });
    }

    fn on_control(&mut self, id: Option<Id>, control: &Control, said: &mut Said) {
        let asked = control.execution_id;
        match self.hold.as_mut().filter(|hold| asked.is_none_or(|asked| asked == hold.id)) {
            Some(hold) => match (&control.kind, &hold.stage) {
                (ControlKind::Cancel { grace_ms }, _) => {
                    hold.n_asked += 1;
                    said.asks.push(Ask::Cancel { id, grace_ms: *grace_ms });
                }
                (ControlKind::Signal(signal), Stage::Running(_)) => {
                    hold.n_asked += 1;
                    said.asks.push(Ask::Signal(id, *signal));
                }
                (ControlKind::Signal(_), Stage::Starting { .. }) => {
                    let error =
                        ErrorObject::new(code::NOT_RUNNING, "it has not started yet: there is nobody to signal");
                    said.reply(id, Some(hold.id), Err(error));
                }
            },
            None => match asked {
                Some(asked) => {
                    let what = match control.kind {
                        ControlKind::Cancel { grace_ms } => Elsewhere::Cancel { grace_ms },
                        ControlKind::Signal(signal) => Elsewhere::Signal(signal),
                    };
                    said.asks.push(Ask::Elsewhere(id, asked, what));
                }
                None => said.reply(id, None, Err(nothing_runs())),
            },
        }
    }

    fn on_answered(&mut self, answered: Answered, said: &mut Said) -> Option<Then> {
        let Answered { id, execution_id, own, outcome } = answered;
        said.reply(id, Some(execution_id), outcome);
        let hold = self.hold.as_mut().filter(|hold| own && hold.id == execution_id)?;
        hold.n_asked = hold.n_asked.saturating_sub(1);
        if hold.n_asked > 0 {
            return None;
        }
        let ending = hold.ending.take()?;
        self.on_exited(ending, said)
    }

    fn on_status(&mut self, id: Option<Id>, asked: Option<ExecutionId>, now: Instant, said: &mut Said) {
        let own = self.hold.as_ref().map(|hold| hold.id).or(self.newest.as_ref().map(|ended| ended.execution_id));
        if let Some(asked) = asked.filter(|asked| Some(*asked) != own) {
            return said.asks.push(Ask::Elsewhere(id, asked, Elsewhere::Status));
        }
        let newest = match (&self.hold, &self.newest) {
            (Some(_), _) => self.progress(now, true).map(|progress| json!(progress)),
            (None, ended) => ended.as_ref().map(|ended| json!(ended)),
        };
        said.reply(id, own, newest.ok_or_else(nothing_runs));
    }

    fn on_report(&mut self, report: Report, now: Instant, said: &mut Said) -> Option<Then> {
        let hold = self.hold.as_mut().filter(|hold| hold.id == report.execution_id)?;
        match report.fact {
            Fact::Refused(error) => {
                let hold = self.hold.take()?;
                if let Stage::Starting { answer } = hold.stage {
                    said.reply(answer, None, Err(error));
                }
                said.asks.push(Ask::Release);
            }
            Fact::Started => {
                let running = Running {
                    status: Status::Running,
                    offsets: PerStream::default(),
                    began_at: now,
                    heard_at: now,
                    output_at: now,
                };
                if let Stage::Starting { answer } = std::mem::replace(&mut hold.stage, Stage::Running(running)) {
                    said.reply(answer, Some(report.execution_id), Ok(started(report.execution_id, "started")));
                }
                said.say.extend(self.progress(now, false).map(|progress| Words::Message(Message::Progress(progress))));
                return None;
            }
            Fact::Status(status) => {
                if let Stage::Running(running) = &mut hold.stage {
                    running.status = status;
                    running.heard_at = now;
                }
                said.say.extend(self.progress(now, false).map(|progress| Words::Message(Message::Progress(progress))));
                return None;
            }
            Fact::Alive(alive) => {
                if let Stage::Running(running) = &mut hold.stage {
                    running.began_at = now.checked_sub(Duration::from_millis(alive.elapsed_ms)).unwrap_or(now);
                    running.heard_at = now;
                    running.output_at = now.checked_sub(Duration::from_millis(alive.since_output_ms)).unwrap_or(now);
                }
                return None;
            }
            Fact::Exited(ending) if hold.n_asked > 0 => {
                hold.ending = Some(ending);
                return None;
            }
            Fact::Exited(ending) => return self.on_exited(ending, said),
        }
        self.draining.then(|| Then::Close(going_away()))
    }

    fn on_exited(&mut self, ending: Ending, said: &mut Said) -> Option<Then> {
        let hold = self.hold.take()?;
        if let Stage::Starting { answer } = hold.stage {
            said.reply(answer, Some(hold.id), Ok(started(hold.id, "failed")));
        }
        if let Some(code) = ending.reason.error_code() {
            let message = ending.message.clone().unwrap_or_else(|| ending.reason.as_str().to_owned());
            let error = ErrorObject::new(code, message).with(json!({ "reason": ending.reason }));
            said.say.push(Words::Message(Message::Error(ErrorNotice { error, execution_id: Some(hold.id) })));
        }
        let ended = Ended { execution_id: hold.id, ending };
        said.say.push(Words::Message(Message::Ended(ended.clone())));
        said.asks.push(Ask::Release);
        self.newest = Some(ended);
        self.draining.then(|| Then::Close(going_away()))
    }

    fn on_drain(&mut self, said: &mut Said) -> Option<Then> {
        if self.hold.is_none() {
            return Some(Then::Close(going_away()));
        }
        if !self.draining {
            self.draining = true;
            said.asks.push(Ask::Drain);
        }
        None
    }

    fn running(&mut self, id: ExecutionId) -> Option<&mut Running> {
        match self.hold.as_mut() {
            Some(Hold { id: held, stage: Stage::Running(running), .. }) if *held == id => Some(running),
            _ => None,
        }
    }

    /// The newest status of a running execution. `held_back`: the backend is not listened to, so that
    /// its silence means nothing.
    fn progress(&self, now: Instant, held_back: bool) -> Option<Progress> {
        let hold = self.hold.as_ref()?;
        let Stage::Running(running) = &hold.stage else { return None };
        let unheard = now.saturating_duration_since(running.heard_at);
        let heartbeat = Duration::from_millis(hold.execute.run.heartbeat_ms);
        let elapsed_ms = millis(now.saturating_duration_since(running.began_at));
        Some(Progress {
            execution_id: hold.id,
            status: running.status,
            elapsed_ms,
            since_output_ms: millis(now.saturating_duration_since(running.output_at)),
            offsets: running.offsets,
            backend: if unheard > heartbeat * MISSED_HEARTBEATS && !held_back {
                Hearing::Silent
            } else {
                Hearing::Alive
            },
            deadline_ms: hold.execute.run.timeout_ms.map(|timeout_ms| timeout_ms.saturating_sub(elapsed_ms)),
        })
    }
}

/// What a step says and asks for.
#[derive(Default)]
struct Said {
    say: Vec<Words>,
    asks: Vec<Ask>,
}

impl Said {
    /// Answers a call: with a response if one is owed, else with an `error` if it failed.
    fn reply(&mut self, id: Option<Id>, execution_id: Option<ExecutionId>, outcome: Result<Value, ErrorObject>) {
        let message = match (id, outcome) {
            (Some(id), outcome) => Message::Response(Response { id, outcome }),
            (None, Err(error)) => Message::Error(ErrorNotice { error, execution_id }),
            (None, Ok(_)) => return,
        };
        self.say.push(Words::Message(message));
    }
}

fn started(id: ExecutionId, status: &str) -> Value {
    json!({ "executionId": id, "status": status })
}

fn nothing_runs() -> ErrorObject {
    ErrorObject::new(
        code::NOT_RUNNING,
        "nothing is running in this session: send execute first, or name an executionId",
    )
}

fn going_away() -> CloseReason {
    CloseReason::new(CloseCode::GoingAway, "the service is shutting down: connect again in a moment")
}

fn difference(held: &Execute, asked: &Execute) -> &'static str {
    if held.run.command != asked.run.command { "another command" } else { "other options" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
