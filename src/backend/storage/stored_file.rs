//! The file of one output stream, by offsets of the stream. Its beginning may be given up, which frees its disk space.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};

use super::regular;

/// The most that is read at a time, in bytes.
const READ_AT_ONCE: usize = 256 * 1024;

/// The file of one stream, shared by its writer and its readers.
#[derive(Debug)]
pub struct StoredFile {
    path: PathBuf,
    file: OnceLock<File>,
    /// The offset of the first byte that is still there. Changed before the bytes are given up, so that a reader that
    /// may have read given-up bytes sees it.
    start: AtomicU64,
}

/// A piece that was read from a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoredPiece {
    /// Bytes from the offset on.
    Bytes(Bytes),
    /// The bytes before this offset are no longer there.
    GivenUp(u64),
}

impl StoredFile {
    /// The file at this path, which is opened when it is needed.
    pub fn at(path: PathBuf, start: u64) -> Self {
        StoredFile { path, file: OnceLock::new(), start: AtomicU64::new(start) }
    }

    /// Makes the file. Blocks, as everything below.
    pub(super) fn create(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&self.path)?;
        // Nobody else has it yet.
        let _ = self.file.set(file);
        Ok(())
    }

    fn file(&self) -> io::Result<&File> {
        match self.file.get() {
            Some(file) => Ok(file),
            None => {
                let file = regular::open(&self.path)?;
                // Another reader may have opened it meanwhile; either will do.
                Ok(self.file.get_or_init(|| file))
            }
        }
    }

    /// Calls a function with the open file.
    pub(super) fn with<T>(&self, call: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        call(self.file()?)
    }

    /// The length of the file, in bytes.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file()?.metadata()?.len())
    }

    /// When it was last written.
    pub(super) fn modified(&self) -> io::Result<SystemTime> {
        self.file()?.metadata()?.modified()
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let file = self.file()?;
        // A full disk takes a part of the piece, which counts as not written.
        file.write_all_at(bytes, at).inspect_err(|_| drop(file.set_len(at)))
    }

    /// The offset of the first byte that is still there.
    pub fn start(&self) -> u64 {
        self.start.load(Ordering::Acquire)
    }

    /// Records that the bytes before this offset are being given up.
    pub fn set_start(&self, start: u64) {
        self.start.fetch_max(start, Ordering::AcqRel);
    }

    /// Frees the disk space of the bytes before [`StoredFile::start`].
    pub(super) fn free_before_start(&self) -> io::Result<()> {
        let start = self.start();
        if start > 0 {
            fallocate(self.file()?, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, start)?;
        }
        Ok(())
    }

    /// Reads some bytes of this range.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or ends before.
    pub fn read(&self, from: u64, to: u64) -> io::Result<StoredPiece> {
        let given_up = |start: u64| StoredPiece::GivenUp(start.min(to));
        if from < self.start() {
            return Ok(given_up(self.start()));
        }
        let most = usize::try_from(to - from).unwrap_or(READ_AT_ONCE).min(READ_AT_ONCE);
        let mut bytes = vec![0; most];
        let n = loop {
            match self.file()?.read_at(&mut bytes, from) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        // Again, because they may have been given up during the call.
        if from < self.start() {
            return Ok(given_up(self.start()));
        }
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes.truncate(n);
        Ok(StoredPiece::Bytes(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_up_bytes_are_never_read_as_zeros() {
        let directory = tempfile::tempdir().unwrap();
        let file = StoredFile::at(directory.path().join("stdout"), 0);
        file.create().unwrap();
        file.write(&[7; 100_000], 0).unwrap();
        assert_eq!(file.read(0, 10).unwrap(), StoredPiece::Bytes(vec![7; 10].into()));
        file.set_start(50_000);
        file.set_start(40_000);
        file.free_before_start().unwrap();
        assert_eq!(file.read(0, 100_000).unwrap(), StoredPiece::GivenUp(50_000), "the start never goes back");
        assert_eq!(file.read(0, 10).unwrap(), StoredPiece::GivenUp(10));
        assert_eq!(file.read(50_000, 100_000).unwrap(), StoredPiece::Bytes(vec![7; 50_000].into()));
        assert_eq!(file.read(100_000, 100_001).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(file.length().unwrap(), 100_000);
    }
}
