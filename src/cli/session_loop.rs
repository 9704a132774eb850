//! A command as its caller sees it: asked for, followed to its end, over one connection or several.
//!
//! Where the command may go on without us, a broken connection is made again and the output goes on
//! where it was: the counts and the digest are kept over all of it.

use std::{borrow::Cow, io, process::ExitCode, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use cc_executor_actors::{
    agent::claude::EXECUTOR,
    clock::millis,
    id::ExecutionId,
    outcome::Outcome,
    protocol::control::TerminalSize,
    rpc::{ErrorObject, code},
    stream::{PerStream, Stream},
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    AttachOptions, ClientError, DisconnectAction, RunOptions,
    agent_view::AgentView,
    checksum::ChecksumError,
    connection::{Connection, ConnectionEvent, ReceivedMessage, garbled},
    exit,
    exit_code::{EndRequest, ended_by, exit_code_of},
    exit_code_of_refusal, report_outcome,
    stdin::{StdinPiece, StdinReader},
    stdout::StdoutWriter,
    terminal::{ElapsedLine, RawMode, size},
};
use crate::console::OutputReader;
use crate::console::{self, WriteFailed};

/// How long to wait before a connection is tried again: the first time, and at the most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a service may take to answer `execute` or `attach`. It waits 10 s for its backend itself.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Two updates that follow one another faster are no heartbeats: a second is the shortest, give or take a delay.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(900);

/// The ids of our calls. Input counts up from its own.
mod call {
    pub(super) const BEGIN: u64 = 1;
    pub(super) const CANCEL: u64 = 2;
    pub(super) const RESIZE: u64 = 3;
    pub(super) const INPUT: u64 = 10;
}

/// Runs a command through a service. The exit code is the command's own.
pub async fn run(options: RunOptions) -> ExitCode {
    let reconnect = match options.leave {
        DisconnectAction::Returns(patience) => Some(patience),
        DisconnectAction::Ends | DisconnectAction::GoesOn => None,
    };
    // Where the execution may outlive the connection we must know its id, even if the answer is lost.
    let id = (options.leave != DisconnectAction::Ends).then(ExecutionId::random);
    let heartbeat = options.heartbeat_ms.map(Duration::from_millis);
    let output = StdoutWriter::new(options.json);
    let elapsed = ElapsedLine::new(!options.json && !options.tty);
    let (url, json) = (options.url.clone(), options.json);
    report_outcome(
        follow(SessionLoop {
            url,
            json,
            purpose: LoopPurpose::Run(options),
            id,
            reconnect,
            heartbeat,
            ..SessionLoop::new(output, elapsed)
        })
        .await,
    )
}

/// Follows an execution that is there already. The exit code is the command's own.
pub async fn attach(options: AttachOptions) -> ExitCode {
    let AttachOptions { url, id, json, reconnect } = options;
    let new = SessionLoop::new(StdoutWriter::new(json), ElapsedLine::new(!json));
    report_outcome(
        follow(SessionLoop { url, json, purpose: LoopPurpose::Attach, id: Some(id), reconnect, ..new }).await,
    )
}

/// What a person at the terminal can do to us.
struct TerminalSignals {
    interrupt: Signal,
    terminate: Signal,
    resized: Signal,
}

enum LoopPurpose {
    Run(RunOptions),
    Attach,
}

/// Everything but the connection, which comes and goes.
struct SessionLoop {
    url: String,
    json: bool,
    purpose: LoopPurpose,
    id: Option<ExecutionId>,
    reconnect: Option<Duration>,
    /// Until when it is tried to come back, while we are away.
    away_until: Option<Instant>,
    pause: Duration,
    /// Whether `execute` was sent.
    is_asked: bool,
    /// The service has the execution.
    accepted: bool,
    /// When the answer to `execute` or `attach` is overdue, while there is none.
    answer_by: Option<Instant>,
    /// The backend that was asked for the execution, or has it: another one after a restart. `None` where the service
    /// does not tell.
    instance: Option<String>,
    /// The period of the service's heartbeats: asked for, or observed.
    heartbeat: Option<Duration>,
    /// When the newest status came over this connection.
    status_at: Option<Instant>,
    output: StdoutWriter,
    elapsed: ElapsedLine,
    /// What is shown of Claude's work.
    lines: AgentView,
    wanted: EndRequest,
    input: StdinReader,
    n_inputs: u64,
    input_under_way: bool,
    raw: Option<RawMode>,
}

/// Whether it goes on.
enum LoopStep {
    Stay,
    Exit(u8),
    /// This connection is of no more use.
    Broken(ClientError),
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
struct GapParams<'a> {
    r#type: Stream,
    from: u64,
    to: u64,
    #[serde(borrow)]
    reason: Cow<'a, str>,
}

#[derive(Deserialize)]
struct EventParams<'a> {
    #[serde(borrow)]
    event: &'a RawValue,
    #[serde(default)]
    end: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AcceptedResult<'a> {
    execution_id: ExecutionId,
    #[serde(borrow)]
    status: Cow<'a, str>,
    /// Whether its standard output is made of Claude's events.
    #[serde(default)]
    claude: bool,
    /// The backend that has it, a UUID made at its start.
    #[serde(borrow, default)]
    instance: Option<Cow<'a, str>>,
}

async fn follow(mut follower: SessionLoop) -> Result<u8, ClientError> {
    let no_signals = |error| ClientError::new(exit::SOFTWARE, format!("cannot listen for signals: {error}"));
    let mut signals = TerminalSignals {
        interrupt: signal(SignalKind::interrupt()).map_err(no_signals)?,
        terminate: signal(SignalKind::terminate()).map_err(no_signals)?,
        resized: signal(SignalKind::window_change()).map_err(no_signals)?,
    };
    let opened = tokio::select! {
        opened = Connection::open(&follower.url) => opened,
        _ = signals.interrupt.recv() => return Ok(EndRequest::INTERRUPTED),
        _ = signals.terminate.recv() => return Ok(EndRequest::TERMINATED),
    };
    let mut connection = opened?;
    follower.begin(&mut connection).await;
    loop {
        match follower.turn(&mut connection, &mut signals).await? {
            LoopStep::Stay => {}
            LoopStep::Exit(code) => {
                connection.close().await;
                return Ok(code);
            }
            LoopStep::Broken(error) => match follower.come_back(error, &mut signals).await? {
                Ok(again) => connection = again,
                Err(code) => return Ok(code),
            },
        }
        if let Some(code) = follower.wanted.given_up() {
            return Ok(code);
        }
    }
}

impl SessionLoop {
    fn new(output: StdoutWriter, elapsed: ElapsedLine) -> Self {
        SessionLoop {
            url: String::new(),
            json: false,
            purpose: LoopPurpose::Attach,
            id: None,
            reconnect: None,
            away_until: None,
            pause: FIRST_PAUSE,
            is_asked: false,
            accepted: false,
            answer_by: None,
            instance: None,
            heartbeat: None,
            status_at: None,
            output,
            elapsed,
            lines: AgentView::new(),
            wanted: EndRequest::Its,
            input: StdinReader::none(),
            n_inputs: 0,
            input_under_way: false,
            raw: None,
        }
    }

    /// Waits for the next thing and takes it.
    async fn turn(
        &mut self,
        connection: &mut Connection,
        signals: &mut TerminalSignals,
    ) -> Result<LoopStep, ClientError> {
        let tick_at = self.elapsed.tick_at();
        let answer_by = self.answer_by;
        let types = self.accepted && !self.input_under_way;
        tokio::select! {
            biased;
            _ = signals.interrupt.recv() => Ok(self.interrupted(EndRequest::Interrupted, connection).await),
            _ = signals.terminate.recv() => Ok(self.interrupted(EndRequest::Terminated, connection).await),
            _ = signals.resized.recv(), if self.raw.is_some() => {
                let TerminalSize { rows, cols } = size();
                self.call(connection, call::RESIZE, "resize", json!({ "rows": rows, "cols": cols })).await;
                Ok(LoopStep::Stay)
            }
            written = self.output.write(), if self.output.is_waiting() => match written {
                Ok(()) => Ok(LoopStep::Stay),
                Err(error) => Ok(self.write_failed(error, connection).await),
            },
            heard = connection.next(), if !self.output.is_waiting() => match heard {
                ConnectionEvent::Message(text) => self.on_message(&text, connection).await,
                ConnectionEvent::Nothing => Ok(LoopStep::Stay),
                ConnectionEvent::Broken(error) => Ok(LoopStep::Broken(error)),
            },
            () = sleep_until(answer_by.unwrap_or_else(Instant::now)), if answer_by.is_some() && !self.output.is_waiting() => {
                Ok(LoopStep::Broken(ClientError::new(exit::UNAVAILABLE, "the service does not answer")))
            }
            typed = self.input.next(), if types => {
                self.send_input(typed, connection).await;
                Ok(LoopStep::Stay)
            }
            () = sleep_until(tick_at.unwrap_or_else(Instant::now)), if tick_at.is_some() => {
                self.elapsed.show();
                Ok(LoopStep::Stay)
            }
        }
    }

    /// Calls a method. A connection that is gone is noticed where it is read.
    async fn call(&self, connection: &mut Connection, id: u64, method: &str, params: Value) {
        let _ = connection.call(id, method, params).await;
    }

    /// Asks for the execution: to run it, or to go on where its output was.
    async fn begin(&mut self, connection: &mut Connection) {
        if let Some(heartbeat) = self.heartbeat {
            connection.expect_signs_every(heartbeat);
        }
        self.status_at = None;
        let answer_by = Instant::now() + ANSWER_PATIENCE;
        self.answer_by = Some(self.away_until.map_or(answer_by, |until| until.min(answer_by)));
        match (&self.purpose, self.id) {
            // Asked for when `connected` has come: it states the instance, and the longest time that `--detach` may ask for.
            (LoopPurpose::Run(options), Some(_)) if !self.accepted && options.leave != DisconnectAction::Ends => {}
            (LoopPurpose::Run(options), id) if !self.accepted => {
                self.call(connection, call::BEGIN, "execute", execute_params(options, id, None)).await;
            }
            (_, Some(id)) => {
                let PerStream { stdout, stderr } = self.output.offsets();
                let params =
                    json!({ "executionId": id, "offsets": { "stdout": stdout, "stderr": stderr }, "events": true });
                self.call(connection, call::BEGIN, "attach", params).await;
            }
            (_, None) => {}
        }
    }

    async fn cancel(&self, connection: &mut Connection) {
        self.call(connection, call::CANCEL, "control", json!({ "type": "CANCEL" })).await;
    }

    /// Ctrl-C asks for the end, and the second one does not wait for it. Who only looks on leaves.
    async fn interrupted(&mut self, wanted: EndRequest, connection: &mut Connection) -> LoopStep {
        self.elapsed.clear();
        if matches!(self.purpose, LoopPurpose::Attach) {
            console::report("left; an execution that may detach goes on");
            return LoopStep::Exit(wanted.code().unwrap_or(EndRequest::INTERRUPTED));
        }
        if self.wanted.ask(wanted) {
            console::report("canceling; once more to leave at once");
            self.cancel(connection).await;
        }
        LoopStep::Stay
    }

    /// Whoever read our output is gone, as in `run … | head`, or the disk is full: the command is not wanted any more.
    async fn write_failed(&mut self, error: io::Error, connection: &mut Connection) -> LoopStep {
        self.output_lost(console::outcome(Err(error)));
        if matches!(self.purpose, LoopPurpose::Attach) {
            return LoopStep::Exit(self.wanted.code().unwrap_or(exit::IOERR));
        }
        self.cancel(connection).await;
        LoopStep::Stay
    }

    /// Takes note that output was not written, whatever the reason. Nothing more is, then.
    fn output_lost(&mut self, why: Result<OutputReader, WriteFailed>) {
        self.output.discard();
        let wanted = match why {
            Ok(_) => EndRequest::PipeClosed,
            Err(error) => {
                self.report(&error.to_string());
                EndRequest::WriteFailed
            }
        };
        // This is nobody's second order to end: the end is waited for.
        if self.wanted == EndRequest::Its {
            self.wanted.ask(wanted);
        }
    }

    async fn send_input(&mut self, typed: StdinPiece, connection: &mut Connection) {
        let params = match typed {
            StdinPiece::Piece(piece) => json!({ "dataBase64": STANDARD.encode(piece) }),
            StdinPiece::End => json!({ "eof": true }),
        };
        self.input_under_way = true;
        self.n_inputs += 1;
        self.call(connection, call::INPUT + self.n_inputs, "input", params).await;
    }

    async fn on_message(&mut self, text: &[u8], connection: &mut Connection) -> Result<LoopStep, ClientError> {
        let said: ReceivedMessage<'_> = serde_json::from_slice(text).map_err(|error| garbled(&error))?;
        if self.json {
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
            (Some("event"), Some(params)) if !self.json => {
                let EventParams { event, end } = serde_json::from_str(params.get()).map_err(|error| garbled(&error))?;
                for line in self.lines.of_event(event.get(), end) {
                    self.elapsed.clear();
                    console::report_line(&line);
                }
            }
            (Some("gap"), Some(params)) => {
                let gap: GapParams<'_> = serde_json::from_str(params.get()).map_err(|error| garbled(&error))?;
                self.output.skip(gap.r#type, gap.from, gap.to).map_err(damaged)?;
                let GapParams { r#type, from, to, reason } = gap;
                let stream = r#type.as_str();
                self.report(&format!("bytes {from} to {to} of {stream} are lost ({} bytes): {reason}", to - from));
            }
            (Some("statusUpdate"), Some(params)) => {
                self.observe_heartbeat(connection);
                return self.on_status(params.get()).await;
            }
            (Some("detached"), _) => {
                return Err(self.ended_early(&ClientError::new(
                    exit::UNAVAILABLE,
                    "another client follows the execution now; it goes on",
                )));
            }
            (Some("connected"), Some(params)) => self.on_connected(params.get(), connection).await?,
            (Some("error"), Some(params)) => {
                let error: ErrorObject = serde_json::from_str(params.get()).map_err(|error| garbled(&error))?;
                if error.code == code::SESSION_LIMIT {
                    return Ok(LoopStep::Broken(ClientError::new(exit::TEMPFAIL, error.message)));
                }
                self.report(&error.message);
            }
            (None, _) => return self.on_response(&said, connection).await,
            _ => {}
        }
        Ok(LoopStep::Stay)
    }

    fn report(&mut self, text: &str) {
        self.elapsed.clear();
        console::report(text);
    }

    /// Learns how often the service says how an execution is of which another client has asked that: the longest time
    /// between two updates, because others than heartbeats come between these.
    fn observe_heartbeat(&mut self, connection: &mut Connection) {
        let now = Instant::now();
        let Some(since) = self.status_at.replace(now).map(|at| now - at) else { return };
        let longest = self.heartbeat.is_none_or(|known| since > known);
        if matches!(self.purpose, LoopPurpose::Attach) && since >= SHORTEST_HEARTBEAT && longest {
            self.heartbeat = Some(since);
            connection.expect_signs_every(since);
        }
    }

    async fn on_connected(&mut self, params: &str, connection: &mut Connection) -> Result<(), ClientError> {
        #[derive(Deserialize)]
        struct ConnectedParams {
            limits: DetachLimit,
            #[serde(default)]
            instance: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct DetachLimit {
            #[serde(default)]
            detach_ms: Option<u64>,
        }
        let LoopPurpose::Run(options) = &self.purpose else { return Ok(()) };
        if options.leave == DisconnectAction::Ends || self.accepted {
            return Ok(());
        }
        let ConnectedParams { limits, instance } = serde_json::from_str(params).map_err(|error| garbled(&error))?;
        let mut params = execute_params(options, self.id, limits.detach_ms);
        if std::mem::replace(&mut self.is_asked, true) {
            let Some(before) = &self.instance else {
                let message = "the connection broke before the service answered, and the service does not state its instance: the command may have run, so it is not requested again";
                return Err(self.ended_early(&ClientError::new(exit::UNAVAILABLE, message)));
            };
            params["instance"] = json!(before);
        } else {
            self.instance = instance;
        }
        self.call(connection, call::BEGIN, "execute", params).await;
        Ok(())
    }

    async fn on_response(
        &mut self,
        said: &ReceivedMessage<'_>,
        connection: &mut Connection,
    ) -> Result<LoopStep, ClientError> {
        if said.id == Some(call::BEGIN) {
            self.answer_by = None;
        }
        match (said.id, &said.error, said.result) {
            (Some(call::BEGIN), Some(error), _) => {
                let refusal = self.refusal(error);
                let passes = matches!(error.code, code::BACKEND | code::DRAINING | code::SESSION_LIMIT);
                if self.away_until.is_some() && passes {
                    return Ok(LoopStep::Broken(refusal));
                }
                Err(self.ended_early(&refusal))
            }
            (Some(call::BEGIN), None, Some(result)) => {
                let accepted: AcceptedResult<'_> =
                    serde_json::from_str(result.get()).map_err(|error| garbled(&error))?;
                self.on_accepted(&accepted, connection).await
            }
            // Cancel and resize: if they came too late, the end is on its way.
            (Some(id), error, _) if id >= call::INPUT => {
                self.input_under_way = false;
                if let Some(error) = error {
                    self.input.stop();
                    if error.code != code::NOT_RUNNING {
                        self.report(&error.message.clone());
                    }
                }
                Ok(LoopStep::Stay)
            }
            _ => Ok(LoopStep::Stay),
        }
    }

    /// Why the service refuses to run or to attach. A backend without the execution that is not the one that had it
    /// was started since, and the end of the one before was the end of all that it ran.
    fn refusal(&self, error: &ErrorObject) -> ClientError {
        let code = exit_code_of_refusal(error.code);
        let instance = error.data.as_ref().and_then(|data| data["instance"].as_str());
        match (error.code, self.instance.as_deref(), instance) {
            (code::UNKNOWN_EXECUTION, Some(before), Some(now)) if before != now => {
                ClientError::new(code, "the service was restarted; the execution ended with it")
            }
            (code::OTHER_INSTANCE, ..) => ClientError::new(
                code,
                "the service was restarted before it answered; if it had started the command, that ended with it",
            ),
            _ => ClientError::new(code, error.message.clone()),
        }
    }

    async fn on_accepted(
        &mut self,
        accepted: &AcceptedResult<'_>,
        connection: &mut Connection,
    ) -> Result<LoopStep, ClientError> {
        if let Some(instance) = &accepted.instance {
            self.instance = Some(instance.clone().into_owned());
        }
        self.id = Some(accepted.execution_id);
        self.away_until = None;
        if accepted.claude {
            self.output.is_of_claude();
            self.output.goes_on();
        }
        self.pause = FIRST_PAUSE;
        let first = !std::mem::replace(&mut self.accepted, true);
        let LoopPurpose::Run(options) = &self.purpose else { return Ok(LoopStep::Stay) };
        if options.leave == DisconnectAction::GoesOn && accepted.status != "failed" {
            return Ok(match console::print_line(&accepted.execution_id.to_string()) {
                Ok(OutputReader::Present) => LoopStep::Exit(0),
                // Whoever does not get the id can neither follow the execution nor end it.
                lost => {
                    self.output_lost(lost);
                    self.cancel(connection).await;
                    LoopStep::Stay
                }
            });
        }
        if first && options.interactive {
            self.input = StdinReader::start();
            if options.tty {
                self.raw = RawMode::enter();
            }
        }
        Ok(LoopStep::Stay)
    }

    /// The end, if this is the last status.
    async fn on_status(&mut self, params: &str) -> Result<LoopStep, ClientError> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            status: Cow<'a, str>,
            #[serde(borrow, default)]
            activity: Option<Cow<'a, str>>,
        }
        let named: Named<'_> = serde_json::from_str(params).map_err(|error| garbled(&error))?;
        if !matches!(named.status.as_ref(), "COMPLETED" | "CANCELLED" | "FAILED") {
            self.elapsed.running();
            self.elapsed.doing(named.activity.as_deref());
            return Ok(LoopStep::Stay);
        }
        let ending: Outcome = serde_json::from_str(params).map_err(|error| garbled(&error))?;
        self.elapsed.clear();
        let flushed = self.output.finish().await;
        self.raw = None;
        let sent = PerStream {
            stdout: (ending.bytes.stdout, ending.sha256.stdout.as_deref()),
            stderr: (ending.bytes.stderr, ending.sha256.stderr.as_deref()),
        };
        self.output.check(&sent).map_err(damaged)?;
        if let Some(outcome) = ending.result.as_ref().filter(|_| !self.json) {
            console::report_line(&self.lines.of_outcome(outcome));
        }
        if let Err(error) = flushed {
            self.output_lost(console::outcome(Err(error)));
        }
        if let Some(code) = self.wanted.code_after(ending.reason) {
            return Ok(LoopStep::Exit(code));
        }
        if let Some(why) = ended_by(&ending) {
            self.report(&why);
        }
        let code = exit_code_of(&ending);
        Ok(LoopStep::Exit(if self.is_incomplete(code) { exit::SOFTWARE } else { code }))
    }

    /// Whether bytes were lost, which is said here beside the exit code that it hides.
    fn is_incomplete(&mut self, code: u8) -> bool {
        let PerStream { stdout, stderr } = self.output.lost();
        if stdout + stderr == 0 {
            return false;
        }
        self.report(&format!(
            "the output is incomplete: {stdout} bytes of stdout and {stderr} of stderr are lost; without that the exit code would be {code}"
        ));
        true
    }

    fn ended_early(&mut self, error: &ClientError) -> ClientError {
        self.elapsed.clear();
        self.raw = None;
        ClientError::new(self.wanted.code().unwrap_or(error.code), error.message.clone())
    }

    fn interrupted_away(&mut self, wanted: EndRequest) -> ClientError {
        self.wanted.ask(wanted);
        ClientError::new(exit::UNAVAILABLE, "interrupted while there was no connection")
    }

    /// Makes a connection again, and asks for the execution on it. The inner error is an exit code: we
    /// were told not to wait.
    async fn come_back(
        &mut self,
        why: ClientError,
        signals: &mut TerminalSignals,
    ) -> Result<Result<Connection, u8>, ClientError> {
        let Some(patience) = self.reconnect else {
            let why = match self.id.filter(|_| matches!(self.purpose, LoopPurpose::Run(_))) {
                // With --detach: it may have been started.
                Some(id) => ClientError::new(why.code, format!("{}; it may run: cc-executor cancel {id}", why.message)),
                None => why,
            };
            return Err(self.ended_early(&why));
        };
        if self.away_until.is_none() {
            self.report(&format!("{}; trying to come back for {} s", why.message, patience.as_secs()));
        }
        let until = *self.away_until.get_or_insert_with(|| Instant::now() + patience);
        let mut last = why;
        loop {
            if Instant::now() > until {
                let id = self.id.map(|id| id.to_string()).unwrap_or_default();
                let gone_for = millis(patience) / 1_000;
                let message =
                    format!("{}; gave up after {gone_for} s; it may still run: cc-executor attach {id}", last.message);
                return Err(self.ended_early(&ClientError::new(last.code, message)));
            }
            let opened = async {
                sleep(self.pause).await;
                // One that is stopped may take a connection and say nothing on it.
                timeout_at(until, Connection::open(&self.url))
                    .await
                    .unwrap_or_else(|_| Err(ClientError::new(exit::UNAVAILABLE, "the service does not answer")))
            };
            let opened = tokio::select! {
                opened = opened => opened,
                // Asked once, the command is canceled as soon as there is a connection again.
                _ = signals.interrupt.recv() => Err(self.interrupted_away(EndRequest::Interrupted)),
                _ = signals.terminate.recv() => Err(self.interrupted_away(EndRequest::Terminated)),
            };
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            match opened {
                Ok(mut connection) => {
                    self.begin(&mut connection).await;
                    if self.wanted != EndRequest::Its {
                        self.cancel(&mut connection).await;
                    }
                    return Ok(Ok(connection));
                }
                Err(error) if matches!(error.code, exit::NOPERM | exit::USAGE) => return Err(self.ended_early(&error)),
                Err(error) => last = error,
            }
            if let Some(code) = self.wanted.given_up() {
                return Ok(Err(code));
            }
        }
    }
}

fn execute_params(options: &RunOptions, id: Option<ExecutionId>, longest_detach_ms: Option<u64>) -> Value {
    let mut params = json!({ "command": options.command });
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            params[name] = value;
        }
    };
    set("executor", options.executor.as_ref().map(|executor| json!(executor)));
    // What the service runs by default may be Claude, too.
    let may_be_claude = options.executor.as_deref().is_none_or(|name| name == EXECUTOR);
    set("events", may_be_claude.then_some(json!(true)));
    set("claude", options.claude.clone());
    set("executionId", id.map(|id| json!(id)));
    set("timeoutMs", options.timeout_ms.map(|ms| json!(ms)));
    set("stallTimeoutMs", options.stall_timeout_ms.map(|ms| json!(ms)));
    set("heartbeatMs", options.heartbeat_ms.map(|ms| json!(ms)));
    set("cwd", options.cwd.as_ref().map(|cwd| json!(cwd)));
    set("stdin", (options.interactive && !options.tty).then_some(json!(true)));
    if options.tty {
        let TerminalSize { rows, cols } = size();
        set("pty", Some(json!({ "rows": rows, "cols": cols })));
        set("env", std::env::var("TERM").ok().map(|term| json!({ "TERM": term })));
    }
    let detach_ms = match options.leave {
        DisconnectAction::Ends => None,
        DisconnectAction::Returns(patience) => Some(Some(millis(patience))),
        DisconnectAction::GoesOn => Some(longest_detach_ms),
    };
    if let Some(detach_ms) = detach_ms {
        set("onDisconnect", Some(json!("detach")));
        set("detachMs", detach_ms.map(|ms| json!(ms)));
    }
    params
}

fn damaged(damage: ChecksumError) -> ClientError {
    ClientError::new(exit::SOFTWARE, format!("the output was damaged on the way: {damage}"))
}
