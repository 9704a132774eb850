//! One WebSocket connection to a service.

use std::time::{Duration, Instant};

use actix_http::ws::{CloseCode, Codec, Frame, Message, ProtocolError};
use awc::{
    error::WsClientError,
    http::{StatusCode, header},
};
use cc_executor_actors::{
    protocol::{MAX_MESSAGE_TO_CLIENT, MethodParams, SUBPROTOCOL},
    rpc::{self, ErrorObject},
};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{sleep_until, timeout};

use super::{
    ClientError, PATIENCE, exit,
    http::{MAX_REFUSAL, get, token, within},
    silence::{Overdue, Silence},
};
use crate::config::{self, TOKEN, variables};

/// The longest wait for a close frame to be sent. The service also notices a client that leaves without one.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// A WebSocket connection, which is one session of the service.
pub(super) struct Connection {
    frames: actix_codec::Framed<awc::BoxedSocket, Codec>,
    close_code: Option<u16>,
    silence: Silence,
}

/// An event of a connection.
pub(super) enum ConnectionEvent {
    /// A message.
    Message(bytes::Bytes),
    /// A frame without a message, such as a ping.
    Nothing,
    /// The connection is broken, for this reason.
    Broken(ClientError),
}

impl Connection {
    /// Opens a session.
    pub(super) async fn open(url: &str) -> Result<Connection, ClientError> {
        let mut request = awc::Client::builder()
            .timeout(PATIENCE)
            .finish()
            .ws(url)
            .protocols([SUBPROTOCOL])
            .max_frame_size(2 * MAX_MESSAGE_TO_CLIENT);
        if let Some(token) = token()? {
            request = request.bearer_auth(token);
        }
        match request.connect().await {
            Ok((_, frames)) => Ok(Connection { frames, close_code: None, silence: Silence::new(Instant::now()) }),
            Err(WsClientError::InvalidResponseStatus(status)) => {
                Err(refused(url, status, &body_of_refusal(url, status).await))
            }
            Err(error) => Err(unreachable(url, &error)),
        }
    }

    /// Calls a method.
    pub(super) async fn call<P: MethodParams>(&mut self, id: u64, params: &P) -> Result<(), ClientError> {
        self.send(rpc::call_text(id, P::NAME, params)).await
    }

    /// Sends a text as it is.
    pub(super) async fn send(&mut self, text: String) -> Result<(), ClientError> {
        self.transmit(Message::Text(text.into())).await
    }

    /// Expects a frame in every period.
    pub(super) fn expect_frames_every(&mut self, period: Duration) {
        self.silence.expect_every(period, Instant::now());
    }

    /// Sends a frame. The wait is bounded, because the service may not read.
    async fn transmit(&mut self, message: Message) -> Result<(), ClientError> {
        match timeout(PATIENCE, self.frames.send(message)).await {
            Ok(sent) => sent.map_err(|error| broken(&error)),
            Err(_) => Err(ClientError::new(
                exit::UNAVAILABLE,
                format!("the service has read nothing for {} s", PATIENCE.as_secs()),
            )),
        }
    }

    /// The next frame. The future may be dropped and called again. The error is that no frame came for too long.
    async fn next_frame(&mut self) -> Result<Option<Result<Frame, ProtocolError>>, ClientError> {
        loop {
            tokio::select! {
                biased;
                frame = self.frames.next() => {
                    self.silence.record_frame(Instant::now());
                    return Ok(frame);
                }
                () = sleep_until(self.silence.due_at().into()) => self.on_overdue()?,
            }
        }
    }

    /// Sends a ping because no frame came in time. The error is that none came for too long.
    fn on_overdue(&mut self) -> Result<(), ClientError> {
        match self.silence.overdue(Instant::now()) {
            Overdue::Ping => {
                // Not awaited: if the socket is full, the missing pong has the same effect.
                let sent = self.frames.send(Message::Ping(bytes::Bytes::new())).now_or_never();
                sent.unwrap_or(Ok(())).map_err(|error| broken(&error))
            }
            Overdue::Broken(silent) => Err(ClientError::new(
                exit::UNAVAILABLE,
                format!("the service gives no sign of life: nothing came for {} s", silent.as_secs()),
            )),
        }
    }

    /// The code of the service's close frame, once that has come.
    pub(super) fn close_code(&self) -> Option<u16> {
        self.close_code
    }

    /// Waits for the next frame, and answers a ping.
    pub(super) async fn next(&mut self) -> ConnectionEvent {
        let frame = match self.next_frame().await {
            Ok(frame) => frame,
            Err(error) => return ConnectionEvent::Broken(error),
        };
        match frame {
            Some(Ok(Frame::Text(text))) => ConnectionEvent::Message(text),
            Some(Ok(Frame::Ping(payload))) => match self.transmit(Message::Pong(payload)).await {
                Ok(()) => ConnectionEvent::Nothing,
                Err(error) => ConnectionEvent::Broken(error),
            },
            Some(Ok(Frame::Close(reason))) => {
                self.close_code = reason.as_ref().map(|reason| reason.code.into());
                let code = match reason.as_ref().map(|reason| reason.code) {
                    Some(CloseCode::Again | CloseCode::Away | CloseCode::Restart) => exit::TEMPFAIL,
                    _ => exit::UNAVAILABLE,
                };
                let why = reason.and_then(|reason| reason.description).unwrap_or_else(|| "no reason given".to_owned());
                ConnectionEvent::Broken(ClientError::new(code, format!("the service closed the session: {why}")))
            }
            Some(Ok(_)) => ConnectionEvent::Nothing,
            Some(Err(error)) => ConnectionEvent::Broken(broken(&error)),
            None => ConnectionEvent::Broken(ClientError::new(
                exit::UNAVAILABLE,
                "the connection broke before the end of the command was reported",
            )),
        }
    }

    /// Closes the session with a close frame.
    pub(super) async fn close(&mut self) {
        // Best effort: the service notices a client that leaves.
        let _ = timeout(CLOSE_PATIENCE, self.frames.send(Message::Close(Some(CloseCode::Normal.into())))).await;
    }
}

/// The body of the response with this status to a request for a session, or an empty one. It is requested once more
/// without an upgrade, because awc drops the body of a failed handshake.
async fn body_of_refusal(session_url: &str, status: StatusCode) -> bytes::Bytes {
    // A wrong token needs no explanation, and is not offered a second time.
    if status == StatusCode::UNAUTHORIZED {
        return bytes::Bytes::new();
    }
    let body = async {
        let request = get(&session_url.replacen("ws://", "http://", 1))?;
        match request.insert_header((header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)).send().await {
            Ok(mut response) if response.status() == status => {
                Ok(response.body().limit(MAX_REFUSAL).await.unwrap_or_default())
            }
            _ => Ok(bytes::Bytes::new()),
        }
    };
    within(session_url, body).await.unwrap_or_default()
}

/// The error for an unexpected HTTP status. The response's body has the reason if a cc-executor service has answered.
pub(super) fn refused(url: &str, status: StatusCode, body: &[u8]) -> ClientError {
    refused_with(url, status, body, config::token_variable(&variables::read()))
}

/// The same for a token that comes from this variable, if there is one.
fn refused_with(url: &str, status: StatusCode, body: &[u8], token_variable: Option<String>) -> ClientError {
    let error = serde_json::from_slice::<ErrorObject>(body);
    // From an address that has sent many wrong tokens, one more is answered with 429.
    let is_one_of_many = status == StatusCode::TOO_MANY_REQUESTS
        && error.as_ref().is_ok_and(|error| error.code == rpc::code::NOT_AUTHORIZED);
    if status == StatusCode::UNAUTHORIZED || is_one_of_many {
        return unauthorized(url, token_variable);
    }
    let code = match status {
        StatusCode::FORBIDDEN => exit::NOPERM,
        // The client, or all clients together, have used up a limit.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => exit::TEMPFAIL,
        _ => exit::UNAVAILABLE,
    };
    let message = match error {
        Ok(error) => format!("{url} answers {status}: {}", error.message),
        Err(_) if status == StatusCode::SERVICE_UNAVAILABLE => {
            format!("{url} is shutting down or not ready; try again in a moment")
        }
        Err(_) => format!("{url} answers {status}; check that --url names a cc-executor service"),
    };
    ClientError::new(code, message)
}

/// The error for a missing token, or for a wrong one, which comes from this variable.
fn unauthorized(url: &str, variable: Option<String>) -> ClientError {
    let message = match variable {
        Some(variable) => format!("{url} rejects the token in {variable}; set it to the token of the service"),
        None => format!("{url} needs a token; set {TOKEN} or {TOKEN}_FILE to the token of the service"),
    };
    ClientError::new(exit::NOPERM, message)
}

/// The error for a service that cannot be reached.
pub(super) fn unreachable(url: &str, error: &impl std::fmt::Display) -> ClientError {
    ClientError::new(
        exit::UNAVAILABLE,
        format!("cannot reach {url}: {error}; start a service with `cc-executor serve`, or name another with --url"),
    )
}

/// Reads the parameters of a notification, or the result of a call.
pub(super) fn read<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, ClientError> {
    serde_json::from_str(json.get()).map_err(|error| not_understood(&error))
}

/// The error for a message that is not valid.
pub(super) fn not_understood(error: &serde_json::Error) -> ClientError {
    ClientError::new(
        exit::SOFTWARE,
        format!("the service sent a message that is not valid: {error}; client and service may be different releases"),
    )
}

fn broken(error: &ProtocolError) -> ClientError {
    ClientError::new(exit::UNAVAILABLE, format!("the connection broke: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_gives_the_reason_of_the_service() {
        let body = |code: i64| format!(r#"{{"code":{code},"message":"because"}}"#);
        for (status, body, code, message) in [
            (403, body(-32007), exit::NOPERM, "ws://h answers 403 Forbidden: because"),
            (403, String::new(), exit::NOPERM, "ws://h answers 403 Forbidden; check that --url names"),
            (429, body(-32007), exit::NOPERM, "ws://h needs a token"),
            (429, body(-32009), exit::TEMPFAIL, "ws://h answers 429 Too Many Requests: because"),
            (502, body(-32010), exit::UNAVAILABLE, "ws://h answers 502 Bad Gateway: because"),
            (502, "<html>".to_owned(), exit::UNAVAILABLE, "ws://h answers 502 Bad Gateway; check that --url names"),
            (503, body(-32012), exit::TEMPFAIL, "ws://h answers 503 Service Unavailable: because"),
            (503, String::new(), exit::TEMPFAIL, "ws://h is shutting down or not ready; try again"),
        ] {
            let refused = refused_with("ws://h", StatusCode::from_u16(status).unwrap(), body.as_bytes(), None);
            assert_eq!(refused.code, code, "{status}");
            assert!(refused.message.starts_with(message), "{}", refused.message);
        }
    }

    #[test]
    fn a_wrong_token_is_not_a_missing_one() {
        let wrong = unauthorized("ws://h", Some("CC_EXECUTOR_TOKEN_FILE".to_owned())).message;
        assert!(wrong.starts_with("ws://h rejects the token in CC_EXECUTOR_TOKEN_FILE; "), "{wrong}");
        assert!(unauthorized("ws://h", None).message.starts_with("ws://h needs a token; set CC_EXECUTOR_TOKEN or "));
    }
}
