//! A command from its start to its end: both streams are read, the clocks are kept, orders obeyed.
//!
//! One loop around [`Life`], which decides. A pipe is read only where the output_buffer lets it be (`Spool::may_read`): a slow
//! consumer slows the command down and nothing grows. Orders, clocks, consumers and the shim are served in every state;
//! only once the processes are gone is a remainder read, and then without waiting.

use std::{
    collections::VecDeque,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use cc_executor_actors::{
    agent::{Agent, AgentProgress},
    backend_api::{BackendEvent, Heartbeat, StatusChange},
    clock::{Stopwatch, millis},
    outcome::{Outcome, Status},
    protocol::{
        control::{ControlRequest, TerminalSize},
        input::InputParams,
    },
    rpc::{ErrorObject, code},
    stream::Stream,
};
use log::{info, warn};
use tokio::sync::oneshot;

pub(super) use super::outcome::EndCause;
use super::{
    GRACE_MS, JobContext, JobRequest, JobShared, JobSnapshot, ReplySender, at,
    life::{Life, LifeAction, LifeEvent},
    outcome::{self, OutputDigests},
    refuse,
    stdin::StdinWriter,
};
use crate::backend::{
    output_buffer::ConsumerChange,
    process::{LinkMessage, Process, ShimLink},
    pty::{OutputSource, Terminal},
    registry::Slot,
    shim::protocol::{Order, ShimEvent, TreeGone},
};

/// The most that is read from a pipe at a time, in bytes.
pub const READ: usize = 64 * 1024;

/// Reads smaller than this are copied out, so that a few bytes do not hold a whole buffer.
const SMALL: usize = 8 * 1024;

/// The exit code of a program that is not there, as shells have it.
const NOT_FOUND: i32 = 127;

/// How long a command may take to be executed before its consumer hears that it is not yet: longer than it takes to wake
/// a stopped shim, and less than a gateway waits for a first word.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// After the command's own exit: how long what it left behind may be quiet before it is ended.
const QUIET: Duration = Duration::from_secs(2);

/// After the command's own exit: how long what it left behind may write at all.
const LEFTOVERS_CAP: Duration = Duration::from_secs(10);

/// Follows a command that is being started to its end.
pub(super) async fn follow(process: Process, program: &str, body: &mut JobShared, slot: &Slot) -> Outcome {
    let Process { outputs, stdin, terminal, line } = process;
    let now = Instant::now();
    let mut following = RunningJob {
        line,
        life: Life::Starting,
        sweep: None,
        outputs,
        agent: body
            .terms
            .agent
            .as_ref()
            .map(|job| RunningAgent { agent: job.agent, progress: job.agent.progress(body.terms.claude_exit, now) }),
        input: match &body.terms.agent {
            Some(job) => StdinWriter::given(stdin, job.prompt.clone()),
            None => StdinWriter::new(stdin, terminal.is_some()),
        },
        terminal,
        counted: OutputDigests::default(),
        clocks: JobClocks::started(now),
        has_run: false,
        is_stopped: false,
        said_starting: false,
        steered: VecDeque::new(),
    };
    following.run(body, slot).await;
    following.ending(program)
}

/// A command, and what is known of it.
struct RunningJob {
    line: ShimLink,
    life: Life,
    /// What ends the processes of a lost shim.
    sweep: Option<Pin<Box<dyn Future<Output = TreeGone>>>>,
    outputs: [Option<OutputSource>; 2],
    terminal: Option<Terminal>,
    input: StdinWriter,
    /// Where the command is an agent: which one, and what its events say.
    agent: Option<RunningAgent>,
    counted: OutputDigests,
    clocks: JobClocks,
    /// Whether the command was executed.
    has_run: bool,
    /// Whether all of its processes are stopped, by whomever, as of the shim's last answer.
    is_stopped: bool,
    /// Whether it was said that the command has not been executed yet.
    said_starting: bool,
    /// Who waits for the tree to be stopped, or continued, in the order of the orders.
    steered: VecDeque<ReplySender>,
}

/// An agent at work.
struct RunningAgent {
    agent: &'static dyn Agent,
    progress: Box<dyn AgentProgress>,
}

/// The clocks of a command. Each stands still while it would say something untrue.
struct JobClocks {
    started_at: Instant,
    output_at: Instant,
    /// Stands still while paused.
    total: Stopwatch,
    /// Since the last output; stands still while paused, and while reading is held back.
    quiet: Stopwatch,
    /// Since the command's own exit; stands still while reading is held back.
    leftovers: Stopwatch,
}

impl JobClocks {
    fn started(now: Instant) -> Self {
        let (total, quiet, leftovers) = (Stopwatch::started(now), Stopwatch::started(now), Stopwatch::started(now));
        JobClocks { started_at: now, output_at: now, total, quiet, leftovers }
    }
}

/// What woke the loop.
enum Wake {
    Heard(LinkMessage),
    Swept(TreeGone),
    Ask(Option<JobRequest>),
    Event(LifeEvent),
    Starting,
    Line,
    Heartbeat,
    Wrote,
    Read(usize, std::io::Result<usize>),
    Moved(ConsumerChange),
}

impl RunningJob {
    /// Follows the command until its processes are gone.
    ///
    /// It ends: the command's own exit begins the time of its leftovers; their quiet and every cause begin an end with a
    /// deadline; and what is then in the pipes is read without waiting, whoever takes it.
    async fn run(&mut self, body: &mut JobShared, slot: &Slot) {
        let mut buffers = [BytesMut::new(), BytesMut::new()];
        let mut asks_open = true;
        let starting_until = Instant::now() + START_PATIENCE;
        let mut heartbeat_at = Instant::now() + body.terms.heartbeat;
        while !self.life.is_over() {
            if matches!(self.life, Life::Leftovers { .. }) && self.outputs.iter().all(Option::is_none) {
                self.on(LifeEvent::LeftoversQuiet, body);
                continue;
            }
            body.output_buffer.deliver();
            // What it writes is told after it was told that it runs.
            let is_starting = matches!(self.life, Life::Starting);
            let may_read = Stream::BOTH.map(|stream| self.has_run && body.output_buffer.may_read(stream));
            let held_back = self.outputs.iter().zip(may_read).any(|(output, may)| output.is_some() && !may);
            self.run_clocks(held_back);
            let (due, line_due) = (self.due(body), self.line.due());
            let is_silent_start = is_starting && !self.said_starting;
            let [out, err] = &mut self.outputs;
            let [out_buffer, err_buffer] = &mut buffers;
            // In this order: what is rare and must not starve behind a busy pipe, then the pipes, and the
            // quiet time last, so that it never cuts off what is there to be read.
            let wake = tokio::select! {
                biased;
                heard = self.line.next() => Wake::Heard(heard),
                gone = swept(&mut self.sweep) => Wake::Swept(gone),
                ask = body.asks.recv(), if asks_open => Wake::Ask(ask),
                () = at(line_due) => Wake::Line,
                () = at(due.event.as_ref().map(|(at, _)| *at)) => Wake::Event(due.event.map_or(LifeEvent::Overdue, |(_, event)| event)),
                () = at(Some(starting_until)), if is_silent_start => Wake::Starting,
                () = at(Some(heartbeat_at)) => Wake::Heartbeat,
                () = self.input.write(), if self.input.is_waiting() => Wake::Wrote,
                n = read(out, out_buffer), if may_read[0] && out.is_some() => Wake::Read(0, n),
                n = read(err, err_buffer), if may_read[1] && err.is_some() => Wake::Read(1, n),
                moved = body.output_buffer.moved(body.terms.consumer_stall, body.asked_at) => Wake::Moved(moved),
                () = at(due.quiet) => Wake::Event(LifeEvent::LeftoversQuiet),
                // Behind the pipes too: an event that is there to be read may give it more time.
                () = at(due.exit) => Wake::Event(LifeEvent::Wanted { cause: EndCause::Done, grace_ms: GRACE_MS }),
            };
            match wake {
                Wake::Heard(heard) => self.on_heard(heard, body),
                Wake::Swept(gone) => self.on(LifeEvent::Gone(gone), body),
                Wake::Ask(None) => asks_open = false,
                Wake::Ask(Some(ask)) => self.on_ask(ask, body),
                Wake::Event(LifeEvent::Wanted { cause, grace_ms }) => self.end(cause, grace_ms, body),
                Wake::Event(event) => self.on(event, body),
                Wake::Starting => {
                    self.said_starting = true;
                    let stand = self.stand(&body.terms, Instant::now());
                    body.output_buffer.send_event(stand.first_word(&body.terms));
                }
                Wake::Line => self.line.act(Instant::now()),
                Wake::Wrote | Wake::Moved(ConsumerChange::Room) => {}
                Wake::Heartbeat => {
                    let now = Instant::now();
                    heartbeat_at = now + body.terms.heartbeat;
                    body.look_after_consumer();
                    body.output_buffer.mention(BackendEvent::Alive(self.alive(&body.terms, now)));
                }
                Wake::Read(at, Ok(n)) if n > 0 => {
                    let bytes = take(&mut buffers[at], n);
                    self.on_output(Stream::BOTH[at], bytes, body);
                }
                // The end of the pipe, or a pipe that cannot be read: nothing more comes from it.
                Wake::Read(at, _) => {
                    self.outputs[at] = None;
                    if Stream::BOTH[at] == Stream::Stdout {
                        self.agent_is_silent();
                    }
                }
                Wake::Moved(moved) => {
                    if body.left(moved) {
                        self.end(EndCause::Disconnected, GRACE_MS, body);
                    }
                }
            }
        }
        self.read_remainder(body);
        self.input.close();
        self.steered.clear();
        if let Life::Gone { why, gone, .. } = &self.life {
            slot.gone(outcome::report(*why, *gone));
        }
    }

    fn on_output(&mut self, stream: Stream, bytes: Bytes, body: &mut JobShared) {
        self.counted.add(stream, &bytes);
        let changed = self.watch_agent(stream, &bytes);
        body.output_buffer.push(stream, bytes);
        let now = Instant::now();
        if changed {
            body.output_buffer.mention(BackendEvent::Alive(self.alive(&body.terms, now)));
        }
        self.clocks.output_at = now;
        self.clocks.quiet.reset(now);
    }

    /// Reads what is in the pipes now that all processes are gone, however full the ring is: what another process writes
    /// to them later is not this command's.
    fn read_remainder(&mut self, body: &mut JobShared) {
        for stream in Stream::BOTH {
            let Some(output) = self.outputs[stream as usize].take() else { continue };
            let remainder = output.remainder();
            let mut pieces = Vec::new();
            output.drain(remainder, READ, |piece| pieces.push(Bytes::copy_from_slice(piece)));
            body.output_buffer.make_room(stream, pieces.iter().map(Bytes::len).sum());
            if !pieces.is_empty() && !self.has_run {
                // Its shim was lost before it could tell.
                self.has_run = true;
                let first = JobSnapshot {
                    is_told: true,
                    status: Status::Running,
                    position: None,
                    alive: self.alive(&body.terms, Instant::now()),
                };
                body.output_buffer.send_event(first.first_word(&body.terms));
            }
            for piece in pieces {
                self.on_output(stream, piece, body);
            }
        }
    }

    /// Reads along in the agent's events. True if it does something else now.
    fn watch_agent(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        let Some(RunningAgent { progress, .. }) = &mut self.agent else { return false };
        if stream == Stream::Stderr {
            progress.push_stderr(bytes);
            return false;
        }
        progress.feed(bytes, Instant::now())
    }

    /// The agent can say nothing more: it has said how it ended by now, or never will.
    fn agent_is_silent(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.progress.finish(Instant::now());
        }
    }

    /// Lets each clock run exactly while its time counts.
    fn run_clocks(&mut self, held_back: bool) {
        let now = Instant::now();
        let is_paused = self.life == (Life::Running { paused: true });
        self.clocks.total.run(!is_paused, now);
        self.clocks.quiet.run(!is_paused && !held_back, now);
        self.clocks.leftovers.run(!held_back, now);
        if let Some(agent) = &mut self.agent {
            agent.progress.run_clock(!is_paused && !held_back, now);
        }
    }

    /// What is due next, and when.
    fn due(&self, body: &JobShared) -> NextDeadline {
        let limit = |ms: Option<u64>| ms.map(Duration::from_millis);
        let timeout = limit(body.terms.timeout_ms).and_then(|limit| self.clocks.total.due_at(limit));
        let stall = limit(body.terms.stall_timeout_ms).and_then(|limit| self.clocks.quiet.due_at(limit));
        let detached_until = body.detached_until();
        let mut causes = Vec::with_capacity(3);
        let (mut quiet, mut exit) = (None, None);
        match &self.life {
            Life::Starting => causes.extend(timeout.map(|at| (at, EndCause::Timeout))),
            Life::Running { .. } => match &self.agent {
                // Its time-outs are over with its last word.
                Some(agent) if agent.progress.expects_exit() => exit = agent.progress.exit_due(timeout),
                _ => {
                    causes.extend(timeout.map(|at| (at, EndCause::Timeout)));
                    causes.extend(stall.map(|at| (at, EndCause::Stalled)));
                }
            },
            Life::Leftovers { .. } => {
                let cap = self.clocks.leftovers.due_at(LEFTOVERS_CAP);
                quiet = self.clocks.quiet.due_at(QUIET).zip(cap).map(|(quiet, cap)| quiet.min(cap));
            }
            Life::Ending { .. } | Life::Gone { .. } | Life::NotStarted { .. } => {}
        }
        if self.life.cause() != Some(EndCause::Disconnected) {
            causes.extend(detached_until.map(|at| (at, EndCause::Disconnected)));
        }
        let wanted = causes.into_iter().map(|(at, cause)| (at, LifeEvent::Wanted { cause, grace_ms: GRACE_MS }));
        let overdue = self.life.deadline().map(|at| (at, LifeEvent::Overdue));
        NextDeadline { event: wanted.chain(overdue).min_by_key(|(at, _)| *at), quiet, exit }
    }

    /// Takes an event, and does what it asks for.
    fn on(&mut self, event: LifeEvent, body: &mut JobShared) {
        let was_canceling = self.life.is_canceling();
        let deed = self.life.on(event, Instant::now());
        match deed {
            None => {}
            Some(LifeAction::End { grace_ms }) => self.line.order(Order::End { grace_ms }),
            Some(LifeAction::KillLeftovers) => self.line.order(Order::Sweep),
            Some(LifeAction::Sweep) => self.sweep = Some(Box::pin(self.line.sweep())),
        }
        if self.life.is_canceling() && !was_canceling {
            // The total runs again from this moment, whatever else happens in this turn.
            self.clocks.total.run(true, Instant::now());
            body.output_buffer.send_event(BackendEvent::Status(StatusChange::to(Status::Cancelling)));
        }
    }

    fn on_heard(&mut self, heard: LinkMessage, body: &mut JobShared) {
        let id = body.terms.id;
        match heard {
            LinkMessage::NotForked(message) => {
                let message = format!("the backend cannot start another process: {message}");
                self.on(LifeEvent::NotStarted { exit_code: 126, message }, body);
            }
            LinkMessage::Lost => {
                warn!(event = "shim.lost", execution_id:% = id;
                    "the shim of this execution was ended by somebody else: the processes are ended without it");
                self.steered.clear();
                self.on(LifeEvent::Lost, body);
            }
            LinkMessage::Fact(fact) => self.on_fact(fact, body),
        }
    }

    fn on_fact(&mut self, fact: ShimEvent, body: &mut JobShared) {
        let now = Instant::now();
        match fact {
            ShimEvent::Started { pid } => {
                info!(event = "process.started", execution_id:% = body.terms.id, executor = body.terms.executor.as_str(), pid = pid; "process started");
                self.has_run = true;
                // The total goes on: a shim may have been kept from telling this at once.
                self.clocks = JobClocks { total: self.clocks.total, ..JobClocks::started(now) };
                self.on(LifeEvent::Started, body);
                let stand = self.stand(&body.terms, now);
                body.output_buffer.send_event(stand.first_word(&body.terms));
            }
            ShimEvent::NotStarted { exit_code, message } => self.on(LifeEvent::NotStarted { exit_code, message }, body),
            ShimEvent::Exited(exit) => {
                self.clocks.quiet.reset(now);
                self.clocks.leftovers.reset(now);
                self.input.close();
                self.steered.clear();
                self.on(LifeEvent::Exited(exit), body);
            }
            ShimEvent::Paused => self.paused(true, Ok(()), body),
            ShimEvent::Resumed => self.paused(false, Ok(()), body),
            ShimEvent::NotPaused => {
                let error =
                    ErrorObject::new(code::NOT_RUNNING, "a process cannot be stopped now: try again, or cancel it");
                self.paused(false, Err(error), body);
            }
            ShimEvent::Inspected { stopped } => self.is_stopped = stopped,
            ShimEvent::Unguarded => self.on(LifeEvent::Unguarded, body),
            ShimEvent::Gone(gone) => self.on(LifeEvent::Gone(gone), body),
            ShimEvent::Accepted { .. } => {}
        }
    }

    /// The shim has done what was ordered.
    fn paused(&mut self, paused: bool, outcome: Result<(), ErrorObject>, body: &mut JobShared) {
        if let Some(answer) = self.steered.pop_front() {
            let _ = answer.send(outcome);
        }
        let before = self.life.clone();
        self.on(LifeEvent::Paused(paused), body);
        // A cancellation may have overtaken it: a pause that is over is not told.
        if self.life != before {
            self.is_stopped = paused;
            // The total stands still from this moment, whatever else happens in this turn.
            self.clocks.total.run(!paused, Instant::now());
            let status = if paused { Status::Paused } else { Status::Running };
            info!(event = "process.steered", execution_id:% = body.terms.id, status = status.as_str(); "the process tree is {}",
                status.as_str());
            body.output_buffer.send_event(BackendEvent::Status(StatusChange::to(status)));
        }
    }

    fn on_ask(&mut self, ask: JobRequest, body: &mut JobShared) {
        let now = Instant::now();
        let stand = self.stand(&body.terms, now);
        let Some(ask) = body.common(ask, || stand, None) else { return };
        match ask {
            JobRequest::Control(ControlRequest::Cancel { grace_ms, reason }, _) => {
                self.end(EndCause::Asked(reason), grace_ms, body);
            }
            ask if matches!(self.life, Life::Leftovers { .. }) => refuse(ask, "its command has ended"),
            JobRequest::Control(request, answer) => match self.refusal(&request) {
                Some(why) => refuse(JobRequest::Control(request, answer), why),
                None => self.control(request, answer.unwrap_or_else(|| oneshot::channel().0)),
            },
            JobRequest::Attach(..)
            | JobRequest::Acknowledge(..)
            | JobRequest::Describe(_)
            | JobRequest::Withdraw { .. } => {}
        }
    }

    /// Why a request cannot be carried out now. What the backend does itself it can do in every state.
    fn refusal(&self, request: &ControlRequest) -> Option<&'static str> {
        if matches!(request, ControlRequest::Stdin(_) | ControlRequest::Resize(_)) {
            return None;
        }
        let pauses = matches!(request, ControlRequest::Pause | ControlRequest::Resume);
        if matches!(self.life, Life::Starting) {
            return Some("it has not started yet: only CANCEL reaches it");
        }
        if pauses && !matches!(self.life, Life::Running { .. }) {
            return Some("it is being ended");
        }
        (!self.line.is_listening()).then_some("its shim does not answer: try again in a moment, or cancel it")
    }

    fn control(&mut self, request: ControlRequest, answer: ReplySender) {
        match request {
            ControlRequest::Stdin(InputParams { data, eof }) => self.input.take(self.ended(data, eof), eof, answer),
            ControlRequest::Resize(size) => {
                let _ = answer.send(self.resize(size));
            }
            // The shim answers these with a fact.
            ControlRequest::Pause | ControlRequest::Resume => {
                self.line.order(Order::Control(request));
                self.steered.push_back(answer);
            }
            request => {
                self.line.order(Order::Control(request));
                let _ = answer.send(Ok(()));
            }
        }
    }

    /// On a terminal a character ends the input.
    fn ended(&self, bytes: Bytes, eof: bool) -> Bytes {
        match &self.terminal {
            Some(terminal) if eof => [&bytes[..], &[terminal.end_of_file()]].concat().into(),
            _ => bytes,
        }
    }

    fn resize(&self, size: TerminalSize) -> Result<(), ErrorObject> {
        let Some(terminal) = &self.terminal else {
            return Err(ErrorObject::new(
                code::NOT_ALLOWED,
                "this command runs on no terminal: ask for one with pty in execute",
            ));
        };
        terminal
            .resize(size)
            .map_err(|error| ErrorObject::new(code::INTERNAL, format!("cannot resize the terminal: {error}")))
    }

    /// Has everything ended, for this cause.
    fn end(&mut self, cause: EndCause, grace_ms: u64, body: &mut JobShared) {
        if cause == EndCause::Disconnected {
            // Nobody comes any more for what did not fit.
            body.left_at = None;
            body.output_buffer.finish();
        }
        let before = self.life.cause();
        self.on(LifeEvent::Wanted { cause, grace_ms }, body);
        if before.is_none() && self.life.cause().is_some() {
            info!(event = "process.ending", execution_id:% = body.terms.id, cause = cause.as_str(), grace_ms = grace_ms; "ending the process");
        }
    }

    fn stand(&self, terms: &JobContext, now: Instant) -> JobSnapshot {
        let (status, position) = match &self.life {
            // Its turn has come: nobody is before it.
            Life::Starting => (Status::Queued, Some(0)),
            Life::Running { paused: true } => (Status::Paused, None),
            life if life.is_canceling() => (Status::Cancelling, None),
            _ => (Status::Running, None),
        };
        let is_told = self.life != Life::Starting || self.said_starting;
        JobSnapshot { is_told, status, position, alive: self.alive(terms, now) }
    }

    fn alive(&self, terms: &JobContext, now: Instant) -> Heartbeat {
        let ran = millis(self.clocks.total.elapsed(now));
        let alive = Heartbeat {
            elapsed_ms: millis(now.saturating_duration_since(self.clocks.started_at)),
            since_output_ms: millis(now.saturating_duration_since(self.clocks.output_at)),
            deadline_ms: terms.timeout_ms.map(|timeout_ms| timeout_ms.saturating_sub(ran)),
            stopped: self.is_stopped,
            ..Heartbeat::default()
        };
        match &self.agent {
            Some(agent) => alive.doing(agent.progress.doing()),
            None => alive,
        }
    }

    fn ending(mut self, program: &str) -> Outcome {
        if let Some(agent) = &mut self.agent {
            agent.progress.finish(Instant::now());
        }
        let mut ending = match &self.life {
            Life::NotStarted { exit_code, message } => {
                let agent = self.agent.as_ref().filter(|_| *exit_code == NOT_FOUND);
                let advice = agent.map(|running| running.agent.advice_if_missing(program));
                outcome::not_started(*exit_code, advice.unwrap_or_else(|| message.clone()))
            }
            Life::Gone { why, exit, gone } => {
                let progress = self.agent.as_ref().map(|running| &*running.progress);
                outcome::ending(*why, *exit, *gone, progress)
            }
            Life::Starting | Life::Running { .. } | Life::Leftovers { .. } | Life::Ending { .. } => {
                unreachable!("it is followed until it is over")
            }
        };
        ending.elapsed_ms = self.has_run.then(|| millis(self.clocks.started_at.elapsed()));
        self.counted.into_ending(&mut ending);
        ending
    }
}

/// What is due next.
struct NextDeadline {
    /// This happens.
    event: Option<(Instant, LifeEvent)>,
    /// What is left behind has been quiet for long enough.
    quiet: Option<Instant>,
    /// The agent must have exited.
    exit: Option<Instant>,
}

async fn swept(sweep: &mut Option<Pin<Box<dyn Future<Output = TreeGone>>>>) -> TreeGone {
    match sweep {
        Some(running) => {
            let gone = running.await;
            *sweep = None;
            gone
        }
        None => std::future::pending().await,
    }
}

/// Reads what is there, as soon as there is something. A command that says nothing holds no buffer.
async fn read(output: &mut Option<OutputSource>, buffer: &mut BytesMut) -> std::io::Result<usize> {
    let Some(output) = output else { return Ok(0) };
    loop {
        buffer.reserve(READ);
        match output.try_read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => *buffer = BytesMut::new(),
            read => return read,
        }
        output.readable().await?;
    }
}

/// Takes what was read, and leaves the buffer's room for the next read where little was read.
fn take(buffer: &mut BytesMut, n: usize) -> Bytes {
    if n < SMALL {
        let bytes = Bytes::copy_from_slice(&buffer[..n]);
        buffer.clear();
        bytes
    } else {
        buffer.split_to(n).freeze()
    }
}
