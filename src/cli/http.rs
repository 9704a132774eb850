//! HTTP requests of the client, each bounded as a whole.

use awc::{
    ClientRequest,
    error::{PayloadError, SendRequestError},
    http::StatusCode,
};
use tokio::time::timeout;

use super::{ClientError, PATIENCE, exit, service::ServiceAccess};

/// The longest body of an error response that is read, in bytes.
pub(super) const MAX_REFUSAL: usize = 64 << 10;

/// Sends requests to a service, over one connection where that is possible, with its token.
pub(super) struct HttpClient {
    client: awc::Client,
    service: ServiceAccess,
}

impl HttpClient {
    /// A client without a time-out of its own. It is for requests that [`within`] bounds, and for bodies that are read
    /// for long.
    pub(super) fn new(service: &ServiceAccess) -> HttpClient {
        // No time-out of awc, because it would also bound a body that is read for long.
        HttpClient { client: service.client(None), service: service.clone() }
    }

    /// A GET request.
    pub(super) fn get(&self, url: &str) -> ClientRequest {
        let request = self.get_without_token(url);
        match self.service.token() {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A GET request without the token.
    pub(super) fn get_without_token(&self, url: &str) -> ClientRequest {
        self.service.get(&self.client, url)
    }

    /// The error for an unexpected status, see [`ServiceAccess::refused`].
    pub(super) fn refused(&self, url: &str, status: StatusCode, body: &[u8]) -> ClientError {
        self.service.refused(url, status, body)
    }

    /// The error for a response whose body broke off.
    pub(super) fn broke_off(&self, url: &str, error: &PayloadError) -> ClientError {
        ClientError::new(exit::UNAVAILABLE, format!("the response of {url} broke off: {error}; try again"))
    }

    /// The error for a request that got no response.
    pub(super) fn unreachable(&self, url: &str, error: &SendRequestError) -> ClientError {
        self.service.unreachable(url, error)
    }
}

/// Bounds a request as a whole, from connecting to the end of the response's body, because each part may hang.
///
/// # Errors
/// The request's own error, or one that names the URL after [`PATIENCE`].
pub(super) async fn within<T>(
    url: &str,
    request: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(PATIENCE, request).await.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        Err(ClientError::new(
            exit::UNAVAILABLE,
            format!("{url} does not answer within {seconds} s; it may be stopped or overloaded"),
        ))
    })
}
