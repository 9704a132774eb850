//! The backend's HTTP routes.

mod control;
mod execute;
mod params;

use actix_web::{HttpRequest, HttpResponse, web};
use cc_executor_actors::{
    backend_api::{Snapshot, control as control_api},
    rpc::{ErrorObject, code},
};
use serde_json::{Map, Value, json};

use self::params::parse_id;
use super::registry::Registry;
use crate::server::{
    refused::Refused,
    request_log::{shown_method, shown_path},
};

/// Adds the routes to a service.
pub fn configure(service: &mut web::ServiceConfig) {
    service
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
        .configure(control_routes)
        .default_service(web::to(nothing_here));
}

fn control_routes(service: &mut web::ServiceConfig) {
    for action in control_api::ACTIONS {
        let route =
            web::post().to(move |id: web::Path<String>, query: web::Query<Map<String, Value>>, body, registry| {
                control::control(action, id, query.into_inner(), body, registry)
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
        Err(error) => HttpResponse::ServiceUnavailable().json(ErrorObject::from(error)),
    }
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let (method, path) = (shown_method(request.method().as_str()), shown_path(request.path()));
    let message = format!("there is no {method} {path} here");
    HttpResponse::NotFound().json(ErrorObject::new(code::METHOD, message))
}

async fn list(registry: web::Data<Registry>) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "executions": registry.snapshots().await }))
}

async fn show(id: web::Path<String>, registry: web::Data<Registry>) -> Result<web::Json<Snapshot>, Refused> {
    Ok(web::Json(registry.snapshot(parse_id(&id)?).await?))
}
