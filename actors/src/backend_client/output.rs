//! Passes a request for the output of an execution on to the backend, and its response back: a stream that is never
//! collected.

use awc::{
    ClientRequest, ClientResponse,
    error::PayloadError,
    http::{
        Method, StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};
use futures_util::{StreamExt, stream};

use super::{client::BackendClient, error::BackendError, start::ResponseBody};
use crate::{
    backend_api::{EXECUTION_STATUS_HEADER, FIRST_BYTE_HEADER},
    id::ExecutionId,
    stream::Stream,
};

/// The headers of a request for output that the backend gets.
const REQUEST_HEADERS: [HeaderName; 3] = [header::RANGE, header::IF_RANGE, header::IF_NONE_MATCH];

/// The headers of its response that the client gets.
const RESPONSE_HEADERS: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::CACHE_CONTROL,
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderName::from_static(EXECUTION_STATUS_HEADER),
    HeaderName::from_static(FIRST_BYTE_HEADER),
];

/// The response to a request for output.
pub struct OutputResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers for the client, but for the length.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The length of the body, in bytes; that of the response to GET if the request was HEAD.
    pub length: u64,
    /// The body.
    pub body: ResponseBody,
}

impl BackendClient {
    /// Requests the output of a stream with the headers of a client's request. The gateway reads the body only as fast as
    /// its client does, so that back-pressure reaches the backend through the connection.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn output(
        &self,
        id: ExecutionId,
        stream: Stream,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<OutputResponse, BackendError> {
        let _place = self.place(false).await;
        let path = format!("/executions/{id}/output/{}", stream.as_str());
        self.request_by_id("read the output of", method.clone(), &path)?;
        let response = self.head_of_repeatable(|| {
            let asked = REQUEST_HEADERS.into_iter();
            let asked = asked.flat_map(|name| headers.get_all(&name).map(move |value| (name.clone(), value.clone())));
            asked.fold(self.request(method.clone(), &path), ClientRequest::append_header).send()
        });
        let response = response.await?;
        let name = format!("{method} {path}");
        let response = match response.status().as_u16() {
            200 | 206 | 304 | 410 | 416 => response,
            _ => self.accepted(&name, response).await?,
        };
        let Some(length) = length_of(&response) else {
            return Err(BackendError::Rejected(format!(
                "the backend at {} answered {name} without a length; gateway and backend may be different releases",
                self.url()
            )));
        };
        let passed = RESPONSE_HEADERS.into_iter().filter_map(|name| {
            let value = response.headers().get(&name)?.clone();
            Some((name, value))
        });
        let (status, headers) = (response.status(), passed.collect());
        let has_body = *method != Method::HEAD && length > 0;
        let body: ResponseBody = if has_body { whole(response, length) } else { stream::empty().boxed_local() };
        Ok(OutputResponse { status, headers, length, body })
    }
}

fn length_of(response: &ClientResponse) -> Option<u64> {
    if response.status() == StatusCode::NOT_MODIFIED {
        return Some(0);
    }
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The body, with an error in place of an end before its length: awc reports a connection that was closed early as an end.
fn whole(response: ClientResponse, length: u64) -> ResponseBody {
    let state = (response, length);
    let body = stream::try_unfold(state, async |(mut response, left)| {
        if left == 0 {
            return Ok(None);
        }
        match response.next().await {
            Some(bytes) => {
                let bytes = bytes?;
                let left = left.checked_sub(bytes.len() as u64).ok_or(PayloadError::Overflow)?;
                Ok(Some((bytes, (response, left))))
            }
            None => Err(PayloadError::Incomplete(None)),
        }
    });
    body.boxed_local()
}
