//! Requests to an existing execution: cancel, pause, resume, signal, resize, stdin, acknowledge.

use std::{convert::Infallible, time::Duration};

use actix_web::{HttpResponse, http::header, web};
use bytes::Bytes;
use cc_executor_actors::{
    backend_api::control::read_action,
    id::ExecutionId,
    outcome::CancelReport,
    protocol::control::ControlRequest,
    rpc::{ErrorObject, code, params::Params},
};
use futures_util::stream;
use log::info;
use serde_json::{Map, Value, json};
use tokio::sync::{oneshot, watch};

use super::params::{parse_id, read_cancellation, read_claim, read_offsets};
use crate::{
    backend::{
        holds::Claim,
        job_request::{CancelOrder, JobError, JobRequest, ReplySender},
        registry::Registry,
    },
    server::{body::RequestBody, caller::Caller, refused::Refused},
};

/// How long an execution may take to answer a request, `stdin` apart.
const REPLY_PATIENCE: Duration = Duration::from_secs(4);

/// Sends a request to an execution, and waits for the answer.
pub(super) async fn send_request(
    registry: &Registry,
    caller: &Caller,
    id: ExecutionId,
    request: impl FnOnce(ReplySender) -> JobRequest,
) -> Result<(), ErrorObject> {
    Ok(ask(registry, caller, id, request).await??)
}

/// Sends a request that is answered with a value, and waits for it.
pub(super) async fn ask<T>(
    registry: &Registry,
    caller: &Caller,
    id: ExecutionId,
    request: impl FnOnce(oneshot::Sender<T>) -> JobRequest,
) -> Result<T, ErrorObject> {
    let (answer, answered) = oneshot::channel();
    registry.send(caller, id, request(answer))?;
    match tokio::time::timeout(REPLY_PATIENCE, answered).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(JobError::JustEnded(id).into()),
        Err(_) => Err(JobError::NoReply { id, within: REPLY_PATIENCE }.into()),
    }
}

pub(super) async fn acknowledge(
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    caller: Caller,
    registry: web::Data<Registry>,
) -> Result<web::Json<Value>, Refused> {
    let mut fields = Params::new(query.into_inner());
    let (id, offsets, claim) = (parse_id(&id)?, read_offsets(&mut fields)?, read_claim(&mut fields)?);
    fields.finish()?;
    send_request(&registry, &caller, id, |answer| JobRequest::Acknowledge((offsets, claim), answer)).await?;
    Ok(web::Json(json!({})))
}

/// Sends the head of the response when the cancellation is accepted, and the body when the processes are gone.
pub(super) async fn cancel(
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    caller: Caller,
    registry: web::Data<Registry>,
) -> Result<HttpResponse, Refused> {
    let id = parse_id(&id)?;
    let cancellation = read_cancellation(query.into_inner(), &registry)?;
    let mut report = send_cancel(cancellation, &registry, &caller, id).await;
    // The id is refused from now on, unless the request that creates the execution has just arrived.
    if report.as_ref().is_err_and(|error| error.code == code::UNKNOWN_EXECUTION) && !registry.withdraw(&caller, id)? {
        report = send_cancel(cancellation, &registry, &caller, id).await;
    }
    let body = stream::once(cancel_report(report?));
    Ok(HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).streaming(body))
}

/// Sends a cancellation to the execution. The receiver gets the report when the processes are gone.
async fn send_cancel(
    (cancel, claim): (CancelOrder, Claim),
    registry: &Registry,
    caller: &Caller,
    id: ExecutionId,
) -> Result<watch::Receiver<Option<CancelReport>>, ErrorObject> {
    let report = registry.cancel_report(caller, id)?;
    match claim {
        Claim::Request(None) => registry.send(caller, id, JobRequest::Cancel(cancel))?,
        claim => send_request(registry, caller, id, |answer| JobRequest::Withdraw { claim, cancel, answer }).await?,
    }
    Ok(report)
}

/// Waits until the processes are gone, and returns the report as the body.
async fn cancel_report(mut report: watch::Receiver<Option<CancelReport>>) -> Result<Bytes, Infallible> {
    let report = report.wait_for(Option::is_some).await.ok().and_then(|report| *report);
    // Without a report the command never started.
    let report = report.unwrap_or(CancelReport::unknown(0));
    Ok(Bytes::from(json!(report).to_string()))
}

/// Carries out one of [`cc_executor_actors::backend_api::control::ACTIONS`].
pub(super) async fn control(
    action: &'static str,
    id: web::Path<String>,
    query: Map<String, Value>,
    RequestBody(body): RequestBody,
    caller: Caller,
    registry: web::Data<Registry>,
) -> Result<web::Json<Value>, Refused> {
    let id = parse_id(&id)?;
    let request = read_action(action, query, body)?;
    match request {
        ControlRequest::Stdin(_) => {
            // Without a time limit, because the answer comes when the command has read enough to make room for the
            // input.
            let (answer, answered) = oneshot::channel();
            registry.send(&caller, id, JobRequest::Control(request, answer))?;
            answered.await.unwrap_or(Err(JobError::EndedUnread(id)))?;
        }
        ControlRequest::Signal { signal } => {
            send_request(&registry, &caller, id, |answer| JobRequest::Control(request, answer)).await?;
            info!(event = "signal.sent", execution_id:% = id, signal = signal.name(); "signal sent");
        }
        _ => send_request(&registry, &caller, id, |answer| JobRequest::Control(request, answer)).await?,
    }
    Ok(web::Json(json!({})))
}
