//! A command from its start to its end: reads its pipes, keeps its clocks and carries out its requests.
//!
//! [`Life`] and [`JobClocks`] decide; this loop waits for the next event and carries out their actions. It reads a pipe
//! only if the output buffer has room (`OutputBuffer::may_read`), so that a slow consumer slows the command down and
//! memory stays bounded. Requests, clocks, consumers and the shim are served in every state. When the processes are
//! gone, the rest in the pipes is read without waiting.

mod agent;
mod report;
mod requests;
mod shim_events;

use std::{collections::VecDeque, io, pin::Pin, time::Instant};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::{BackendEvent, StatusChange},
    outcome::{Outcome, Status},
    stream::{PerStream, Stream},
};
use log::info;

use self::agent::RunningAgent;
use super::{
    clocks::{AgentExit, ClockEvent, GRACE_MS, JobClocks, OtherDeadlines},
    disk::{JobStorage, StorageWake, storage_wake},
    life::{EndCause, Life, LifeAction, LifeEvent},
    outcome::{self, OutputDigests},
    pipes::OutputPipe,
    shared::{JobShared, at},
    stdin::StdinWriter,
    storing::lengths,
};
use crate::backend::{
    job_request::{JobRequest, ReplySender},
    output_buffer::ConsumerChange,
    process::{Process, Stdio, shim_link::ShimLink},
    pty::Terminal,
    registry::Slot,
    shim::protocol::{Order, ShimEvent, TreeGone},
    storage::writer::StoredBatch,
};

/// Follows a command that is being started to its end.
pub(super) async fn follow(process: Process, program: &str, shared: &mut JobShared, slot: &Slot) -> Outcome {
    let mut job = RunningJob::new(process, shared);
    job.run(shared, slot).await;
    job.into_outcome(program)
}

/// A command and its state.
struct RunningJob {
    link: ShimLink,
    life: Life,
    start: StartReport,
    /// Ends the processes of a lost shim.
    sweep: Option<Pin<Box<dyn Future<Output = TreeGone>>>>,
    pipes: [OutputPipe; 2],
    terminal: Option<Terminal>,
    input: StdinWriter,
    /// The agent and its progress, if the command is one.
    agent: Option<RunningAgent>,
    digests: OutputDigests,
    clocks: JobClocks,
    /// Whether all of its processes are stopped, as of the shim's last inspection. Others can stop them, too.
    is_stopped: bool,
    /// For the requests to pause and resume that the shim has not answered, in their order.
    pause_replies: VecDeque<ReplySender>,
}

/// How far the command's start was reported to the consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum StartReport {
    /// Not at all.
    Pending,
    /// As queued: the command has not been executed yet.
    Queued,
    /// As started.
    Executed,
}

/// The event that woke the loop.
enum JobWake {
    /// An event of the shim; `None` if it is lost.
    Shim(Option<ShimEvent>),
    Swept(TreeGone),
    Request(JobRequest),
    /// The registry has released the task: no request follows.
    Released,
    LinkDeadline,
    Clock(ClockEvent),
    InputWritten,
    Read(usize, io::Result<usize>),
    Storage(StorageWake),
    Consumer(ConsumerChange),
}

impl RunningJob {
    fn new(process: Process, shared: &JobShared) -> Self {
        let Process { stdio: Stdio { outputs, stdin, terminal }, link } = process;
        let now = Instant::now();
        let context = &shared.context;
        RunningJob {
            link,
            life: Life::Starting,
            start: StartReport::Pending,
            sweep: None,
            pipes: OutputPipe::both(outputs),
            agent: context.agent.as_ref().map(|job| RunningAgent::new(job, context.config.claude_exit, now)),
            input: match &context.agent {
                Some(job) => StdinWriter::given(stdin, job.prompt.clone()),
                None => StdinWriter::new(stdin, terminal.is_some()),
            },
            terminal,
            digests: OutputDigests::default(),
            clocks: JobClocks::started(context.limits, now),
            is_stopped: false,
            pause_replies: VecDeque::new(),
        }
    }

    /// Follows the command until its processes are gone.
    ///
    /// This terminates: the command's own exit starts the time limit of its leftovers; that limit and every cause start
    /// an end with a deadline; and the rest in the pipes is read without waiting.
    async fn run(&mut self, shared: &mut JobShared, slot: &Slot) {
        let mut is_released = false;
        while !self.life.is_over() {
            if matches!(self.life, Life::Leftovers { .. }) && !self.pipes.iter().any(OutputPipe::is_open) {
                self.on_life_event(LifeEvent::LeftoversQuiet, shared);
                continue;
            }
            self.turn(shared, slot, &mut is_released).await;
        }
        self.read_remainder(shared);
        self.input.close();
        self.pause_replies.clear();
        if let Life::Gone { why, gone, .. } = &self.life {
            slot.gone(outcome::report(*why, *gone));
        }
        // The processes are gone. A disk that hangs delays the rest of this execution's output, and its end.
        while shared.storage.as_ref().is_some_and(|storage| !storage.is_idle()) {
            self.turn(shared, slot, &mut is_released).await;
        }
    }

    async fn turn(&mut self, shared: &mut JobShared, slot: &Slot, is_released: &mut bool) {
        match self.wait(shared, *is_released).await {
            JobWake::Released => *is_released = true,
            JobWake::Storage(StorageWake::Stored(batch)) => self.on_stored(batch, shared, slot),
            JobWake::Storage(StorageWake::Room) => shared.report_stored(slot, 0),
            wake => self.on_wake(wake, shared),
        }
    }

    /// Waits for the next event. Here the command is held back: a pipe for which the output buffer has no room is not
    /// read, and its clocks stand still.
    async fn wait(&mut self, shared: &mut JobShared, is_released: bool) -> JobWake {
        shared.output_buffer.deliver();
        let disk_has_room = shared.storage.as_ref().is_none_or(JobStorage::has_room);
        // A consumer gets output only after the message that the command runs.
        let may_read =
            Stream::BOTH.map(|stream| self.has_run() && disk_has_room && shared.output_buffer.may_read(stream));
        let is_held_back = self.pipes.iter().zip(may_read).any(|(pipe, may)| pipe.is_open() && !may);
        let now = Instant::now();
        shared.held_since = (is_held_back && self.has_run()).then(|| shared.held_since.unwrap_or(now));
        self.run_clocks(is_held_back, now);
        let due = self.clocks.due(&self.life, self.other_deadlines(shared));
        let link_due = self.link.due();
        let [stdout, stderr] = &mut self.pipes;
        // Rare events first, because a busy pipe would starve them.
        tokio::select! {
            biased;
            event = self.link.next() => JobWake::Shim(event),
            gone = swept(&mut self.sweep) => JobWake::Swept(gone),
            request = shared.requests.recv(), if !is_released => match request {
                Some(request) => JobWake::Request(request),
                None => JobWake::Released,
            },
            () = at(link_due) => JobWake::LinkDeadline,
            () = at(Some(due.urgent.0)) => JobWake::Clock(due.urgent.1),
            () = self.input.write(), if self.input.is_pending() => JobWake::InputWritten,
            n = stdout.read(), if may_read[0] && stdout.is_open() => JobWake::Read(0, n),
            n = stderr.read(), if may_read[1] && stderr.is_open() => JobWake::Read(1, n),
            wake = storage_wake(&mut shared.storage, is_held_back) => JobWake::Storage(wake),
            change = shared.output_buffer.consumer_change(shared.context.config.consumer_stall, shared.consumer_clock.polled_at()) => JobWake::Consumer(change),
            // After the pipes, because unread output extends these deadlines.
            event = at_event(due.when_quiet) => JobWake::Clock(ClockEvent::Life(event)),
        }
    }

    fn on_wake(&mut self, wake: JobWake, shared: &mut JobShared) {
        match wake {
            JobWake::Shim(event) => self.on_shim_event(event, shared),
            JobWake::Swept(gone) => self.on_life_event(LifeEvent::Gone(gone), shared),
            JobWake::Request(request) => self.on_request(request, shared),
            JobWake::LinkDeadline => self.link.act(Instant::now()),
            JobWake::Clock(event) => self.on_clock(event, shared),
            JobWake::Read(at, Ok(n)) if n > 0 => {
                let pipe = &mut self.pipes[at];
                let (stream, bytes) = (pipe.stream(), pipe.take(n));
                self.clocks.record_output(Instant::now());
                match &mut shared.storage {
                    Some(storage) => storage.write(stream, bytes),
                    None => self.on_output(stream, bytes, shared),
                }
            }
            // The pipe has ended or cannot be read.
            JobWake::Read(at, _) => self.on_end_of_output(at),
            JobWake::Consumer(ConsumerChange::Room)
            | JobWake::InputWritten
            | JobWake::Released
            | JobWake::Storage(_) => {}
            JobWake::Consumer(change) => {
                if shared.must_end_without_consumer(change) {
                    self.end(EndCause::Disconnected, GRACE_MS, shared);
                }
            }
        }
    }

    fn on_clock(&mut self, event: ClockEvent, shared: &mut JobShared) {
        match event {
            ClockEvent::Life(LifeEvent::Wanted { cause, grace_ms }) => self.end(cause, grace_ms, shared),
            ClockEvent::Life(event) => self.on_life_event(event, shared),
            ClockEvent::StartReport => {
                self.start = StartReport::Queued;
                self.report_start(shared, Instant::now());
            }
            ClockEvent::Heartbeat => {
                let now = Instant::now();
                self.clocks.record_heartbeat(now);
                shared.check_consumer(now);
                shared.output_buffer.send_event_if_room(BackendEvent::Alive(self.heartbeat(now)));
            }
        }
    }

    /// Counts and delivers output. If the execution keeps its output on disk, it is there already.
    fn on_output(&mut self, stream: Stream, bytes: Bytes, shared: &mut JobShared) {
        self.digests.add(stream, &bytes);
        let activity_changed = self.agent.as_mut().is_some_and(|agent| agent.push(stream, &bytes));
        shared.output_buffer.push(stream, bytes);
        if activity_changed {
            shared.output_buffer.send_event_if_room(BackendEvent::Alive(self.heartbeat(Instant::now())));
        }
    }

    fn on_stored(&mut self, StoredBatch { written, failure }: StoredBatch, shared: &mut JobShared, slot: &Slot) {
        for (stream, bytes) in written {
            self.on_output(stream, bytes, shared);
        }
        if let Some((error, unwritten)) = failure {
            shared.stop_storing(&error);
            let PerStream { stdout, stderr } = lengths(&unwritten);
            shared.output_buffer.make_room(Stream::Stdout, stdout);
            shared.output_buffer.make_room(Stream::Stderr, stderr);
            for (stream, bytes) in unwritten {
                self.on_output(stream, bytes, shared);
            }
        }
        shared.after_batch(slot, &self.digests);
    }

    fn on_end_of_output(&mut self, at: usize) {
        self.pipes[at].close();
        if self.pipes[at].stream() == Stream::Stdout {
            self.finish_agent();
        }
    }

    /// Reads the rest in the pipes after all processes are gone, even if the ring is full.
    fn read_remainder(&mut self, shared: &mut JobShared) {
        for at in 0..self.pipes.len() {
            let Some(pieces) = self.pipes[at].take_remainder() else { continue };
            let stream = self.pipes[at].stream();
            if !pieces.is_empty() && !self.has_run() {
                // The shim was lost before it could report the start.
                self.start = StartReport::Executed;
                self.report_start(shared, Instant::now());
            }
            if shared.storage.is_none() {
                shared.output_buffer.make_room(stream, pieces.iter().map(Bytes::len).sum());
            }
            for piece in pieces {
                match &mut shared.storage {
                    Some(storage) => storage.write(stream, piece),
                    None => self.on_output(stream, piece, shared),
                }
            }
        }
    }

    /// Whether the command was executed.
    fn has_run(&self) -> bool {
        self.start == StartReport::Executed
    }

    /// Completes the agent's progress: no event follows.
    fn finish_agent(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.progress.finish(Instant::now());
        }
    }

    /// Lets each clock run exactly while its time counts.
    fn run_clocks(&mut self, is_held_back: bool, now: Instant) {
        let is_paused = self.life == (Life::Running { paused: true });
        self.clocks.run(is_paused, is_held_back, now);
        if let Some(agent) = &mut self.agent {
            agent.progress.run_clock(!is_paused && !is_held_back, now);
        }
    }

    fn other_deadlines(&self, shared: &JobShared) -> OtherDeadlines {
        let timeout_at = self.clocks.timeout_at();
        OtherDeadlines {
            detached_until: shared.detached_until(),
            start_is_unreported: self.start == StartReport::Pending,
            agent_exit: self.agent.as_ref().map_or(AgentExit::NotExpected, |agent| agent.exit(timeout_at)),
        }
    }

    /// Applies an event to the life of the processes, and carries out the resulting action.
    fn on_life_event(&mut self, event: LifeEvent, shared: &mut JobShared) {
        let was_canceling = self.life.is_canceling();
        match self.life.on(event, Instant::now()) {
            None => {}
            Some(LifeAction::End { grace_ms }) => self.link.order(Order::End { grace_ms }),
            Some(LifeAction::KillLeftovers) => self.link.order(Order::Sweep),
            Some(LifeAction::Sweep) => self.sweep = Some(Box::pin(self.link.sweep())),
        }
        if self.life.is_canceling() && !was_canceling {
            // The total runs again from this moment, before the next turn of the loop sets all clocks.
            self.clocks.run_total(true, Instant::now());
            shared.output_buffer.send_event(BackendEvent::Status(StatusChange::to(Status::Cancelling)));
        }
    }

    /// Ends the job for this cause.
    fn end(&mut self, cause: EndCause, grace_ms: u64, shared: &mut JobShared) {
        if cause == EndCause::Disconnected {
            // No consumer will read the output that exceeds the ring.
            shared.consumer_clock.stop_waiting();
            shared.output_buffer.set_ending();
        }
        let before = self.life.cause();
        self.on_life_event(LifeEvent::Wanted { cause, grace_ms }, shared);
        if before.is_none() && self.life.cause().is_some() {
            info!(event = "process.ending", execution_id:% = shared.context.id, cause = cause.as_str(), grace_ms = grace_ms; "ending the process");
        }
    }
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

async fn at_event(due: Option<(Instant, LifeEvent)>) -> LifeEvent {
    let Some((time, event)) = due else { return std::future::pending().await };
    at(Some(time)).await;
    event
}
