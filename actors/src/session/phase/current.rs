//! The execution that a session holds, and its newest status.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    backend_api::{Heartbeat, StatusChange, StreamInfo},
    clock::millis,
    execution::messages::StreamStart,
    id::ExecutionId,
    outcome::{Outcome, Scope, Status},
    protocol::{
        DEFAULT_HEARTBEAT_MS,
        attach::AttachParams,
        execute::{Acceptance, ExecuteParams, HoldResult},
        notification::{BackendHealth, StatusUpdate},
    },
    rpc::Id,
    stream::{Gap, PerStream},
};

/// Heartbeats that the backend may miss before `statusUpdate` calls it silent.
const MISSED_HEARTBEATS: u32 = 3;

/// The most bytes that are sent between two pings that ask for an acknowledgement.
const BYTES_PER_PING: u64 = 1 << 20;

/// The execution that a session holds.
#[derive(Debug)]
pub(super) struct CurrentExecution {
    pub(super) id: ExecutionId,
    /// How the session came to it.
    pub(super) origin: ExecutionOrigin,
    /// The backend's description of the stream; empty before its first event.
    pub(super) info: StreamInfo,
    pub(super) stage: ExecutionStage,
    /// Whether the client acknowledges output with `ack`, so that pongs do not.
    pub(super) acknowledges: bool,
    /// Control requests without an answer so far.
    pub(super) n_unanswered: usize,
    /// The outcome, while it waits for those answers: they are sent before the end that they led to.
    pub(super) outcome: Option<Outcome>,
}

/// How a session came to its execution.
#[derive(Debug)]
pub(super) enum ExecutionOrigin {
    /// By `execute`, with these parameters.
    Executed(Box<ExecuteParams>),
    /// By `attach`.
    Attached,
    /// By `attach` with `observe`: the session does not hold it.
    Observed,
}

#[derive(Debug)]
pub(super) enum ExecutionStage {
    /// The backend has sent no event, and the call with this id has no response.
    Starting { call: Option<Id>, offsets: PerStream<u64> },
    /// The backend has accepted it.
    Live(LiveExecution),
}

/// An execution that the backend has accepted: it waits, runs, or is being replayed.
#[derive(Debug)]
pub(super) struct LiveExecution {
    pub(super) status: Status,
    position: Option<u64>,
    scope: Option<Scope>,
    /// The bytes of each stream that were sent to the client.
    pub(super) offsets: PerStream<u64>,
    /// The bytes of both streams at the newest ping.
    pinged_bytes: u64,
    bytes_per_ping: u64,
    began_at: Instant,
    event_at: Instant,
    output_at: Instant,
    /// Milliseconds left until the total time-out, and the time of that value.
    deadline: Option<(u64, Instant)>,
    activity: Option<String>,
    turns: Option<u32>,
    /// Whether all of its processes are stopped.
    stopped: bool,
}

impl CurrentExecution {
    /// An execution that the client starts.
    pub(super) fn started(id: ExecutionId, execute: Box<ExecuteParams>, call: Option<Id>) -> Self {
        CurrentExecution::new(id, ExecutionOrigin::Executed(execute), PerStream::default(), call)
    }

    /// An execution that the client attaches to.
    pub(super) fn attached(attach: &AttachParams, call: Option<Id>) -> Self {
        let origin = if attach.observe { ExecutionOrigin::Observed } else { ExecutionOrigin::Attached };
        CurrentExecution::new(attach.execution_id, origin, attach.offsets, call)
    }

    fn new(id: ExecutionId, origin: ExecutionOrigin, offsets: PerStream<u64>, call: Option<Id>) -> Self {
        let stage = ExecutionStage::Starting { call, offsets };
        CurrentExecution {
            id,
            origin,
            info: StreamInfo::default(),
            stage,
            acknowledges: false,
            n_unanswered: 0,
            outcome: None,
        }
    }

    /// Handles the first event of the backend. Returns the id of the call that must be answered.
    pub(super) fn go_live(&mut self, start: &StreamStart, now: Instant) -> Option<Id> {
        self.info = start.terms.clone();
        let ExecutionStage::Starting { call, offsets } = &mut self.stage else { return None };
        let (call, offsets) = (call.take(), *offsets);
        let mut live = LiveExecution {
            status: start.status,
            position: start.position,
            scope: (start.status == Status::Paused).then_some(Scope::Process),
            offsets,
            pinged_bytes: offsets.stdout + offsets.stderr,
            bytes_per_ping: self.info.acknowledge_bytes.unwrap_or(BYTES_PER_PING).min(BYTES_PER_PING),
            began_at: now,
            event_at: now,
            output_at: now,
            deadline: None,
            activity: None,
            turns: None,
            stopped: false,
        };
        let timeout_ms = self.execute().and_then(|execute| execute.run.timeout_ms);
        let heartbeat = start.alive.clone();
        live.heartbeat(Heartbeat { deadline_ms: heartbeat.deadline_ms.or(timeout_ms), ..heartbeat }, now);
        self.stage = ExecutionStage::Live(live);
        call
    }

    /// The parameters of `execute`, if the session has started it.
    pub(super) fn execute(&self) -> Option<&ExecuteParams> {
        match &self.origin {
            ExecutionOrigin::Executed(execute) => Some(execute),
            ExecutionOrigin::Attached | ExecutionOrigin::Observed => None,
        }
    }

    /// Whether the session follows it without a hold.
    pub(super) fn is_observed(&self) -> bool {
        matches!(self.origin, ExecutionOrigin::Observed)
    }

    /// Whether it continues without a client.
    pub(super) fn may_detach(&self) -> bool {
        self.info.may_detach || self.execute().is_some_and(|execute| execute.run.detach.is_some())
    }

    /// Whether the backend keeps output until this session's client has acknowledged it.
    pub(super) fn awaits_acknowledgement(&self) -> bool {
        self.may_detach() && !self.is_observed()
    }

    /// The heartbeat period, in milliseconds.
    pub(super) fn heartbeat_ms(&self) -> u64 {
        match self.execute() {
            Some(execute) => execute.run.heartbeat_ms(),
            None => self.info.heartbeat_ms.unwrap_or(DEFAULT_HEARTBEAT_MS),
        }
    }

    pub(super) fn live_mut(&mut self) -> Option<&mut LiveExecution> {
        match &mut self.stage {
            ExecutionStage::Live(live) => Some(live),
            ExecutionStage::Starting { .. } => None,
        }
    }

    /// The status, if the backend has accepted it.
    pub(super) fn status(&self) -> Option<Status> {
        match &self.stage {
            ExecutionStage::Live(live) => Some(live.status),
            ExecutionStage::Starting { .. } => None,
        }
    }

    /// The bytes of each stream that were sent to the client.
    pub(super) fn offsets(&self) -> PerStream<u64> {
        match &self.stage {
            ExecutionStage::Live(live) => live.offsets,
            ExecutionStage::Starting { offsets, .. } => *offsets,
        }
    }

    /// The newest status. `None` before the backend's first event, and during a replay, because the final status
    /// follows the replayed output.
    pub(super) fn status_update(&self, now: Instant) -> Option<StatusUpdate> {
        let ExecutionStage::Live(live) = &self.stage else { return None };
        if live.status.is_final() {
            return None;
        }
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_silent = since(live.event_at) > Duration::from_millis(self.heartbeat_ms()) * MISSED_HEARTBEATS;
        let is_queued = live.status == Status::Queued;
        let deadline_runs = !matches!(live.status, Status::Queued | Status::Paused);
        Some(StatusUpdate {
            execution_id: self.id,
            status: live.status,
            position: live.position.filter(|_| is_queued),
            scope: live.scope.filter(|_| live.status == Status::Paused),
            elapsed_ms: if is_queued { 0 } else { millis(since(live.began_at)) },
            since_output_ms: if is_queued { 0 } else { millis(since(live.output_at)) },
            offsets: live.offsets,
            backend: if is_silent { BackendHealth::Silent } else { BackendHealth::Alive },
            deadline_ms: live
                .deadline
                .map(|(left, at)| if deadline_runs { left.saturating_sub(millis(since(at))) } else { left }),
            stopped: live.stopped && !is_queued,
            activity: live.activity.clone().filter(|_| !is_queued),
            turns: live.turns.filter(|_| !is_queued),
        })
    }

    /// The result of `execute` or `attach`. It names the backend's instance, by which a client can tell later whether
    /// the execution ended with a backend that was restarted.
    pub(super) fn hold_result<S: Serialize>(&self, status: S) -> Value {
        json!(HoldResult {
            execution_id: self.id,
            status,
            instance: self.info.instance,
            claude: self.info.claude,
            agent: self.info.agent.clone(),
            observe: self.is_observed(),
        })
    }
}

impl LiveExecution {
    /// Output was sent.
    pub(super) fn output(&mut self, offsets: PerStream<u64>, now: Instant) {
        self.offsets = offsets;
        self.event_at = now;
        self.output_at = now;
    }

    /// Whether a ping is due that asks the client for an acknowledgement. Counts that ping as sent.
    pub(super) fn take_due_ping(&mut self) -> bool {
        let sent = self.offsets.stdout + self.offsets.stderr;
        let is_due = sent.saturating_sub(self.pinged_bytes) >= self.bytes_per_ping;
        if is_due {
            self.pinged_bytes = sent;
        }
        is_due
    }

    /// It waits in the queue at this position.
    pub(super) fn queued(&mut self, position: u64, now: Instant) {
        self.status = Status::Queued;
        self.position = Some(position);
        self.event_at = now;
    }

    /// Its status changed.
    pub(super) fn change(&mut self, change: StatusChange, now: Instant) {
        if self.status == Status::Queued {
            self.began_at = now;
            self.output_at = now;
        }
        if let Some((left, at)) = &mut self.deadline {
            // The time until now counts, unless the deadline did not run.
            if !matches!(self.status, Status::Queued | Status::Paused) {
                *left = left.saturating_sub(millis(now.saturating_duration_since(*at)));
            }
            *at = now;
        }
        self.status = change.status;
        self.scope = change.scope;
        self.event_at = now;
    }

    /// The backend sent a heartbeat. Returns whether the agent's activity has changed.
    pub(super) fn heartbeat(&mut self, heartbeat: Heartbeat, now: Instant) -> bool {
        let before = |ms: u64| now.checked_sub(Duration::from_millis(ms)).unwrap_or(now);
        self.began_at = before(heartbeat.elapsed_ms);
        self.output_at = before(heartbeat.since_output_ms);
        self.event_at = now;
        if let Some(left) = heartbeat.deadline_ms {
            self.deadline = Some((left, now));
        }
        self.stopped = heartbeat.stopped;
        let has_changed = (&self.activity, self.turns) != (&heartbeat.activity, heartbeat.turns);
        (self.activity, self.turns) = (heartbeat.activity, heartbeat.turns);
        has_changed
    }

    /// Bytes of a stream are lost to the client.
    pub(super) fn gap(&mut self, gap: Gap) {
        *self.offsets.get_mut(gap.stream) = gap.to;
    }
}

impl From<Status> for Acceptance {
    fn from(status: Status) -> Self {
        if status == Status::Queued { Acceptance::Queued } else { Acceptance::Started }
    }
}
