//! The requests for the output of an execution, and what their responses say of it.

use std::time::Duration;

use awc::{
    ClientResponse,
    http::{
        StatusCode,
        header::{self, HeaderName},
    },
};
use bytes::Bytes;
use cc_executor_actors::{
    backend_api::{EXECUTION_STATUS_HEADER, FIRST_BYTE_HEADER},
    id::ExecutionId,
    stream::Stream,
};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::cli::{
    ClientError, exit,
    http::{HttpClient, MAX_REFUSAL, within},
    service::ServiceAccess,
};

/// The longest silence in the middle of a response. A service that reads from a slow disk takes seconds.
const SILENCE: Duration = Duration::from_secs(45);

/// The output of one stream, at its service.
pub(super) struct OutputFile {
    client: HttpClient,
    url: String,
}

/// What a response says of the whole output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OutputState {
    /// Whether the execution has ended, so that nothing is added.
    pub has_ended: bool,
    /// The SHA-256 of the whole output, if the service knows it.
    pub sha256: Option<String>,
}

/// The response to a request for a part of the output.
pub(super) enum PartOfOutput {
    /// Bytes.
    Bytes {
        /// The offset of the first byte.
        first: u64,
        /// The bytes.
        body: PartBytes,
        /// The length of the whole output. `None` while it grows.
        written: Option<u64>,
        /// The state of the output.
        state: OutputState,
    },
    /// There are no such bytes, or none at all.
    Nothing {
        /// The offset of the first byte that is there.
        first_there: u64,
        /// The length of the output so far.
        end: u64,
        /// The state of the output.
        state: OutputState,
    },
}

/// The bytes of a response.
pub(super) struct PartBytes {
    url: String,
    response: ClientResponse,
    left: u64,
}

impl OutputFile {
    /// The output of a stream at this service.
    pub fn new(service: &ServiceAccess, id: ExecutionId, stream: Stream) -> Self {
        let url = service.http(&format!("/executions/{id}/output/{}", stream.as_str()));
        OutputFile { client: HttpClient::new(service), url }
    }

    /// Requests the bytes from this offset on.
    pub async fn read_from(&self, first: u64) -> Result<PartOfOutput, ClientError> {
        self.read(&format!("{first}-")).await
    }

    /// Requests the bytes from one offset up to before another.
    pub async fn read_part(&self, first: u64, end: u64) -> Result<PartOfOutput, ClientError> {
        self.read(&format!("{first}-{}", end - 1)).await
    }

    /// Requests the last bytes.
    pub async fn read_last(&self, n: u64) -> Result<PartOfOutput, ClientError> {
        self.read(&format!("-{n}")).await
    }

    async fn read(&self, range: &str) -> Result<PartOfOutput, ClientError> {
        let request = self.client.get(&self.url).insert_header((header::RANGE, format!("bytes={range}")));
        let sent = async { request.send().await.map_err(|error| self.client.unreachable(&self.url, &error)) };
        let mut response = within(&self.url, sent).await?;
        let invalid = |what: &str| {
            let message = format!("{} answers {} without a valid {what}", self.url, response.status());
            ClientError::new(exit::SOFTWARE, message)
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text_of(&response, &header::CONTENT_RANGE).and_then(part_of);
                let (first, end, written) = range.ok_or_else(|| invalid("Content-Range"))?;
                let (state, url) = (state_of(&response), self.url.clone());
                let body = PartBytes { url, response, left: end - first };
                Ok(PartOfOutput::Bytes { first, body, written, state })
            }
            // The output is empty, so that there is no part of it.
            StatusCode::OK if text_of(&response, &header::CONTENT_LENGTH) == Some("0") => {
                Ok(PartOfOutput::Nothing { first_there: 0, end: 0, state: state_of(&response) })
            }
            StatusCode::OK => Err(invalid("part")),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let end = text_of(&response, &header::CONTENT_RANGE)
                    .and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                let first_there = text_of(&response, &HeaderName::from_static(FIRST_BYTE_HEADER));
                Ok(PartOfOutput::Nothing {
                    first_there: first_there
                        .and_then(|first| first.parse().ok())
                        .ok_or_else(|| invalid(FIRST_BYTE_HEADER))?,
                    end: end.ok_or_else(|| invalid("Content-Range"))?,
                    state: state_of(&response),
                })
            }
            status => {
                let reason =
                    within(&self.url, async { Ok(response.body().limit(MAX_REFUSAL).await.unwrap_or_default()) });
                Err(self.client.refused(&self.url, status, &reason.await?))
            }
        }
    }
}

impl PartBytes {
    /// How many bytes follow.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The response broke off, or nothing came for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.left == 0 {
            return Ok(None);
        }
        let broken = |why: &str| {
            Err(ClientError::new(exit::UNAVAILABLE, format!("the response of {} broke off: {why}", self.url)))
        };
        match timeout(SILENCE, self.response.next()).await {
            Ok(Some(Ok(bytes))) if bytes.len() as u64 <= self.left => {
                self.left -= bytes.len() as u64;
                Ok(Some(bytes))
            }
            Ok(Some(Ok(_))) => broken("it is longer than its part"),
            Ok(Some(Err(error))) => broken(&error.to_string()),
            Ok(None) => broken(&format!("{} bytes are missing", self.left)),
            Err(_) => broken(&format!("nothing came for {} s", SILENCE.as_secs())),
        }
    }
}

fn state_of(response: &ClientResponse) -> OutputState {
    let status = text_of(response, &HeaderName::from_static(EXECUTION_STATUS_HEADER));
    let tag = text_of(response, &header::ETAG).and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"'));
    OutputState {
        has_ended: matches!(status, Some("COMPLETED" | "FAILED" | "CANCELLED")),
        sha256: tag.map(str::to_owned),
    }
}

fn text_of<'a>(response: &'a ClientResponse, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The offsets of the first byte and after the last one in a `Content-Range`, and the length of the whole.
fn part_of(range: &str) -> Option<(u64, u64, Option<u64>)> {
    let (part, whole) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    (first <= last).then_some((first, last.checked_add(1)?, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read() {
        for (range, part) in [
            ("bytes 0-99/1000", Some((0, 100, Some(1000)))),
            ("bytes 7-7/*", Some((7, 8, None))),
            ("bytes 7-7/x", None),
            ("bytes 8-7/*", None),
            ("bytes */1000", None),
            ("bytes 0-18446744073709551615/*", None),
            ("0-99/1000", None),
        ] {
            assert_eq!(part_of(range), part, "{range}");
        }
    }
}
