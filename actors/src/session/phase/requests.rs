//! The handlers of JSON-RPC calls in an open session.

use std::time::Instant;

use serde_json::{Value, json};

use super::{ByIdRequest, Effect, current::CurrentExecution, open::OpenSession, step::SessionStep};
use crate::{
    agent,
    id::ExecutionId,
    outcome::Status,
    protocol::{
        EmptyResult, Method,
        ack::AckParams,
        attach::AttachParams,
        control::{ControlParams, ControlRequest, ResizeParams},
        execute::{Acceptance, ExecuteParams},
        input::InputParams,
        notification::ServerMessage,
        status::{StatusParams, StatusResult},
    },
    rpc::{self, ErrorObject, Id, code},
    stream::PerStream,
};

impl OpenSession {
    pub(super) fn on_text(&mut self, text: &str, now: Instant, step: &mut SessionStep) {
        let call = match rpc::parse(text) {
            Ok(call) => call,
            Err(response) => return step.send(ServerMessage::Response(response)),
        };
        let id = call.id.clone();
        match Method::parse(call, &self.limits) {
            Err(error) => step.reply(id, None, Err(error)),
            Ok(Method::Ping(_)) => step.reply_quickly(id, None, Ok(json!(EmptyResult {}))),
            Ok(Method::Execute(execute)) => self.on_execute(id, Box::new(execute), step),
            Ok(Method::Attach(attach)) => self.on_attach(id, attach, step),
            Ok(Method::Control(ControlParams { execution_id, request })) => {
                self.on_control(id, execution_id, request, step);
            }
            Ok(Method::Input(InputParams { execution_id, input })) => {
                self.on_control(id, execution_id, ControlRequest::Stdin(input), step);
            }
            Ok(Method::Resize(ResizeParams { execution_id, size })) => {
                self.on_control(id, execution_id, ControlRequest::Resize(size), step);
            }
            Ok(Method::Ack(ack)) => {
                let outcome = self.on_ack(ack, step);
                step.reply_quickly(id, ack.execution_id, outcome);
            }
            Ok(Method::Status(StatusParams { execution_id })) => self.on_status(id, execution_id, now, step),
        }
    }

    fn on_execute(&mut self, id: Option<Id>, execute: Box<ExecuteParams>, step: &mut SessionStep) {
        if let Err(error) = execute.check_executor(|name| agent::named(name).is_some()) {
            return step.reply(id, None, Err(error));
        }
        if self.draining {
            return step.reply(id, None, Err(draining()));
        }
        let execution_id = execute.run.execution_id;
        let Some(current) = &self.current else {
            let execution_id = execution_id.unwrap_or_else(ExecutionId::random);
            step.effects.push(Effect::Start(execution_id, execute.clone()));
            self.current = Some(CurrentExecution::started(execution_id, execute, id));
            return;
        };
        let is_same = execution_id == Some(current.id);
        let difference = current.execute().and_then(|first| first.difference(&execute));
        let outcome = match (current.status(), difference) {
            _ if current.is_observed() => Err(already_running(current)),
            (_, Some(difference)) if is_same => Err(ErrorObject::new(
                code::PARAMS,
                format!("executionId {} runs in this session already, with another {difference}: choose a new id, or repeat the same parameters", current.id),
            )
            .with(json!({ "param": difference }))),
            (Some(status), None) if is_same => Ok(current.hold_result(Acceptance::from(status))),
            _ => Err(already_running(current)),
        };
        step.reply(id, Some(current.id), outcome);
    }

    fn on_attach(&mut self, id: Option<Id>, attach: AttachParams, step: &mut SessionStep) {
        if self.draining {
            return step.reply(id, None, Err(draining()));
        }
        let Some(current) = &self.current else {
            step.effects.push(Effect::Attach(attach));
            self.current = Some(CurrentExecution::attached(&attach, id));
            return;
        };
        let is_same = current.id == attach.execution_id && current.is_observed() == attach.observe;
        let status = current.status().filter(|_| is_same);
        let outcome = status.map(|status| current.hold_result(status)).ok_or_else(|| already_running(current));
        step.reply(id, Some(current.id), outcome);
    }

    fn on_control(
        &mut self,
        id: Option<Id>,
        target: Option<ExecutionId>,
        request: ControlRequest,
        step: &mut SessionStep,
    ) {
        let own = self.current.as_ref().map(|current| current.id);
        let is_observed = self.current.as_ref().is_some_and(CurrentExecution::is_observed);
        match target {
            Some(target) if own != Some(target) || is_observed => {
                step.effects.push(Effect::ById(id, target, ByIdRequest::Control(request)));
            }
            _ => self.control_current(id, own, request, step),
        }
    }

    /// Sends a request to the session's execution. Before the execution runs, only CANCEL is possible.
    fn control_current(
        &mut self,
        id: Option<Id>,
        execution_id: Option<ExecutionId>,
        request: ControlRequest,
        step: &mut SessionStep,
    ) {
        let is_cancel = matches!(request, ControlRequest::Cancel { .. });
        let may_be_queued = matches!(request, ControlRequest::Cancel { .. } | ControlRequest::Keep { .. });
        let refusal = match self.current.as_mut().map(|current| (current.status(), current)) {
            None if matches!(request, ControlRequest::Stdin(_) | ControlRequest::Resize(_)) => {
                ErrorObject::new(code::NOT_RUNNING, "this session holds no execution: send execute or attach first")
            }
            None => nothing_runs(),
            Some((_, current)) if current.is_observed() => only_observed(current.id, request.name()),
            Some((None, current)) if !is_cancel => not_yet(current.id, "has not started yet"),
            Some((Some(Status::Queued), current)) if !may_be_queued => not_yet(current.id, "is queued"),
            Some((_, current)) => {
                current.n_unanswered += 1;
                return step.effects.push(Effect::Control(id, request));
            }
        };
        step.reply(id, execution_id, Err(refusal));
    }

    /// From the first `ack` on, pongs acknowledge nothing of that execution.
    fn on_ack(&mut self, ack: AckParams, step: &mut SessionStep) -> Result<Value, ErrorObject> {
        let AckParams { execution_id, offsets } = ack;
        let beyond = |sent: PerStream<u64>| {
            let message = format!(
                "offsets must not be beyond what was sent: {} bytes of stdout and {} of stderr",
                sent.stdout, sent.stderr
            );
            ErrorObject::new(code::PARAMS, message).with(json!({ "param": "offsets", "asked": offsets, "max": sent }))
        };
        match (&mut self.current, execution_id) {
            (Some(current), target) if target.is_none_or(|target| target == current.id) => {
                if current.is_observed() {
                    return Err(only_observed(current.id, "ack"));
                }
                let sent = current.offsets();
                if offsets.stdout > sent.stdout || offsets.stderr > sent.stderr {
                    return Err(beyond(sent));
                }
                current.acknowledges = true;
                step.effects.extend(current.may_detach().then_some(Effect::Acknowledge(offsets)));
            }
            (_, Some(id)) => match self.ended.on_ack(id, offsets).map_err(beyond)? {
                Some(effect) => step.effects.push(effect),
                None => {
                    let message = format!("this session has no output of execution {id} to acknowledge");
                    return Err(ErrorObject::new(code::NOT_RUNNING, message));
                }
            },
            (_, None) => return Err(nothing_runs()),
        }
        Ok(json!(EmptyResult {}))
    }

    fn on_status(&mut self, id: Option<Id>, target: Option<ExecutionId>, now: Instant, step: &mut SessionStep) {
        let own = match (&self.current, &self.newest) {
            (Some(current), _) => Some(current.id),
            (None, newest) => newest.as_ref().map(|ended| ended.execution_id),
        };
        if let Some(target) = target.filter(|target| Some(*target) != own) {
            return step.effects.push(Effect::ById(id, target, ByIdRequest::Status));
        }
        let status = match (&self.current, &self.newest) {
            (Some(current), _) => current.status_update(now).map(StatusResult::Progress),
            (None, newest) => newest.clone().map(StatusResult::Ended),
        };
        step.reply(id, own, status.map(|status| json!(status)).ok_or_else(nothing_runs));
    }
}

fn already_running(current: &CurrentExecution) -> ErrorObject {
    let id = current.id;
    let message = match current.is_observed() {
        true => format!("this session observes execution {id} already: wait for its end, or open another session"),
        false => {
            format!("this session holds execution {id} already: wait for its end, cancel it, or open another session")
        }
    };
    ErrorObject::new(code::ALREADY_RUNNING, message).with(json!({ "executionId": id }))
}

/// The refusal of a request for the session's execution, which the session does not hold.
fn only_observed(id: ExecutionId, request: &str) -> ErrorObject {
    let advice = match request {
        "ack" => "an observer acknowledges nothing",
        _ => "name its executionId, or attach without observe in another session",
    };
    ErrorObject::new(code::NOT_ALLOWED, format!("{request}: this session only observes execution {id}: {advice}"))
        .with(json!({ "executionId": id }))
}

fn not_yet(id: ExecutionId, state: &str) -> ErrorObject {
    ErrorObject::new(code::NOT_RUNNING, format!("execution {id} {state}: wait for RUNNING, or send CANCEL"))
}

fn nothing_runs() -> ErrorObject {
    ErrorObject::new(
        code::NOT_RUNNING,
        "nothing is running in this session: send execute first, or name an executionId",
    )
}

fn draining() -> ErrorObject {
    ErrorObject::new(code::DRAINING, "the service is shutting down: connect again in a moment")
}
