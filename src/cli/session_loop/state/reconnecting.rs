//! What a client does when its connection breaks, or when the service refuses its request.

use std::time::Instant;

use cc_executor_actors::{
    clock::millis,
    id::InstanceId,
    rpc::{ErrorObject, code},
};
use serde::Deserialize;

use super::{LoopAction, LoopPhase, LoopState, RequestState, Step, TerminalLink};
use crate::cli::{ClientError, exit, exit_code::EndRequest, exit_code_of_refusal, reconnect::Absence};

/// The flags whose parameters have other names, and milliseconds instead of seconds.
const FLAGS: [(&str, &str); 5] = [
    ("name", "--name"),
    ("timeoutMs", "--timeout"),
    ("stallTimeoutMs", "--stall-timeout"),
    ("heartbeatMs", "--heartbeat"),
    ("detachMs", "--detach or --reconnect"),
];

impl LoopState {
    pub(super) fn on_refused(&mut self, error: &ErrorObject, now: Instant) -> Step {
        let refusal = self.refusal(error);
        // Of an observer whose connection broke, the session before may still count.
        let is_temporary = matches!(error.code, code::BACKEND | code::DRAINING | code::SESSION_LIMIT)
            || (error.code == code::FULL && self.observes());
        match self.phase {
            LoopPhase::AwaitingConnected { absence: Some(_), .. }
            | LoopPhase::AwaitingAnswer { absence: Some(_), .. }
                if is_temporary =>
            {
                self.reconnect(refusal, now)
            }
            _ => Err(self.exit_error(refusal)),
        }
    }

    /// The error for a refused `execute` or `attach`. If another instance does not know the execution, the backend was
    /// restarted, which has ended the execution.
    pub(super) fn refusal(&self, error: &ErrorObject) -> ClientError {
        let code = exit_code_of_refusal(error.code);
        let instance = error.data.as_ref().and_then(|data| InstanceId::deserialize(&data["instance"]).ok());
        match (error.code, self.request.instance(), instance) {
            (code::UNKNOWN_EXECUTION, Some(before), Some(now)) if before != now => {
                ClientError::new(code, "the service was restarted; the execution ended with it")
            }
            (code::OTHER_INSTANCE, ..) => ClientError::new(
                code,
                "the service was restarted before it answered; if it had started the command, that ended with it",
            ),
            (code::UNKNOWN_EXECUTION, ..) if matches!(self.request, RequestState::Sent { .. }) => ClientError::new(
                code,
                "the service has no such execution: the command was not started, or ended when the service was restarted",
            ),
            _ => match flag_of(error) {
                Some(flag) => ClientError::new(code, format!("{flag}: {}", error.message)),
                None => ClientError::new(code, error.message.clone()),
            },
        }
    }

    /// Opens another connection after this one broke, if the execution may outlive the connection.
    pub(super) fn reconnect(&mut self, why: ClientError, now: Instant) -> Step {
        let Some(patience) = self.reconnect_patience(now) else {
            let why = match self.request.id().filter(|_| !self.is_attached()) {
                // With --detach, where the command may run.
                Some(id) => {
                    let advice =
                        format!("follow it with cc-executor attach {id}, or end it with cc-executor cancel {id}");
                    ClientError::new(why.code, format!("{}; the command may run: {advice}", why.message))
                }
                None => why,
            };
            return Err(self.exit_error(why));
        };
        let mut actions = Vec::new();
        let absence = match self.phase {
            LoopPhase::AwaitingConnected { absence: Some(absence), .. }
            | LoopPhase::AwaitingAnswer { absence: Some(absence), .. }
            | LoopPhase::Reconnecting(absence) => absence,
            _ => {
                let message = format!("{}; trying to reconnect for {} s", why.message, patience.as_secs());
                actions.push(LoopAction::Report(message));
                Absence::begin(patience, now)
            }
        };
        actions.push(self.try_again(absence, why, now)?);
        Ok(actions)
    }

    pub(super) fn try_again(
        &mut self,
        mut absence: Absence,
        error: ClientError,
        now: Instant,
    ) -> Result<LoopAction, ClientError> {
        let Some(attempt) = absence.next_attempt(now) else {
            return Err(self.exit_error(self.gave_up(absence, &error)));
        };
        self.phase = LoopPhase::Reconnecting(absence);
        Ok(LoopAction::Connect(attempt))
    }

    /// The error of a client that did not get a connection in time. `cause` is the failure of the last attempt.
    fn gave_up(&self, absence: Absence, cause: &ClientError) -> ClientError {
        let command = match (self.end_request, self.terminal) {
            (EndRequest::NotMade, TerminalLink::None) => "attach",
            (EndRequest::NotMade, _) => "attach -it",
            _ => "cancel",
        };
        let advice = match &self.request {
            RequestState::NotSent { .. } => "; the command was not started".to_owned(),
            sent => sent
                .id()
                .map(|id| format!("; the command may still run: cc-executor {command} {id}"))
                .unwrap_or_default(),
        };
        let seconds = millis(absence.patience()) / 1_000;
        let message = format!("gave up reconnecting to {} after {seconds} s: {}{advice}", self.url, cause.message);
        ClientError::new(cause.code, message)
    }

    pub(super) fn on_open_failed(&mut self, error: ClientError, now: Instant) -> Step {
        match self.phase {
            LoopPhase::Reconnecting(_) if matches!(error.code, exit::NOPERM | exit::USAGE) => {
                Err(self.exit_error(error))
            }
            LoopPhase::Reconnecting(absence) => Ok(vec![self.try_again(absence, error, now)?]),
            _ => Err(error),
        }
    }

    /// The error to exit with. A signal of the user decides its exit code, if there was one.
    pub(super) fn exit_error(&self, error: ClientError) -> ClientError {
        ClientError { code: self.end_request.code().unwrap_or(error.code), ..error }
    }
}

/// The flag of the parameter that the error names.
fn flag_of(error: &ErrorObject) -> Option<&'static str> {
    let param = error.data.as_ref()?["param"].as_str()?;
    FLAGS.iter().find_map(|(name, flag)| (*name == param).then_some(*flag))
}
