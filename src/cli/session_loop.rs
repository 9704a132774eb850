//! Follows one execution to its end, over one connection or several, for `run` and `attach`.
//!
//! [`LoopState`] decides; this loop waits for the next event and carries the actions out. If the execution may outlive a
//! connection, the loop connects again, and the output continues at the offsets that [`OutputView`] has reached.

mod action;
mod event;
mod state;

use std::{collections::VecDeque, io, time::Instant};

use cc_executor_actors::{
    id::{ExecutionId, InstanceId},
    protocol::{
        DEFAULT_GRACE_MS, MethodParams,
        attach::AttachParams,
        control::{ControlParams, ControlRequest, ResizeParams},
        execute::{DetachOptions, ExecuteParams, ExecutionSpec, Framing, Overflow},
        input::{CommandInput, InputParams},
    },
    rpc::ReceivedMessage,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, sleep_until, timeout_at},
};

pub(super) use self::state::{DisconnectAction, LoopPurpose};
use self::{
    action::LoopAction,
    event::{LoopEvent, OutputLoss, call},
    state::LoopState,
};
use super::{
    ClientError,
    connection::{Connection, ConnectionEvent, not_understood},
    exit,
    exit_code::EndRequest,
    output_view::OutputView,
    reconnect::ConnectAttempt,
    service::ServiceAccess,
    silence::HeartbeatEstimate,
    stdin::StdinReader,
    terminal::{RawMode, size},
};
use crate::console;

/// The options of `run` and `attach` that the loop needs.
pub(super) struct LoopOptions {
    /// The service.
    pub(super) service: ServiceAccess,
    /// Whether the service's messages are printed instead of the output.
    pub(super) json: bool,
    /// Whether the usage is printed at the end.
    pub(super) stats: bool,
    /// Whether the elapsed time is shown while there is no output.
    pub(super) shows_elapsed: bool,
    /// The command to run; `None` for `attach`.
    pub(super) run: Option<RunRequest>,
}

/// A command to run.
pub(super) struct RunRequest {
    /// The parameters of `execute` that are the same on every connection. A repeated request must not differ in them.
    pub(super) params: ExecuteParams,
    /// Whether standard input is forwarded.
    pub(super) interactive: bool,
    /// Whether the command runs on a terminal.
    pub(super) tty: bool,
}

impl RunRequest {
    /// The parameters of `execute` on this connection. `instance` names the only backend that may start the command.
    pub(super) fn sent(
        &self,
        id: Option<ExecutionId>,
        detach_ms: Option<u64>,
        instance: Option<InstanceId>,
    ) -> ExecuteParams {
        let detach = detach_ms.map(|detach_ms| DetachOptions { detach_ms, overflow: Overflow::Wait });
        let run = ExecutionSpec { execution_id: id, detach, ..self.params.run.clone() };
        ExecuteParams { run, instance, ..self.params.clone() }
    }
}

/// Follows one execution.
pub(super) struct SessionLoop {
    options: LoopOptions,
    state: LoopState,
    link: Link,
    view: OutputView,
    input: StdinReader,
    /// Keeps the terminal in raw mode.
    raw: Option<RawMode>,
}

/// The state of the connection.
enum Link {
    Open(Connection),
    /// A connection is being opened. The broken one is kept until the request was sent on the new one, because closing
    /// it earlier could end an execution that the new one could take over.
    Opening {
        attempt: ConnectAttempt,
        before: Option<Connection>,
    },
}

/// Signals from the terminal, or from another process.
struct TerminalSignals {
    interrupt: Signal,
    terminate: Signal,
    resized: Signal,
}

/// The event that ended a wait of the loop.
enum LoopWake {
    EndRequested(EndRequest),
    Resized,
    Opened(Result<Connection, ClientError>),
    Wrote(io::Result<()>),
    Received(ConnectionEvent),
    AnswerOverdue,
    Input(u64, CommandInput),
    Tick,
}

impl SessionLoop {
    pub(super) fn new(options: LoopOptions, purpose: LoopPurpose, heartbeat: HeartbeatEstimate) -> Self {
        SessionLoop {
            view: OutputView::new(options.json, options.stats, options.shows_elapsed),
            state: LoopState::new(options.service.named_url(), purpose, heartbeat),
            link: Link::Opening { attempt: ConnectAttempt::FIRST, before: None },
            input: StdinReader::closed(),
            raw: None,
            options,
        }
    }

    /// Follows the execution to its end. Returns the exit code.
    pub(super) async fn run(mut self) -> Result<u8, ClientError> {
        let no_signals = |error| ClientError::new(exit::SOFTWARE, format!("cannot listen for signals: {error}"));
        let mut signals = TerminalSignals {
            interrupt: signal(SignalKind::interrupt()).map_err(no_signals)?,
            terminate: signal(SignalKind::terminate()).map_err(no_signals)?,
            resized: signal(SignalKind::window_change()).map_err(no_signals)?,
        };
        let result = loop {
            let wake = match self.link {
                Link::Opening { attempt, .. } => self.wait_for_connection(attempt, &mut signals).await,
                Link::Open(_) => self.wait_for_event(&mut signals).await,
            };
            match self.on_wake(wake).await {
                Ok(None) => {}
                Ok(Some(code)) => break Ok(code),
                Err(error) => break Err(error),
            }
        };
        self.view.elapsed.clear();
        result
    }

    async fn wait_for_connection(&self, attempt: ConnectAttempt, signals: &mut TerminalSignals) -> LoopWake {
        let open = async {
            if !attempt.after.is_zero() {
                sleep(attempt.after).await;
            }
            let open = Connection::open(&self.options.service);
            let Some(until) = attempt.until else { return open.await };
            // A stopped service may accept a connection and never answer on it.
            let begun_at = Instant::now();
            timeout_at(until.into(), open).await.unwrap_or_else(|_| {
                let (url, seconds) = (self.options.service.named_url(), begun_at.elapsed().as_secs_f64());
                let message = format!("{url} did not open a session within {seconds:.1} s");
                Err(ClientError::new(exit::UNAVAILABLE, message))
            })
        };
        tokio::select! {
            opened = open => LoopWake::Opened(opened),
            _ = signals.interrupt.recv() => LoopWake::EndRequested(EndRequest::Interrupted),
            _ = signals.terminate.recv() => LoopWake::EndRequested(EndRequest::Terminated),
        }
    }

    async fn wait_for_event(&mut self, signals: &mut TerminalSignals) -> LoopWake {
        let Link::Open(connection) = &mut self.link else { return std::future::pending().await };
        let (tick_at, answer_by) = (self.view.elapsed.tick_at(), self.state.answer_by());
        let is_waiting = self.view.output.is_waiting();
        tokio::select! {
            biased;
            _ = signals.interrupt.recv() => LoopWake::EndRequested(EndRequest::Interrupted),
            _ = signals.terminate.recv() => LoopWake::EndRequested(EndRequest::Terminated),
            _ = signals.resized.recv(), if self.raw.is_some() => LoopWake::Resized,
            written = self.view.output.write(), if is_waiting => LoopWake::Wrote(written),
            received = connection.next(), if !is_waiting => LoopWake::Received(received),
            () = at(answer_by), if !is_waiting => LoopWake::AnswerOverdue,
            (number, params) = self.input.next() => LoopWake::Input(number, params),
            () = at(tick_at.map(Into::into)) => LoopWake::Tick,
        }
    }

    async fn on_wake(&mut self, wake: LoopWake) -> Result<Option<u8>, ClientError> {
        let event = match wake {
            LoopWake::EndRequested(request) => {
                self.view.elapsed.clear();
                Some(LoopEvent::EndRequested(request))
            }
            LoopWake::Opened(Ok(connection)) => {
                // Dropped after the request was sent on the new connection, see `Link::Opening`.
                let _before = std::mem::replace(&mut self.link, Link::Open(connection));
                return self.on_event(LoopEvent::Opened).await;
            }
            LoopWake::Opened(Err(error)) => Some(LoopEvent::OpenFailed(error)),
            LoopWake::Received(ConnectionEvent::Broken(error)) => Some(LoopEvent::Broken(error)),
            LoopWake::Received(ConnectionEvent::Nothing) => None,
            LoopWake::Received(ConnectionEvent::Message(text)) => self.on_message(&text)?,
            LoopWake::AnswerOverdue => Some(LoopEvent::AnswerOverdue),
            LoopWake::Wrote(written) => OutputLoss::check(console::outcome(written)).err().map(LoopEvent::OutputLost),
            LoopWake::Resized => {
                self.call(call::RESIZE, &ResizeParams { execution_id: None, size: size() }).await;
                None
            }
            LoopWake::Input(number, input) => {
                self.call(call::INPUT + number, &InputParams { execution_id: None, input }).await;
                None
            }
            LoopWake::Tick => {
                self.view.elapsed.show();
                None
            }
        };
        match event {
            Some(event) => self.on_event(event).await,
            None => Ok(None),
        }
    }

    /// Shows a message's output. Returns the event of any other message.
    fn on_message(&mut self, text: &[u8]) -> Result<Option<LoopEvent>, ClientError> {
        let message: ReceivedMessage<'_> = serde_json::from_slice(text).map_err(|error| not_understood(&error))?;
        self.view.take_text(text);
        if self.view.take(message.method.as_deref(), message.params)? {
            return Ok(None);
        }
        LoopEvent::of_message(message, self.state.awaits_connected())
    }

    /// Carries out the actions of an event. Returns the exit code when the client must exit.
    async fn on_event(&mut self, event: LoopEvent) -> Result<Option<u8>, ClientError> {
        let mut actions = VecDeque::from(self.state.step(event, Instant::now())?);
        while let Some(action) = actions.pop_front() {
            match action {
                LoopAction::Connect(attempt) => self.begin_connect(attempt),
                LoopAction::ExpectFramesEvery(period) => {
                    if let Link::Open(connection) = &mut self.link {
                        connection.expect_frames_every(period);
                    }
                }
                LoopAction::Execute { id, detach_ms, instance } => {
                    if let Some(params) = self.options.run.as_ref().map(|run| run.sent(id, detach_ms, instance)) {
                        self.call(call::EXECUTE, &params).await;
                    }
                }
                LoopAction::Attach { id, observe } => {
                    let (offsets, framing) = (self.view.output.offsets(), Framing::default());
                    let params = AttachParams { execution_id: id, offsets, framing, events: true, observe };
                    self.call(call::ATTACH, &params).await;
                }
                LoopAction::Cancel => {
                    let request = ControlRequest::cancel(DEFAULT_GRACE_MS);
                    self.call(call::CANCEL, &ControlParams { execution_id: None, request }).await;
                }
                LoopAction::Report(text) => self.view.report(&text),
                LoopAction::ResumeAgentOutput => self.view.output.resume_agent_text(),
                LoopAction::StartInput => self.start_input(),
                LoopAction::ContinueInput => self.input.answered(true),
                LoopAction::StopInput => self.input.answered(false),
                LoopAction::ShowActivity(activity) => self.view.elapsed.start(activity.as_deref()),
                LoopAction::PrintId(id) => {
                    let printed = OutputLoss::check(console::print_line(&id.to_string()));
                    actions.extend(self.state.step(LoopEvent::IdPrinted(printed), Instant::now())?);
                }
                LoopAction::DiscardOutput => self.view.output.discard(),
                LoopAction::FinishOutput(outcome) => {
                    let written = OutputLoss::check(console::outcome(self.view.finish().await));
                    self.raw = None;
                    self.view.conclude(&outcome)?;
                    let finished = LoopEvent::OutputFinished { outcome, written, lost: self.view.output.lost() };
                    actions.extend(self.state.step(finished, Instant::now())?);
                }
                LoopAction::Exit(code) => {
                    if let Link::Open(connection) = &mut self.link {
                        connection.close().await;
                    }
                    return Ok(Some(code));
                }
                LoopAction::ExitAtOnce(code) => return Ok(Some(code)),
            }
        }
        Ok(None)
    }

    fn begin_connect(&mut self, attempt: ConnectAttempt) {
        let before = match std::mem::replace(&mut self.link, Link::Opening { attempt, before: None }) {
            Link::Open(broken) => Some(broken),
            Link::Opening { before, .. } => before,
        };
        self.link = Link::Opening { attempt, before };
    }

    fn start_input(&mut self) {
        let Some(options) = self.options.run.as_ref().filter(|options| options.interactive) else { return };
        self.input = StdinReader::start();
        if options.tty {
            self.raw = RawMode::enter();
        }
    }

    /// Calls a method. Errors are ignored, because reading from the broken connection reports them.
    async fn call<P: MethodParams>(&mut self, id: u64, params: &P) {
        if let Link::Open(connection) = &mut self.link {
            let _ = connection.call(id, params).await;
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
