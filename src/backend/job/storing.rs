//! The output of an execution on its way to disk, beside its job: a piece is counted and delivered when it is on disk.
//!
//! When the disk fails, the execution continues as without a state directory, and says so.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{
    outcome::{Outcome, Storage},
    stream::{PerStream, Stream},
};
use jiff::Timestamp;
use log::error;
use tokio::sync::watch;

use super::{outcome::OutputDigests, shared::JobShared};
use crate::backend::{
    output_buffer::StoredOutput,
    registry::Slot,
    storage::{
        StateDir,
        records::{CheckpointRecord, EndRecord, StoredRecord},
        writer::{OutputWriter, StoredBatch},
    },
};

/// How often, and after how many bytes, a digest of the output so far is written.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);
const CHECKPOINT_BYTES: u64 = 64 << 20;

/// How much the registry's count of an execution's bytes on disk may lag behind.
const REPORT_STEP: u64 = 64 * 1024;

/// The storage of a job.
pub struct JobStorage {
    writer: OutputWriter,
    directory: Arc<StateDir>,
    checkpoint_at: Instant,
    /// How much was written before the last checkpoint.
    checked: u64,
    /// How many bytes on disk the registry knows of.
    reported: u64,
    /// Changes when disk space was given up by another execution.
    room: watch::Receiver<()>,
}

/// What has happened on disk.
pub(super) enum StorageWake {
    /// Output has arrived there, or could not be written.
    Stored(StoredBatch),
    /// Another execution has given up space.
    Room,
}

impl JobStorage {
    /// The storage of a job that begins.
    pub fn new(writer: OutputWriter, directory: Arc<StateDir>, room: watch::Receiver<()>) -> Self {
        JobStorage { writer, directory, checkpoint_at: Instant::now(), checked: 0, reported: 0, room }
    }

    /// Whether everything that was submitted is on disk.
    pub(super) fn is_idle(&self) -> bool {
        self.writer.is_idle()
    }

    /// Whether the pipes may be read, as far as the disk is concerned.
    pub(super) fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    /// Sends output to disk.
    pub(super) fn write(&mut self, stream: Stream, bytes: Bytes) {
        self.writer.write(stream, bytes);
    }
}

/// Waits for output that has arrived on disk or could not be written, and, while the command is held back, for space.
/// Waits for ever without storage. Cancel safe.
pub(super) async fn storage_wake(storage: &mut Option<JobStorage>, is_held_back: bool) -> StorageWake {
    let Some(JobStorage { writer, room, .. }) = storage else { return std::future::pending().await };
    tokio::select! {
        batch = writer.done() => StorageWake::Stored(batch),
        // The sender lives as long as the registry.
        Ok(()) = room.changed(), if is_held_back => StorageWake::Room,
    }
}

impl JobShared {
    /// The disk has failed: nothing more is stored.
    pub(super) fn stop_storing(&mut self, cause: &std::io::Error) {
        error!(event = "storage.failed", execution_id:% = self.context.id;
            "cannot keep the output of this execution on disk: {cause}; it continues as without --state-dir");
        self.output_buffer.stop_storing();
        self.failed_storage = self.storage.take().map(|storage| storage.directory);
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
        let is_over = self.output_buffer.give_up();
        let Some(storage) = &mut self.storage else { return };
        if is_over {
            storage.writer.free();
        }
        let written: u64 = Stream::BOTH.into_iter().map(|stream| *self.output_buffer.written().get(stream)).sum();
        let now = Instant::now();
        let is_due = written > storage.checked && now.duration_since(storage.checkpoint_at) >= CHECKPOINT_INTERVAL;
        if is_due || written - storage.checked >= CHECKPOINT_BYTES {
            (storage.checkpoint_at, storage.checked) = (now, written);
            let record = digests.checkpoint();
            storage.writer.record(CheckpointRecord::FILE, record.sealed(storage.directory.sealer(), self.context.id));
        }
    }

    /// Tells the registry how many bytes are on disk if that has changed by `step`, and learns how many may be there.
    pub(super) fn report_stored(&mut self, slot: &Slot, step: u64) {
        let (Some(storage), Some(stored)) = (&mut self.storage, self.output_buffer.stored()) else { return };
        let kept = stored.kept();
        if kept.abs_diff(storage.reported) >= step {
            storage.reported = kept;
            // Space that is given up from here on wakes the job.
            storage.room.borrow_and_update();
            let room = slot.record_stored(kept);
            self.output_buffer.grant(kept.saturating_add(room));
        }
    }

    /// Submits the record of the end.
    pub(super) fn submit_end(&mut self, ending: &Outcome) {
        let (Some(storage), Some(stored)) = (&mut self.storage, self.output_buffer.stored()) else { return };
        let record = end_record(ending, Timestamp::now(), stored);
        storage.writer.record(EndRecord::FILE, record.sealed(storage.directory.sealer(), self.context.id));
    }
}

/// The record of an ending whose output is in these files.
pub(super) fn end_record(ending: &Outcome, ended: Timestamp, stored: &StoredOutput) -> EndRecord {
    EndRecord { outcome: ending.clone(), ended, starts: stored.starts(), ends: stored.ends() }
}

impl OutputDigests {
    /// The digests so far.
    fn checkpoint(&self) -> CheckpointRecord {
        let (bytes, sha256) = self.so_far();
        CheckpointRecord { bytes, sha256 }
    }
}

/// Pieces by stream, in bytes.
pub(super) fn lengths(pieces: &[(Stream, Bytes)]) -> PerStream<usize> {
    let mut lengths = PerStream::default();
    for (stream, bytes) in pieces {
        *lengths.get_mut(*stream) += bytes.len();
    }
    lengths
}
