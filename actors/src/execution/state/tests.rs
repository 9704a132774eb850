//! Every state meets every event.

use proptest::prelude::*;

use super::*;
use crate::{
    backend_api::{Heartbeat, StreamInfo},
    backend_client::BodyEnd,
    execution::{connect::EventStream, legacy::LegacyStream},
    protocol::execute::ExecutionSpec,
};

const RUN: RequestKind = RequestKind::Run { may_detach: false };
const CANCEL: Cancellation = Cancellation { grace_ms: 7, reason: CancelReason::Canceled };

fn legacy() -> LegacyStream {
    LegacyStream::new(Box::pin(futures_util::stream::empty()), BodyEnd::default(), &ExecutionSpec::of("x"))
}

fn withdrawing(kind: RequestKind, cause: EndRequestCause, progress: WithdrawProgress) -> ExecutionState {
    let unknown = match cause {
        EndRequestCause::GivenUp(_) => Outcome::failed(Reason::BackendUnreachable, ""),
        _ => Outcome::without_process(Status::Cancelled, Reason::Canceled, None),
    };
    ExecutionState::Withdrawing(Box::new(Withdrawal { kind, cause, grace_ms: 7, unknown, progress }))
}

fn state(name: &str) -> ExecutionState {
    let canceled = || EndRequestCause::Canceled(CANCEL);
    let given_up = || EndRequestCause::GivenUp("no answer".to_owned());
    match name {
        "starting" => ExecutionState::Starting(RUN),
        "starting, may detach" => ExecutionState::Starting(RequestKind::Run { may_detach: true }),
        "attaching" => ExecutionState::Starting(RequestKind::Attach),
        "finding" => ExecutionState::Finding,
        "withdrawing" => withdrawing(RUN, canceled(), WithdrawProgress::Requested),
        "withdrawing an attachment" => withdrawing(RequestKind::Attach, canceled(), WithdrawProgress::Requested),
        "withdrawing, given up" => withdrawing(RUN, given_up(), WithdrawProgress::Requested),
        "withdrawing, accepted" => withdrawing(RUN, canceled(), WithdrawProgress::Answered(WithdrawResult::Accepted)),
        "withdrawing, not delivered" => {
            withdrawing(RUN, canceled(), WithdrawProgress::Answered(WithdrawResult::Failed))
        }
        "withdrawing, given up, not delivered" => {
            withdrawing(RUN, given_up(), WithdrawProgress::Answered(WithdrawResult::Failed))
        }
        "withdrawing, request failed" => withdrawing(RUN, canceled(), WithdrawProgress::RequestFailed),
        "withdrawing, finding" => withdrawing(RUN, canceled(), WithdrawProgress::Finding),
        "native" => ExecutionState::Native(None),
        "native, canceled" => ExecutionState::Native(Some(canceled())),
        "native, given up" => ExecutionState::Native(Some(given_up())),
        "legacy" => ExecutionState::Legacy(legacy().clocks),
        "ended" => ExecutionState::Ended,
        other => panic!("no state {other:?}"),
    }
}

fn event(name: &str) -> StateEvent {
    let message = || "message".to_owned();
    let start = || StreamStart {
        status: Status::Running,
        position: None,
        terms: StreamInfo::default(),
        alive: Heartbeat::default(),
    };
    let ended = |status, reason| {
        StateEvent::StreamEnded(ExecutionEnd::Ended(Outcome::without_process(status, reason, None).into()))
    };
    match name {
        "opened" => {
            let events = EventStream::new(Box::pin(futures_util::stream::empty()));
            StateEvent::Opened(BackendStream::Native(events), start())
        }
        "opened legacy" => StateEvent::Opened(BackendStream::Legacy(legacy()), start()),
        "refused" => StateEvent::OpenFailed(BackendError::Refused(ErrorObject::new(code::FULL, ""))),
        "refused, withdrawn" => StateEvent::OpenFailed(BackendError::Refused(ErrorObject::new(code::NOT_RUNNING, ""))),
        "unreachable" => StateEvent::OpenFailed(BackendError::Unreachable(message())),
        "rejected" => StateEvent::OpenFailed(BackendError::Rejected(message())),
        "unsure" => StateEvent::OpenFailed(BackendError::Unsure(message())),
        "restarted" => StateEvent::OpenFailed(BackendError::Restarted(message())),
        "broke off" => StateEvent::OpenFailed(BackendError::BrokeOff(message())),
        "not found" => StateEvent::NotFound(Outcome::failed(Reason::BackendLost, message())),
        "exited" => ended(Status::Completed, Reason::Exit),
        "exited, canceled" => ended(Status::Cancelled, Reason::Canceled),
        "taken over" => StateEvent::StreamEnded(ExecutionEnd::TakenOver),
        "accepted" => StateEvent::Withdrawn(WithdrawResult::Accepted),
        "never ran" => StateEvent::Withdrawn(WithdrawResult::NeverRan),
        "withdrawn from another" => StateEvent::Withdrawn(WithdrawResult::TakenOver),
        "unsupported" => StateEvent::Withdrawn(WithdrawResult::Unsupported),
        "withdrawal failed" => StateEvent::Withdrawn(WithdrawResult::Failed),
        "open overdue" => StateEvent::OpenOverdue,
        "withdraw overdue" => StateEvent::WithdrawOverdue,
        "cancel" => StateEvent::Cancel(Cancellation { grace_ms: 3, reason: CancelReason::Canceled }),
        "drain" => StateEvent::Cancel(Cancellation { grace_ms: 3, reason: CancelReason::Drained }),
        "release" => StateEvent::Release,
        other => panic!("no event {other:?}"),
    }
}

const EVENTS: [&str; 23] = [
    "opened",
    "opened legacy",
    "refused",
    "refused, withdrawn",
    "unreachable",
    "rejected",
    "unsure",
    "restarted",
    "broke off",
    "not found",
    "exited",
    "exited, canceled",
    "taken over",
    "accepted",
    "never ran",
    "withdrawn from another",
    "unsupported",
    "withdrawal failed",
    "open overdue",
    "withdraw overdue",
    "cancel",
    "drain",
    "release",
];

fn name_of(state: &ExecutionState) -> &'static str {
    let cause = |cause: &EndRequestCause| match cause {
        EndRequestCause::Canceled(_) => 0,
        EndRequestCause::GivenUp(_) => 1,
        EndRequestCause::Released => 2,
    };
    match state {
        ExecutionState::Starting(_) => "starting",
        ExecutionState::Finding => "finding",
        ExecutionState::Withdrawing(withdrawal) => match (&withdrawal.progress, cause(&withdrawal.cause)) {
            (WithdrawProgress::Requested, 0) => "withdrawing",
            (WithdrawProgress::Requested, _) => "withdrawing, given up",
            (WithdrawProgress::Answered(WithdrawResult::Failed), _) => "withdrawing, not delivered",
            (WithdrawProgress::Answered(_), _) => "withdrawing, accepted",
            (WithdrawProgress::RequestFailed, _) => "withdrawing, request failed",
            (WithdrawProgress::Finding, _) => "withdrawing, finding",
        },
        ExecutionState::Native(None) => "native",
        ExecutionState::Native(Some(named)) => {
            ["native, canceled", "native, given up", "native, released"][cause(named)]
        }
        ExecutionState::Legacy(_) => "legacy",
        ExecutionState::Ended => "ended",
    }
}

fn describe(action: &StateAction) -> String {
    match action {
        StateAction::Relay(..) => "relay".to_owned(),
        StateAction::DropRequest => "drop request".to_owned(),
        StateAction::Withdraw { cancellation, for_client, patience } => {
            let of = if *for_client { "client" } else { "gateway" };
            format!("withdraw {} ms for {of}, wait {} s", cancellation.grace_ms, patience.as_secs())
        }
        StateAction::Cancel(cancellation) => format!("cancel {} ms", cancellation.grace_ms),
        StateAction::Find(unless_found) => format!("find, or {}", describe_outcome(unless_found)),
        StateAction::Refuse(error) => format!("refuse {}", error.code),
        StateAction::HandOver => "hand over".to_owned(),
        StateAction::Finish(outcome) => describe_outcome(outcome),
        StateAction::Stop => "stop".to_owned(),
    }
}

fn describe_outcome(outcome: &Outcome) -> String {
    let evidence = outcome.cancel.map(|cancel| format!(" {}", cancel.evidence.as_str())).unwrap_or_default();
    format!("{} {}{evidence}", outcome.status.as_str(), outcome.reason.as_str())
}

/// The actions of an event, and the state after it.
fn step(state: &mut ExecutionState, name: &str) -> String {
    let actions: Vec<String> = state.on(event(name), Instant::now()).iter().map(describe).collect();
    format!("{} -> {}", actions.join(", "), name_of(state)).trim_start().to_owned()
}

#[test]
fn each_event_has_its_step_in_each_state() {
    // Every event that is not listed for a state is ignored there.
    let table: &[(&str, &[(&str, &str)])] = &[
        (
            "starting",
            &[
                ("opened", "relay -> native"),
                ("opened legacy", "relay -> legacy"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "refuse -32003 -> ended"),
                ("unreachable", "FAILED backend_unreachable -> ended"),
                ("rejected", "FAILED backend_rejected -> ended"),
                ("unsure", "withdraw 0 ms for gateway, wait 1 s -> withdrawing, request failed"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("open overdue", "withdraw 0 ms for gateway, wait 1 s -> withdrawing, given up"),
                ("cancel", "withdraw 3 ms for client, wait 10 s -> withdrawing"),
                ("drain", "withdraw 3 ms for gateway, wait 10 s -> withdrawing"),
                ("release", "drop request, withdraw 0 ms for gateway, wait 10 s -> withdrawing, request failed"),
            ],
        ),
        (
            "starting, may detach",
            &[
                ("opened", "relay -> native"),
                ("opened legacy", "relay -> legacy"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "refuse -32003 -> ended"),
                ("unreachable", "FAILED backend_unreachable -> ended"),
                ("rejected", "FAILED backend_rejected -> ended"),
                ("unsure", "withdraw 0 ms for gateway, wait 1 s -> withdrawing, request failed"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "find, or FAILED backend_lost -> finding"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("open overdue", "withdraw 0 ms for gateway, wait 1 s -> withdrawing, given up"),
                ("cancel", "withdraw 3 ms for client, wait 10 s -> withdrawing"),
                ("drain", "withdraw 3 ms for gateway, wait 10 s -> withdrawing"),
                ("release", "stop -> ended"),
            ],
        ),
        (
            "attaching",
            &[
                ("opened", "relay -> native"),
                ("opened legacy", "relay -> legacy"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "refuse -32003 -> ended"),
                ("unreachable", "refuse -32010 -> ended"),
                ("rejected", "refuse -32010 -> ended"),
                ("unsure", "refuse -32010 -> ended"),
                ("restarted", "refuse -32010 -> ended"),
                ("broke off", "refuse -32010 -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("open overdue", "refuse -32010 -> ended"),
                ("cancel", "withdraw 3 ms for client, wait 10 s -> withdrawing"),
                ("drain", "withdraw 3 ms for gateway, wait 10 s -> withdrawing"),
                ("release", "stop -> ended"),
            ],
        ),
        (
            "finding",
            &[
                ("opened", "relay -> native"),
                ("opened legacy", "relay -> legacy"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("open overdue", "withdraw 0 ms for gateway, wait 1 s -> withdrawing, given up"),
                ("cancel", "withdraw 3 ms for client, wait 10 s -> withdrawing"),
                ("drain", "withdraw 3 ms for gateway, wait 10 s -> withdrawing"),
                ("release", "stop -> ended"),
            ],
        ),
        (
            "withdrawing",
            &[
                ("opened", "relay -> native, canceled"),
                ("opened legacy", "CANCELLED canceled unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "CANCELLED canceled never_started -> ended"),
                ("unreachable", "-> withdrawing, request failed"),
                ("rejected", "-> withdrawing, request failed"),
                ("unsure", "-> withdrawing, request failed"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "-> withdrawing, request failed"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("accepted", "-> withdrawing, accepted"),
                ("never ran", "CANCELLED canceled never_started -> ended"),
                ("withdrawn from another", "-> withdrawing, accepted"),
                ("unsupported", "CANCELLED canceled unknown -> ended"),
                ("withdrawal failed", "-> withdrawing, not delivered"),
                ("withdraw overdue", "CANCELLED canceled unknown -> ended"),
                ("cancel", "cancel 3 ms -> withdrawing"),
                ("drain", "cancel 3 ms -> withdrawing"),
            ],
        ),
        (
            "withdrawing an attachment",
            &[
                ("opened", "relay -> native, canceled"),
                ("opened legacy", "CANCELLED canceled unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "refuse -32003 -> ended"),
                ("unreachable", "-> withdrawing, request failed"),
                ("rejected", "-> withdrawing, request failed"),
                ("unsure", "-> withdrawing, request failed"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "-> withdrawing, request failed"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("accepted", "-> withdrawing, accepted"),
                ("never ran", "-> withdrawing, accepted"),
                ("withdrawn from another", "-> withdrawing, accepted"),
                ("unsupported", "CANCELLED canceled unknown -> ended"),
                ("withdrawal failed", "-> withdrawing, not delivered"),
                ("withdraw overdue", "CANCELLED canceled unknown -> ended"),
                ("cancel", "cancel 3 ms -> withdrawing"),
                ("drain", "cancel 3 ms -> withdrawing"),
            ],
        ),
        (
            "withdrawing, given up",
            &[
                ("opened", "relay -> native, given up"),
                ("opened legacy", "FAILED backend_unreachable unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "FAILED backend_unreachable never_started -> ended"),
                ("unreachable", "-> withdrawing, request failed"),
                ("rejected", "-> withdrawing, request failed"),
                ("unsure", "-> withdrawing, request failed"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "-> withdrawing, request failed"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "FAILED backend_unreachable -> ended"),
                ("taken over", "hand over -> ended"),
                ("accepted", "-> withdrawing, accepted"),
                ("never ran", "FAILED backend_unreachable never_started -> ended"),
                ("withdrawn from another", "-> withdrawing, accepted"),
                ("unsupported", "FAILED backend_unreachable unknown -> ended"),
                ("withdrawal failed", "-> withdrawing, not delivered"),
                ("withdraw overdue", "FAILED backend_unreachable unknown -> ended"),
                ("cancel", "cancel 3 ms -> withdrawing"),
                ("drain", "cancel 3 ms -> withdrawing"),
            ],
        ),
        (
            "withdrawing, accepted",
            &[
                ("opened", "relay -> native, canceled"),
                ("opened legacy", "CANCELLED canceled unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "CANCELLED canceled never_started -> ended"),
                ("unreachable", "find, or CANCELLED canceled unknown -> withdrawing, finding"),
                ("rejected", "find, or CANCELLED canceled unknown -> withdrawing, finding"),
                ("unsure", "find, or CANCELLED canceled unknown -> withdrawing, finding"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "find, or CANCELLED canceled unknown -> withdrawing, finding"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("never ran", "CANCELLED canceled never_started -> ended"),
                ("unsupported", "CANCELLED canceled unknown -> ended"),
                ("withdraw overdue", "drop request, find, or CANCELLED canceled unknown -> withdrawing, finding"),
                ("cancel", "cancel 3 ms -> withdrawing, accepted"),
                ("drain", "cancel 3 ms -> withdrawing, accepted"),
            ],
        ),
        (
            "withdrawing, not delivered",
            &[
                ("opened", "relay, cancel 7 ms -> native, canceled"),
                ("opened legacy", "CANCELLED canceled unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "CANCELLED canceled never_started -> ended"),
                ("unreachable", "CANCELLED canceled unknown -> ended"),
                ("rejected", "CANCELLED canceled unknown -> ended"),
                ("unsure", "CANCELLED canceled unknown -> ended"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "CANCELLED canceled unknown -> ended"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("never ran", "CANCELLED canceled never_started -> ended"),
                ("unsupported", "CANCELLED canceled unknown -> ended"),
                ("withdraw overdue", "drop request, CANCELLED canceled unknown -> ended"),
                ("cancel", "cancel 3 ms -> withdrawing, not delivered"),
                ("drain", "cancel 3 ms -> withdrawing, not delivered"),
            ],
        ),
        (
            "withdrawing, given up, not delivered",
            &[
                ("opened", "relay -> native"),
                ("opened legacy", "FAILED backend_unreachable unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "FAILED backend_unreachable never_started -> ended"),
                ("unreachable", "FAILED backend_unreachable unknown -> ended"),
                ("rejected", "FAILED backend_unreachable unknown -> ended"),
                ("unsure", "FAILED backend_unreachable unknown -> ended"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("broke off", "FAILED backend_unreachable unknown -> ended"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "FAILED backend_unreachable -> ended"),
                ("taken over", "hand over -> ended"),
                ("never ran", "FAILED backend_unreachable never_started -> ended"),
                ("unsupported", "FAILED backend_unreachable unknown -> ended"),
                ("withdraw overdue", "drop request, FAILED backend_unreachable unknown -> ended"),
                ("cancel", "cancel 3 ms -> withdrawing, not delivered"),
                ("drain", "cancel 3 ms -> withdrawing, not delivered"),
            ],
        ),
        (
            "withdrawing, request failed",
            &[
                ("opened", "relay -> native, canceled"),
                ("opened legacy", "CANCELLED canceled unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "CANCELLED canceled never_started -> ended"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("accepted", "find, or CANCELLED canceled unknown -> withdrawing, finding"),
                ("never ran", "CANCELLED canceled never_started -> ended"),
                ("withdrawn from another", "hand over -> ended"),
                ("unsupported", "CANCELLED canceled unknown -> ended"),
                ("withdrawal failed", "CANCELLED canceled unknown -> ended"),
                ("withdraw overdue", "CANCELLED canceled unknown -> ended"),
                ("cancel", "cancel 3 ms -> withdrawing, request failed"),
                ("drain", "cancel 3 ms -> withdrawing, request failed"),
            ],
        ),
        (
            "withdrawing, finding",
            &[
                ("opened", "relay -> native, canceled"),
                ("opened legacy", "CANCELLED canceled unknown -> ended"),
                ("refused", "refuse -32009 -> ended"),
                ("refused, withdrawn", "CANCELLED canceled never_started -> ended"),
                ("restarted", "FAILED backend_lost -> ended"),
                ("not found", "FAILED backend_lost -> ended"),
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("never ran", "CANCELLED canceled never_started -> ended"),
                ("unsupported", "CANCELLED canceled unknown -> ended"),
                ("withdraw overdue", "CANCELLED canceled unknown -> ended"),
                ("cancel", "cancel 3 ms -> withdrawing, finding"),
                ("drain", "cancel 3 ms -> withdrawing, finding"),
            ],
        ),
        (
            "native",
            &[
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("cancel", "-> native, canceled"),
                ("drain", "-> native, canceled"),
                ("release", "stop -> ended"),
            ],
        ),
        (
            "native, canceled",
            &[
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("withdrawal failed", "cancel 7 ms -> native, canceled"),
                ("release", "stop -> ended"),
            ],
        ),
        (
            "native, given up",
            &[
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "FAILED backend_unreachable -> ended"),
                ("taken over", "hand over -> ended"),
                ("withdrawal failed", "-> native"),
                ("cancel", "-> native, canceled"),
                ("drain", "-> native, canceled"),
                ("release", "stop -> ended"),
            ],
        ),
        (
            "legacy",
            &[
                ("exited", "COMPLETED exit -> ended"),
                ("exited, canceled", "CANCELLED canceled -> ended"),
                ("taken over", "hand over -> ended"),
                ("cancel", "CANCELLED canceled unknown -> ended"),
                ("drain", "CANCELLED drained unknown -> ended"),
                ("release", "stop -> ended"),
            ],
        ),
        ("ended", &[]),
    ];
    for (from, steps) in table {
        for name in EVENTS {
            let mut state = state(from);
            let ignored = format!("-> {}", name_of(&state));
            let expected = steps.iter().find(|(listed, _)| *listed == name).map_or(ignored.as_str(), |(_, step)| step);
            assert_eq!(step(&mut state, name), expected, "{from}: {name}");
        }
        assert!(steps.iter().all(|(listed, _)| EVENTS.contains(listed)), "{from}");
    }
}

#[test]
fn an_execution_that_was_given_up_reports_why() {
    let mut state = state("native, given up");
    let actions = state.on(event("exited, canceled"), Instant::now());
    let [StateAction::Finish(outcome)] = actions.as_slice() else { panic!("it ends") };
    assert_eq!((outcome.status, outcome.message.as_deref()), (Status::Failed, Some("no answer")));
}

#[test]
fn the_gateway_measures_the_time_of_a_legacy_execution() {
    let mut state = state("legacy");
    let actions = state.on(event("exited"), Instant::now() + Duration::from_secs(5));
    let [StateAction::Finish(outcome)] = actions.as_slice() else { panic!("it ends") };
    assert!(outcome.elapsed_ms.is_some_and(|elapsed_ms| (5_000..6_000).contains(&elapsed_ms)), "{outcome:?}");
}

proptest! {
    #[test]
    fn exactly_one_end_is_reported_whatever_happens(
        kind in prop::sample::select(vec!["starting", "starting, may detach", "attaching"]),
        events in prop::collection::vec(prop::sample::select(EVENTS.to_vec()), 0..12),
    ) {
        let mut state = state(kind);
        let mut ends = 0;
        for name in events {
            let actions = state.on(event(name), Instant::now());
            let is_end = |action: &&StateAction| matches!(
                action,
                StateAction::Refuse(_) | StateAction::HandOver | StateAction::Finish(_) | StateAction::Stop
            );
            ends += actions.iter().filter(is_end).count();
            prop_assert_eq!(ends, usize::from(matches!(state, ExecutionState::Ended)));
        }
    }
}
