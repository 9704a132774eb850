//! How a client ends: by a signal, because its output cannot be written, or because the execution ended.

use std::time::Instant;

use cc_executor_actors::{outcome::Outcome, stream::PerStream};

use super::{LoopAction, LoopPhase, LoopState, RequestState, Step};
use crate::cli::{
    ClientError, exit,
    exit_code::{EndRequest, ended_by, exit_code_of},
    session_loop::event::OutputLoss,
};

/// The message of `attach` at a signal.
pub(super) const LEFT: &str =
    "no longer attached; the execution continues only if it was started with --detach, --reconnect or -it";

/// The same of `attach --observe`.
pub(super) const NO_LONGER_OBSERVING: &str = "no longer attached; the execution continues";

impl LoopState {
    fn left(&self) -> LoopAction {
        LoopAction::Report(if self.observes() { NO_LONGER_OBSERVING } else { LEFT }.to_owned())
    }

    /// Ctrl-C or SIGTERM. The first one cancels the command of `run`, the second one exits without waiting for its end.
    /// `attach` exits at the first one, and cancels nothing.
    pub(super) fn on_end_requested(&mut self, request: EndRequest, now: Instant) -> Step {
        let code = request.code().unwrap_or(EndRequest::INTERRUPTED);
        match self.phase {
            LoopPhase::Connecting => Ok(vec![LoopAction::ExitAtOnce(code)]),
            LoopPhase::Reconnecting(_) | LoopPhase::AwaitingConnected { .. }
                if matches!(self.request, RequestState::NotSent { .. }) =>
            {
                // Nothing was requested, so there is nothing to cancel.
                Ok(vec![LoopAction::ExitAtOnce(code)])
            }
            LoopPhase::Reconnecting(_) if self.is_attached() => Ok(vec![self.left(), LoopAction::ExitAtOnce(code)]),
            LoopPhase::Reconnecting(absence) => {
                if !self.end_request.record(request) {
                    return Ok(vec![LoopAction::ExitAtOnce(self.end_request.code().unwrap_or(code))]);
                }
                // The command is canceled on the next connection.
                let error = ClientError::new(exit::UNAVAILABLE, "interrupted while there was no connection");
                Ok(vec![self.try_again(absence, error, now)?])
            }
            _ if self.is_attached() => Ok(vec![self.left(), LoopAction::Exit(code)]),
            _ if self.end_request.record(request) => {
                let report = LoopAction::Report("canceling; send the signal again to exit without waiting".to_owned());
                Ok([Some(report), self.cancel()].into_iter().flatten().collect())
            }
            _ => Ok(vec![LoopAction::ExitAtOnce(self.end_request.code().unwrap_or(code))]),
        }
    }

    /// The reader of the output is gone, as in `run … | head`, or the disk is full. `run` cancels the command.
    pub(super) fn on_output_lost(&mut self, loss: OutputLoss) -> Vec<LoopAction> {
        let mut actions = self.record_loss(loss);
        if self.is_attached() {
            actions.push(LoopAction::Exit(self.end_request.code().unwrap_or(exit::IOERR)));
        } else {
            actions.extend(self.cancel());
        }
        actions
    }

    /// Records that output could not be written. The rest is discarded.
    pub(super) fn record_loss(&mut self, loss: OutputLoss) -> Vec<LoopAction> {
        let mut actions = vec![LoopAction::DiscardOutput];
        let request = match loss {
            OutputLoss::ReaderGone => EndRequest::PipeClosed,
            OutputLoss::WriteFailed(message) => {
                actions.push(LoopAction::Report(message));
                EndRequest::WriteFailed
            }
        };
        // Not recorded beside a signal, because a second request would end the client at once.
        if self.end_request == EndRequest::NotMade {
            self.end_request.record(request);
        }
        actions
    }

    pub(super) fn on_output_finished(
        &mut self,
        outcome: &Outcome,
        written: Result<(), OutputLoss>,
        lost: &PerStream<u64>,
    ) -> Vec<LoopAction> {
        let mut actions = written.err().map(|loss| self.record_loss(loss)).unwrap_or_default();
        if let Some(code) = self.end_request.code_after(outcome.reason) {
            actions.push(LoopAction::Exit(code));
            return actions;
        }
        actions.extend(ended_by(outcome).map(LoopAction::Report));
        let code = exit_code_of(outcome);
        let PerStream { stdout, stderr } = lost;
        if (*stdout, *stderr) == (0, 0) {
            actions.push(LoopAction::Exit(code));
        } else {
            // Exit code 70 replaces the command's own, so the message names that.
            let message = format!(
                "the output is incomplete: {stdout} bytes of stdout and {stderr} bytes of stderr are lost; without this loss the exit code would be {code}"
            );
            actions.extend([LoopAction::Report(message), LoopAction::Exit(exit::SOFTWARE)]);
        }
        actions
    }
}
