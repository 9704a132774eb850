//! An execution that waits for its turn.

use std::time::Instant;

use cc_executor_actors::{
    backend_api::{BackendEvent, Heartbeat},
    outcome::{CancelReport, Outcome, Reason, Status},
};
use log::info;

use super::{
    outcome,
    shared::{JobShared, JobSnapshot, at},
};
use crate::backend::{
    job_request::{CancelOrder, JobError, JobRequest, refuse},
    output_buffer::ConsumerChange,
    registry::{QueueTurn, Slot},
};

/// Waits until the execution may run. The error is its outcome if it is ended before.
pub(super) async fn wait_for_turn(shared: &mut JobShared, slot: &mut Slot) -> Result<(), Outcome> {
    let mut heartbeat_at = Instant::now() + shared.context.limits.heartbeat;
    let mut reported = None;
    loop {
        let position = match slot.turn() {
            QueueTurn::Now => return Ok(()),
            QueueTurn::Position(position) => position,
        };
        let snapshot = JobSnapshot {
            is_reported: true,
            status: Status::Queued,
            position: Some(position),
            alive: Heartbeat::default(),
        };
        if reported != Some(position) {
            if reported.is_none() {
                info!(event = "execution.queued", execution_id:% = shared.context.id, position = position; "execution queued");
            }
            reported = Some(position);
            shared.output_buffer.send_event(snapshot.first_event(&shared.context));
        }
        shared.output_buffer.deliver();
        let detached_until = shared.detached_until();
        tokio::select! {
            biased;
            () = slot.turn_changed() => {}
            request = shared.requests.recv() => match request.and_then(|request| shared.answer_common(request, || snapshot, None)) {
                Some(JobRequest::Cancel(CancelOrder { reason, .. })) => return Err(canceled(reason.into(), slot)),
                Some(request) => refuse(request, JobError::Queued(shared.context.id)),
                None => {}
            },
            () = at(Some(heartbeat_at)) => {
                heartbeat_at = Instant::now() + shared.context.limits.heartbeat;
                shared.check_consumer(Instant::now());
                shared.output_buffer.send_event_if_room(BackendEvent::Alive(snapshot.alive));
            }
            change = shared.output_buffer.consumer_change(shared.context.config.consumer_stall, shared.consumer_clock.polled_at()) => {
                if change != ConsumerChange::Room && shared.must_end_without_consumer(change) {
                    return Err(canceled(Reason::Disconnected, slot));
                }
            }
            () = at(detached_until) => return Err(canceled(Reason::Disconnected, slot)),
        }
    }
}

/// The outcome of an execution that never ran, so that no process can be left.
fn canceled(reason: Reason, slot: &Slot) -> Outcome {
    let report = CancelReport::never_ran(0);
    slot.gone(report);
    let mut ending =
        outcome::never_ran(Status::Cancelled, reason, "the command never ran: the execution was still queued");
    ending.cancel = Some(report);
    ending
}
