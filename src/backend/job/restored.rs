//! Executions of earlier backends, from the state directory: their records, and for those that ended with their backend a
//! task that digests the output.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{
    agent,
    outcome::{Outcome, Reason, Storage},
    stream::PerStream,
};
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::{
    clocks::{ConsumerClock, JobLimits},
    retained::retain,
    shared::{JobContext, JobShared, JobSnapshot},
    storing::end_record,
};
use crate::backend::{
    agent::AgentJob,
    holds::Holds,
    job_request::{JobError, refuse},
    output_buffer::{ConsumerChange, DismissReason, OutputBuffer, StoredOutput, UnreadPolicy},
    registry::{
        EndedExecution, JobInbox, Registry, Retained,
        record::{Record, RequestDigest, StoredRecord},
    },
    storage::{
        StateDir,
        records::{CheckpointRecord, EndRecord, RecordFile, SpecRecord},
        restore::{RestoredDigests, RestoredEnd, RestoredExecution, digest},
    },
};

/// How many executions are digested at a time.
const DIGESTED_AT_A_TIME: usize = 2;

/// Adds the executions of a state directory to an empty registry.
pub fn add(registry: &Registry, directory: &Arc<StateDir>, executions: Vec<RestoredExecution>) {
    let turns = Arc::new(Semaphore::new(DIGESTED_AT_A_TIME));
    for RestoredExecution { spec, end, starts, ends } in executions {
        let id = spec.execution_id;
        // Of a release with other parameters: a repeated request is then refused, because it must not run again.
        let request = RequestDigest::from_text(&spec.request).unwrap_or(RequestDigest::UNKNOWN);
        let (outcome, storage, last_alive, lost) = match end {
            RestoredEnd::Recorded { record, output_is_whole } => {
                let EndRecord { outcome, ended, .. } = *record;
                let storage = if output_is_whole { outcome.storage.unwrap_or(Storage::Disk) } else { Storage::Altered };
                (outcome, storage, ended, None)
            }
            RestoredEnd::Lost { last_alive, is_altered, has_failed, checkpoint } => {
                let storage = match (is_altered, has_failed) {
                    (true, _) => Storage::Altered,
                    (false, true) => Storage::Failed,
                    (false, false) => Storage::Disk,
                };
                (lost_outcome(&spec, ends, last_alive, storage), storage, last_alive, Some(checkpoint))
            }
        };
        let mut record = Record::new(spec.executor.as_str().into(), spec.heartbeat_ms, true, &outcome);
        record.set_newest_hold(Holds::UNKNOWN);
        record.set_stored(Some(StoredRecord {
            starts,
            ends,
            overflow: spec.detach.overflow,
            is_fetched: false,
            is_removed: false,
            is_pending: lost.is_some(),
            storage,
            instance: spec.instance,
        }));
        let ended = EndedExecution {
            id,
            owner: spec.owner.clone(),
            request,
            command: spec.command.clone(),
            name: spec.name.clone(),
            created_ms: since_1970(spec.created),
            ended_ms: since_1970(last_alive),
            record,
        };
        let (retained, inbox) = registry.add_ended(ended, lost.is_some());
        if let Some(checkpoint) = lost {
            let files = directory.entry(id).files(starts);
            let stored = StoredOutput::ended(files, ends);
            let mut output_buffer = OutputBuffer::without_output(ends, Some(stored), Holds::since(Holds::UNKNOWN));
            output_buffer.set_policy(UnreadPolicy::Detach(spec.detach.overflow), false);
            let task = LostExecution {
                shared: shared(registry, &spec, output_buffer, inbox, storage),
                outcome,
                ended: last_alive,
                directory: Arc::clone(directory),
                checkpoint,
                retained,
            };
            actix_web::rt::spawn(task.digest(Arc::clone(&turns)));
        } else {
            retained.forget();
        }
    }
}

fn since_1970(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}

/// The outcome of an execution that ended with its backend.
fn lost_outcome(spec: &SpecRecord, ends: PerStream<u64>, last_alive: Timestamp, storage: Storage) -> Outcome {
    let killed =
        format!("the backend that ran it was killed, and its processes with it; it was last alive at {last_alive:.0}");
    let has_written = ends != PerStream::default();
    let message = match storage {
        Storage::Altered => {
            "the record of how this execution ended was altered on the backend's disk, so its ending is not known"
                .to_owned()
        }
        Storage::Failed => format!("{killed}; output that the disk had not taken is lost"),
        _ if has_written => {
            format!("{killed}; output that was not on disk then is lost, at most 64 KiB and what its pipes held")
        }
        _ => format!("{killed}; it had written nothing, and may not have been started"),
    };
    let ran_ms = since_1970(last_alive).saturating_sub(since_1970(spec.created));
    Outcome {
        elapsed_ms: has_written.then_some(ran_ms),
        bytes: ends.map(Some),
        ..Outcome::failed(Reason::BackendLost, message)
    }
}

fn shared(
    registry: &Registry,
    spec: &SpecRecord,
    output_buffer: OutputBuffer,
    requests: JobInbox,
    storage: Storage,
) -> Box<JobShared> {
    let context = JobContext {
        id: spec.execution_id,
        instance: spec.instance,
        executor: spec.executor.clone(),
        limits: JobLimits { timeout: None, stall: None, heartbeat: Duration::from_millis(spec.heartbeat_ms) },
        detach: Some(spec.detach),
        pty: None,
        agent: agent::named(&spec.executor).map(|agent| AgentJob { agent, prompt: Bytes::new() }),
        config: Arc::clone(registry.config()),
    };
    Box::new(JobShared {
        context,
        requests,
        output_buffer,
        consumer_clock: ConsumerClock::attached(Instant::now()),
        held_since: None,
        storage: None,
        failed_storage: None,
        storage_state: Some(storage),
    })
}

/// An execution whose output is being digested.
struct LostExecution {
    shared: Box<JobShared>,
    outcome: Outcome,
    /// When its backend was last alive.
    ended: Timestamp,
    directory: Arc<StateDir>,
    checkpoint: Option<CheckpointRecord>,
    retained: Retained,
}

impl LostExecution {
    /// Digests the output and records the end. A consumer gets the output meanwhile, and the end with its digest.
    async fn digest(mut self, turns: Arc<Semaphore>) {
        let snapshot = JobSnapshot::ended(&self.outcome);
        let Some(stored) = self.shared.output_buffer.stored() else { return };
        let (files, ends, checkpoint) = (stored.files().clone(), stored.ends(), self.checkpoint.take());
        let digesting = async move {
            // The semaphore is never closed.
            let _turn = turns.acquire().await;
            tokio::task::spawn_blocking(move || digest(&files, ends, checkpoint.as_ref())).await
        };
        tokio::pin!(digesting);
        let mut is_released = false;
        let digests = loop {
            self.shared.output_buffer.deliver();
            tokio::select! {
                digests = &mut digesting => break digests,
                request = self.shared.requests.recv(), if !is_released => match request {
                    None => is_released = true,
                    Some(request) => {
                        let mut pending = self.outcome.clone();
                        self.retained.amend(|record| pending = record.ending());
                        if let Some(request) = self.shared.answer_common(request, || snapshot.clone(), Some(&pending)) {
                            refuse(request, JobError::Ended(self.shared.context.id));
                        }
                    }
                },
                change = self.shared.output_buffer.consumer_change(self.shared.context.config.consumer_stall, self.shared.consumer_clock.polled_at()) => {
                    if change != ConsumerChange::Room {
                        self.shared.output_buffer.dismiss(DismissReason::Vanished);
                    }
                }
            }
        };
        let nothing = RestoredDigests { sha256: PerStream::default(), is_altered: false };
        self.finish(digests.unwrap_or(nothing)).await;
    }

    async fn finish(mut self, RestoredDigests { sha256, is_altered }: RestoredDigests) {
        if is_altered {
            self.shared.storage_state = Some(Storage::Altered);
        }
        self.outcome.sha256 = sha256;
        self.outcome.storage = self.shared.storage_state;
        let (outcome, storage) = (self.outcome.clone(), self.shared.storage_state.unwrap_or(Storage::Disk));
        self.retained.amend(|record| record.set_digests(&outcome, storage));
        if let Some(stored) = self.shared.output_buffer.stored() {
            let id = self.shared.context.id;
            let sealed = end_record(&self.outcome, self.ended, stored).sealed(self.directory.sealer(), id);
            self.directory.record(id, EndRecord::FILE, sealed);
        }
        retain(self.shared, self.outcome, self.retained).await;
    }
}
