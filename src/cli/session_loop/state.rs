//! The decisions of a client: [`LoopState::step`] takes an event and returns actions, or the error to exit with.
//! No I/O and no clock: time is a parameter.
//!
//! The state has two enums: the phase of the connection, and the request for the execution, which outlives connections.

mod ending;
mod reconnecting;
mod terminal;

use std::time::{Duration, Instant};

use cc_executor_actors::{
    clock::millis,
    id::{ExecutionId, InstanceId},
    protocol::execute::HoldResult,
    rpc::{ErrorObject, code},
};

use self::terminal::TerminalLink;
use super::{action::LoopAction, event::LoopEvent};
use crate::cli::{ClientError, exit, exit_code::EndRequest, reconnect::Absence, silence::HeartbeatEstimate};

/// The longest wait for the response to `execute` or `attach`. The service itself waits 10 s for its backend.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// The status in the response to `execute` if the execution ended before it ran. `attach` has none of this name.
const FAILED: &str = "failed";

/// The purpose of the client.
#[derive(Debug)]
pub(in crate::cli) enum LoopPurpose {
    /// Run a command. The client chooses the id if the execution may outlive the connection.
    Run { id: Option<ExecutionId>, on_disconnect: DisconnectAction },
    /// Follow an execution, and connect again for this time when the connection breaks. `observe` leaves it to its
    /// client; `terminal` connects the user's terminal with that of the execution.
    Attach { id: ExecutionId, reconnect: Option<Duration>, observe: bool, terminal: bool },
}

/// What happens to a command when its client is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum DisconnectAction {
    /// The service ends it.
    End,
    /// The execution continues for this time, in which the client tries to connect again.
    Reconnect(Duration),
    /// The same for a terminal session, which may also detach. The time is at most what the service allows.
    Terminal(Duration),
    /// The execution continues for this time, or for the longest that the service allows. The client prints its id and
    /// exits.
    Detach(Option<Duration>),
}

/// The phase of the connection.
#[derive(Debug)]
enum LoopPhase {
    /// The first connection is being opened.
    Connecting,
    /// The connection is open. `connected` is awaited before `execute`, because it states the backend's instance and
    /// the longest time that `--detach` may request. An absence lasts until the response.
    AwaitingConnected { opened_at: Instant, absence: Option<Absence> },
    /// `attach -it` finds out what the execution is.
    Inspecting { opened_at: Instant },
    /// The response to `execute` or `attach` is awaited.
    AwaitingAnswer { opened_at: Instant, absence: Option<Absence> },
    /// The service has accepted the request, and the output arrives.
    Following,
    /// The connection broke, and another one is being opened.
    Reconnecting(Absence),
    /// The final status has arrived, and the rest of the output is written.
    Ending,
}

/// The request for the execution, over all connections.
#[derive(Debug)]
enum RequestState {
    /// `execute` was not sent yet.
    NotSent { id: Option<ExecutionId> },
    /// `execute` was sent, to this instance of the backend if the service states it. The command may run.
    Sent { id: Option<ExecutionId>, instance: Option<InstanceId> },
    /// The service has accepted the request; this instance of the backend has the execution.
    Accepted { id: ExecutionId, instance: Option<InstanceId> },
}

impl RequestState {
    fn id(&self) -> Option<ExecutionId> {
        match self {
            RequestState::NotSent { id } | RequestState::Sent { id, .. } => *id,
            RequestState::Accepted { id, .. } => Some(*id),
        }
    }

    fn is_accepted(&self) -> bool {
        matches!(self, RequestState::Accepted { .. })
    }

    fn instance(&self) -> Option<InstanceId> {
        match self {
            RequestState::NotSent { .. } => None,
            RequestState::Sent { instance, .. } | RequestState::Accepted { instance, .. } => *instance,
        }
    }
}

type Step = Result<Vec<LoopAction>, ClientError>;

/// A client's state between two events.
#[derive(Debug)]
pub(super) struct LoopState {
    url: String,
    purpose: LoopPurpose,
    phase: LoopPhase,
    request: RequestState,
    heartbeat: HeartbeatEstimate,
    end_request: EndRequest,
    terminal: TerminalLink,
    /// When the client last continued after a suspension.
    resumed_at: Option<Instant>,
}

impl LoopState {
    /// The state before the first connection is opened.
    pub(super) fn new(url: String, purpose: LoopPurpose, heartbeat: HeartbeatEstimate) -> Self {
        let request = match purpose {
            LoopPurpose::Run { id, .. } => RequestState::NotSent { id },
            LoopPurpose::Attach { id, .. } => RequestState::Accepted { id, instance: None },
        };
        let terminal = match purpose {
            LoopPurpose::Run { on_disconnect: DisconnectAction::Terminal(_), .. } => TerminalLink::Present,
            LoopPurpose::Attach { terminal: true, .. } => TerminalLink::Unknown,
            LoopPurpose::Run { .. } | LoopPurpose::Attach { .. } => TerminalLink::None,
        };
        let (phase, end_request) = (LoopPhase::Connecting, EndRequest::NotMade);
        LoopState { url, purpose, phase, request, heartbeat, end_request, terminal, resumed_at: None }
    }

    /// When [`LoopEvent::AnswerOverdue`] is due.
    pub(super) fn answer_by(&self) -> Option<Instant> {
        match self.phase {
            LoopPhase::AwaitingConnected { opened_at, absence } | LoopPhase::AwaitingAnswer { opened_at, absence } => {
                let answer_by = opened_at + ANSWER_PATIENCE;
                Some(absence.map_or(answer_by, |absence| absence.until().min(answer_by)))
            }
            LoopPhase::Inspecting { opened_at } => Some(opened_at + ANSWER_PATIENCE),
            _ => None,
        }
    }

    /// Whether `connected` is acted on.
    pub(super) fn awaits_connected(&self) -> bool {
        matches!(self.phase, LoopPhase::AwaitingConnected { .. })
    }

    /// The cancellation to send, if the user wants the command to end. It is sent only after the request for the
    /// execution, because a session without an execution refuses it.
    fn cancel(&self) -> Option<LoopAction> {
        let is_possible =
            matches!(self.phase, LoopPhase::AwaitingAnswer { .. } | LoopPhase::Following | LoopPhase::Ending);
        (is_possible && self.end_request != EndRequest::NotMade).then_some(LoopAction::Cancel)
    }

    fn is_attached(&self) -> bool {
        matches!(self.purpose, LoopPurpose::Attach { .. })
    }

    fn observes(&self) -> bool {
        matches!(self.purpose, LoopPurpose::Attach { observe: true, .. })
    }

    fn attach(&self, id: ExecutionId) -> LoopAction {
        LoopAction::Attach { id, observe: self.observes() }
    }

    /// The error for a response that did not come in time.
    fn no_answer(&self, now: Instant) -> ClientError {
        let (fault, opened_at) = match self.phase {
            LoopPhase::AwaitingAnswer { opened_at, .. } if self.request.is_accepted() => {
                ("did not answer the request attach", opened_at)
            }
            LoopPhase::AwaitingAnswer { opened_at, .. } => ("did not answer the request execute", opened_at),
            LoopPhase::AwaitingConnected { opened_at, .. } => ("sent nothing", opened_at),
            LoopPhase::Inspecting { opened_at } => ("did not answer the request status", opened_at),
            _ => ("did not answer", now),
        };
        let seconds = now.saturating_duration_since(opened_at).as_secs();
        ClientError::new(exit::UNAVAILABLE, format!("{} {fault} within {seconds} s", self.url))
    }

    /// Takes an event. An error ends the client.
    pub(super) fn step(&mut self, event: LoopEvent, now: Instant) -> Step {
        match event {
            LoopEvent::Opened => Ok(self.on_opened(now)),
            LoopEvent::OpenFailed(error) => self.on_open_failed(error, now),
            LoopEvent::Broken(why) => self.reconnect(why, now),
            LoopEvent::AnswerOverdue => self.reconnect(self.no_answer(now), now),
            LoopEvent::EndRequested(request) => self.on_end_requested(request, now),
            LoopEvent::OutputLost(loss) => Ok(self.on_output_lost(loss)),
            LoopEvent::Connected { instance, longest_detach_ms } => Ok(self.on_connected(instance, longest_detach_ms)),
            LoopEvent::Accepted(result) => Ok(self.on_accepted(&result)),
            LoopEvent::Refused(error) => self.on_refused(&error, now),
            LoopEvent::IdPrinted(Ok(())) => Ok(vec![LoopAction::Exit(0)]),
            LoopEvent::IdPrinted(Err(loss)) => {
                // Without its id no client could follow or end the execution.
                let mut actions = self.record_loss(loss);
                actions.push(LoopAction::Cancel);
                Ok(actions)
            }
            LoopEvent::InputAnswered(answer) => Ok(on_input_answered(answer)),
            LoopEvent::StatusUpdated(progress) => {
                let period = self.heartbeat.record_update(now).map(LoopAction::ExpectFramesEvery);
                Ok(period.into_iter().chain([LoopAction::ShowProgress(progress)]).collect())
            }
            LoopEvent::Ended(outcome) => {
                self.phase = LoopPhase::Ending;
                Ok(vec![LoopAction::FinishOutput(outcome)])
            }
            LoopEvent::OutputFinished { outcome, written, lost } => {
                Ok(self.on_output_finished(&outcome, written, &lost))
            }
            LoopEvent::Detached => Err(self.taken_over()),
            LoopEvent::Inspected(answer) => self.on_inspected(answer, now),
            LoopEvent::OtherSizeSet(answer) => Ok(self.on_other_size_set(answer, now)),
            LoopEvent::DetachRequested => Ok(self.on_detach_requested()),
            LoopEvent::Kept(answer) => Ok(self.on_kept(answer)),
            LoopEvent::DropRequested => Ok(self.on_drop_requested()),
            LoopEvent::Suspending => Ok(self.on_suspending()),
            LoopEvent::Resumed => Ok(self.on_resumed(now)),
            LoopEvent::ServiceError(error) if error.code == code::SESSION_LIMIT => {
                self.reconnect(ClientError::new(exit::TEMPFAIL, error.message), now)
            }
            LoopEvent::ServiceError(error) => Ok(vec![LoopAction::Report(error.message)]),
        }
    }

    /// Requests the execution on the new connection: to run it, or to continue where its output was.
    fn on_opened(&mut self, now: Instant) -> Vec<LoopAction> {
        let absence = match self.phase {
            LoopPhase::Reconnecting(absence) => Some(absence),
            _ => None,
        };
        let opened_at = now;
        let mut actions = Vec::new();
        actions.extend(self.heartbeat.begin_connection().map(LoopAction::ExpectFramesEvery));
        let ends_with_client = matches!(self.purpose, LoopPurpose::Run { on_disconnect: DisconnectAction::End, .. });
        if let (TerminalLink::Unknown, RequestState::Accepted { id, .. }) = (self.terminal, &self.request) {
            actions.extend(self.inspect(*id, opened_at));
            return actions;
        }
        self.phase = match self.request {
            RequestState::Accepted { id, .. } => {
                actions.push(self.attach(id));
                LoopPhase::AwaitingAnswer { opened_at, absence }
            }
            RequestState::NotSent { id } | RequestState::Sent { id, .. } if ends_with_client => {
                self.request = RequestState::Sent { id, instance: None };
                actions.push(LoopAction::Execute { id, detach_ms: None, instance: None });
                LoopPhase::AwaitingAnswer { opened_at, absence }
            }
            RequestState::NotSent { .. } | RequestState::Sent { .. } => {
                LoopPhase::AwaitingConnected { opened_at, absence }
            }
        };
        actions.extend(self.cancel());
        actions
    }

    fn on_connected(&mut self, instance: Option<InstanceId>, longest_detach_ms: u64) -> Vec<LoopAction> {
        let LoopPhase::AwaitingConnected { opened_at, absence } = self.phase else { return Vec::new() };
        self.phase = LoopPhase::AwaitingAnswer { opened_at, absence };
        let detach_ms = match self.purpose {
            LoopPurpose::Run { on_disconnect: DisconnectAction::Reconnect(patience), .. } => Some(millis(patience)),
            LoopPurpose::Run { on_disconnect: DisconnectAction::Terminal(patience), .. } => {
                Some(millis(patience).min(longest_detach_ms))
            }
            LoopPurpose::Run { on_disconnect: DisconnectAction::Detach(period), .. } => {
                Some(period.map_or(longest_detach_ms, millis))
            }
            LoopPurpose::Run { on_disconnect: DisconnectAction::End, .. } | LoopPurpose::Attach { .. } => None,
        };
        let request = match self.request {
            RequestState::NotSent { id } => {
                self.request = RequestState::Sent { id, instance };
                LoopAction::Execute { id, detach_ms, instance: None }
            }
            // The command may run. Only the instance that got the request may get it again.
            RequestState::Sent { id, instance: Some(before) } => {
                LoopAction::Execute { id, detach_ms, instance: Some(before) }
            }
            // The instance is not known. `attach` cannot start the command a second time.
            RequestState::Sent { id: Some(id), instance: None } | RequestState::Accepted { id, .. } => self.attach(id),
            RequestState::Sent { id: None, instance: None } => return Vec::new(),
        };
        [Some(request), self.cancel()].into_iter().flatten().collect()
    }

    fn on_accepted(&mut self, accepted: &HoldResult<String>) -> Vec<LoopAction> {
        let HoldResult { execution_id: id, instance, .. } = *accepted;
        let is_reconnected = matches!(self.phase, LoopPhase::AwaitingAnswer { absence: Some(_), .. });
        let is_first = match self.purpose {
            LoopPurpose::Run { .. } => !self.request.is_accepted(),
            LoopPurpose::Attach { .. } => !is_reconnected,
        };
        let instance = instance.or(self.request.instance());
        self.request = RequestState::Accepted { id, instance };
        self.phase = LoopPhase::Following;
        let mut actions = Vec::new();
        if accepted.claude || accepted.agent.is_some() {
            actions.push(LoopAction::ResumeAgentOutput);
        }
        match self.purpose {
            LoopPurpose::Run { on_disconnect: DisconnectAction::Detach(_), .. } if accepted.status != FAILED => {
                actions.push(LoopAction::PrintId(id));
            }
            LoopPurpose::Run { .. } if is_first => actions.push(LoopAction::StartInput),
            LoopPurpose::Attach { .. } if is_first && self.terminal == TerminalLink::Present => {
                actions.extend([LoopAction::StartInput, LoopAction::SendSize]);
            }
            LoopPurpose::Run { .. } | LoopPurpose::Attach { .. } => {}
        }
        if is_reconnected {
            actions.push(LoopAction::Note("reconnected".to_owned()));
            if self.terminal == TerminalLink::Present && !is_first {
                actions.extend([LoopAction::ResumeInput, LoopAction::SendSize]);
            }
        }
        actions
    }
}

/// Input for a command that has just ended is not an error.
fn on_input_answered(answer: Result<(), ErrorObject>) -> Vec<LoopAction> {
    match answer {
        Ok(()) => vec![LoopAction::ContinueInput],
        Err(error) if error.code == code::NOT_RUNNING => vec![LoopAction::StopInput],
        Err(error) => vec![LoopAction::StopInput, LoopAction::Report(error.message)],
    }
}

#[cfg(test)]
mod tests;
