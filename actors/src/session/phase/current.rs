//! The execution that a session holds, and what is known of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    backend_api::{Heartbeat, StatusChange},
    clock::millis,
    execution::messages::StreamStart,
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Scope, Status},
    protocol::{
        DEFAULT_HEARTBEAT_MS,
        attach::{AttachParams, AttachResult},
        execute::{Acceptance, ExecuteParams, ExecuteResult},
        notification::{BackendHealth, StatusUpdate},
    },
    rpc::Id,
    stream::{Gap, PerStream},
};

/// Heartbeats that the backend may miss before it is called silent.
const MISSED_HEARTBEATS: u32 = 3;

/// How much is sent at the most between two pings that ask what has arrived, in bytes.
const BYTES_A_PING: u64 = 1 << 20;

/// The execution that a session holds.
#[derive(Debug)]
pub(super) struct CurrentExecution {
    pub(super) id: ExecutionId,
    /// What was asked for, if it was asked for here.
    pub(super) execute: Option<Box<ExecuteParams>>,
    pub(super) may_detach: bool,
    /// Whether its standard output is an agent's events.
    pub(super) has_events: bool,
    /// The process of the backend that has it, and the number of this hold, where the backend says so.
    pub(super) instance: Option<InstanceId>,
    pub(super) number: Option<u64>,
    pub(super) stage: ExecutionStage,
    /// Asks that are not answered yet.
    pub(super) n_asked: usize,
    /// How it ended, while an answer is still owed: the end is said after the answers that led to it.
    pub(super) ending: Option<Outcome>,
    heartbeat: Duration,
}

#[derive(Debug)]
pub(super) enum ExecutionStage {
    /// The backend has not said a word; the answer is still owed.
    Starting { answer: Option<Id>, offsets: PerStream<u64> },
    /// The backend has it.
    Live(HeldExecution),
}

/// An execution that the backend has: it waits, runs, or is being replayed.
#[derive(Debug)]
pub(super) struct HeldExecution {
    pub(super) status: Status,
    position: Option<u64>,
    scope: Option<Scope>,
    pub(super) offsets: PerStream<u64>,
    /// How much had been sent when the client was last asked what has arrived.
    pinged: u64,
    bytes_a_ping: u64,
    began_at: Instant,
    heard_at: Instant,
    output_at: Instant,
    /// What was left until the total time-out, and when that was so.
    deadline: Option<(u64, Instant)>,
    /// What Claude is doing, and how often its model has answered.
    doing: (Option<String>, Option<u32>),
    /// Whether all of its processes are stopped, by whomever.
    stopped: bool,
}

impl CurrentExecution {
    /// One that was asked to run.
    pub(super) fn started(id: ExecutionId, execute: Box<ExecuteParams>, answer: Option<Id>) -> Self {
        CurrentExecution {
            id,
            may_detach: execute.run.detach.is_some(),
            has_events: false,
            instance: None,
            number: None,
            stage: ExecutionStage::Starting { answer, offsets: PerStream::default() },
            n_asked: 0,
            ending: None,
            heartbeat: Duration::from_millis(execute.run.heartbeat_ms()),
            execute: Some(execute),
        }
    }

    /// One that was asked to be followed.
    pub(super) fn followed(attach: &AttachParams, answer: Option<Id>) -> Self {
        CurrentExecution {
            id: attach.execution_id,
            may_detach: false,
            has_events: false,
            instance: None,
            number: None,
            stage: ExecutionStage::Starting { answer, offsets: attach.offsets },
            n_asked: 0,
            ending: None,
            heartbeat: Duration::from_millis(DEFAULT_HEARTBEAT_MS),
            execute: None,
        }
    }

    /// The backend has said its first word. Gives the request that is to be answered.
    pub(super) fn live(&mut self, standing: &StreamStart, now: Instant) -> Option<Id> {
        self.may_detach |= standing.terms.may_detach;
        self.has_events = standing.terms.claude;
        self.instance = standing.terms.instance;
        self.number = standing.terms.hold;
        if let Some(ms) = standing.terms.heartbeat_ms.filter(|_| self.execute.is_none()) {
            self.heartbeat = Duration::from_millis(ms);
        }
        let ExecutionStage::Starting { answer, offsets } = &mut self.stage else { return None };
        let timeout_ms = self.execute.as_ref().and_then(|execute| execute.run.timeout_ms);
        let (answer, offsets) = (answer.take(), *offsets);
        let mut live = HeldExecution {
            status: standing.status,
            position: standing.position,
            scope: (standing.status == Status::Paused).then_some(Scope::Process),
            offsets,
            pinged: offsets.stdout + offsets.stderr,
            bytes_a_ping: standing.terms.acknowledge_bytes.unwrap_or(BYTES_A_PING).min(BYTES_A_PING),
            began_at: now,
            heard_at: now,
            output_at: now,
            deadline: None,
            doing: (None, None),
            stopped: false,
        };
        let alive = standing.alive.clone();
        live.alive(Heartbeat { deadline_ms: alive.deadline_ms.or(timeout_ms), ..alive }, now);
        self.stage = ExecutionStage::Live(live);
        answer
    }

    /// How often its status is repeated, in milliseconds.
    pub(super) fn heartbeat_ms(&self) -> u64 {
        millis(self.heartbeat)
    }

    pub(super) fn live_mut(&mut self) -> Option<&mut HeldExecution> {
        match &mut self.stage {
            ExecutionStage::Live(live) => Some(live),
            ExecutionStage::Starting { .. } => None,
        }
    }

    /// The status, if the backend has it.
    pub(super) fn status(&self) -> Option<Status> {
        match &self.stage {
            ExecutionStage::Live(live) => Some(live.status),
            ExecutionStage::Starting { .. } => None,
        }
    }

    /// What was sent of its streams.
    pub(super) fn offsets(&self) -> PerStream<u64> {
        match &self.stage {
            ExecutionStage::Live(live) => live.offsets,
            ExecutionStage::Starting { offsets, .. } => *offsets,
        }
    }

    /// The newest status. None before there is one, and while one that has ended is replayed: its end
    /// comes after that.
    pub(super) fn progress(&self, now: Instant) -> Option<StatusUpdate> {
        let ExecutionStage::Live(live) = &self.stage else { return None };
        if live.status.is_final() {
            return None;
        }
        let since = |at: Instant| millis(now.saturating_duration_since(at));
        let silent = now.saturating_duration_since(live.heard_at) > self.heartbeat * MISSED_HEARTBEATS;
        let waits = live.status == Status::Queued;
        let stands = waits || live.status == Status::Paused;
        Some(StatusUpdate {
            execution_id: self.id,
            status: live.status,
            position: live.position.filter(|_| waits),
            scope: live.scope.filter(|_| live.status == Status::Paused),
            elapsed_ms: if waits { 0 } else { since(live.began_at) },
            since_output_ms: if waits { 0 } else { since(live.output_at) },
            offsets: live.offsets,
            backend: if silent { BackendHealth::Silent } else { BackendHealth::Alive },
            deadline_ms: live.deadline.map(|(left, at)| if stands { left } else { left.saturating_sub(since(at)) }),
            stopped: live.stopped && !waits,
            activity: live.doing.0.clone().filter(|_| !waits),
            turns: live.doing.1.filter(|_| !waits),
        })
    }
}

impl HeldExecution {
    /// Output was sent.
    pub(super) fn output(&mut self, offsets: PerStream<u64>, now: Instant) {
        self.offsets = offsets;
        self.heard_at = now;
        self.output_at = now;
    }

    /// Whether it is time to ask the client what has arrived.
    pub(super) fn wants_ping(&mut self) -> bool {
        let sent = self.offsets.stdout + self.offsets.stderr;
        let due = sent.saturating_sub(self.pinged) >= self.bytes_a_ping;
        if due {
            self.pinged = sent;
        }
        due
    }

    /// It waits, at this position.
    pub(super) fn queued(&mut self, position: u64, now: Instant) {
        self.status = Status::Queued;
        self.position = Some(position);
        self.heard_at = now;
    }

    /// Its status changed.
    pub(super) fn change(&mut self, change: StatusChange, now: Instant) {
        if self.status == Status::Queued {
            self.began_at = now;
            self.output_at = now;
        }
        if let Some((left, at)) = &mut self.deadline {
            // What was left is left from now on, unless it stood still.
            if !matches!(self.status, Status::Queued | Status::Paused) {
                *left = left.saturating_sub(millis(now.saturating_duration_since(*at)));
            }
            *at = now;
        }
        self.status = change.status;
        self.scope = change.scope;
        self.heard_at = now;
    }

    /// The backend gave a sign of life. True if Claude does something else now.
    pub(super) fn alive(&mut self, alive: Heartbeat, now: Instant) -> bool {
        let before = |ms: u64| now.checked_sub(Duration::from_millis(ms)).unwrap_or(now);
        self.began_at = before(alive.elapsed_ms);
        self.output_at = before(alive.since_output_ms);
        self.heard_at = now;
        if let Some(left) = alive.deadline_ms {
            self.deadline = Some((left, now));
        }
        self.stopped = alive.stopped;
        let doing = (alive.activity, alive.turns);
        let changed = doing != self.doing;
        self.doing = doing;
        changed
    }

    /// Bytes that will not be sent.
    pub(super) fn gap(&mut self, gap: Gap) {
        *self.offsets.get_mut(gap.stream) = gap.to;
    }
}

/// A client counts the bytes of a stream, except where they are Claude's events: so it is told first. By
/// the backend's instance it can tell later whether the execution ended with a backend that was restarted.
pub(super) fn accepted(hold: &CurrentExecution, status: Status) -> Value {
    let status = if status == Status::Queued { Acceptance::Queued } else { Acceptance::Started };
    json!(ExecuteResult { execution_id: hold.id, status, instance: hold.instance, claude: hold.has_events })
}

/// The same for one that was there already.
pub(super) fn attached(hold: &CurrentExecution, status: Status) -> Value {
    json!(AttachResult { execution_id: hold.id, status, instance: hold.instance, claude: hold.has_events })
}
