//! Drives [`Phase`] with arbitrary sequences of events, and checks what a client would have seen.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;

use serde_json::json;

use super::{
    open::{Hold, Stage},
    *,
};
use crate::{
    backend::api::Alive,
    execution::messages::Fact,
    protocol::{notify::Hearing, rpc::code},
    terminate::{Ending, Reason, Status},
};

/// Records what is said. Closing turns it into something that cannot speak.
#[derive(Debug, Default)]
struct Recorder(Vec<Words>);

impl Outlet for Recorder {
    type Closed = (Vec<Words>, CloseReason);

    fn say(&mut self, words: Words) {
        self.0.push(words);
    }

    fn close(self, reason: &CloseReason) -> Self::Closed {
        (self.0, reason.clone())
    }
}

/// What happens next. Those about an execution are about the one that runs, or about a stranger.
#[derive(Clone, Debug)]
enum Move {
    Execute { id: bool },
    Cancel { id: bool },
    Signal,
    Status,
    Ping,
    Garbage(String),
    Fact { own: bool, fact: MoveFact },
    Output { own: bool },
    Answered,
    Heartbeat { held_back: bool },
    PingFrame,
    Close,
    Fault,
    Gone,
    Flooded,
    Drain,
}

#[derive(Clone, Copy, Debug)]
enum MoveFact {
    Refused,
    Started,
    Status,
    Alive,
    Completed,
    Canceled,
    Lost,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let fact = prop_oneof![
        1 => Just(MoveFact::Refused),
        6 => Just(MoveFact::Started),
        2 => Just(MoveFact::Status),
        2 => Just(MoveFact::Alive),
        3 => Just(MoveFact::Completed),
        1 => Just(MoveFact::Canceled),
        1 => Just(MoveFact::Lost),
    ];
    let own = || prop_oneof![9 => Just(true), 1 => Just(false)];
    let one = prop_oneof![
        8 => any::<bool>().prop_map(|id| Move::Execute { id }),
        4 => any::<bool>().prop_map(|id| Move::Cancel { id }),
        2 => Just(Move::Signal),
        3 => Just(Move::Status),
        1 => Just(Move::Ping),
        1 => "[{}\\[\\]\",:a-z0-9]{0,20}".prop_map(Move::Garbage),
        14 => (own(), fact).prop_map(|(own, fact)| Move::Fact { own, fact }),
        10 => own().prop_map(|own| Move::Output { own }),
        6 => Just(Move::Answered),
        3 => any::<bool>().prop_map(|held_back| Move::Heartbeat { held_back }),
        1 => Just(Move::PingFrame),
        1 => Just(Move::Close),
        1 => Just(Move::Fault),
        1 => Just(Move::Gone),
        1 => Just(Move::Flooded),
        1 => Just(Move::Drain),
    ];
    prop::collection::vec(one, 0..60)
}

/// A phase, and what a test must know to make events for it.
struct Driven {
    phase: Phase<Recorder>,
    current: ExecutionId,
    owed: Vec<u64>,
    asked: Vec<(Option<Id>, ExecutionId, bool)>,
    next_id: u64,
    started: HashMap<ExecutionId, u32>,
}

impl Driven {
    fn new() -> Self {
        let phase = Phase::open(SessionId::random(), None, Limits::default(), Recorder::default());
        Driven {
            phase,
            current: ExecutionId::random(),
            owed: Vec::new(),
            asked: Vec::new(),
            next_id: 0,
            started: HashMap::new(),
        }
    }

    fn call(&mut self, with_id: bool, method: &str, params: &str) -> Event {
        let id = if with_id && matches!(self.phase, Phase::Open(..)) {
            self.next_id += 1;
            self.owed.push(self.next_id);
            format!("\"id\":{},", self.next_id)
        } else {
            String::new()
        };
        Event::Incoming(Incoming::Text(format!(
            "{{\"jsonrpc\":\"2.0\",{id}\"method\":\"{method}\",\"params\":{params}}}"
        )))
    }

    fn event(&mut self, step: &Move) -> Event {
        let id = |own: bool| if own { self.current } else { ExecutionId::random() };
        match step {
            Move::Execute { id } => self.call(*id, "execute", "{\"command\":\"true\"}"),
            Move::Cancel { id } => self.call(*id, "control", "{\"type\":\"CANCEL\"}"),
            Move::Signal => self.call(true, "control", "{\"type\":\"SIGNAL\",\"signal\":\"SIGINT\"}"),
            Move::Status => self.call(true, "status", "{}"),
            Move::Ping => self.call(true, "ping", "{}"),
            Move::Garbage(text) => Event::Incoming(Incoming::Text(text.clone())),
            Move::Fact { own, fact } => Event::Report(Report { execution_id: id(*own), fact: fact.fact() }),
            Move::Output { own } => Event::Output {
                execution_id: id(*own),
                frames: Bytes::from_static(b"frames"),
                offsets: PerStream { stdout: 6, stderr: 0 },
            },
            Move::Answered => {
                let (id, execution_id, own) =
                    if self.asked.is_empty() { (None, self.current, false) } else { self.asked.remove(0) };
                Event::Answered(Answered { id, execution_id, own, outcome: Ok(json!({})) })
            }
            Move::Heartbeat { held_back } => Event::Heartbeat { held_back: *held_back },
            Move::PingFrame => Event::Incoming(Incoming::Ping(Bytes::new())),
            Move::Close => Event::Incoming(Incoming::Close),
            Move::Fault => Event::Incoming(Incoming::Fault(CloseReason::new(CloseCode::Protocol, "x"))),
            Move::Gone => Event::Incoming(Incoming::Gone),
            Move::Flooded => Event::Flooded,
            Move::Drain => Event::Drain,
        }
    }

    fn drive(&mut self, step: &Move, now: Instant) {
        let event = self.event(step);
        let was_open = matches!(self.phase, Phase::Open(..));
        let phase = std::mem::replace(&mut self.phase, Phase::Closed(None, Closure::Gone));
        let (phase, asks) = phase.on(event, now);
        self.phase = phase;
        assert!(was_open || asks.is_empty(), "a closed session asks for nothing");
        for ask in asks {
            match ask {
                Ask::Start(id, _) => {
                    self.current = id;
                    *self.started.entry(id).or_default() += 1;
                }
                // The shell answers these in its own time.
                Ask::Cancel { id, .. } | Ask::Signal(id, _) => self.asked.push((id, self.current, true)),
                Ask::Elsewhere(id, execution_id, _) => self.asked.push((id, execution_id, false)),
                _ => {}
            }
        }
    }

    fn said(&self) -> &[Words] {
        match &self.phase {
            Phase::Open(_, recorder) => &recorder.0,
            Phase::Closed(Some((said, _)), _) => said,
            Phase::Closed(None, _) => &[],
        }
    }
}

impl MoveFact {
    fn fact(self) -> Fact {
        let ended = |status, reason| Fact::Exited(Ending::without_process(status, reason, None));
        match self {
            MoveFact::Refused => Fact::Refused(ErrorObject::new(code::FULL, "full")),
            MoveFact::Started => Fact::Started,
            MoveFact::Status => Fact::Status(Status::Cancelling),
            MoveFact::Alive => Fact::Alive(Alive { elapsed_ms: 1, since_output_ms: 1 }),
            MoveFact::Completed => ended(Status::Completed, Reason::Exit),
            MoveFact::Canceled => ended(Status::Cancelled, Reason::Canceled),
            MoveFact::Lost => ended(Status::Failed, Reason::BackendLost),
        }
    }
}

/// Reads the record as a client would, and checks the promises.
fn check(driven: &Driven) {
    let mut ended: HashMap<ExecutionId, u32> = HashMap::new();
    let mut running: Option<ExecutionId> = None;
    let mut answered: Vec<u64> = Vec::new();
    let said = driven.said();
    if !said.is_empty() {
        assert!(matches!(said[0], Words::Message(Message::Connected(_))), "connected is the first message");
    }
    for words in said {
        match words {
            Words::Message(Message::Progress(progress)) | Words::Heartbeat(progress) => {
                assert!(!ended.contains_key(&progress.execution_id), "no status after the last");
                running = Some(progress.execution_id);
            }
            Words::Output(_) => assert!(running.is_some(), "output only of an execution that runs"),
            Words::Message(Message::Ended(end)) => {
                *ended.entry(end.execution_id).or_default() += 1;
                assert!(end.ending.status.is_final());
                running = None;
            }
            Words::Message(Message::Response(response)) => answered.extend(response.id.as_str().parse::<u64>().ok()),
            Words::Message(Message::Connected(_) | Message::Error(_)) | Words::Pong(_) => {}
        }
    }
    assert!(ended.values().all(|times| *times == 1), "one end for each execution");
    assert!(ended.keys().all(|id| driven.started.contains_key(id)), "no end of what never began");
    answered.sort_unstable();
    let unique = answered.len();
    answered.dedup();
    assert_eq!(answered.len(), unique, "one response for each request");
    if let Phase::Open(open, _) = &driven.phase {
        // Still owed may be the response to an `execute` that is starting, and to asks under way.
        let starting = match &open.hold {
            Some(Hold { stage: Stage::Starting { answer }, .. }) => {
                answer.as_ref().map(|id| id.as_str().parse().unwrap())
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
    fn whatever_happens_the_client_sees_one_true_story(moves in moves()) {
        let mut driven = Driven::new();
        let start = Instant::now();
        for (at, step) in moves.iter().enumerate() {
            let before = driven.said().len();
            let was_closed = matches!(driven.phase, Phase::Closed(..));
            driven.drive(step, start + Duration::from_secs(at as u64));
            if was_closed {
                prop_assert_eq!(driven.said().len(), before, "nothing after the close frame");
            }
        }
        check(&driven);
    }
}

fn start(driven: &mut Driven) {
    let now = Instant::now();
    driven.drive(&Move::Execute { id: true }, now);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Started }, now);
}

fn last(driven: &Driven) -> &Words {
    driven.said().last().expect("something was said")
}

#[test]
fn a_call_without_id_that_fails_is_told_as_an_error() {
    let mut driven = Driven::new();
    driven.drive(&Move::Cancel { id: false }, Instant::now());
    assert!(matches!(last(&driven), Words::Message(Message::Error(notice)) if notice.error.code == code::NOT_RUNNING));
    driven.drive(&Move::Cancel { id: true }, Instant::now());
    assert!(matches!(last(&driven), Words::Message(Message::Response(response)) if response.outcome.is_err()));
}

#[test]
fn a_second_execute_is_refused_and_the_first_goes_on() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Execute { id: true }, Instant::now());
    let Words::Message(Message::Response(response)) = last(&driven) else { panic!("a response") };
    assert_eq!(response.outcome.as_ref().unwrap_err().code, code::ALREADY_RUNNING);
    driven.drive(&Move::Output { own: true }, Instant::now());
    assert!(matches!(last(&driven), Words::Output(_)));
}

#[test]
fn the_end_is_said_after_the_answer_that_led_to_it() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Cancel { id: true }, Instant::now());
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Canceled }, Instant::now());
    assert!(!driven.said().iter().any(|words| matches!(words, Words::Message(Message::Ended(_)))));
    driven.drive(&Move::Answered, Instant::now());
    let [.., Words::Message(Message::Response(_)), Words::Message(Message::Ended(_))] = driven.said() else {
        panic!("the answer and the end");
    };
}

#[test]
fn a_fault_of_the_backend_is_announced_before_the_end() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Lost }, Instant::now());
    let [.., Words::Message(Message::Error(notice)), Words::Message(Message::Ended(ended))] = driven.said() else {
        panic!("an error and the end");
    };
    assert_eq!((notice.error.code, ended.ending.reason), (code::BACKEND, Reason::BackendLost));
}

#[test]
fn an_execution_that_never_started_is_answered_as_failed_first() {
    let mut driven = Driven::new();
    driven.drive(&Move::Execute { id: true }, Instant::now());
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Lost }, Instant::now());
    let Words::Message(Message::Response(response)) = &driven.said()[1] else { panic!("the response comes first") };
    assert_eq!(response.outcome.as_ref().unwrap()["status"], "failed");
}

#[test]
fn the_elapsed_time_goes_on_whatever_is_heard() {
    let mut driven = Driven::new();
    start(&mut driven);
    let now = Instant::now();
    for (seconds, step) in [
        (5, Move::Output { own: true }),
        (6, Move::Fact { own: true, fact: MoveFact::Status }),
        (8, Move::Heartbeat { held_back: false }),
    ] {
        driven.drive(&step, now + Duration::from_secs(seconds));
    }
    let elapsed: Vec<_> = driven
        .said()
        .iter()
        .filter_map(|words| match words {
            Words::Message(Message::Progress(progress)) | Words::Heartbeat(progress) => {
                Some((progress.elapsed_ms / 1_000, progress.since_output_ms / 1_000))
            }
            _ => None,
        })
        .collect();
    assert_eq!(elapsed, [(0, 0), (6, 1), (8, 3)]);
}

#[test]
fn silence_is_only_said_of_a_backend_that_is_listened_to() {
    let mut driven = Driven::new();
    start(&mut driven);
    let later = Instant::now() + Duration::from_secs(46);
    for (held_back, hearing) in [(true, Hearing::Alive), (false, Hearing::Silent)] {
        driven.drive(&Move::Heartbeat { held_back }, later);
        let Words::Heartbeat(progress) = last(&driven) else { panic!("a heartbeat") };
        assert_eq!(progress.backend, hearing);
        assert!(progress.elapsed_ms >= 46_000);
    }
}

#[test]
fn a_drained_session_tells_the_end_before_it_closes() {
    let mut driven = Driven::new();
    start(&mut driven);
    driven.drive(&Move::Drain, Instant::now());
    driven.drive(&Move::Execute { id: true }, Instant::now());
    assert!(
        matches!(last(&driven), Words::Message(Message::Response(response)) if response.outcome.as_ref().unwrap_err().code == code::DRAINING)
    );
    driven.drive(&Move::Fact { own: true, fact: MoveFact::Canceled }, Instant::now());
    assert!(matches!(last(&driven), Words::Message(Message::Ended(_))));
    assert!(matches!(&driven.phase, Phase::Closed(Some((_, reason)), _) if reason.code == CloseCode::GoingAway));
}

#[test]
fn the_same_id_again_is_the_same_execution() {
    let mut driven = Driven::new();
    let id = ExecutionId::random();
    let execute = |command: &str| {
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"execute\",\"params\":{{\"command\":\"{command}\",\"executionId\":\"{id}\"}}}}"
        );
        Event::Incoming(Incoming::Text(text))
    };
    let mut on = |event| {
        let phase = std::mem::replace(&mut driven.phase, Phase::Closed(None, Closure::Gone));
        let (phase, asks) = phase.on(event, Instant::now());
        driven.phase = phase;
        asks.len()
    };
    assert_eq!(on(execute("true")), 1);
    on(Event::Report(Report { execution_id: id, fact: Fact::Started }));
    assert_eq!(on(execute("true")), 0, "it never runs twice");
    assert_eq!(on(execute("false")), 0);
    let [.., Words::Message(Message::Response(again)), Words::Message(Message::Response(other))] = driven.said() else {
        panic!("two responses");
    };
    assert_eq!(again.outcome.as_ref().unwrap()["status"], "started");
    assert!(other.outcome.as_ref().unwrap_err().message.contains("another command"));
}
