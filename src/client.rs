//! The commands `run` and `healthcheck`: what a person or a script types to use a service.

mod ending;
mod output;
mod terminal;

use std::{borrow::Cow, fmt, process::ExitCode, time::Duration};

use actix_http::ws::{CloseCode, Codec, Frame, Message, ProtocolError};
use awc::error::WsClientError;
use cc_executor_actors::{
    id::ExecutionId,
    protocol::{
        MAX_MESSAGE_TO_CLIENT, PerStream, SUBPROTOCOL, Stream,
        rpc::{ErrorObject, code},
    },
    terminate::Ending,
};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use self::{
    ending::{Wanted, exit_code_of},
    output::{Damage, Output},
    terminal::Elapsed,
};
use crate::config::{self, Environment, Source, TOKEN};

/// Where a service is asked whether it is ready, by default.
pub const DEFAULT_READY_URL: &str = "http://127.0.0.1:8003/ready";

const DEFAULT_URL: &str = "ws://127.0.0.1:8003/ws/mcp";
const SESSION_PATH: &str = "/ws/mcp";

/// How long a service may take to answer when a connection is opened or its health is asked.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Exit codes, after sysexits(3) and shells.
mod exit {
    #![allow(missing_docs, reason = "each constant is its own name")]
    pub const USAGE: u8 = 64;
    pub const UNAVAILABLE: u8 = 69;
    pub const SOFTWARE: u8 = 70;
    pub const TEMPFAIL: u8 = 75;
    pub const NOPERM: u8 = 77;
    pub const TIMEOUT: u8 = 124;
    pub const SIGNALED: u8 = 128;
}

/// What `run` was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunOptions {
    /// The session's URL.
    pub url: String,
    /// What runs the command.
    pub executor: Option<String>,
    /// The total time-out, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The working directory.
    pub cwd: Option<String>,
    /// Whether the service's messages are printed instead of the output.
    pub json: bool,
    /// The command.
    pub command: String,
}

/// Why a client command failed, and the exit code that says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientError {
    code: u8,
    message: String,
}

impl ClientError {
    fn new(code: u8, message: impl Into<String>) -> Self {
        ClientError { code, message: message.into() }
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cc-executor: {}", self.message)
    }
}

/// The session's URL of a service: as given, as the environment says, or the default.
pub fn websocket_url(given: Option<&str>) -> Result<String, ClientError> {
    let given = given.map(str::to_owned).or_else(|| Environment.get("CC_EXECUTOR_URL"));
    let Some(url) = given else { return Ok(DEFAULT_URL.to_owned()) };
    let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("http://"));
    match rest.map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
        Some((authority, path)) if !authority.is_empty() && !authority.contains('@') => {
            let path = if path.is_empty() { SESSION_PATH.to_owned() } else { format!("/{path}") };
            Ok(format!("ws://{authority}{path}"))
        }
        _ => Err(ClientError::new(exit::USAGE, format!("the URL must be like ws://host:8003, not {url:?}"))),
    }
}

/// Reads a time-out in seconds.
pub fn timeout_ms(seconds: &str) -> Result<u64, ClientError> {
    match seconds.trim_end_matches('s').parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1e9 => Ok(Duration::from_secs_f64(number).as_millis().max(1) as u64),
        _ => Err(ClientError::new(exit::USAGE, format!("--timeout takes seconds, such as 30 or 0.5, not {seconds:?}"))),
    }
}

/// Asks whether a service is ready.
pub async fn healthcheck(url: String) -> ExitCode {
    let request = awc::Client::builder().timeout(CONNECT_PATIENCE).finish().get(&url).send();
    let problem = match request.await {
        Ok(answer) if answer.status().is_success() => return ExitCode::SUCCESS,
        Ok(mut answer) => {
            let body = answer.body().limit(64 * 1024).await.unwrap_or_default();
            format!("{url} answers {}: {}", answer.status(), String::from_utf8_lossy(&body))
        }
        Err(error) => format!("{url} does not answer: {error}"),
    };
    eprintln!("cc-executor: {problem}");
    ExitCode::FAILURE
}

/// Runs a command through a service. The exit code is the command's own.
pub async fn run(options: RunOptions) -> ExitCode {
    match Client::run(&options).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.code)
        }
    }
}

type Socket = actix_codec::Framed<awc::BoxedSocket, Codec>;

struct Client<'a> {
    options: &'a RunOptions,
    socket: Socket,
    output: Output,
    elapsed: Elapsed,
    execution: Option<ExecutionId>,
    wanted: Wanted,
}

/// A message of the service, as far as `run` looks at it.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct OutputParams<'a> {
    r#type: Stream,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "contentBase64")]
    content_base64: Option<Cow<'a, str>>,
    end: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Accepted {
    execution_id: ExecutionId,
}

impl<'a> Client<'a> {
    async fn run(options: &'a RunOptions) -> Result<u8, ClientError> {
        let no_signals = |error| ClientError::new(exit::SOFTWARE, format!("cannot listen for signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let socket = tokio::select! {
            socket = connect(&options.url) => socket?,
            _ = interrupt.recv() => return Ok(Wanted::INTERRUPTED),
            _ = terminate.recv() => return Ok(Wanted::TERMINATED),
        };
        let mut client = Client {
            options,
            socket,
            output: Output::new(options.json),
            elapsed: Elapsed::new(!options.json),
            execution: None,
            wanted: Wanted::Its,
        };
        client.execute().await?;
        loop {
            let tick_at = client.elapsed.tick_at();
            tokio::select! {
                biased;
                _ = interrupt.recv() => client.interrupted(Wanted::Interrupted).await?,
                _ = terminate.recv() => client.interrupted(Wanted::Terminated).await?,
                written = client.output.write(), if client.output.is_waiting() => {
                    if let Err(error) = written {
                        client.stdout_closed(&error).await?;
                    }
                }
                frame = client.socket.next(), if !client.output.is_waiting() => {
                    if let Some(code) = client.on_frame(frame).await? {
                        return Ok(code);
                    }
                }
                () = sleep_until(tick_at.unwrap_or_else(Instant::now)), if tick_at.is_some() => client.elapsed.show(),
            }
            if let Some(code) = client.wanted.given_up() {
                return Ok(code);
            }
        }
    }

    async fn execute(&mut self) -> Result<(), ClientError> {
        let mut params = json!({ "command": self.options.command });
        if let Some(executor) = &self.options.executor {
            params["executor"] = json!(executor);
        }
        if let Some(timeout_ms) = self.options.timeout_ms {
            params["timeoutMs"] = json!(timeout_ms);
        }
        if let Some(cwd) = &self.options.cwd {
            params["cwd"] = json!(cwd);
        }
        self.call(1, "execute", params).await
    }

    async fn call(&mut self, id: u64, method: &str, params: serde_json::Value) -> Result<(), ClientError> {
        let text = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string();
        self.socket.send(Message::Text(text.into())).await.map_err(|error| broken(&error))
    }

    /// Ctrl-C asks for the end, and the second one does not wait for it.
    async fn interrupted(&mut self, wanted: Wanted) -> Result<(), ClientError> {
        self.elapsed.clear();
        if self.wanted.ask(wanted) {
            eprintln!("cc-executor: canceling; once more to leave at once");
            self.call(2, "control", json!({ "type": "CANCEL" })).await?;
        }
        Ok(())
    }

    /// Whoever read our output is gone, as in `run … | head`: the command is not wanted any more.
    async fn stdout_closed(&mut self, error: &std::io::Error) -> Result<(), ClientError> {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            return Err(ClientError::new(exit::SOFTWARE, format!("cannot write the output: {error}")));
        }
        self.wanted.ask(Wanted::PipeClosed);
        self.output.discard();
        self.call(2, "control", json!({ "type": "CANCEL" })).await
    }

    async fn on_frame(&mut self, frame: Option<Result<Frame, ProtocolError>>) -> Result<Option<u8>, ClientError> {
        match frame {
            Some(Ok(Frame::Text(text))) => self.on_message(&text).await,
            Some(Ok(Frame::Ping(payload))) => {
                self.socket.send(Message::Pong(payload)).await.map_err(|error| broken(&error))?;
                Ok(None)
            }
            Some(Ok(Frame::Close(reason))) => {
                let code = match reason.as_ref().map(|reason| reason.code) {
                    Some(CloseCode::Again | CloseCode::Away) => exit::TEMPFAIL,
                    _ => exit::UNAVAILABLE,
                };
                let why = reason.and_then(|reason| reason.description).unwrap_or_else(|| "no reason given".to_owned());
                Err(self.ended_early(code, &format!("the service closed the session: {why}")))
            }
            Some(Ok(_)) => Ok(None),
            Some(Err(error)) => Err(self.ended_early(exit::UNAVAILABLE, &format!("the connection broke: {error}"))),
            None => Err(self
                .ended_early(exit::UNAVAILABLE, "the connection broke before the service said how the command ended")),
        }
    }

    fn ended_early(&mut self, code: u8, message: &str) -> ClientError {
        self.elapsed.clear();
        ClientError::new(self.wanted.code().unwrap_or(code), message)
    }

    async fn on_message(&mut self, text: &[u8]) -> Result<Option<u8>, ClientError> {
        let said: Said<'_> = serde_json::from_slice(text).map_err(|error| garbled(&error))?;
        if self.options.json {
            self.output.message(text);
        }
        match (said.method.as_deref(), said.params) {
            (Some("output"), Some(params)) => {
                let params: OutputParams<'_> = serde_json::from_str(params.get()).map_err(|error| garbled(&error))?;
                self.elapsed.clear();
                let content = (params.content.as_deref(), params.content_base64.as_deref());
                self.output.take(params.r#type, content, params.end).map_err(damaged)?;
                self.elapsed.printed(self.output.ends_a_line());
            }
            (Some("statusUpdate"), Some(params)) => return self.on_status(params.get()).await,
            (Some("error"), Some(params)) => {
                let error: ErrorObject = serde_json::from_str(params.get()).map_err(|error| garbled(&error))?;
                if error.code == code::SESSION_LIMIT {
                    return Err(ClientError::new(exit::TEMPFAIL, error.message));
                }
                self.elapsed.clear();
                eprintln!("cc-executor: {}", error.message);
            }
            (None, _) => self.on_response(&said)?,
            _ => {}
        }
        Ok(None)
    }

    fn on_response(&mut self, said: &Said<'_>) -> Result<(), ClientError> {
        match (&said.error, said.result) {
            (Some(error), _) if self.execution.is_none() => {
                self.elapsed.clear();
                Err(ClientError::new(exit_code_of_refusal(error.code), error.message.clone()))
            }
            // A CANCEL that came too late: the end is on its way.
            (Some(_), _) => Ok(()),
            (None, Some(result)) if self.execution.is_none() => {
                let accepted: Accepted = serde_json::from_str(result.get()).map_err(|error| garbled(&error))?;
                self.execution = Some(accepted.execution_id);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// The end, if this is the last status.
    async fn on_status(&mut self, params: &str) -> Result<Option<u8>, ClientError> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            status: Cow<'a, str>,
        }
        let named: Named<'_> = serde_json::from_str(params).map_err(|error| garbled(&error))?;
        if !matches!(named.status.as_ref(), "COMPLETED" | "CANCELLED" | "FAILED") {
            self.elapsed.running();
            return Ok(None);
        }
        let ending: Ending = serde_json::from_str(params).map_err(|error| garbled(&error))?;
        self.elapsed.clear();
        let flushed = self.output.finish().await;
        let sent = PerStream {
            stdout: (ending.bytes.stdout, ending.sha256.stdout.as_deref()),
            stderr: (ending.bytes.stderr, ending.sha256.stderr.as_deref()),
        };
        self.output.check(&sent).map_err(damaged)?;
        if let Err(error) = flushed
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            return Err(ClientError::new(exit::SOFTWARE, format!("cannot write the output: {error}")));
        }
        // Best effort: the execution is over, and the service notices a client that leaves.
        let _ = self.socket.send(Message::Close(Some(CloseCode::Normal.into()))).await;
        Ok(Some(
            self.wanted
                .code()
                .filter(|_| ending.reason == cc_executor_actors::terminate::Reason::Canceled)
                .unwrap_or_else(|| exit_code_of(&ending)),
        ))
    }
}

async fn connect(url: &str) -> Result<Socket, ClientError> {
    let token =
        config::secret(&Environment, TOKEN).map_err(|problems| ClientError::new(exit::USAGE, problems.to_string()))?;
    let mut request = awc::Client::builder()
        .timeout(CONNECT_PATIENCE)
        .finish()
        .ws(url)
        .protocols([SUBPROTOCOL])
        .max_frame_size(2 * MAX_MESSAGE_TO_CLIENT);
    if let Some(token) = token {
        request = request.bearer_auth(token.reveal());
    }
    match request.connect().await {
        Ok((_, socket)) => Ok(socket),
        Err(WsClientError::InvalidResponseStatus(status)) => Err(match status.as_u16() {
            401 => ClientError::new(
                exit::NOPERM,
                format!("{url} wants a token: set {TOKEN} or {TOKEN}_FILE to the service's own"),
            ),
            403 => ClientError::new(exit::NOPERM, format!("{url} does not answer to that host name without a token")),
            503 => {
                ClientError::new(exit::TEMPFAIL, format!("{url} is shutting down or not ready: try again in a moment"))
            }
            _ => ClientError::new(exit::UNAVAILABLE, format!("{url} answers {status}: is it a cc-executor service?")),
        }),
        Err(error) => Err(ClientError::new(
            exit::UNAVAILABLE,
            format!(
                "cannot reach {url}: {error}; start a service with `cc-executor serve`, or name another with --url"
            ),
        )),
    }
}

fn exit_code_of_refusal(error: i64) -> u8 {
    match error {
        code::PARAMS | code::NOT_ALLOWED | code::METHOD | code::INVALID_REQUEST => exit::USAGE,
        code::FULL | code::SESSION_LIMIT | code::DRAINING => exit::TEMPFAIL,
        code::NOT_AUTHORIZED => exit::NOPERM,
        code::INTERNAL => exit::SOFTWARE,
        _ => exit::UNAVAILABLE,
    }
}

fn broken(error: &ProtocolError) -> ClientError {
    ClientError::new(exit::UNAVAILABLE, format!("the connection broke: {error}"))
}

fn garbled(error: &serde_json::Error) -> ClientError {
    ClientError::new(exit::SOFTWARE, format!("the service said something that is not understood: {error}"))
}

fn damaged(damage: Damage) -> ClientError {
    ClientError::new(exit::SOFTWARE, format!("the output was damaged on the way: {damage}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_be_named_by_its_host_alone() {
        for (given, url) in [
            ("ws://h:1/ws/mcp", "ws://h:1/ws/mcp"),
            ("ws://h:1", "ws://h:1/ws/mcp"),
            ("http://h:1/", "ws://h:1/ws/mcp"),
            ("ws://h/prefix/ws", "ws://h/prefix/ws"),
        ] {
            assert_eq!(websocket_url(Some(given)).unwrap(), url);
        }
        for wrong in ["wss://h", "h:1", "ws://", "ws://secret@h"] {
            assert_eq!(websocket_url(Some(wrong)).unwrap_err().exit_code(), exit::USAGE, "{wrong}");
        }
    }

    #[test]
    fn a_timeout_is_in_seconds() {
        assert_eq!(timeout_ms("30"), Ok(30_000));
        assert_eq!(timeout_ms("0.25s"), Ok(250));
        for wrong in ["", "0", "-1", "soon", "nan", "inf"] {
            assert!(timeout_ms(wrong).is_err(), "{wrong}");
        }
    }
}
