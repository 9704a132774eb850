//! `healthcheck`: exits 0 if a service is ready, for containers without curl.

use awc::http::StatusCode;
use bytes::Bytes;
use clap::Args;

use super::{
    ClientError,
    connection::token,
    http::{client, within},
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
  69  it does not answer within 10 seconds";

/// Options of `healthcheck`.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckOptions {
    /// URL that answers with a 2xx status if the service is ready
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8003/ready")]
    url: String,
}

/// Asks whether a service is ready.
pub(super) async fn healthcheck(options: HealthcheckOptions) -> Result<u8, ClientError> {
    within(&options.url, is_ready(&options.url)).await
}

/// What a service that is not ready answers. It says why only to those who have its token, so that is sent now, if there
/// is one.
async fn explained(url: &str, status: StatusCode, body: Bytes) -> String {
    let with_token = match token() {
        Ok(Some(token)) => client().get(url).bearer_auth(token).send().await.ok(),
        _ => None,
    };
    let body = match with_token.filter(|response| response.status() == status) {
        Some(mut response) => response.body().limit(SHOWN_BODY).await.unwrap_or_default(),
        None => body,
    };
    format!("{url} answers {status}: {}", String::from_utf8_lossy(&body))
}

async fn is_ready(url: &str) -> Result<u8, ClientError> {
    let problem = match client().get(url).send().await {
        Ok(response) if response.status().is_success() => return Ok(0),
        Ok(mut response) => {
            let body = response.body().limit(SHOWN_BODY).await.unwrap_or_default();
            explained(url, response.status(), body).await
        }
        Err(error) => format!("cannot get {url}: {error}"),
    };
    Err(ClientError::new(NOT_READY, problem))
}
