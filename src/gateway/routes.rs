//! The gateway's HTTP routes besides the WebSocket.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    body::SizedStream,
    http::{
        StatusCode,
        header::{self, ContentType},
    },
    web,
};
use cc_executor_actors::{
    backend_client::{BackendClient, BackendError, OutputResponse},
    excerpt::Quoted,
    id::ExecutionId,
    protocol::{SUBPROTOCOL, VERSION, notification::ServerInfo, schema},
    rpc::{ErrorObject, code},
    session::SessionContext,
    stream::Stream,
    supervisor::GetStats,
};
use serde_json::json;

use super::upgrade;
use crate::server::{
    caller::Caller,
    download::DownloadBody,
    refused::Refused,
    request_log::{shown_method, shown_path},
};

/// The output of one stream, as the backend has it.
const OUTPUT_PATH: &str = "/executions/{id}/output/{stream:stdout|stderr}";

/// Adds the routes to a service.
pub fn configure(service: &mut web::ServiceConfig) {
    service
        .route("/ws/mcp", web::get().to(upgrade::upgrade))
        .route("/ws", web::get().to(upgrade::upgrade))
        .route("/health", web::get().to(health))
        .route("/healthz", web::get().to(health))
        .route("/docs", web::get().to(docs))
        .route("/schema.json", web::get().to(schema))
        .route("/ready", web::get().to(ready))
        .route("/executions", web::get().to(list))
        .route(OUTPUT_PATH, web::get().to(output))
        .route(OUTPUT_PATH, web::head().to(output))
        .default_service(web::to(nothing_here));
}

/// The process is alive. A caller that is not known gets the status only.
async fn health(caller: Option<Caller>, context: web::Data<SessionContext>) -> HttpResponse {
    if caller.is_none() {
        return HttpResponse::Ok().json(json!({}));
    }
    match context.supervisor.send(GetStats).await {
        Ok(stats) => HttpResponse::Ok().json(json!({
            "server": ServerInfo::THIS.name,
            "version": ServerInfo::THIS.version,
            "role": "gateway",
            "sessions": stats.n_sessions,
            "executions": stats.n_executions,
        })),
        Err(_) => {
            HttpResponse::InternalServerError().json(ErrorObject::new(code::INTERNAL, "the supervisor does not answer"))
        }
    }
}

/// A page for people that names the protocol and its URL.
async fn docs() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::html())
        .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'"))
        .body(format!(
            include_str!("docs.html"),
            name = ServerInfo::THIS.name,
            version = ServerInfo::THIS.version,
            protocol = VERSION,
            subprotocol = SUBPROTOCOL
        ))
}

/// The JSON Schema of the protocol's messages, for a caller that is known.
async fn schema(_caller: Caller) -> HttpResponse {
    HttpResponse::Ok().json(schema::document())
}

/// The gateway and its backend accept work. A caller that is not known gets the status only.
async fn ready(caller: Option<Caller>, context: web::Data<SessionContext>) -> HttpResponse {
    let not_ready = |reason: &str, message: String| {
        let body = json!({ "ready": false, "reason": reason, "message": message });
        HttpResponse::ServiceUnavailable().json(if caller.is_some() { body } else { json!({}) })
    };
    match context.supervisor.send(GetStats).await {
        Ok(stats) if stats.draining => return not_ready("draining", "the service is shutting down".to_owned()),
        Ok(stats) if !stats.admits_newcomers => {
            return not_ready("full", format!("{} sessions are open, and no more are admitted", stats.n_sessions));
        }
        Ok(_) => {}
        Err(_) => return not_ready("draining", "the supervisor does not answer".to_owned()),
    }
    let was_known = context.backend.known().is_some();
    match context.backend.ready().await {
        Ok(()) => HttpResponse::Ok().json(if caller.is_some() { json!({ "ready": true }) } else { json!({}) }),
        Err(error) => not_ready(if was_known { "backend" } else { "starting" }, error.to_string()),
    }
}

/// The executions of the caller, in the pages of its backend.
async fn list(
    request: HttpRequest,
    caller: Caller,
    context: web::Data<SessionContext>,
) -> Result<HttpResponse, Refused> {
    match backend_for(caller, &context).list(request.query_string()).await {
        Ok(list) => Ok(HttpResponse::Ok().json(list)),
        Err(BackendError::Refused(error)) => Err(error.into()),
        Err(error) => Ok(HttpResponse::BadGateway().json(error.into_error())),
    }
}

/// The output of an execution of the caller, from its backend.
async fn output(
    request: HttpRequest,
    path: web::Path<(String, Stream)>,
    caller: Caller,
    context: web::Data<SessionContext>,
) -> Result<HttpResponse, Refused> {
    let (id, stream) = path.into_inner();
    let id: ExecutionId = id.parse().map_err(|_| {
        ErrorObject::new(code::PARAMS, format!("an execution's id is a UUID, not {}", Quoted(&shown_path(&id))))
    })?;
    let backend = backend_for(caller, &context);
    let OutputResponse { status, headers, length, body } =
        match backend.output(id, stream, request.method(), request.headers()).await {
            Ok(response) => response,
            Err(BackendError::Refused(error)) => return Err(error.into()),
            Err(error) => return Ok(HttpResponse::BadGateway().json(error.into_error())),
        };
    let mut response = HttpResponse::build(status);
    for header in headers {
        response.insert_header(header);
    }
    if status == StatusCode::NOT_MODIFIED {
        return Ok(response.finish());
    }
    let patience = Duration::from_millis(context.limits.client_stall_ms);
    Ok(response.body(SizedStream::new(length, DownloadBody::new(&request, patience, body))))
}

fn backend_for(caller: Caller, context: &SessionContext) -> BackendClient {
    match caller {
        Caller::Client(name) => context.backend.for_client(name),
        Caller::Operator => context.backend.clone(),
    }
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let (method, path) = (shown_method(request.method().as_str()), shown_path(request.path()));
    let message = format!("there is no {method} {path} here: a session is opened with GET /ws/mcp");
    HttpResponse::NotFound().json(ErrorObject::new(code::METHOD, message))
}
