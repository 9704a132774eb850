//! Scripts of events, with the actions of each.

use cc_executor_actors::{
    outcome::{Outcome, Reason, Status},
    stream::PerStream,
};
use serde_json::json;

use super::*;
use crate::cli::{
    reconnect::ConnectAttempt,
    session_loop::event::{OutputLoss, call},
};

const PATIENCE: Duration = Duration::from_secs(5);
const URL: &str = "ws://h";

/// A client, and its time.
struct Script {
    state: LoopState,
    start: Instant,
    id: ExecutionId,
}

impl Script {
    fn run(on_disconnect: DisconnectAction) -> Script {
        let id = ExecutionId::random();
        let purpose = LoopPurpose::Run { id: (on_disconnect != DisconnectAction::End).then_some(id), on_disconnect };
        let state = LoopState::new(URL.to_owned(), purpose, HeartbeatEstimate::Requested(None));
        Script { state, start: Instant::now(), id }
    }

    fn attach(reconnect: Option<Duration>) -> Script {
        let id = ExecutionId::random();
        let state = LoopState::new(
            URL.to_owned(),
            LoopPurpose::Attach { id, reconnect, observe: false, terminal: false },
            HeartbeatEstimate::Observed { longest: None, updated_at: None },
        );
        Script { state, start: Instant::now(), id }
    }

    /// Plays an event at so many milliseconds. Returns the actions, or the error's text and code.
    fn play(&mut self, ms: u64, event: LoopEvent) -> Result<Vec<LoopAction>, (String, u8)> {
        let step = self.state.step(event, self.start + Duration::from_millis(ms));
        step.map_err(|error| (error.message, error.code))
    }

    fn terminal(purpose: impl FnOnce(ExecutionId) -> LoopPurpose) -> Script {
        let id = ExecutionId::random();
        let state = LoopState::new(URL.to_owned(), purpose(id), HeartbeatEstimate::Requested(None));
        Script { state, start: Instant::now(), id }
    }

    /// `run -it`, whose command runs.
    fn running_terminal() -> Script {
        let on_disconnect = DisconnectAction::Terminal(PATIENCE);
        let mut script = Script::terminal(|id| LoopPurpose::Run { id: Some(id), on_disconnect });
        script.play(0, LoopEvent::Opened).unwrap();
        assert_eq!(script.play(0, connected(None)), Ok(vec![script.execute(Some(7), None)]), "at most what is allowed");
        let accepted = script.accepted("started", None);
        assert_eq!(script.play(1, accepted), Ok(vec![LoopAction::StartInput]));
        script
    }

    /// `attach -it`, connected.
    fn attaching_terminal() -> Script {
        let purpose = |id| LoopPurpose::Attach { id, reconnect: Some(PATIENCE), observe: false, terminal: true };
        let mut script = Script::terminal(purpose);
        assert_eq!(script.play(0, LoopEvent::Opened), Ok(vec![LoopAction::Inspect(script.id)]));
        script
    }

    fn keep(&self, detach_ms: Option<u64>, call: u64) -> LoopAction {
        LoopAction::Keep { id: self.id, detach_ms, call }
    }

    fn accepted(&self, status: &str, instance: Option<&str>) -> LoopEvent {
        let (status, instance) = (status.to_owned(), instance.map(instance_id));
        LoopEvent::Accepted(HoldResult {
            execution_id: self.id,
            status,
            claude: false,
            agent: None,
            instance,
            observe: false,
        })
    }

    fn attached(&self) -> LoopEvent {
        self.accepted("RUNNING", None)
    }

    fn execute(&self, detach_ms: Option<u64>, instance: Option<&str>) -> LoopAction {
        LoopAction::Execute { id: Some(self.id), detach_ms, instance: instance.map(instance_id) }
    }

    fn connect(&self, after_ms: u64, until: Duration) -> LoopAction {
        let after = Duration::from_millis(after_ms);
        LoopAction::Connect(ConnectAttempt { after, until: Some(self.start + until) })
    }
}

/// The id of the instance with this name in a script.
fn instance_id(name: &str) -> InstanceId {
    let digit = if name == "one" { 1 } else { 2 };
    format!("00000000-0000-4000-8000-00000000000{digit}").parse().unwrap()
}

fn connected(instance: Option<&str>) -> LoopEvent {
    LoopEvent::Connected { instance: instance.map(instance_id), longest_detach_ms: 7 }
}

fn broken() -> ClientError {
    ClientError::new(exit::UNAVAILABLE, "it broke")
}

fn report(text: &str) -> LoopAction {
    LoopAction::Report(text.to_owned())
}

fn finished(reason: Reason, code: i32, written: Result<(), OutputLoss>, lost: u64) -> LoopEvent {
    let status = if code == 0 { Status::Completed } else { Status::Failed };
    let outcome = Outcome { exit_code: Some(code), ..Outcome::without_process(status, reason, None) };
    LoopEvent::OutputFinished { outcome: Box::new(outcome), written, lost: PerStream { stdout: lost, stderr: 0 } }
}

const CTRL_C: LoopEvent = LoopEvent::EndRequested(EndRequest::Interrupted);
const TERM: LoopEvent = LoopEvent::EndRequested(EndRequest::Terminated);

#[test]
fn a_command_that_ends_with_its_client_is_requested_at_once_and_never_again() {
    let mut script = Script::run(DisconnectAction::End);
    let execute = LoopAction::Execute { id: None, detach_ms: None, instance: None };
    assert_eq!(script.play(0, LoopEvent::Opened), Ok(vec![execute]));
    assert!(!script.state.awaits_connected());
    assert_eq!(script.state.answer_by(), Some(script.start + ANSWER_PATIENCE));
    let accepted = script.accepted("started", None);
    assert_eq!(script.play(1, accepted), Ok(vec![LoopAction::StartInput]));
    assert_eq!(script.state.answer_by(), None);
    let id = script.id;
    let message = format!(
        "it broke; the command may run: follow it with cc-executor attach {id}, or end it with cc-executor cancel {id}"
    );
    assert_eq!(script.play(2, LoopEvent::Broken(broken())), Err((message, exit::UNAVAILABLE)));
    let mut script = Script::run(DisconnectAction::End);
    script.play(0, LoopEvent::Opened).unwrap();
    let silent = (format!("{URL} did not answer the request execute within 30 s"), exit::UNAVAILABLE);
    assert_eq!(script.play(30_000, LoopEvent::AnswerOverdue), Err(silent), "it has no id that could be named");
}

#[test]
fn a_client_that_reconnects_sends_its_request_to_the_same_instance() {
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    assert_eq!(script.play(0, LoopEvent::Opened), Ok(vec![]), "`connected` is awaited");
    assert_eq!(script.play(0, connected(Some("one"))), Ok(vec![script.execute(Some(5_000), None)]));
    let reconnecting = report("it broke; trying to reconnect for 5 s");
    let until = Duration::from_millis(1_000) + PATIENCE;
    assert_eq!(script.play(1_000, LoopEvent::Broken(broken())), Ok(vec![reconnecting, script.connect(50, until)]));
    assert_eq!(script.play(1_050, LoopEvent::OpenFailed(broken())), Ok(vec![script.connect(100, until)]));
    assert_eq!(script.play(1_150, LoopEvent::Opened), Ok(vec![]));
    assert_eq!(script.state.answer_by(), Some(script.start + until), "the absence bounds the answer, too");
    assert_eq!(script.play(1_150, connected(Some("two"))), Ok(vec![script.execute(Some(5_000), Some("one"))]));
    assert_eq!(
        script.play(1_160, LoopEvent::Broken(broken())),
        Ok(vec![script.connect(200, until)]),
        "it is reported once"
    );
    script.play(1_360, LoopEvent::Opened).unwrap();
    let accepted = script.accepted("started", Some("one"));
    assert_eq!(script.play(1_361, accepted), Ok(vec![LoopAction::StartInput]));
    // The next absence has a time of its own, and the execution is attached to.
    let until = Duration::from_secs(60) + PATIENCE;
    let actions = script.play(60_000, LoopEvent::Broken(broken())).unwrap();
    assert_eq!(actions[1], script.connect(50, until));
    assert_eq!(script.play(60_050, LoopEvent::Opened), Ok(vec![LoopAction::Attach { id: script.id, observe: false }]));
    let error = ErrorObject {
        data: Some(json!({ "instance": instance_id("two") })),
        ..ErrorObject::new(code::UNKNOWN_EXECUTION, "?")
    };
    let restarted = "the service was restarted; the execution ended with it".to_owned();
    assert_eq!(script.play(60_060, LoopEvent::Refused(error)), Err((restarted, exit::UNAVAILABLE)));
}

#[test]
fn a_command_that_may_have_run_is_attached_to_at_a_service_without_instances() {
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    script.play(0, connected(None)).unwrap();
    script.play(0, LoopEvent::Broken(broken())).unwrap();
    script.play(50, LoopEvent::Opened).unwrap();
    assert_eq!(
        script.play(50, connected(None)),
        Ok(vec![LoopAction::Attach { id: script.id, observe: false }]),
        "it never runs twice"
    );
    let unknown = LoopEvent::Refused(ErrorObject::new(code::UNKNOWN_EXECUTION, "?"));
    let (message, code) = script.play(60, unknown).unwrap_err();
    assert!(message.starts_with("the service has no such execution") && code == exit::UNAVAILABLE, "{message}");
}

#[test]
fn an_interrupt_exits_before_the_request_and_cancels_after_it() {
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    assert_eq!(script.play(1, CTRL_C), Ok(vec![LoopAction::ExitAtOnce(130)]), "nothing was requested");
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    script.play(0, LoopEvent::Broken(broken())).unwrap();
    assert_eq!(script.play(1, CTRL_C), Ok(vec![LoopAction::ExitAtOnce(130)]), "nothing was requested");
    // The request was sent, and is to be repeated: the cancellation follows it.
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    script.play(0, connected(Some("one"))).unwrap();
    script.play(1, LoopEvent::Broken(broken())).unwrap();
    script.play(60, LoopEvent::Opened).unwrap();
    assert_eq!(script.play(61, CTRL_C), Ok(vec![report("canceling; send the signal again to exit without waiting")]));
    assert_eq!(script.play(62, connected(Some("one"))).unwrap()[1], LoopAction::Cancel);
    let mut script = Script::attach(Some(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    let accepted = script.accepted("started", None);
    script.play(1, accepted).unwrap();
    script.play(2, LoopEvent::Broken(broken())).unwrap();
    let left = report(ending::LEFT);
    assert_eq!(script.play(3, CTRL_C), Ok(vec![left, LoopAction::ExitAtOnce(130)]), "a follower cancels nothing");
}

#[test]
fn an_observer_attaches_as_one_each_time_and_cancels_nothing() {
    let mut script = Script::attach(Some(PATIENCE));
    let LoopPurpose::Attach { observe, .. } = &mut script.state.purpose else { unreachable!("it attaches") };
    *observe = true;
    let attach = LoopAction::Attach { id: script.id, observe: true };
    assert_eq!(script.play(0, LoopEvent::Opened), Ok(vec![attach]));
    let attached = script.attached();
    script.play(1, attached).unwrap();
    script.play(2, LoopEvent::Broken(broken())).unwrap();
    let attach = LoopAction::Attach { id: script.id, observe: true };
    assert_eq!(script.play(60, LoopEvent::Opened), Ok(vec![attach]));
    // Its session before may still count as an observer.
    let full = LoopEvent::Refused(ErrorObject::new(code::FULL, "no"));
    assert!(script.play(61, full).is_ok());
    script.play(200, LoopEvent::Opened).unwrap();
    let attached = script.attached();
    script.play(201, attached).unwrap();
    let left = report(ending::NO_LONGER_OBSERVING);
    assert_eq!(script.play(202, CTRL_C), Ok(vec![left, LoopAction::Exit(130)]));
}

#[test]
fn reconnecting_ends_after_its_time_or_with_a_permanent_error() {
    let away = || {
        let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
        script.play(0, LoopEvent::Opened).unwrap();
        script.play(0, connected(Some("one"))).unwrap();
        script.play(0, LoopEvent::Broken(broken())).unwrap();
        script
    };
    let mut script = away();
    let gave_up = format!("gave up reconnecting to {URL} after 5 s: it broke; ");
    let message = format!("{gave_up}the command may still run: cc-executor attach {}", script.id);
    assert_eq!(script.play(5_001, LoopEvent::OpenFailed(broken())), Err((message, exit::UNAVAILABLE)));
    let mut script = away();
    script.play(10, CTRL_C).unwrap();
    let message = format!("{gave_up}the command may still run: cc-executor cancel {}", script.id);
    assert_eq!(script.play(5_001, LoopEvent::OpenFailed(broken())), Err((message, 130)));
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    script.play(0, LoopEvent::Broken(broken())).unwrap();
    let message = format!("{gave_up}the command was not started");
    assert_eq!(script.play(5_001, LoopEvent::OpenFailed(broken())), Err((message, exit::UNAVAILABLE)));
    let denied = ClientError::new(exit::NOPERM, "no");
    assert_eq!(away().play(10, LoopEvent::OpenFailed(denied)), Err(("no".to_owned(), exit::NOPERM)));
    for (code, passes) in
        [(code::DRAINING, true), (code::BACKEND, true), (code::SESSION_LIMIT, true), (code::FULL, false)]
    {
        let mut script = away();
        script.play(50, LoopEvent::Opened).unwrap();
        let step = script.play(60, LoopEvent::Refused(ErrorObject::new(code, "no")));
        assert_eq!(step.is_ok(), passes, "{code}");
    }
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    let refused = LoopEvent::Refused(ErrorObject::new(code::DRAINING, "no"));
    assert_eq!(script.play(1, refused), Err(("no".to_owned(), exit::TEMPFAIL)), "the first refusal is final");
}

#[test]
fn the_first_interrupt_cancels_and_the_second_exits() {
    let canceling = || vec![report("canceling; send the signal again to exit without waiting"), LoopAction::Cancel];
    let mut script = Script::run(DisconnectAction::End);
    assert_eq!(script.play(0, CTRL_C), Ok(vec![LoopAction::ExitAtOnce(130)]), "nothing was asked for yet");
    for (first, second, code) in [(CTRL_C, CTRL_C, 130), (CTRL_C, TERM, 143), (TERM, TERM, 143)] {
        let mut script = Script::run(DisconnectAction::End);
        script.play(0, LoopEvent::Opened).unwrap();
        assert_eq!(script.play(1, first), Ok(canceling()));
        assert_eq!(script.play(2, second), Ok(vec![LoopAction::ExitAtOnce(code)]));
    }
    let mut script = Script::run(DisconnectAction::Reconnect(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    script.play(0, connected(Some("one"))).unwrap();
    script.play(0, LoopEvent::Broken(broken())).unwrap();
    assert_eq!(script.play(10, CTRL_C), Ok(vec![script.connect(100, PATIENCE)]), "it is tried again");
    assert_eq!(script.play(20, LoopEvent::Opened), Ok(vec![]), "a session without an execution would refuse CANCEL");
    assert_eq!(
        script.play(20, connected(Some("one"))),
        Ok(vec![script.execute(Some(5_000), Some("one")), LoopAction::Cancel])
    );
    script.play(30, LoopEvent::Broken(broken())).unwrap();
    assert_eq!(script.play(40, CTRL_C), Ok(vec![LoopAction::ExitAtOnce(130)]));
    let mut script = Script::attach(None);
    assert_eq!(script.play(0, LoopEvent::Opened), Ok(vec![LoopAction::Attach { id: script.id, observe: false }]));
    let left = report(ending::LEFT);
    assert_eq!(script.play(1, TERM), Ok(vec![left, LoopAction::Exit(143)]));
}

#[test]
fn a_detached_command_is_canceled_if_its_id_is_not_printed() {
    for (loss, actions) in [
        (None, vec![LoopAction::Exit(0)]),
        (Some(OutputLoss::ReaderGone), vec![LoopAction::DiscardOutput, LoopAction::Cancel]),
    ] {
        let mut script = Script::run(DisconnectAction::Detach(None));
        script.play(0, LoopEvent::Opened).unwrap();
        assert_eq!(script.play(0, connected(Some("one"))), Ok(vec![script.execute(Some(7), None)]));
        let accepted = script.accepted("started", Some("one"));
        assert_eq!(script.play(1, accepted), Ok(vec![LoopAction::PrintId(script.id)]));
        assert_eq!(script.play(1, LoopEvent::IdPrinted(loss.map_or(Ok(()), Err))), Ok(actions));
    }
    let mut script = Script::run(DisconnectAction::Detach(None));
    script.play(0, LoopEvent::Opened).unwrap();
    let failed = script.accepted("failed", None);
    assert_eq!(script.play(1, failed), Ok(vec![LoopAction::StartInput]), "its end is followed");
}

#[test]
fn the_exit_code_is_the_commands_own_unless_a_signal_or_a_loss_decides() {
    let incomplete = "the output is incomplete: 9 bytes of stdout and 0 bytes of stderr are lost; without this loss the exit code would be 3";
    let canceled = "the execution was canceled";
    for (request, event, actions) in [
        (None, finished(Reason::Exit, 0, Ok(()), 0), vec![LoopAction::Exit(0)]),
        (None, finished(Reason::Exit, 3, Ok(()), 9), vec![report(incomplete), LoopAction::Exit(exit::SOFTWARE)]),
        (None, finished(Reason::Canceled, 0, Ok(()), 0), vec![report(canceled), LoopAction::Exit(143)]),
        (Some(CTRL_C), finished(Reason::Canceled, 0, Ok(()), 0), vec![LoopAction::Exit(130)]),
        (Some(CTRL_C), finished(Reason::Exit, 4, Ok(()), 0), vec![LoopAction::Exit(4)]),
        (
            None,
            finished(Reason::Exit, 0, Err(OutputLoss::WriteFailed("full".to_owned())), 0),
            vec![LoopAction::DiscardOutput, report("full"), LoopAction::Exit(exit::IOERR)],
        ),
        (
            Some(LoopEvent::OutputLost(OutputLoss::ReaderGone)),
            finished(Reason::Exit, 0, Ok(()), 0),
            vec![LoopAction::Exit(141)],
        ),
    ] {
        let mut script = Script::run(DisconnectAction::End);
        script.play(0, LoopEvent::Opened).unwrap();
        let accepted = script.accepted("started", None);
        script.play(1, accepted).unwrap();
        let case = format!("{request:?} {event:?}");
        if let Some(request) = request {
            script.play(2, request).unwrap();
        }
        assert_eq!(script.play(3, event), Ok(actions), "{case}");
    }
}

#[test]
fn attach_exits_if_its_output_has_no_reader() {
    let mut script = Script::attach(None);
    script.play(0, LoopEvent::Opened).unwrap();
    let attached = script.attached();
    assert_eq!(script.play(1, attached), Ok(vec![]));
    let lost = LoopEvent::OutputLost(OutputLoss::ReaderGone);
    assert_eq!(script.play(2, lost), Ok(vec![LoopAction::DiscardOutput, LoopAction::Exit(141)]));
}

#[test]
fn a_refused_time_is_reported_with_its_flag() {
    for (param, message) in [("heartbeatMs", "--heartbeat: wrong"), ("cwd", "wrong")] {
        let mut script = Script::run(DisconnectAction::End);
        script.play(0, LoopEvent::Opened).unwrap();
        let error = ErrorObject { data: Some(json!({ "param": param })), ..ErrorObject::new(code::PARAMS, "wrong") };
        assert_eq!(script.play(1, LoopEvent::Refused(error)), Err((message.to_owned(), exit::USAGE)));
    }
}

#[test]
fn late_input_is_no_error() {
    for (answer, actions) in [
        (Ok(()), vec![LoopAction::ContinueInput]),
        (Err(ErrorObject::new(code::NOT_RUNNING, "over")), vec![LoopAction::StopInput]),
        (Err(ErrorObject::new(code::INTERNAL, "no")), vec![LoopAction::StopInput, report("no")]),
    ] {
        let mut script = Script::run(DisconnectAction::End);
        script.play(0, LoopEvent::Opened).unwrap();
        assert_eq!(script.play(1, LoopEvent::InputAnswered(answer)), Ok(actions));
    }
}

#[test]
fn a_session_limit_is_a_broken_connection() {
    let full = || LoopEvent::ServiceError(ErrorObject::new(code::SESSION_LIMIT, "full"));
    let mut script = Script::attach(None);
    script.play(0, LoopEvent::Opened).unwrap();
    assert_eq!(script.play(1, full()), Err(("full".to_owned(), exit::TEMPFAIL)));
    let mut script = Script::attach(Some(PATIENCE));
    script.play(0, LoopEvent::Opened).unwrap();
    let until = Duration::from_millis(1) + PATIENCE;
    let reconnecting = report("full; trying to reconnect for 5 s");
    assert_eq!(script.play(1, full()), Ok(vec![reconnecting, script.connect(50, until)]));
}

#[test]
fn detach_keys_leave_the_execution_when_the_service_keeps_it() {
    let mut script = Script::running_terminal();
    assert_eq!(script.play(2, LoopEvent::DetachRequested), Ok(vec![script.keep(None, call::KEEP)]));
    let refused = LoopEvent::Kept(Err(ErrorObject::new(code::PARAMS, "no KEEP")));
    assert_eq!(script.play(3, refused), Ok(vec![report("cannot detach: no KEEP")]), "the session continues");
    assert_eq!(script.play(4, LoopEvent::Broken(broken())).unwrap().len(), 2);
    let refused = report("cannot detach while there is no connection");
    assert_eq!(script.play(5, LoopEvent::DetachRequested), Ok(vec![refused]));
    script.play(60, LoopEvent::Opened).unwrap();
    let attached = script.attached();
    let reconnected = LoopAction::Note("reconnected".to_owned());
    assert_eq!(
        script.play(61, attached),
        Ok(vec![reconnected, LoopAction::ResumeInput, LoopAction::SendSize]),
        "input is not read twice"
    );
    script.play(62, LoopEvent::DetachRequested).unwrap();
    let leave = vec![LoopAction::LeaveTerminal, LoopAction::PrintId(script.id)];
    assert_eq!(script.play(63, LoopEvent::Kept(Ok(()))), Ok(leave));
    let mut script = Script::running_terminal();
    script.play(2, LoopEvent::DetachRequested).unwrap();
    let outcome = Outcome::without_process(Status::Completed, Reason::Exit, None);
    script.play(3, LoopEvent::Ended(Box::new(outcome))).unwrap();
    assert_eq!(script.play(4, LoopEvent::Kept(Ok(()))), Ok(vec![]), "it has ended, and its end is followed");
}

#[test]
fn a_terminal_attaches_at_the_end_of_the_output_and_resizes() {
    let inspected = |text: &str| LoopEvent::Inspected(Ok(serde_json::from_str(text).unwrap()));
    let offsets = PerStream { stdout: 9, stderr: 0 };
    let attach = |script: &Script| LoopAction::Attach { id: script.id, observe: false };
    let mut script = Script::attaching_terminal();
    assert_eq!(
        script.play(1, inspected(r#"{"status":"RUNNING","offsets":{"stdout":9,"stderr":0}}"#)),
        Ok(vec![LoopAction::BeginAt(offsets), LoopAction::SetOtherSize(script.id)])
    );
    assert_eq!(script.play(2, LoopEvent::OtherSizeSet(Ok(()))), Ok(vec![attach(&script)]));
    let attached = script.attached();
    assert_eq!(script.play(3, attached), Ok(vec![LoopAction::StartInput, LoopAction::SendSize]));
    assert_eq!(script.play(4, LoopEvent::OtherSizeSet(Ok(()))), Ok(vec![]), "after a suspension, too");
    // Without a terminal it is followed from its beginning.
    let mut script = Script::attaching_terminal();
    script.play(1, inspected(r#"{"status":"RUNNING","offsets":{"stdout":9,"stderr":0}}"#)).unwrap();
    let no_terminal = LoopEvent::OtherSizeSet(Err(ErrorObject::new(code::NOT_ALLOWED, "no")));
    let actions = script.play(2, no_terminal).unwrap();
    assert_eq!(actions[1..], [LoopAction::BeginAt(PerStream::default()), attach(&script)]);
    let attached = script.attached();
    assert_eq!(script.play(3, attached), Ok(vec![]));
    let mut script = Script::attaching_terminal();
    let actions = script.play(1, inspected(r#"{"status":"COMPLETED","reason":"exit"}"#)).unwrap();
    assert_eq!(actions[0], report("the execution has ended"));
    assert_eq!(actions[2], attach(&script));
    let unknown = LoopEvent::Inspected(Err(ErrorObject::new(code::UNKNOWN_EXECUTION, "?")));
    assert!(Script::attaching_terminal().play(1, unknown).is_err());
}

#[test]
fn a_dropped_connection_says_what_becomes_of_the_command() {
    let mut script = Script::running_terminal();
    let back = format!("cc-executor attach -it {}", script.id);
    let message = format!("connection dropped; the command ends in 5 s unless you come back: {back}");
    let drop = |message: &str| vec![LoopAction::LeaveTerminal, report(message), LoopAction::ExitAtOnce(130)];
    assert_eq!(script.play(2, LoopEvent::DropRequested), Ok(drop(&message)));
    let mut script = Script::attaching_terminal();
    let actions = script.play(2, LoopEvent::DropRequested).unwrap();
    let message = format!(
        "connection dropped; the execution continues for as long as it may without a client: cc-executor attach -it {}",
        script.id
    );
    assert_eq!(actions, drop(&message));
}

#[test]
fn a_client_that_was_suspended_attaches_again_even_without_reconnect() {
    let mut script = Script::run(DisconnectAction::End);
    script.play(0, LoopEvent::Opened).unwrap();
    let accepted = script.accepted("started", None);
    script.play(1, accepted).unwrap();
    assert_eq!(script.play(2, LoopEvent::Suspending), Ok(vec![]));
    assert_eq!(script.play(60_000, LoopEvent::Resumed), Ok(vec![]));
    let actions = script.play(60_001, LoopEvent::Broken(broken())).unwrap();
    assert_eq!(actions[1], script.connect(50, Duration::from_millis(70_001)));
    let attach = LoopAction::Attach { id: script.id, observe: false };
    assert_eq!(script.play(60_060, LoopEvent::Opened), Ok(vec![attach]), "it is never run a second time");
    let mut script = Script::run(DisconnectAction::End);
    script.play(0, LoopEvent::Opened).unwrap();
    let accepted = script.accepted("started", None);
    script.play(1, accepted).unwrap();
    script.play(2, LoopEvent::Resumed).unwrap();
    assert!(script.play(40_000, LoopEvent::Broken(broken())).is_err(), "much later it is another cause");
    let mut script = Script::running_terminal();
    assert_eq!(script.play(2, LoopEvent::Suspending), Ok(vec![script.keep(None, call::KEEP_QUIETLY)]));
    let redraw = [LoopAction::SetOtherSize(script.id), LoopAction::SendSize];
    let actions = script.play(3, LoopEvent::Resumed).unwrap();
    assert_eq!((&actions[0], &actions[1..]), (&script.keep(Some(0), call::KEEP_QUIETLY), &redraw[..]));
}
