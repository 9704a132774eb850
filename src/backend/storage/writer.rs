//! Writes the files of one execution, in order, on tokio's blocking pool: a disk that hangs holds up this execution's
//! output alone. A batch of operations is under way at a time, and takes everything that was submitted meanwhile.
//!
//! Only one piece of output is on its way to disk at a time, because it is lost if the backend is killed then.

use std::{io, sync::Arc};

use bytes::Bytes;
use cc_executor_actors::stream::{PerStream, Stream};
use tokio::task::JoinHandle;

use super::{directory::StateDir, entry::Entry, stored_file::StoredFile};

/// A piece of output.
pub type OutputPiece = (Stream, Bytes);

/// An operation on the files.
#[derive(Clone, Debug)]
enum StorageOp {
    /// Make the files. Always the first.
    Create(Bytes),
    /// Append to a stream's file, at this offset.
    Write(OutputPiece, u64),
    /// Write a record, as a whole.
    Record(&'static str, Bytes),
    /// Free the disk space of bytes that were given up.
    Free,
}

/// The job's end of the files of one execution.
#[derive(Debug)]
pub struct OutputWriter {
    directory: Arc<StateDir>,
    entry: Entry,
    files: PerStream<Arc<StoredFile>>,
    /// How much was submitted of each stream.
    submitted: PerStream<u64>,
    waiting: Vec<StorageOp>,
    /// How many pieces of output are waiting or under way.
    unwritten: usize,
    under_way: Option<Batch>,
}

/// A batch that is under way.
#[derive(Debug)]
struct Batch {
    ops: Vec<StorageOp>,
    /// Returns how many are done, and the error that ended the batch.
    running: JoinHandle<(usize, io::Result<()>)>,
}

/// A finished batch.
#[derive(Debug)]
pub struct StoredBatch {
    /// The output that is on disk now, in its order.
    pub written: Vec<OutputPiece>,
    /// The error that ends the storage, and the output that is not on disk.
    pub failure: Option<(io::Error, Vec<OutputPiece>)>,
}

impl OutputWriter {
    /// Begins to make the files of an execution, with this specification.
    pub fn create(directory: Arc<StateDir>, entry: Entry, files: PerStream<Arc<StoredFile>>, spec: Vec<u8>) -> Self {
        let mut writer = OutputWriter {
            directory,
            entry,
            files,
            submitted: PerStream::default(),
            waiting: vec![StorageOp::Create(spec.into())],
            unwritten: 0,
            under_way: None,
        };
        writer.start();
        writer
    }

    /// Whether all output is on disk. Back-pressure: the command's pipes are not read while this is false.
    pub fn has_room(&self) -> bool {
        self.unwritten == 0
    }

    /// Whether everything that was submitted is done.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_none()
    }

    /// Submits output.
    pub fn write(&mut self, stream: Stream, bytes: Bytes) {
        let at = self.submitted.get_mut(stream);
        let offset = *at;
        *at += bytes.len() as u64;
        self.unwritten += 1;
        self.submit(StorageOp::Write((stream, bytes), offset));
    }

    /// Submits a record.
    pub fn record(&mut self, name: &'static str, content: Vec<u8>) {
        self.submit(StorageOp::Record(name, content.into()));
    }

    /// Submits that the disk space before the files' starts is freed.
    pub fn free(&mut self) {
        self.submit(StorageOp::Free);
    }

    fn submit(&mut self, op: StorageOp) {
        self.waiting.push(op);
        self.start();
    }

    fn start(&mut self) {
        if self.under_way.is_some() || self.waiting.is_empty() {
            return;
        }
        let ops = std::mem::take(&mut self.waiting);
        let (directory, entry, files) = (Arc::clone(&self.directory), self.entry.clone(), self.files.clone());
        // The clones are references to the same bytes; they stay here in case the thread is lost.
        let of_thread = ops.clone();
        let running = tokio::task::spawn_blocking(move || {
            for (at, op) in of_thread.iter().enumerate() {
                if let Err(error) = carry_out(op, &directory, &entry, &files) {
                    return (at, Err(error));
                }
            }
            (of_thread.len(), Ok(()))
        });
        self.under_way = Some(Batch { ops, running });
    }

    /// Waits for the batch that is under way. Cancel safe. Waits for ever while the writer is idle.
    pub async fn done(&mut self) -> StoredBatch {
        let Some(Batch { running, .. }) = &mut self.under_way else { return std::future::pending().await };
        let (n_done, result) = running.await.unwrap_or_else(|error| (0, Err(io::Error::other(error))));
        let Batch { ops, .. } = self.under_way.take().expect("it was awaited");
        let mut ops = ops.into_iter();
        let written: Vec<_> = ops.by_ref().take(n_done).filter_map(StorageOp::piece).collect();
        self.unwritten -= written.len();
        let failure = match result {
            Ok(()) => None,
            Err(error) => {
                let unwritten = ops.chain(self.waiting.drain(..)).filter_map(StorageOp::piece).collect();
                Some((error, unwritten))
            }
        };
        if failure.is_none() {
            self.start();
        }
        StoredBatch { written, failure }
    }
}

impl StorageOp {
    fn piece(self) -> Option<OutputPiece> {
        match self {
            StorageOp::Write(piece, _) => Some(piece),
            StorageOp::Create(_) | StorageOp::Record(..) | StorageOp::Free => None,
        }
    }
}

fn carry_out(
    op: &StorageOp,
    directory: &StateDir,
    entry: &Entry,
    files: &PerStream<Arc<StoredFile>>,
) -> io::Result<()> {
    match op {
        StorageOp::Create(spec) => {
            directory.wait_until_removed(entry.id());
            entry.create(files, spec)
        }
        StorageOp::Write((stream, bytes), at) => files.get(*stream).write(bytes, *at),
        StorageOp::Record(name, content) => entry.write(name, content),
        StorageOp::Free => {
            files.stdout.free_before_start()?;
            files.stderr.free_before_start()
        }
    }
}
