//! `healthcheck`: exits 0 if a service is ready, for containers without curl.

use std::process::ExitCode;

use super::{
    ClientError,
    http::{client, within},
    report_outcome,
};

/// Exit code where the service says that it is not ready, or nothing listens: the only one but 0 that Docker's
/// HEALTHCHECK defines.
const NOT_READY: u8 = 1;

/// The longest part of an unready service's answer that is shown, in bytes.
const SHOWN_BODY: usize = 64 * 1024;

/// Asks whether a service is ready.
pub async fn healthcheck(url: String) -> ExitCode {
    report_outcome(within(&url, is_ready(&url)).await.map(|()| 0))
}

async fn is_ready(url: &str) -> Result<(), ClientError> {
    let problem = match client().get(url).send().await {
        Ok(response) if response.status().is_success() => return Ok(()),
        Ok(mut response) => {
            let body = response.body().limit(SHOWN_BODY).await.unwrap_or_default();
            format!("{url} answers {}: {}", response.status(), String::from_utf8_lossy(&body))
        }
        Err(error) => format!("{url} does not answer: {error}"),
    };
    Err(ClientError::new(NOT_READY, problem))
}
