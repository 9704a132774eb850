//! The reports of a running command: to a consumer that attaches, with each heartbeat, and at its end.

use std::time::Instant;

use cc_executor_actors::{
    backend_api::Heartbeat,
    clock::millis,
    outcome::{Outcome, Status},
};

use super::{RunningJob, StartReport};
use crate::backend::{
    job::{
        life::Life,
        outcome,
        shared::{JobShared, JobSnapshot},
    },
    shim::protocol::StartError,
};

impl RunningJob {
    /// Sends the first event of the stream, or the one that follows `queued`.
    pub(super) fn report_start(&self, shared: &mut JobShared, now: Instant) {
        let event = self.snapshot(now).first_event(&shared.context);
        shared.output_buffer.send_event(event);
    }

    pub(super) fn snapshot(&self, now: Instant) -> JobSnapshot {
        let (status, position) = match &self.life {
            // No other execution waits before it.
            Life::Starting => (Status::Queued, Some(0)),
            Life::Running { paused: true } => (Status::Paused, None),
            life if life.is_canceling() => (Status::Cancelling, None),
            _ => (Status::Running, None),
        };
        let is_reported = self.life != Life::Starting || self.start != StartReport::Pending;
        JobSnapshot { is_reported, status, position, alive: self.heartbeat(now) }
    }

    pub(super) fn heartbeat(&self, now: Instant) -> Heartbeat {
        let heartbeat = Heartbeat {
            elapsed_ms: millis(now.saturating_duration_since(self.clocks.started_at())),
            since_output_ms: millis(now.saturating_duration_since(self.clocks.output_at())),
            deadline_ms: self.clocks.deadline_ms(now),
            stopped: self.is_stopped,
            ..Heartbeat::default()
        };
        match &self.agent {
            Some(agent) => heartbeat.with_activity(agent.progress.activity()),
            None => heartbeat,
        }
    }

    /// The outcome, when the life of the processes is over.
    pub(super) fn into_outcome(mut self, program: &str) -> Outcome {
        self.finish_agent();
        let mut ending = match &self.life {
            Life::NotStarted(error) => {
                let mut error = error.clone();
                if let Some(running) = self.agent.as_ref().filter(|_| error.exit_code == StartError::NOT_FOUND) {
                    error.message = running.agent.advice_if_missing(program);
                }
                outcome::not_started(error)
            }
            Life::Gone { why, exit, gone } => {
                let progress = self.agent.as_ref().map(|running| &*running.progress);
                outcome::ending(*why, *exit, *gone, progress, self.clocks.limits())
            }
            Life::Starting | Life::Running { .. } | Life::Leftovers { .. } | Life::Ending { .. } => {
                unreachable!("it is followed until it is over")
            }
        };
        ending.elapsed_ms = self.has_run().then(|| millis(self.clocks.started_at().elapsed()));
        self.digests.into_ending(&mut ending);
        ending
    }
}
