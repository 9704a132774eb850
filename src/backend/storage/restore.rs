//! Reads a state directory at the start of a backend. Blocks.
//!
//! An execution with `end.json` has its true ending. Without it, it ended with its backend; its output is digested
//! later, by [`digest`]. An entry whose specification cannot be trusted is moved aside.

use std::{fs, io, sync::Arc};

use cc_executor_actors::{
    excerpt::excerpt,
    id::ExecutionId,
    stream::{PerStream, Stream},
};
use jiff::Timestamp;
use log::{info, warn};
use rustix::fs::{SeekFrom, seek};
use sha2::{Digest, Sha256};

use super::{
    directory::StateDir,
    entry::FAILED_SPEC,
    records::{CheckpointRecord, EndRecord, RecordFile, SpecRecord},
    seal::Unsealed,
    stored_file::{StoredFile, StoredPiece},
};

/// The longest output file that a backend believes, in bytes: far more than any quota, and few enough to be read.
const MAX_LENGTH: u64 = 1 << 40;

/// An execution of an earlier backend.
#[derive(Debug)]
pub struct RestoredExecution {
    /// What was asked for.
    pub spec: SpecRecord,
    /// How it ended.
    pub end: RestoredEnd,
    /// The offsets of the first bytes that the files have.
    pub starts: PerStream<u64>,
    /// The lengths of the files.
    pub ends: PerStream<u64>,
}

/// How an execution of an earlier backend ended.
#[derive(Debug)]
pub enum RestoredEnd {
    /// As its record says. If the length of a file differs, the output was altered.
    Recorded {
        /// The record.
        record: Box<EndRecord>,
        /// Whether the files have the output of the record.
        output_is_whole: bool,
    },
    /// With its backend, or the record was altered.
    Lost {
        /// When a backend was last alive.
        last_alive: Timestamp,
        /// Whether there is a record, which was altered.
        is_altered: bool,
        /// Whether the disk had not taken all of the output.
        has_failed: bool,
        /// The newest checkpoint of the output.
        checkpoint: Option<CheckpointRecord>,
    },
}

/// Reads all executions of a directory.
///
/// # Errors
///
/// The directory cannot be listed.
pub fn restore(directory: &Arc<StateDir>) -> io::Result<Vec<RestoredExecution>> {
    if let Err(error) = directory.finish_removals() {
        warn!(event = "storage.not_removed"; "cannot remove what an earlier removal has left: {error}");
    }
    let last_alive = directory.last_alive().and_then(|time| Timestamp::try_from(time).ok());
    let mut restored = Vec::new();
    for entry in fs::read_dir(directory.path().join("executions"))? {
        let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<ExecutionId>().ok()) else { continue };
        match read_entry(directory, id, last_alive) {
            Ok(Some(execution)) => restored.push(execution),
            // Its backend was killed before it had begun.
            Ok(None) => directory.remove(id),
            Err(problem) => match directory.move_aside(id) {
                Ok(place) => warn!(event = "storage.damaged", execution_id:% = id, path:% = place.display();
                    "the files of an execution were moved aside: {problem}"),
                Err(error) => warn!(event = "storage.damaged", execution_id:% = id;
                    "the files of an execution are damaged ({problem}) and cannot be moved aside: {error}"),
            },
        }
    }
    info!(event = "storage.restored", executions = restored.len(), path:% = directory.path().display();
        "executions of earlier backends restored");
    Ok(restored)
}

fn read_entry(
    directory: &StateDir,
    id: ExecutionId,
    last_alive: Option<Timestamp>,
) -> Result<Option<RestoredExecution>, String> {
    let (entry, sealer) = (directory.entry(id), directory.sealer());
    let (spec, has_failed) = match SpecRecord::read(sealer, id, entry.path()) {
        None => (SpecRecord::read_as(FAILED_SPEC, sealer, id, entry.path()), true),
        spec => (spec, false),
    };
    let mut spec = match spec {
        Some(Unsealed::Whole(spec)) if spec.execution_id == id => spec,
        Some(Unsealed::Whole(_) | Unsealed::Altered) => return Err("spec.json was altered".to_owned()),
        Some(Unsealed::Damaged) => return Err("spec.json is damaged".to_owned()),
        None => return Ok(None),
    };
    // A prompt can be as long as a message, and there may be thousands of entries.
    spec.command = excerpt(&spec.command).into_owned();
    let files = entry.files(PerStream::default());
    let length = |stream: Stream| files.get(stream).length().map_err(|error| format!("{}: {error}", stream.as_str()));
    let lengths = PerStream { stdout: length(Stream::Stdout)?, stderr: length(Stream::Stderr)? };
    if lengths.stdout.max(lengths.stderr) > MAX_LENGTH {
        return Err(format!("an output file is longer than {MAX_LENGTH} bytes"));
    }
    let written = |stream: Stream| files.get(stream).modified().ok().and_then(|time| Timestamp::try_from(time).ok());
    let end = match EndRecord::read(sealer, id, entry.path()) {
        Some(Unsealed::Whole(record)) => {
            let ends = each(&record.ends, &lengths, |recorded, length| recorded.min(length));
            let starts = each(&record.starts, &ends, |start, end| start.min(end));
            let output_is_whole = record.ends == lengths;
            let end = RestoredEnd::Recorded { record: Box::new(record), output_is_whole };
            return Ok(Some(RestoredExecution { spec, end, starts, ends }));
        }
        other => RestoredEnd::Lost {
            has_failed,
            // It may have written after the last sign of life of its backend.
            last_alive: [last_alive, written(Stream::Stdout), written(Stream::Stderr)]
                .into_iter()
                .flatten()
                .fold(spec.created, Timestamp::max),
            // A damaged one says nothing, as after a crash of the machine.
            is_altered: matches!(other, Some(Unsealed::Altered)),
            checkpoint: match CheckpointRecord::read(sealer, id, entry.path()) {
                Some(Unsealed::Whole(checkpoint)) => Some(checkpoint),
                _ => None,
            },
        },
    };
    let starts = match &end {
        // Written before the bytes were given up.
        RestoredEnd::Lost { checkpoint: Some(checkpoint), .. } => {
            each(&checkpoint.starts, &lengths, |start, length| start.min(length))
        }
        _ => {
            let start = |stream: Stream| first_byte(files.get(stream), *lengths.get(stream));
            PerStream { stdout: start(Stream::Stdout), stderr: start(Stream::Stderr) }
        }
    };
    Ok(Some(RestoredExecution { spec, end, starts, ends: lengths }))
}

fn each(a: &PerStream<u64>, b: &PerStream<u64>, of: impl Fn(u64, u64) -> u64) -> PerStream<u64> {
    PerStream { stdout: of(a.stdout, b.stdout), stderr: of(a.stderr, b.stderr) }
}

/// The offset of the first byte that was not given up: given-up bytes are a hole at the beginning of the file.
fn first_byte(file: &StoredFile, end: u64) -> u64 {
    if end == 0 {
        return 0;
    }
    file.with(|file| Ok(seek(file, SeekFrom::Data(0))?)).unwrap_or(end)
}

/// The digests of restored output.
#[derive(Debug)]
pub struct RestoredDigests {
    /// SHA-256 in hexadecimal; `None` where the beginning was given up or the file cannot be read.
    pub sha256: PerStream<Option<String>>,
    /// Whether the output differs from its checkpoint.
    pub is_altered: bool,
}

/// Digests the output of an execution that ended with its backend, and compares it with its checkpoint. Blocks.
pub fn digest(
    files: &PerStream<Arc<StoredFile>>,
    ends: PerStream<u64>,
    checkpoint: Option<&CheckpointRecord>,
) -> RestoredDigests {
    let mut digests = RestoredDigests { sha256: PerStream::default(), is_altered: false };
    for stream in Stream::BOTH {
        let known = checkpoint.map(|known| (*known.bytes.get(stream), known.sha256.get(stream).as_str()));
        let (sha256, is_altered) = digest_file(files.get(stream), *ends.get(stream), known);
        *digests.sha256.get_mut(stream) = sha256;
        digests.is_altered |= is_altered;
    }
    digests
}

fn digest_file(file: &StoredFile, end: u64, known: Option<(u64, &str)>) -> (Option<String>, bool) {
    // A checkpoint beyond the end: the file was cut.
    let mut is_altered = known.is_some_and(|(bytes, _)| bytes > end);
    let mut sha256 = Sha256::new();
    let mut at = 0;
    loop {
        if let Some((bytes, expected)) = known
            && bytes == at
        {
            is_altered |= format!("{:x}", sha256.clone().finalize()) != expected;
        }
        if at == end {
            return (Some(format!("{:x}", sha256.finalize())), is_altered);
        }
        // Up to the checkpoint, to compare there.
        let to = known.map(|(bytes, _)| bytes).filter(|bytes| *bytes > at).unwrap_or(end).min(end);
        match file.read(at, to) {
            Ok(StoredPiece::Bytes(bytes)) => {
                sha256.update(&bytes);
                at += bytes.len() as u64;
            }
            Ok(StoredPiece::GivenUp(_)) | Err(_) => return (None, is_altered),
        }
    }
}
