//! Starts executions on the legacy image, which takes a command and nothing else.

use awc::http::{Method, header};
use futures_util::StreamExt;
use serde_json::json;

use super::{body_end::BodyEnd, client::BackendClient, error::BackendError, start::OpenedStream};
use crate::{
    backend_api::{LegacyExecuteRequest, NDJSON},
    protocol::{CLAUDE_EXECUTOR, execute::ExecutionSpec},
    rpc::{ErrorObject, code},
};

impl BackendClient {
    pub(super) async fn execute_legacy(&self, run: &ExecutionSpec) -> Result<OpenedStream, BackendError> {
        refuse_unsupported(run)?;
        let end = BodyEnd::default();
        let (path, media_type) = match run.executor.as_deref() {
            Some(CLAUDE_EXECUTOR) => ("/execute/claude-stream", NDJSON),
            _ => ("/execute/stream", "text/plain"),
        };
        let request = self.tracked_request(Method::POST, path, end.clone()).insert_header((header::ACCEPT, media_type));
        let body = LegacyExecuteRequest { question: run.command.to_text().into_owned() };
        let response = request.send_json(&body).await.map_err(|error| self.unreachable(&error))?;
        let response = self.accepted(&format!("POST {path}"), response).await?;
        Ok(OpenedStream::Legacy(response.boxed_local(), end))
    }
}

fn refuse_unsupported(run: &ExecutionSpec) -> Result<(), BackendError> {
    let is_other = |name: &str| !["default", CLAUDE_EXECUTOR].contains(&name);
    let options = [
        ("argv", run.command.argv().is_some()),
        ("name", run.name.is_some()),
        ("cwd", run.cwd.is_some()),
        ("stdin", run.stdin),
        ("pty", run.pty.is_some()),
        ("onDisconnect", run.detach.is_some()),
        ("env", !run.env.is_empty()),
        ("claude", run.claude.is_some()),
        ("executor", run.executor.as_deref().is_some_and(is_other)),
    ];
    let Some((param, _)) = options.into_iter().find(|(_, is_requested)| *is_requested) else { return Ok(()) };
    Err(BackendError::Refused(
        ErrorObject::new(
            code::NOT_ALLOWED,
            format!("{param} is not supported by this backend (legacy image): leave it out"),
        )
        .with(json!({ "param": param, "allowed": ["default"] })),
    ))
}
