//! Requests to an execution that is there: cancel, pause, resume, signal, resize, input, acknowledge.

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

use super::params::{CancelQuery, parse_id, read_claim, read_offsets};
use crate::{
    backend::{
        error::refuse_by,
        holds::Claim,
        job_request::{JobError, JobRequest, ReplySender},
        registry::Registry,
    },
    server::refusal::refuse,
};

/// How long an execution may take to obey a request that needs no waiting.
const OBEY_PATIENCE: Duration = Duration::from_secs(4);

/// Sends a request to an execution, to an ended one too if `ended`, and waits until it has obeyed.
pub(super) async fn send_request(
    registry: &Registry,
    id: ExecutionId,
    ended: bool,
    ask: impl FnOnce(ReplySender) -> JobRequest,
) -> Result<(), ErrorObject> {
    let (answer, answered) = oneshot::channel();
    let ask = ask(answer);
    if ended {
        registry.ask_any(id, ask)?;
    } else {
        registry.ask(id, ask)?;
    }
    Ok(obeyed(id, answered).await?)
}

/// Waits until an execution has obeyed.
async fn obeyed(id: ExecutionId, answered: oneshot::Receiver<Result<(), JobError>>) -> Result<(), JobError> {
    match tokio::time::timeout(OBEY_PATIENCE, answered).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(JobError::JustEnded(id)),
        Err(_) => Err(JobError::NoReply(id)),
    }
}

pub(super) async fn acknowledge(
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    registry: web::Data<Registry>,
) -> HttpResponse {
    answer(&registry, async {
        let mut fields = Params::new(query.into_inner());
        let (id, offsets, claim) = (parse_id(&id)?, read_offsets(&mut fields)?, read_claim(&mut fields)?);
        fields.finish()?;
        send_request(&registry, id, true, |answer| JobRequest::Acknowledge((offsets, claim), answer)).await
    })
    .await
}

async fn answer(registry: &Registry, work: impl Future<Output = Result<(), ErrorObject>>) -> HttpResponse {
    match work.await {
        Ok(()) => HttpResponse::Ok().json(json!({})),
        Err(error) => refuse_by(registry, error),
    }
}

/// The head of the answer is sent as soon as the cancellation is accepted; the body when the tree is gone.
pub(super) async fn cancel(
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    registry: web::Data<Registry>,
) -> HttpResponse {
    let (id, cancel) = match parse_id(&id).and_then(|id| Ok((id, CancelQuery::read(&query, &registry)?))) {
        Ok(read) => read,
        Err(error) => return refuse(error),
    };
    let mut asked = send_cancel(&cancel, &registry, id).await;
    // Refused from now on, unless its request came in this moment.
    if asked.as_ref().is_err_and(|error| error.code == code::UNKNOWN_EXECUTION) && !registry.withdraw(id) {
        asked = send_cancel(&cancel, &registry, id).await;
    }
    match asked {
        Ok(gone) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .streaming(stream::once(report(gone))),
        Err(error) => refuse_by(&registry, error),
    }
}

/// Sends a cancellation to the execution. The receiver tells when the processes are gone.
async fn send_cancel(
    cancel: &CancelQuery,
    registry: &Registry,
    id: ExecutionId,
) -> Result<watch::Receiver<Option<CancelReport>>, ErrorObject> {
    let CancelQuery { cancel, claim } = cancel;
    if *claim == Claim::Request(None) {
        return Ok(registry.ask(id, JobRequest::Cancel(*cancel))?);
    }
    let (answer, answered) = oneshot::channel();
    let gone = registry.ask(id, JobRequest::Withdraw { claim: *claim, cancel: *cancel, answer })?;
    obeyed(id, answered).await?;
    Ok(gone)
}

/// Waits until the processes are gone, and tells what is known of that.
async fn report(mut gone: watch::Receiver<Option<CancelReport>>) -> Result<Bytes, Infallible> {
    let report = gone.wait_for(Option::is_some).await.ok().and_then(|report| *report);
    // Without a report the command never started.
    let report = report.unwrap_or(CancelReport::unknown(0));
    Ok(Bytes::from(json!(report).to_string()))
}

/// One of [`cc_executor_actors::backend_api::control::ACTIONS`].
pub(super) async fn control(
    action: &'static str,
    id: web::Path<String>,
    query: Map<String, Value>,
    bytes: Bytes,
    registry: web::Data<Registry>,
) -> HttpResponse {
    answer(&registry, async {
        let id = parse_id(&id)?;
        let request = read_action(action, query, bytes)?;
        if matches!(request, ControlRequest::Stdin(_)) {
            // The answer comes when all is where the command can read it, however long that takes.
            let (answer, answered) = oneshot::channel();
            registry.ask(id, JobRequest::Control(request, answer))?;
            return Ok(answered.await.unwrap_or(Err(JobError::EndedUnread(id)))?);
        }
        let signal = if let ControlRequest::Signal { signal } = &request { Some(*signal) } else { None };
        send_request(&registry, id, false, |answer| JobRequest::Control(request, answer)).await?;
        if let Some(signal) = signal {
            info!(event = "signal.sent", execution_id:% = id, signal = signal.name(); "signal sent");
        }
        Ok(())
    })
    .await
}
