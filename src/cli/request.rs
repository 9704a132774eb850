//! One request of a client over a session: a call, and its response.

use cc_executor_actors::{protocol::MethodParams, rpc::ReceivedMessage};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{
    ClientError, PATIENCE,
    connection::{Connection, ConnectionEvent, not_understood, read},
    exit, exit_code_of_refusal,
};

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The service refuses it, with this code.
    Refused(i64, String),
    /// There is no answer.
    Failed(ClientError),
}

impl From<RequestError> for ClientError {
    fn from(error: RequestError) -> ClientError {
        match error {
            RequestError::Refused(code, message) => ClientError::new(exit_code_of_refusal(code), message),
            RequestError::Failed(error) => error,
        }
    }
}

impl From<ClientError> for RequestError {
    fn from(error: ClientError) -> Self {
        RequestError::Failed(error)
    }
}

/// Calls a method and waits for its response.
///
/// # Errors
///
/// The service refuses, or there is no valid response within [`PATIENCE`].
pub(super) async fn request<P: MethodParams, R: DeserializeOwned>(
    connection: &mut Connection,
    id: u64,
    params: &P,
) -> Result<R, RequestError> {
    let response = async {
        connection.call(id, params).await?;
        loop {
            let text = match connection.next().await {
                ConnectionEvent::Message(text) => text,
                ConnectionEvent::Nothing => continue,
                ConnectionEvent::Broken(error) => return Err(error.into()),
            };
            let message: ReceivedMessage<'_> = serde_json::from_slice(&text).map_err(|error| not_understood(&error))?;
            match (message.id == Some(id), message.error, message.result) {
                (true, Some(error), _) => return Err(RequestError::Refused(error.code, error.message)),
                (true, None, Some(result)) => return Ok(read(result)?),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, response).await.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        let message = format!("the service did not answer the request {} within {seconds} s; try again", P::NAME);
        Err(ClientError::new(exit::UNAVAILABLE, message).into())
    })
}
