//! The client itself: its connection pool, the questions about the backend's health, and the HTTP plumbing of all
//! other requests.

use std::{rc::Rc, sync::Arc, time::Duration};

use awc::{
    ClientRequest, ClientResponse, SendClientRequest,
    error::{ConnectError, PayloadError, SendRequestError},
    http::{Method, StatusCode},
};
use bytes::Bytes;
use serde_json::Value;

use super::{
    body_end::BodyEnd,
    error::BackendError,
    known::{BackendKind, KnownBackend},
    request_gate::{RequestGate, RequestPlace},
    tracked_connector,
};
use crate::{
    backend_api::{CLIENT_HEADER, Health, SESSION_HEADER},
    client::ClientName,
    dial::{DialConfig, DialError, dial_error, wire_url},
    id::SessionId,
    rpc::{ErrorObject, code},
};

/// The longest time to connect to the backend, and to each of a proxy's answer and the TLS handshake.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// The longest time to an answer that needs no work.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Idle connections are closed before a native backend would close them, so that a request hardly ever meets a dead
/// connection.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

/// The longest JSON answer read, in bytes: a page of [`crate::backend_api::MAX_LISTED`] executions of less than 16 KiB
/// each, and as much again.
const MAX_ANSWER: usize = 8 << 20;

/// The backend of this gateway. Cheap to clone. One serves a whole worker thread, because `awc::Client` is bound to
/// its thread.
#[derive(Clone)]
pub struct BackendClient {
    state: Rc<ClientState>,
    /// For whom requests are sent. `None` for the gateway's own requests.
    on_behalf_of: Option<OnBehalfOf>,
}

#[derive(Clone)]
struct OnBehalfOf {
    client: ClientName,
    session: Option<SessionId>,
}

struct ClientState {
    client: awc::Client,
    url: String,
    /// The same for awc, see [`wire_url`].
    wire_url: String,
    dial: DialConfig,
    token: Option<String>,
    known: KnownBackend,
    claude_exit: Duration,
    gate: RequestGate,
}

impl BackendClient {
    /// A client of the backend at this URL. The token is sent with every request. `claude_exit` is how long Claude may
    /// take to exit after its last event, where the backend is the legacy image. `dial` has TLS if the URL is `https://`.
    pub fn new(url: &str, token: Option<String>, known: KnownBackend, claude_exit: Duration, dial: DialConfig) -> Self {
        let client = client(dial.clone(), None);
        let url = url.trim_end_matches('/').to_owned();
        let (wire_url, gate) = (wire_url(&url), RequestGate::new());
        let state = Rc::new(ClientState { client, url, wire_url, dial, token, known, claude_exit, gate });
        BackendClient { state, on_behalf_of: None }
    }

    /// The same for requests of this client, whose name is sent with each of them.
    pub fn for_client(&self, client: ClientName) -> Self {
        BackendClient { state: Rc::clone(&self.state), on_behalf_of: Some(OnBehalfOf { client, session: None }) }
    }

    /// The same for requests of this client's session, whose id is sent with each of them, too.
    pub fn for_session(&self, client: ClientName, session: SessionId) -> Self {
        let on_behalf_of = OnBehalfOf { client, session: Some(session) };
        BackendClient { state: Rc::clone(&self.state), on_behalf_of: Some(on_behalf_of) }
    }

    /// The client for which requests are sent.
    pub fn on_behalf_of(&self) -> Option<&ClientName> {
        self.on_behalf_of.as_ref().map(|caller| &caller.client)
    }

    /// How long Claude may take to exit after its last event, where the backend cannot decide that itself.
    pub fn claude_exit(&self) -> Duration {
        self.state.claude_exit
    }

    /// The kind of backend that answered last.
    pub fn known(&self) -> Option<BackendKind> {
        self.state.known.get()
    }

    /// Whether executions can be addressed by their ids: not on the legacy image.
    pub fn knows_ids(&self) -> bool {
        self.known() != Some(BackendKind::Legacy)
    }

    /// Asks `GET /health`, and remembers which kind answered.
    ///
    /// # Errors
    ///
    /// The backend does not answer, or another program answers in its place.
    pub async fn describe(&self) -> Result<BackendKind, BackendError> {
        let kind = self.ask_health().await?;
        if !self.state.known.learn(&kind) {
            return Err(BackendError::Rejected(format!(
                "another program answers GET /health at {}, where a cc-executor backend answered before: check CC_EXECUTOR_BACKEND_URL (or CLAUDE_API_URL) and what listens there",
                self.url()
            )));
        }
        Ok(kind)
    }

    /// Whether a backend of either kind answers `GET /health`. The legacy image gives no other sign of life.
    pub async fn answers(&self) -> bool {
        self.ask_health().await.is_ok()
    }

    async fn ask_health(&self) -> Result<BackendKind, BackendError> {
        let response = self.head(self.request(Method::GET, "/health").send()).await?;
        let status = response.status();
        let body = self.read(response).await?;
        if status != StatusCode::OK {
            // Not a refusal for the client, because the client has not asked for this.
            return Err(self.rejected("GET /health", status, &body));
        }
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) if value.get("server").is_some() => match serde_json::from_value::<Health>(value) {
                Ok(health) => Ok(BackendKind::Native(Arc::new(health))),
                Err(error) => Err(BackendError::Rejected(format!(
                    "the backend at {} answers GET /health in the form of another version: {error}; run gateway and backend of the same release",
                    self.url()
                ))),
            },
            // A caller that the backend does not know gets nothing but the status.
            Ok(Value::Object(map)) if map.is_empty() => Err(BackendError::Rejected(format!(
                "the backend at {} does not accept this gateway; set CC_EXECUTOR_BACKEND_TOKEN to its token, or without a token allow the gateway's user with --allow-local-users of the backend",
                self.url()
            ))),
            // The legacy image answers {"status": "healthy", …}.
            Ok(Value::Object(map)) if map.get("status").is_some_and(Value::is_string) => Ok(BackendKind::Legacy),
            _ => Err(self.rejected("GET /health", status, &body)),
        }
    }

    /// Asks `GET /ready`.
    ///
    /// # Errors
    ///
    /// The backend does not answer, or accepts no executions.
    pub async fn ready(&self) -> Result<(), BackendError> {
        if self.describe().await? == BackendKind::Legacy {
            return Ok(());
        }
        self.fetch("GET /ready", self.request(Method::GET, "/ready").send()).await.map(drop)
    }

    /// Waits until another short request may be sent. `is_urgent` are those that end an execution.
    pub(super) async fn place(&self, is_urgent: bool) -> RequestPlace {
        self.state.gate.enter(self.on_behalf_of.as_ref().map(|of| &of.client), is_urgent).await
    }

    pub(super) fn url(&self) -> &str {
        &self.state.url
    }

    /// A request that only a backend with ids understands. `verb` names it in the error for the client.
    pub(super) fn request_by_id(&self, verb: &str, method: Method, path: &str) -> Result<ClientRequest, BackendError> {
        if self.knows_ids() {
            return Ok(self.request(method, path));
        }
        let message = format!(
            "this backend (legacy image) addresses no execution by its id: {verb} it from the session that started it"
        );
        Err(BackendError::Refused(ErrorObject::new(code::NOT_ALLOWED, message)))
    }

    pub(super) fn request(&self, method: Method, path: &str) -> ClientRequest {
        self.request_through(&self.state.client, method, path)
    }

    /// A request on a new connection, which reports to `end` whether the response's body ended properly.
    pub(super) fn tracked_request(&self, method: Method, path: &str, end: BodyEnd) -> ClientRequest {
        self.request_through(&client(self.state.dial.clone(), Some(end)), method, path)
    }

    fn request_through(&self, client: &awc::Client, method: Method, path: &str) -> ClientRequest {
        let request = client.request(method, format!("{}{path}", self.state.wire_url));
        let request = match &self.state.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let Some(OnBehalfOf { client, session }) = &self.on_behalf_of else { return request };
        let request = request.insert_header((CLIENT_HEADER, client.as_str()));
        match session {
            Some(session) => request.insert_header((SESSION_HEADER, session.to_string())),
            None => request,
        }
    }

    /// Sends a request and reads the answer. An error names the request by `name`.
    pub(super) async fn fetch(&self, name: &str, request: SendClientRequest) -> Result<Bytes, BackendError> {
        let response = self.head(request).await?;
        self.read(self.accepted(name, response).await?).await
    }

    /// Sends a request and waits for the response's head.
    pub(super) async fn head(&self, request: SendClientRequest) -> Result<ClientResponse, BackendError> {
        match tokio::time::timeout(ANSWER_PATIENCE, request).await {
            Ok(response) => response.map_err(|error| self.unreachable(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    /// The same for a request that may be repeated, because the connection may have been closed before it was sent.
    pub(super) async fn head_of_repeatable(
        &self,
        send: impl Fn() -> SendClientRequest,
    ) -> Result<ClientResponse, BackendError> {
        let sent = async {
            match send().await {
                Err(error) if is_dead_connection(&error) => send().await,
                sent => sent,
            }
        };
        match tokio::time::timeout(ANSWER_PATIENCE, sent).await {
            Ok(response) => response.map_err(|error| self.unreachable(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    /// Returns a response with status 200, and turns any other one into an error.
    pub(super) async fn accepted(&self, name: &str, response: ClientResponse) -> Result<ClientResponse, BackendError> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let body = self.read(response).await?;
        let may_refuse = matches!(status.as_u16(), 400 | 403 | 404 | 409 | 429 | 503);
        match serde_json::from_slice::<ErrorObject>(&body) {
            // The gateway is refused and not its client.
            Ok(error) if error.code == code::NOT_AUTHORIZED => Err(self.rejected(name, status, &body)),
            Ok(error) if may_refuse && error.code < 0 => Err(BackendError::Refused(error)),
            _ => Err(self.rejected(name, status, &body)),
        }
    }

    /// Reads the rest of a response.
    pub(super) async fn read(&self, mut response: ClientResponse) -> Result<Bytes, BackendError> {
        match tokio::time::timeout(ANSWER_PATIENCE, response.body().limit(MAX_ANSWER)).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(PayloadError::Overflow)) => Err(BackendError::Rejected(format!(
                "the answer of the backend at {} is larger than the limit of {MAX_ANSWER} bytes",
                self.url()
            ))),
            Ok(Err(error)) => {
                Err(BackendError::Rejected(format!("the answer of the backend at {} broke off: {error}", self.url())))
            }
            Err(_) => Err(self.silent()),
        }
    }

    pub(super) fn unreachable(&self, error: &SendRequestError) -> BackendError {
        let url = self.url();
        BackendError::Unreachable(match dial_error(error) {
            // These say what to do.
            Some(error @ (DialError::Tls { .. } | DialError::Proxy { .. } | DialError::PortSpeaksTls)) => {
                format!("cannot reach the backend at {url}: {error}")
            }
            _ => format!(
                "cannot reach the backend at {url}: {error}; check CC_EXECUTOR_BACKEND_URL (or CLAUDE_API_URL), and that the backend runs"
            ),
        })
    }

    fn silent(&self) -> BackendError {
        BackendError::Unreachable(format!(
            "the backend at {} gave no answer within {} s",
            self.url(),
            ANSWER_PATIENCE.as_secs()
        ))
    }

    fn rejected(&self, name: &str, status: StatusCode, body: &[u8]) -> BackendError {
        let url = self.url();
        let error = serde_json::from_slice::<ErrorObject>(body).ok();
        BackendError::Rejected(match (status, error) {
            (StatusCode::UNAUTHORIZED, _) if self.state.token.is_some() => format!(
                "the backend at {url} rejects the gateway's token: set CC_EXECUTOR_BACKEND_TOKEN of the gateway to the backend's token"
            ),
            (StatusCode::UNAUTHORIZED, _) => format!(
                "the backend at {url} demands a token: set CC_EXECUTOR_BACKEND_TOKEN of the gateway to the backend's token"
            ),
            (_, Some(error)) if error.code == code::NOT_AUTHORIZED => {
                format!("the backend at {url} refuses the gateway: {}", error.message)
            }
            (_, Some(error)) => format!("the backend at {url} answered {name} with {status}: {}", error.message),
            (_, None) => {
                let text = String::from_utf8_lossy(body);
                let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
                format!("the backend at {url} answered {name} with {status}: {text}")
            }
        })
    }
}

fn client(dial: DialConfig, end: Option<BodyEnd>) -> awc::Client {
    let connector = tracked_connector::connector(dial, end, CONNECT_PATIENCE).conn_keep_alive(IDLE_CONNECTION);
    awc::Client::builder().connector(connector).disable_timeout().disable_redirects().finish()
}

/// Whether a request may have met a connection that the backend had closed.
pub(super) fn is_dead_connection(error: &SendRequestError) -> bool {
    match error {
        SendRequestError::Connect(ConnectError::Disconnected) => true,
        SendRequestError::Send(_) | SendRequestError::Response(_) => true,
        SendRequestError::Connect(ConnectError::Io(error)) => {
            matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
        }
        _ => false,
    }
}
