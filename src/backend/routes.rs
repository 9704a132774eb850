//! The backend's HTTP routes.

mod control;
mod execute;
mod output;
mod params;

use actix_web::{HttpRequest, HttpResponse, web};
use cc_executor_actors::{
    backend_api::{ExecutionPage, Snapshot, control as control_api},
    rpc::{ErrorObject, code, params::Params},
};
use serde_json::{Map, Value, json};

pub use self::output::ReadingPlaces;
use self::params::{observes, parse_id, read_page};
use super::{job_request::Poller, registry::Registry};
use crate::server::{
    caller::Caller,
    refused::Refused,
    request_log::{shown_method, shown_path},
};

/// The output of one stream, as a file.
const OUTPUT_PATH: &str = "/executions/{id}/output/{stream:stdout|stderr}";

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
        .route(OUTPUT_PATH, web::get().to(output::read))
        .route(OUTPUT_PATH, web::head().to(output::read))
        .route("/executions/{id}/ack", web::post().to(control::acknowledge))
        .configure(control_routes)
        .default_service(web::to(nothing_here));
}

fn control_routes(service: &mut web::ServiceConfig) {
    for action in control_api::ACTIONS {
        let route = web::post().to(
            move |id: web::Path<String>, query: web::Query<Map<String, Value>>, body, caller, registry| {
                control::control(action, id, query.into_inner(), body, caller, registry)
            },
        );
        service.route(&format!("/executions/{{id}}/{action}"), route);
    }
}

/// The process is alive. A caller that is not known gets the status only.
async fn health(caller: Option<Caller>, registry: web::Data<Registry>) -> HttpResponse {
    match caller {
        Some(_) => HttpResponse::Ok().json(registry.health()),
        None => HttpResponse::Ok().json(json!({})),
    }
}

/// Executions are accepted. A caller that is not known gets the status only.
async fn ready(caller: Option<Caller>, registry: web::Data<Registry>) -> HttpResponse {
    match registry.ready() {
        Ok(()) if caller.is_some() => HttpResponse::Ok().json(json!({ "ready": true })),
        Ok(()) => HttpResponse::Ok().json(json!({})),
        Err(_) if caller.is_none() => HttpResponse::ServiceUnavailable().json(json!({})),
        // Whoever polls this route expects 503, whatever the reason is.
        Err(error) => HttpResponse::ServiceUnavailable().json(ErrorObject::from(error)),
    }
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let (method, path) = (shown_method(request.method().as_str()), shown_path(request.path()));
    let message = format!("there is no {method} {path} here");
    HttpResponse::NotFound().json(ErrorObject::new(code::METHOD, message))
}

async fn list(
    query: web::Query<Map<String, Value>>,
    caller: Caller,
    registry: web::Data<Registry>,
) -> Result<web::Json<ExecutionPage>, Refused> {
    let (query, most) = read_page(query.into_inner())?;
    Ok(web::Json(registry.list(&caller, &query, most).await))
}

async fn show(
    id: web::Path<String>,
    query: web::Query<Map<String, Value>>,
    caller: Caller,
    registry: web::Data<Registry>,
) -> Result<web::Json<Snapshot>, Refused> {
    let mut fields = Params::new(query.into_inner());
    let poller = if observes(&mut fields)? { Poller::Observer } else { Poller::Anyone };
    fields.finish()?;
    Ok(web::Json(registry.snapshot(&caller, parse_id(&id)?, poller).await?))
}
