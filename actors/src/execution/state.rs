//! The states of an execution in its gateway, and the actions of the actor in each of them. No I/O and no clock: time
//! is a parameter.
//!
//! Start with [`ExecutionState::on`]. The end of an execution is reported exactly once, because only a change to
//! [`ExecutionState::Ended`] reports it, and no event leads out of that state.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    connect::{BackendStream, ExecutionEnd},
    legacy::clocks::LegacyClocks,
    messages::StreamStart,
};
use crate::{
    backend_client::{BackendError, WithdrawResult},
    outcome::{CancelReason, CancelReport, Outcome, Reason, Status},
    rpc::{ErrorObject, code},
};

/// How long the backend may take to send the first event.
pub(super) const FIRST_EVENT_PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to learn the outcome of an execution that was canceled before its first event.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(10);

/// The same if the gateway gave the execution up. Shorter, because the client has waited long enough already.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(1);

/// The state of an execution.
pub(super) enum ExecutionState {
    /// The backend was asked for the execution, and its first event is awaited.
    Starting(RequestKind),
    /// The stream ended before its first event. The execution may still run in its backend, where it is looked for.
    Finding,
    /// The backend was asked to end the execution before its first event.
    Withdrawing(Box<Withdrawal>),
    /// A native backend streams, and sends the outcome itself. The value is the cause of the newest request to end the
    /// execution, if there was one.
    Native(Option<EndRequestCause>),
    /// The legacy image streams. Time-outs and cancellation are done in the gateway.
    Legacy(Rc<LegacyClocks>),
    /// The end was reported, or no parent is left.
    Ended,
}

/// How the backend was asked for an execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RequestKind {
    /// To run it. If it `may_detach`, it keeps running without a client.
    Run { may_detach: bool },
    /// To attach to it.
    Attach,
}

/// An execution that is being ended before its first event. Its request is not dropped before the backend has decided,
/// because the backend would report a command without its request as disconnected.
pub(super) struct Withdrawal {
    kind: RequestKind,
    cause: EndRequestCause,
    grace_ms: u64,
    /// The outcome to report if the backend does not send one.
    unknown: Outcome,
    progress: WithdrawProgress,
}

/// Why an execution is to be ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum EndRequestCause {
    /// A cancellation was requested.
    Canceled(Cancellation),
    /// The gateway gave up, with this message.
    GivenUp(String),
    /// The client is gone.
    Released,
}

/// A requested cancellation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cancellation {
    /// Milliseconds between TERM and KILL.
    pub(super) grace_ms: u64,
    /// The reason in the outcome.
    pub(super) reason: CancelReason,
}

/// The progress of a withdrawal.
#[derive(Clone, Copy)]
enum WithdrawProgress {
    /// The stream may still begin, and the backend has not answered yet.
    Requested,
    /// The backend has answered. The stream may still begin, and then has the true outcome.
    Answered(WithdrawResult),
    /// The stream will not begin, and the backend has not answered yet.
    RequestFailed,
    /// The backend has answered, and the execution is looked for by its id.
    Finding,
}

/// An event in the life of an execution.
pub(super) enum StateEvent {
    /// The first event arrived.
    Opened(BackendStream, StreamStart),
    /// The request for the execution failed.
    OpenFailed(BackendError),
    /// The search for the execution by its id failed. This is the outcome of its [`StateAction::Find`].
    NotFound(Outcome),
    /// The stream ended.
    StreamEnded(ExecutionEnd),
    /// The backend answered the withdrawal.
    Withdrawn(WithdrawResult),
    /// [`FIRST_EVENT_PATIENCE`] is over.
    OpenOverdue,
    /// The patience of [`StateAction::Withdraw`] is over.
    WithdrawOverdue,
    /// A cancellation was requested.
    Cancel(Cancellation),
    /// The client is gone.
    Release,
}

/// An action of the actor.
pub(super) enum StateAction {
    /// Relay the stream to the parent.
    Relay(BackendStream, StreamStart),
    /// Drop the request or the search whose stream is awaited.
    DropRequest,
    /// Ask the backend to end the execution, and wait for its outcome for at most `patience`.
    Withdraw { cancellation: Cancellation, for_client: bool, patience: Duration },
    /// Send a cancellation, without waiting for the answer.
    Cancel(Cancellation),
    /// Look for the execution by its id. It has this outcome if it is not found.
    Find(Outcome),
    /// Report that the backend refused the execution, and stop.
    Refuse(ErrorObject),
    /// Report that another consumer holds the execution, and stop.
    HandOver,
    /// Report the outcome, and stop.
    Finish(Outcome),
    /// Drop the stream without a report. The backend then ends the execution, or lets it continue without a consumer.
    Stop,
}

type StateStep = (ExecutionState, Vec<StateAction>);

impl ExecutionState {
    /// Takes an event. Returns the actions, in their order.
    pub(super) fn on(&mut self, event: StateEvent, now: Instant) -> Vec<StateAction> {
        let (next, actions) = std::mem::replace(self, ExecutionState::Ended).next(event, now);
        *self = next;
        actions
    }

    fn next(self, event: StateEvent, now: Instant) -> StateStep {
        match (self, event) {
            (ExecutionState::Ended, _) => (ExecutionState::Ended, Vec::new()),
            (_, StateEvent::StreamEnded(ExecutionEnd::TakenOver)) => end_with(StateAction::HandOver),
            (state, StateEvent::StreamEnded(ExecutionEnd::Ended(outcome))) => finish(state.corrected(*outcome, now)),
            (state @ (ExecutionState::Finding | ExecutionState::Withdrawing(_)), StateEvent::NotFound(outcome)) => {
                finish(state.corrected(outcome, now))
            }
            (ExecutionState::Withdrawing(withdrawal), event) => withdrawal.next(event),

            (ExecutionState::Starting(_) | ExecutionState::Finding, StateEvent::Opened(stream, start)) => {
                let state = match &stream {
                    BackendStream::Native(_) => ExecutionState::Native(None),
                    BackendStream::Legacy(legacy) => ExecutionState::Legacy(Rc::clone(&legacy.clocks)),
                };
                (state, vec![StateAction::Relay(stream, start)])
            }
            (ExecutionState::Starting(RequestKind::Attach), StateEvent::OpenFailed(error)) => {
                end_with(StateAction::Refuse(error.into_error()))
            }
            (ExecutionState::Starting(RequestKind::Run { may_detach }), StateEvent::OpenFailed(error)) => {
                on_run_failed(error, may_detach)
            }
            (ExecutionState::Starting(RequestKind::Attach), StateEvent::OpenOverdue) => {
                end_with(StateAction::Refuse(ErrorObject::new(code::BACKEND, overdue())))
            }
            (ExecutionState::Starting(_) | ExecutionState::Finding, StateEvent::OpenOverdue) => {
                give_up(overdue(), WithdrawProgress::Requested)
            }
            (ExecutionState::Starting(kind), StateEvent::Cancel(cancellation)) => cancel_start(kind, cancellation),
            (ExecutionState::Finding, StateEvent::Cancel(cancellation)) => {
                cancel_start(RequestKind::Run { may_detach: true }, cancellation)
            }
            // The backend may have started the command, and without a client it must not run.
            (ExecutionState::Starting(kind @ RequestKind::Run { may_detach: false }), StateEvent::Release) => {
                let unknown = Outcome::without_process(Status::Cancelled, Reason::Disconnected, None);
                let (state, mut actions) =
                    withdraw(kind, EndRequestCause::Released, unknown, WithdrawProgress::RequestFailed);
                actions.insert(0, StateAction::DropRequest);
                (state, actions)
            }
            (_, StateEvent::Release) => end_with(StateAction::Stop),

            (ExecutionState::Native(_), StateEvent::Cancel(cancellation)) => {
                (ExecutionState::Native(Some(EndRequestCause::Canceled(cancellation))), Vec::new())
            }
            // The stream began before the withdrawal failed.
            (ExecutionState::Native(cause), StateEvent::Withdrawn(WithdrawResult::Failed)) => resume(cause, Vec::new()),
            (state @ ExecutionState::Legacy(_), StateEvent::Cancel(Cancellation { grace_ms, reason })) => {
                let message = "canceled by closing the connection to the backend (legacy image), which cannot report whether processes remain";
                let outcome = Outcome::without_process(Status::Cancelled, reason.into(), message.to_owned());
                let outcome = Outcome { cancel: Some(CancelReport::unknown(grace_ms)), ..outcome };
                finish(state.corrected(outcome, now))
            }
            (state, _) => (state, Vec::new()),
        }
    }

    /// The outcome to report. Only the gateway knows the time of a legacy execution, and why it gave an execution up.
    fn corrected(self, outcome: Outcome, now: Instant) -> Outcome {
        let cause = match self {
            ExecutionState::Native(cause) => cause,
            ExecutionState::Withdrawing(withdrawal) => Some(withdrawal.cause),
            ExecutionState::Legacy(clocks) => {
                return Outcome { elapsed_ms: Some(clocks.heartbeat(now).elapsed_ms), ..outcome };
            }
            _ => None,
        };
        match cause {
            // Only this gateway requested the cancellation, because of a failure.
            Some(EndRequestCause::GivenUp(message)) if outcome.reason == Reason::Canceled => Outcome {
                status: Status::Failed,
                reason: Reason::BackendUnreachable,
                message: Some(message),
                ..outcome
            },
            _ => outcome,
        }
    }
}

impl Withdrawal {
    fn next(mut self: Box<Self>, event: StateEvent) -> StateStep {
        match (self.progress, event) {
            (progress, StateEvent::Opened(stream @ BackendStream::Native(_), start)) => {
                let actions = vec![StateAction::Relay(stream, start)];
                match progress {
                    WithdrawProgress::Answered(WithdrawResult::Failed) => resume(Some(self.cause), actions),
                    _ => (ExecutionState::Native(Some(self.cause)), actions),
                }
            }
            // The legacy image ends the command because its stream is dropped.
            (
                _,
                StateEvent::Opened(BackendStream::Legacy(_), _) | StateEvent::Withdrawn(WithdrawResult::Unsupported),
            ) => self.finish_unknown(),
            (_, StateEvent::OpenFailed(BackendError::Refused(error))) => {
                // The withdrawal arrived before the request.
                if error.code == code::NOT_RUNNING && self.kind != RequestKind::Attach {
                    return self.finish_never_ran();
                }
                end_with(StateAction::Refuse(error))
            }
            (_, StateEvent::OpenFailed(BackendError::Restarted(message))) => {
                finish(Outcome::failed(Reason::BackendLost, message))
            }
            (WithdrawProgress::Answered(result), StateEvent::OpenFailed(_)) => self.settle(result),
            (WithdrawProgress::Requested, StateEvent::OpenFailed(_)) => self.wait_for(WithdrawProgress::RequestFailed),
            (_, StateEvent::Withdrawn(WithdrawResult::NeverRan)) if self.kind != RequestKind::Attach => {
                self.finish_never_ran()
            }
            (WithdrawProgress::Requested, StateEvent::Withdrawn(result)) => {
                self.wait_for(WithdrawProgress::Answered(result))
            }
            (WithdrawProgress::RequestFailed, StateEvent::Withdrawn(result)) => self.settle(result),
            (WithdrawProgress::Answered(result), StateEvent::WithdrawOverdue) => {
                let (state, mut actions) = self.settle(result);
                actions.insert(0, StateAction::DropRequest);
                (state, actions)
            }
            (_, StateEvent::WithdrawOverdue) => self.finish_unknown(),
            // The new grace may be shorter.
            (_, StateEvent::Cancel(cancellation)) => {
                self.cause = EndRequestCause::Canceled(cancellation);
                (ExecutionState::Withdrawing(self), vec![StateAction::Cancel(cancellation)])
            }
            _ => (ExecutionState::Withdrawing(self), Vec::new()),
        }
    }

    fn wait_for(mut self: Box<Self>, progress: WithdrawProgress) -> StateStep {
        self.progress = progress;
        (ExecutionState::Withdrawing(self), Vec::new())
    }

    /// The request's stream will not begin. If the backend has the execution, its output and its outcome are read by
    /// its id.
    fn settle(self: Box<Self>, result: WithdrawResult) -> StateStep {
        match result {
            WithdrawResult::TakenOver => end_with(StateAction::HandOver),
            WithdrawResult::Accepted => {
                let unknown = self.outcome(CancelReport::unknown(self.grace_ms));
                (self.wait_for(WithdrawProgress::Finding).0, vec![StateAction::Find(unknown)])
            }
            WithdrawResult::NeverRan | WithdrawResult::Unsupported | WithdrawResult::Failed => self.finish_unknown(),
        }
    }

    fn finish_unknown(&self) -> StateStep {
        finish(self.outcome(CancelReport::unknown(self.grace_ms)))
    }

    fn finish_never_ran(&self) -> StateStep {
        finish(self.outcome(CancelReport::never_ran(self.grace_ms)))
    }

    /// The outcome if the backend does not send one, with the gateway's report on the processes.
    fn outcome(&self, cancel: CancelReport) -> Outcome {
        Outcome { cancel: Some(cancel), ..self.unknown.clone() }
    }
}

/// The withdrawal did not reach the backend, and the stream has begun. A requested cancellation is sent once more; an
/// execution that the gateway had given up is relayed to its end.
fn resume(cause: Option<EndRequestCause>, mut actions: Vec<StateAction>) -> StateStep {
    let Some(EndRequestCause::Canceled(cancellation)) = cause else { return (ExecutionState::Native(None), actions) };
    actions.push(StateAction::Cancel(cancellation));
    (ExecutionState::Native(cause), actions)
}

fn on_run_failed(error: BackendError, may_detach: bool) -> StateStep {
    let (reason, message) = match error {
        BackendError::Refused(error) => return end_with(StateAction::Refuse(error)),
        BackendError::Unsure(message) => return give_up(message, WithdrawProgress::RequestFailed),
        BackendError::BrokeOff(message) if may_detach => {
            let lost = Outcome::failed(Reason::BackendLost, message);
            return (ExecutionState::Finding, vec![StateAction::Find(lost)]);
        }
        BackendError::Restarted(message) | BackendError::BrokeOff(message) => (Reason::BackendLost, message),
        BackendError::Unreachable(message) => (Reason::BackendUnreachable, message),
        BackendError::Rejected(message) => (Reason::BackendRejected, message),
    };
    finish(Outcome::failed(reason, message))
}

/// It is not known whether the execution runs, so it is withdrawn. The client has waited long enough, and waits only
/// briefly for the outcome.
fn give_up(message: String, progress: WithdrawProgress) -> StateStep {
    let unknown = Outcome::failed(Reason::BackendUnreachable, message.clone());
    withdraw(RequestKind::Run { may_detach: false }, EndRequestCause::GivenUp(message), unknown, progress)
}

fn cancel_start(kind: RequestKind, cancellation: Cancellation) -> StateStep {
    let message = "canceled before the backend had answered".to_owned();
    let unknown = Outcome::without_process(Status::Cancelled, cancellation.reason.into(), message);
    withdraw(kind, EndRequestCause::Canceled(cancellation), unknown, WithdrawProgress::Requested)
}

fn withdraw(kind: RequestKind, cause: EndRequestCause, unknown: Outcome, progress: WithdrawProgress) -> StateStep {
    let cancellation = match cause {
        EndRequestCause::Canceled(cancellation) => cancellation,
        EndRequestCause::GivenUp(_) | EndRequestCause::Released => {
            Cancellation { grace_ms: 0, reason: CancelReason::Canceled }
        }
    };
    let action = StateAction::Withdraw {
        cancellation,
        // A client's CANCEL applies whichever consumer holds the execution. A drain cancels only executions that this
        // gateway holds.
        for_client: matches!(cause, EndRequestCause::Canceled(_)) && cancellation.reason == CancelReason::Canceled,
        patience: if matches!(cause, EndRequestCause::GivenUp(_)) { GIVE_UP_PATIENCE } else { WITHDRAW_PATIENCE },
    };
    let withdrawal = Withdrawal { kind, cause, grace_ms: cancellation.grace_ms, unknown, progress };
    (ExecutionState::Withdrawing(Box::new(withdrawal)), vec![action])
}

fn end_with(action: StateAction) -> StateStep {
    (ExecutionState::Ended, vec![action])
}

fn finish(outcome: Outcome) -> StateStep {
    end_with(StateAction::Finish(outcome))
}

fn overdue() -> String {
    format!("the backend accepted the connection and sent nothing for {} s", FIRST_EVENT_PATIENCE.as_secs())
}

impl From<CancelReason> for Reason {
    fn from(reason: CancelReason) -> Reason {
        match reason {
            CancelReason::Canceled => Reason::Canceled,
            CancelReason::Drained => Reason::Drained,
        }
    }
}

#[cfg(test)]
mod tests;
