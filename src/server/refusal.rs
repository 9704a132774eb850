//! The HTTP status that belongs to each JSON-RPC error code.

use actix_web::{HttpResponse, http::StatusCode};
use cc_executor_actors::rpc::{ErrorObject, code};

/// The response to a request that is refused: the error as its body, with the status that belongs to its code.
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
