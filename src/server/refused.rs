//! The response to a refused request: the JSON-RPC error as its body, with the HTTP status that belongs to its code.

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use cc_executor_actors::rpc::{ErrorObject, code};

/// A refused request. Handlers return it as their error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(ErrorObject);

impl<E: Into<ErrorObject>> From<E> for Refused {
    fn from(error: E) -> Self {
        Refused(error.into())
    }
}

impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        match self.0.code {
            code::PARAMS => StatusCode::BAD_REQUEST,
            code::NOT_ALLOWED => StatusCode::FORBIDDEN,
            code::UNKNOWN_EXECUTION => StatusCode::NOT_FOUND,
            code::NOT_RUNNING | code::ALREADY_RUNNING | code::OTHER_INSTANCE => StatusCode::CONFLICT,
            code::FULL => StatusCode::TOO_MANY_REQUESTS,
            code::DRAINING => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::build(self.status_code()).json(&self.0)
    }
}
