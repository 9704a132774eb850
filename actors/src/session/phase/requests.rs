//! The handlers of the methods: what a client's call does to an open session.

use std::time::Instant;

use serde_json::json;

use super::{
    ByIdRequest, Effect, Outgoing,
    current::{CurrentExecution, accepted, attached},
    open::{Effects, Open},
};
use crate::{
    agent,
    id::ExecutionId,
    outcome::Status,
    protocol::{
        EmptyResult, Method,
        attach::AttachParams,
        control::{ControlParams, ControlRequest, ResizeParams},
        execute::ExecuteParams,
        notification::ServerMessage,
        status::{StatusParams, StatusResult},
    },
    rpc::{self, ErrorObject, Id, code},
};

impl Open {
    pub(super) fn on_text(&mut self, text: &str, now: Instant, said: &mut Effects) {
        let call = match rpc::parse(text) {
            Ok(call) => call,
            Err(response) => return said.say.push(Outgoing::Message(ServerMessage::Response(response))),
        };
        let id = call.id.clone();
        match Method::parse(call, &self.limits) {
            Err(error) => said.reply(id, None, Err(error)),
            Ok(Method::Ping(_)) => said.reply(id, None, Ok(json!(EmptyResult {}))),
            Ok(Method::Execute(execute)) => self.on_execute(id, Box::new(execute), said),
            Ok(Method::Attach(attach)) => self.on_attach(id, attach, said),
            Ok(Method::Control(ControlParams { execution_id, request })) => {
                self.on_control(id, execution_id, request, said);
            }
            Ok(Method::Input(input)) => self.on_own_control(id, None, ControlRequest::Stdin(input), said),
            Ok(Method::Resize(ResizeParams(size))) => {
                self.on_own_control(id, None, ControlRequest::Resize(size), said);
            }
            Ok(Method::Status(StatusParams { execution_id })) => self.on_status(id, execution_id, now, said),
        }
    }

    /// The session's execution, if it has a process that can be asked something.
    fn running(&mut self) -> Result<&mut CurrentExecution, ErrorObject> {
        match &mut self.hold {
            None => Err(nothing_runs()),
            Some(hold) => match hold.status() {
                None => Err(ErrorObject::new(code::NOT_RUNNING, "it has not started yet")),
                Some(Status::Queued) => {
                    Err(ErrorObject::new(code::NOT_RUNNING, "it still waits in the queue: only CANCEL reaches it"))
                }
                Some(_) => Ok(hold),
            },
        }
    }

    fn on_execute(&mut self, id: Option<Id>, execute: Box<ExecuteParams>, said: &mut Effects) {
        let asked = execute.run.execution_id;
        if let Err(error) = execute.check_executor(|name| agent::named(name).is_some()) {
            return said.reply(id, None, Err(error));
        }
        if self.draining {
            return said.reply(id, None, Err(draining()));
        }
        if let Some(hold) = &self.hold {
            let same = asked == Some(hold.id);
            let difference = hold.execute.as_ref().and_then(|held| held.difference(&execute));
            let outcome = match (hold.status(), difference) {
                (_, Some(difference)) if same => Err(ErrorObject::new(
                    code::PARAMS,
                    format!("executionId {} is this session's running execution, with another {difference}", hold.id),
                )
                .with(json!({ "param": difference }))),
                (Some(status), None) if same => Ok(accepted(hold, status)),
                _ => Err(already_running(hold.id)),
            };
            return said.reply(id, Some(hold.id), outcome);
        }
        let execution_id = asked.unwrap_or_else(ExecutionId::random);
        said.asks.push(Effect::Start(execution_id, execute.clone()));
        self.hold = Some(CurrentExecution::started(execution_id, execute, id));
    }

    fn on_attach(&mut self, id: Option<Id>, attach: AttachParams, said: &mut Effects) {
        if self.draining {
            return said.reply(id, None, Err(draining()));
        }
        match &self.hold {
            Some(hold) => {
                let outcome = match hold.status().filter(|_| hold.id == attach.execution_id) {
                    Some(status) => Ok(attached(hold, status)),
                    None => Err(already_running(hold.id)),
                };
                said.reply(id, Some(hold.id), outcome);
            }
            None => {
                said.asks.push(Effect::Follow(attach));
                self.hold = Some(CurrentExecution::followed(&attach, id));
            }
        }
    }

    fn on_control(&mut self, id: Option<Id>, asked: Option<ExecutionId>, request: ControlRequest, said: &mut Effects) {
        let own = self.hold.as_ref().filter(|hold| asked.is_none_or(|asked| asked == hold.id)).map(|hold| hold.id);
        match (own, asked) {
            (Some(own), _) => self.on_own_control(id, Some(own), request, said),
            (None, Some(asked)) => said.asks.push(Effect::Elsewhere(id, asked, ByIdRequest::Control(request))),
            (None, None) => said.reply(id, None, Err(nothing_runs())),
        }
    }

    /// Asks something of the session's own execution. Only a cancellation reaches one that does not run yet.
    fn on_own_control(
        &mut self,
        id: Option<Id>,
        own: Option<ExecutionId>,
        request: ControlRequest,
        said: &mut Effects,
    ) {
        let hold = match (&request, &mut self.hold) {
            (ControlRequest::Cancel { .. }, Some(hold)) => Ok(hold),
            _ => self.running(),
        };
        match hold {
            Ok(hold) => {
                hold.n_asked += 1;
                said.asks.push(Effect::Control(id, request));
            }
            Err(error) => said.reply(id, own, Err(error)),
        }
    }

    fn on_status(&mut self, id: Option<Id>, asked: Option<ExecutionId>, now: Instant, said: &mut Effects) {
        let own = self.hold.as_ref().map(|hold| hold.id).or(self.newest.as_ref().map(|ended| ended.execution_id));
        if let Some(asked) = asked.filter(|asked| Some(*asked) != own) {
            return said.asks.push(Effect::Elsewhere(id, asked, ByIdRequest::Status));
        }
        let newest = match (&self.hold, &self.newest) {
            (Some(hold), _) => hold.progress(now).map(StatusResult::Progress),
            (None, ended) => ended.clone().map(StatusResult::Ended),
        };
        said.reply(id, own, newest.map(|newest| json!(newest)).ok_or_else(nothing_runs));
    }
}

fn already_running(id: ExecutionId) -> ErrorObject {
    ErrorObject::new(
        code::ALREADY_RUNNING,
        format!("this session holds execution {id} already: wait for its end, cancel it, or open another session"),
    )
    .with(json!({ "executionId": id }))
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
