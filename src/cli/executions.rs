//! Fetches the service's list of executions.

use super::{
    ClientError,
    http::{HttpClient, MAX_REFUSAL, within},
};

/// The longest page of a list that is read, in bytes. A service of before pages lists up to 4096 executions at once, of
/// less than 16 KiB each.
const MAX_LIST: usize = 64 << 20;

/// Fetches a page of the service's list of executions: JSON.
///
/// # Errors
/// The service cannot be reached in time, or refuses.
pub(super) async fn fetch_list(client: &HttpClient, url: &str) -> Result<bytes::Bytes, ClientError> {
    within(url, async {
        let mut response = client.get(url).send().await.map_err(|error| client.unreachable(url, &error))?;
        if !response.status().is_success() {
            let reason = response.body().limit(MAX_REFUSAL).await.unwrap_or_default();
            return Err(client.refused(url, response.status(), &reason));
        }
        response.body().limit(MAX_LIST).await.map_err(|error| client.broke_off(url, &error))
    })
    .await
}
