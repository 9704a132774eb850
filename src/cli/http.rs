//! HTTP requests of the client, each bounded as a whole.

use std::time::Duration;

use awc::ClientRequest;
use tokio::time::timeout;

use super::{ClientError, PATIENCE, exit, flags::SESSION_PATH};
use crate::config::{self, variables};

/// The time-out that awc gets. It is longer than [`PATIENCE`], so that [`within`] ends a request first: it also bounds
/// the reading of the body.
const OUTER_PATIENCE: Duration = Duration::from_secs(60);

/// The longest body of an error response that is read, in bytes.
pub(super) const MAX_REFUSAL: usize = 64 << 10;

/// A client for requests without a token that [`within`] bounds.
pub(super) fn client() -> awc::Client {
    awc::Client::builder().timeout(OUTER_PATIENCE).finish()
}

/// The token to send, from the environment.
pub(super) fn token() -> Result<Option<String>, ClientError> {
    let token = config::client_token(&variables::read())
        .map_err(|problems| ClientError::new(exit::USAGE, problems.to_string()))?;
    Ok(token.map(|token| token.reveal().to_owned()))
}

/// A GET request with the token from the environment, if there is one. [`within`] bounds it.
///
/// # Errors
/// The token cannot be read.
pub(super) fn get(url: &str) -> Result<ClientRequest, ClientError> {
    let request = client().get(url);
    Ok(match token()? {
        Some(token) => request.bearer_auth(token),
        None => request,
    })
}

/// Sends several requests, over one connection where that is possible, with the token from the environment.
pub(super) struct HttpClient {
    client: awc::Client,
    token: Option<String>,
}

impl HttpClient {
    /// A client for requests that [`within`] bounds.
    ///
    /// # Errors
    /// The token cannot be read.
    pub(super) fn new() -> Result<HttpClient, ClientError> {
        // No time-out of awc, because it would also bound a body that is read for long.
        Ok(HttpClient { client: awc::Client::builder().disable_timeout().finish(), token: token()? })
    }

    /// A GET request.
    pub(super) fn get(&self, url: &str) -> ClientRequest {
        let request = self.client.get(url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// The URL of a path at the service that has this URL for sessions.
pub(super) fn service_url(session_url: &str, path: &str) -> String {
    let base = session_url.strip_suffix(SESSION_PATH).unwrap_or(session_url);
    format!("{}{path}", base.replacen("ws://", "http://", 1))
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
