//! Reads the body of a request, with bounds: a body has a longest length and a time to arrive, and the bodies that have
//! not arrived have a limit in all, which clients share.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError,
    dev::Payload,
    error::{ErrorInternalServerError, PayloadError},
    http::{StatusCode, header},
    web,
};
use bytes::{Bytes, BytesMut};
use cc_executor_actors::{
    client::ClientName,
    rpc::{ErrorObject, code},
    share::{ShareExceeded, Shares},
};
use futures_util::{StreamExt, future::LocalBoxFuture};
use tokio::time::{Instant, timeout_at};

use super::{caller::Caller, refused::Refused, turned_away::closing};

/// The bytes that extend the time of a body by a second, so that a long one may come over a slow link.
const SLOWEST_RATE: usize = 16 << 10;

/// The bounds of request bodies.
#[derive(Debug)]
pub struct BodyLimits {
    /// The longest body, in bytes.
    longest: usize,
    /// How long a body may take to arrive, apart from the time for its length, and how long it may pause.
    patience: Duration,
    /// The bytes that have arrived of unfinished bodies.
    arriving: Mutex<Shares>,
}

impl BodyLimits {
    /// Bodies of at most `longest` bytes, of which at most `in_all` bytes may wait for their rest.
    pub fn new(longest: usize, patience: Duration, in_all: usize) -> Arc<Self> {
        Arc::new(BodyLimits { longest, patience, arriving: Mutex::new(Shares::new(in_all as u64)) })
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next byte must arrive, given when the body began and when the last byte came.
    fn due_at(&self, begun_at: Instant, arrived_at: Instant, received: usize) -> Instant {
        let for_length = Duration::from_secs((received / SLOWEST_RATE) as u64);
        (arrived_at + self.patience).min(begun_at + self.patience + for_length)
    }
}

/// The bytes of one unfinished body.
struct ArrivingBody {
    limits: Arc<BodyLimits>,
    client: ClientName,
    bytes: BytesMut,
    /// How many of the bytes are counted in `limits`.
    n_counted: u64,
}

impl ArrivingBody {
    fn reserve(&mut self, n: u64) -> Result<(), BodyError> {
        let mut shares = self.limits.shares();
        shares.admits(&self.client, n, false).map_err(BodyError::NoRoom)?;
        shares.add(&self.client, n);
        self.n_counted += n;
        Ok(())
    }

    /// Takes a piece of the body. Copies it outside the lock, which all requests share.
    fn push(&mut self, chunk: &[u8]) -> Result<(), BodyError> {
        if chunk.len() > self.limits.longest - self.bytes.len() {
            return Err(BodyError::TooLong { limit: self.limits.longest });
        }
        self.reserve(chunk.len() as u64)?;
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }
}

impl Drop for ArrivingBody {
    fn drop(&mut self) {
        self.limits.shares().remove(&self.client, self.n_counted);
    }
}

/// The body of a request. Handlers take it as a parameter.
#[derive(Debug)]
pub struct RequestBody(pub Bytes);

impl FromRequest for RequestBody {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<RequestBody, Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let limits = request.app_data::<web::Data<BodyLimits>>().map(|limits| Arc::clone(limits));
        let client = request.extensions().get::<Caller>().cloned().map(Caller::client);
        let declared =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let payload = payload.take();
        Box::pin(async move {
            let (Some(limits), Some(client)) = (limits, client) else {
                return Err(ErrorInternalServerError("the route has no limits of bodies, or is not behind the guard"));
            };
            Ok(RequestBody(read(payload, declared.unwrap_or(0), limits, client).await?))
        })
    }
}

async fn read(
    mut payload: Payload,
    declared: usize,
    limits: Arc<BodyLimits>,
    client: ClientName,
) -> Result<Bytes, BodyError> {
    if declared > limits.longest {
        return Err(BodyError::TooLong { limit: limits.longest });
    }
    let begun_at = Instant::now();
    let mut arrived_at = begun_at;
    // Memory that is not written yet costs nothing, and a buffer that grows would cost twice the body.
    let mut body = ArrivingBody { limits, client, bytes: BytesMut::with_capacity(declared), n_counted: 0 };
    loop {
        let due_at = body.limits.due_at(begun_at, arrived_at, body.bytes.len());
        match timeout_at(due_at, payload.next()).await {
            Ok(Some(Ok(chunk))) => {
                body.push(&chunk)?;
                arrived_at = Instant::now();
            }
            Ok(Some(Err(error))) => return Err(BodyError::Broken(error)),
            Ok(None) => break,
            Err(_) => return Err(BodyError::TooSlow { received: body.bytes.len(), after: begun_at.elapsed() }),
        }
    }
    Ok(mem::take(&mut body.bytes).freeze())
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("the body of a request has at most {limit} bytes: see --max-message-bytes of the backend")]
    TooLong { limit: usize },
    #[error("only {received} bytes of the body had arrived after {} ms: see --request-timeout-ms", .after.as_millis())]
    TooSlow { received: usize, after: Duration },
    #[error("too many request bodies are arriving at the same time: try again in a moment")]
    NoRoom(ShareExceeded),
    #[error("the body broke off: {0}")]
    Broken(#[source] PayloadError),
}

impl ResponseError for BodyError {
    fn status_code(&self) -> StatusCode {
        match self {
            BodyError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            BodyError::NoRoom(exceeded) => Refused::full(self.to_string(), *exceeded).status_code(),
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// The rest of the body is not read, so the connection ends.
    fn error_response(&self) -> HttpResponse {
        match self {
            BodyError::NoRoom(exceeded) => Refused::full(self.to_string(), *exceeded).closing_response(),
            _ => closing(self.status_code()).json(ErrorObject::new(code::INVALID_REQUEST, self.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_neither_pause_nor_trickle() {
        let (limits, start) = (BodyLimits::new(1 << 20, Duration::from_secs(10), 1 << 20), Instant::now());
        for (arrived_at, received, due_at) in
            [(0, 0, 10), (5, 100, 10), (5, 1 << 20, 15), (60, 1 << 20, 70), (70, 1 << 20, 74)]
        {
            let due = limits.due_at(start, start + Duration::from_secs(arrived_at), received);
            assert_eq!(due, start + Duration::from_secs(due_at), "{received} bytes after {arrived_at} s");
        }
    }

    #[test]
    fn unfinished_bodies_share_a_limit_and_give_it_back() {
        let limits = BodyLimits::new(100, Duration::from_secs(1), 120);
        let body = |uid| ArrivingBody {
            limits: Arc::clone(&limits),
            client: ClientName::of_user(uid),
            bytes: BytesMut::new(),
            n_counted: 0,
        };
        let mut first = body(1);
        first.push(&[0; 60]).unwrap();
        assert_eq!(first.push(&[0; 41]).unwrap_err().status_code(), StatusCode::PAYLOAD_TOO_LARGE);
        let mut second = body(1);
        second.push(&[0; 60]).unwrap();
        assert_eq!(second.push(&[0]).unwrap_err().status_code(), StatusCode::TOO_MANY_REQUESTS);
        let mut other = body(2);
        other.push(&[0; 30]).unwrap();
        assert_eq!(
            other.push(&[0]).unwrap_err().status_code(),
            StatusCode::SERVICE_UNAVAILABLE,
            "{:?}",
            limits.shares()
        );
        drop((first, second, other));
        assert_eq!(limits.shares().total(), 0);
        body(2).push(&[0; 100]).unwrap();
    }
}
