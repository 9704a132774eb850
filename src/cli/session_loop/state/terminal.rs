//! Terminal sessions: how `attach -it` begins, and how a client detaches, drops its connection, or is suspended.

use std::time::{Duration, Instant};

use cc_executor_actors::{
    id::ExecutionId,
    rpc::{ErrorObject, code},
};

use super::{DisconnectAction, LoopAction, LoopPhase, LoopPurpose, LoopState, RequestState, Step};
use crate::cli::{
    ClientError,
    exit_code::EndRequest,
    session_loop::event::{InspectedExecution, call},
};

/// For how long after a suspension a broken connection is taken for its consequence.
const AFTER_SUSPENSION: Duration = Duration::from_secs(30);

/// For how long a client that was suspended tries to connect again, if it would not otherwise.
const RESUME_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the user's terminal is that of the command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TerminalLink {
    /// Output is printed, and input is a plain stream.
    None,
    /// `attach -it` has not found out yet whether the execution has a terminal.
    Unknown,
    /// It is, and the client may detach.
    Present,
}

impl LoopState {
    /// The first request of `attach -it`: what the execution is, and how much it has written. Its earlier output is not
    /// shown, because it drew a screen that the command draws again.
    pub(super) fn inspect(&mut self, id: ExecutionId, opened_at: Instant) -> Vec<LoopAction> {
        self.phase = LoopPhase::Inspecting { opened_at };
        vec![LoopAction::Inspect(id)]
    }

    pub(super) fn on_inspected(&mut self, answer: Result<InspectedExecution, ErrorObject>, now: Instant) -> Step {
        let (LoopPhase::Inspecting { .. }, RequestState::Accepted { id, .. }) = (&self.phase, &self.request) else {
            return Ok(Vec::new());
        };
        match answer {
            Err(error) => Err(self.exit_error(self.refusal(&error))),
            Ok(state) if state.has_ended() => Ok(self.follow_plainly("the execution has ended", now)),
            Ok(state) => Ok(vec![LoopAction::BeginAt(state.offsets), LoopAction::SetOtherSize(*id)]),
        }
    }

    /// The terminal was given another size, so that the true one makes the command redraw its screen.
    pub(super) fn on_other_size_set(&mut self, answer: Result<(), ErrorObject>, now: Instant) -> Vec<LoopAction> {
        let (LoopPhase::Inspecting { .. }, RequestState::Accepted { id, .. }) = (&self.phase, &self.request) else {
            return Vec::new();
        };
        let id = *id;
        match answer {
            Err(error) if error.code == code::NOT_ALLOWED => {
                self.follow_plainly("the execution has no terminal; its output follows, and it gets no input", now)
            }
            // An execution in the queue has no terminal yet.
            Ok(()) | Err(_) => {
                self.terminal = TerminalLink::Present;
                self.phase = LoopPhase::AwaitingAnswer { opened_at: now, absence: None };
                vec![self.attach(id)]
            }
        }
    }

    /// `attach -it` continues as `attach`.
    fn follow_plainly(&mut self, why: &str, now: Instant) -> Vec<LoopAction> {
        self.terminal = TerminalLink::None;
        let mut actions = vec![LoopAction::Report(why.to_owned()), LoopAction::BeginAt(Default::default())];
        actions.extend(self.on_opened(now));
        actions
    }

    /// The detach keys.
    pub(super) fn on_detach_requested(&self) -> Vec<LoopAction> {
        match (self.terminal, &self.phase, &self.request) {
            (TerminalLink::Present, LoopPhase::Following, RequestState::Accepted { id, .. }) => {
                vec![LoopAction::Keep { id: *id, detach_ms: None, call: call::KEEP }]
            }
            (TerminalLink::Present, LoopPhase::Ending, _) => Vec::new(),
            _ => vec![LoopAction::Report("cannot detach while there is no connection".to_owned())],
        }
    }

    pub(super) fn on_kept(&self, answer: Result<(), ErrorObject>) -> Vec<LoopAction> {
        match (answer, self.request.id()) {
            (Ok(()), Some(id)) if !matches!(self.phase, LoopPhase::Ending) => {
                vec![LoopAction::LeaveTerminal, LoopAction::PrintId(id)]
            }
            (Ok(()), _) => Vec::new(),
            (Err(error), _) => vec![LoopAction::Report(format!("cannot detach: {}", error.message))],
        }
    }

    /// The escape that drops the connection. The execution then has the time of a client whose connection broke.
    pub(super) fn on_drop_requested(&self) -> Vec<LoopAction> {
        let come_back = |id| format!("cc-executor attach -it {id}");
        let rest = match (&self.request, &self.purpose) {
            (RequestState::NotSent { .. }, _) => "the command was not started".to_owned(),
            (request, LoopPurpose::Run { on_disconnect: DisconnectAction::Terminal(patience), .. }) => {
                let back = request.id().map(come_back).unwrap_or_default();
                format!("the command ends in {} s unless you come back: {back}", patience.as_secs_f64())
            }
            (request, _) => {
                let back = request.id().map(come_back).unwrap_or_default();
                format!("the execution continues for as long as it may without a client: {back}")
            }
        };
        let report = LoopAction::Report(format!("connection dropped; {rest}"));
        vec![LoopAction::LeaveTerminal, report, LoopAction::ExitAtOnce(EndRequest::INTERRUPTED)]
    }

    /// The user suspends the client. The service may close the session before the client continues, which must not end a
    /// command that could be detached.
    pub(super) fn on_suspending(&self) -> Vec<LoopAction> {
        self.keep_quietly(None)
    }

    /// The client continues. The shell has drawn on the terminal meanwhile.
    pub(super) fn on_resumed(&mut self, now: Instant) -> Vec<LoopAction> {
        self.resumed_at = Some(now);
        let mut actions = self.keep_quietly(Some(0));
        if let (false, RequestState::Accepted { id, .. }) = (actions.is_empty(), &self.request) {
            actions.extend([LoopAction::SetOtherSize(*id), LoopAction::SendSize]);
        }
        actions
    }

    fn keep_quietly(&self, detach_ms: Option<u64>) -> Vec<LoopAction> {
        match (self.terminal, &self.phase, &self.request) {
            (TerminalLink::Present, LoopPhase::Following, RequestState::Accepted { id, .. }) => {
                vec![LoopAction::Keep { id: *id, detach_ms, call: call::KEEP_QUIETLY }]
            }
            _ => Vec::new(),
        }
    }

    /// For how long the client tries to connect again when its connection breaks now.
    pub(super) fn reconnect_patience(&self, now: Instant) -> Option<Duration> {
        let patience = match self.purpose {
            LoopPurpose::Run {
                on_disconnect: DisconnectAction::Reconnect(patience) | DisconnectAction::Terminal(patience),
                ..
            } => Some(patience),
            LoopPurpose::Run { .. } => None,
            LoopPurpose::Attach { reconnect, .. } => reconnect,
        };
        let was_suspended = self.resumed_at.is_some_and(|at| now.saturating_duration_since(at) <= AFTER_SUSPENSION)
            && self.request.is_accepted();
        patience.or(was_suspended.then_some(RESUME_PATIENCE))
    }

    /// Another client has attached.
    pub(super) fn taken_over(&self) -> ClientError {
        self.exit_error(ClientError::new(
            crate::cli::exit::UNAVAILABLE,
            "another client has attached to the execution, which continues",
        ))
    }
}
