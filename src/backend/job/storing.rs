//! The output of an execution on its way to disk, beside its job: a piece is counted and delivered when it is on disk.
//!
//! When the disk fails, the execution continues as without a state directory, and says so.

use std::time::Instant;

use bytes::Bytes;
use cc_executor_actors::{
    outcome::{Outcome, Storage},
    stream::{PerStream, Stream},
};
use jiff::Timestamp;
use log::error;

use super::{disk::JobStorage, outcome::OutputDigests, shared::JobShared};
use crate::backend::{
    output_buffer::StoredOutput,
    registry::Slot,
    storage::records::{CheckpointRecord, EndRecord, RecordFile},
};

/// How much the registry's count of an execution's bytes on disk may lag behind.
const REPORT_STEP: u64 = 64 * 1024;

impl JobShared {
    /// The disk has failed: nothing more is stored.
    pub(super) fn stop_storing(&mut self, cause: &std::io::Error) {
        error!(event = "storage.failed", execution_id:% = self.context.id;
            "cannot keep the output of this execution on disk: {cause}; it continues as without --state-dir");
        self.output_buffer.stop_storing();
        self.failed_storage = self.storage.take().map(JobStorage::into_directory);
        if let Some(directory) = &self.failed_storage {
            // A backend that is started later must not take what is on disk for the whole.
            directory.mark_failed(self.context.id);
        }
        self.storage_state = Some(Storage::Failed);
    }

    /// Keeps what is on disk of an execution whose storage failed, if there is room for the record of its end; else its
    /// files are removed. Nobody waits for it, because the disk may hang.
    pub(super) fn close_failed_storage(&self, ending: &Outcome) {
        if let (Some(directory), Some(stored)) = (&self.failed_storage, self.output_buffer.stored()) {
            let record = end_record(ending, Timestamp::now(), stored);
            let sealed = record.sealed(directory.sealer(), self.context.id);
            directory.record_or_remove(self.context.id, EndRecord::FILE, sealed);
        }
    }

    /// After output has arrived on disk: frees space beyond the quota, tells the registry, and writes a checkpoint.
    pub(super) fn after_batch(&mut self, slot: &Slot, digests: &OutputDigests) {
        // Exactly if the command waits now, because others are admitted by that count.
        let is_waiting = Stream::BOTH.into_iter().any(|stream| !self.output_buffer.may_read(stream));
        self.report_stored(slot, if is_waiting { 1 } else { REPORT_STEP });
        let has_given_up = self.output_buffer.give_up();
        let (Some(storage), Some(stored)) = (&mut self.storage, self.output_buffer.stored()) else { return };
        let PerStream { stdout, stderr } = self.output_buffer.written();
        // Before the bytes are given up, because only the checkpoint says so to a later backend.
        if storage.take_checkpoint(stdout + stderr, Instant::now()) || has_given_up {
            let (bytes, sha256) = digests.so_far();
            storage.record(&CheckpointRecord { starts: stored.starts(), bytes, sha256 }, self.context.id);
        }
        if has_given_up {
            storage.free();
        }
    }

    /// Tells the registry how many bytes are on disk if that has changed by `step`, and learns how many may be there.
    pub(super) fn report_stored(&mut self, slot: &Slot, step: u64) {
        let (Some(storage), Some(stored)) = (&mut self.storage, self.output_buffer.stored()) else { return };
        if let Some(granted) = storage.report(stored.kept(), step, slot) {
            self.output_buffer.grant(granted);
        }
    }

    /// Submits the record of the end.
    pub(super) fn submit_end(&mut self, ending: &Outcome) {
        let (Some(storage), Some(stored)) = (&mut self.storage, self.output_buffer.stored()) else { return };
        storage.record(&end_record(ending, Timestamp::now(), stored), self.context.id);
    }
}

/// The record of an ending whose output is in these files.
pub(super) fn end_record(ending: &Outcome, ended: Timestamp, stored: &StoredOutput) -> EndRecord {
    EndRecord { outcome: ending.clone(), ended, starts: stored.starts(), ends: stored.ends() }
}

/// Pieces by stream, in bytes.
pub(super) fn lengths(pieces: &[(Stream, Bytes)]) -> PerStream<usize> {
    let mut lengths = PerStream::default();
    for (stream, bytes) in pieces {
        *lengths.get_mut(*stream) += bytes.len();
    }
    lengths
}
