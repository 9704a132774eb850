//! Opens the stream of an execution: requests a new execution, or attaches to an existing execution.

use std::pin::Pin;

use awc::{
    error::PayloadError,
    http::{Method, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::json;

use super::{
    body_end::BodyEnd,
    client::{BackendClient, is_dead_connection},
    error::BackendError,
    hold::HoldIdentity,
    known::BackendKind,
};
use crate::{
    backend_api::{ExecuteRequest, MULTIPLEXED},
    id::ExecutionId,
    protocol::{OBSERVE, execute::ExecuteParams},
    rpc::{ErrorObject, code},
    stream::PerStream,
};

/// The most attempts to start an execution on a backend that is restarted in between.
const MAX_RESTARTS: usize = 3;

/// The body of a response, as it arrives.
pub type ResponseBody = Pin<Box<dyn Stream<Item = Result<Bytes, PayloadError>>>>;

/// The stream of an execution that the backend has accepted.
pub enum OpenedStream {
    /// From a native backend: multiplexed, with the outcome at its end.
    Native(ResponseBody),
    /// From the legacy image: standard output alone; whether it ended properly is seen below awc.
    Legacy(ResponseBody, BodyEnd),
}

impl BackendClient {
    /// Requests an execution. Returns when the response's head arrives; the caller sets the bound.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer. The code is `-32014` if the request names an instance and another one
    /// answers; nothing has started then.
    pub async fn execute(
        &self,
        id: ExecutionId,
        execute: &ExecuteParams,
        holder: &HoldIdentity,
    ) -> Result<OpenedStream, BackendError> {
        let kind = match self.known() {
            Some(kind) => kind,
            None => self.describe().await?,
        };
        match kind {
            BackendKind::Native(_) => self.execute_native(id, execute, holder).await.map(OpenedStream::Native),
            BackendKind::Legacy if execute.instance.is_some() => Err(BackendError::Refused(ErrorObject::new(
                code::OTHER_INSTANCE,
                "the legacy backend has no instance, so it cannot tell whether the command has run already: leave instance out to run it",
            ))),
            BackendKind::Legacy => self.execute_legacy(&execute.run).await,
        }
    }

    /// Each request names the backend's instance, so it can be repeated after a broken connection: the same instance
    /// knows the execution's id, and another one refuses the request.
    async fn execute_native(
        &self,
        id: ExecutionId,
        execute: &ExecuteParams,
        holder: &HoldIdentity,
    ) -> Result<ResponseBody, BackendError> {
        for _ in 0..MAX_RESTARTS {
            let instance = execute.instance.or_else(|| self.known()?.instance());
            holder.instance.set(instance);
            let request_id = instance.map(|_| holder.request);
            let body = ExecuteRequest { instance, request_id, ..ExecuteRequest::new(&execute.run, id) };
            let post = || {
                let request = self.request(Method::POST, "/execute/stream");
                request.insert_header((header::ACCEPT, MULTIPLEXED)).send_json(&body)
            };
            let first = post().await;
            let is_unsure = first.as_ref().is_err_and(is_dead_connection);
            let response = if is_unsure && instance.is_some() { post().await } else { first };
            let response = response.map_err(|error| match is_unsure || is_dead_connection(&error) {
                true => BackendError::Unsure(format!(
                    "the connection to the backend at {} broke after the execution was requested: {error}; the command may have run",
                    self.url()
                )),
                false => self.unreachable(&error),
            })?;
            match self.accepted("POST /execute/stream", response).await {
                Ok(response) => return Ok(response.boxed_local()),
                Err(BackendError::Refused(error)) if error.code == code::OTHER_INSTANCE && is_unsure => {
                    return Err(BackendError::Restarted(format!(
                        "the backend at {} was restarted while the execution was requested: if the execution had started, it ended with the old backend",
                        self.url()
                    )));
                }
                // The backend was restarted before the first request, so nothing has started: ask the new instance.
                Err(BackendError::Refused(error))
                    if error.code == code::OTHER_INSTANCE && execute.instance.is_none() =>
                {
                    self.describe().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(BackendError::Rejected(format!(
            "execution not started: the backend at {} was restarted during each of {MAX_RESTARTS} attempts; see the backend's log, then try again",
            self.url()
        )))
    }

    /// Follows a known execution from these offsets, which acknowledge the output before them. Returns when the
    /// response's head arrives; the caller sets the bound.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn attach(
        &self,
        id: ExecutionId,
        offsets: PerStream<u64>,
        holder: &HoldIdentity,
    ) -> Result<ResponseBody, BackendError> {
        if self.known().is_none() {
            self.describe().await?;
        }
        holder.instance.set(self.known().and_then(|kind| kind.instance()));
        self.follow(id, &format!("{}{}", query_of(offsets), holder.query())).await
    }

    /// Attaches again after the stream broke off, from these offsets. They do not acknowledge the output before them,
    /// because the client may not have received it. If another consumer holds the execution now, it keeps it, and the
    /// stream's only event is `taken_over`.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn attach_again(
        &self,
        id: ExecutionId,
        offsets: PerStream<u64>,
        holder: &HoldIdentity,
    ) -> Result<ResponseBody, BackendError> {
        self.follow(id, &format!("{}&arrived=false{}", query_of(offsets), holder.query())).await
    }

    /// Observes a known execution from these offsets: the request makes no hold and acknowledges nothing. Repeated by
    /// the same holder, it replaces the stream before.
    ///
    /// # Errors
    ///
    /// The backend refuses, does not answer, or is of a release that cannot do that.
    pub async fn observe(
        &self,
        id: ExecutionId,
        offsets: PerStream<u64>,
        holder: &HoldIdentity,
    ) -> Result<ResponseBody, BackendError> {
        if !self.known().is_some_and(|kind| kind.has(OBSERVE)) {
            // It may have been replaced since its last answer.
            self.describe().await?;
        }
        let known = self.known();
        if let Some(BackendKind::Native(health)) = known.as_ref().filter(|kind| !kind.has(OBSERVE)) {
            let message = format!(
                "this backend ({} {}) lets only one session follow an execution: attach without observe to take it over",
                health.server, health.version
            );
            return Err(BackendError::Refused(
                ErrorObject::new(code::NOT_ALLOWED, message).with(json!({ "param": "observe" })),
            ));
        }
        // Not when it attaches again, so that the loss of the execution with a restarted backend is noticed.
        if holder.instance.get().is_none() {
            holder.instance.set(known.and_then(|kind| kind.instance()));
        }
        let query = format!("{}&observe=true&request_id={}", query_of(offsets), holder.request);
        self.follow(id, &query).await
    }

    async fn follow(&self, id: ExecutionId, query: &str) -> Result<ResponseBody, BackendError> {
        let path = format!("/executions/{id}/stream?{query}");
        let get = || {
            let request = self.request_by_id("attach to", Method::GET, &path)?;
            Ok(request.insert_header((header::ACCEPT, MULTIPLEXED)).send())
        };
        let response = match get()?.await {
            Err(error) if is_dead_connection(&error) => get()?.await,
            response => response,
        };
        let response = response.map_err(|error| self.unreachable(&error))?;
        Ok(self.accepted(&format!("GET /executions/{id}/stream"), response).await?.boxed_local())
    }
}

/// The part of a query with the offsets of both streams.
pub(super) fn query_of(offsets: PerStream<u64>) -> String {
    format!("stdout={}&stderr={}", offsets.stdout, offsets.stderr)
}
