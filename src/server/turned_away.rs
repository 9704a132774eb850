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

/// Why a request is not carried out although its caller may call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceRefusal {
    /// Too many authorized connections are in use.
    Full(ShareExceeded),
    /// The request has no connection of [`super::listen`], as in unit tests.
    Missing,
}

/// Reports an admitted request to the place of its connection.
///
/// # Errors
///
/// There is no place for it.
pub fn begin_work(request: &ServiceRequest, is_authorized: bool) -> Result<Option<Work>, PlaceRefusal> {
    let place = place_of(request).ok_or(PlaceRefusal::Missing)?;
    if !is_authorized {
        place.probe();
        return Ok(None);
    }
    place.begin().map(Some).map_err(|exceeded| {
        place.refuse();
        PlaceRefusal::Full(exceeded)
    })
}

/// The response to a request for whose connection there is no place.
pub fn no_place(request: &ServiceRequest, reason: PlaceRefusal) -> HttpResponse {
    let refused = match reason {
        PlaceRefusal::Full(exceeded) => {
            let limit = exceeded.limit;
            let message = format!(
                "all {limit} connections that the service's limit of open files allows are in use: try again in a moment"
            );
            Refused::full(message, exceeded)
        }
        PlaceRefusal::Missing => Refused::of_service("the service does not know this connection: connect again"),
    };
    log_refused(request, StatusCode::SERVICE_UNAVAILABLE, refused.message());
    refused.closing_response()
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

pub(super) fn closing(status: StatusCode) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response.force_close();
    response
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn a_request_on_a_connection_without_a_place_is_refused() {
        let request = TestRequest::default().to_srv_request();
        for is_authorized in [false, true] {
            assert_eq!(begin_work(&request, is_authorized).map(|_| ()), Err(PlaceRefusal::Missing));
        }
        let response = no_place(&request, PlaceRefusal::Missing);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers().get(header::RETRY_AFTER).unwrap(), "1");
        assert!(!response.head().keep_alive());
    }
}
