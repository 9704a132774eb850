//! An execution that waits for its turn.

use std::time::Instant;

use cc_executor_actors::{
    backend_api::{BackendEvent, Heartbeat},
    outcome::{CancelReport, Outcome, Reason, Status},
};
use log::info;

use super::{
    context::{JobShared, JobSnapshot, at},
    outcome,
};
use crate::backend::{
    job_request::{JobRequest, refuse},
    output_buffer::ConsumerChange,
    registry::{QueueTurn, Slot},
};

/// Waits until the execution may run. The error is how it ended before that.
pub(super) async fn wait_for_turn(body: &mut JobShared, slot: &mut Slot) -> Result<(), Outcome> {
    let mut heartbeat_at = Instant::now() + body.terms.heartbeat;
    let mut said = None;
    loop {
        let position = match slot.turn() {
            QueueTurn::Now => return Ok(()),
            QueueTurn::Position(position) => position,
        };
        let stand = JobSnapshot {
            is_told: true,
            status: Status::Queued,
            position: Some(position),
            alive: Heartbeat::default(),
        };
        if said != Some(position) {
            if said.is_none() {
                info!(event = "execution.queued", execution_id:% = body.terms.id, position = position; "execution queued");
            }
            said = Some(position);
            body.output_buffer.send_event(stand.first_word(&body.terms));
        }
        body.output_buffer.deliver();
        let detached_until = body.detached_until();
        tokio::select! {
            biased;
            () = slot.turn_changed() => {}
            ask = body.asks.recv() => match ask.and_then(|ask| body.common(ask, || stand, None)) {
                Some(JobRequest::Cancel { reason, .. }) => return Err(canceled(reason.into(), slot)),
                Some(ask) => refuse(ask, "it still waits in the queue: only CANCEL reaches it"),
                None => {}
            },
            () = at(Some(heartbeat_at)) => {
                heartbeat_at = Instant::now() + body.terms.heartbeat;
                body.look_after_consumer();
                body.output_buffer.mention(BackendEvent::Alive(stand.alive));
            }
            moved = body.output_buffer.moved(body.terms.consumer_stall, body.asked_at) => {
                if moved != ConsumerChange::Room && body.left(moved) {
                    return Err(canceled(Reason::Disconnected, slot));
                }
            }
            () = at(detached_until) => return Err(canceled(Reason::Disconnected, slot)),
        }
    }
}

/// It never ran: there is nothing that could be left of it.
fn canceled(reason: Reason, slot: &Slot) -> Outcome {
    let report = CancelReport::never_ran(0);
    slot.gone(report);
    let mut ending = outcome::never_ran(Status::Cancelled, reason, "it was ended before its turn came");
    ending.cancel = Some(report);
    ending
}
