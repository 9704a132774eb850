//! Drives an [`OpenSession`] with arbitrary sequences of events, and checks the messages that a client would have
//! received.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use serde_json::json;

use super::{
    current::{CurrentExecution, ExecutionStage},
    *,
};
use crate::{
    backend_api::{Heartbeat, StatusChange, StreamInfo},
    close::CloseCode,
    execution::messages::{ExecutionEvent, StreamStart},
    outcome::{Outcome, Reason, Status},
    protocol::notification::{BackendHealth, DetachReason},
    rpc::code,
    stream::{Gap, GapReason, Stream},
};

/// The next event. Where it concerns an execution: the session's own or another one.
#[derive(Clone, Debug)]
enum Move {
    Execute { id: bool, detach: bool },
    Attach { own: bool, observe: bool },
    Cancel { id: bool },
    Control { r#type: &'static str },
    Input,
    Status,
    Ping,
    Garbage(String),
    Fact { own: bool, fact: MoveFact },
    Output { own: bool },
    Answered,
    Heartbeat,
    Tick { taken: u64, blocked: bool, is_read: bool },
    PingFrame,
    PongFrame,
    Close,
    Fault,
    Gone,
    Flooded,
    Drain(Drain),
}

#[derive(Clone, Copy, Debug)]
enum MoveFact {
    Refused,
    Started,
    Queued,
    Position,
    Running,
    Paused,
    Cancelling,
    Gap,
    TakenOver,
    Alive,
    Completed,
    Canceled,
    Lost,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let fact = prop_oneof![
        1 => Just(MoveFact::Refused),
        6 => Just(MoveFact::Started),
        1 => Just(MoveFact::Queued),
        1 => Just(MoveFact::Position),
        2 => Just(MoveFact::Running),
        2 => Just(MoveFact::Paused),
        2 => Just(MoveFact::Cancelling),
        1 => Just(MoveFact::Gap),
        1 => Just(MoveFact::TakenOver),
        2 => Just(MoveFact::Alive),
        3 => Just(MoveFact::Completed),
        1 => Just(MoveFact::Canceled),
        1 => Just(MoveFact::Lost),
    ];
    let own = || prop_oneof![9 => Just(true), 1 => Just(false)];
    let one = prop_oneof![
        8 => (any::<bool>(), any::<bool>()).prop_map(|(id, detach)| Move::Execute { id, detach }),
        2 => (own(), any::<bool>()).prop_map(|(own, observe)| Move::Attach { own, observe }),
        4 => any::<bool>().prop_map(|id| Move::Cancel { id }),
        1 => Just(Move::Control { r#type: "PAUSE" }),
        1 => Just(Move::Control { r#type: "RESUME" }),
        1 => Just(Move::Input),
        3 => Just(Move::Status),
        1 => Just(Move::Ping),
        1 => "[{}\\[\\]\",:a-z0-9]{0,20}".prop_map(Move::Garbage),
        14 => (own(), fact).prop_map(|(own, fact)| Move::Fact { own, fact }),
        10 => own().prop_map(|own| Move::Output { own }),
        6 => Just(Move::Answered),
        3 => Just(Move::Heartbeat),
        3 => (0..5u64, any::<bool>(), any::<bool>())
            .prop_map(|(taken, blocked, is_read)| Move::Tick { taken, blocked, is_read }),
        1 => Just(Move::PingFrame),
        1 => Just(Move::PongFrame),
        1 => Just(Move::Close),
        1 => Just(Move::Fault),
        1 => Just(Move::Gone),
        1 => Just(Move::Flooded),
        1 => any::<bool>().prop_map(|executions_live_on| Move::Drain(begin_drain(executions_live_on))),
        1 => Just(Move::Drain(Drain::Hurry { grace_ms: 0 })),
    ];
    prop::collection::vec(one, 0..60)
}

/// A session with all messages so far, and the state from which the test makes events for it.
struct Driven {
    /// `None` after its end.
    open: Option<OpenSession>,
    sent: Vec<Outgoing>,
    close: Option<CloseReason>,
    current: ExecutionId,
    owed: Vec<u64>,
    asked: Vec<(Option<Id>, ExecutionId, bool)>,
    next_id: u64,
    started: HashMap<ExecutionId, u32>,
}

impl Driven {
    fn new() -> Self {
        Driven {
            open: Some(OpenSession::new(Limits::default(), Instant::now())),
            sent: vec![greeting(SessionId::random(), None, Limits::default())],
            close: None,
            current: ExecutionId::random(),
            owed: Vec::new(),
            asked: Vec::new(),
            next_id: 0,
            started: HashMap::new(),
        }
    }

    fn call(&mut self, with_id: bool, method: &str, params: &str) -> SessionEvent {
        let id = if with_id {
            self.next_id += 1;
            self.owed.push(self.next_id);
            format!("\"id\":{},", self.next_id)
        } else {
            String::new()
        };
        SessionEvent::Incoming(Incoming::Text(format!(
            "{{\"jsonrpc\":\"2.0\",{id}\"method\":\"{method}\",\"params\":{params}}}"
        )))
    }

    fn event(&mut self, step: &Move) -> SessionEvent {
        let id = |own: bool| if own { self.current } else { ExecutionId::random() };
        match step {
            Move::Execute { id, detach: false } => self.call(*id, "execute", "{\"command\":\"true\"}"),
            Move::Execute { id, detach: true } => {
                self.call(*id, "execute", "{\"command\":\"true\",\"onDisconnect\":\"detach\"}")
            }
            Move::Attach { own, observe } => {
                let params = format!("{{\"executionId\":\"{}\",\"observe\":{observe}}}", id(*own));
                self.call(true, "attach", &params)
            }
            Move::Cancel { id } => self.call(*id, "control", "{\"type\":\"CANCEL\"}"),
            Move::Control { r#type } => self.call(true, "control", &format!("{{\"type\":\"{}\"}}", r#type)),
            Move::Input => self.call(true, "input", "{\"data\":\"x\"}"),
            Move::Status => self.call(true, "status", "{}"),
            Move::Ping => self.call(true, "ping", "{}"),
            Move::Garbage(text) => SessionEvent::Incoming(Incoming::Text(text.clone())),
            Move::Fact { own, fact } => {
                SessionEvent::Report(ExecutionReport { execution_id: id(*own), event: fact.event() })
            }
            Move::Output { own } => output(id(*own), 6),
            Move::Answered => {
                let (id, execution_id, own) =
                    if self.asked.is_empty() { (None, self.current, false) } else { self.asked.remove(0) };
                SessionEvent::Answered(ControlOutcome {
                    id,
                    execution_id,
                    own,
                    is_status: false,
                    outcome: Ok(json!({})),
                })
            }
            Move::Heartbeat => SessionEvent::Heartbeat,
            Move::Tick { taken, blocked, is_read } => {
                SessionEvent::Tick { taken: *taken, blocked: *blocked, is_read: *is_read }
            }
            Move::PingFrame => SessionEvent::Incoming(Incoming::Ping(Bytes::new())),
            Move::PongFrame => SessionEvent::Incoming(Incoming::Pong(Bytes::from_static(b"1 6 0"))),
            Move::Close => SessionEvent::Incoming(Incoming::Close),
            Move::Fault => SessionEvent::Incoming(Incoming::Fault(CloseReason::new(CloseCode::Protocol, "x"))),
            Move::Gone => SessionEvent::Incoming(Incoming::Gone),
            Move::Flooded => SessionEvent::Flooded("responses unread".to_owned()),
            Move::Drain(drain) => SessionEvent::Drain(*drain),
        }
    }

    fn drive(&mut self, step: &Move, now: Instant) {
        let event = self.event(step);
        let observes = self.open.as_ref().and_then(|open| open.current.as_ref()).is_some_and(|it| it.is_observed());
        let effects = self.on(event, now);
        let is_of_holder =
            |effect: &Effect| matches!(effect, Effect::Control(..) | Effect::Acknowledge(_) | Effect::Drain { .. });
        assert!(!observes || !effects.iter().any(is_of_holder), "an observed execution is left alone: {effects:?}");
        let starts = effects.iter().any(|effect| matches!(effect, Effect::Start(..) | Effect::Attach(_)));
        assert!(self.is_open() || !starts, "a step that ends the session starts no execution");
        for effect in effects {
            match effect {
                Effect::Start(id, _) => {
                    self.current = id;
                    *self.started.entry(id).or_default() += 1;
                }
                Effect::Attach(attach) => {
                    self.current = attach.execution_id;
                    *self.started.entry(attach.execution_id).or_default() += 1;
                }
                // The outcomes of these arrive later, in any order.
                Effect::Control(id, _) => {
                    self.asked.push((id, self.current, true));
                }
                Effect::ById(id, execution_id, _) => self.asked.push((id, execution_id, false)),
                _ => {}
            }
        }
    }

    fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn on(&mut self, event: SessionEvent, now: Instant) -> Vec<Effect> {
        let open = self.open.as_mut().expect("no event follows the end of a session");
        let SessionStep { messages, effects, end } = open.on(event, now);
        // The order beside output is decided in the outbox.
        self.sent.extend(messages.into_iter().map(|message| match message {
            Outgoing::QuickResponse(response) => Outgoing::Message(response),
            other => other,
        }));
        match end {
            SessionEnd::Open => return effects,
            SessionEnd::Close(reason) => self.close = Some(reason),
            SessionEnd::Gone => {}
        }
        self.open = None;
        effects
    }

    /// The payloads of all pings so far.
    fn pings(&self) -> Vec<Bytes> {
        let payload = |message: &Outgoing| match message {
            Outgoing::Ping(payload) => Some(payload.clone()),
            _ => None,
        };
        self.sent.iter().filter_map(payload).collect()
    }
}

impl MoveFact {
    fn event(self) -> ExecutionEvent {
        let ended = |status, reason| ExecutionEvent::Exited(Outcome::without_process(status, reason, None));
        match self {
            MoveFact::Refused => ExecutionEvent::Refused(ErrorObject::new(code::FULL, "full")),
            MoveFact::Started => ExecutionEvent::Held(stream_start(Status::Running)),
            MoveFact::Queued => ExecutionEvent::Held(stream_start(Status::Queued)),
            MoveFact::Position => ExecutionEvent::Queued(3),
            MoveFact::Running => ExecutionEvent::Status(StatusChange::to(Status::Running)),
            MoveFact::Paused => ExecutionEvent::Status(StatusChange::to(Status::Paused)),
            MoveFact::Cancelling => ExecutionEvent::Status(StatusChange::to(Status::Cancelling)),
            MoveFact::Gap => {
                ExecutionEvent::Gap(Gap { stream: Stream::Stdout, from: 0, to: 1, reason: GapReason::Overwritten })
            }
            MoveFact::TakenOver => ExecutionEvent::TakenOver,
            MoveFact::Alive => {
                ExecutionEvent::Alive(Heartbeat { elapsed_ms: 1, since_output_ms: 1, ..Heartbeat::default() })
            }
            MoveFact::Completed => ended(Status::Completed, Reason::Exit),
            MoveFact::Canceled => ended(Status::Cancelled, Reason::Canceled),
            MoveFact::Lost => ended(Status::Failed, Reason::BackendLost),
        }
    }
}

fn output(execution_id: ExecutionId, stdout: u64) -> SessionEvent {
    let offsets = PerStream { stdout, stderr: 0 };
    SessionEvent::Output(EncodedOutput { execution_id, bytes: Bytes::from_static(b"frames"), offsets })
}

fn begin_drain(executions_live_on: bool) -> Drain {
    Drain::Begin { executions_live_on, grace_ms: 0 }
}

fn stream_start(status: Status) -> StreamStart {
    let position = (status == Status::Queued).then_some(2);
    StreamStart { status, position, terms: StreamInfo::default(), alive: Heartbeat::default() }
}

/// Reads the messages as a client would, and checks their order.
fn check(driven: &Driven) {
    let mut ended: HashMap<ExecutionId, u32> = HashMap::new();
    let mut running: Option<ExecutionId> = None;
    let mut answered: Vec<u64> = Vec::new();
    let sent = &driven.sent;
    let is_greeting = |message: &Outgoing| matches!(message, Outgoing::Message(ServerMessage::Connected(_)));
    assert!(!sent[1..].iter().any(is_greeting), "`connected` comes only once");
    for message in sent {
        match message {
            Outgoing::Message(ServerMessage::Progress(progress)) | Outgoing::Heartbeat(progress) => {
                let held_again = driven.started.get(&progress.execution_id).copied().unwrap_or(0);
                let over = ended.get(&progress.execution_id).copied().unwrap_or(0);
                assert!(over < held_again, "no status after the last, unless it is attached to again");
                running = Some(progress.execution_id);
            }
            Outgoing::Output(_) => assert!(running.is_some(), "output only of an execution that runs"),
            Outgoing::Message(ServerMessage::Ended(end)) => {
                *ended.entry(end.execution_id).or_default() += 1;
                assert!(end.ending.status.is_final());
                running = None;
            }
            Outgoing::Message(ServerMessage::Detached(detached)) => {
                *ended.entry(detached.execution_id).or_default() += 1;
                running = None;
            }
            Outgoing::Message(ServerMessage::Gap(gap)) => {
                assert_eq!(running, Some(gap.execution_id), "a gap is part of the output")
            }
            Outgoing::Message(ServerMessage::Response(response)) => {
                answered.extend(response.id.as_str().parse::<u64>().ok())
            }
            Outgoing::Message(ServerMessage::Connected(_) | ServerMessage::Error(_))
            | Outgoing::QuickResponse(_)
            | Outgoing::Ping(_)
            | Outgoing::Pong(_) => {}
        }
    }
    for (id, times) in &ended {
        let held = driven.started.get(id).copied().unwrap_or(0);
        assert!(*times <= held, "one end for each hold, and none of what never began");
    }
    answered.sort_unstable();
    let unique = answered.len();
    answered.dedup();
    assert_eq!(answered.len(), unique, "one response for each request");
    if let Some(open) = &driven.open {
        // Still owed may be the response to an `execute` that is starting, and to requests under way.
        let starting = match &open.current {
            Some(CurrentExecution { stage: ExecutionStage::Starting { call, .. }, .. }) => {
                call.as_ref().map(|id| id.as_str().parse().unwrap())
            }
            _ => None,
        };
        let under_way: Vec<u64> =
            driven.asked.iter().filter_map(|(id, ..)| id.as_ref()?.as_str().parse().ok()).collect();
        let owed: Vec<u64> =
            driven.owed.iter().copied().filter(|id| Some(*id) != starting && !under_way.contains(id)).collect();
        assert_eq!(answered, owed, "every request is answered");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_client_gets_a_consistent_history_of_any_events(moves in moves()) {
        let mut driven = Driven::new();
        let start = Instant::now();
        for (at, step) in moves.iter().enumerate() {
            driven.drive(step, start + Duration::from_secs(at as u64));
            // The actor drops the state of a session that has ended.
            if !driven.is_open() {
                break;
            }
        }
        check(&driven);
    }
}

const EXECUTE: Move = Move::Execute { id: true, detach: false };

fn start(driven: &mut Driven) {
    let now = Instant::now();
    driven.drive(&EXECUTE, now);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Started }, now);
}

fn last(driven: &Driven) -> &Outgoing {
    driven.sent.last().expect("a message was sent")
}

#[test]
fn a_failed_call_without_id_gets_an_error_notification() {
    let mut driven = Driven::new();
    driven.drive(&Move::Cancel { id: false }, Instant::now());
    assert!(
        matches!(last(&driven), Outgoing::Message(ServerMessage::Error(notice)) if notice.error.code == code::NOT_RUNNING)
    );
    driven.drive(&Move::Cancel { id: true }, Instant::now());
    assert!(matches!(last(&driven), Outgoing::Message(ServerMessage::Response(response)) if response.outcome.is_err()));
}

#[test]
fn a_second_execute_is_refused_and_the_first_goes_on() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&EXECUTE, Instant::now());
    let Outgoing::Message(ServerMessage::Response(response)) = last(&driven) else { panic!("a response") };
    assert_eq!(response.outcome.as_ref().unwrap_err().code, code::ALREADY_RUNNING);
    driven.drive(&Move::Output { own: true }, Instant::now());
    assert!(matches!(last(&driven), Outgoing::Output(_)));
}

#[test]
fn the_final_status_comes_after_the_response_that_led_to_it() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Cancel { id: true }, Instant::now());
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Canceled }, Instant::now());
    assert!(!driven.sent.iter().any(|message| matches!(message, Outgoing::Message(ServerMessage::Ended(_)))));
    driven.drive(&Move::Answered, Instant::now());
    let [.., Outgoing::Message(ServerMessage::Response(_)), Outgoing::Message(ServerMessage::Ended(_))] =
        &driven.sent[..]
    else {
        panic!("the answer and the end");
    };
}

#[test]
fn a_fault_of_the_backend_is_announced_before_the_end() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Lost }, Instant::now());
    let [.., Outgoing::Message(ServerMessage::Error(notice)), Outgoing::Message(ServerMessage::Ended(ended))] =
        &driven.sent[..]
    else {
        panic!("an error and the end");
    };
    assert_eq!((notice.error.code, ended.ending.reason), (code::BACKEND, Reason::BackendLost));
}

#[test]
fn an_execution_that_never_started_is_answered_as_failed_first() {
    let mut driven = Driven::new();
    driven.drive(&EXECUTE, Instant::now());
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Lost }, Instant::now());
    let Outgoing::Message(ServerMessage::Response(response)) = &driven.sent[1] else {
        panic!("the response comes first")
    };
    assert_eq!(response.outcome.as_ref().unwrap()["status"], "failed");
}

#[test]
fn the_elapsed_time_continues_over_all_events() {
    let mut driven = Driven::new();
    start(&mut driven);
    let now = Instant::now();
    for (seconds, step) in [
        (5, Move::Output { own: true }),
        (6, Move::Fact { own: true, fact: MoveFact::Cancelling }),
        (8, Move::Heartbeat),
    ] {
        driven.drive(&step, now + Duration::from_secs(seconds));
    }
    let elapsed: Vec<_> = driven
        .sent
        .iter()
        .filter_map(|message| match message {
            Outgoing::Message(ServerMessage::Progress(progress)) | Outgoing::Heartbeat(progress) => {
                Some((progress.elapsed_ms / 1_000, progress.since_output_ms / 1_000))
            }
            _ => None,
        })
        .collect();
    assert_eq!(elapsed, [(0, 0), (6, 1), (8, 3)]);
}

#[test]
fn a_backend_is_silent_after_three_heartbeats_until_its_next_event() {
    let mut driven = Driven::new();
    start(&mut driven);
    let start = Instant::now();
    let alive = Move::Fact { own: true, fact: MoveFact::Alive };
    for (seconds, sign, hearing) in
        [(44, None, BackendHealth::Alive), (46, None, BackendHealth::Silent), (47, Some(alive), BackendHealth::Alive)]
    {
        let now = start + Duration::from_secs(seconds);
        if let Some(sign) = sign {
            driven.drive(&sign, now);
        }
        driven.drive(&Move::Heartbeat, now);
        let Outgoing::Heartbeat(progress) = last(&driven) else { panic!("a heartbeat") };
        assert_eq!(progress.backend, hearing, "after {seconds} s");
    }
}

#[test]
fn a_pong_acknowledges_each_mebibyte_of_an_execution_that_may_detach() {
    let mut driven = Driven::new();
    let now = Instant::now();
    driven.drive(&Move::Execute { id: true, detach: true }, now);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Started }, now);
    let id = driven.current;
    let mut effects = Vec::new();
    for n in 1..=32u64 {
        effects.extend(driven.on(output(id, n << 16), now));
    }
    let pings = driven.pings();
    assert_eq!(pings.len(), 2);
    effects.extend(driven.on(SessionEvent::Incoming(Incoming::Pong(pings[1].clone())), now));
    assert_eq!(effects, [Effect::Acknowledge(PerStream { stdout: 2 << 20, stderr: 0 })]);
}

#[test]
fn the_last_output_of_an_execution_that_could_detach_is_acknowledged_after_its_end() {
    let mut driven = Driven::new();
    let now = Instant::now();
    driven.drive(&Move::Execute { id: true, detach: true }, now);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Started }, now);
    let id = driven.current;
    driven.drive(&Move::Output { own: true }, now);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Completed }, now);
    let [.., Outgoing::Ping(ping), Outgoing::Message(ServerMessage::Ended(_))] = &driven.sent[..] else {
        panic!("a ping, then the end")
    };
    let (pong, other) = (Incoming::Pong(ping.clone()), Incoming::Pong(Bytes::from_static(b"1")));
    for (pong, expected) in [(other, 0), (pong.clone(), 1), (pong, 0)] {
        let effects = driven.on(SessionEvent::Incoming(pong), now);
        assert_eq!(effects, vec![Effect::AcknowledgeEnded(id, PerStream { stdout: 6, stderr: 0 }, None); expected]);
    }
}

/// Pongs may come late: those of pings before the end, and of an execution after which another one has ended.
#[test]
fn the_end_of_each_execution_is_acknowledged_however_late_its_pong_comes() {
    let mut driven = Driven::new();
    let now = Instant::now();
    let at = |stdout| PerStream { stdout, stderr: 0 };
    let mut ids = Vec::new();
    for _ in 0..3 {
        driven.drive(&Move::Execute { id: true, detach: true }, now);
        driven.drive(&Move::Fact { own: true, fact: MoveFact::Started }, now);
        let execution_id = driven.current;
        ids.push(execution_id);
        for stdout in [1 << 20, (1 << 20) + 9] {
            driven.on(output(execution_id, stdout), now);
        }
        driven.drive(&Move::Fact { own: true, fact: MoveFact::Completed }, now);
    }
    let pings = driven.pings();
    assert_eq!(pings.len(), 6, "for each one in the middle, and one at its end");
    let delivered = |id: usize, stdout| Effect::AcknowledgeEnded(ids[id], at(stdout), None);
    let (middle, end) = (1 << 20, (1 << 20) + 9);
    let mut pong = |at: usize| driven.on(SessionEvent::Incoming(Incoming::Pong(pings[at].clone())), now);
    assert_eq!(pong(0), [delivered(0, middle)]);
    assert_eq!(pong(1), [delivered(0, end)]);
    // A client may answer only the latest of several pings (RFC 6455 section 5.5.3).
    assert_eq!(pong(4), [delivered(1, end), delivered(2, middle)]);
    assert_eq!(pong(5), [delivered(2, end)]);
    assert_eq!(pong(5), []);
}

#[test]
fn a_session_lives_on_after_its_execution_was_taken_over() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Output { own: true }, Instant::now());
    driven.drive(&Move::Fact { own: true, fact: MoveFact::TakenOver }, Instant::now());
    let Outgoing::Message(ServerMessage::Detached(detached)) = last(&driven) else { panic!("detached") };
    assert_eq!((detached.reason, detached.offsets.stdout), (DetachReason::TakenOver, 6));
    start(&mut driven);
    assert!(matches!(last(&driven), Outgoing::Message(ServerMessage::Progress(_))));
}

#[test]
fn a_draining_service_leaves_an_execution_that_may_detach_to_its_backend() {
    for (executions_live_on, closes) in [(true, true), (false, false)] {
        let mut driven = Driven::new();
        driven.drive(&Move::Execute { id: true, detach: true }, Instant::now());
        driven.drive(&Move::Fact { own: true, fact: MoveFact::Started }, Instant::now());
        driven.drive(&Move::Drain(begin_drain(executions_live_on)), Instant::now());
        assert_eq!(!driven.is_open(), closes, "{executions_live_on}");
    }
}

#[test]
fn a_draining_session_sends_the_final_status_before_it_closes() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Drain(begin_drain(false)), Instant::now());
    driven.drive(&EXECUTE, Instant::now());
    assert!(
        matches!(last(&driven), Outgoing::Message(ServerMessage::Response(response)) if response.outcome.as_ref().unwrap_err().code == code::DRAINING)
    );
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Canceled }, Instant::now());
    assert!(matches!(last(&driven), Outgoing::Message(ServerMessage::Ended(_))));
    assert!(driven.close.is_some_and(|reason| reason.code == CloseCode::GoingAway));
}

#[test]
fn the_same_id_again_is_the_same_execution() {
    let mut driven = Driven::new();
    let id = ExecutionId::random();
    let execute = |command: &str| {
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"execute\",\"params\":{{\"command\":\"{command}\",\"executionId\":\"{id}\"}}}}"
        );
        SessionEvent::Incoming(Incoming::Text(text))
    };
    let mut on = |event| driven.on(event, Instant::now()).len();
    assert_eq!(on(execute("true")), 1);
    on(SessionEvent::Report(ExecutionReport {
        execution_id: id,
        event: ExecutionEvent::Held(stream_start(Status::Running)),
    }));
    assert_eq!(on(execute("true")), 0, "it never runs twice");
    assert_eq!(on(execute("false")), 0);
    let [.., Outgoing::Message(ServerMessage::Response(again)), Outgoing::Message(ServerMessage::Response(other))] =
        &driven.sent[..]
    else {
        panic!("two responses");
    };
    assert_eq!(again.outcome.as_ref().unwrap()["status"], "started");
    assert!(other.outcome.as_ref().unwrap_err().message.contains("another command"));
}

/// The outcome of the newest response.
fn last_outcome(driven: &Driven) -> &Result<serde_json::Value, ErrorObject> {
    let Outgoing::Message(ServerMessage::Response(response)) = last(driven) else {
        panic!("a response, not {:?}", last(driven))
    };
    &response.outcome
}

/// Calls a method, and returns the effects.
fn call(driven: &mut Driven, method: &str, params: &serde_json::Value) -> Vec<Effect> {
    let event = driven.call(true, method, &params.to_string());
    driven.on(event, Instant::now())
}

/// A session that observes an execution that may detach.
fn observe(driven: &mut Driven) -> ExecutionId {
    driven.drive(&Move::Attach { own: true, observe: true }, Instant::now());
    let mut start = stream_start(Status::Running);
    start.terms.may_detach = true;
    let report = ExecutionReport { execution_id: driven.current, event: ExecutionEvent::Held(start) };
    driven.on(SessionEvent::Report(report), Instant::now());
    driven.current
}

#[test]
fn requests_of_an_observer_need_the_id_of_an_execution() {
    let mut driven = Driven::new();
    let id = observe(&mut driven);
    let response = driven.sent.iter().find_map(|message| match message {
        Outgoing::Message(ServerMessage::Response(response)) => response.outcome.as_ref().ok(),
        _ => None,
    });
    assert_eq!(response.unwrap()["observe"], true);
    let requests = [
        ("control", json!({ "type": "CANCEL" })),
        ("control", json!({ "type": "PAUSE" })),
        ("input", json!({ "data": "x" })),
        ("resize", json!({ "rows": 1, "cols": 2 })),
        ("ack", json!({ "offsets": {} })),
        ("ack", json!({ "offsets": {}, "executionId": id })),
    ];
    for (method, params) in &requests {
        assert_eq!(call(&mut driven, method, params), [], "{method} {params}");
        let error = last_outcome(&driven).as_ref().unwrap_err();
        assert_eq!((error.code, &error.data.as_ref().unwrap()["executionId"]), (code::NOT_ALLOWED, &json!(id)));
        assert!(error.message.contains("only observes"), "{error}");
    }
    for (method, mut params) in requests.into_iter().take(4) {
        params["executionId"] = json!(id);
        let effects = call(&mut driven, method, &params);
        assert!(
            matches!(&effects[..], [Effect::ById(_, target, ByIdRequest::Control(_))] if *target == id),
            "{effects:?}"
        );
    }
    assert_eq!(call(&mut driven, "status", &json!({})), []);
    assert_eq!(last_outcome(&driven).as_ref().unwrap()["status"], "RUNNING");
}

#[test]
fn an_observer_does_not_become_the_holder() {
    let mut driven = Driven::new();
    let id = observe(&mut driven);
    for (method, params) in [
        ("attach", json!({ "executionId": id })),
        ("attach", json!({ "executionId": ExecutionId::random(), "observe": true })),
        ("execute", json!({ "executionId": id, "command": "true" })),
    ] {
        assert_eq!(call(&mut driven, method, &params), [], "{method} {params}");
        let error = last_outcome(&driven).as_ref().unwrap_err();
        assert_eq!((error.code, &error.data.as_ref().unwrap()["executionId"]), (code::ALREADY_RUNNING, &json!(id)));
    }
    assert_eq!(call(&mut driven, "attach", &json!({ "executionId": id, "observe": true })), []);
    assert_eq!(last_outcome(&driven).as_ref().unwrap()["observe"], true);
    // After the end it may hold the execution.
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Completed }, Instant::now());
    let effects = call(&mut driven, "attach", &json!({ "executionId": id }));
    assert!(matches!(&effects[..], [Effect::Attach(attach)] if !attach.observe), "{effects:?}");
}

#[test]
fn the_pongs_of_an_observer_acknowledge_nothing() {
    let mut driven = Driven::new();
    let now = Instant::now();
    let id = observe(&mut driven);
    for n in 1..=64u64 {
        assert_eq!(driven.on(output(id, n << 16), now), []);
    }
    assert_eq!(driven.pings().len(), 0, "no ping asks for an acknowledgement");
    let later = now + Duration::from_secs(30);
    driven.on(SessionEvent::Tick { taken: 1, blocked: false, is_read: true }, later);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Completed }, later);
    let pings = driven.pings();
    assert_eq!(pings.len(), 1, "the ping that checks the client, and none at the end");
    assert_eq!(driven.on(SessionEvent::Incoming(Incoming::Pong(pings[0].clone())), later), []);
    call(&mut driven, "ack", &json!({ "executionId": id, "offsets": {} }));
    assert_eq!(last_outcome(&driven).as_ref().unwrap_err().code, code::NOT_RUNNING);
}

#[test]
fn a_draining_service_closes_observers_or_lets_them_see_the_end() {
    for executions_live_on in [true, false] {
        let mut driven = Driven::new();
        observe(&mut driven);
        for drain in [begin_drain(executions_live_on), Drain::Hurry { grace_ms: 0 }] {
            if driven.is_open() {
                assert_eq!(driven.on(SessionEvent::Drain(drain), Instant::now()), [], "it cancels nothing");
            }
        }
        assert_eq!(driven.is_open(), !executions_live_on);
        if driven.is_open() {
            driven.drive(&Move::Fact { own: true, fact: MoveFact::Canceled }, Instant::now());
            assert!(matches!(last(&driven), Outgoing::Message(ServerMessage::Ended(_))));
        }
        assert!(driven.close.is_some_and(|reason| reason.code == CloseCode::GoingAway));
    }
}
