//! The gateway's HTTP routes besides the WebSocket.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ContentType},
    web,
};
use cc_executor_actors::{
    backend_client::BackendError,
    protocol::{SUBPROTOCOL, VERSION, notification::ServerInfo},
    rpc::{ErrorObject, code},
    session::SessionContext,
    supervisor::GetStats,
};
use serde_json::json;

use super::upgrade;
use crate::server::refused::Refused;

/// Adds the routes to a service.
pub fn configure(service: &mut web::ServiceConfig) {
    service
        .route("/ws/mcp", web::get().to(upgrade::upgrade))
        .route("/health", web::get().to(health))
        .route("/healthz", web::get().to(health))
        .route("/docs", web::get().to(docs))
        .route("/ready", web::get().to(ready))
        .route("/executions", web::get().to(list))
        .default_service(web::to(nothing_here));
}

/// The process lives.
async fn health(around: web::Data<SessionContext>) -> HttpResponse {
    match around.supervisor.send(GetStats).await {
        Ok(census) => HttpResponse::Ok().json(json!({
            "server": ServerInfo::THIS.name,
            "version": ServerInfo::THIS.version,
            "role": "gateway",
            "sessions": census.n_sessions,
            "executions": census.n_executions,
        })),
        Err(_) => {
            HttpResponse::InternalServerError().json(ErrorObject::new(code::INTERNAL, "the supervisor does not answer"))
        }
    }
}

/// A page for people who look here for the interface: which protocol is spoken, and where.
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

/// It accepts work, and the backend does.
async fn ready(around: web::Data<SessionContext>) -> HttpResponse {
    let not_ready = |reason: &str, message: String| {
        HttpResponse::ServiceUnavailable().json(json!({ "ready": false, "reason": reason, "message": message }))
    };
    match around.supervisor.send(GetStats).await {
        Ok(census) if census.draining => return not_ready("draining", "the service is shutting down".to_owned()),
        Ok(census) if census.n_sessions >= census.max_sessions => {
            return not_ready("full", format!("all {} sessions are taken", census.max_sessions));
        }
        Ok(_) => {}
        Err(_) => return not_ready("draining", "the supervisor does not answer".to_owned()),
    }
    let was_known = around.backend.known().is_some();
    match around.backend.ready().await {
        Ok(()) => HttpResponse::Ok().json(json!({ "ready": true })),
        Err(error) => not_ready(if was_known { "backend" } else { "starting" }, error.to_string()),
    }
}

/// All executions that the backend knows.
async fn list(around: web::Data<SessionContext>) -> Result<HttpResponse, Refused> {
    match around.backend.list().await {
        Ok(list) => Ok(HttpResponse::Ok().json(list)),
        Err(BackendError::Refused(error)) => Err(error.into()),
        Err(error) => Ok(HttpResponse::BadGateway().json(error.into_error())),
    }
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let message =
        format!("there is no {} {} here: a session is opened with GET /ws/mcp", request.method(), request.path());
    HttpResponse::NotFound().json(ErrorObject::new(code::METHOD, message))
}
