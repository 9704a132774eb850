//! The responses to requests that are refused before a handler runs. Each ends its connection, so that the rest of an
//! unread body is not awaited, and a guess of a token costs a connection.

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    dev::ServiceRequest,
    http::{StatusCode, header},
};
use cc_executor_actors::{
    rpc::{ErrorObject, code},
    share::ShareExceeded,
};

use super::{
    peers::{Work, place_of},
    refused::Refused,
    request_log::log_refused,
};

/// Reports an admitted request to the place of its connection.
///
/// # Errors
///
/// Too many authorized connections are in use.
pub fn begin_work(request: &ServiceRequest, is_authorized: bool) -> Result<Option<Work>, ShareExceeded> {
    let Some(place) = place_of(request) else { return Ok(None) };
    if !is_authorized {
        place.probe();
        return Ok(None);
    }
    place.begin().map(Some).inspect_err(|_| place.refuse())
}

/// The response to an authorized request for whose connection there is no place.
pub fn no_place(request: &ServiceRequest, exceeded: ShareExceeded) -> HttpResponse {
    let message = format!(
        "all {} connections that the service's limit of open files allows are in use: try again in a moment",
        exceeded.limit
    );
    log_refused(request, StatusCode::SERVICE_UNAVAILABLE, &message);
    Refused::full(message, exceeded).closing_response()
}

/// The response to a request that the rules refuse. A peer that has sent too many wrong tokens waits for it.
pub async fn refusal(request: &ServiceRequest, status: StatusCode, message: String, is_guess: bool) -> HttpResponse {
    let place = place_of(request);
    if let Some(place) = place {
        place.refuse();
    }
    let penalty = match place {
        Some(place) if is_guess => place.slow_down().await,
        _ => None,
    };
    match penalty {
        None => {
            let mut response = closing(status);
            if status == StatusCode::UNAUTHORIZED {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
            response.json(ErrorObject::new(code::NOT_AUTHORIZED, message))
        }
        Some(wait) => {
            let message = "too many wrong tokens came from this address; a request with the right token is not delayed";
            let seconds = wait.as_millis().div_ceil(1_000).max(1);
            closing(StatusCode::TOO_MANY_REQUESTS)
                .insert_header((header::RETRY_AFTER, seconds.to_string()))
                .json(ErrorObject::new(code::NOT_AUTHORIZED, message))
        }
    }
}

fn closing(status: StatusCode) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response.force_close();
    response
}
