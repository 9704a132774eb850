//! One WebSocket connection to a service.

use std::time::{Duration, Instant};

use actix_http::ws::{CloseCode, Codec, Frame, Message, ProtocolError};
use awc::{
    error::WsClientError,
    http::{StatusCode, header},
};
use cc_executor_actors::{
    protocol::{MAX_MESSAGE_TO_CLIENT, MethodParams, SUBPROTOCOL},
    rpc,
};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{sleep_until, timeout};

use super::{
    ClientError, PATIENCE, exit,
    http::{HttpClient, MAX_REFUSAL, within},
    service::ServiceAccess,
    silence::{Overdue, Silence},
};

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
    pub(super) async fn open(service: &ServiceAccess) -> Result<Connection, ClientError> {
        let client = service.client(Some(PATIENCE));
        let request =
            service.session_request(&client).protocols([SUBPROTOCOL]).max_frame_size(2 * MAX_MESSAGE_TO_CLIENT);
        match request.connect().await {
            Ok((_, frames)) => Ok(Connection { frames, close_code: None, silence: Silence::new(Instant::now()) }),
            Err(WsClientError::InvalidResponseStatus(status)) => {
                Err(service.refused(service.url(), status, &body_of_refusal(service, status).await))
            }
            Err(error) => Err(service.no_session(&error)),
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
async fn body_of_refusal(service: &ServiceAccess, status: StatusCode) -> bytes::Bytes {
    let (client, url) = (HttpClient::new(service), service.url());
    // A wrong token is not offered a second time.
    let request = match status {
        StatusCode::UNAUTHORIZED => client.get_without_token(url),
        _ => client.get(url),
    };
    let body = async {
        match request.insert_header((header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)).send().await {
            Ok(mut response) if response.status() == status => {
                Ok(response.body().limit(MAX_REFUSAL).await.unwrap_or_default())
            }
            _ => Ok(bytes::Bytes::new()),
        }
    };
    within(url, body).await.unwrap_or_default()
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
