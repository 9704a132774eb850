//! Requests about executions that the backend knows by their ids.

use awc::http::Method;
use serde_json::{Value, json, value::RawValue};

use super::{client::BackendClient, error::BackendError, hold::HoldIdentity, start::query_of};
use crate::{
    backend_api::{
        Snapshot,
        control::{ControlCall, cancel_query},
    },
    id::ExecutionId,
    outcome::{CancelReason, Status},
    protocol::control::{ControlReply, ControlRequest},
    rpc::{ErrorObject, code},
    stream::PerStream,
};

/// The result of a request to end an execution whose stream has not begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WithdrawResult {
    /// It is being ended, or has ended already.
    Accepted,
    /// It never ran, and will not: the backend refuses the request for it, should that still arrive.
    NeverRan,
    /// Another consumer holds it, so the backend left it alone.
    TakenOver,
    /// The legacy image ends an execution only when its request is dropped.
    Unsupported,
    /// The backend did not answer, or another one than the holder's did.
    Failed,
}

impl BackendClient {
    /// Tells the backend how much the client of an execution has received, in the name of this hold.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn acknowledge(
        &self,
        id: ExecutionId,
        offsets: PerStream<u64>,
        hold: Option<u64>,
    ) -> Result<(), BackendError> {
        let hold = hold.map(|hold| format!("&hold={hold}")).unwrap_or_default();
        self.post(id, "ack", &format!("?{}{hold}", query_of(offsets)), &json!({})).await
    }

    /// Ends an execution whose stream has not begun. A client's cancellation ends it whichever consumer holds it; a
    /// gateway that gives up its own request names its hold.
    pub async fn withdraw(
        &self,
        id: ExecutionId,
        grace_ms: u64,
        reason: CancelReason,
        holder: &HoldIdentity,
        for_client: bool,
    ) -> WithdrawResult {
        let hold = if for_client { String::new() } else { holder.query() };
        match self.delete(id, &format!("{}{hold}", cancel_query(grace_ms, reason))).await {
            Ok(()) => WithdrawResult::Accepted,
            Err(_) if !self.knows_ids() => WithdrawResult::Unsupported,
            Err(BackendError::Refused(error)) => match error.code {
                code::UNKNOWN_EXECUTION if holder.is_gone_with_its_backend(&error) => WithdrawResult::Failed,
                code::UNKNOWN_EXECUTION => WithdrawResult::NeverRan,
                code::NOT_RUNNING if error.data.as_ref().is_some_and(|data| data["reason"] == "taken_over") => {
                    WithdrawResult::TakenOver
                }
                code::NOT_RUNNING => WithdrawResult::Accepted,
                _ => WithdrawResult::Failed,
            },
            Err(_) => WithdrawResult::Failed,
        }
    }

    /// Sends a control request for an execution, whichever consumer holds it.
    ///
    /// A cancellation returns once it is accepted: the backend sends the response's head then. Its body, which ends
    /// when the tree is gone, is not waited for. Input returns when all of it is in the pipe, which takes as long as
    /// the command does not read.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn control(&self, id: ExecutionId, request: ControlRequest) -> Result<ControlReply, BackendError> {
        match ControlCall::of(&request) {
            ControlCall::Delete { query } => self.delete(id, &query).await?,
            ControlCall::Post { action, body } => self.post(id, action, "", &body).await?,
            ControlCall::Write { action, query, data } => {
                let path = format!("/executions/{id}/{action}?{query}");
                let request = self.request_by_id("write to", Method::POST, &path)?;
                // Without a bound, because the answer comes when the command has read.
                let sent = request.content_type("application/octet-stream").send_body(data).await;
                let response = sent.map_err(|error| self.unreachable(&error))?;
                self.read(self.accepted(&format!("POST /executions/{id}/{action}"), response).await?).await?;
            }
        }
        Ok(match request {
            ControlRequest::Cancel { .. } => ControlReply::Status(Status::Cancelling),
            ControlRequest::Pause => ControlReply::Status(Status::Paused),
            ControlRequest::Resume | ControlRequest::Signal { .. } | ControlRequest::Keep { .. } => {
                ControlReply::Status(Status::Running)
            }
            ControlRequest::Resize(_) => ControlReply::Done,
            ControlRequest::Stdin(input) => ControlReply::Accepted(input.data.len()),
        })
    }

    /// A page of the client's executions, as the backend lists them. `query` is that of the gateway's own request.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn list(&self, query: &str) -> Result<Box<RawValue>, BackendError> {
        if !self.knows_ids() {
            let message = "this backend (legacy image) cannot list executions";
            return Err(BackendError::Refused(ErrorObject::new(code::NOT_ALLOWED, message)));
        }
        let _place = self.place(false).await;
        let request = "GET /executions";
        let path = if query.is_empty() { "/executions".to_owned() } else { format!("/executions?{query}") };
        let body = self.fetch(request, self.request(Method::GET, &path).send()).await?;
        serde_json::from_slice(&body).map_err(|error| self.unknown_form(request, &error))
    }

    /// The current state of an execution.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn snapshot(&self, id: ExecutionId) -> Result<Snapshot, BackendError> {
        self.snapshot_with(id, "").await
    }

    /// The same for an observer, whose question must not count as a sign of life of the execution's consumer.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn snapshot_as_observer(&self, id: ExecutionId) -> Result<Snapshot, BackendError> {
        self.snapshot_with(id, "?observe=true").await
    }

    async fn snapshot_with(&self, id: ExecutionId, query: &str) -> Result<Snapshot, BackendError> {
        let _place = self.place(false).await;
        let request = self.request_by_id("ask about", Method::GET, &format!("/executions/{id}{query}"))?;
        let name = format!("GET /executions/{id}");
        let body = self.fetch(&name, request.send()).await?;
        serde_json::from_slice(&body).map_err(|error| self.unknown_form(&name, &error))
    }

    fn unknown_form(&self, request: &str, error: &serde_json::Error) -> BackendError {
        BackendError::Rejected(format!(
            "the backend at {} answered {request} with JSON of an unknown form: {error}; gateway and backend may be different releases",
            self.url()
        ))
    }

    async fn delete(&self, id: ExecutionId, query: &str) -> Result<(), BackendError> {
        let _place = self.place(true).await;
        let request = self.request_by_id("cancel", Method::DELETE, &format!("/executions/{id}?{query}"))?;
        let response = self.head(request.send()).await?;
        self.accepted(&format!("DELETE /executions/{id}"), response).await.map(drop)
    }

    async fn post(&self, id: ExecutionId, action: &str, query: &str, body: &Value) -> Result<(), BackendError> {
        let path = format!("/executions/{id}/{action}{query}");
        let _place = self.place(false).await;
        let request = self.request_by_id(action, Method::POST, &path)?;
        self.fetch(&format!("POST /executions/{id}/{action}"), request.send_json(body)).await.map(drop)
    }
}
