//! Turns an upgraded connection into a session.
//!
//! actix-web-actors does the handshake. The session is an actor on a plain context: the response body is the receiving
//! end of its outbox, and the client's messages are a stream to its mailbox.

use std::time::Duration;

use actix_web::{
    Error, HttpMessage, HttpRequest, HttpResponse,
    http::header,
    web::{self, Payload},
};
use actix_web_actors::ws;
use cc_executor_actors::{
    close::{CloseCode, CloseReason},
    id::SessionId,
    protocol::SUBPROTOCOL,
    rpc::{ErrorObject, code},
    session::{self, SessionContext, phase::Incoming},
    supervisor::GetStats,
};
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::ready,
    stream::{self, LocalBoxStream},
};
use log::info;

use super::{
    frame_reader::{FrameReader, Intake},
    message_budget::MessageBudget,
    read_ahead::ReadAhead,
    socket_body::SocketBody,
};
use crate::server::{
    auth::BEARER_PROTOCOL,
    caller::Caller,
    connection::{self, DRAIN_PATIENCE, Unflushed},
    tokens::TokenLease,
};

/// `GET /ws/mcp`, and its other name `GET /ws`.
pub async fn upgrade(
    request: HttpRequest,
    payload: Payload,
    caller: Caller,
    context: web::Data<SessionContext>,
    unflushed: web::Data<Unflushed>,
    budget: web::Data<MessageBudget>,
) -> Result<HttpResponse, Error> {
    let offered = offered_protocols(&request);
    if !offered.is_empty() && !offered.iter().any(|offer| offer == SUBPROTOCOL) {
        let message = format!(
            "the subprotocols {} are not supported: offer {SUBPROTOCOL}, or no subprotocol",
            offered.join(", ")
        );
        return Ok(HttpResponse::BadRequest().json(ErrorObject::new(code::METHOD, message)));
    }
    if context.supervisor.send(GetStats).await.is_ok_and(|stats| stats.draining) {
        let error = ErrorObject::new(code::DRAINING, "the service is shutting down: connect again in a moment");
        return Ok(HttpResponse::ServiceUnavailable().json(error));
    }
    if request.headers().contains_key(header::TRANSFER_ENCODING) {
        // actix would read the frames as chunks.
        let message = "a WebSocket request has no body: leave out Transfer-Encoding";
        return Ok(HttpResponse::BadRequest().json(ErrorObject::new(code::METHOD, message)));
    }
    let mut response = ws::handshake_with_protocols(&request, &[SUBPROTOCOL])?;
    let id = SessionId::random();
    let lease = request.extensions_mut().remove::<TokenLease>();
    let client = caller.client();
    let intake = Intake {
        budget: MessageBudget::clone(&budget),
        client: client.clone(),
        patience: Duration::from_millis(context.limits.client_stall_ms),
    };
    let connection = connection::of(&request);
    let incoming =
        FrameReader::new(ReadAhead::new(payload, connection.as_deref()), context.limits.message_bytes, intake)
            .into_stream();
    let incoming = while_valid(incoming, lease);
    let peer = request.peer_addr().map(|peer| peer.ip());
    let (frames, closed) = session::start(id, peer, client, SessionContext::clone(&context), incoming).await;
    unflushed.add(&request);
    let lingered = async move {
        closed.wait().await;
        actix_web::rt::time::sleep(DRAIN_PATIENCE).await;
        true
    };
    connection::shut_down_when(&request, lingered, move || {
        info!(event = "socket.shut_down", session_id:% = id; "a closed session's client does not read: its connection is shut down");
    });
    Ok(response.streaming(SocketBody::new(frames, connection)))
}

/// The client's messages, and a fault that closes the session when the client's token is not valid any more.
fn while_valid(
    incoming: impl Stream<Item = Incoming> + 'static,
    lease: Option<TokenLease>,
) -> LocalBoxStream<'static, Incoming> {
    let Some(lease) = lease else { return incoming.boxed_local() };
    let ended = lease.ended().map(|()| {
        let text = "this session's token is not in the tokens file any more: connect with a new one";
        Incoming::Fault(CloseReason::new(CloseCode::Policy, text))
    });
    let incoming = incoming.map(Some).chain(stream::iter([None]));
    let both = stream::select(incoming, ended.map(Some).into_stream());
    // `None` is the end of the client's messages.
    both.take_while(|incoming| ready(incoming.is_some())).filter_map(ready).boxed_local()
}

/// The subprotocols that the client offers, without those that carry a token.
fn offered_protocols(request: &HttpRequest) -> Vec<String> {
    let headers = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers = headers.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    offers
        .map(str::trim)
        .filter(|offer| !offer.is_empty() && !offer.starts_with(BEARER_PROTOCOL))
        .map(str::to_owned)
        .collect()
}
