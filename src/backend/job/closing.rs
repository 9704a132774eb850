//! The end of an execution on its way to disk. No client learns of the end before, because a backend that is killed would
//! otherwise know nothing of it after its restart.

use std::time::Instant;

use cc_executor_actors::{
    backend_api::{BackendEvent, Heartbeat},
    outcome::{Outcome, Status},
};

use super::{
    disk::{StorageWake, storage_wake},
    shared::{JobShared, JobSnapshot, at},
};
use crate::backend::{
    job_request::{JobError, refuse},
    output_buffer::{ConsumerChange, DismissReason},
    registry::Slot,
    storage::writer::StoredBatch,
};

/// Writes the end to disk, if the execution keeps its output there, and waits until it is there. Everything else is served
/// meanwhile, because a disk may hang.
pub(super) async fn record_end(shared: &mut JobShared, ending: &mut Outcome, slot: &Slot) {
    ending.storage = shared.storage_state;
    shared.submit_end(ending);
    let alive = Heartbeat { elapsed_ms: ending.elapsed_ms.unwrap_or(0), ..Heartbeat::default() };
    let status = if ending.cancel.is_some() { Status::Cancelling } else { Status::Running };
    let snapshot = JobSnapshot { is_reported: true, status, position: None, alive };
    let mut is_released = false;
    let mut heartbeat_at = Instant::now() + shared.context.limits.heartbeat;
    while shared.storage.as_ref().is_some_and(|storage| !storage.is_idle()) {
        shared.output_buffer.deliver();
        tokio::select! {
            biased;
            wake = storage_wake(&mut shared.storage, false) => {
                if let StorageWake::Stored(StoredBatch { failure: Some((error, _)), .. }) = wake {
                    shared.stop_storing(&error);
                }
            }
            request = shared.requests.recv(), if !is_released => match request {
                None => is_released = true,
                Some(request) => {
                    if let Some(request) = shared.answer_common(request, || snapshot.clone(), None) {
                        refuse(request, JobError::JustEnded(shared.context.id));
                    }
                }
            },
            () = at(Some(heartbeat_at)) => {
                heartbeat_at = Instant::now() + shared.context.limits.heartbeat;
                shared.check_consumer(Instant::now());
                shared.output_buffer.send_event_if_room(BackendEvent::Alive(snapshot.alive.clone()));
            }
            change = shared.output_buffer.consumer_change(shared.context.config.consumer_stall, shared.consumer_clock.polled_at()) => {
                if change != ConsumerChange::Room {
                    shared.output_buffer.dismiss(DismissReason::Vanished);
                }
            }
        }
    }
    ending.storage = shared.storage_state;
    shared.report_stored(slot, 0);
    shared.close_failed_storage(ending);
}
