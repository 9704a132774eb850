//! The part of an execution's output that is on disk, beside the rings. Pure: it decides what is there and what is given
//! up; files are only passed on to readers.

use std::sync::Arc;

use cc_executor_actors::stream::{PerStream, Stream};

use crate::backend::storage::stored_file::StoredFile;

/// Given-up bytes are a hole of whole blocks, so that the start can be found in the file. Smaller holes cost too many
/// calls.
const STEP: u64 = 64 * 1024;

/// The output on disk.
#[derive(Debug)]
pub struct StoredOutput {
    files: PerStream<Arc<StoredFile>>,
    /// How much of each stream is on disk.
    ends: PerStream<u64>,
    /// Whether further output goes there, too.
    is_growing: bool,
    /// How much of both streams may be kept, in bytes.
    quota: u64,
    /// How much of that the limit of all executions leaves, in bytes.
    granted: u64,
}

/// Bytes of a stream, to be read from its file.
#[derive(Clone, Debug)]
pub struct StoredRange {
    /// The stream.
    pub stream: Stream,
    /// Its file.
    pub file: Arc<StoredFile>,
    /// The offset of the first byte.
    pub from: u64,
    /// The offset after the last byte.
    pub to: u64,
}

impl StoredOutput {
    /// The files of an execution that begins. Both together may keep `quota` bytes.
    pub fn new(files: PerStream<Arc<StoredFile>>, quota: u64) -> Self {
        StoredOutput { files, ends: PerStream::default(), is_growing: true, quota, granted: quota }
    }

    /// The files of an execution that has ended.
    pub fn ended(files: PerStream<Arc<StoredFile>>, ends: PerStream<u64>) -> Self {
        StoredOutput { files, ends, is_growing: false, quota: u64::MAX, granted: u64::MAX }
    }

    /// Whether further output goes to disk.
    pub fn is_growing(&self) -> bool {
        self.is_growing
    }

    /// No further output goes to disk.
    pub fn stop(&mut self) {
        self.is_growing = false;
    }

    /// Records that output is on disk.
    pub fn record_written(&mut self, stream: Stream, n: usize) {
        *self.ends.get_mut(stream) += n as u64;
    }

    /// The offsets of the first bytes that are still there.
    pub fn starts(&self) -> PerStream<u64> {
        PerStream { stdout: self.files.stdout.start(), stderr: self.files.stderr.start() }
    }

    /// The offsets after the last bytes.
    pub fn ends(&self) -> PerStream<u64> {
        self.ends
    }

    /// The files.
    pub fn files(&self) -> &PerStream<Arc<StoredFile>> {
        &self.files
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> u64 {
        Stream::BOTH.into_iter().map(|stream| self.ends.get(stream) - self.files.get(stream).start()).sum()
    }

    /// Records how many bytes this execution may keep because of the limit of all executions.
    pub fn grant(&mut self, bytes: u64) {
        self.granted = bytes;
    }

    /// How many bytes may be kept now.
    fn allowed(&self) -> u64 {
        self.quota.min(self.granted)
    }

    /// Whether a command that waits for its client may write more, if the client has received everything before these
    /// offsets.
    pub fn has_room(&self, acknowledged: &PerStream<u64>) -> bool {
        let unacknowledged = |stream| {
            let from = (*acknowledged.get(stream)).max(self.files.get(stream).start());
            self.ends.get(stream).saturating_sub(from)
        };
        Stream::BOTH.into_iter().map(unacknowledged).sum::<u64>() < self.allowed()
    }

    /// Gives up the oldest bytes beyond the quota and this margin, in each stream only bytes before `floor`. Returns
    /// whether disk space can be freed.
    pub fn give_up(&mut self, floor: PerStream<u64>, margin: u64) -> bool {
        let mut excess = self.kept().saturating_sub(self.allowed().saturating_add(margin));
        let mut has_changed = false;
        // The longer one first.
        let mut streams = Stream::BOTH;
        streams.sort_by_key(|stream| std::cmp::Reverse(self.ends.get(*stream) - self.files.get(*stream).start()));
        for stream in streams {
            let start = self.files.get(stream).start();
            let most = (*floor.get(stream)).min(*self.ends.get(stream)) / STEP * STEP;
            let to = start.saturating_add(excess.div_ceil(STEP).saturating_mul(STEP)).min(most);
            if excess > 0 && to > start {
                self.files.get(stream).set_start(to);
                excess = excess.saturating_sub(to - start);
                has_changed = true;
            }
        }
        has_changed
    }

    /// The range of a stream that begins at this offset, up to `most` bytes; `None` if the file ends before. Its first
    /// bytes may have been given up.
    pub fn range(&self, stream: Stream, from: u64, most: u64) -> Option<StoredRange> {
        let (file, end) = (self.files.get(stream), *self.ends.get(stream));
        (from < end).then(|| StoredRange {
            stream,
            file: Arc::clone(file),
            from,
            to: end.min(from.saturating_add(most)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(quota: u64) -> StoredOutput {
        let file = || Arc::new(StoredFile::at("/nowhere".into(), 0));
        StoredOutput::new(PerStream { stdout: file(), stderr: file() }, quota)
    }

    fn both(stdout: u64, stderr: u64) -> PerStream<u64> {
        PerStream { stdout, stderr }
    }

    #[test]
    fn the_oldest_bytes_beyond_the_quota_are_given_up_in_whole_steps() {
        let mut stored = stored(4 * STEP);
        stored.record_written(Stream::Stdout, 5 * STEP as usize);
        stored.record_written(Stream::Stderr, STEP as usize + 1);
        assert!(!stored.give_up(both(u64::MAX, u64::MAX), 3 * STEP), "the margin is not used up");
        assert!(!stored.give_up(both(STEP - 1, 0), 0), "nothing may be given up");
        assert!(stored.give_up(both(u64::MAX, u64::MAX), 0));
        assert_eq!((stored.starts(), stored.kept()), (both(3 * STEP, 0), 3 * STEP + 1));
        let range = stored.range(Stream::Stdout, 3 * STEP, 10).unwrap();
        assert_eq!((range.from, range.to), (3 * STEP, 3 * STEP + 10));
        assert!(stored.range(Stream::Stdout, 5 * STEP, 10).is_none());
    }

    #[test]
    fn a_command_waits_at_the_quota_or_at_the_limit_of_all() {
        let mut stored = stored(100);
        stored.record_written(Stream::Stdout, 60);
        stored.record_written(Stream::Stderr, 40);
        assert!(!stored.has_room(&both(0, 0)));
        assert!(stored.has_room(&both(1, 0)));
        stored.grant(90);
        assert!(!stored.has_room(&both(10, 0)));
        assert!(stored.has_room(&both(10, 1)));
    }
}
