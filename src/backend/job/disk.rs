//! The way of an execution's output to disk, as its job sees it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{id::ExecutionId, stream::Stream};
use tokio::sync::watch;

use crate::backend::{
    registry::Slot,
    storage::{
        StateDir,
        records::RecordFile,
        writer::{OutputWriter, StoredBatch},
    },
};

/// How often, and after how many bytes, a digest of the output so far is written.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);
const CHECKPOINT_BYTES: u64 = 64 << 20;

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

    /// Sends a record to disk.
    pub(super) fn record<T: RecordFile>(&mut self, record: &T, id: ExecutionId) {
        self.writer.record(T::FILE, record.sealed(self.directory.sealer(), id));
    }

    /// Frees the disk space of output that was given up.
    pub(super) fn free(&mut self) {
        self.writer.free();
    }

    /// Whether a checkpoint is due, now that so many bytes are written; the next one is then due later.
    pub(super) fn take_checkpoint(&mut self, written: u64, now: Instant) -> bool {
        let is_late = written > self.checked && now.duration_since(self.checkpoint_at) >= CHECKPOINT_INTERVAL;
        let is_due = is_late || written - self.checked >= CHECKPOINT_BYTES;
        if is_due {
            (self.checkpoint_at, self.checked) = (now, written);
        }
        is_due
    }

    /// Tells the registry how many bytes are on disk if that has changed by `step`, and returns how many may be there.
    pub(super) fn report(&mut self, kept: u64, step: u64, slot: &Slot) -> Option<u64> {
        if kept.abs_diff(self.reported) < step {
            return None;
        }
        self.reported = kept;
        // Space that is given up from here on wakes the job.
        self.room.borrow_and_update();
        Some(slot.record_stored(kept))
    }

    /// The directory, when the storage has failed.
    pub(super) fn into_directory(self) -> Arc<StateDir> {
        self.directory
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
