//! Creates an execution or attaches to one, and streams its output.

use std::{rc::Weak, sync::Arc};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use cc_executor_actors::{
    agent::claude::EXECUTOR,
    backend_api::{EXECUTION_ID_HEADER, ExecuteRequest},
    client::ClientName,
    excerpt::Quoted,
    id::{ExecutionId, InstanceId, SessionId},
    protocol::execute::ExecutionSpec,
    rpc::{
        ErrorObject, code,
        params::{Params, invalid},
    },
    stream::PerStream,
};
use jiff::Timestamp;
use log::{debug, info};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::{
    control::send_request,
    params::{has_arrived, observes, parse_id, read_claim, read_offsets, session_of},
};
use crate::{
    backend::{
        executor::ResolvedCommand,
        holds::Claim,
        job::{self, JobContext, JobLimits, JobStorage},
        job_request::JobRequest,
        output_buffer::{Consumer, ConsumerFeed, DismissReason, OutputBuffer, StoredOutput, UnreadPolicy},
        registry::{Admission, Registry, Slot},
        storage::{
            records::{RecordFile, SpecRecord},
            writer::OutputWriter,
        },
        stream::{StreamBody, StreamFormat},
        subreaper::handle::Subreapers,
    },
    server::{
        body::RequestBody,
        caller::Caller,
        connection::{self, DRAIN_PATIENCE, PeerTimeout},
        refused::Refused,
    },
};

pub(super) async fn execute(
    request: HttpRequest,
    RequestBody(body): RequestBody,
    caller: Caller,
    registry: web::Data<Registry>,
    subreapers: web::Data<Subreapers>,
) -> Result<HttpResponse, Refused> {
    let wanted = ExecuteRequest::read(&body, &registry.limits())?;
    run(&request, caller, StreamFormat::of(&request), wanted, &registry, subreapers).await
}

/// For callers of the legacy image: the response is Claude's events as they come, then the ending.
pub(super) async fn execute_claude(
    request: HttpRequest,
    RequestBody(body): RequestBody,
    caller: Caller,
    registry: web::Data<Registry>,
    subreapers: web::Data<Subreapers>,
) -> Result<HttpResponse, Refused> {
    let mut wanted = ExecuteRequest::read(&body, &registry.limits())?;
    if let Some(other) = wanted.run.executor.filter(|name| name != EXECUTOR) {
        let message =
            format!("executor must be claude here, not {}: leave it out, or POST /execute/stream", Quoted(&other));
        return Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": "executor" })).into());
    }
    wanted.run.executor = Some(EXECUTOR.to_owned());
    wanted.run.check_executor(EXECUTOR, true)?;
    run(&request, caller, StreamFormat::Claude, wanted, &registry, subreapers).await
}

async fn run(
    request: &HttpRequest,
    caller: Caller,
    format: StreamFormat,
    ExecuteRequest { run, instance, request_id }: ExecuteRequest,
    registry: &Registry,
    subreapers: web::Data<Subreapers>,
) -> Result<HttpResponse, Refused> {
    // An execution that is known here never runs again, whichever process of the backend ran it.
    if !run.execution_id.is_some_and(|id| registry.knows(&caller, id)) {
        check_instance(instance, registry)?;
    }
    let (mut consumer, feed) = consumer_of(request, registry, format, PerStream::default());
    consumer.claim = Claim::Request(request_id);
    let session = session_of(request.headers())?;
    let id = begin(run, (caller, session), registry, subreapers, consumer).await?;
    Ok(stream_of(request, registry, id, format, PerStream::default(), feed))
}

/// Refuses a request for another process of the backend: it may have run there, and must not run again here.
fn check_instance(instance: Option<InstanceId>, registry: &Registry) -> Result<(), ErrorObject> {
    match instance.filter(|instance| *instance != registry.instance()) {
        None => Ok(()),
        Some(instance) => {
            let message = format!(
                "instance {instance} of the backend is gone: the backend was restarted since; an execution of that instance has ended: leave out instance to run the command at the new one"
            );
            Err(ErrorObject::new(code::OTHER_INSTANCE, message).with(json!({ "instance": registry.instance() })))
        }
    }
}

/// Registers the execution and starts its task. If the same request is registered already, attaches to its execution
/// from the beginning.
async fn begin(
    mut run: ExecutionSpec,
    (caller, session): (Caller, Option<SessionId>),
    registry: &Registry,
    subreapers: web::Data<Subreapers>,
    consumer: Consumer,
) -> Result<ExecutionId, ErrorObject> {
    let ResolvedCommand { name: executor, run: mut to_start, agent } = registry.config().executors.resolve(&run)?;
    to_start.descriptor_limit = registry.config().descriptor_limit;
    run.executor = Some(executor.clone());
    let id = run.execution_id.unwrap_or_else(ExecutionId::random);
    let owner = caller.clone().client();
    let (slot, inbox) = match registry.admit(caller.clone(), session, id, &run)? {
        Admission::New(slot, inbox) => (slot, inbox),
        Admission::Existing => return attach_consumer(registry, &caller, id, consumer).await.map(|()| id),
    };
    // Not the values of variables, because they may be secrets.
    let names: Vec<_> = to_start.env.keys().collect();
    debug!(event = "process.command", execution_id:% = id, argv:serde = to_start.argv, env:serde = names; "execution requested");
    let config = registry.config();
    // An agent's events are delivered whole, so the longest of them must have room.
    let events = agent.as_ref().map_or(0, |job| job.agent.max_event_bytes());
    let rings = PerStream { stdout: events + config.ring_bytes, stderr: config.ring_bytes };
    let context = JobContext {
        id,
        instance: registry.instance(),
        executor,
        limits: JobLimits::of(&run),
        detach: run.detach,
        pty: run.pty,
        agent,
        config: Arc::clone(config),
    };
    let policy = run.detach.map_or(UnreadPolicy::Overwrite, |detach| UnreadPolicy::Detach(detach.overflow));
    let (storage, stored) = store(registry, &run, &context, owner, &slot).unzip();
    let output_buffer = OutputBuffer::new(policy, rings, stored, consumer);
    actix_web::rt::spawn(job::live(context, inbox, output_buffer, storage, slot, subreapers.into_inner(), to_start));
    Ok(id)
}

/// The files of an execution that may detach, if the backend has a state directory.
fn store(
    registry: &Registry,
    run: &ExecutionSpec,
    context: &JobContext,
    owner: ClientName,
    slot: &Slot,
) -> Option<(JobStorage, StoredOutput)> {
    let (detach, directory) = (run.detach?, registry.state_dir()?);
    let (entry, sealer) = (directory.entry(context.id), directory.sealer());
    let spec = SpecRecord {
        execution_id: context.id,
        owner,
        executor: context.executor.clone(),
        command: run.command.to_text().into_owned(),
        name: run.name.clone(),
        cwd: run.cwd.clone(),
        env: SpecRecord::digests(sealer, run),
        created: Timestamp::now(),
        heartbeat_ms: run.heartbeat_ms(),
        detach,
        instance: context.instance,
        request: registry.digest(run).to_text(),
    };
    let files = entry.files(PerStream::default());
    let writer = OutputWriter::create(Arc::clone(directory), entry, files.clone(), spec.sealed(sealer, context.id));
    let storage = JobStorage::new(writer, Arc::clone(directory), slot.disk_room());
    Some((storage, StoredOutput::new(files, registry.config().max_output_bytes)))
}

async fn attach_consumer(
    registry: &Registry,
    caller: &Caller,
    id: ExecutionId,
    consumer: Consumer,
) -> Result<(), ErrorObject> {
    send_request(registry, caller, id, |answer| JobRequest::Attach(Box::new(consumer), answer)).await
}

/// A consumer on the connection of this request. Only a gateway's connection has a time-out, because a person may stop
/// reading for a while.
fn consumer_of(
    request: &HttpRequest,
    registry: &Registry,
    format: StreamFormat,
    offsets: PerStream<u64>,
) -> (Consumer, ConsumerFeed) {
    let is_gateway = format == StreamFormat::Multiplexed;
    let (mut consumer, feed) = Consumer::new(offsets, is_gateway);
    consumer.peer_timeout = is_gateway.then(|| PeerTimeout::over(request, registry.config().consumer_stall)).flatten();
    (consumer, feed)
}

/// The response that streams a consumer's feed.
fn stream_of(
    request: &HttpRequest,
    registry: &Registry,
    id: ExecutionId,
    format: StreamFormat,
    offsets: PerStream<u64>,
    ConsumerFeed { items, dismissed, released }: ConsumerFeed,
) -> HttpResponse {
    let body = StreamBody::new(format, id, offsets, (items, dismissed), connection::of(request), registry.streaming());
    release_dismissed(request, released, body.liveness(), id);
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, format.content_type()))
        .insert_header((EXECUTION_ID_HEADER, id.to_string()))
        .streaming(body)
}

pub(super) async fn attach(
    request: HttpRequest,
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    caller: Caller,
    registry: web::Data<Registry>,
) -> Result<HttpResponse, Refused> {
    let format = StreamFormat::of(&request);
    let mut fields = Params::new(query.into_inner());
    let (id, offsets, has_arrived) = (parse_id(&id)?, read_offsets(&mut fields)?, has_arrived(&mut fields)?);
    let (observes, claim) = (observes(&mut fields)?, read_claim(&mut fields)?);
    let claim = match claim {
        Claim::Number(_) if observes => {
            return Err(invalid("hold", "an observer has no hold: leave hold out, or observe").into());
        }
        claim if observes => claim,
        // The client has not acknowledged these offsets, so this is the request's own gateway coming back.
        Claim::Request(Some(request)) if !has_arrived => Claim::Back(request),
        claim => claim,
    };
    fields.finish()?;
    let (mut consumer, feed) = consumer_of(&request, &registry, format, offsets);
    (consumer.has_arrived, consumer.claim) = (has_arrived, claim);
    if observes {
        send_request(&registry, &caller, id, |answer| JobRequest::Observe(Box::new(consumer), answer)).await?;
    } else {
        attach_consumer(&registry, &caller, id, consumer).await?;
    }
    Ok(stream_of(&request, &registry, id, format, offsets, feed))
}

/// Shuts down the connection of this request when its consumer is dismissed and its response has not ended: after
/// [`DRAIN_PATIENCE`] if another consumer took over, otherwise at once.
fn release_dismissed(
    request: &HttpRequest,
    dismissed: oneshot::Receiver<DismissReason>,
    body: Weak<()>,
    id: ExecutionId,
) {
    let is_due = async move {
        // The sender is dropped without a reason after the last event.
        let Ok(reason) = dismissed.await else { return false };
        if reason == DismissReason::TakenOver {
            actix_web::rt::time::sleep(DRAIN_PATIENCE).await;
        }
        body.strong_count() > 0
    };
    connection::shut_down_when(request, is_due, move || {
        info!(event = "socket.shut_down", execution_id:% = id; "a dismissed consumer does not read: its connection is shut down");
    });
}
