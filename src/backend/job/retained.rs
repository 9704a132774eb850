//! An execution that has ended: consumers that attach get its output and its ending.
//!
//! A task holds the output as long as it is retained or a consumer reads it. After that [`answer`] answers each request
//! from the registry's record.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{
    agent,
    backend_api::{BackendEvent, Heartbeat},
    clock::millis,
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Storage},
    protocol::execute::{DetachOptions, Overflow},
};
use log::debug;

use super::{
    clocks::{ConsumerClock, JobLimits},
    shared::{JobContext, JobShared, JobSnapshot},
};
use crate::backend::{
    agent::AgentJob,
    config::BackendConfig,
    holds::Holds,
    job_request::{JobError, JobRequest, refuse},
    output_buffer::{ConsumerChange, DismissReason, OutputBuffer, StoredOutput, UnreadPolicy},
    registry::{
        FIXED_BYTES, JobInbox, Retained, Slot,
        record::{Record, StoredRecord},
    },
    storage::StateDir,
};

/// Gives up the execution's place in the registry, and starts the task that holds its output.
pub(super) fn end(mut shared: JobShared, ending: Outcome, slot: Slot) {
    shared.output_buffer.finish();
    if let Some(job) = &mut shared.context.agent {
        // A prompt can be as long as a message, and is not needed any more.
        job.prompt = Bytes::new();
    }
    let JobContext { executor, limits, detach, .. } = &shared.context;
    let mut record = Record::new(executor.as_str().into(), millis(limits.heartbeat), detach.is_some(), &ending);
    record.set_newest_hold(shared.output_buffer.holds().remembered());
    record.set_stored(stored_record(&shared));
    let retained = slot.end(record, shared.output_buffer.retained(FIXED_BYTES));
    // A new task, because it takes less memory than the one that has run the command.
    actix_web::rt::spawn(retain(Box::new(shared), ending, retained));
}

/// Delivers the remaining output and the final event to the current consumer, to the observers, and to each that
/// attaches, until the registry releases the task: the retention is over, the output is evicted, or nothing is retained.
pub(super) async fn retain(mut shared: Box<JobShared>, ending: Outcome, retained: Retained) {
    let snapshot = JobSnapshot::ended(&ending);
    let mut is_released = false;
    loop {
        shared.output_buffer.deliver_final(|| BackendEvent::Exit(ending.clone()));
        retained.report(shared.output_buffer.retained(FIXED_BYTES), shared.output_buffer.holds().remembered());
        if shared.output_buffer.stored().is_some() && shared.output_buffer.is_fetched() {
            retained.report_fetched();
            if shared.storage_state == Some(Storage::Failed) {
                shared.output_buffer.forget_files();
            }
        }
        // A consumer is served to the end, even if the registry has released the task, and so is an observer.
        if is_released && !shared.output_buffer.is_attached() && shared.output_buffer.n_observers() == 0 {
            break;
        }
        tokio::select! {
            biased;
            request = shared.requests.recv(), if !is_released => match request {
                None => {
                    is_released = true;
                    // The registry no longer counts its memory.
                    shared.output_buffer.give_up_output();
                }
                Some(request) => {
                    if let Some(request) = shared.answer_common(request, || snapshot.clone(), Some(&ending)) {
                        refuse(request, JobError::Ended(shared.context.id));
                    }
                }
            },
            change = shared.output_buffer.consumer_change(shared.context.config.consumer_stall, shared.consumer_clock.polled_at()) => {
                if change != ConsumerChange::Room {
                    shared.output_buffer.dismiss(DismissReason::Vanished);
                }
            }
        }
    }
    debug!(event = "execution.output_released", execution_id:% = shared.context.id; "output released");
}

/// The output of an execution on disk, for its record.
fn stored_record(shared: &JobShared) -> Option<StoredRecord> {
    let (stored, storage) = (shared.output_buffer.stored()?, shared.storage_state?);
    Some(StoredRecord {
        starts: stored.starts(),
        ends: stored.ends(),
        overflow: shared.context.detach?.overflow,
        is_fetched: shared.output_buffer.is_fetched(),
        is_removed: false,
        is_pending: false,
        storage,
        instance: shared.context.instance,
    })
}

/// Answers a request to an execution whose output is gone, or on disk only: with its ending, and with a gap in place of
/// lost output. An attach may make a new hold.
pub fn answer(
    record: &mut Record,
    id: ExecutionId,
    instance: InstanceId,
    (config, state_dir): (&Arc<BackendConfig>, Option<&Arc<StateDir>>),
    request: JobRequest,
) {
    let ending = record.ending();
    let stored = record
        .stored()
        .zip(state_dir)
        .map(|(stored, directory)| StoredOutput::ended(directory.entry(id).files(stored.starts), stored.ends));
    let instance = record.stored().map_or(instance, |stored| stored.instance);
    let context = JobContext {
        id,
        instance,
        executor: record.executor.to_string(),
        limits: JobLimits { timeout: None, stall: None, heartbeat: Duration::from_millis(record.heartbeat_ms.into()) },
        detach: record.may_detach.then_some(DetachOptions { detach_ms: 0, overflow: Overflow::Wait }),
        pty: None,
        config: Arc::clone(config),
        agent: agent::named(&record.executor).map(|agent| AgentJob { agent, prompt: Bytes::new() }),
    };
    let mut output_buffer = OutputBuffer::without_output(record.written(), stored, Holds::since(record.newest_hold()));
    if let Some(stored) = record.stored() {
        output_buffer.set_policy(UnreadPolicy::Detach(stored.overflow), stored.is_fetched);
    }
    let mut shared = JobShared {
        context,
        requests: JobInbox::none(),
        output_buffer,
        consumer_clock: ConsumerClock::attached(Instant::now()),
        held_since: None,
        storage: None,
        failed_storage: None,
        storage_state: ending.storage,
    };
    if let Some(request) = shared.answer_common(request, || JobSnapshot::ended(&ending), Some(&ending)) {
        refuse(request, JobError::Ended(id));
    }
    shared.output_buffer.deliver_final(|| BackendEvent::Exit(ending.clone()));
    record.set_newest_hold(shared.output_buffer.holds().remembered());
    if shared.output_buffer.is_fetched() {
        record.set_fetched();
    }
    debug_assert!(
        !shared.output_buffer.is_attached() && shared.output_buffer.n_observers() == 0,
        "all items of an execution without output fit in a consumer's slots"
    );
}

impl JobSnapshot {
    /// The state of an execution that has ended.
    pub(super) fn ended(ending: &Outcome) -> JobSnapshot {
        JobSnapshot {
            is_reported: true,
            status: ending.status,
            position: None,
            alive: Heartbeat { elapsed_ms: ending.elapsed_ms.unwrap_or(0), ..Heartbeat::default() },
        }
    }
}
