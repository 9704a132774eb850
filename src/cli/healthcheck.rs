//! `healthcheck`: exits 0 if a service is ready, for containers without curl.

use awc::http::StatusCode;
use bytes::Bytes;
use clap::Args;
use tokio::time::{Instant, timeout_at};

use super::{
    ClientError, PATIENCE,
    flags::ServiceFlags,
    http::{HttpClient, within},
};

/// Exit code if the service is not ready or cannot be reached: the only one but 0 that Docker's HEALTHCHECK defines.
const NOT_READY: u8 = 1;

/// The longest part of an unready service's answer that is shown, in bytes.
const SHOWN_BODY: usize = 64 * 1024;

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  the service is ready
   1  it is not ready, or the URL cannot be reached
  64  wrong use: flags, profile
  69  it does not answer within 10 seconds";

/// Options of `healthcheck`.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckOptions {
    // A URL that ends with /ready, /health or /healthz names what is asked.
    #[command(flatten)]
    service: ServiceFlags,
}

/// The answer of a service that is not ready.
struct UnreadyAnswer {
    status: StatusCode,
    body: Bytes,
}

/// Asks whether a service is ready.
pub(super) async fn healthcheck(options: HealthcheckOptions) -> Result<u8, ClientError> {
    let service = options.service.access_with_any_token()?;
    let (client, url, until) = (HttpClient::new(&service), service.health_url(), Instant::now() + PATIENCE);
    let Some(UnreadyAnswer { status, body }) = within(&url, unready_answer(&client, &url)).await? else {
        return Ok(0);
    };
    // The service has answered, so it is not ready, whether or not it explains that in time.
    let explanation = match service.token() {
        Some(_) => timeout_at(until, explanation(&client, &url, status)).await.ok().flatten(),
        None => None,
    };
    let shown = explanation.unwrap_or(body);
    Err(ClientError::new(NOT_READY, format!("{url} answers {status}: {}", String::from_utf8_lossy(&shown))))
}

/// The answer to a request without a token, or `None` if the service is ready.
async fn unready_answer(client: &HttpClient, url: &str) -> Result<Option<UnreadyAnswer>, ClientError> {
    let unreachable = |error| ClientError { code: NOT_READY, ..client.unreachable(url, &error) };
    let mut response = client.get_without_token(url).send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_success() {
        return Ok(None);
    }
    let body = response.body().limit(SHOWN_BODY).await.unwrap_or_default();
    Ok(Some(UnreadyAnswer { status, body }))
}

/// The body of the same request with the token, because the service tells only callers with a token why it is not ready.
/// `None` if the status is another one.
async fn explanation(client: &HttpClient, url: &str, status: StatusCode) -> Option<Bytes> {
    let response = client.get(url).send().await.ok();
    response.filter(|response| response.status() == status)?.body().limit(SHOWN_BODY).await.ok()
}
