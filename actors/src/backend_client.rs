//! The execution backend, as a gateway speaks to it.
//!
//! This module knows HTTP and nothing of sessions. It belongs to executions; one client serves a
//! whole worker thread, since `awc::Client` is bound to one.
//!
//! Two kinds of backend are understood: our own, and the legacy image, which knows only `/health`
//! and a plain-text `/execute/stream`. Which one answers is learnt from `/health`, at the start: our own never
//! becomes the other kind because of a later answer. An execution belongs to the kind that it was started with.

pub mod body_end;
mod tracked_connector;

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    sync::{Arc, RwLock},
    time::Duration,
};

use awc::{
    ClientRequest, ClientResponse,
    error::{ConnectError, PayloadError, SendRequestError},
    http::{Method, StatusCode, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};

pub use self::body_end::BodyEnd;
use crate::backend_api::{
    ExecuteRequest, Health, LegacyExecuteRequest, MULTIPLEXED, NDJSON, Snapshot,
    control::{ControlCall, cancel_query},
};
use crate::{
    id::{ExecutionId, InstanceId, RequestId},
    outcome::{CancelReason, Status},
    protocol::{
        CLAUDE_EXECUTOR,
        control::{ControlReply, ControlRequest},
        execute::{ExecuteParams, ExecutionSpec},
    },
    rpc::{ErrorObject, code},
    stream::PerStream,
};

/// How long a connection to the backend may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the backend may take to answer a question that needs no work.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Idle connections are given up before our backend would close them, so that a request hardly ever
/// meets a dead one.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

/// How often a backend may turn out to have been restarted while one execution is asked for.
const MAX_RESTARTS: usize = 3;

/// The longest JSON answer read, in bytes.
const MAX_ANSWER: usize = 8 << 20;

/// What is known of the backend, shared by all workers of a gateway.
#[derive(Clone, Debug, Default)]
pub struct KnownBackend(Arc<RwLock<Option<BackendKind>>>);

/// Which backend answered last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackendKind {
    /// Our own.
    Native(Arc<Health>),
    /// The legacy image.
    Legacy,
}

impl BackendKind {
    /// What `executor` may name.
    pub fn executors(&self) -> Vec<String> {
        match self {
            BackendKind::Native(health) => health.executors.clone(),
            BackendKind::Legacy => vec!["default".to_owned()],
        }
    }

    /// Which process of our own backend it is, where it says so.
    pub fn instance(&self) -> Option<InstanceId> {
        match self {
            BackendKind::Native(health) => health.instance,
            BackendKind::Legacy => None,
        }
    }
}

impl KnownBackend {
    /// What answered last, or `None` before the first answer.
    pub fn get(&self) -> Option<BackendKind> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Records which kind of backend answered. Returns false, and records nothing, for an answer in the legacy image's
    /// form after our own backend was seen: a proxy, or another program on its port, may give one.
    fn learn(&self, kind: &BackendKind) -> bool {
        let mut known = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let fits = !matches!((&*known, kind), (Some(BackendKind::Native(_)), BackendKind::Legacy));
        if fits {
            *known = Some(kind.clone());
        }
        fits
    }
}

/// The name under which a gateway asks for an execution and follows it: one for each execution of a session. The
/// backend uses it to tell a gateway that comes back from a consumer that takes over.
#[derive(Debug)]
pub struct HoldIdentity {
    request: RequestId,
    /// The process of the backend that the last request for the execution was meant for.
    instance: Cell<Option<InstanceId>>,
    /// The number of its hold, from the backend's first word on.
    hold: Cell<Option<u64>>,
}

impl Default for HoldIdentity {
    fn default() -> Self {
        HoldIdentity { request: RequestId::random(), instance: Cell::default(), hold: Cell::default() }
    }
}

impl HoldIdentity {
    /// Takes note of the number that the backend has given it.
    pub fn holds(&self, hold: Option<u64>) {
        self.hold.set(hold.or(self.hold.get()));
    }

    /// The number of its hold, once it is known.
    pub fn hold(&self) -> Option<u64> {
        self.hold.get()
    }

    /// Whether a refusal comes from a backend that was restarted after the execution was requested.
    pub fn is_gone_with_its_backend(&self, refusal: &ErrorObject) -> bool {
        let instance = refusal.data.as_ref().and_then(|data| data["instance"].as_str()?.parse().ok());
        matches!((self.instance.get(), instance), (Some(meant), Some(answering)) if meant != answering)
    }

    /// The part of a query that names it. Empty where the backend is older than holds are.
    fn query(&self) -> String {
        match (self.hold.get(), self.instance.get()) {
            (Some(hold), _) => format!("&hold={hold}"),
            (None, Some(_)) => format!("&request_id={}", self.request),
            (None, None) => String::new(),
        }
    }
}

/// Why the backend did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The backend did not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is not one of this protocol.
    #[error("{0}")]
    Rejected(String),
    /// A refusal in the protocol's own terms.
    #[error("{0}")]
    Refused(ErrorObject),
    /// The connection broke after an execution was requested, so it may have started.
    #[error("{0}")]
    Unsure(String),
    /// The process of the backend that was asked is gone, and its executions with it.
    #[error("{0}")]
    Restarted(String),
}

impl BackendError {
    /// The same as an error for the client.
    pub fn into_error(self) -> ErrorObject {
        match self {
            BackendError::Unreachable(message)
            | BackendError::Rejected(message)
            | BackendError::Unsure(message)
            | BackendError::Restarted(message) => ErrorObject::new(code::BACKEND, message),
            BackendError::Refused(error) => error,
        }
    }
}

/// The body of an answer, as it arrives.
pub type ResponseBody = Pin<Box<dyn Stream<Item = Result<Bytes, PayloadError>>>>;

/// The stream of an execution that the backend has accepted.
pub enum OpenedStream {
    /// From our own backend: multiplexed, with a last word.
    Native(ResponseBody),
    /// From the legacy image: standard output alone; whether it ended properly is seen below awc.
    Legacy(ResponseBody, BodyEnd),
}

/// The backend of this gateway. Cheap to clone; stays on its thread.
#[derive(Clone)]
pub struct BackendClient(Rc<ClientState>);

struct ClientState {
    client: awc::Client,
    url: String,
    token: Option<String>,
    known: KnownBackend,
    claude_exit: Duration,
}

impl BackendClient {
    /// The backend at this URL, without a final slash. The token is sent with every request. `claude_exit` is how
    /// long Claude may take to exit after its last event, where the backend is the legacy image.
    pub fn new(url: &str, token: Option<String>, known: KnownBackend, claude_exit: Duration) -> Self {
        let connector = tracked_connector::connector(None, CONNECT_PATIENCE).conn_keep_alive(IDLE_CONNECTION);
        let client = awc::Client::builder().connector(connector).disable_timeout().disable_redirects().finish();
        BackendClient(Rc::new(ClientState {
            client,
            url: url.trim_end_matches('/').to_owned(),
            token,
            known,
            claude_exit,
        }))
    }

    /// How long Claude may take to exit after its last event, where the backend cannot decide that itself.
    pub fn claude_exit(&self) -> Duration {
        self.0.claude_exit
    }

    /// What answered last.
    pub fn known(&self) -> Option<BackendKind> {
        self.0.known.get()
    }

    /// Asks `GET /health`, and remembers which kind answered.
    pub async fn describe(&self) -> Result<BackendKind, BackendError> {
        let kind = self.ask_health().await?;
        if !self.0.known.learn(&kind) {
            return Err(BackendError::Rejected(format!(
                "the backend at {} is a cc-executor, and GET /health was answered by another program",
                self.0.url
            )));
        }
        Ok(kind)
    }

    /// Whether the backend answers `GET /health`, of whichever kind it is. The legacy image gives no other sign of life.
    pub async fn answers(&self) -> bool {
        self.ask_health().await.is_ok()
    }

    async fn ask_health(&self) -> Result<BackendKind, BackendError> {
        let answer = self.answer(self.request(Method::GET, "/health").send()).await?;
        let (status, body) = self.read(answer).await?;
        if status != StatusCode::OK {
            return Err(self.rejected("GET /health", status, &body));
        }
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) if value.get("server").is_some() => match serde_json::from_value::<Health>(value) {
                Ok(health) => Ok(BackendKind::Native(Arc::new(health))),
                Err(error) => Err(BackendError::Rejected(format!(
                    "the backend at {} answers GET /health in another version's terms: {error}",
                    self.0.url
                ))),
            },
            // What the legacy image answers: {"status": "healthy", …}.
            Ok(Value::Object(map)) if map.get("status").is_some_and(Value::is_string) => Ok(BackendKind::Legacy),
            _ => Err(self.rejected("GET /health", status, &body)),
        }
    }

    /// Asks `GET /ready`.
    pub async fn ready(&self) -> Result<(), BackendError> {
        if self.describe().await? == BackendKind::Legacy {
            return Ok(());
        }
        let answer = self.answer(self.request(Method::GET, "/ready").send()).await?;
        let (status, body) = self.read(answer).await?;
        if status == StatusCode::OK { Ok(()) } else { Err(self.rejected("GET /ready", status, &body)) }
    }

    /// Asks for an execution. Returns when the response's head is there; bounded by the caller.
    ///
    /// # Errors
    ///
    /// Where the request names an instance and another one answers, `-32014` and nothing has started.
    pub async fn execute(
        &self,
        id: ExecutionId,
        execute: &ExecuteParams,
        holder: &HoldIdentity,
    ) -> Result<OpenedStream, BackendError> {
        let kind = match self.known() {
            Some(kind) => kind,
            None => self.describe().await?,
        };
        match kind {
            BackendKind::Native(_) => self.execute_native(id, execute, holder).await,
            BackendKind::Legacy if execute.instance.is_some() => Err(BackendError::Refused(ErrorObject::new(
                code::OTHER_INSTANCE,
                "instance: this backend has none, so it cannot say whether the command has run: leave instance out to run it",
            ))),
            BackendKind::Legacy => self.execute_legacy(&execute.run).await,
        }
    }

    /// Each request names the backend's instance. So it can be repeated after a broken connection: the same instance
    /// knows the execution's id, and another one refuses the request.
    async fn execute_native(
        &self,
        id: ExecutionId,
        execute: &ExecuteParams,
        holder: &HoldIdentity,
    ) -> Result<OpenedStream, BackendError> {
        for _ in 0..MAX_RESTARTS {
            let instance = execute.instance.or_else(|| self.known()?.instance());
            holder.instance.set(instance);
            let request_id = instance.map(|_| holder.request);
            let body = ExecuteRequest { instance, request_id, ..ExecuteRequest::new(&execute.run, id) };
            let post = || {
                let request = self.request(Method::POST, "/execute/stream");
                request.insert_header((header::ACCEPT, MULTIPLEXED)).send_json(&body)
            };
            let first = post().await;
            let is_unsure = first.as_ref().is_err_and(is_dead_connection);
            let answer = if is_unsure && instance.is_some() { post().await } else { first };
            let answer = answer.map_err(|error| match self.unreachable(&error) {
                BackendError::Unreachable(message) if is_unsure || is_dead_connection(&error) => {
                    BackendError::Unsure(message)
                }
                error => error,
            })?;
            if answer.status() == StatusCode::OK {
                return Ok(OpenedStream::Native(answer.boxed_local()));
            }
            let (status, body) = self.read(answer).await?;
            match self.refused("POST /execute/stream", status, &body) {
                BackendError::Refused(error) if error.code == code::OTHER_INSTANCE && is_unsure => {
                    return Err(BackendError::Restarted(format!(
                        "the backend at {} was restarted while the execution was asked for: if it was started, it ended with the one before",
                        self.0.url
                    )));
                }
                // The backend was restarted before the first request, so nothing has started: ask the new instance.
                BackendError::Refused(error) if error.code == code::OTHER_INSTANCE && execute.instance.is_none() => {
                    self.describe().await?;
                }
                error => return Err(error),
            }
        }
        Err(BackendError::Rejected(format!("the backend at {} is restarted again and again", self.0.url)))
    }

    async fn execute_legacy(&self, run: &ExecutionSpec) -> Result<OpenedStream, BackendError> {
        refuse_unsupported_by_legacy(run)?;
        // A client of its own: its one connection carries one response, which the follower watches.
        let end = BodyEnd::default();
        let client = awc::Client::builder()
            .connector(tracked_connector::connector(Some(end.clone()), CONNECT_PATIENCE))
            .disable_timeout()
            .disable_redirects()
            .finish();
        let (path, media_type) = match run.executor.as_deref() {
            Some(CLAUDE_EXECUTOR) => ("/execute/claude-stream", NDJSON),
            _ => ("/execute/stream", "text/plain"),
        };
        let request = self.authorized(client.post(format!("{}{path}", self.0.url)));
        let answer = request
            .insert_header((header::ACCEPT, media_type))
            .send_json(&LegacyExecuteRequest { question: run.command.clone() })
            .await
            .map_err(|error| self.unreachable(&error))?;
        if answer.status() != StatusCode::OK {
            let (status, body) = self.read(answer).await?;
            return Err(self.rejected(&format!("POST {path}"), status, &body));
        }
        Ok(OpenedStream::Legacy(answer.boxed_local(), end))
    }

    /// Asks to follow an execution that is there already, from these offsets, which its client has
    /// received. Returns when the response's head is there; bounded by the caller.
    pub async fn attach(
        &self,
        id: ExecutionId,
        offsets: PerStream<u64>,
        holder: &HoldIdentity,
    ) -> Result<ResponseBody, BackendError> {
        if self.known().is_none() {
            self.describe().await?;
        }
        holder.instance.set(self.known().and_then(|kind| kind.instance()));
        self.follow(id, &format!("{}{}", query_of(offsets), holder.query())).await
    }

    /// Attaches again after the stream broke off, from these offsets, which the client may not have received. If
    /// another consumer holds the execution now, it keeps it, and the stream's only message is `taken_over`.
    pub async fn attach_again(
        &self,
        id: ExecutionId,
        offsets: PerStream<u64>,
        holder: &HoldIdentity,
    ) -> Result<ResponseBody, BackendError> {
        self.follow(id, &format!("{}&arrived=false{}", query_of(offsets), holder.query())).await
    }

    async fn follow(&self, id: ExecutionId, query: &str) -> Result<ResponseBody, BackendError> {
        self.must_know_ids("attach to")?;
        let path = format!("/executions/{id}/stream?{query}");
        let get = || self.request(Method::GET, &path).insert_header((header::ACCEPT, MULTIPLEXED)).send();
        let answer = match get().await {
            Err(error) if is_dead_connection(&error) => get().await,
            answer => answer,
        };
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if answer.status() != StatusCode::OK {
            let (status, body) = self.read(answer).await?;
            return Err(self.refused("GET /executions/{id}/stream", status, &body));
        }
        Ok(answer.boxed_local())
    }

    /// Says what the client of an execution has received, in the name of this hold.
    pub async fn acknowledge(
        &self,
        id: ExecutionId,
        offsets: PerStream<u64>,
        hold: Option<u64>,
    ) -> Result<(), BackendError> {
        let hold = hold.map(|hold| format!("&hold={hold}")).unwrap_or_default();
        self.post(id, &format!("ack?{}{hold}", query_of(offsets)), &json!({})).await
    }

    /// Asks the backend to end an execution whose stream has not begun. A client's cancellation ends it whichever
    /// consumer holds it; a gateway that gives up its own request names its hold.
    ///
    /// # Errors
    ///
    /// The backend does not answer, or is another one than the holder's.
    pub async fn withdraw(
        &self,
        id: ExecutionId,
        grace_ms: u64,
        reason: CancelReason,
        holder: &HoldIdentity,
        for_client: bool,
    ) -> Result<WithdrawResult, BackendError> {
        let claim = if for_client { String::new() } else { holder.query() };
        match self.delete(id, &format!("{}{claim}", cancel_query(grace_ms, reason))).await {
            Ok(()) => Ok(WithdrawResult::Accepted),
            Err(BackendError::Refused(error)) => match error.code {
                code::UNKNOWN_EXECUTION if holder.is_gone_with_its_backend(&error) => Err(BackendError::Restarted(
                    "the backend was restarted while the execution was asked for".to_owned(),
                )),
                code::UNKNOWN_EXECUTION => Ok(WithdrawResult::NeverRan),
                code::NOT_RUNNING if error.data.as_ref().is_some_and(|data| data["reason"] == "taken_over") => {
                    Ok(WithdrawResult::TakenOver)
                }
                code::NOT_RUNNING => Ok(WithdrawResult::Ended),
                _ => Err(BackendError::Refused(error)),
            },
            Err(error) => Err(error),
        }
    }

    /// Has the backend do this to an execution, whichever consumer holds it.
    ///
    /// A cancellation returns once it is accepted: the backend sends the response's head then. Its body, which ends
    /// when the tree is gone, is not waited for. Input returns when all of it is in the pipe, which takes as long as
    /// the command does not read.
    ///
    /// # Errors
    ///
    /// The backend refuses, or does not answer.
    pub async fn control(&self, id: ExecutionId, request: ControlRequest) -> Result<ControlReply, BackendError> {
        match ControlCall::of(&request) {
            ControlCall::Delete { query } => self.delete(id, &query).await?,
            ControlCall::Post { action, body } => self.post(id, action, &body).await?,
            ControlCall::Write { action, query, data } => self.write(id, action, &query, data).await?,
        }
        Ok(match request {
            ControlRequest::Cancel { .. } => ControlReply::Status(Status::Cancelling),
            ControlRequest::Pause => ControlReply::Status(Status::Paused),
            ControlRequest::Resume | ControlRequest::Signal { .. } => ControlReply::Status(Status::Running),
            ControlRequest::Resize(_) => ControlReply::Done,
            ControlRequest::Stdin(input) => ControlReply::Accepted(input.data.len()),
        })
    }

    async fn delete(&self, id: ExecutionId, query: &str) -> Result<(), BackendError> {
        self.must_know_ids("cancel")?;
        let path = format!("/executions/{id}?{query}");
        let answer = self.answer(self.request(Method::DELETE, &path).send()).await?;
        if answer.status() == StatusCode::OK {
            return Ok(());
        }
        let (status, body) = self.read(answer).await?;
        Err(self.refused("DELETE /executions/{id}", status, &body))
    }

    async fn write(&self, id: ExecutionId, action: &str, query: &str, data: Bytes) -> Result<(), BackendError> {
        self.must_know_ids("write to")?;
        let request = self.request(Method::POST, &format!("/executions/{id}/{action}?{query}"));
        let sent = request.content_type("application/octet-stream").send_body(data).await;
        let answer = sent.map_err(|error| self.unreachable(&error))?;
        let (status, body) = self.read(answer).await?;
        if status == StatusCode::OK {
            return Ok(());
        }
        Err(self.refused(&format!("POST /executions/{{id}}/{action}"), status, &body))
    }

    /// All executions that the backend knows, as it lists them.
    pub async fn list(&self) -> Result<Value, BackendError> {
        self.must_know_ids("list")?;
        let answer = self.answer(self.request(Method::GET, "/executions").send()).await?;
        let (status, body) = self.read(answer).await?;
        match serde_json::from_slice(&body) {
            Ok(list) if status == StatusCode::OK => Ok(list),
            _ => Err(self.refused("GET /executions", status, &body)),
        }
    }

    async fn post(&self, id: ExecutionId, what: &str, body: &Value) -> Result<(), BackendError> {
        let name = what.split('?').next().unwrap_or_default();
        self.must_know_ids(name)?;
        let request = self.request(Method::POST, &format!("/executions/{id}/{what}"));
        let answer = self.answer(request.send_json(body)).await?;
        let (status, body) = self.read(answer).await?;
        if status == StatusCode::OK {
            return Ok(());
        }
        Err(self.refused(&format!("POST /executions/{{id}}/{name}"), status, &body))
    }

    /// Asks how an execution is.
    pub async fn snapshot(&self, id: ExecutionId) -> Result<Snapshot, BackendError> {
        self.must_know_ids("ask about")?;
        let answer = self.answer(self.request(Method::GET, &format!("/executions/{id}")).send()).await?;
        let (status, body) = self.read(answer).await?;
        if status != StatusCode::OK {
            return Err(self.refused("GET /executions/{id}", status, &body));
        }
        serde_json::from_slice(&body)
            .map_err(|error| BackendError::Rejected(format!("GET /executions/{id} answered something else: {error}")))
    }

    /// Whether it can be asked about an execution by its id.
    pub fn knows_ids(&self) -> bool {
        self.known() != Some(BackendKind::Legacy)
    }

    fn must_know_ids(&self, what: &str) -> Result<(), BackendError> {
        if !self.knows_ids() {
            return Err(BackendError::Refused(ErrorObject::new(
                code::NOT_ALLOWED,
                format!("this backend knows no ids: only the session that started an execution can {what} it"),
            )));
        }
        Ok(())
    }

    fn request(&self, method: Method, path: &str) -> ClientRequest {
        self.authorized(self.0.client.request(method, format!("{}{path}", self.0.url)))
    }

    fn authorized(&self, request: ClientRequest) -> ClientRequest {
        match &self.0.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn answer<S>(
        &self,
        send: impl Future<Output = Result<ClientResponse<S>, SendRequestError>>,
    ) -> Result<ClientResponse<S>, BackendError> {
        match tokio::time::timeout(ANSWER_PATIENCE, send).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    async fn read<S>(&self, mut answer: ClientResponse<S>) -> Result<(StatusCode, Bytes), BackendError>
    where
        S: Stream<Item = Result<Bytes, PayloadError>>,
    {
        let status = answer.status();
        match tokio::time::timeout(ANSWER_PATIENCE, answer.body().limit(MAX_ANSWER)).await {
            Ok(Ok(body)) => Ok((status, body)),
            Ok(Err(error)) => {
                Err(BackendError::Rejected(format!("the answer of the backend at {} broke off: {error}", self.0.url)))
            }
            Err(_) => Err(self.silent()),
        }
    }

    fn unreachable(&self, error: &SendRequestError) -> BackendError {
        BackendError::Unreachable(format!(
            "cannot reach the backend at {}: {error}; check that it runs and CLAUDE_API_URL",
            self.0.url
        ))
    }

    fn silent(&self) -> BackendError {
        BackendError::Unreachable(format!(
            "the backend at {} gave no answer within {} s",
            self.0.url,
            ANSWER_PATIENCE.as_secs()
        ))
    }

    /// A refusal in our own terms is passed on; anything else is a rejection.
    fn refused(&self, what: &str, status: StatusCode, body: &[u8]) -> BackendError {
        let ours = matches!(status.as_u16(), 400 | 403 | 404 | 409 | 429 | 503);
        match serde_json::from_slice::<ErrorObject>(body) {
            Ok(error) if ours && error.code < 0 => BackendError::Refused(error),
            _ => self.rejected(what, status, body),
        }
    }

    fn rejected(&self, what: &str, status: StatusCode, body: &[u8]) -> BackendError {
        let text = String::from_utf8_lossy(body);
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        BackendError::Rejected(format!("the backend at {} answered {what} with {status}: {text}", self.0.url))
    }
}

/// What the backend says to the withdrawal of an execution of which it has not said a word.
pub enum WithdrawResult {
    /// It is being ended.
    Accepted,
    /// It never ran, and will not: the backend refuses the request, should it still come.
    NeverRan,
    /// It has ended already.
    Ended,
    /// Another consumer has it, so that it was left alone.
    TakenOver,
}

fn refuse_unsupported_by_legacy(run: &ExecutionSpec) -> Result<(), BackendError> {
    let asked = if run.cwd.is_some() {
        "cwd"
    } else if run.stdin {
        "stdin"
    } else if run.pty.is_some() {
        "pty"
    } else if run.detach.is_some() {
        "onDisconnect"
    } else if !run.env.is_empty() {
        "env"
    } else if run.claude.is_some() {
        "claude"
    } else if run.executor.as_deref().is_some_and(|name| !["default", CLAUDE_EXECUTOR].contains(&name)) {
        "executor"
    } else {
        return Ok(());
    };
    Err(BackendError::Refused(
        ErrorObject::new(
            code::NOT_ALLOWED,
            format!("{asked}: this backend cannot do that, it takes a command and nothing else"),
        )
        .with(json!({ "param": asked, "allowed": ["default"] })),
    ))
}

fn query_of(offsets: PerStream<u64>) -> String {
    format!("stdout={}&stderr={}", offsets.stdout, offsets.stderr)
}

fn is_dead_connection(error: &SendRequestError) -> bool {
    match error {
        SendRequestError::Connect(ConnectError::Disconnected) => true,
        SendRequestError::Send(_) | SendRequestError::Response(_) => true,
        SendRequestError::Connect(ConnectError::Io(error)) => {
            matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
        }
        _ => false,
    }
}
