//! The events of the shim of a running command.

use std::time::Instant;

use cc_executor_actors::{
    backend_api::{BackendEvent, StatusChange},
    outcome::Status,
};
use log::{info, warn};

use super::{RunningJob, StartReport};
use crate::backend::{
    job::{life::LifeEvent, shared::JobShared},
    job_request::JobError,
    shim::protocol::ShimEvent,
};

impl RunningJob {
    /// Handles an event of the shim; `None` if the shim is lost.
    pub(super) fn on_shim_event(&mut self, event: Option<ShimEvent>, shared: &mut JobShared) {
        let now = Instant::now();
        let Some(event) = event else {
            warn!(event = "shim.lost", execution_id:% = shared.context.id;
                "the shim of this execution was killed: the subreaper ends the processes");
            self.pause_replies.clear();
            return self.on_life_event(LifeEvent::Lost, shared);
        };
        match event {
            ShimEvent::Started { pid } => {
                info!(event = "process.started", execution_id:% = shared.context.id, executor = shared.context.executor.as_str(), pid = pid; "process started");
                self.start = StartReport::Executed;
                self.clocks.record_execution(now);
                self.on_life_event(LifeEvent::Started, shared);
                self.report_start(shared, now);
            }
            ShimEvent::NotStarted(error) => self.on_life_event(LifeEvent::NotStarted(error), shared),
            ShimEvent::Exited(exit) => {
                self.clocks.record_exit(now);
                self.input.close();
                self.pause_replies.clear();
                self.on_life_event(LifeEvent::Exited(exit), shared);
            }
            ShimEvent::Paused => self.on_paused(true, Ok(()), shared),
            ShimEvent::Resumed => self.on_paused(false, Ok(()), shared),
            ShimEvent::NotPaused => {
                let error = JobError::NotPaused(shared.context.id);
                self.on_paused(false, Err(error), shared);
            }
            ShimEvent::Inspected { stopped } => self.is_stopped = stopped,
            ShimEvent::Unguarded => self.on_life_event(LifeEvent::Unguarded, shared),
            ShimEvent::Gone(gone) => self.on_life_event(LifeEvent::Gone(gone), shared),
            ShimEvent::Accepted { .. } => {}
        }
    }

    /// The shim has stopped the tree, or continued it.
    fn on_paused(&mut self, paused: bool, outcome: Result<(), JobError>, shared: &mut JobShared) {
        if let Some(reply) = self.pause_replies.pop_front() {
            // Fails if the client is gone.
            let _ = reply.send(outcome);
        }
        let before = self.life.clone();
        self.on_life_event(LifeEvent::Paused(paused), shared);
        // Not reported if a cancellation has come meanwhile.
        if self.life != before {
            self.is_stopped = paused;
            // From this moment, before the next turn of the loop sets all clocks.
            self.clocks.run_total(!paused, Instant::now());
            let status = if paused { Status::Paused } else { Status::Running };
            info!(event = "process.steered", execution_id:% = shared.context.id, status = status.as_str(); "the process tree is {}",
                status.as_str());
            shared.output_buffer.send_event(BackendEvent::Status(StatusChange::to(status)));
        }
    }
}
