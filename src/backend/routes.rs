//! The backend's HTTP routes.

use std::{convert::Infallible, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use bytes::Bytes;
use cc_executor_actors::{
    agent::claude::EXECUTOR,
    backend_api::{EXECUTION_ID_HEADER, ExecuteRequest, control as control_api},
    id::{ExecutionId, InstanceId},
    outcome::CancelReport,
    protocol::{control::ControlRequest, execute::ExecutionSpec},
    rpc::{ErrorObject, code, params::Params},
    stream::PerStream,
};
use futures_util::stream;
use log::{debug, info};
use serde_json::{Map, Value, json};
use tokio::sync::{oneshot, watch};

use super::{
    executor::ResolvedCommand,
    holds::Claim,
    job::{self, JobContext, JobRequest, ReplySender},
    output_buffer::{Consumer, ConsumerFeed, OutputBuffer, UnreadPolicy},
    registry::{Admission, Registry},
    stream::{StreamBody, StreamFormat},
    subreaper::handle::Subreapers,
};
use crate::server::connection::{self, PeerTimeout};

/// How long an execution may take to obey an ask that needs no waiting.
const OBEY_PATIENCE: Duration = Duration::from_secs(4);

/// Adds the routes to a service.
pub fn configure(service: &mut web::ServiceConfig) {
    service
        .app_data(web::PayloadConfig::new(16 << 20))
        .route("/health", web::get().to(health))
        .route("/healthz", web::get().to(health))
        .route("/ready", web::get().to(ready))
        .route("/execute/stream", web::post().to(execute))
        .route("/execute/claude-stream", web::post().to(execute_claude))
        .route("/executions", web::get().to(list))
        .route("/executions/{id}", web::get().to(show))
        .route("/executions/{id}", web::delete().to(cancel))
        .route("/executions/{id}/stream", web::get().to(attach))
        .route("/executions/{id}/ack", web::post().to(acknowledge))
        .configure(control_routes)
        .default_service(web::to(nothing_here));
}

fn control_routes(service: &mut web::ServiceConfig) {
    for action in control_api::ACTIONS {
        let route =
            web::post().to(move |id: web::Path<String>, query: web::Query<Map<String, Value>>, bytes, registry| {
                control(action, id, query.into_inner(), bytes, registry)
            });
        service.route(&format!("/executions/{{id}}/{action}"), route);
    }
}

async fn health(registry: web::Data<Registry>) -> HttpResponse {
    HttpResponse::Ok().json(registry.health())
}

async fn ready(registry: web::Data<Registry>) -> HttpResponse {
    match registry.ready() {
        Ok(()) => HttpResponse::Ok().json(json!({ "ready": true })),
        Err(error) => HttpResponse::ServiceUnavailable().json(error),
    }
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let message = format!("there is no {} {} here", request.method(), request.path());
    HttpResponse::NotFound().json(ErrorObject::new(code::METHOD, message))
}

async fn execute(request: HttpRequest, body: Bytes, registry: web::Data<Registry>) -> HttpResponse {
    let format = StreamFormat::of(&request);
    run_in(&request, format, ExecuteRequest::read(&body, &registry.limits()), &registry).await
}

/// For the original's callers: Claude's events as they come, and how it ended.
async fn execute_claude(request: HttpRequest, body: Bytes, registry: web::Data<Registry>) -> HttpResponse {
    let asked = ExecuteRequest::read(&body, &registry.limits()).and_then(|asked| match asked.run.executor.as_deref() {
        None | Some(EXECUTOR) => {
            let run = ExecutionSpec { executor: Some(EXECUTOR.to_owned()), ..asked.run };
            run.check_for(EXECUTOR).map(|()| ExecuteRequest { run, ..asked })
        }
        Some(other) => {
            let message = format!("executor must be claude here, not {other:?}: leave it out, or POST /execute/stream");
            Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": "executor" })))
        }
    });
    run_in(&request, StreamFormat::Claude, asked, &registry).await
}

async fn run_in(
    request: &HttpRequest,
    format: StreamFormat,
    asked: Result<ExecuteRequest, ErrorObject>,
    registry: &web::Data<Registry>,
) -> HttpResponse {
    let begun = async {
        let ExecuteRequest { run, instance, request_id: named } = asked?;
        must_be_this(instance, registry)?;
        let (consumer, feed) = consumer_of(request, registry, format, PerStream::default());
        let subreapers = request.app_data::<web::Data<Subreapers>>().expect("every service of this role has it");
        Ok((begin(run, registry, subreapers, consumer.claiming(Claim::Request(named))).await?, feed))
    };
    match begun.await {
        Ok((id, feed)) => stream_of(request, registry, id, format, PerStream::default(), feed),
        Err(error) => refuse_by(registry, error),
    }
}

/// A request that was meant for a process of the backend before this one may have run there: it must not
/// run again here.
fn must_be_this(instance: Option<InstanceId>, registry: &Registry) -> Result<(), ErrorObject> {
    match instance.filter(|instance| *instance != registry.instance()) {
        None => Ok(()),
        Some(instance) => {
            let message = format!("instance {instance} of the backend is gone: this one was started after it");
            Err(ErrorObject::new(code::OTHER_INSTANCE, message).with(json!({ "instance": registry.instance() })))
        }
    }
}

/// Takes a place, and starts the execution's task; one that is there already is
/// followed from its beginning.
async fn begin(
    mut run: ExecutionSpec,
    registry: &web::Data<Registry>,
    subreapers: &web::Data<Subreapers>,
    consumer: Consumer,
) -> Result<ExecutionId, ErrorObject> {
    let ResolvedCommand { name: executor, run: mut to_start, agent } = registry.config().executors.resolve(&run)?;
    to_start.descriptor_limit = registry.config().descriptor_limit;
    run.executor = Some(executor.clone());
    let id = run.execution_id.unwrap_or_else(ExecutionId::random);
    let (slot, asks) = match Registry::admit(registry, id, &run)? {
        Admission::New(slot, asks) => (slot, asks),
        Admission::Existing => return follow(registry, id, consumer).await.map(|()| id),
    };
    // What a variable holds may be a secret.
    let names: Vec<_> = to_start.env.keys().collect();
    debug!(event = "process.command", execution_id:% = id, argv:serde = to_start.argv, env:serde = names; "execution asked for");
    let config = registry.config();
    let terms = JobContext {
        id,
        instance: registry.instance(),
        executor,
        timeout_ms: run.timeout_ms,
        stall_timeout_ms: run.stall_timeout_ms,
        heartbeat: Duration::from_millis(run.heartbeat_ms()),
        detach: run.detach,
        pty: run.pty,
        consumer_stall: config.consumer_stall,
        claude_exit: config.claude_exit,
        ring_bytes: config.ring_bytes,
        agent,
    };
    // An agent's events are delivered whole, so the longest of them must have room.
    let events = terms.agent.as_ref().map_or(0, |job| job.agent.max_event_bytes());
    let rings = PerStream { stdout: events + config.ring_bytes, stderr: config.ring_bytes };
    let policy = run.detach.map_or(UnreadPolicy::Overwrite, |detach| UnreadPolicy::Detach(detach.overflow));
    let output_buffer = OutputBuffer::new(policy, rings, consumer);
    let subreapers = subreapers.clone().into_inner();
    actix_web::rt::spawn(job::live(terms, asks, output_buffer, slot, subreapers, to_start));
    Ok(id)
}

async fn follow(registry: &Registry, id: ExecutionId, consumer: Consumer) -> Result<(), ErrorObject> {
    asked(registry, id, true, |answer| JobRequest::Attach(Box::new(consumer), answer)).await
}

/// A consumer on the connection of this request. Only a gateway's is watched: a person may well stop
/// reading for a while.
fn consumer_of(
    request: &HttpRequest,
    registry: &Registry,
    format: StreamFormat,
    offsets: PerStream<u64>,
) -> (Consumer, ConsumerFeed) {
    let is_gateway = format == StreamFormat::Multiplexed;
    let (consumer, feed) = Consumer::new(offsets, is_gateway);
    let watch = is_gateway.then(|| PeerTimeout::over(request, registry.config().consumer_stall)).flatten();
    (consumer.watched(watch), feed)
}

/// The response that carries what a consumer is fed.
fn stream_of(
    request: &HttpRequest,
    registry: &web::Data<Registry>,
    id: ExecutionId,
    format: StreamFormat,
    offsets: PerStream<u64>,
    ConsumerFeed { items, dismissed, released }: ConsumerFeed,
) -> HttpResponse {
    let body = StreamBody::new(
        format,
        id,
        offsets,
        (items, dismissed),
        connection::of(request),
        Registry::streaming(registry),
    );
    connection::release_dismissed(request, released, body.is_alive(), id);
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, format.content_type()))
        .insert_header((EXECUTION_ID_HEADER, id.to_string()))
        .streaming(body)
}

/// Asks something of an execution, and waits until it has obeyed.
async fn asked(
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
    obeyed(id, answered).await
}

/// Waits until an execution has obeyed.
async fn obeyed(id: ExecutionId, answered: oneshot::Receiver<Result<(), ErrorObject>>) -> Result<(), ErrorObject> {
    match tokio::time::timeout(OBEY_PATIENCE, answered).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(ErrorObject::new(code::NOT_RUNNING, format!("execution {id} has just ended"))),
        Err(_) => Err(ErrorObject::new(code::INTERNAL, format!("execution {id} does not answer"))),
    }
}

async fn attach(
    request: HttpRequest,
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    registry: web::Data<Registry>,
) -> HttpResponse {
    let format = StreamFormat::of(&request);
    let attached = async {
        let mut fields = Params::new(query.into_inner());
        let (id, offsets, has_arrived) = (parse_id(&id)?, read_offsets(&mut fields)?, has_arrived(&mut fields)?);
        let claim = match read_claim(&mut fields)? {
            // What it has read may not have arrived: it comes back for itself.
            Claim::Request(Some(request)) if !has_arrived => Claim::Back(request),
            claim => claim,
        };
        fields.finish()?;
        let (consumer, feed) = consumer_of(&request, &registry, format, offsets);
        follow(&registry, id, consumer.arrived(has_arrived).claiming(claim)).await?;
        Ok((id, offsets, feed))
    };
    match attached.await {
        Ok((id, offsets, feed)) => stream_of(&request, &registry, id, format, offsets, feed),
        Err(error) => refuse_by(&registry, error),
    }
}

async fn acknowledge(
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    registry: web::Data<Registry>,
) -> HttpResponse {
    answer(&registry, async {
        let mut fields = Params::new(query.into_inner());
        let (id, offsets, claim) = (parse_id(&id)?, read_offsets(&mut fields)?, read_claim(&mut fields)?);
        fields.finish()?;
        asked(&registry, id, true, |answer| JobRequest::Acknowledge((offsets, claim), answer)).await
    })
    .await
}

fn read_offsets(fields: &mut Params) -> Result<PerStream<u64>, ErrorObject> {
    let mut offset = |name: &str| match fields.string(name)? {
        None => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| ErrorObject::new(code::PARAMS, format!("{name} must be an offset in bytes, not {text:?}"))),
    };
    Ok(PerStream { stdout: offset("stdout")?, stderr: offset("stderr")? })
}

/// In whose name somebody acts: of a numbered hold, of a request, or of nobody in particular.
fn read_claim(fields: &mut Params) -> Result<Claim, ErrorObject> {
    let hold = fields.parsed("hold", "the number of a hold")?;
    let request = fields.parsed("request_id", "a UUID")?;
    Ok(hold.map_or(Claim::Request(request), Claim::Number))
}

/// Whether who attaches says by it that everything before its offsets has arrived.
fn has_arrived(fields: &mut Params) -> Result<bool, ErrorObject> {
    match fields.string("arrived")?.as_deref() {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(ErrorObject::new(code::PARAMS, format!("arrived must be true or false, not {other:?}"))),
    }
}

async fn answer(registry: &Registry, work: impl Future<Output = Result<(), ErrorObject>>) -> HttpResponse {
    match work.await {
        Ok(()) => HttpResponse::Ok().json(json!({})),
        Err(error) => refuse_by(registry, error),
    }
}

async fn list(registry: web::Data<Registry>) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "executions": registry.snapshots().await }))
}

async fn show(id: web::Path<String>, registry: web::Data<Registry>) -> HttpResponse {
    let id = match parse_id(&id) {
        Ok(id) => id,
        Err(error) => return refuse(error),
    };
    match registry.snapshot(id).await {
        Ok(snapshot) => HttpResponse::Ok().json(snapshot),
        Err(error) => refuse_by(&registry, error),
    }
}

/// The head of the answer is sent as soon as the cancellation is accepted; the body when the tree is gone.
async fn cancel(
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    registry: web::Data<Registry>,
) -> HttpResponse {
    let (id, cancel) = match parse_id(&id).and_then(|id| Ok((id, CancelQuery::read(&query, &registry)?))) {
        Ok(read) => read,
        Err(error) => return refuse(error),
    };
    let mut asked = cancel.ask(&registry, id).await;
    // Refused from now on, unless its request came in this moment.
    if asked.as_ref().is_err_and(|error| error.code == code::UNKNOWN_EXECUTION) && !registry.withdraw(id) {
        asked = cancel.ask(&registry, id).await;
    }
    match asked {
        Ok(gone) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .streaming(stream::once(report(gone))),
        Err(error) => refuse_by(&registry, error),
    }
}

/// What a cancellation says.
struct CancelQuery {
    cancel: ControlRequest,
    /// A gateway that gives its own request up cancels nothing that another one has by now.
    claim: Claim,
}

impl CancelQuery {
    fn read(query: &Map<String, Value>, registry: &Registry) -> Result<CancelQuery, ErrorObject> {
        let mut fields = Params::new(query.clone());
        let cancel = control_api::read_cancel(&mut fields, &registry.limits())?;
        let claim = read_claim(&mut fields)?;
        fields.finish()?;
        Ok(CancelQuery { cancel, claim })
    }

    /// Asks it of the execution; tells when the processes are gone.
    async fn ask(
        &self,
        registry: &Registry,
        id: ExecutionId,
    ) -> Result<watch::Receiver<Option<CancelReport>>, ErrorObject> {
        let CancelQuery { cancel, claim } = self;
        if *claim == Claim::Request(None) {
            return registry.ask(id, JobRequest::Control(cancel.clone(), None));
        }
        let (answer, answered) = oneshot::channel();
        let gone = registry.ask(id, JobRequest::Withdraw { claim: *claim, cancel: cancel.clone(), answer })?;
        obeyed(id, answered).await.map(|()| gone)
    }
}

/// Waits until the processes are gone, and tells what is known of that.
async fn report(mut gone: watch::Receiver<Option<CancelReport>>) -> Result<Bytes, Infallible> {
    let report = gone.wait_for(Option::is_some).await.ok().and_then(|report| *report);
    // Without a report the command never started.
    let report = report.unwrap_or(CancelReport::unknown(0));
    Ok(Bytes::from(json!(report).to_string()))
}

/// One of [`control_api::ACTIONS`].
async fn control(
    action: &'static str,
    id: web::Path<String>,
    query: Map<String, Value>,
    bytes: Bytes,
    registry: web::Data<Registry>,
) -> HttpResponse {
    answer(&registry, async {
        let id = parse_id(&id)?;
        let request = control_api::read_action(action, query, bytes)?;
        if matches!(request, ControlRequest::Stdin(_)) {
            // The answer comes when all is where the command can read it, however long that takes.
            let (answer, answered) = oneshot::channel();
            registry.ask(id, JobRequest::Control(request, Some(answer)))?;
            return answered.await.unwrap_or_else(|_| {
                Err(ErrorObject::new(code::NOT_RUNNING, format!("execution {id} ended before it had read that")))
            });
        }
        let signal = if let ControlRequest::Signal { signal } = &request { Some(*signal) } else { None };
        asked(&registry, id, false, |answer| JobRequest::Control(request, Some(answer))).await?;
        if let Some(signal) = signal {
            info!(event = "signal.sent", execution_id:% = id, signal = signal.name(); "signal sent");
        }
        Ok(())
    })
    .await
}

fn parse_id(text: &str) -> Result<ExecutionId, ErrorObject> {
    text.parse().map_err(|_| ErrorObject::new(code::PARAMS, format!("an execution's id is a UUID, not {text:?}")))
}

/// A refusal by this backend. Of an execution that it does not know it says who it is: a client can tell by
/// that whether the backend was restarted since.
fn refuse_by(registry: &Registry, error: ErrorObject) -> HttpResponse {
    if error.code == code::UNKNOWN_EXECUTION {
        return refuse(error.with(json!({ "instance": registry.instance() })));
    }
    refuse(error)
}

/// A refusal, with the HTTP status that belongs to its code.
pub fn refuse(error: ErrorObject) -> HttpResponse {
    let status = match error.code {
        code::PARAMS => StatusCode::BAD_REQUEST,
        code::NOT_ALLOWED => StatusCode::FORBIDDEN,
        code::UNKNOWN_EXECUTION => StatusCode::NOT_FOUND,
        code::NOT_RUNNING | code::ALREADY_RUNNING | code::OTHER_INSTANCE => StatusCode::CONFLICT,
        code::FULL => StatusCode::TOO_MANY_REQUESTS,
        code::DRAINING => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    HttpResponse::build(status).json(error)
}
