//! Follows one execution to its end, over one connection or several, for `run` and `attach`.
//!
//! [`LoopState`] decides; this loop waits for the next event and carries the actions out. If the execution may outlive a
//! connection, the loop connects again, and the output continues at the offsets that [`OutputView`] has reached.

mod action;
mod event;
mod keyboard;
mod options;
mod signals;
mod state;
mod wake;

use std::{collections::VecDeque, time::Instant};

use cc_executor_actors::{
    id::ExecutionId,
    protocol::{
        DEFAULT_GRACE_MS, MethodParams,
        attach::AttachParams,
        control::{ControlParams, ControlRequest, ResizeParams, TerminalSize},
        execute::Framing,
        input::InputParams,
        status::StatusParams,
    },
    rpc::ReceivedMessage,
};
use futures_util::FutureExt;
use tokio::time::{sleep, timeout, timeout_at};

use self::{
    action::LoopAction,
    event::{LoopEvent, OutputLoss, call},
    keyboard::Keyboard,
    signals::{ClientSignal, ClientSignals},
    state::LoopState,
    wake::{AFTER_REDRAW, LEAVE_PATIENCE, LoopWake, REDRAW_PATIENCE, SUSPEND_PATIENCE, at},
};
pub(super) use self::{
    keyboard::SessionKeys,
    options::{LoopOptions, RunRequest},
    state::{DisconnectAction, LoopPurpose},
};
use super::{
    ClientError,
    connection::{Connection, ConnectionEvent, not_understood},
    escape::KeyRequest,
    exit,
    output_view::OutputView,
    reconnect::ConnectAttempt,
    silence::HeartbeatEstimate,
    stdin::StdinReader,
    suspend::suspend_group,
    terminal::{other_size, size},
};
use crate::console;

/// Follows one execution.
pub(super) struct SessionLoop {
    options: LoopOptions,
    state: LoopState,
    link: Link,
    view: OutputView,
    input: StdinReader,
    keyboard: Keyboard,
    /// When the terminal of the execution gets its true size, after another one.
    resize_by: Option<Instant>,
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

impl SessionLoop {
    /// `keys` are those of a terminal session.
    pub(super) fn new(
        options: LoopOptions,
        purpose: LoopPurpose,
        keys: Option<SessionKeys>,
        heartbeat: HeartbeatEstimate,
    ) -> Self {
        SessionLoop {
            view: OutputView::new(options.json, options.stats, options.quiet, options.shows_elapsed, options.style),
            state: LoopState::new(options.service.named_url(), purpose, heartbeat),
            link: Link::Opening { attempt: ConnectAttempt::FIRST, before: None },
            input: StdinReader::closed(),
            keyboard: Keyboard::new(keys),
            resize_by: None,
            options,
        }
    }

    /// Follows the execution to its end. Returns the exit code.
    pub(super) async fn run(mut self) -> Result<u8, ClientError> {
        let mut signals = ClientSignals::listen(self.keyboard.is_session())?;
        let dropped = self.keyboard.dropped();
        let result = loop {
            // Whatever the client waits for, the user can drop the connection.
            let step = tokio::select! {
                biased;
                () = dropped.notified() => None,
                step = self.next_step(&mut signals) => Some(step),
            };
            let step = match step {
                Some(step) => step,
                None => self.on_event(LoopEvent::DropRequested).await,
            };
            match step {
                Ok(None) => {}
                Ok(Some(code)) => break Ok(code),
                Err(error) => break Err(error),
            }
        };
        self.keyboard.restore();
        self.view.is_raw = false;
        match &result {
            Ok(_) => self.view.elapsed.clear(),
            Err(_) => self.view.begin_line(),
        }
        result
    }

    /// Waits for the next event and handles it. Returns the exit code when the client must exit.
    async fn next_step(&mut self, signals: &mut ClientSignals) -> Result<Option<u8>, ClientError> {
        let wake = match self.link {
            Link::Opening { attempt, .. } => self.wait_for_connection(attempt, signals).await,
            Link::Open(_) => self.wait_for_event(signals).await,
        };
        let code = self.on_wake(wake).await?;
        if code.is_none() && self.keyboard.detaches_now(self.input.is_idle()) {
            return self.on_event(LoopEvent::DetachRequested).await;
        }
        Ok(code)
    }

    async fn wait_for_connection(&mut self, attempt: ConnectAttempt, signals: &mut ClientSignals) -> LoopWake {
        let service = &self.options.service;
        let open = async {
            if !attempt.after.is_zero() {
                sleep(attempt.after).await;
            }
            let open = Connection::open(service);
            let Some(until) = attempt.until else { return open.await };
            // A stopped service may accept a connection and never answer on it.
            let begun_at = Instant::now();
            timeout_at(until.into(), open).await.unwrap_or_else(|_| {
                let (url, seconds) = (service.named_url(), begun_at.elapsed().as_secs_f64());
                let message = format!("{url} did not open a session within {seconds:.1} s");
                Err(ClientError::new(exit::UNAVAILABLE, message))
            })
        };
        tokio::select! {
            opened = open => LoopWake::Opened(opened),
            signal = signals.next() => LoopWake::Signaled(signal),
            request = self.keyboard.next() => LoopWake::Typed(request),
        }
    }

    async fn wait_for_event(&mut self, signals: &mut ClientSignals) -> LoopWake {
        let Link::Open(connection) = &mut self.link else { return std::future::pending().await };
        let (tick_at, answer_by) = (self.view.elapsed.tick_at(), self.state.answer_by());
        let resize_by = self.resize_by;
        let (is_waiting, detach_by) = (self.view.output.is_waiting(), self.keyboard.detach_by());
        tokio::select! {
            biased;
            signal = signals.next() => LoopWake::Signaled(signal),
            request = self.keyboard.next() => LoopWake::Typed(request),
            written = self.view.output.write(), if is_waiting => LoopWake::Wrote(written),
            received = connection.next(), if !is_waiting => LoopWake::Received(received),
            () = at(answer_by), if !is_waiting => LoopWake::AnswerOverdue,
            (number, params) = self.input.next() => LoopWake::Input(number, params),
            () = at(tick_at.map(Into::into)) => LoopWake::Tick,
            () = at(detach_by) => LoopWake::DetachDue,
            () = at(resize_by) => LoopWake::Signaled(ClientSignal::Resized),
        }
    }

    async fn on_wake(&mut self, wake: LoopWake) -> Result<Option<u8>, ClientError> {
        let event = match wake {
            LoopWake::Signaled(ClientSignal::EndRequested(request)) => {
                self.view.elapsed.clear();
                Some(LoopEvent::EndRequested(request))
            }
            LoopWake::Signaled(ClientSignal::Suspend) | LoopWake::Typed(KeyRequest::Suspend) => {
                return self.suspend().await;
            }
            // The terminal is gone, and with it the user.
            LoopWake::Signaled(ClientSignal::HungUp) => Some(LoopEvent::DropRequested),
            LoopWake::Signaled(ClientSignal::Continued) => return self.resume(false).await,
            LoopWake::Signaled(ClientSignal::Resized) => {
                self.resize_by = None;
                if self.keyboard.is_raw() {
                    self.send_size(call::RESIZE, None, size()).await;
                }
                None
            }
            LoopWake::Typed(KeyRequest::Help) => {
                self.view.show_lines(&self.keyboard.help());
                None
            }
            LoopWake::Typed(KeyRequest::Detach) => {
                self.keyboard.begin_detach();
                None
            }
            LoopWake::Typed(KeyRequest::Drop) => Some(LoopEvent::DropRequested),
            LoopWake::DetachDue => None,
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
            // The command has seen the other size.
            self.resize_by = self.resize_by.map(|by| by.min(Instant::now() + AFTER_REDRAW));
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
                LoopAction::ShowProgress(progress) => self.view.elapsed.start(progress),
                LoopAction::Inspect(id) => {
                    self.call(call::STATUS, &StatusParams { execution_id: Some(id) }).await;
                }
                LoopAction::SetOtherSize(id) => self.send_size(call::OTHER_SIZE, Some(id), other_size()).await,
                LoopAction::SendSize => self.resize_by = Some(Instant::now() + REDRAW_PATIENCE),
                LoopAction::BeginAt(offsets) => self.view.output.begin_at(offsets),
                LoopAction::Keep { id, detach_ms, call } => {
                    let request = ControlRequest::Keep { detach_ms };
                    self.call(call, &ControlParams { execution_id: Some(id), request }).await;
                }
                LoopAction::LeaveTerminal => self.leave_terminal().await,
                LoopAction::Note(text) => self.view.note(&text),
                LoopAction::ResumeInput => {
                    if let Some(length) = self.input.resume() {
                        let bytes = if length == 1 { "byte" } else { "bytes" };
                        self.view.report(&format!("the last {length} {bytes} of input may not have arrived"));
                    }
                }
                LoopAction::PrintId(id) => {
                    let printed = OutputLoss::check(console::print_line(&id.to_string()));
                    actions.extend(self.state.step(LoopEvent::IdPrinted(printed), Instant::now())?);
                }
                LoopAction::DiscardOutput => self.view.output.discard(),
                LoopAction::FinishOutput(outcome) => {
                    let written = OutputLoss::check(console::outcome(self.view.finish().await));
                    self.restore_terminal();
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
        let run = self.options.run.as_ref().filter(|run| run.interactive);
        if run.is_some() || self.keyboard.is_session() {
            self.input = self.keyboard.start(run.is_some_and(|run| run.tty));
            self.view.is_raw = self.keyboard.is_raw();
        }
    }

    fn restore_terminal(&mut self) {
        self.keyboard.restore();
        self.view.is_raw = false;
    }

    /// Restores the terminal of a client that leaves the execution. What the terminal has not taken is not shown.
    async fn leave_terminal(&mut self) {
        self.view.output.discard();
        // A piece that is being written would be mixed with what follows.
        let _ = timeout(LEAVE_PATIENCE, self.view.output.flush()).await;
        self.restore_terminal();
        self.view.begin_line();
    }

    /// Lets the user's shell have the terminal until it continues this process.
    async fn suspend(&mut self) -> Result<Option<u8>, ClientError> {
        // Not waited for longer, because the service may be the reason.
        let _ = timeout(SUSPEND_PATIENCE, self.on_event(LoopEvent::Suspending)).await;
        // What was typed before.
        if matches!(self.link, Link::Open(_))
            && let Some((number, input)) = self.input.next().now_or_never()
        {
            let params = InputParams { execution_id: None, input };
            let _ = timeout(SUSPEND_PATIENCE, self.call(call::INPUT + number, &params)).await;
        }
        let was_raw = self.keyboard.restore();
        self.view.is_raw = false;
        self.view.begin_line();
        suspend_group();
        self.resume(was_raw).await
    }

    /// Continues after this process was stopped.
    async fn resume(&mut self, was_raw: bool) -> Result<Option<u8>, ClientError> {
        self.keyboard.renew(was_raw);
        self.view.is_raw = self.keyboard.is_raw();
        self.on_event(LoopEvent::Resumed).await
    }

    async fn send_size(&mut self, id: u64, execution_id: Option<ExecutionId>, size: TerminalSize) {
        self.call(id, &ResizeParams { execution_id, size }).await;
    }

    /// Calls a method. Errors are ignored, because reading from the broken connection reports them.
    async fn call<P: MethodParams>(&mut self, id: u64, params: &P) {
        if let Link::Open(connection) = &mut self.link {
            let _ = connection.call(id, params).await;
        }
    }
}
