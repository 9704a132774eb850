//! The response to a refused request: the JSON-RPC error as its body, with the HTTP status that belongs to its code.

use actix_web::{
    HttpResponse, ResponseError,
    http::{ConnectionType, StatusCode, header},
};
use cc_executor_actors::{
    rpc::{ErrorObject, code},
    share::ShareExceeded,
};
use serde_json::{Value, json};

/// When a request that finds no room should be sent again, in milliseconds. Room may come at any moment.
pub const RETRY_AFTER_MS: u64 = 1_000;

/// A refused request. Handlers return it as their error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(ErrorObject);

impl<E: Into<ErrorObject>> From<E> for Refused {
    fn from(error: E) -> Self {
        Refused(error.into())
    }
}

impl Refused {
    /// A request that finds no room, and the share that is used up.
    pub fn full(message: String, exceeded: ShareExceeded) -> Self {
        Refused(ErrorObject::new(code::FULL, message).over(exceeded, Some(RETRY_AFTER_MS)))
    }

    /// The text for the client.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// A request that finds no room, for a reason that is no client's.
    pub fn of_service(message: &str) -> Self {
        let data = json!({ "scope": "service", "retryAfterMs": RETRY_AFTER_MS });
        Refused(ErrorObject::new(code::FULL, message).with(data))
    }

    /// The response to a request that is not read to its end: it ends the connection.
    pub fn closing_response(&self) -> HttpResponse {
        let mut response = self.error_response();
        response.head_mut().set_connection_type(ConnectionType::Close);
        response
    }

    /// A field of the error's data.
    fn data(&self, name: &str) -> Option<&Value> {
        self.0.data.as_ref()?.get(name)
    }
}

impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        match self.0.code {
            code::PARAMS => StatusCode::BAD_REQUEST,
            code::NOT_ALLOWED => StatusCode::FORBIDDEN,
            code::UNKNOWN_EXECUTION => StatusCode::NOT_FOUND,
            code::NOT_RUNNING | code::ALREADY_RUNNING | code::OTHER_INSTANCE => StatusCode::CONFLICT,
            // The client itself can make room, or only time and other clients can.
            code::FULL if self.data("scope").is_some_and(|scope| scope == "service") => StatusCode::SERVICE_UNAVAILABLE,
            code::FULL => StatusCode::TOO_MANY_REQUESTS,
            code::DRAINING => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(retry_after_ms) = self.data("retryAfterMs").and_then(Value::as_u64) {
            response.insert_header((header::RETRY_AFTER, retry_after_ms.div_ceil(1_000).max(1)));
        }
        response.json(&self.0)
    }
}
