//! The backend's HTTP routes.

mod control;
mod execute;
mod params;

use actix_web::{HttpRequest, HttpResponse, web};
use cc_executor_actors::rpc::{ErrorObject, code};
use serde_json::json;

use self::params::parse_id;
use super::{error::refuse_by, registry::Registry};
use crate::server::refusal::refuse;

/// Adds the routes to a service.
pub fn configure(service: &mut web::ServiceConfig) {
    service
        .app_data(web::PayloadConfig::new(16 << 20))
        .route("/health", web::get().to(health))
        .route("/healthz", web::get().to(health))
        .route("/ready", web::get().to(ready))
        .route("/execute/stream", web::post().to(execute::execute))
        .route("/execute/claude-stream", web::post().to(execute::execute_claude))
        .route("/executions", web::get().to(list))
        .route("/executions/{id}", web::get().to(show))
        .route("/executions/{id}", web::delete().to(control::cancel))
        .route("/executions/{id}/stream", web::get().to(execute::attach))
        .route("/executions/{id}/ack", web::post().to(control::acknowledge))
        .route("/executions/{id}/signal", web::post().to(control::signal))
        .route("/executions/{id}/pause", web::post().to(control::pause))
        .route("/executions/{id}/resume", web::post().to(control::resume))
        .route("/executions/{id}/resize", web::post().to(control::resize))
        .route("/executions/{id}/stdin", web::post().to(control::input))
        .default_service(web::to(nothing_here));
}

async fn health(registry: web::Data<Registry>) -> HttpResponse {
    HttpResponse::Ok().json(registry.health())
}

async fn ready(registry: web::Data<Registry>) -> HttpResponse {
    match registry.ready() {
        Ok(()) => HttpResponse::Ok().json(json!({ "ready": true })),
        Err(error) => HttpResponse::ServiceUnavailable().json(ErrorObject::from(error)),
    }
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let message = format!("there is no {} {} here", request.method(), request.path());
    HttpResponse::NotFound().json(ErrorObject::new(code::METHOD, message))
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
