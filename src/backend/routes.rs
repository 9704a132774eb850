//! The backend's HTTP routes.

use std::{convert::Infallible, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use bytes::Bytes;
use cc_executor_actors::{
    backend::api::{EXECUTION_ID_HEADER, Word},
    id::ExecutionId,
    protocol::{
        DEFAULT_GRACE_MS,
        fields::Fields,
        method::{Run, Signal},
        rpc::{ErrorObject, code},
    },
    terminate::{CancelReason, CancelReport, Ending},
};
use futures_util::stream;
use log::{debug, info};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    execution::{self, Ask, Item, SLOTS, Terms},
    forms::{Body, Form},
    process::Process,
    table::Table,
};
use crate::socket;

/// How long an execution may take to obey an ask that needs no waiting.
const OBEY_PATIENCE: Duration = Duration::from_secs(2);

/// Adds the routes to a service.
pub fn configure(service: &mut web::ServiceConfig) {
    service
        .app_data(web::PayloadConfig::new(16 << 20))
        .route("/health", web::get().to(health))
        .route("/ready", web::get().to(ready))
        .route("/execute/stream", web::post().to(execute))
        .route("/executions", web::get().to(list))
        .route("/executions/{id}", web::get().to(show))
        .route("/executions/{id}", web::delete().to(cancel))
        .route("/executions/{id}/signal", web::post().to(signal))
        .default_service(web::to(nothing_here));
}

async fn health(table: web::Data<Table>) -> HttpResponse {
    HttpResponse::Ok().json(table.health())
}

async fn ready(table: web::Data<Table>) -> HttpResponse {
    match table.ready() {
        Ok(()) => HttpResponse::Ok().json(json!({ "ready": true })),
        Err(error) => HttpResponse::ServiceUnavailable().json(error),
    }
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let message = format!("there is no {} {} here", request.method(), request.path());
    HttpResponse::NotFound().json(ErrorObject::new(code::METHOD, message))
}

async fn execute(request: HttpRequest, body: Bytes, table: web::Data<Table>) -> HttpResponse {
    let form = Form::accepted(request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    match begin(&body, &table).await {
        Ok((id, items)) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, form.content_type()))
            .insert_header((EXECUTION_ID_HEADER, id.to_string()))
            .streaming(Body::new(form, items, socket::of(&request))),
        Err(error) => refuse(error),
    }
}

/// Reads the request, takes a place, and starts the execution's task.
async fn begin(body: &[u8], table: &web::Data<Table>) -> Result<(ExecutionId, mpsc::Receiver<Item>), ErrorObject> {
    let run = read_run(body, table)?;
    let (executor, mut to_start) = table.config().executors.resolve(&run)?;
    to_start.descriptor_limit = table.config().descriptor_limit;
    let id = run.execution_id.unwrap_or_else(ExecutionId::random);
    let (seat, asks) = Table::seat(table, id, &executor)?;
    debug!(event = "process.command", execution_id:% = id, argv:serde = to_start.argv, env:serde = to_start.env; "execution asked for");
    let terms = Terms { id, executor, timeout_ms: run.timeout_ms, heartbeat: Duration::from_millis(run.heartbeat_ms) };
    let (items, receiver) = mpsc::channel(SLOTS);
    let keeper = table.config().keeper.clone();
    actix_web::rt::spawn(async move {
        let ending = match Process::start(&keeper, to_start).await {
            Ok(process) => execution::run(process, &terms, &items, asks, |told| seat.tell(told)).await,
            Err(error) => no_keeper(&terms, &error),
        };
        seat.end(ending.clone());
        // A consumer that is gone has no use for it.
        let _ = items.send(Item::Word(Word::Exit(ending))).await;
    });
    Ok((id, receiver))
}

/// The service itself is short of something: processes, descriptors, memory.
fn no_keeper(terms: &Terms, error: &std::io::Error) -> Ending {
    log::error!(event = "keeper.not_started", execution_id:% = terms.id; "cannot start a keeper: {error}");
    execution::not_started(format!("the backend cannot start another process: {error}"))
}

fn read_run(body: &[u8], table: &Table) -> Result<Run, ErrorObject> {
    let mut map = read_object(body)?;
    if let Some(command) = map.remove("command") {
        if map.contains_key("question") {
            return Err(ErrorObject::new(code::PARAMS, "command and question are two names of the same: send one"));
        }
        map.insert("question".to_owned(), command);
    }
    let mut fields = Fields::new(map);
    let run = Run::from_fields(&mut fields, "question", &table.limits())?;
    fields.finish()?;
    Ok(run)
}

fn read_object(body: &[u8]) -> Result<Map<String, Value>, ErrorObject> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ErrorObject::new(code::PARAMS, "the body must be a JSON object")),
        Err(error) => Err(ErrorObject::new(code::PARAMS, format!("the body is not JSON: {error}"))),
    }
}

async fn list(table: web::Data<Table>) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "executions": table.snapshots() }))
}

async fn show(id: web::Path<String>, table: web::Data<Table>) -> HttpResponse {
    match parse_id(&id).and_then(|id| table.snapshot(id)) {
        Ok(snapshot) => HttpResponse::Ok().json(snapshot),
        Err(error) => refuse(error),
    }
}

/// The head of the answer is sent as soon as the cancellation is accepted; the body when the tree is gone.
async fn cancel(id: web::Path<String>, query: web::Query<Map<String, Value>>, table: web::Data<Table>) -> HttpResponse {
    let (id, ask) = match parse_id(&id).and_then(|id| Ok((id, read_cancel(&query, &table)?))) {
        Ok(read) => read,
        Err(error) => return refuse(error),
    };
    match table.ask(id, ask) {
        Ok(gone) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .streaming(stream::once(report(gone))),
        Err(error) => {
            if error.code == code::UNKNOWN_EXECUTION {
                table.withdraw(id);
            }
            refuse(error)
        }
    }
}

fn read_cancel(query: &Map<String, Value>, table: &Table) -> Result<Ask, ErrorObject> {
    let mut fields = Fields::new(query.clone());
    let limit = table.limits().grace_ms;
    let grace_ms = match fields.string("grace_ms")? {
        None => DEFAULT_GRACE_MS,
        Some(text) => text.parse().ok().filter(|grace_ms| *grace_ms <= limit).ok_or_else(|| {
            ErrorObject::new(code::PARAMS, format!("grace_ms must be a whole number from 0 to {limit}, not {text:?}"))
        })?,
    };
    let reason = match fields.one_of("reason", &["canceled", "drained"])? {
        Some(1) => CancelReason::Drained,
        _ => CancelReason::Canceled,
    };
    fields.finish()?;
    Ok(Ask::Cancel { grace_ms, reason })
}

/// Waits until the processes are gone, and tells what is known of that.
async fn report(mut gone: watch::Receiver<Option<CancelReport>>) -> Result<Bytes, Infallible> {
    let report = gone.wait_for(Option::is_some).await.ok().and_then(|report| *report);
    // Without a report the keeper was lost, or the command never started.
    let report = report.unwrap_or(CancelReport { verified: false, survivors: None, grace_ms: 0, escalated: false });
    Ok(Bytes::from(json!(report).to_string()))
}

async fn signal(id: web::Path<String>, body: Bytes, table: web::Data<Table>) -> HttpResponse {
    match send_signal(&id, &body, &table).await {
        Ok(()) => HttpResponse::Ok().json(json!({})),
        Err(error) => refuse(error),
    }
}

async fn send_signal(id: &str, body: &[u8], table: &Table) -> Result<(), ErrorObject> {
    let id = parse_id(id)?;
    let mut fields = Fields::new(read_object(body)?);
    let signal = Signal::from_fields(&mut fields)?;
    fields.finish()?;
    let (answer, answered) = oneshot::channel();
    table.ask(id, Ask::Signal(signal.number(), answer))?;
    match tokio::time::timeout(OBEY_PATIENCE, answered).await {
        Ok(Ok(true)) => {
            info!(event = "signal.sent", execution_id:% = id, signal = signal.name(); "signal sent");
            Ok(())
        }
        Ok(_) => Err(ErrorObject::new(code::NOT_RUNNING, format!("the command of execution {id} has ended"))),
        Err(_) => Err(ErrorObject::new(code::INTERNAL, "the execution does not answer")),
    }
}

fn parse_id(text: &str) -> Result<ExecutionId, ErrorObject> {
    text.parse().map_err(|_| ErrorObject::new(code::PARAMS, format!("an execution's id is a UUID, not {text:?}")))
}

/// A refusal, with the HTTP status that belongs to its code.
pub fn refuse(error: ErrorObject) -> HttpResponse {
    let status = match error.code {
        code::PARAMS => StatusCode::BAD_REQUEST,
        code::NOT_ALLOWED => StatusCode::FORBIDDEN,
        code::UNKNOWN_EXECUTION => StatusCode::NOT_FOUND,
        code::NOT_RUNNING | code::ALREADY_RUNNING => StatusCode::CONFLICT,
        code::FULL => StatusCode::TOO_MANY_REQUESTS,
        code::DRAINING => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    HttpResponse::build(status).json(error)
}
